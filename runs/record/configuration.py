"""The resolved configuration of a run, as mypy sees it and as records are checked.

keys.py declares the keys; these types name the ones that code reads from a record or a
run, so that a wrong key or type is an error before anything runs. A test compares the
two. A group may have other keys: settings of somebody's own model, task or method."""

from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge

# before Python 3.12, pydantic does not accept typing's own
from typing_extensions import TypedDict

Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]


class ModelConfig(TypedDict):
    """A pretrained backbone (conf/model)."""

    name: str
    label: NotRequired[str]
    modality: NotRequired[str]
    hub: NotRequired[str | None]
    revision: NotRequired[str | None]
    path: NotRequired[str | None]
    package: NotRequired[str | None]
    wheel: NotRequired[str | list[str] | None]
    sha256: NotRequired[str | None]
    architecture: NotRequired[dict[str, Any] | None]
    settings: NotRequired[dict[str, Any] | None]
    quantise: NotRequired[str | None]
    chat: NotRequired[dict[str, Any] | None]
    dtype: NotRequired[Literal["fp32", "bf16", "fp16"]]


class TaskConfig(TypedDict):
    """A task (conf/task)."""

    name: str
    label: NotRequired[str]
    family: NotRequired[str]
    modality: NotRequired[str]
    holdout: NotRequired[float | None]
    folds: NotRequired[int | None]
    fold: NotRequired[int | None]
    # where the rows are
    hub: NotRequired[str | None]
    revision: NotRequired[str | None]
    data_dir: NotRequired[str | None]
    train_file: NotRequired[str | None]
    dev_file: NotRequired[str | None]
    test_dir: NotRequired[str | None]
    test_file: NotRequired[str | None]
    mt_bench_dir: NotRequired[str | None]
    template: NotRequired[str | None]
    forgetting_text: NotRequired[str | None]
    cache_dir: NotRequired[str | None]
    # which rows are used
    train_rows: NotRequired[Count | None]
    dev_rows: NotRequired[int | None]
    test_rows: NotRequired[int]
    items: NotRequired[int | None]
    shots: NotRequired[Count | None]
    draw_seed: NotRequired[int]
    test_split: NotRequired[str | None]
    # how rows are read, learnt and decoded
    image_size: NotRequired[int | None]
    metric: NotRequired[str | None]
    length_grouped: NotRequired[bool]
    decode: NotRequired[str]
    beams: NotRequired[int]
    length_penalty: NotRequired[list[float]]
    max_new_tokens: NotRequired[int]
    dev_score: NotRequired[str]
    pass_at: NotRequired[int | None]
    label_column: NotRequired[str]
    top_p: NotRequired[float]
    top_k: NotRequired[int | None]
    workers: NotRequired[int | None]
    keep_text: NotRequired[bool]
    bench: NotRequired[str]
    answer_tokens: NotRequired[int]


class MethodConfig(TypedDict):
    """A method (conf/method)."""

    kind: str
    label: NotRequired[str]
    # peft's methods may have several ranks
    rank: NotRequired[Any]
    alpha: NotRequired[Any]
    init_from: NotRequired[str | None]
    sites: NotRequired[list[str]]
    redrawn: NotRequired[bool]
    projection_seed: NotRequired[int | None]
    config_class: NotRequired[str]
    config: NotRequired[dict[str, Any] | None]


class TrainConfig(TypedDict):
    """The settings of training (conf/config.yaml)."""

    epochs: Count
    effective_batch: NotRequired[Positive]
    max_length: NotRequired[int]
    lr: float
    lr_head: NotRequired[float]
    lr_by: NotRequired[dict[str, float] | None]
    decay_by: NotRequired[dict[str, float] | None]
    weight_decay: NotRequired[float]
    decay_all: NotRequired[bool]
    adam_eps: NotRequired[float]
    adam_beta2: NotRequired[float]
    warmup_ratio: NotRequired[float]
    warmup_steps: NotRequired[int | None]
    schedule: NotRequired[str]
    clip: NotRequired[float | None]
    precision: NotRequired[str]
    max_steps: Count | None  # of a trial, which is stopped early
    evaluate_every: NotRequired[int]
    evaluate_steps: NotRequired[int | None]
    objective: NotRequired[str]


class RewardConfig(TypedDict):
    """The settings of training by reward (conf/config.yaml)."""

    samples: int
    temperature: float
    scale: str
    loss: str
    kl: float
    function: str | dict[str, float]
    truncated: float | None
    max_new_tokens: int | None
    samples_every: int | None
    permuted: NotRequired[bool]
    expected: NotRequired[bool]


class RecipeConfig(TypedDict, total=False):
    """A recipe (conf/recipe). Its other keys are settings of training and of the
    method."""

    source: str | None
    by_task: dict[str, dict[str, Any] | None] | None
    chosen: dict[str, Any] | None


class Configuration(TypedDict):
    """The resolved configuration that a run is made from."""

    model: ModelConfig
    task: TaskConfig
    method: MethodConfig
    train: TrainConfig
    reward: NotRequired[RewardConfig]
    recipe: NotRequired[RecipeConfig | None]
    seed: int
    data_seed: NotRequired[int]
    select: NotRequired[str]
    keep: str
    adapter_precision: NotRequired[str]
    init_from: NotRequired[str | None]
    device: NotRequired[str]
    micro_batch: NotRequired[int | None]
    gradient_checkpointing: NotRequired[bool]
    eval_batch: NotRequired[int]
    checkpoint_minutes: NotRequired[float]
    output: NotRequired[str]
    debug: NotRequired[bool]
