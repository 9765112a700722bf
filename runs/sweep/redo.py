"""redo=true: the record and files of a finished run are set aside, and the run is done again."""

import contextlib
import os
import time
from pathlib import Path

from runs.record import Record, read_measure, read_record, record_path, run_folder
from runs.record.text import plural
from runs.sweep.leases import Heart, Watcher


def replaced_folder(output: str | Path) -> Path:
    """The folder that redo=true sets records and files aside in. No ledger reads it."""
    return Path(output) / "replaced"


def set_all_aside(records: list[Record], output: str, lease_seconds: float) -> list[Path]:
    """Sets aside the records and files of finished runs, and prints their number. Returns the folders that
    have them now."""
    folders = [set_aside(record, output, lease_seconds) for record in records]
    print(f"redo: {plural(len(records), 'record')} set aside, in {replaced_folder(output)}", flush=True)
    return [folder for folder in folders if folder]


def set_aside(record: Record, output: str, lease_seconds: float) -> Path | None:
    """Moves a finished run's record, folder and measures to outputs/replaced/ID.TIME, under the run's lease.

    Of two commands at once one does it: the other finds no record, or a new one, which it leaves alone. The
    record goes last: after a kill in between, the same command sets it aside, and no file of the old run is
    in the new one's way. Returns the folder, or None where another command was first."""
    name, watcher = record["id"], Watcher(output, lease_seconds)
    path, folder = record_path(output, name), run_folder(output, name)
    while _is_there(path, record):
        lease = watcher.take(name)
        if lease is None:
            time.sleep(min(1.0, lease_seconds / 8))
            continue
        with Heart(lease, lease_seconds):
            if not _is_there(path, record):
                return None
            aside = replaced_folder(output) / f"{name}.{time.strftime('%Y%m%d-%H%M%S')}-{lease.token[:4]}"
            aside.mkdir(parents=True)
            if folder.is_dir():
                os.replace(folder, aside / "run")
            for measure in (Path(output) / "measures").glob("*.json"):
                with contextlib.suppress(ValueError):  # one that cannot be read
                    if name in [run["id"] for run in read_measure(measure)["of"]]:
                        os.replace(measure, aside / f"measure_{measure.name}")
            os.replace(path, aside / "record.json")
            return aside
    return None


def put_back(folders: list[Path], output: str) -> None:
    """Undoes `set_all_aside` before any run has begun. A run that another command has begun keeps its new
    files."""
    count = 0
    for aside in folders:
        name = aside.name.partition(".")[0]
        path, folder = record_path(output, name), run_folder(output, name)
        if path.exists() or folder.exists():
            continue
        os.replace(aside / "record.json", path)
        if (aside / "run").is_dir():
            os.replace(aside / "run", folder)
        for measure in aside.glob("measure_*"):
            os.replace(measure, Path(output) / "measures" / measure.name.removeprefix("measure_"))
        aside.rmdir()
        count += 1
    if count:
        print(f"redo: {plural(count, 'record')} put back", flush=True)


def _is_there(path: Path, record: Record) -> bool:
    try:
        return read_record(path) == record
    except ValueError:
        return False
