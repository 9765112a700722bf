"""Time and disk that the runs of a plan still take: from finished runs of the same model and task, or else a
forecast of steps, tokens and FLOPs, with hours where this machine has been probed."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runs.forecast.outline import Outline, outline
from runs.forecast.pace import pace_key
from runs.forecast.rows import Sources
from runs.record import Ledger, Record, run_folder
from runs.record.text import duration, megabytes, plural
from runs.run import UNLIKE_OTHERS, Run
from runs.training.state import Plan


@dataclass(frozen=True)
class Left:
    """A run without a record. running: an executor does it now. seconds: how long it still takes, by its own
    estimate."""

    run: Run
    running: bool = False
    seconds: float | None = None


def estimate(left: Sequence[Left], ledger: Ledger) -> str:
    """What these runs still take, in one line or more: time and disk from finished runs and from the progress
    of those that have begun; a forecast of the others."""
    done = [record for record in ledger if record["status"] == "done"]
    likes = [_like(one.run, done) for one in left]
    times = [_time_left(one, like) for one, like in zip(left, likes, strict=True)]
    lines = [_known(left, likes, times)] if any(seconds is not None for seconds in times) else []
    others = [one.run for one, seconds in zip(left, times, strict=True) if seconds is None]
    return "\n".join(lines + (forecast(others, done) if others else []))


def unknown(left: Sequence[Left], ledger: Ledger) -> list[Run]:
    """The runs whose time neither finished runs nor their own progress gives."""
    done = [record for record in ledger if record["status"] == "done"]
    return [one.run for one in left if _time_left(one, _like(one.run, done)) is None]


def _known(left: Sequence[Left], likes: list[list[Record]], times: list[float | None]) -> str:
    """The line from finished runs and running ones. likes: of each run, the finished runs to judge it by."""
    known = [seconds for seconds in times if seconds is not None]
    basis = {record["id"] for like in likes for record in like}
    share = "" if len(known) == len(left) else f" for {len(known)} of the {len(left)} runs left"
    words = f"est. {duration(sum(known))} left on one device{share}"
    words += f" (from {plural(len(basis), 'finished run')})" if basis else ""
    at_once = sum(one.running for one in left)
    if at_once > 1:
        words += f", {duration(max(sum(known) / at_once, *known))} with {at_once} at once as now"
    size = sum(statistics.median(map(_bytes, like)) for like in likes if like)
    return words + (f", {megabytes(size)} on disk" if basis else "")


# --- before the first run


def forecast(runs: Sequence[Run], done: Sequence[Record]) -> list[str]:
    """Lines on runs that no finished run is like: what they will compute, and how long that takes here."""
    sources = Sources(done)
    by_cell = {cell_key(run): run for run in runs}  # the seeds of a cell take the same
    outlines = {key: outline(run, sources) for key, run in by_cell.items()}
    known = [each for run in runs if (each := outlines[cell_key(run)])]
    if not known:
        unknown = "how many rows of data they have is not known here"
        return [f"no estimate: no finished run is like these, and {unknown}"]
    sized = [each for each in known if each.flops is not None]
    timed = [each.seconds for each in known if each.seconds is not None]
    lines = [f"forecast for {plural(len(known), 'run')}: {_amounts(known)}", f"  ({_basis(known)})"]
    if len(known) < len(runs):
        lines.append(
            f"no forecast for {len(runs) - len(known)}: how many rows of data they have is not known here"
        )
    if timed:
        words = f"est. {duration(sum(timed))} left on one device{_of(timed, runs)}"
        paces = dict.fromkeys(each.pace for each in known if each.seconds is not None)
        lines.append(f"{words}: forecast, from {' and '.join(paces)}")
    if len(timed) < len(sized):
        rows = len({cell_row(run) for run in runs if _unprobed(outlines[cell_key(run)])})
        lines.append(
            f"no estimate of time{' for the others' if timed else ''}: probe=true measures this device, with"
            f" at most {PROBE_STEPS} steps of random weights for each of {plural(rows, 'row')} (about"
            f" {PROBE_SECONDS}s{f' each, {duration(rows * PROBE_SECONDS)} in all' if rows > 1 else ''})"
        )
    elif not sized:
        lines.append(
            "no estimate of time: the model's architecture or the lengths of the data are not known here"
        )
    return lines


#: The most steps and seconds of a probe, for each row of a model.
PROBE_STEPS, PROBE_SECONDS = 20, 20


def cell_key(run: Run) -> tuple[str, ...]:
    """The key that runs share which differ in their seeds alone."""
    return (run.row, run.model, run.task, *run.overrides)


def cell_row(run: Run) -> str:
    """The key of runs that a probe measures once."""
    return json.dumps(pace_key(run), sort_keys=True)


def _unprobed(each: Outline | None) -> bool:
    return each is not None and each.flops is not None and each.seconds is None


def _amounts(known: Sequence[Outline]) -> str:
    """Steps, tokens and FLOPs in all."""
    words = [f"{sum(each.steps for each in known):,} steps"]
    tokens = [each.tokens for each in known if each.tokens is not None]
    flops = [each.flops for each in known if each.flops is not None]
    if tokens:
        words.append(f"{magnitude(sum(tokens))} tokens{_of(tokens, known)}")
    if flops:
        words.append(f"{magnitude(sum(flops), flops=True)}FLOP{_of(flops, known)}")
    return ", ".join(words)


def _of(values: Sequence[Any], every: Sequence[Any]) -> str:
    return "" if len(values) == len(every) else f" for {len(values)} of these {len(every)} runs"


def _basis(known: Sequence[Outline]) -> str:
    """How the numbers of rows and their lengths are known."""
    exact = all(each.exact for each in known)
    rows = (
        "rows of data are known"
        if exact
        else "rows of data are about right: not counted here, or some may be left out"
    )
    return "; ".join([rows, *dict.fromkeys(words for each in known for words in each.lengths)])


def magnitude(value: float, flops: bool = False) -> str:
    """A large number in words: 812M tokens, or 3.2 P (before FLOP)."""
    space = " " if flops else ""
    for unit, scale in FLOP_UNITS if flops else COUNT_UNITS:
        if value >= scale:
            return f"{value / scale:,.{1 if value < 10 * scale else 0}f}{space}{unit}"
    return f"{value:,.0f}{space}"


FLOP_UNITS = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))
COUNT_UNITS = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3))


# --- finished runs


def _time_left(left: Left, like: list[Record]) -> float | None:
    """Seconds, by the run's own estimate or from finished runs; None where neither is there."""
    if left.seconds is not None or not like:
        return left.seconds
    return statistics.median(_seconds(left.run, record) for record in like)


def _bytes(record: Record) -> int:
    """What a finished run takes on disk: its folder, or without one here, its adapter and head."""
    folder = run_folder(record["config"]["output"], record["id"])
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return sum(files) or int(record["cost"]["adapter_bytes"]) + 4 * int(record["parameters"]["head"])


def _like(run: Run, done: list[Record]) -> list[Record]:
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


#: Settings of a task that decide how much a run computes.
AMOUNTS = (
    *("train_rows", "dev_rows", "holdout", "shots", "image_size"),
    *("items", "decode", "beams", "max_new_tokens"),
)


def _seconds(run: Run, record: Record) -> float:
    """What a run would take at the pace of a finished one, which may have had other epochs or fewer steps."""
    train, rows = run.config["train"], record["data"]
    per_row = record["cost"]["train_seconds"] / max(record["steps"] * record["effective_batch"], 1)
    per_evaluation = record["cost"]["evaluate_seconds"] / len(record["curve"]["epoch"])
    decoding = record["cost"].get("decode_seconds", 0.0)
    plan = Plan.of(train, rows["train_rows"], max(rows["dev_rows"], 2), run.method["kind"] != "none")
    evaluations = sum(map(plan.evaluates, range(plan.epochs))) or 1  # one where nothing trains
    return float(per_row * plan.total_steps * plan.batch + per_evaluation * evaluations + decoding)
