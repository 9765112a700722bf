"""Time and disk that the runs of a plan still take: by their own progress, from finished runs of the same
model and task, or else FLOPs over a rate."""

import contextlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from runs import gpus, meta, models
from runs.errors import UserError
from runs.forecast import rates
from runs.forecast.rows import Data, known_data
from runs.record import Ledger, Record, run_folder
from runs.record.text import duration, megabytes, plural
from runs.run import UNLIKE_OTHERS, Run
from runs.training.state import Plan
from tasks.base import block

#: Why there is no forecast.
UNKNOWN = "how many rows of data they have is not known here"
#: Settings of a task that decide how much a run computes.
AMOUNTS = (
    *("train_rows", "dev_rows", "holdout", "shots", "image_size"),
    *("items", "decode", "beams", "max_new_tokens"),
)


@dataclass(frozen=True)
class Left:
    """A run without a record. steps: those that its checkpoint has. seconds: what is left by its own word."""

    run: Run
    steps: int = 0
    seconds: float | None = None

    def share(self, steps: int) -> float:
        """The share of a run's steps that are left."""
        return 1 - min(self.steps / steps, 1.0) if steps else 1.0


def estimate(left: Sequence[Left], ledger: Ledger, card: str | None = None) -> str:
    """What these runs still take, in one line or more. card: a name of conf/cards.yaml, whose hours are
    wanted, whatever is known of this machine."""
    done = [] if card else [record for record in ledger if record["status"] == "done"]
    likes = [_like(one.run, done) for one in left]
    times = [None if card else _seconds_left(one, like) for one, like in zip(left, likes, strict=True)]
    others = [one for one, seconds in zip(left, times, strict=True) if seconds is None]
    lines, forecast = _forecast(others, done, card) if others else ([], [])
    seconds = [time for time in times if time is not None] + [time for time, _ in forecast]
    if seconds:
        basis = {record["id"] for like in likes for record in like}
        sources = [f"from {plural(len(basis), 'finished run')}"] if basis else []
        words = "; ".join(
            sources + [f"FLOPs at {source}" for source in dict.fromkeys(s for _, s in forecast)]
        )
        share = "" if len(seconds) == len(left) else f" for {len(seconds)} of the {len(left)} runs left"
        disk = sum(statistics.median(map(_bytes, like)) for like in likes if like)
        where = f" left on one device{share}{words and f' ({words})'}"
        lines.append(
            f"est. {duration(sum(seconds))}{where}" + (f", {megabytes(disk)} on disk" if disk else "")
        )
    return "\n".join(lines)


# --- from finished runs


def _like(run: Run, done: Sequence[Record]) -> list[Record]:
    """Finished runs to judge this one by: of the same row, model and task, or else of other rows. The task's
    settings that decide the amount of work are the same."""
    task = run.config["task"]
    same = [
        record
        for record in done
        if (record["cell"]["model"], record["cell"]["task"]) == (run.model, task["name"])
        and all(record["config"]["task"].get(key) == task.get(key) for key in AMOUNTS)
    ]
    of_row = [record for record in same if record["cell"]["row"] == run.row]
    if of_row or run.method["kind"] in UNLIKE_OTHERS:
        return of_row
    return [record for record in same if record["config"]["method"]["kind"] not in UNLIKE_OTHERS]


def _seconds_left(left: Left, like: Sequence[Record]) -> float | None:
    """By the run's own estimate or from finished runs; None where neither is there."""
    if left.seconds is not None or not like:
        return left.seconds
    return statistics.median(_seconds(left, record) for record in like)


def _seconds(left: Left, record: Record) -> float:
    """What a run takes if it is as fast as a finished one, which may have had other epochs or fewer steps."""
    train, cost, rows = left.run.config["train"], record["cost"], record["data"]
    plan = Plan.of(train, rows["train_rows"], max(rows["dev_rows"], 2), left.run.method["kind"] != "none")
    per_row = cost["train_seconds"] / max(record["steps"] * record["effective_batch"], 1)
    evaluation = cost["evaluate_seconds"] / len(record["curve"]["epoch"]) * _evaluations(plan)
    whole = per_row * plan.total_steps * plan.batch + evaluation
    return float(left.share(plan.total_steps) * whole + cost.get("decode_seconds", 0.0))


def _evaluations(plan: Plan) -> int:
    """One where nothing trains."""
    return sum(map(plan.evaluates, range(plan.epochs))) or 1


def _bytes(record: Record) -> int:
    """What a finished run takes on disk: its folder, or without one here, its adapter and head."""
    files = run_folder(record["config"]["output"], record["id"]).rglob("*")
    kept = int(record["cost"]["adapter_bytes"]) + 4 * int(record["parameters"]["head"])
    return sum(path.stat().st_size for path in files if path.is_file()) or kept


# --- before the first run


def _forecast(
    left: Sequence[Left], done: Sequence[Record], card: str | None
) -> tuple[list[str], list[tuple[float, str]]]:
    """Lines on what runs will compute that no finished run is like; the seconds of those whose rate is known,
    each with the source of the rate."""
    cells = {cell_key(one.run): one.run for one in left}
    bar = tqdm(cells.items(), "counting FLOPs, once", leave=False, disable=None, delay=2)
    outlines = {key: outline(run) for key, run in bar}
    known = [(one, each) for one in left if (each := outlines[cell_key(one.run)])]
    if not known:
        return [f"no estimate: no finished run is like these, and {UNKNOWN}"], []
    counted = [(one.run, one.share(each.steps) * each.flops) for one, each in known if each.flops]
    tokens = sum(one.share(each.steps) * (each.tokens or 0) for one, each in known)
    amounts = [f"{sum(max(each.steps - one.steps, 0) for one, each in known):,} steps"]
    amounts += [f"{tokens / 1e6:,.0f}M tokens"] if tokens else []
    amounts += [f"{sum(flops for _, flops in counted):.1e} FLOP".replace("e+", "e")] if counted else []
    lines = [f"forecast for {plural(len(known), 'run')}: {', '.join(amounts)}"]
    lines += [f"  ({'; '.join(dict.fromkeys(words for _, each in known for words in each.basis))})"]
    if len(known) < len(left):
        lines.append(f"no forecast for {len(left) - len(known)}: {UNKNOWN}")
    if uncounted := dict.fromkeys(one.run.row for one, each in known if not each.flops):
        lines.append(f"FLOPs are not known of {', '.join(uncounted)}: nothing tells their rows' lengths, or")
        lines[-1] += " torch cannot count them"
    of_row = {rates.row_key(run): run for run, _ in counted}
    known_rates = {key: _rate(run, done, card) for key, run in of_row.items()}
    if None in known_rates.values():
        rows = plural([*known_rates.values()].count(None), "row")
        lines.append(f"no estimate of time: probe=true measures {rows} here, about {rates.SECONDS}s each")
    if any(run.config["task"].get("decode", "none") != "none" for run, _ in counted):
        lines.append("the time of decoding is not in it: a finished run shows it")
    timed = [(flops, known_rates[rates.row_key(run)]) for run, flops in counted]
    return lines, [(flops / rate[0], rate[1]) for flops, rate in timed if rate]


def cell_key(run: Run) -> tuple[str, ...]:
    """The key that runs share which differ in their seeds alone."""
    return (run.row, run.model, run.task, *run.overrides)


def _rate(run: Run, done: Sequence[Record], card: str | None) -> rates.Rate | None:
    """A card's, or this machine's: as a probe has measured it for the run's row, as up to three finished
    runs of other cells in the same precision had it, or as it is assumed of its card."""
    if card or (known := rates.measured(run)):
        return rates.assumed(run, card) if card else known
    here = (gpus.names() if run.config["device"] != "cpu" else []) or [gpus.processor()]
    alike = {
        (record["cell"]["row"], record["cell"]["model"], record["cell"]["task"]): record
        for record in done
        if record["config"]["method"]["kind"] not in UNLIKE_OTHERS and record["device"]["name"] in here
        if record["config"]["train"].get("precision") == run.config["train"]["precision"]
    }
    had = list[float]()
    for cell, record in [*alike.items()][-3:]:
        seconds = record["cost"]["train_seconds"] + record["cost"]["evaluate_seconds"]
        with contextlib.suppress(KeyError, TypeError):  # of a record from before a setting
            each = outline(Run(*cell, 0, "", None, record["config"]))
            had += [each.flops / seconds] if each and each.flops and seconds else []
    words = f"the rate of {plural(len(had), 'finished run')} of other cells on this device"
    return (statistics.median(had), words) if had else rates.assumed(run)


# --- one run


@dataclass(frozen=True)
class Outline:
    """What a run will take, from its first step on. None where something is not known."""

    steps: int  # of the optimizer
    basis: tuple[str, ...]  # how the numbers of rows and their lengths are known
    tokens: float | None = None  # of training, without padding; of images the patches
    flops: float | None = None  # of training and evaluation, padding included; without decoding
    step_flops: float | None = None


def outline(run: Run) -> Outline | None:
    """What a run will take; None where its number of rows is not known, or is too small."""
    if (data := known_data(run)) is None:
        return None
    try:
        plan = Plan.of(run.config["train"], data.train.rows, data.dev.rows, run.method["kind"] != "none")
    except UserError:  # the run itself raises it
        return None
    about = "rows of data are about right: not counted here, or some may be left out"
    basis = ("rows of data are known" if data.exact else about, *data.assumed)
    if (batch := batch_of(run, data)) is None:
        return Outline(plan.total_steps, basis)
    epochs, rest = divmod(plan.total_steps, plan.steps_per_epoch)
    trained = epochs * data.train.rows + min(rest * plan.batch, data.train.rows)
    tokens = trained * batch.mean
    if (counted := meta.flops(run, batch.rows, batch.length, batch.predicted)) is None:
        return Outline(plan.total_steps, basis, tokens)
    forward, training = (each / batch.rows for each in counted)
    training += forward if run.config.get("gradient_checkpointing") else 0.0  # which repeats the forward pass
    # An evaluation's FLOPs are taken to grow with the tokens alone
    evaluation = _evaluations(plan) * data.dev.rows * batch.dev_length / batch.length * forward
    flops = trained * training + evaluation
    if run.method["kind"] == "head" and run.config["task"].get("augment") == "none":
        # Each image passes the model once: a head's inputs are kept (runs/training/features.py)
        flops = (data.train.rows + data.dev.rows) * forward
    return Outline(plan.total_steps, basis, tokens, flops, min(plan.batch, data.train.rows) * training)


@dataclass(frozen=True)
class Batch:
    """A training pass. length: tokens of a row, padding included. mean: without. predicted: those that a
    language model reads out. dev_length: of a row in an evaluation's pass, padding included."""

    rows: int
    length: int
    mean: float
    predicted: int
    dev_length: float


def batch_of(run: Run, data: Data) -> Batch | None:
    """What a run trains on at a time; None where the lengths of its rows are not known."""
    config, task = run.config, run.config["task"]
    get = (models.architecture_of(config["model"]) or {}).get
    whole = config["train"]["effective_batch"]
    rows = min(config["micro_batch"] or whole, whole, data.train.rows)
    if task["modality"] == "image":
        side = task.get("image_size") or models.image_side(get("model_type"), get("image_size"))
        tokens = (side // get("patch_size", side)) ** 2 + 1
        return Batch(rows, tokens, tokens, 0, tokens)
    if not (data.train.at and data.dev.at):
        return None
    longest = min(
        config["train"]["max_length"], get("max_position_embeddings") or get("n_positions") or math.inf
    )
    train, dev = data.train.cut(longest), data.dev.cut(longest)
    blocks = block(task) * math.ceil(whole / rows) if block(task) > 1 else 1  # sorted by length together
    length, evaluated = round(train.padded(rows, blocks)), min(config["eval_batch"], dev.rows)
    predicted = math.ceil(length * train.predicted / train.mean)
    return Batch(rows, length, train.mean, predicted, dev.padded(evaluated, math.ceil(dev.rows / evaluated)))
