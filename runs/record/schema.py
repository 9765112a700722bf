"""The keys of a record and of a measure that something reads, and their types.

`check` compares a record with RECORD below once, when it is read, so that other code
need not check again. A record has further keys, which are for people alone
(docs/records.md). Metrics are fractions, except perplexity and the scores of texts;
times are in seconds, sizes in bytes.

A shape is written as what it describes: a dict has these keys, of which one that ends
with "?" may be missing; a list has such elements; a tuple is one of several."""

from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Union

from annotated_types import Ge
from pydantic import TypeAdapter, ValidationError

# before Python 3.12, pydantic does not accept typing's own
from typing_extensions import TypedDict

from runs.record.keys import PATH, names_with_role

SCHEMA = 3
#: The status of a run that is not done again: a diverged run is a result, too.
FINISHED = ("done", "diverged")
Record = dict[str, Any]

Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Number = float | None
Words = str | None

#: Which number of which table a run is a seed of: paper is the preset it was started
#: by.
CELL = {"paper": Words, "row": str, "model": str, "task": str, "seed": int}
#: The same, as people read it.
LABEL = {"row": str, "model": str, "task": str}
#: The configuration of a model or a task; it may have other keys of its own, as a
#: method may.
PART = {
    "name": str,
    "family?": str,
    "settings?": dict[str, Any] | None,
    "train_rows?": Count | None,
    "shots?": Count | None,  # images of a class
    "holdout?": Number,
}
#: The same with the group's local paths.
MODEL = PART | {f"{key}?": Words for key in names_with_role(PATH, "model")}
TASK = PART | {f"{key}?": Words for key in names_with_role(PATH, "task")}
#: The resolved configuration that a run was made from.
CONFIG = {
    "model": MODEL,
    "task": TASK,
    # peft's methods may have several ranks
    "method": {"kind": str, "rank?": Any, "alpha?": Any},
    "train": {  # conf/config.yaml explains its keys
        "epochs": Count,
        "effective_batch?": Positive,
        "lr": float,
        "lr_head?": float,
        "lr_by?": dict[str, float] | None,
        "decay_by?": dict[str, float] | None,
        "max_steps": Count | None,  # of a trial, which is stopped early
    },
    "seed": int,
    "data_seed?": int,
    "output?": str,
    "keep": str,
    # as conf/recipe has it; its other keys are settings of training and of the method
    "recipe?": (
        None,
        {
            "source?": Words,
            "by_task?": dict[str, dict[str, Any] | None] | None,
            "chosen?": dict[str, Any] | None,
        },
    ),
    "init_from?": Words,
}
#: The keys that every record has, also that of a run that ended with an error.
FAILED = {
    "schema": int,
    "id": str,
    "status": Literal["done", "diverged", "failed"],
    "error": Words,
    "tries": list[str],  # how earlier attempts ended
    "cell": CELL,
    "label": LABEL,
    "overrides?": list[str],  # that compose the run, without its seed
    "config": CONFIG,
}
#: The columns that every curve has. Others are of training by reward, whose names are
#: TRL's.
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
#: Those of them that something reads: lists of equal length, with one entry for each
#: evaluation.
CURVE = {
    "epoch": list[float],
    "step?": list[int],
    "train_loss?": list[float],
    "metric": list[Number],  # of the whole of dev
    "metric_select?": list[Number],  # of its half A
    "metric_report?": list[Number],  # of its half B
}
#: The best number by a protocol, and the last epoch's; empty where there is none.
#: crossfit has two epochs.
SELECTED = {
    "best?": Number,
    "best_epoch?": Number | list[float],
    "last?": Number,
    "optimism?": Number,
}
#: What lm-eval has measured, see runs/lm_harness: its metrics, and the SHA-256 of rows
#: and answers.
METRIC = {
    "metric": str,
    "filter": str,
    "higher_is_better": bool | None,
    "value": Number,
    "stderr": Number,
}
MEASURED = {"metrics": [METRIC], "samples": str}
#: A task of lm-eval, or a group of them, asked in one way.
LM_EVAL = {
    "task": str,
    # a hash of the task, its rows and how it was asked: what is alike can be compared
    "asked": str,
    "lm_eval": str,  # its version
    "version": Any,  # the task's
    "shots": Count | None,  # None: a group's tasks have several
    "limit": Count | None,
    "rows": Count,
    "settings": dict[str, Any],
    **MEASURED,
    "before": MEASURED,  # of the base model
}
#: The numbers that tables show.
RESULT = {
    "metric": str,
    "higher_is_better": bool,
    "scale": float,  # what tables multiply the metric by: 100 for fractions
    "reported": Literal["best", "last"],  # which of the two the task's table shows
    "select?": str,  # the protocol of best and last
    "best": Number,
    "best_epoch": Number | list[float],
    "last": Number,
    "forgetting?": {  # cross-entropy on a text that is not trained on, in nats a token
        "text": str,
        "sha256": str,
        "tokens": Count,  # that are predicted
        "before": Number,  # of the base model; None where it is not finite
        "after": Number,  # of the last epoch
    },
    "lm_eval?": [LM_EVAL],
    # "paper" and "crossfit"; records from before 2026-11-26 have another one instead of
    # crossfit
    "protocols?": {str: (None, SELECTED)},
}


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
#: Texts that a run decoded, with the scores of each epoch (which: last or best) and
#: variant of decoding.
TEXTS = {
    "split": str,
    "items": Count,
    # of each item, where some belong together: they are right or wrong together
    "groups?": [int],
    "scores": [
        {
            "which": str,
            "variant": str,
            **{f"{key}?": Number for key in TEXT_SCORES},
            "parts?": dict[str, float],  # of exact_match, by test set
            "unread?": float,  # percent of the texts in which no answer was found
            "right?": str,  # which texts are right, one bit each (items.py)
        }
    ],
}
#: A judge's summary of a run's answers, see tasks/mt_bench.
JUDGED = {
    "bench": str,
    "judge": str,
    "passes": Count,
    "n": Count,  # scores that are wanted
    "judged": Count,  # replies among them
    "n_valid": Count,  # ratings among those
    "mean": Number,
    "low": Number,
    "high": Number,
    "turns": dict[str, Number],
    "answers?": str,  # a hash
    "answering?": dict[str, Any] | None,  # how they were sampled
}
#: The record of a run that is done or has diverged.
RECORD = FAILED | {
    "cell_id?": str,  # a hash of all but the seed (cell.py); readers compute it again
    "start?": (None, {"id": str}),  # which adapter a run started from
    # Where the hyperparameters come from. chosen: those that this project chose, and
    # why
    "recipe": {"name": Words, "source?": Words, "chosen?": dict[str, Any]},
    # training, data, projection; projection_note: whether A and B differ between seeds
    "seeds": dict[str, Any],
    # dirty: whether files differed from that commit. sources: of method and task
    # family, see provenance.py
    "code": {
        "commit": Words,
        "dirty": bool | None,
        "sources?": dict[str, dict[str, Any]],
    },
    "versions": dict[str, Words],
    # cpu: the family and model of the processor; records from before have none
    "device": {"type": str, "name": str, "cpu?": str},
    # what decides whether another run gives the same bits
    "determinism": {"threads": Count},
    "model": str,  # a hash of its content
    "protocol?": Count,  # version of the task family; without it: 1
    "data": {
        "content": str,  # a hash
        "train_rows": Count,
        "dev_rows": Positive,
        # of the training rows, with task.scale_labels
        "labels?": {"mean": float, "spread": float},
    },
    "functions?": str,  # a hash of one's own reward functions
    "parameters": {"adapter": Count, "head": Count, "total?": Count},
    # the optimizer's
    "groups?": [{"name": str, "lr": float, "weight_decay": float, "parameters": Count}],
    "effective_batch": Positive,
    "micro_batch?": Count | None,
    "steps": Count,
    # how far trained numbers can move, and what that changes (runs/training/effect.py)
    "reach?": {"constant": float, "adam": float, "effect": float, "unit": str},
    "curve": CURVE,
    "result": RESULT,
    "texts?": (None, TEXTS),
    "judged?": [JUDGED],
    "files?": dict[str, str],  # SHA-256 of each file that the run keeps
    "cost": {
        "train_seconds": float,
        "evaluate_seconds": float,
        "decode_seconds?": float,
        "tokens_per_second?": float,
        "peak_memory_bytes?": Count,
        "adapter_bytes": Count,
    },
    "predictions?": dict[str, Words],  # hashes, for the best and the last epoch
    # which dev rows are right, one bit each (items.py)
    "right?": {"best?": str, "last?": str},
    "deviations": list[str],  # from the recipe and the usual protocol, in words
}
#: A failed run's record may have the other keys too; then they have the same types.
UNFINISHED = {
    f"{key.removesuffix('?')}?": shape for key, shape in RECORD.items()
} | FAILED


def migrate(record: Record) -> Record:
    """A record of schema 2 in this one: it lacks the direction and scale of the metric,
    and the epoch that tables report."""
    if record["schema"] == 2:
        record["schema"] = 3
        result, config = record.get("result"), record.get("config")
        task = config.get("task") if isinstance(config, dict) else None
        if isinstance(result, dict) and isinstance(task, dict):
            fraction = result.get("metric") != "perplexity"
            last = task.get("family") in ("images", "instruct", "e2e")
            result |= {
                "higher_is_better": fraction,
                "scale": 100.0 if fraction else 1.0,
            }
            result["reported"] = "last" if last else "best"
    return record


def type_of(shape: Any) -> Any:
    """A shape as pydantic takes it."""
    if isinstance(shape, tuple):
        return Union[tuple(map(type_of, shape))]  # noqa: UP007
    if isinstance(shape, list):
        return list[type_of(shape[0])]  # type: ignore[misc]
    if not isinstance(shape, dict):
        return shape
    if str in shape:
        return dict[str, type_of(shape[str])]  # type: ignore[misc]
    types = {key: type_of(inner) for key, inner in shape.items()}
    keys = dict[str, Any]()
    for key, kind in types.items():
        keys[key.removesuffix("?")] = NotRequired[kind] if key[-1] == "?" else kind
    return TypedDict("Keys", keys)  # type: ignore[operator]


# as it is asked for: the one of a record takes 0.1 s
_adapter: Any = cache(TypeAdapter)
_FINISHED, _UNFINISHED = type_of(RECORD), type_of(UNFINISHED)


def check(record: Record) -> None:
    """Raises ValueError, in one line, for a value that is not a record of this schema:
    a key is missing, a value has another type, or the curve's columns differ in
    length."""
    if record.get("status") not in FINISHED:
        validate(_UNFINISHED, record)
        return
    validate(_FINISHED, record)
    lengths = {
        len(column) for column in record["curve"].values() if isinstance(column, list)
    }
    if len(lengths) > 1:
        raise ValueError("curve: columns differ in length")
    if record["status"] == "done" and lengths == {0}:
        raise ValueError("curve: done, and without an epoch")
    method = record["config"]["method"]
    if method["kind"] in ("vera", "lora") and type(method.get("rank")) is not int:
        raise ValueError(
            f"config.method.rank: a rank of {method['kind']} is a whole number"
        )


def validate(kind: Any, value: Any) -> None:
    """Raises ValueError for a value's first key that is missing or of another type than
    `type_of` says."""
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first, *rest = error.errors(
            include_url=False, include_context=False, include_input=False
        )
        place = ".".join(map(str, first["loc"])) or "it"
        message = first["msg"]
        text = f"{place}: {message[:1].lower()}{message[1:]}"
        if rest:
            text += f", and {len(rest)} more"
        raise ValueError(text) from None


# --- measures: numbers that figures are drawn from and no table shows


MEASURE_SCHEMA = 1
#: Computed from the adapters of finished runs, or by a small fit (runs/measure);
#: lm-eval's of a run whose record is published and not here.
MEASURE = type_of(
    {
        "schema": int,
        "id": str,
        "kind": Literal["magnitude", "similarity", "matrix_fit", "lm_eval"],
        # The runs whose adapters were measured; adapter: its checksum and its epoch
        "of": [{"id": str, "cell": CELL, "label": LABEL, "adapter": dict[str, Any]}],
        "settings": dict[str, Any],
        "seeds": dict[str, Any],
        "code?": dict[str, Any],
        "versions?": dict[str, Any],
        "device?": dict[str, Any],
        "seconds?": float,
        "values": dict[str, list[Any]],  # columns of equal length
        "summary?": dict[str, Number],
    }
)


def check_measure(measure: dict[str, Any]) -> None:
    """Raises ValueError, in one line, for a value that is not a measure of this
    schema."""
    validate(MEASURE, measure)
    if len({len(column) for column in measure["values"].values()}) > 1:
        raise ValueError("values: columns differ in length")
