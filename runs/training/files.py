"""The files of an attempt, until the run's record makes them the run's.

Each attempt writes into a folder of its own, RUN/attempts/HOST.PID.TOKEN, and begins with links to what the
last one left. Whoever creates the finished record, which names the SHA-256 of its files, moves them into the
run's folder and removes the others. So an attempt that comes late writes where nobody looks, and a record and
its files are always of one attempt, also where the file system's locks do not reach another machine."""

import contextlib
import json
import os
import shutil
import socket
import uuid
from pathlib import Path
from typing import Any

from runs.errors import UserError
from runs.file_hash import digest
from runs.identity import hash_of
from runs.record import (
    FINISHED,
    SCHEMA,
    Record,
    finished_record,
    link_or_fail,
    read_record,
    read_regular,
    record_path,
    record_text,
    run_folder,
    write_atomically,
)
from runs.run import Run

CHECKPOINT, STATE = "checkpoint.safetensors", "attempt.json"
#: What a later attempt goes on from, in the order in which it is taken: a file that is newer than its
#: checkpoint is written again, to the same content.
CONTINUED = (CHECKPOINT, "*.safetensors", "decode_seconds.json", "decoded_*.jsonl")
#: What commands read of a finished run; of another attempt it would be wrong.
READ = ("adapter*.safetensors", "head.safetensors", "decoded_*.jsonl")
#: The settings that are halved after memory ran out, and their names in a record's deviations.
HALVED = {"micro_batch": "micro-batch", "eval_batch": "evaluation batch"}


class Attempt:
    """One attempt of a run.

    ended: how earlier attempts ended, in words. settings: those that were halved, since memory ran out.
    deviations: these in words. folder: for all that this attempt writes."""

    def __init__(self, output: str | Path, run_id: str) -> None:
        """Takes over what the last attempt left. Raises UserError where a folder or the like has the name of
        the record."""
        self.output, self.run_id, path = output, run_id, record_path(output, run_id)
        if os.path.lexists(path) and not path.is_file():
            raise UserError(f"{path} is no file, and the run's record has its name. Move it away")
        self.token = uuid.uuid4().hex[:12]
        self.ended, self.deviations = list[str](), list[str]()
        self.settings = dict[str, int]()
        name = f"{socket.gethostname()}.{os.getpid()}.{self.token}"
        self.folder = attempts_folder(output, run_id) / name
        self.folder.mkdir(parents=True)
        self._take_over()

    def _take_over(self) -> None:
        before = {f: _state(f) for f in self.folder.parent.iterdir() if f != self.folder}
        last = max((f for f, state in before.items() if state), key=_progress, default=None)
        if last is not None:
            state = before[last]
            self.ended = [*state["ended"], *([] if state["stopped"] else ["the process was killed"])]
            self.settings, self.deviations = state["settings"], state["deviations"]
            for pattern in CONTINUED:
                for path in filter(Path.is_file, sorted(last.glob(pattern))):
                    with contextlib.suppress(FileNotFoundError):  # a rival that lives has finished
                        _link(path, self.folder / path.name)
        self.save()  # before the others go: a kill in between leaves either
        for folder in before:
            if _is_dead(folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def save(self, stopped: bool = False) -> None:
        """Writes how the attempts ended, for the next one. stopped: this one ends now, as it was asked to,
        and is no failure."""
        keys = ("ended", "settings", "deviations")
        state = {key: getattr(self, key) for key in keys} | {"stopped": stopped}
        write_atomically(self.folder / STATE, json.dumps(state) + "\n")

    def finish(self, record: Record) -> bool:
        """Creates the record of the run, and moves the files of a finished one into the run's folder. Returns
        False where another attempt has finished before: its record and files stay."""
        path, files = record_path(self.output, self.run_id), dict[str, Path]()
        if record["status"] in FINISHED:
            files = self._results(record["config"]["keep"])
            record["files"] = {name: digest(file) for name, file in files.items()}
        text = record_text(record)
        if path.is_file() and not finished_record(self.output, self.run_id):
            self._set_aside(path)
        try:
            link_or_fail(path, text)
        except FileExistsError:
            return False
        if record["status"] in FINISHED:
            folder = run_folder(self.output, self.run_id)
            _move_in(files, folder)
            _clean(folder, files)
        return True

    def _results(self, keep: str) -> dict[str, Path]:
        """The files that the run keeps, by their names in its folder. A full-precision copy of the best
        epoch's adapter was for decoding, unless keep=both."""
        paths = [path for path in self.folder.iterdir() if path.is_file() and path.name[0] != "."]
        files = {path.name: path for path in sorted(paths)}
        for name in (CHECKPOINT, STATE, "decode_seconds.json"):
            files.pop(name, None)
        best, rounded = (files.pop(f"adapter_best{end}.safetensors", None) for end in ("", "_rounded"))
        if keep == "both" and best:
            files["adapter_best.safetensors"] = rounded or best
        return files

    def _set_aside(self, path: Path) -> None:
        """Makes room where a failed or damaged record lies. Once it is aside it is read again, for another
        attempt may have finished since the first look."""
        aside = self.folder / ".record.json"
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, aside)
            with contextlib.suppress(ValueError, FileExistsError):
                if read_record(aside)["status"] in FINISHED:
                    os.link(aside, path)

    def fail(self, run: Run, error: str) -> bool:
        """Writes the record of a failed run. Its checkpoint stays, and the tries are counted anew."""
        failed = {
            "schema": SCHEMA,
            "id": self.run_id,
            "status": "failed",
            "error": error,
            "tries": self.ended,
        }
        config = {"config": run.config, "config_hash": hash_of(run.config)[:16]}
        written = self.finish({**failed, "claim": self.token, **run.names, **config})
        self.ended, self.settings, self.deviations = [], {}, []
        self.save(stopped=True)
        return written

    def remove(self) -> None:
        """Removes this attempt's files: another one has finished the run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def attempts_folder(output: str | Path, run_id: str) -> Path:
    """The attempts of a run that has no finished record yet."""
    return run_folder(output, run_id) / "attempts"


def saved(output: str | Path, run_id: str) -> list[tuple[str, int]]:
    """The state of what a run's attempts have saved, to be compared: it changes when there is more."""
    folder = attempts_folder(output, run_id)
    times = {path.stat().st_mtime_ns for path in folder.glob(f"*/{CHECKPOINT}")}
    sizes = {(path.name, path.stat().st_size) for path in folder.glob("*/decoded_*.jsonl")}
    return sorted({(CHECKPOINT, time) for time in times} | sizes)


def last_checkpoint(output: str | Path, run_id: str) -> Path | None:
    """The checkpoint that a run goes on from; None without one."""
    paths = attempts_folder(output, run_id).glob(f"*/{CHECKPOINT}")
    return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)


def tidy(output: str | Path, record: Record) -> None:
    """Moves the files that a finished record names into its run's folder, where a kill has left them with an
    attempt, and removes what the attempts left. Everybody who sees the record may do so."""
    folder, attempts = run_folder(output, record["id"]), attempts_folder(output, record["id"])
    for path in (folder / "progress.json", *folder.glob(".progress.json.*")):  # one that a kill cut off, too
        path.unlink(missing_ok=True)
    if not attempts.is_dir():
        return
    for name, wanted in record.get("files", {}).items():
        rounded = name.replace("adapter_best.", "adapter_best_rounded.")
        left = [folder / name, *attempts.glob(f"*/{rounded}"), *attempts.glob(f"*/{name}")]
        found = next((path for path in left if digest(path) == wanted), None)
        _move_in({name: found} if found else {}, folder)
    _clean(folder, record.get("files"))


def _move_in(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        with contextlib.suppress(FileNotFoundError):  # another command does the same now
            os.replace(path, folder / name)


def _clean(folder: Path, names: Any) -> None:
    """Removes a run's attempts, and what commands would read although the record does not name it. names: in
    the record; None for one that names no files."""
    for path in [path for pattern in READ for path in folder.glob(pattern)] if names is not None else ():
        if path.name not in names:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / "attempts", ignore_errors=True)


def _state(folder: Path) -> dict[str, Any]:
    """What `Attempt.save` wrote; empty for a folder that no attempt has finished taking over, or a damaged
    file."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        state = json.loads(read_regular(folder / STATE))
        settings = {
            key: int(value)
            for key, value in state["settings"].items()
            if key in HALVED and 1 <= value < 2**20
        }
        texts = {key: [*map(str, state[key])] for key in ("ended", "deviations")}
        return {"settings": settings, "stopped": bool(state["stopped"]), **texts}
    return {}


def _progress(folder: Path) -> list[int]:
    """Orders attempts: by their checkpoints' times, then by their own."""
    paths = (folder / CHECKPOINT, folder / STATE)
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]


def _link(path: Path, to: Path) -> None:
    """The same file under another name: a file that is only ever replaced whole keeps its content. Texts grow
    in place, and are copied."""
    if to.exists():
        return
    if path.suffix != ".jsonl":
        with contextlib.suppress(OSError):  # a file system without hard links
            os.link(path, to)
            return
    shutil.copyfile(path, to)


def _is_dead(name: str) -> bool:
    """Whether an attempt's process was one of this machine that has ended."""
    host, _, number = name.rpartition(".")[0].rpartition(".")
    try:
        if host == socket.gethostname():
            os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OSError, OverflowError):  # another user's
        pass
    return False
