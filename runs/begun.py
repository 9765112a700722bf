"""What a run that has begun keeps in its folder until it has a record: how it stands, and how earlier tries ended.

No torch: the plan and the executors read these. Neither file is needed for a result; one that is damaged counts as none.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from runs.record import run_folder, write_atomically


def read_tries(output: str | Path, run_id: str) -> dict[str, Any]:
    """ended: how earlier tries ended, in words. settings: of the configuration, that came of it (a smaller micro_batch).
    deviations: these in words."""
    none: dict[str, Any] = {"ended": [], "settings": {}, "deviations": []}
    found = _read(run_folder(output, run_id) / "tries.json")
    return found if all(type(found.get(key)) is type(value) for key, value in none.items()) else none


def write_tries(output: str | Path, run_id: str, tries: dict[str, Any]) -> None:
    """Keeps what `read_tries` gives back, for whichever executor goes on with the run."""
    write_atomically(run_folder(output, run_id) / "tries.json", json.dumps(tries, indent=1) + "\n")


def read_progress(output: str | Path, run_id: str) -> dict[str, Any]:
    """The last event of a run's training (phase, epoch, metric, seconds_left ...); empty where it has not begun."""
    return _read(run_folder(output, run_id) / "progress.json")


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
    """Removes what a run needed to go on, once it has a record. A kill in between leaves some: this may be asked again."""
    folder = run_folder(output, run_id)
    for name in ("checkpoint.safetensors", "tries.json", "progress.json"):
        (folder / name).unlink(missing_ok=True)
    best, rounded = folder / "adapter_best.safetensors", folder / "adapter_best_rounded.safetensors"
    if keep != "both":  # it was there to be decoded
        best.unlink(missing_ok=True)
    else:
        with contextlib.suppress(FileNotFoundError):  # others may do the same at this moment
            os.replace(rounded, best)


def sweep_up(output: str | Path, run_id: str) -> None:
    """Removes half-written files of a run's killed processes. For the owner of the run, and for all once it has a record.

    Not in the folder of records, which may be large: see sweep_up_dead."""
    for path in run_folder(output, run_id).glob(".*"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
