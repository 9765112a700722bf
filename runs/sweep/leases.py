"""Leases: of all executors that see the same folder, on any machine, one does a run.

outputs/leases/RUN.GENERATION is a lease: a token that names its owner, and a counter that the owner raises
while it lives. A lease is created whole and by one executor alone (a hard link fails where the name exists).
If the counter stands still for `lease_seconds` of the watcher's own monotonic clock, the watcher takes the
run over by creating the next generation. No two clocks are compared, so a clock that jumps does no harm. The
highest generation owns the run. An owner that comes back late finds a higher one, or its own lease gone, and
writes nothing. It raises its counter through the open file, and so never that of another lease.

A file whose name is not exactly that of a lease (RUN.007) is no lease. A damaged lease (garbage, a folder, a
pipe) has no owner: it grows old like any other, the next generation follows it, and it is not opened unless
it is a regular file."""

import contextlib
import errno
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from runs.errors import UserError
from runs.record import FINISHED, Record, link_or_fail, read_record, read_regular, record_path, record_text
from runs.sweep.progress import obstacle, remove

#: The largest lease_seconds. A lease with a larger one is damaged.
LONGEST = 3600
#: A lease begins with this, and then has the counter as digits of a fixed width.
BEAT = b'{"beat": "'
WIDTH = 12
#: Bytes. A larger file is a damaged lease.
LARGEST = 2**16
#: The keys of a lease and the types of their values.
KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("beat", "token", "host"), (str,)),
    "pid": (int,),
    "lease_seconds": (int, float),
    **dict.fromkeys(("started", "boot"), (str, type(None))),
}
#: The form of a generation in a file's name, and the highest one. Executors give a run up long before it has
#: had so many owners.
GENERATION, LAST = re.compile("[1-9][0-9]{0,8}"), 10**9 - 1


class LostLeaseError(Exception):
    """Another executor does this run now, or has done it, so this one must not write."""


@dataclass
class Lease:
    """A lease that this executor holds. The run's process gets it, and calls `check` before it writes."""

    path: Path
    token: str
    _file: int = field(default=-1, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": -1}  # the executor alone raises the counter

    @property
    def run_id(self) -> str:
        """The id of the leased run."""
        return self.path.stem

    @property
    def generation(self) -> int:
        """1 for a run's first owner; one more for each owner that fell silent."""
        return int(self.path.suffix[1:])

    def check(self) -> None:
        """Raises LostLeaseError unless this lease still owns the run."""
        held = generations(self.path.parent, self.run_id)
        owner = _read(self.path)
        if not held or max(held) != self.generation or owner is None or owner["token"] != self.token:
            raise LostLeaseError(
                f"run {self.run_id} was taken over by another executor, since this one was silent for too"
                " long"
            )

    def beat(self, count: int) -> None:
        """Raises the counter. Where the file system fails for a moment, the next beat tries again."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, f"{count:0{WIDTH}}".encode(), len(BEAT))
            os.fsync(self._file)  # or a network file system would not show it to other machines

    def release(self) -> None:
        """Gives the run back. The leases of earlier owners go first: one that stayed would count again."""
        with contextlib.suppress(OSError):
            os.close(self._file)
        owner = _read(self.path)
        if owner is None or owner["token"] != self.token:
            return
        for generation in sorted(generations(self.path.parent, self.run_id)):
            if generation <= self.generation:
                remove(self.path.with_suffix(f".{generation}"))

    def write(self, output: str | Path, record: Record) -> None:
        """Writes the run's record, whole or not at all. Raises LostLeaseError for a late owner and where a
        finished record exists, which stays; UserError where a folder or the like has the record's name."""
        self.check()
        path, text = record_path(output, self.run_id), record_text(record)
        if why := obstacle(path):
            raise UserError(why)
        if path.exists() and not _finished(path):
            # A failed or damaged record makes room. Once it is aside it is read again: this process may have
            # slept after the first look, and another owner may have written. See sweep_up_dead
            aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.aside")
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, aside)
                if _finished(aside):
                    with contextlib.suppress(FileExistsError):
                        os.link(aside, path)
            aside.unlink(missing_ok=True)
        try:
            link_or_fail(path, text)
        except (FileExistsError, FileNotFoundError):
            # FileNotFoundError: a later owner has removed the file that was to be linked
            raise LostLeaseError(f"run {self.run_id} has a record already") from None


class Heart:
    """Raises a lease's counter in a thread, for a block, and then releases the lease. lost: whether the run
    has another owner now."""

    def __init__(self, lease: Lease, lease_seconds: float) -> None:
        self.lease, self.lost = lease, False
        self._every, self._end = lease_seconds / 6, threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.lease.release()

    def _go(self) -> None:
        count = 0
        while not self._end.wait(self._every):
            count += 1
            self.lease.beat(count)
            try:
                self.lease.check()
            except LostLeaseError:
                self.lost = True
            except OSError:
                pass


@contextlib.contextmanager
def held(output: str | Path, name: str, lease_seconds: float = 30.0) -> Iterator[Lease]:
    """Holds a lease for a block. While somebody else has it, it waits and prints who."""
    watcher, printed = Watcher(output, lease_seconds), False
    while (lease := watcher.take(name)) is None:
        holder = watcher.holder(name)
        if holder and not printed:
            printed = True
            print(f"{name}: {holder_words(holder)} has it: waiting", flush=True)
        time.sleep(min(1.0, lease_seconds / 8))
    with Heart(lease, lease_seconds):
        yield lease


def holder_words(holder: dict[str, Any]) -> str:
    """The owner of a lease, as `process 12 on host`; of a damaged one, its path."""
    if "pid" not in holder:
        return f"the owner of a damaged lease ({holder['path']})"
    return f"process {holder['pid']} on {holder['host']}"


class Watcher:
    """Watches the leases of a folder grow old, and takes those that are free."""

    def __init__(self, output: str | Path, lease_seconds: float) -> None:
        self.folder, self.lease_seconds = leases_folder(output), lease_seconds
        # By run: the lease as last seen, when, for how many seconds unchanged, and whether it ever changed
        self._seen: dict[str, tuple[Any, float, float, bool]] = {}

    def take(self, run_id: str) -> Lease | None:
        """A new lease on the run; None where another executor has it and lives."""
        top, before = self._top(run_id)
        if not self._is_free(run_id, top, before):
            return None
        lease = self._create(self._path(run_id, top + 1))
        if lease is None:
            return None
        # Of two executors at once the higher generation has the run, and the lease that was judged silent
        # must not have been released since
        after = _read(self._path(run_id, top)) if top else None
        same = (before and before["token"]) == (after and after["token"])
        if max(generations(self.folder, run_id), default=0) != lease.generation or not same:
            lease.release()
            return None
        self._seen.pop(run_id, None)
        return lease

    def free(self, run_id: str) -> bool:
        """Whether `take` would try to take the run."""
        return self._is_free(run_id, *self._top(run_id))

    def undecided(self, run_id: str) -> bool:
        """Whether the run's lease may be silent: `take` has seen it, and has not seen its counter change."""
        seen = self._seen.get(run_id)
        return seen is not None and not seen[3]

    def forget(self, run_id: str) -> None:
        """Removes the leases of dead executors on a run that has its record. A living executor releases its
        own."""
        for partial in self.folder.glob(f".{run_id}.*"):
            remove(partial)
        top, owner = self._top(run_id)
        if owner and ("pid" not in owner or _dead(owner)):
            for generation in sorted(generations(self.folder, run_id)):
                if generation <= top:  # a later one may be a living owner's
                    remove(self._path(run_id, generation))

    def holder(self, run_id: str) -> dict[str, Any] | None:
        """The owner of a run: token, host and process. Of a damaged lease: token and path."""
        return self._top(run_id)[1]

    def _top(self, run_id: str) -> tuple[int, dict[str, Any] | None]:
        """The highest generation of a run's leases and its owner; 0 and None where there is none."""
        top = max(generations(self.folder, run_id), default=0)
        return top, _read(self._path(run_id, top)) if top else None

    def _is_free(self, run_id: str, top: int, owner: dict[str, Any] | None) -> bool:
        """Whether a run has no lease, or a silent one. One that was released just now counts as held."""
        return not top or (owner is not None and self._silent(run_id, top, owner))

    def _silent(self, run_id: str, generation: int, owner: dict[str, Any]) -> bool:
        if generation == LAST:
            raise UserError(
                f"{self._path(run_id, LAST)}: no run has had so many owners. Delete it and run the same"
                " command again"
            )
        if _dead(owner):
            return True
        now, lease = time.monotonic(), (generation, owner)
        seen, last, age, changed = self._seen.get(run_id, (lease, now, 0.0, False))
        # The time between two looks counts for a quarter at most: if this process and the owner slept
        # together, the owner has time to raise its counter
        age = age + min(now - last, self.lease_seconds / 4) if seen == lease else 0.0
        self._seen[run_id] = (lease, now, age, changed or seen != lease)
        # The owner's own lease_seconds decide how often it raises its counter
        return age >= max(self.lease_seconds, owner.get("lease_seconds", 0.0))

    def _path(self, run_id: str, generation: int) -> Path:
        return self.folder / f"{run_id}.{generation}"

    def _create(self, path: Path) -> Lease | None:
        path.parent.mkdir(parents=True, exist_ok=True)
        token = uuid.uuid4().hex[:16]
        owner = {
            "token": token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "lease_seconds": self.lease_seconds,
        }
        text = BEAT.decode() + "0" * WIDTH + '", ' + json.dumps(owner | {"boot": _boot()})[1:] + "\n"
        try:
            link_or_fail(path, text)
            return Lease(path, token, os.open(path, os.O_WRONLY))
        except (FileExistsError, FileNotFoundError):
            # FileNotFoundError: another executor has removed the partial file, for the run has its record
            return None


def leases_folder(output: str | Path) -> Path:
    """Where leases lie."""
    return Path(output) / "leases"


def generations(folder: Path, run_id: str) -> list[int]:
    """The generations of a run's leases that exist."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    parts = (name.rpartition(".") for name in names)
    return [int(number) for stem, _, number in parts if stem == run_id and GENERATION.fullmatch(number)]


def _read(path: Path) -> dict[str, Any] | None:
    """A lease: its owner and its counter; None where there is no file. Of a damaged lease: its path, and its
    whole content as the token, so that it grows old while it stays the same."""
    damaged = {"token": "? a link", "path": str(path)}
    if os.path.islink(path):
        return damaged
    try:
        content = read_regular(path, LARGEST)
    except ValueError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError):
            return damaged | {"token": f"? {error}"}
        if cause.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise cause from None
    try:
        owner = json.loads(content)
        typed = owner.keys() == KEYS.keys() and all(
            isinstance(owner[key], kinds) for key, kinds in KEYS.items()
        )
        whole = typed and 0 < owner["lease_seconds"] <= LONGEST
        if whole and type(owner["pid"]) is int and 0 < owner["pid"] < 2**31:
            return dict(owner)
    except (ValueError, AttributeError, RecursionError):
        pass
    return damaged | {"token": f"? {content!r}"}


def lease_seconds(path: Path) -> float:
    """How long the owner of a lease may be silent; 0 of a damaged or missing lease."""
    return float((_read(path) or {}).get("lease_seconds", 0.0))


def _dead(owner: dict[str, Any]) -> bool:
    """Whether a lease's owner was a process of this machine that has ended."""
    return bool(owner.get("boot")) and owner["boot"] == _boot() and _started(owner["pid"]) != owner["started"]


def _finished(path: Path) -> bool:
    try:
        return read_record(path).get("status") in FINISHED
    except ValueError:
        return False


@cache
def _boot() -> str | None:
    """This boot of this machine and the process namespace; None where the kernel does not name them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks since the boot; None where no process has this id."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
