"""The files of an attempt, until the run's record makes them the run's.

Each attempt writes into a folder of its own, RUN/attempts/HOST.PID.TOKEN, and begins
with links to what the last one left. Whoever creates the finished record, which names
the SHA-256 of its files, moves them into the run's folder and removes the others. So an
attempt that comes late writes where nobody looks, and a record and its files are always
of one attempt, also where the file system's locks do not reach another machine."""

import contextlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runs.command.errors import UserError
from runs.machine.hashes import digest
from runs.record.cell import hash_of
from runs.record.ledger import (
    finished_record,
    is_dead,
    link_or_fail,
    read_record,
    read_regular,
    record_path,
    record_text,
    run_folder,
    write_atomically,
)
from runs.record.schema import FINISHED, SCHEMA, Record
from runs.run.definition import Run

CHECKPOINT, STATE = "checkpoint.safetensors", "attempt.json"
#: What a later attempt goes on from, in the order in which it is taken: a file that is
#: newer than its checkpoint is written again, to the same content.
CONTINUED = (
    CHECKPOINT,
    "*.safetensors",
    "decoded_*.jsonl",
    "samples.jsonl",
    "predictions.csv",
)
#: What an attempt tells the next one.
TOLD = {
    "ended": list,
    "settings": dict,
    "deviations": list,
    "decoding": float,
    "stopped": bool,
}
#: What commands read of a finished run; of another attempt it would be wrong.
READ = (
    "adapter*.safetensors",
    "head.safetensors",
    "decoded_*.jsonl",
    "predictions.csv",
)


class Attempt:
    """One attempt of a run.

    ended: how earlier attempts ended, in words. settings: those that were halved, since
    memory ran out. deviations: these in words. decoding: its seconds, over all
    attempts. folder: for all that this writes."""

    def __init__(self, output: str | Path, run_id: str, why: str = "") -> None:
        """Takes over what the last attempt left. why: how its process ended, where it
        had no room to say so and was not killed. Raises UserError where a folder or the
        like has the record's name."""
        if os.path.lexists(path := record_path(output, run_id)) and not path.is_file():
            raise UserError(
                f"{path} is not a regular file, and the run's record has its name. Move it away"
            )
        self.output, self.run_id, self.token = output, run_id, uuid.uuid4().hex[:12]
        self.ended, self.deviations = list[str](), list[str]()
        self.settings, self.decoding, self.stopped = dict[str, int](), 0.0, False
        name = f"{socket.gethostname()}.{os.getpid()}.{self.token}"
        self.folder = attempts_folder(output, run_id) / name
        self.folder.mkdir(parents=True)
        before = {
            f: _state(f) for f in self.folder.parent.iterdir() if f != self.folder
        }
        # these may fill the disk
        _remove_dead(folder for folder, state in before.items() if not state)
        last = max(
            (f for f, state in before.items() if state), key=_progress, default=None
        )
        try:
            if last is not None:
                vars(self).update(before[last])
                self.ended += [] if self.stopped else [why or "the process was killed"]
                for path in (
                    path for pattern in CONTINUED for path in sorted(last.glob(pattern))
                ):
                    # a rival that lives has finished
                    with contextlib.suppress(FileNotFoundError):
                        _link(path, self.folder / path.name)
            self.save()  # before the others go: a kill in between leaves either
        except OSError:  # a full disk: the next try needs the room
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        _remove_dead(before)

    def save(self, stopped: bool = False) -> None:
        """Writes how the attempts ended, for the next one. stopped: this one ends as it
        was asked to."""
        self.stopped = stopped
        write_atomically(
            self.folder / STATE,
            json.dumps({key: getattr(self, key) for key in TOLD}) + "\n",
        )

    def finish(self, record: Record) -> bool:
        """Creates the record of the run, and moves the files of a finished one into the
        run's folder. Returns False where another attempt has finished before: its
        record and files stay, and this one's go."""
        path = record_path(self.output, self.run_id)
        if record["status"] in FINISHED:
            files = self._results(record["config"]["keep"])
            record["files"] = {name: digest(file) for name, file in files.items()}
        text = record_text(record)
        if path.is_file() and not finished_record(self.output, self.run_id):
            self._set_aside(path)
        try:
            link_or_fail(path, text)
        except FileExistsError:
            if not finished_record(self.output, self.run_id):
                raise
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()
            return False
        if record["status"] in FINISHED:
            tidy(self.output, record)
        return True

    def _results(self, keep: str) -> dict[str, Path]:
        """The files that the run keeps, by name; without the best epoch's adapter for
        decoding alone."""
        paths = [
            path
            for path in self.folder.iterdir()
            if path.is_file() and path.name[0] != "."
        ]
        files = {
            path.name: path
            for path in sorted(paths)
            if path.name not in (CHECKPOINT, STATE)
        }
        best = files.pop("adapter_best.safetensors", None)  # in records the last one
        return files | ({best.name: best} if keep == "both" and best else {})

    def _set_aside(self, path: Path) -> None:
        """Makes room where a failed or damaged record lies. Once it is aside it is read
        again, for another attempt may have finished since the first look."""
        # beside it: one file system
        aside = path.with_name(f".{path.name}.{self.folder.name}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, aside)
            with contextlib.suppress(ValueError, FileExistsError):
                if read_record(aside)["status"] in FINISHED:
                    os.link(aside, path)
            aside.unlink()

    def fail(self, run: Run, error: str) -> bool:
        """Writes the record of a failed run. Its checkpoint stays, and the tries are
        counted anew. Returns False where another attempt has finished before."""
        failed = {
            "schema": SCHEMA,
            "id": self.run_id,
            "status": "failed",
            "error": error,
        }
        config = {"config": run.config, "config_hash": hash_of(run.config)[:16]}
        if not self.finish(
            {**failed, "tries": self.ended, "claim": self.token, **run.names, **config}
        ):
            return False
        self.ended, self.settings, self.deviations = [], {}, []
        self.save(stopped=True)
        return True


def attempts_folder(output: str | Path, run_id: str) -> Path:
    """The attempts of a run that has no finished record yet."""
    return run_folder(output, run_id) / "attempts"


def saved(output: str | Path, run_id: str) -> list[tuple[str, int]]:
    """The state of what a run's attempts have saved, to be compared: it changes when
    there is more."""
    folder = attempts_folder(output, run_id)
    times = {path.stat().st_mtime_ns for path in folder.glob(f"*/{CHECKPOINT}")}
    sizes = {
        (path.name, path.stat().st_size) for path in folder.glob("*/decoded_*.jsonl")
    }
    return sorted({(CHECKPOINT, time) for time in times} | sizes)


def tidy(output: str | Path, record: Record) -> None:
    """Moves the files that a finished record names from the attempt that wrote them
    into the run's folder, and removes what attempts left and a kill cut off. Anyone
    may: a kill may have ended the first."""
    folder, attempts = (
        run_folder(output, record["id"]),
        attempts_folder(output, record["id"]),
    )
    for name in (
        "progress.json",
        ".progress.json.*",
        ".config.yaml.*",
        ".overrides.yaml.*",
    ):
        for path in folder.glob(name):
            path.unlink(missing_ok=True)
    if not attempts.is_dir():
        return
    files = record.get("files", {})
    for name, wanted in files.items():
        left = [folder / name, *attempts.glob(f"*/{name}")]
        if found := next((path for path in left if digest(path) == wanted), None):
            # another command does the same now
            with contextlib.suppress(FileNotFoundError):
                os.replace(found, folder / name)
    # Of an attempt before: commands would read it although the record does not name it
    for path in (
        [path for pattern in READ for path in folder.glob(pattern)]
        if "files" in record
        else ()
    ):
        if path.name not in files:
            path.unlink(missing_ok=True)
    shutil.rmtree(attempts, ignore_errors=True)


def _state(folder: Path) -> dict[str, Any]:
    """What `Attempt.save` wrote; empty for a folder that no attempt has finished taking
    over, and for a damaged file."""
    try:
        state = json.loads(read_regular(folder / STATE, 2**20))
        return {key: kind(state[key]) for key, kind in TOLD.items()}
    except (ValueError, KeyError, TypeError):
        return {}


def _progress(folder: Path) -> list[int]:
    """Orders attempts: by their checkpoints' times, then by their own."""
    paths = (folder / CHECKPOINT, folder / STATE)
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]


def _link(path: Path, to: Path) -> None:
    """The same file under another name, since it is only ever replaced whole. Texts
    grow, and are copied."""
    if to.exists():  # two patterns name it
        return
    if path.suffix != ".jsonl":
        with contextlib.suppress(OSError):  # a file system without hard links
            os.link(path, to)
            return
    shutil.copy2(path, to)  # with its time


def _remove_dead(folders: Iterable[Path]) -> None:
    for folder in folders:
        if is_dead(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
