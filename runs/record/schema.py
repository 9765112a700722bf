"""What a record is: its keys, their types, and the parts of its configuration that define a result.

`check` holds a record to the classes below once, when it is read; whoever reads one after that asks no more.
Keys that are not here may stand beside them. Metrics are fractions, but for perplexity and the scores of
texts; times are seconds; sizes are bytes."""

from collections.abc import Callable
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # typing's own is not enough for pydantic before Python 3.12
)

from annotated_types import Ge  # which pydantic reads
from typing_extensions import TypedDict

SCHEMA = 3
#: From each older schema to the next.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda record: record | {"schema": 2, "tries": []},
    2: lambda record: _with_metric(record) | {"schema": 3},
}
#: A run with one of these needs no other try. A diverged run is a result.
FINISHED = ("done", "diverged")
Record = dict[str, Any]


def _with_metric(record: dict[str, Any]) -> dict[str, Any]:
    """The record with what its metric is and which epoch tables report, which schema 2 left to its
    readers."""
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
    """The same in words."""

    row: str
    model: str
    task: str


class Part(TypedDict):
    """The configuration of a model or a task; what else is in it is its own."""

    name: str
    family: NotRequired[str]
    settings: NotRequired[dict[str, Any] | None]
    path: NotRequired[str | None]
    data_dir: NotRequired[str | None]
    train_file: NotRequired[str | None]
    dev_file: NotRequired[str | None]
    cache_dir: NotRequired[str | None]
    mt_bench_dir: NotRequired[str | None]
    template: NotRequired[str | None]
    train_rows: NotRequired[Count | None]
    shots: NotRequired[Count | None]  # images of a class
    holdout: NotRequired[float | None]


class MethodPart(TypedDict):
    """The configuration of a method; what else is in it is its own."""

    kind: str
    rank: NotRequired[Any]  # another library's method may have several
    alpha: NotRequired[Any]


class TrainPart(TypedDict):
    """The configuration of training; conf/config.yaml explains its keys."""

    epochs: Count
    effective_batch: NotRequired[Annotated[int, Ge(1)]]
    lr: float
    lr_head: NotRequired[float]
    lr_by: NotRequired[dict[str, float] | None]
    max_steps: Count | None  # a trial's, which was stopped early


class RecipePart(TypedDict):
    """A recipe as it stands in conf/recipe; what else is in it are settings of training and of the method."""

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
    keep: NotRequired[str]
    recipe: NotRequired[RecipePart | None]
    init_from: NotRequired[str | None]


class Start(TypedDict):
    """Which adapter a run started from."""

    id: str


class Recipe(TypedDict):
    """Where the hyperparameters come from."""

    name: str | None
    source: NotRequired[str | None]
    chosen: NotRequired[dict[str, Any]]  # those that are this project's choice, and why


class Code(TypedDict):
    """What was run."""

    commit: str | None
    dirty: bool | None  # whether files differed from that commit
    sources: NotRequired[dict[str, Any] | None]  # the files of method and task family, see runs/sources.py


class Device(TypedDict):
    """What it was run on."""

    type: str
    name: str
    system: NotRequired[str | None]
    cuda: NotRequired[str | None]


class Determinism(TypedDict):
    """How far another run of it would be the same to the bit."""

    deterministic_algorithms: NotRequired[bool]
    threads: Count
    processes: NotRequired[Count]


class Data(TypedDict):
    """What was trained and judged on."""

    content: str  # a hash
    train_rows: Count
    dev_rows: Annotated[int, Ge(1)]
    selection: NotRequired[str]  # a hash of the training rows, where they were drawn
    unreadable: NotRequired[Any]  # rows left out, and why


class Parameters(TypedDict):
    """How many numbers train, and how many there are."""

    adapter: Count
    head: Count
    frozen_extra: NotRequired[Count]  # VeRA's A and B
    total: NotRequired[Count]
    formula: NotRequired[Count | None]  # the adapter's, by the method's formula


class Group(TypedDict):
    """Parameters of the optimizer that share a rate."""

    name: str
    lr: float
    weight_decay: float
    parameters: Count


class Curve(TypedDict):
    """A column for each number, a row for each evaluation."""

    epoch: list[float]
    step: NotRequired[list[int]]
    train_loss: NotRequired[list[float]]
    dev_loss: NotRequired[list[float]]
    metric: list[Number]  # of the whole of dev
    metric_select: NotRequired[list[Number]]  # of its half A
    metric_report: NotRequired[list[Number]]  # of its half B
    lr: NotRequired[list[list[float]]]  # of each group


class Selected(TypedDict):
    """A protocol's best number, and the last epoch's; nothing where there is none."""

    best: NotRequired[Number]
    best_epoch: NotRequired[Number | list[float]]  # crossfit has two
    last: NotRequired[Number]
    optimism: NotRequired[Number]


class Result(TypedDict):
    """What tables are made of."""

    metric: str
    higher_is_better: bool
    scale: float  # what tables multiply the metric by: 100 for fractions
    reported: Literal["best", "last"]  # the epoch whose number the task's table reports
    select: NotRequired[str]  # the protocol that the command showed
    best: Number
    best_epoch: Number | list[float]
    last: Number
    # Paper, crossfit; before 2026-11-26 another in the second's place
    protocols: NotRequired[dict[str, Selected | None]]


class Score(TypedDict):
    """Scores of decoded texts; beside these keys one for each score."""

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
    """What it took."""

    train_seconds: float
    evaluate_seconds: float
    decode_seconds: NotRequired[float]
    tokens_per_second: NotRequired[float]
    images_per_second: NotRequired[float]
    peak_memory_bytes: NotRequired[Count]
    adapter_bytes: Count


class Failed(TypedDict):
    """The record of a run that ended with an error, and what every record has."""

    schema: int
    id: str
    status: Literal["done", "diverged", "failed"]
    error: str | None
    tries: list[str]  # how earlier tries ended
    claim: NotRequired[str]  # of a failed one: by whose lease it was written
    cell: CellName
    label: Label
    config: Config
    config_hash: NotRequired[str]


class Finished(Failed):
    """The record of a run that is done, or diverged, which is a result as well."""

    cell_id: NotRequired[str]  # of what defines the result but the seed (cell.py); a reader makes it anew
    start: NotRequired[Start | None]
    recipe: Recipe
    # Training, data, projection; projection_note: whether other seeds have other matrices
    seeds: dict[str, Any]
    code: Code
    versions: dict[str, str | None]
    device: Device
    determinism: Determinism
    model: str  # a hash of its content
    protocol: NotRequired[Count]  # the version of the task family's; without it the first
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
    cost: Cost
    predictions: NotRequired[dict[str, str | None]]  # a hash of the best and of the last epoch's
    deviations: list[str]  # from the paper, in words


#: What a failed run's record may have beside: the same keys of the same types, none of them required.
_KEYS = dict(Finished.__annotations__)
Unfinished = TypedDict("Unfinished", _KEYS, total=False)  # type: ignore[misc]


def check(record: dict[str, Any]) -> None:
    """Raises ValueError, in one line, for what is no record of this schema: a key is missing, a value has
    another type, or the curve's columns differ in length."""
    if record.get("status") not in FINISHED:
        hold(Failed, record)
        hold(Unfinished, record)
    else:
        hold(Finished, record)
        lengths = {len(column) for column in record["curve"].values() if isinstance(column, list)}
        if len(lengths) > 1:
            raise ValueError("curve: columns differ in length")
        if record["status"] == "done" and lengths == {0}:
            raise ValueError("curve: done, and without an epoch")
        method = record["config"]["method"]
        if method["kind"] in ("vera", "lora") and type(method.get("rank")) is not int:
            raise ValueError(f"config.method.rank: a rank of {method['kind']} is a whole number")


def hold(shape: type, value: Any) -> None:
    """Raises ValueError for the first of a value's keys that the shape does not have so."""
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
    from pydantic import TypeAdapter  # where it is needed: its import takes longer than a small ledger

    return TypeAdapter(shape)
