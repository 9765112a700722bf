"""What a run that has begun keeps in its folder until it has a record: how it stands, and how earlier
attempts ended.

No torch: the plan and the executors read these. Neither file is needed for a result; one that is damaged
counts as none, and of one that somebody else has written no more is believed than this file's functions
write."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs.record import check_regular, read_regular, record_path, run_folder, write_atomically

#: A larger file is none of these two.
LARGEST = 2**20
#: What may be halved after memory ran out, and how a record's deviations call it.
HALVED = {"micro_batch": "micro-batch", "eval_batch": "evaluation batch"}
#: How the files are called that a run keeps in its folder, by their ends.
KEPT = (".json", ".jsonl", ".safetensors", ".txt", ".csv", ".png", ".yaml")
#: Of an event (runs/training), and from which host: what is shown.
EVENT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("epoch", "epochs", "step", "steps", "texts", "done", "of", "pid"), (int,)),
    **dict.fromkeys(("loss", "metric", "best", "pace", "seconds_left"), (int, float, type(None))),
    "scale": (int, float),
    **dict.fromkeys(("phase", "metric_name", "unit", "host"), (str,)),
}


def obstacle(path: Path) -> str | None:
    """What stands in a file's place and is none (a folder, a pipe, a device, a link that leads nowhere), in
    one line with the way out; None for a file, and where nothing is. It is not ours to remove, and whoever
    opened it might never return."""
    try:
        check_regular(os.stat(path), path)
    except ValueError as error:
        what = str(error)
    except OSError:
        if not path.is_symlink():
            return None
        what = f"{path}: a link that leads to no file"
    else:
        return None
    return f"{what}, where the run has a file of its own. Move it away, and the same command does the run"


def in_the_way(output: str | Path, run_id: str) -> str | None:
    """The first obstacle in the place of a run's record or of a file in its folder. A folder of another name
    is no matter."""
    folder = run_folder(output, run_id)
    inside = sorted(path for path in folder.iterdir() if path.suffix in KEPT) if folder.is_dir() else []
    found = map(obstacle, (record_path(output, run_id), *inside))
    return next(filter(None, found), None)


def remove(path: Path) -> None:
    """Removes a file that has done its work, if it is there. What stands in its place and is none stays."""
    if obstacle(path) is None:
        path.unlink(missing_ok=True)


def append(path: Path) -> int:
    """Opens a log at its end; its number. A pipe in its place is an OSError, and not waited for."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        check_regular(os.fstat(file), path)
    except ValueError as error:
        os.close(file)
        raise OSError(errno.EINVAL, f"{error}".removeprefix(f"{path}: "), str(path)) from None
    return file


def read_attempts(
    output: str | Path, run_id: str, config: dict[str, Any], say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """ended: how earlier attempts ended, in words. settings: of the configuration, that came of it: a
    micro_batch or eval_batch that is no larger than config's. deviations: these in words.

    Whatever else the file holds is left out, and `say` is told so in one line.
    """
    path = run_folder(output, run_id) / "attempts.json"
    found = _read(path)
    ended, settings, deviations = (found.get(key) for key in ("ended", "settings", "deviations"))
    attempts: dict[str, Any] = {"ended": ended if _are_texts(ended) else [], "settings": {}, "deviations": []}
    if isinstance(settings, dict):
        attempts["settings"] = {
            key: settings[key] for key in HALVED if _is_smaller(config, key, settings.get(key))
        }
    if isinstance(deviations, list) and _are_texts(deviations):
        said = [
            rf"{HALVED[key]} {value}, since memory ran out at \d+.*"
            for key, value in attempts["settings"].items()
        ]
        attempts["deviations"] = [
            text for text in deviations if any(re.fullmatch(words, text) for words in said)
        ]
    if say and os.path.lexists(path) and found != attempts:
        say(f"{path}: what no executor has written there for this command is left out")
    return attempts


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_smaller(config: dict[str, Any], key: str, value: Any) -> bool:
    """Whether a value of HALVED may have come from this configuration's by halving."""
    whole = config["train"]["effective_batch"]
    most = min(config["micro_batch"] or whole, whole) if key == "micro_batch" else config["eval_batch"]
    return type(value) is int and 1 <= value <= most


def write_attempts(output: str | Path, run_id: str, attempts: dict[str, Any]) -> None:
    """Keeps what `read_attempts` gives back, for whichever executor goes on with the run."""
    write_atomically(run_folder(output, run_id) / "attempts.json", json.dumps(attempts, indent=1) + "\n")


def read_progress(output: str | Path, run_id: str) -> dict[str, Any]:
    """The last event of a run's training (phase, epoch, metric, seconds_left ...); empty where it has not
    begun, and where the file holds something else by these names."""
    found = _read(run_folder(output, run_id) / "progress.json")
    event = {key: found[key] for key in EVENT if key in found}
    return event if all(map(_fits, event, event.values())) and _whole(event) else {}


def _fits(key: str, value: Any) -> bool:
    """Whether a value of an event is of its type, and no number that no float holds."""
    return (
        isinstance(value, EVENT[key])
        and type(value) is not bool
        and (type(value) is not int or abs(value) < 2**63)
    )


def _whole(event: dict[str, Any]) -> bool:
    """Whether an event has what belongs together."""
    whole = {"epochs", "metric", "metric_name", "scale", "best"} <= event.keys()
    epoch = "epoch" not in event or (whole and (event["metric"] is None) == (event["best"] is None))
    return epoch and ("of" not in event or "done" in event)


def write_progress(output: str | Path, run_id: str, event: dict[str, Any]) -> None:
    """Shows how a run stands to whoever watches. A full disk is no reason to stop it here."""
    with contextlib.suppress(OSError):
        write_atomically(run_folder(output, run_id) / "progress.json", json.dumps(event) + "\n")


def saved(output: str | Path, run_id: str) -> list[tuple[str, int]]:
    """What a run has saved so far, to compare: it changes when a try has won something."""
    folder = run_folder(output, run_id)
    checkpoint = folder / "checkpoint.safetensors"
    times = [(checkpoint.name, checkpoint.stat().st_mtime_ns)] if checkpoint.is_file() else []
    return times + [(path.name, path.stat().st_size) for path in sorted(folder.glob("decoded_*.jsonl"))]


def clear(output: str | Path, run_id: str, keep: str) -> None:
    """Removes what a run needed to go on, once it has a record. A kill in between leaves some: this may be
    asked again."""
    folder = run_folder(output, run_id)
    for name in ("checkpoint.safetensors", "attempts.json", "progress.json", "decode_seconds.json"):
        remove(folder / name)
    best, rounded = folder / "adapter_best.safetensors", folder / "adapter_best_rounded.safetensors"
    if keep != "both":  # it was there to be decoded
        remove(best)
    elif obstacle(best) is None and obstacle(rounded) is None:
        with contextlib.suppress(FileNotFoundError):  # others may do the same at this moment
            os.replace(rounded, best)


def sweep_up(output: str | Path, run_id: str) -> None:
    """Removes half-written files of a run's killed processes. For the owner of the run, and for all once it
    has a record.

    Not in the folder of records, which may be large: see sweep_up_dead."""
    for path in run_folder(output, run_id).glob(".*"):
        remove(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(path, LARGEST))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
