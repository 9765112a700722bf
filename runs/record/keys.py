"""The keys of a run's configuration. Each is declared once, with its type, its limits
and its role.

A role says what a key is for: whether another value makes another run, whether it holds
a path of this machine, and so on. Everything that treats keys differently asks for
their roles: the hash behind a run's id (runs/record/cell.py), what a published record
leaves out (runs/record/ledger.py), which overrides are compared with the recipe
(runs/config/cells.py), and docs/keys.md.

The declarations stand here because everybody who reads records needs the roles, and
reads them without Hydra or torch. runs/config/schema.py adds the checks that need other
parts of the project.

To add a key, give it a default that keeps what runs did before, and say so with
`AddedLater`: at that value it stays out of ids, so every existing run keeps its id."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class Role(StrEnum):
    """What a key is for. The texts are those of docs/keys.md."""

    RESULT = "These keys define the result: another value makes another run."
    SEED = "These keys are seeds: another value makes another run of the same cell."
    CONTENT = (
        "These keys choose the files to read. The content of the files defines the "
        "result, not their name."
    )
    PATH = (
        "These keys say where files lie on this machine. The content of the files "
        "defines the result. A published record keeps only the last part of the path."
    )
    CHECKED = (
        "These keys are compared with the files that are read, and change no result."
    )
    COMPUTING = (
        "These keys change how a run is computed. The result is the same, apart from "
        "rounding."
    )
    OUTCOME = "These keys change what is kept, shown or asked after training."
    DISPLAY = "These keys are names that you see in tables and messages."
    DEFAULTS = "These keys set other keys, and only the values of those count."
    COMMAND = (
        "These keys say where and how a command does its runs. They are not part of a "
        "run."
    )


RESULT, SEED, CONTENT, PATH = Role.RESULT, Role.SEED, Role.CONTENT, Role.PATH
CHECKED, COMPUTING, OUTCOME = Role.CHECKED, Role.COMPUTING, Role.OUTCOME
DISPLAY, DEFAULTS, COMMAND = Role.DISPLAY, Role.DEFAULTS, Role.COMMAND


@dataclass(frozen=True)
class AddedLater:
    """Marks a key that came after records had been written.

    neutral: the value that every earlier run had in effect. At this value the key is
    left out of ids. families: the task families in which it came later; in all others
    it has been there from the beginning. None means all families."""

    neutral: object
    families: tuple[str, ...] | None = None


@dataclass(frozen=True)
class HashedAs:
    """Marks a key that ids hold at one fixed value, whatever its own value is: it was
    hashed before it got its role, and existing ids have to stay as they are."""

    value: object


@dataclass(frozen=True)
class AlsoEvaluation:
    """Marks a setting of training that changes evaluation, too."""


# --- types

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]
#: What torch's generators take.
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
#: A setting that the method or task checks by itself (vera.make_method, tasks.load).
Unchecked = object


class ConfigPart(BaseModel):
    """A part of the configuration. It refuses unknown keys, and takes a number as a text
    where it expects one (name=2026)."""

    # Code that reads records needs the declarations and validates no configuration
    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        defer_build=True,
    )


class ModelKeys(ConfigPart):
    """A pretrained backbone: from the hub, a local folder (path), or an installed
    package. See conf/model."""

    name: Annotated[str, DISPLAY]
    label: Annotated[str, DISPLAY]
    modality: Annotated[str, CHECKED]
    hub: Annotated[str | None, CONTENT] = None
    revision: Annotated[str | None, CONTENT] = None
    path: Annotated[str | None, PATH] = None
    package: Annotated[str | None, CONTENT] = None
    # name==version of a wheel (GGUF, ONNX), or a list of some with hashes: a zip in
    # parts
    wheel: Annotated[str | list[str] | None, CONTENT] = None
    # of model.safetensors, or of the one wheel
    sha256: Annotated[str | None, CHECKED] = None
    # compared with the folder's config.json, unless null
    architecture: Annotated[dict[str, Any] | None, CHECKED] = None
    # of the model's configuration, in place of the pretrained ones
    settings: Annotated[dict[str, Any] | None, RESULT, AddedLater(None)] = None
    # the linear layers in 4 bit
    quantise: Annotated[Literal["nf4"] | None, RESULT, AddedLater(None)] = None
    # what the chat template gets beside the messages, such as {enable_thinking: false}
    chat: Annotated[dict[str, Any] | None, RESULT, AddedLater(None)] = None
    # the base weights; what is trained is float32, unless method=full
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], RESULT, AddedLater("fp32")] = (
        "fp32"
    )


class TaskKeys(ConfigPart):
    """A task. Keys beyond these are the task's own (conf/task), and define the
    result."""

    # Its other settings come from ConfigPart: pydantic merges the two
    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=False)

    name: Annotated[str, RESULT]
    label: Annotated[str, DISPLAY]
    family: Annotated[str, RESULT]
    modality: Annotated[str, CHECKED]
    prepare: Annotated[str | None, RESULT] = None
    # A trial: this share of the training rows is evaluated on instead
    holdout: Annotated[Share | None, RESULT, AddedLater(None)]
    # The training rows in so many parts, of which one is evaluated on: folds=5 alone
    # expands to five runs
    folds: Annotated[Annotated[int, Field(ge=2)] | None, RESULT, AddedLater(None)] = (
        None
    )
    fold: Annotated[Index | None, RESULT, AddedLater(None)] = None

    # Where the rows are
    hub: Annotated[str | None, CONTENT] = None
    revision: Annotated[str | None, CONTENT] = None
    hub_config: Annotated[str | None, RESULT] = None
    test_hub: Annotated[str | None, RESULT] = None
    test_revision: Annotated[str | None, RESULT] = None
    data_dir: Annotated[str | None, PATH] = None
    train_file: Annotated[str | None, PATH] = None
    dev_file: Annotated[str | None, PATH] = None
    test_dir: Annotated[str | None, PATH, HashedAs(None)] = None
    test_file: Annotated[str | None, PATH] = None
    mt_bench_dir: Annotated[str | None, PATH] = None
    template: Annotated[str | None, PATH] = None
    forgetting_text: Annotated[str | None, PATH] = None

    # Which rows are used
    train_rows: Annotated[Count | None, RESULT, AddedLater(None, ("problems",))] = None
    dev_rows: Annotated[Count | None, RESULT] = None
    test_rows: Annotated[Count, RESULT] = 1
    orders: Annotated[Count | None, RESULT, AddedLater(None)] = None
    first_rows: Annotated[Count | None, RESULT] = None
    items: Annotated[Count | None, RESULT] = None
    shots: Annotated[Count | None, RESULT] = None
    draw_seed: Annotated[Index, SEED] = 0
    train_set: Annotated[str, RESULT] = ""
    train_split: Annotated[str, RESULT] = ""
    train_splits: Annotated[list[str], RESULT] = []
    dev_split: Annotated[str, RESULT] = ""
    test_split: Annotated[str | None, RESULT] = None
    tests: Annotated[list[str], Field(min_length=1), RESULT] = []
    test_suffix: Annotated[str, RESULT] = ""

    # How a row is read and learnt
    text: Annotated[str, RESULT] = ""
    text_pair: Annotated[str | None, RESULT] = None
    label_column: Annotated[str, RESULT] = ""
    image_column: Annotated[str, RESULT] = ""
    image_size: Annotated[Count | None, RESULT] = None
    regression: Annotated[bool | None, RESULT] = None
    scale_labels: Annotated[bool, RESULT, AddedLater(False)] = False
    metric: Annotated[str | None, RESULT] = None
    prompt: Annotated[str | None, RESULT] = None
    prompt_column: Annotated[str, RESULT] = ""
    answer_column: Annotated[str, RESULT] = ""
    chat_template: Annotated[bool, RESULT, AddedLater(False, ("maths",))] = False
    layout: Annotated[Literal["indented", "plain"], RESULT] = "plain"
    max_characters: Annotated[Count | None, RESULT] = None
    train_on_inputs: Annotated[bool, RESULT] = False
    label_smoothing: Annotated[float, Field(ge=0, lt=1), RESULT] = 0.0
    # Batches of texts were sorted by length before there was this key
    length_grouped: Annotated[bool, RESULT, AddedLater(True, ("glue", "text"))] = True

    # How texts are decoded and answers are read
    decode: Annotated[Literal["test", "dev", "none"], RESULT] = "none"
    search: Annotated[Literal["lora", "transformers"], RESULT] = "lora"
    beams: Annotated[Count, RESULT] = 1
    length_penalty: Annotated[
        list[Annotated[float, Field(ge=0, le=10)]], Field(min_length=1), RESULT
    ] = [1.0]
    no_repeat_ngram: Annotated[Index, RESULT] = 0
    max_new_tokens: Annotated[Count, RESULT] = 1
    stops: Annotated[list[Text], RESULT] = []
    reader: Annotated[str, RESULT] = ""
    # A run by reward is always scored by exact match
    dev_score: Annotated[
        Literal["perplexity", "exact_match"], RESULT, AddedLater("perplexity")
    ] = "perplexity"

    # What does not change the result
    pass_at: Annotated[Count | None, OUTCOME] = None
    workers: Annotated[Count | None, COMPUTING] = None
    keep: Annotated[str | None, DEFAULTS] = None
    id_column: Annotated[str | None, OUTCOME] = None
    keep_text: Annotated[bool, OUTCOME] = True
    bench: Annotated[Literal["mt_bench", "vicuna_bench"], OUTCOME] = "mt_bench"
    answer_tokens: Annotated[Count, OUTCOME] = 1
    top_p: Annotated[float, Field(gt=0, le=1), OUTCOME] = 1.0
    top_k: Annotated[Count | None, OUTCOME] = None

    # Keys that no file has any more; published records still have them
    cache_dir: Annotated[str | None, PATH] = None
    bad_images: Annotated[Literal["refuse"], COMPUTING] = "refuse"
    augment: Annotated[Literal["none"], RESULT] = "none"
    crop_scale: Annotated[list[float], RESULT] = [0.25, 1.0]


class MethodKeys(ConfigPart):
    """A method. Its settings are described in its file in conf/method; those of a class
    of one's own define the result."""

    model_config = ConfigDict(extra="allow")

    kind: Annotated[str, RESULT]
    label: Annotated[str | None, DISPLAY]
    keep: Annotated[str, DEFAULTS]
    recipe: Annotated[str | None, DEFAULTS] = None
    init_from: Annotated[str | None, DEFAULTS] = None
    lr_by: Annotated[dict[str, Any] | None, DEFAULTS] = None
    scaling: Annotated[Literal["constant", "proportional"], DEFAULTS] = "constant"
    redrawn: Annotated[bool, DEFAULTS] = False
    path: Annotated[Unchecked, COMPUTING] = None
    weights: Annotated[Unchecked, COMPUTING] = None
    # A class of peft, and its configuration
    config_class: Annotated[Unchecked, RESULT] = None
    config: Annotated[dict[str, Any] | None, RESULT] = None

    activation: Annotated[Unchecked, RESULT] = None
    alpha: Annotated[Unchecked, RESULT] = None
    bases: Annotated[Unchecked, RESULT] = None
    basis_seed: Annotated[Unchecked, RESULT] = None
    beta1: Annotated[Unchecked, RESULT] = None
    beta2: Annotated[Unchecked, RESULT] = None
    bottleneck: Annotated[Unchecked, RESULT] = None
    c_init: Annotated[Unchecked, RESULT] = None
    d_init: Annotated[Unchecked, RESULT] = None
    drop_layers: Annotated[Unchecked, RESULT] = None
    drop_per_batch: Annotated[Unchecked, RESULT] = None
    dropout: Annotated[Unchecked, RESULT] = None
    final_share: Annotated[Unchecked, RESULT] = None
    freeze_a: Annotated[Unchecked, RESULT] = None
    frozen: Annotated[Unchecked, RESULT] = None
    init: Annotated[Unchecked, RESULT] = None
    init_rank: Annotated[Unchecked, RESULT] = None
    init_std: Annotated[Unchecked, RESULT] = None
    initial_share: Annotated[Unchecked, RESULT] = None
    interval: Annotated[Unchecked, RESULT] = None
    orthogonality: Annotated[Unchecked, RESULT] = None
    placement: Annotated[Unchecked, RESULT] = None
    projection_seed: Annotated[Unchecked, RESULT] = None
    projections: Annotated[Unchecked, RESULT] = None
    rank: Annotated[Unchecked, RESULT] = None
    share: Annotated[Unchecked, RESULT] = None
    shared_b: Annotated[Unchecked, RESULT, AddedLater(False)] = None
    sites: Annotated[Unchecked, RESULT] = None
    store: Annotated[Unchecked, RESULT] = None
    vectors: Annotated[Unchecked, RESULT] = None


class TrainKeys(ConfigPart):
    """The settings of training. See conf/config.yaml."""

    epochs: Annotated[Count, RESULT]
    effective_batch: Annotated[Count, RESULT]
    max_length: Annotated[Count, RESULT, AlsoEvaluation()]
    lr: Annotated[Rate, RESULT]
    lr_head: Annotated[Rate, RESULT]
    # mappings of the ends of parameters' names to rates and to weight decays
    lr_by: Annotated[Any, RESULT, AddedLater(None)]
    decay_by: Annotated[Any, RESULT, AddedLater(None)]
    weight_decay: Annotated[Rate, RESULT]
    decay_all: Annotated[bool, RESULT, AddedLater(False)]
    adam_eps: Annotated[Rate, RESULT, AddedLater(1e-8)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1), RESULT, AddedLater(0.999)]
    warmup_ratio: Annotated[float, Field(ge=0, le=1), RESULT]
    warmup_steps: Annotated[Index | None, RESULT, AddedLater(None)]
    schedule: Annotated[Literal["linear", "cosine", "constant"], RESULT]
    clip: Annotated[Annotated[float, Field(gt=0)] | None, RESULT]
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp16"], RESULT, AlsoEvaluation()
    ]
    max_steps: Annotated[Count | None, RESULT]
    evaluate_every: Annotated[Count, RESULT, AddedLater(1)]
    evaluate_steps: Annotated[Count | None, RESULT, AddedLater(None)] = None
    objective: Annotated[
        Literal["likelihood", "demonstrations", "reward"],
        RESULT,
        AddedLater("likelihood"),
    ] = "likelihood"


class RewardKeys(ConfigPart):
    """The settings of training by reward. See conf/config.yaml."""

    samples: Annotated[int, Field(ge=2), RESULT]
    temperature: Annotated[float, Field(gt=0), RESULT]
    scale: Annotated[Literal["group", "batch", "none"], RESULT]
    loss: Annotated[Literal["grpo", "dapo", "dr_grpo"], RESULT]
    kl: Annotated[Rate, RESULT]
    # exact_match, module.function, or the weights of several by name
    function: Annotated[Text | dict[Text, float], RESULT]
    # the reward of a completion without an end token; null: as it is scored
    truncated: Annotated[float | None, RESULT]
    max_new_tokens: Annotated[Count | None, RESULT]
    samples_every: Annotated[Count | None, OUTCOME]
    # a control that can teach nothing: a step's rewards change places at random
    permuted: Annotated[bool, RESULT, AddedLater(False)] = False
    # no sampling: the mean over all tokens of the vocabulary, for answers of one token
    expected: Annotated[bool, RESULT, AddedLater(False)] = False


class RunKeys(ConfigPart):
    """The configuration of a run. Ids hold the group that only some runs have, reward,
    where a run has it."""

    model: ModelKeys
    task: TaskKeys
    method: MethodKeys
    train: TrainKeys
    # of a run by likelihood there is none
    reward: RewardKeys | None = None
    seed: Annotated[Seed, SEED]
    data_seed: Annotated[Seed, SEED]
    select: Annotated[Literal["paper", "crossfit"], OUTCOME]
    keep: Annotated[Literal["best", "last", "both", "none"], OUTCOME]
    adapter_precision: Annotated[Literal["fp32", "bf16", "fp16"], OUTCOME]
    # an adapter file, a run's id, or ROW@TASK: the adapter's content counts
    init_from: Annotated[str | None, PATH]
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], COMPUTING]
    micro_batch: Annotated[Count | None, COMPUTING]
    gradient_checkpointing: Annotated[bool, COMPUTING]
    eval_batch: Annotated[Count, COMPUTING]
    checkpoint_minutes: Annotated[Rate, COMPUTING]
    output: Annotated[str, PATH]
    debug: Annotated[bool, COMPUTING]
    recipe: Annotated[dict[str, Any], DEFAULTS] = {}


# --- what is derived from the declarations

#: The groups of a configuration by the names that keys begin with.
GROUP_KEYS: dict[str, type[ConfigPart]] = {
    "model": ModelKeys,
    "task": TaskKeys,
    "method": MethodKeys,
    "train": TrainKeys,
    "reward": RewardKeys,
}


@dataclass(frozen=True)
class Key:
    """A declared key. name: with its group, such as train.lr. values: what it takes, as
    docs/keys.md prints it. added, hashed_as and also_evaluation: its marks, if any."""

    name: str
    role: Role
    values: str
    added: AddedLater | None = None
    hashed_as: HashedAs | None = None
    also_evaluation: bool = False

    @property
    def group(self) -> str:
        """The group, or "" for a key of none."""
        return self.name.rpartition(".")[0]

    def in_ids(self, value: object, family: str | None) -> bool:
        """Whether ids hold the key at this value, in runs of this task family."""
        if self.role not in (Role.RESULT, Role.SEED):
            return False
        if self.added is None:
            return True
        families = self.added.families
        if families is not None and family not in families:
            return True
        return value != self.added.neutral


def keys_of_part(part: type[ConfigPart], group: str = "") -> Iterator[Key]:
    """The keys that a part of the configuration declares, except its groups. group: the
    name of the part; "" for RunKeys. Raises TypeError for a key without a role."""
    for name, field in part.model_fields.items():
        if name in GROUP_KEYS:
            continue
        full_name = f"{group}.{name}" if group else name
        yield _key(full_name, field)


def _key(name: str, field: FieldInfo) -> Key:
    """The declaration of one field. Raises TypeError unless it has one role."""
    roles = [item for item in field.metadata if isinstance(item, Role)]
    if len(roles) != 1:
        raise TypeError(f"{name}: declare one role, Annotated[..., ROLE]")
    added = [item for item in field.metadata if isinstance(item, AddedLater)]
    hashed_as = [item for item in field.metadata if isinstance(item, HashedAs)]
    return Key(
        name=name,
        role=roles[0],
        values=_type_text(field.annotation),
        added=added[0] if added else None,
        hashed_as=hashed_as[0] if hashed_as else None,
        also_evaluation=any(
            isinstance(item, AlsoEvaluation) for item in field.metadata
        ),
    )


def _type_text(annotation: Any) -> str:
    """What docs/keys.md prints for a type, such as "whole number, null"."""
    names = {int: "whole number", float: "number", str: "text", bool: "true, false"}
    if annotation is type(None):
        return "null"
    if annotation in names:
        return names[annotation]
    origin = getattr(annotation, "__origin__", None)
    if origin is list:
        return f"list of {_type_text(get_args(annotation)[0])}"
    if origin is dict:
        return "mapping"
    if origin is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if get_args(annotation):
        members = get_args(annotation)
        if hasattr(annotation, "__metadata__"):  # Annotated: the type comes first
            return _type_text(members[0])
        return ", ".join(map(_type_text, members))
    return "as its file says"


#: Every declared key of a run's configuration, by its name.
KEYS: dict[str, Key] = {key.name: key for key in keys_of_part(RunKeys)}
for _group, _part in GROUP_KEYS.items():
    KEYS.update((key.name, key) for key in keys_of_part(_part, _group))


@cache
def names_with_role(role: Role, group: str) -> tuple[str, ...]:
    """The names, without their group, of a group's keys that have a role."""
    keys = (key for key in KEYS.values() if key.group == group and key.role == role)
    return tuple(key.name.rpartition(".")[2] for key in keys)


def nearest_key(name: str) -> Key | None:
    """The declared key with this dotted name, or the one that it is inside of:
    model.settings for model.settings.dropout. None if nothing of it is declared."""
    while name and name not in KEYS:
        name = name.rpartition(".")[0]
    return KEYS.get(name)


def is_own_setting(name: str) -> bool:
    """Whether a key of the group method, named without "method.", is an argument of the
    method's class (vera.make_method): it changes the result, or how it is computed. Keys
    of other roles are read by the harness alone: the label, and defaults such as keep."""
    key = KEYS.get(f"method.{name}")
    return key is None or key.role in (Role.RESULT, Role.COMPUTING)
