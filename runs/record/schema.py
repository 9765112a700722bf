"""The keys of a record and their types.

`check` compares a record with the classes below once, when it is read, so that other code need not check
again. A record may have further keys. Metrics are fractions, except perplexity and the scores of texts;
times are in seconds, sizes in bytes."""

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge
from typing_extensions import TypedDict  # before Python 3.12, pydantic does not accept typing's own

SCHEMA = 3
#: From each older schema to the next.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda record: record | {"schema": 2, "tries": []},
    2: lambda record: _with_metric(record) | {"schema": 3},
}
#: The status of a run that is not done again: a diverged run is a result, too.
FINISHED = ("done", "diverged")
Record = dict[str, Any]


def _with_metric(record: dict[str, Any]) -> dict[str, Any]:
    """Adds the metric's direction and scale, and the epoch that tables report, which schema 2 did not
    have."""
    result, config = record.get("result"), record.get("config")
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(result, dict) or not isinstance(task, dict):
        return record
    fraction = result.get("metric") != "perplexity"
    reported = "last" if task.get("family") in ("images", "instruct", "e2e") else "best"
    result |= {"higher_is_better": fraction, "scale": 100.0 if fraction else 1.0, "reported": reported}
    return record


Count = Annotated[int, Ge(0)]
Number = float | None


class CellName(TypedDict):
    """Which number of which table a run is a seed of."""

    paper: str | None  # the preset it was started by
    row: str  # conf/method
    model: str  # conf/model
    task: str  # conf/task
    seed: int


class Label(TypedDict):
    """The same, as people read it."""

    row: str
    model: str
    task: str


class LocalPaths(TypedDict, total=False):
    """The paths that the configuration of a model or a task may hold; a published record has their names."""

    path: str | None
    data_dir: str | None
    train_file: str | None
    dev_file: str | None
    cache_dir: str | None
    mt_bench_dir: str | None
    template: str | None
    forgetting_text: str | None


#: Those of a task.
TASK_PATHS = tuple(key for key in LocalPaths.__annotations__ if key != "path")


class Part(LocalPaths):
    """The configuration of a model or a task; it may have other keys of its own."""

    name: str
    family: NotRequired[str]
    settings: NotRequired[dict[str, Any] | None]
    train_rows: NotRequired[Count | None]
    shots: NotRequired[Count | None]  # images of a class
    holdout: NotRequired[float | None]


class MethodPart(TypedDict):
    """The configuration of a method; it may have other keys of its own."""

    kind: str
    rank: NotRequired[Any]  # a number; peft's methods may have several
    alpha: NotRequired[Any]


class TrainPart(TypedDict):
    """The configuration of training; conf/config.yaml explains its keys."""

    epochs: Count
    effective_batch: NotRequired[Annotated[int, Ge(1)]]
    lr: float
    lr_head: NotRequired[float]
    lr_by: NotRequired[dict[str, float] | None]
    decay_by: NotRequired[dict[str, float] | None]
    max_steps: Count | None  # of a trial, which is stopped early


class RecipePart(TypedDict):
    """A recipe as conf/recipe has it; its other keys are settings of training and of the method."""

    source: NotRequired[str | None]
    by_task: NotRequired[dict[str, dict[str, Any] | None] | None]
    chosen: NotRequired[dict[str, Any] | None]


class Config(TypedDict):
    """The resolved configuration that the run was made from."""

    model: Part
    task: Part
    method: MethodPart
    train: TrainPart
    seed: int
    data_seed: NotRequired[int]
    output: NotRequired[str]
    keep: str
    recipe: NotRequired[RecipePart | None]
    init_from: NotRequired[str | None]


class Start(TypedDict):
    """Which adapter a run started from."""

    id: str


class Recipe(TypedDict):
    """Where the hyperparameters come from."""

    name: str | None
    source: NotRequired[str | None]
    chosen: NotRequired[dict[str, Any]]  # those that this project chose, and why


class Code(TypedDict):
    """The code that was run."""

    commit: str | None
    dirty: bool | None  # whether files differed from that commit
    # The files of method and task family: runs/sources.py
    sources: NotRequired[dict[str, dict[str, Any]]]


class Device(TypedDict):
    """The hardware that it was run on."""

    type: str
    name: str
    system: NotRequired[str | None]
    cuda: NotRequired[str | None]
    driver: NotRequired[str | None]  # these, of a GPU
    cudnn: NotRequired[int | None]
    capability: NotRequired[str]  # as 9.0


class Determinism(TypedDict):
    """What decides whether another run gives the same bits."""

    deterministic_algorithms: NotRequired[bool]
    strict: NotRequired[bool]  # an operation without a deterministic kernel would have been an error
    tf32_matmul: NotRequired[bool]  # these, on a GPU
    tf32_conv: NotRequired[bool]
    fused_attention: NotRequired[list[str]]  # the kernels that attention may take
    threads: Count
    processes: NotRequired[Count]
    resumed: NotRequired[list[str]]  # where an attempt had another device, code, versions or threads


class Data(TypedDict):
    """The data of training and evaluation."""

    content: str  # a hash
    train_rows: Count
    dev_rows: Annotated[int, Ge(1)]
    selection: NotRequired[str]  # a hash of which training rows were drawn
    unreadable: NotRequired[Any]  # rows left out, and why


class Parameters(TypedDict):
    """How many parameters there are, and how many of them are trained."""

    adapter: Count
    head: Count
    frozen_extra: NotRequired[Count]  # VeRA's A and B
    total: NotRequired[Count]
    formula: NotRequired[Count | None]  # the adapter's, by the method's formula


class Group(TypedDict):
    """A parameter group of the optimizer."""

    name: str
    lr: float
    weight_decay: float
    parameters: Count


class Curve(TypedDict):
    """The evaluations: lists of equal length, with one entry for each evaluation."""

    epoch: list[float]
    step: NotRequired[list[int]]
    train_loss: NotRequired[list[float]]
    dev_loss: NotRequired[list[float]]
    metric: list[Number]  # of the whole of dev
    metric_select: NotRequired[list[Number]]  # of its half A
    metric_report: NotRequired[list[Number]]  # of its half B
    lr: NotRequired[list[list[float]]]  # of each group


class Selected(TypedDict):
    """The best number by a protocol, and the last epoch's; empty where there is none."""

    best: NotRequired[Number]
    best_epoch: NotRequired[Number | list[float]]  # crossfit has two
    last: NotRequired[Number]
    optimism: NotRequired[Number]


class Forgetting(TypedDict):
    """A language model's cross-entropy on a text that it is not trained on, in nats a token."""

    text: str
    sha256: str
    tokens: Count  # that are predicted
    before: Number  # of the base model; None where it is not finite
    after: Number  # of the last epoch


class Result(TypedDict):
    """The numbers that tables show."""

    metric: str
    higher_is_better: bool
    scale: float  # what tables multiply the metric by: 100 for fractions
    reported: Literal["best", "last"]  # which of the two the task's table shows
    select: NotRequired[str]  # the protocol of best and last
    best: Number
    best_epoch: Number | list[float]
    last: Number
    forgetting: NotRequired[Forgetting]
    # "paper" and "crossfit"; records from before 2026-11-26 have another one instead of crossfit
    protocols: NotRequired[dict[str, Selected | None]]


class Score(TypedDict):
    """Scores of the texts of one epoch and variant."""

    which: str  # last or best
    variant: str  # of decoding
    bleu: NotRequired[Number]
    nist: NotRequired[Number]
    meteor: NotRequired[Number]
    rouge_l: NotRequired[Number]
    cider: NotRequired[Number]


class Texts(TypedDict):
    """Texts that a run decoded."""

    split: str
    items: Count
    decoding: NotRequired[dict[str, Any]]
    scores: list[Score]


class Judged(TypedDict):
    """A judge's summary of a run's answers, see tasks/mt_bench."""

    bench: str
    judge: str
    passes: Count
    n: Count  # scores that are wanted
    judged: Count  # replies among them
    n_valid: Count  # ratings among those
    mean: Number
    low: Number
    high: Number
    turns: dict[str, Number]
    categories: NotRequired[dict[str, Number]]
    answers: NotRequired[str]  # a hash
    answering: NotRequired[dict[str, Any] | None]  # how they were sampled


class Cost(TypedDict):
    """Time and memory."""

    train_seconds: float
    evaluate_seconds: float
    decode_seconds: NotRequired[float]
    tokens_per_second: NotRequired[float]
    images_per_second: NotRequired[float]
    peak_memory_bytes: NotRequired[Count]
    adapter_bytes: Count


class Failed(TypedDict):
    """The record of a run that ended with an error: the keys that every record has."""

    schema: int
    id: str
    status: Literal["done", "diverged", "failed"]
    error: str | None
    tries: list[str]  # how earlier attempts ended
    claim: NotRequired[str | None]  # of a failed run: the attempt that wrote the record
    cell: CellName
    label: Label
    overrides: NotRequired[list[str]]  # that compose the run, without its seed; see runs/overrides.py
    config: Config
    config_hash: NotRequired[str]


class Finished(Failed):
    """The record of a run that is done or has diverged."""

    cell_id: NotRequired[str]  # a hash of all but the seed (cell.py); readers compute it again
    start: NotRequired[Start | None]
    recipe: Recipe
    # training, data, projection; projection_note: whether A and B differ between seeds
    seeds: dict[str, Any]
    code: Code
    versions: dict[str, str | None]
    device: Device
    determinism: Determinism
    model: str  # a hash of its content
    protocol: NotRequired[Count]  # version of the task family; without it: 1
    data: Data
    parameters: Parameters
    groups: NotRequired[list[Group]]
    effective_batch: Annotated[int, Ge(1)]
    micro_batch: NotRequired[Count | None]
    steps: Count
    curve: Curve
    result: Result
    texts: NotRequired[Texts | None]
    judged: NotRequired[list[Judged]]
    files: NotRequired[dict[str, str]]  # SHA-256 of each file that the run keeps
    cost: Cost
    predictions: NotRequired[dict[str, str | None]]  # hashes, for the best and the last epoch
    deviations: list[str]  # from the recipe and the usual protocol, in words


#: A failed run's record may have the other keys too; then they have the same types.
_KEYS = dict(Finished.__annotations__)
Unfinished = TypedDict("Unfinished", _KEYS, total=False)  # type: ignore[misc]


def check(record: dict[str, Any]) -> None:
    """Raises ValueError, in one line, for a value that is not a record of this schema: a key is missing, a
    value has another type, or the curve's columns differ in length."""
    if record.get("status") not in FINISHED:
        validate(Failed, record)
        validate(Unfinished, record)
    else:
        validate(Finished, record)
        lengths = {len(column) for column in record["curve"].values() if isinstance(column, list)}
        if len(lengths) > 1:
            raise ValueError("curve: columns differ in length")
        if record["status"] == "done" and lengths == {0}:
            raise ValueError("curve: done, and without an epoch")
        method = record["config"]["method"]
        if method["kind"] in ("vera", "lora") and type(method.get("rank")) is not int:
            raise ValueError(f"config.method.rank: a rank of {method['kind']} is a whole number")


def validate(shape: type, value: Any) -> None:
    """Raises ValueError for the first key of a value that is missing or has another type than in `shape`."""
    from pydantic import ValidationError

    try:
        _validator(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False, include_input=False)
        where = ".".join(map(str, first["loc"])) or "it"
        more = f", and {len(others)} more" if others else ""
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}{more}") from None


@cache
def _validator(shape: type) -> Any:
    from pydantic import TypeAdapter  # here: its import takes longer than reading a small ledger

    return TypeAdapter(shape)
