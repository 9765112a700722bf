"""The files of an attempt, until the run's record makes them the run's.

Each attempt writes into its own folder, RUN/attempts/HOST.PID.TOKEN, and begins with
links to what the last one left. Whoever creates the finished record, which names the
SHA-256 of its files, moves them into the run's folder and removes the other attempts.
So a late attempt writes where nobody looks. A record and its files always come from one
attempt, even where the locks of the file system do not reach another machine."""

import contextlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runs.command.errors import UserError
from runs.machine.hashes import files_sha256
from runs.machine.processes import is_dead
from runs.record.cell import hash_of
from runs.record.files import link_or_fail, write_atomically
from runs.record.ledger import (
    finished_record,
    read_record,
    read_regular,
    record_path,
    record_text,
    run_folder,
)
from runs.record.schema import FINISHED, SCHEMA, FailedRecord, Record
from runs.run.definition import Run

CHECKPOINT = "checkpoint.safetensors"
STATE = "attempt.json"
#: What a later attempt continues from, in the order in which it is linked. The
#: checkpoint is first, so that no other file is older: one that is newer is written
#: again with the same content on the way from the checkpoint.
RESUMED_FILES = (
    CHECKPOINT,
    "*.safetensors",
    "decoded_*.jsonl",
    "samples.jsonl",
    "predictions.csv",
)
#: What an attempt leaves for the next one, in attempt.json: attributes of Attempt, and
#: their types.
ATTEMPT_STATE = {
    "ended": list,
    "settings": dict,
    "deviations": list,
    "decoding": float,
    "stopped": bool,
}
#: The files that commands read of a finished run. They must not be of another attempt.
FILES_OF_A_RUN = (
    "adapter*.safetensors",
    "head.safetensors",
    "decoded_*.jsonl",
    "predictions.csv",
)
#: What lies in a run's folder while it runs, or after a kill.
TEMPORARY_FILES = (
    "progress.json",
    ".progress.json.*",
    ".config.yaml.*",
    ".overrides.yaml.*",
)


class Attempt:
    """One attempt of a run.

    Attributes:
        ended: how earlier attempts ended, in words.
        settings: those that were halved because memory ran out, with their new values.
        deviations: the halved settings in words, for the record.
        decoding: seconds of decoding, over all attempts.
        stopped: whether an attempt has saved how it ended. False until then, as after a
            kill.
        folder: where this attempt writes.
    """

    def __init__(self, output: str | Path, run_id: str, reason: str = "") -> None:
        """Takes over what the last attempt left.

        Args:
            reason: how the last attempt ended, if the disk was too full to say so in
                its own file; "" means that it was killed.

        Raises:
            UserError: if something other than a file has the record's name.
        """
        path = record_path(output, run_id)
        if os.path.lexists(path) and not path.is_file():
            raise UserError(
                f"{path} is not a regular file, and the run's record has its name. "
                "Move it away"
            )
        self.output = output
        self.run_id = run_id
        self.token = uuid.uuid4().hex[:12]
        self.ended = list[str]()
        self.settings = dict[str, int]()
        self.deviations = list[str]()
        self.decoding = 0.0
        self.stopped = False
        name = f"{socket.gethostname()}.{os.getpid()}.{self.token}"
        self.folder = attempts_folder(output, run_id) / name
        self.folder.mkdir(parents=True)
        folders = [path for path in self.folder.parent.iterdir() if path != self.folder]
        states = {folder: _read_state(folder) for folder in folders}
        resumable = [folder for folder in folders if states[folder]]
        # those with nothing to continue from go first, since they may fill the disk
        _remove_dead(folder for folder in folders if not states[folder])
        try:
            if resumable:
                latest = max(resumable, key=_times_written)
                self._take_over(latest, states[latest], reason)
            # before the others are removed: at a kill in between one of them must be left
            self.save()
        except OSError:  # such as a full disk: the next attempt needs the space
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        _remove_dead(folders)

    def _take_over(self, latest: Path, state: dict[str, Any], reason: str) -> None:
        """Continues from the state and the files of the last attempt's folder. state: what
        `save` wrote there. reason: see __init__."""
        vars(self).update(state)  # its keys are attributes
        if not self.stopped:
            self.ended.append(reason or "the process was killed")
        for pattern in RESUMED_FILES:
            for path in sorted(latest.glob(pattern)):
                # an attempt that is still alive may finish meanwhile
                with contextlib.suppress(FileNotFoundError):
                    _link(path, self.folder / path.name)

    def save(self, stopped: bool = False) -> None:
        """Writes how the attempts ended, for the next one. stopped: whether this one
        ends now, in another way than by a kill."""
        self.stopped = stopped
        state = {key: getattr(self, key) for key in ATTEMPT_STATE}
        write_atomically(self.folder / STATE, json.dumps(state) + "\n")

    def finish(self, record: Record) -> bool:
        """Creates the record of a run that is done or has diverged, and moves its files
        into the run's folder. Returns False where another attempt has finished before:
        its record and files stay, and this one's are removed."""
        files = self._kept_files(record["config"]["keep"])
        record["files"] = {name: files_sha256(file) for name, file in files.items()}
        if not self._create(record):
            return False
        tidy(self.output, record)
        return True

    def _create(self, record: FailedRecord) -> bool:
        """Creates the record, in the place of a failed or damaged one. Returns False,
        and removes this attempt's files, where another one has finished before."""
        path = record_path(self.output, self.run_id)
        text = record_text(record)
        if path.is_file() and not finished_record(self.output, self.run_id):
            self._remove_unfinished_record(path)
        try:
            link_or_fail(path, text)
        except FileExistsError:
            if not finished_record(self.output, self.run_id):
                raise
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()
            return False
        return True

    def _kept_files(self, keep: str) -> dict[str, Path]:
        """The files that the run keeps, by name. A best epoch's adapter that was only
        for decoding is not among them."""
        files = {}
        for path in sorted(self.folder.iterdir()):
            is_temporary = path.name.startswith(".")
            if path.is_file() and not is_temporary:
                files[path.name] = path
        for name in (CHECKPOINT, STATE):
            files.pop(name, None)
        best = files.pop("adapter_best.safetensors", None)
        if keep == "both" and best:
            files[best.name] = best  # records name it last
        return files

    def _remove_unfinished_record(self, path: Path) -> None:
        """Removes a failed or damaged record. It is renamed first and read again: if
        another attempt has finished since it was read, its record gets its name back."""
        # in the same folder, so on the same file system
        renamed = path.with_name(f".{path.name}.{self.folder.name}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, renamed)
            # raised by a damaged record, and where there is a new one already
            with contextlib.suppress(ValueError, FileExistsError):
                if read_record(renamed)["status"] in FINISHED:
                    os.link(renamed, path)
            renamed.unlink()

    def fail(self, run: Run, error: str) -> bool:
        """Writes the record of a failed run. Its checkpoint stays, and the attempts are
        counted anew. Returns False where another attempt has finished before."""
        record: FailedRecord = {
            "schema": SCHEMA,
            "id": self.run_id,
            "status": "failed",
            "error": error,
            "tries": self.ended,
            "claim": self.token,
            "cell": run.cell,
            "label": run.labels,
            "overrides": run.recorded_overrides,
            "config": run.config,
            "config_hash": hash_of(run.config)[:16],
        }
        if not self._create(record):
            return False
        # If the user trains the run again, it has all its attempts, and begins without
        # the smaller batches that these attempts had halved to.
        self.ended = []
        self.settings = {}
        self.deviations = []
        self.save(stopped=True)
        return True


def attempts_folder(output: str | Path, run_id: str) -> Path:
    """The attempts of a run that has no finished record yet."""
    return run_folder(output, run_id) / "attempts"


def saved_progress(output: str | Path, run_id: str) -> list[tuple[str, int]]:
    """What a run's attempts have saved, as a value to be compared with a later one: it
    changes when they save more. It has the time of each checkpoint and the size of each
    file of texts, beside the file's name, and is empty if they have saved nothing."""
    folder = attempts_folder(output, run_id)
    # a set, since an attempt that takes over links the files of the last one
    progress = set()
    for path in folder.glob(f"*/{CHECKPOINT}"):
        progress.add((path.name, path.stat().st_mtime_ns))
    for path in folder.glob("*/decoded_*.jsonl"):
        progress.add((path.name, path.stat().st_size))
    return sorted(progress)


def tidy(output: str | Path, record: Record) -> None:
    """Moves the files that a finished record names from the attempt that wrote them
    into the run's folder, and removes the attempts and temporary files. Any process
    may do this: a kill may have ended the first that tried."""
    folder = run_folder(output, record["id"])
    attempts = attempts_folder(output, record["id"])
    for pattern in TEMPORARY_FILES:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    if not attempts.is_dir():
        return
    files = record.get("files", {})
    for name, sha256 in files.items():
        candidates = [folder / name, *attempts.glob(f"*/{name}")]
        for path in candidates:
            if files_sha256(path) == sha256:
                # another command may do the same now
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, folder / name)
                break
    # An older record names no files, so whose they are is not known.
    if "files" in record:
        _remove_files_of_others(folder, files)
    shutil.rmtree(attempts, ignore_errors=True)


def _remove_files_of_others(folder: Path, files: Mapping[str, str]) -> None:
    """Removes files that the record does not name, which an earlier attempt left:
    commands would read them."""
    for pattern in FILES_OF_A_RUN:
        for path in folder.glob(pattern):
            if path.name not in files:
                path.unlink(missing_ok=True)


def _read_state(folder: Path) -> dict[str, Any]:
    """What `Attempt.save` wrote into an attempt's folder; empty if the file is damaged,
    or if the attempt ended before it had saved a state."""
    try:
        state = json.loads(read_regular(folder / STATE, 2**20))
        return {
            key: convert_to_type(state[key])
            for key, convert_to_type in ATTEMPT_STATE.items()
        }
    except (ValueError, KeyError, TypeError):
        return {}


def _times_written(folder: Path) -> list[int]:
    """The times by which attempts are ordered: when the checkpoint was written, then
    when the state was; 0 for a file that is not there."""
    paths = (folder / CHECKPOINT, folder / STATE)
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]


def _link(path: Path, new_path: Path) -> None:
    """Gives a file a second name, which is enough for one that is only ever replaced as
    a whole. Files of texts grow, so they are copied."""
    if new_path.exists():  # two of RESUMED_FILES match it
        return
    if path.suffix != ".jsonl":
        with contextlib.suppress(OSError):  # a file system without hard links
            os.link(path, new_path)
            return
    shutil.copy2(path, new_path)  # keeps the time of change


def _remove_dead(folders: Iterable[Path]) -> None:
    """Removes those of these attempts' folders whose process has ended."""
    for folder in folders:
        if is_dead(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
