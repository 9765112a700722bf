"""Two files of a run that has no record yet: progress.json, its last event, and attempts.json, how earlier
attempts ended.

The plan and the executors read them without torch. No result needs them: a damaged file counts as none, and
of a file with other content the readers keep what the functions here could have written."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from runs.record import Metric, check_regular, read_regular, record_path, run_folder, write_atomically

#: Bytes. A larger file counts as damaged.
LARGEST = 2**20
#: The settings that are halved after memory ran out, and their names in a record's deviations.
HALVED = {"micro_batch": "micro-batch", "eval_batch": "evaluation batch"}
#: The suffixes of a run's own files in its folder.
KEPT = (".json", ".jsonl", ".safetensors", ".txt", ".csv", ".png", ".yaml")
#: The keys of an event (runs/training) and of its process that are shown, and the types of their values.
EVENT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("epoch", "epochs", "step", "steps", "texts", "done", "of", "pid"), (int,)),
    **dict.fromkeys(("loss", "metric", "best", "pace", "seconds_left"), (int, float, type(None))),
    "scale": (int, float),
    **dict.fromkeys(("phase", "metric_name", "unit", "host"), (str,)),
}


def obstacle(path: Path) -> str | None:
    """A line on what has a file's name and is none (a folder, a pipe, a device, a broken link), with the way
    out; None for a file, and where there is nothing. We must not remove it, and opening it might block."""
    try:
        check_regular(os.stat(path), path)
        return None
    except ValueError as error:
        what = str(error)
    except OSError:
        if not path.is_symlink():
            return None
        what = f"{path}: a link that leads to no file"
    return f"{what}, where the run has a file of its own. Move it away, and the same command does the run"


def in_the_way(output: str | Path, run_id: str) -> str | None:
    """The first obstacle with the name of a run's record or of a file in its folder. Folders of other names
    do no harm."""
    folder = run_folder(output, run_id)
    inside = sorted(path for path in folder.iterdir() if path.suffix in KEPT) if folder.is_dir() else []
    obstacles = map(obstacle, (record_path(output, run_id), *inside))
    return next(filter(None, obstacles), None)


def remove(path: Path) -> None:
    """Removes a file that is no longer needed, if it is there. An obstacle with its name stays."""
    if obstacle(path) is None:
        path.unlink(missing_ok=True)


def append(path: Path) -> int:
    """Opens a log at its end; returns its file descriptor. Raises OSError where it is no regular file, and
    never blocks."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        check_regular(os.fstat(file), path)
    except ValueError as error:
        os.close(file)
        raise OSError(errno.EINVAL, f"{error}".removeprefix(f"{path}: "), str(path)) from None
    return file


def read_attempts(
    output: str | Path, run_id: str, config: dict[str, Any], warn: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """What earlier attempts left: `ended`, how they ended in words; `settings` that they made smaller (a
    micro_batch or eval_batch no larger than config's); `deviations`, these in words.

    Anything else in the file is left out, with a line to `warn`.
    """
    path = run_folder(output, run_id) / "attempts.json"
    content = _read(path)
    ended, settings, deviations = (content.get(key) for key in ("ended", "settings", "deviations"))
    smaller = settings if isinstance(settings, dict) else {}
    smaller = {key: smaller[key] for key in HALVED if _is_smaller(config, key, smaller.get(key))}
    forms = [rf"{HALVED[key]} {value}, since memory ran out at \d+.*" for key, value in smaller.items()]
    texts = deviations if _are_texts(deviations) else []
    attempts: dict[str, Any] = {
        "ended": ended if _are_texts(ended) else [],
        "settings": smaller,
        "deviations": [text for text in texts if any(re.fullmatch(form, text) for form in forms)],
    }
    if warn and os.path.lexists(path) and content != attempts:
        warn(f"{path}: content that no executor wrote for this run is ignored")
    return attempts


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_smaller(config: dict[str, Any], key: str, value: Any) -> bool:
    """Whether a value of a HALVED setting is no larger than this configuration's."""
    whole = config["train"]["effective_batch"]
    most = min(config["micro_batch"] or whole, whole) if key == "micro_batch" else config["eval_batch"]
    return type(value) is int and 1 <= value <= most


def write_attempts(output: str | Path, run_id: str, attempts: dict[str, Any]) -> None:
    """Writes what `read_attempts` reads, for the executor that continues the run."""
    write_atomically(run_folder(output, run_id) / "attempts.json", json.dumps(attempts, indent=1) + "\n")


def read_progress(output: str | Path, run_id: str) -> dict[str, Any]:
    """The last event of a run's training (phase, epoch, metric, seconds_left ...); empty where there is none,
    or one with other values."""
    content = _read(run_folder(output, run_id) / "progress.json")
    event = {key: content[key] for key in EVENT if key in content}
    return event if all(map(_fits, event, event.values())) and _is_complete(event) else {}


def _fits(key: str, value: Any) -> bool:
    """Whether a value of an event has its type, and an integer the size of one."""
    return (
        isinstance(value, EVENT[key])
        and type(value) is not bool
        and (type(value) is not int or abs(value) < 2**63)
    )


def _is_complete(event: dict[str, Any]) -> bool:
    """Whether an event has all keys that belong to an epoch, and to a count."""
    if "epoch" in event:
        if not {"epochs", "metric", "metric_name", "scale", "best"} <= event.keys():
            return False
        if (event["metric"] is None) != (event["best"] is None):
            return False
    return "of" not in event or "done" in event


def metric_words(event: Mapping[str, Any]) -> str:
    """The metric of an event that has one, now and at its best."""
    metric = Metric(event["metric_name"], scale=event["scale"])
    return f"{metric.name} {metric.text(event['metric'])} (best {metric.text(event['best'])})"


def write_progress(output: str | Path, run_id: str, event: dict[str, Any]) -> None:
    """Writes a run's last event, for a plan that watches. A full disk must not stop the run here."""
    with contextlib.suppress(OSError):
        write_atomically(run_folder(output, run_id) / "progress.json", json.dumps(event) + "\n")


def saved(output: str | Path, run_id: str) -> list[tuple[str, int]]:
    """The state of a run's saved files, to be compared: it changes when an attempt saves more."""
    folder = run_folder(output, run_id)
    checkpoint = folder / "checkpoint.safetensors"
    times = [(checkpoint.name, checkpoint.stat().st_mtime_ns)] if checkpoint.is_file() else []
    return times + [(path.name, path.stat().st_size) for path in sorted(folder.glob("decoded_*.jsonl"))]


def clear(output: str | Path, run_id: str, keep: str) -> None:
    """Removes what a run needed to continue, once it has a record. After a kill in between, another call
    removes the rest."""
    folder = run_folder(output, run_id)
    for name in ("checkpoint.safetensors", "attempts.json", "progress.json", "decode_seconds.json"):
        remove(folder / name)
    best, rounded = folder / "adapter_best.safetensors", folder / "adapter_best_rounded.safetensors"
    if keep != "both":  # only decoding needed the best epoch's adapter
        remove(best)
    elif obstacle(best) is None and obstacle(rounded) is None:
        with contextlib.suppress(FileNotFoundError):  # another command may do the same now
            os.replace(rounded, best)


def sweep_up(output: str | Path, run_id: str) -> None:
    """Removes half-written files of a run's killed processes. The owner of the run may do this, and everybody
    once it has a record. The folder of records, which may be large, is left to sweep_up_dead."""
    for path in run_folder(output, run_id).glob(".*"):
        remove(path)


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of these two; empty for a damaged one, and where there is none."""
    try:
        content = json.loads(read_regular(path, LARGEST))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
