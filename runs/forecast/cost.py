"""Time and disk of the runs that are left, from finished runs of the same model and task."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from runs.config import Run
from runs.record import Ledger, Record, run_folder
from runs.record.text import duration, megabytes, plural


@dataclass(frozen=True)
class Left:
    """A run that is left; whether it is under way, and how many seconds it says that it still takes."""

    run: Run
    running: bool = False
    seconds: float | None = None


def estimate(left: Sequence[Left], ledger: Ledger) -> str:
    """Time and disk in words, from finished runs, and from what running ones say."""
    done = [record for record in ledger if record["status"] == "done"]
    likes = [_like(one.run, done) for one in left]
    guesses = [_time_left(one, like) for one, like in zip(left, likes, strict=True)]
    known = [seconds for seconds in guesses if seconds is not None]
    if not known:
        return "no estimate: none of these models and tasks has a finished run yet"
    basis = {record["id"] for like in likes for record in like}
    share = "" if len(known) == len(left) else f" for {len(known)} of the {len(left)} runs left"
    words = f"est. {duration(sum(known))} left on one device{share}"
    words += f" (from {plural(len(basis), 'finished run')})" if basis else ""
    at_once = sum(one.running for one in left)
    if at_once > 1:
        words += f", {duration(max(sum(known) / at_once, *known))} with {at_once} at once as now"
    return words + (
        f", {megabytes(sum(statistics.median(map(_bytes, like)) for like in likes if like))} on disk"
        if basis
        else ""
    )


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
    train = run.config["train"]
    steps_per_epoch = math.ceil(record["data"]["train_rows"] / train["effective_batch"])
    steps = min(steps_per_epoch * train["epochs"], train["max_steps"] or math.inf)
    per_row = record["cost"]["train_seconds"] / max(record["steps"] * record["effective_batch"], 1)
    per_evaluation = record["cost"]["evaluate_seconds"] / len(record["curve"]["epoch"])
    decoding = record["cost"].get("decode_seconds", 0.0)
    if run.method["kind"] == "none":  # which is evaluated once, as it is
        return float(per_evaluation + decoding)
    evaluations = math.ceil(math.ceil(steps / steps_per_epoch) / train["evaluate_every"])
    return float(per_row * steps * train["effective_batch"] + per_evaluation * evaluations + decoding)
