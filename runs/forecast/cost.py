"""Time and disk of the runs that are left: from finished runs of the same model and task, or else a forecast
of steps, tokens and FLOPs, with hours where this machine has been probed."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runs.config import Run
from runs.forecast.outline import Outline, outline
from runs.forecast.pace import pace_key
from runs.forecast.rows import Sources
from runs.record import Ledger, Record, run_folder
from runs.record.text import duration, megabytes, plural
from runs.training.state import Plan


@dataclass(frozen=True)
class Left:
    """A run that is left; whether it is under way, and how many seconds it says that it still takes."""

    run: Run
    running: bool = False
    seconds: float | None = None


def estimate(left: Sequence[Left], ledger: Ledger) -> str:
    """What is left in words, a line or more: time and disk from finished runs and from what running ones say;
    of the others a forecast."""
    done = [record for record in ledger if record["status"] == "done"]
    likes = [_like(one.run, done) for one in left]
    guesses = [_time_left(one, like) for one, like in zip(left, likes, strict=True)]
    lines = []
    if any(seconds is not None for seconds in guesses):
        lines.append(_known(left, likes, guesses))
    rest = [one.run for one, seconds in zip(left, guesses, strict=True) if seconds is None]
    return "\n".join(lines + (forecast(rest, done) if rest else []))


def unknown(left: Sequence[Left], ledger: Ledger) -> list[Run]:
    """Those that no finished run is like, and that do not say themselves how long they take."""
    done = [record for record in ledger if record["status"] == "done"]
    return [one.run for one in left if _time_left(one, _like(one.run, done)) is None]


def _known(left: Sequence[Left], likes: list[list[Record]], guesses: list[float | None]) -> str:
    """From finished runs, and from what running ones say."""
    known = [seconds for seconds in guesses if seconds is not None]
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
    once: dict[tuple[str, ...], Outline | None] = {}
    sources = Sources(done)
    for run in runs:  # seeds of a cell take the same
        key = cell_key(run)
        if key not in once:
            once[key] = outline(run, sources)
    known = [each for run in runs if (each := once[cell_key(run)])]
    if not known:
        return ["no estimate: no finished run is like these, and how many rows they have is not known here"]
    sized = [each for each in known if each.flops is not None]
    timed = [each.seconds for each in known if each.seconds is not None]
    lines = [f"forecast for {plural(len(known), 'run')}: {_amounts(known)}", f"  ({_basis(known)})"]
    if len(known) < len(runs):
        lines.append(f"no forecast for {len(runs) - len(known)}: how many rows they have is not known here")
    if timed:
        words = f"est. {duration(sum(timed))} left on one device{_of(timed, runs)}"
        lines.append(f"{words}: forecast, from a probe of this device")
    if len(timed) < len(sized):
        lacking = len({cell_row(run) for run in runs if _unprobed(once[cell_key(run)])})
        lines.append(
            f"no estimate of time{' for the others' if timed else ''}: probe=true measures this device, with"
            f" at most {PROBE_STEPS} steps of random weights for each of {plural(lacking, 'row')} (about"
            f" {PROBE_SECONDS}s)"
        )
    elif not sized:
        lines.append("no estimate of time: the model's architecture or the rows' lengths are not known here")
    return lines


#: Of a probe, for each row of a model: steps and seconds, at most.
PROBE_STEPS, PROBE_SECONDS = 20, 20


def cell_key(run: Run) -> tuple[str, ...]:
    """What runs have in common that differ in their seeds alone."""
    return (run.row, run.model, run.task, *run.overrides)


def cell_row(run: Run) -> str:
    """What runs have in common that a probe measures once."""
    return json.dumps(pace_key(run), sort_keys=True)


def _unprobed(each: Outline | None) -> bool:
    return each is not None and each.flops is not None and each.seconds is None


def _amounts(known: Sequence[Outline]) -> str:
    """Steps, tokens and FLOPs in all."""
    words = [f"{sum(each.steps for each in known):,} steps"]
    for name, values in (
        ("{} tokens", [each.tokens for each in known if each.tokens is not None]),
        ("{}FLOP", [each.flops for each in known if each.flops is not None]),
    ):
        if values:
            words.append(name.format(magnitude(sum(values), "FLOP" in name)) + _of(values, known))
    return ", ".join(words)


def _of(values: Sequence[Any], every: Sequence[Any]) -> str:
    return "" if len(values) == len(every) else f" for {len(values)} of these {len(every)} runs"


def _basis(known: Sequence[Outline]) -> str:
    """What the numbers rest on."""
    exact = all(each.exact for each in known)
    rows = "rows are known" if exact else "rows are about right: not counted here, or some may be left out"
    return "; ".join([rows, *dict.fromkeys(words for each in known for words in each.lengths)])


def magnitude(value: float, flops: bool = False) -> str:
    """A large number in words: 812M tokens, or 3.2 P (before FLOP)."""
    units = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)) if flops else COUNTS
    for unit, scale in units:
        if value >= scale:
            number = f"{value / scale:,.{1 if value < 10 * scale else 0}f}"
            return f"{number} {unit}" if flops else f"{number}{unit}"
    return f"{value:,.0f}" + (" " if flops else "")


COUNTS = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3))


# --- finished runs


def _time_left(left: Left, like: list[Record]) -> float | None:
    """Seconds, as a running one says itself, or else from finished runs."""
    if left.seconds is not None or not like:
        return left.seconds
    return statistics.median(_seconds(left.run, record) for record in like)


def _bytes(record: Record) -> int:
    """What a finished run takes on disk: by its folder, or where that is elsewhere, by its adapter and
    head."""
    folder = run_folder(record["config"]["output"], record["id"])
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return sum(files) or int(record["cost"]["adapter_bytes"]) + 4 * int(record["parameters"]["head"])


def _like(run: Run, done: list[Record]) -> list[Record]:
    """Finished runs to judge this one by: the same cell, or else other rows of the same model and task, as
    large a one."""
    same = [
        r for r in done if (r["cell"]["model"], r["cell"]["task"]) == (run.model, run.config["task"]["name"])
    ]
    sizes = (
        "train_rows",
        "dev_rows",
        "holdout",
        "items",
        "decode",
        "beams",
        "max_new_tokens",
        "shots",
        "image_size",
    )
    same = [r for r in same if all(r["config"]["task"].get(k) == run.config["task"].get(k) for k in sizes)]
    return [r for r in same if r["cell"]["row"] == run.row] or [r for r in same if r["steps"]]


def _seconds(run: Run, record: Record) -> float:
    """What a run would take at the pace of a finished one, which may have had other epochs, or stopped
    early."""
    train, rows = run.config["train"], record["data"]
    per_row = record["cost"]["train_seconds"] / max(record["steps"] * record["effective_batch"], 1)
    per_evaluation = record["cost"]["evaluate_seconds"] / len(record["curve"]["epoch"])
    decoding = record["cost"].get("decode_seconds", 0.0)
    plan = Plan.of(train, rows["train_rows"], max(rows["dev_rows"], 2), run.method["kind"] != "none")
    evaluations = sum(map(plan.evaluates, range(plan.epochs))) or 1  # of what does not train, one
    return float(per_row * plan.total_steps * plan.batch + per_evaluation * evaluations + decoding)
