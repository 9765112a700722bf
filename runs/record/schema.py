"""The keys of a record and of a measure that something reads, and their types.

mypy checks code against these types, and runs/record/validation.py compares a record
with them once, when it is read, so that other code need not check again. A record has further keys, which
are for people alone (docs/records.md). Metrics are fractions, except perplexity and the
scores of texts; times are in seconds, sizes in bytes."""

from typing import Any, Literal, NamedTuple, NotRequired

# before Python 3.12, pydantic does not accept typing's own
from typing_extensions import ReadOnly, TypedDict

from runs.record.configuration import Configuration, Count, Positive

SCHEMA = 3
#: The statuses of runs that have a result and are not repeated. Divergence is a result.
FINISHED = ("done", "diverged")

#: How a run ended.
Status = Literal["done", "diverged", "failed"]
#: A score or another measurement. None: it is not finite, or was not measured.
Number = float | None


class Cell(TypedDict):
    """Which score of which table a run is a seed of. paper: the preset that it was
    started by."""

    paper: str | None
    row: str
    model: str
    task: str
    seed: int


class Label(TypedDict):
    """The row, model and task of a cell, as people read them."""

    row: str
    model: str
    task: str


class Curve(TypedDict):
    """Lists of equal length, with one entry for each evaluation. Training by reward adds
    columns, whose names are TRL's."""

    epoch: list[float]
    step: NotRequired[list[int]]
    train_loss: NotRequired[list[float]]
    dev_loss: NotRequired[list[Number]]
    metric: list[Number]  # of the whole of dev
    metric_select: NotRequired[list[Number]]  # of its half A
    metric_report: NotRequired[list[Number]]  # of its half B
    lr: NotRequired[list[object]]  # of each group of the optimizer


#: The columns that every curve has.
CURVE_COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "dev_loss",
    "metric",
    "metric_select",
    "metric_report",
    "lr",
)


class Selected(TypedDict, total=False):
    """The best score by a protocol, and the last epoch's; empty where there is none.
    crossfit has two epochs."""

    best: Number
    best_epoch: Number | list[float]
    last: Number
    optimism: Number


class EvaluationMetric(TypedDict):
    """One metric of lm-eval."""

    metric: str
    filter: str
    higher_is_better: bool | None
    value: Number
    stderr: Number


class Evaluation(TypedDict):
    """What lm-eval measured: its metrics, and the SHA-256 of rows and answers."""

    metrics: list[EvaluationMetric]
    samples: str


class TaskScores(Evaluation):
    """What one model scored on a task of lm-eval, or on a group of them, asked in one
    way (runs/lm_harness)."""

    task: str
    # a hash of the task, its rows and how it was asked: results with the same one can
    # be compared
    asked: str
    lm_eval: str  # its version
    version: object  # the task's
    shots: Count | None  # None: a group's tasks have several
    limit: Count | None
    rows: Count
    settings: dict[str, Any]


class LmEvalResult(TaskScores):
    """What a run scored on a task of lm-eval, and its base model before."""

    before: Evaluation


class Forgetting(TypedDict):
    """Cross-entropy on a text that is not trained on, in nats a token."""

    text: str
    sha256: str
    tokens: Count  # that are predicted
    before: Number  # of the base model; None where it is not finite
    after: Number  # of the last epoch


class MetricResult(TypedDict):
    """The metric of a run's scores."""

    metric: str
    higher_is_better: bool
    scale: float  # what tables multiply the metric by: 100 for fractions
    reported: Literal["best", "last"]  # which of the two the task's table shows


class Result(MetricResult):
    """The scores that tables show."""

    select: NotRequired[str]  # the protocol of best and last
    best: Number
    best_epoch: Number | list[float]
    last: Number
    forgetting: NotRequired[Forgetting]
    lm_eval: NotRequired[list[LmEvalResult]]
    # "paper" and "crossfit"; records from before 2026-11-26 have another one instead of
    # crossfit
    protocols: NotRequired[dict[str, Selected | None]]


class TextScore(NamedTuple):
    """A score of texts as tables print it: its name, decimals, unit and direction."""

    name: str
    decimals: int = 1
    unit: str = ""
    higher_is_better: bool = True


#: The scores of texts by their keys. The number of a run whose texts were scored is the
#: first that they have.
TEXT_SCORES = {
    "exact_match": TextScore("exact match", unit="%"),  # tasks/exact.py
    "bleu": TextScore("BLEU"),  # and what follows, tasks/e2e_metrics.py
    "nist": TextScore("NIST", 2),
    "meteor": TextScore("METEOR"),
    "rouge_l": TextScore("ROUGE-L"),
    "cider": TextScore("CIDEr", 2),
}


class DecodedScores(TypedDict):
    """The scores of the texts of one epoch and one variant of decoding. A test compares
    its keys with TEXT_SCORES."""

    which: str  # last or best
    epoch: NotRequired[float]
    variant: str
    exact_match: NotRequired[Number]
    bleu: NotRequired[Number]
    nist: NotRequired[Number]
    meteor: NotRequired[Number]
    rouge_l: NotRequired[Number]
    cider: NotRequired[Number]
    parts: NotRequired[dict[str, float]]  # of exact_match, by test set
    unread: NotRequired[float]  # percent of the texts in which no answer was found
    right: NotRequired[str]  # which texts are right, one bit for each (items.pack)
    unavailable: NotRequired[dict[str, str]]  # why a score is missing, by its key
    hash: NotRequired[str]  # of the texts


class Texts(TypedDict):
    """Texts that a run decoded."""

    split: str
    items: Count  # rows, each of which got a text
    decoding: NotRequired[dict[str, Any]]  # the settings of decoding
    # the group of each item, where some resemble each other (items.groups_of_items)
    groups: NotRequired[list[int]]
    scores: list[DecodedScores]


class Judgement(TypedDict):
    """A judge's summary of a run's answers (tasks/mt_bench)."""

    bench: str
    judge: str
    passes: Count
    n: Count  # judgments if all are made
    judged: Count  # those with a reply
    n_valid: Count  # replies with a rating
    mean: Number
    low: Number
    high: Number
    turns: dict[str, Number]
    answers: NotRequired[str]  # a hash
    answering: NotRequired[dict[str, Any] | None]  # how they were sampled


#: The adapter that a run starts from: its id, and how the command named it (a published
#: record keeps no path).
Start = TypedDict("Start", {"id": str, "from": NotRequired[str]})


class Recipe(TypedDict):
    """Where the hyperparameters come from. chosen: those that this project chose, and
    why."""

    name: str | None
    source: NotRequired[str | None]
    chosen: NotRequired[dict[str, Any]]


class Seeds(TypedDict):
    """The seeds of a run. projection_note: whether A and B differ between seeds."""

    training: NotRequired[int]
    data: NotRequired[int]
    projection: NotRequired[int | None]
    projection_note: NotRequired[str]


class CodeSource(TypedDict, total=False):
    """The code of a method or task family (runs/run/provenance.py)."""

    file: str
    sha256: str  # its first 16 hex digits
    imports: str  # one hash of the modules beside it that it imports
    uncommitted: bool | None  # None outside of a git checkout


class Code(TypedDict):
    """The commit of the code, and whether files differed from it (dirty)."""

    commit: str | None
    dirty: bool | None
    # the newest commit of the checkout's history that the project itself has
    upstream: NotRequired[str | None]
    altered: NotRequired[list[str] | None]  # files that differ from `upstream`
    sources: NotRequired[dict[str, CodeSource]]


class Device(TypedDict):
    """The device that a run was done on."""

    type: str
    name: str
    cpu: NotRequired[str]  # the processor's model; old records have none
    system: NotRequired[str]
    cuda: NotRequired[str | None]
    driver: NotRequired[str | None]
    cudnn: NotRequired[int | None]
    capability: NotRequired[str]


class Provenance(TypedDict):
    """How a run was made: a part of its record."""

    code: Code
    versions: dict[str, str | None]
    device: Device


class Determinism(TypedDict):
    """What decides whether another run gives the same bits."""

    threads: Count
    processes: NotRequired[int]
    deterministic_algorithms: NotRequired[bool]
    strict: NotRequired[bool]
    tf32_matmul: NotRequired[bool]
    tf32_conv: NotRequired[bool]
    fused_attention: NotRequired[list[str]]
    resumed: NotRequired[list[str]]


class LabelScaling(TypedDict):
    """The training rows' labels, with task.scale_labels."""

    mean: float
    spread: float


class Data(TypedDict):
    """The rows of a run. content: a hash."""

    content: str
    train_rows: Count
    dev_rows: Positive
    selection: NotRequired[str]  # which of the rows were drawn
    labels: NotRequired[LabelScaling]


class Parameters(TypedDict):
    """How many parameters were trained, and how many the model has."""

    adapter: Count
    head: Count
    total: NotRequired[Count]
    formula: NotRequired[Count]  # what the method's count() says
    frozen_extra: NotRequired[Count]  # values that the method adds and does not train


class OptimizerGroup(TypedDict):
    """A group of the optimizer."""

    name: str
    lr: float
    weight_decay: float
    parameters: Count


class Reach(TypedDict):
    """How far a trained value can move at most, and what that changes
    (runs/training/effect.py)."""

    constant: float  # if its gradient stays the same: the sum of the learning rates
    adam: float  # whatever its gradients are
    effect: float  # the most that the objective changes, to first order, in `unit`
    unit: str


class Cost(TypedDict):
    """Seconds and bytes of a run."""

    train_seconds: float
    evaluate_seconds: float
    decode_seconds: NotRequired[float]
    tokens_per_second: NotRequired[float]
    images_per_second: NotRequired[float]
    peak_memory_bytes: NotRequired[Count]
    adapter_bytes: Count


class RightRows(TypedDict, total=False):
    """Which dev rows are right at an epoch, one bit for each (items.pack)."""

    best: str
    last: str


class MeasuredRecord(TypedDict):
    """What a run has measured at its end: all other keys of its record follow from these
    (derived.py). Every Record is one."""

    status: ReadOnly[Status]
    cell: ReadOnly[Cell]
    config: ReadOnly[Configuration]
    recipe: ReadOnly[Recipe]
    start: NotRequired[ReadOnly[Start | None]]
    model: ReadOnly[str]
    protocol: NotRequired[ReadOnly[Count]]
    data: ReadOnly[Data]
    functions: NotRequired[ReadOnly[str | None]]
    curve: ReadOnly[Curve]
    result: ReadOnly[MetricResult]


class AddedKeys(TypedDict, total=False):
    """What commands add to a record after its run."""

    result: Result
    texts: Texts | None
    judged: list[Judgement]


class EvaluatedSteps(TypedDict):
    """When a run evaluated, in epochs and in steps."""

    epoch: list[float]
    step: list[int]


class DerivedKeys(TypedDict):
    """The keys of a record that follow from what was measured (derived.py)."""

    id: str
    cell_id: str
    cell: Cell
    label: Label
    recipe: Recipe
    seeds: Seeds
    effective_batch: int
    micro_batch: int | None
    steps: NotRequired[int]  # of a run that is done
    curve: EvaluatedSteps
    result: Result


class FailedRecord(TypedDict):
    """The keys that every record has, also that of a run that ended with an error."""

    schema: int
    id: str
    status: Status
    error: str | None
    tries: list[str]  # how earlier attempts ended
    cell: Cell
    label: Label
    overrides: NotRequired[list[str]]  # that compose the run, without its seed
    config: Configuration
    config_hash: NotRequired[str]
    claim: NotRequired[str]  # the token of the attempt that failed


class Record(FailedRecord):
    """The record of a run that is done or has diverged."""

    cell_id: NotRequired[str]  # a hash of all but the seed; readers compute it again
    start: NotRequired[Start | None]
    recipe: Recipe
    seeds: Seeds
    code: Code
    versions: dict[str, str | None]
    device: Device
    determinism: Determinism
    model: str  # a hash of its content
    protocol: NotRequired[Count]  # version of the task family; without it: 1
    data: Data
    functions: NotRequired[str]  # a hash of one's own reward functions
    parameters: Parameters
    groups: NotRequired[list[OptimizerGroup]]
    effective_batch: Positive
    micro_batch: NotRequired[Count | None]
    steps: Count
    reach: NotRequired[Reach]
    curve: Curve
    result: Result
    texts: NotRequired[Texts | None]
    judged: NotRequired[list[Judgement]]
    files: NotRequired[dict[str, str]]  # SHA-256 of each file that the run keeps
    cost: Cost
    predictions: NotRequired[dict[str, str | None]]  # hashes: best and last epoch
    right: NotRequired[RightRows]
    deviations: list[str]  # from the recipe and the usual protocol, in words


# --- measures: numbers that figures are drawn from and no table shows


MEASURE_SCHEMA = 1
MeasureKind = Literal["magnitude", "similarity", "matrix_fit", "lm_eval"]


class MeasuredRun(TypedDict):
    """A run whose adapter was measured. adapter: its checksum and its epoch."""

    id: str
    cell: Cell
    label: Label
    adapter: dict[str, object]


class Measure(TypedDict):
    """Numbers that were computed from the adapters of finished runs, or by a small fit
    (runs/measure); or lm-eval's, of a run whose record is published and not here."""

    schema: int
    id: str
    kind: MeasureKind
    of: list[MeasuredRun]
    settings: dict[str, Any]
    seeds: dict[str, int]
    code: NotRequired[Code]
    versions: NotRequired[dict[str, str | None]]
    device: NotRequired[Device]
    seconds: NotRequired[float]
    values: dict[str, list[Any]]  # columns of equal length
    summary: NotRequired[dict[str, Number]]
