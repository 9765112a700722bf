"""Who does a run: leases as files, so that of all executors that see the same folder one does it, on whatever
machine.

outputs/leases/RUN.GENERATION is a lease: who holds it (a token), and a counter that its owner raises while it
lives. Each is created whole and by one alone (a hard link fails where the name is taken). A lease whose
counter has stood still for `lease_seconds` of the watcher's own monotonic clock is taken over by creating the
next generation: no two clocks are ever compared, so none of them may jump and change anything. The highest
generation owns the run; an owner that comes back late finds a higher one, or its own gone, and is refused
before it writes. Its counter goes through an open file, so it can raise nobody else's.

What no executor writes has no owner who could come back. A name that is not a lease's to the letter (RUN.007)
is none. By a lease's name whatever it is, garbage, a folder, a pipe, is nobody's lease: it grows old like any
other, is followed by the next generation, and is never opened unless it is a file."""

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

#: Of lease_seconds; a lease of a longer one is nobody's.
LONGEST = 3600
#: Where the counter stands in a lease, as a text of fixed width.
BEAT = b'{"beat": "'
WIDTH = 12
#: A larger file is no lease.
LARGEST = 2**16
#: Of a lease, what each key holds.
KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("beat", "token", "host"), (str,)),
    "pid": (int,),
    "lease_seconds": (int, float),
    **dict.fromkeys(("started", "boot"), (str, type(None))),
}
#: How generations are written, and the highest. A run is given up long before it has had so many owners
#: (runs/sweep/executor.py).
GENERATION, LAST = re.compile("[1-9][0-9]{0,8}"), 10**9 - 1


class LostLeaseError(Exception):
    """Another executor does this run now, or has done it: what this one has is not written."""


@dataclass
class Lease:
    """A lease that was taken. It goes to the run's process, which asks `check` before it writes."""

    path: Path
    token: str
    _file: int = field(default=-1, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": -1}  # the counter is the executor's to raise

    @property
    def run_id(self) -> str:
        """Of the run that is leased."""
        return self.path.stem

    @property
    def generation(self) -> int:
        """1 for a run's first owner; each one more is an owner that fell silent."""
        return int(self.path.suffix[1:])

    def check(self) -> None:
        """Raises LostLeaseError unless this is still the run's owner."""
        held = generations(self.path.parent, self.run_id)
        owner = _read(self.path)
        if not held or max(held) != self.generation or owner is None or owner["token"] != self.token:
            raise LostLeaseError(
                f"run {self.run_id} was taken over by another executor, since this one was silent for too"
                " long"
            )

    def beat(self, count: int) -> None:
        """Raises the counter; a file system that is gone for a moment is asked again by the next beat."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, f"{count:0{WIDTH}}".encode(), len(BEAT))
            os.fsync(self._file)  # which is what shows it to other machines

    def release(self) -> None:
        """Gives the run back; what earlier owners left goes first, or it would count as a lease of its
        own."""
        with contextlib.suppress(OSError):
            os.close(self._file)
        owner = _read(self.path)
        if owner is None or owner["token"] != self.token:
            return
        for generation in sorted(generations(self.path.parent, self.run_id)):
            if generation <= self.generation:
                remove(self.path.with_suffix(f".{generation}"))

    def write(self, output: str | Path, record: Record) -> None:
        """Writes the run's record, whole or not at all. Raises LostLeaseError for a late owner, and where a
        finished record is there already: the first one stays. UserError where a folder or the like is in its
        place: that stays, too."""
        self.check()
        path, text = record_path(output, self.run_id), record_text(record)
        if why := obstacle(path):
            raise UserError(why)
        if path.exists() and not _finished(path):
            # One that failed, or is damaged, makes room. It is looked at again once it is aside: since this
            # process looked, it may have slept, and another owner may have written. See sweep_up_dead
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
            # The latter: a later owner has swept up what was to be linked
            raise LostLeaseError(f"run {self.run_id} has a record already") from None


class Heart:
    """Raises a lease's counter from a thread of its own; `lost` once the run has another owner."""

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
    """Holds a lease for a block. Waits for whoever has it, and says so."""
    watcher, told = Watcher(output, lease_seconds), False
    while (lease := watcher.take(name)) is None:
        holder = watcher.holder(name)
        if holder and not told:
            told = True
            print(f"{name}: {holder_words(holder)} has it: waiting", flush=True)
        time.sleep(min(1.0, lease_seconds / 8))
    with Heart(lease, lease_seconds):
        yield lease


def holder_words(holder: dict[str, Any]) -> str:
    """Who holds a lease: process 12 on host. Of one that no executor has written, where it is."""
    if "pid" not in holder:
        return f"the owner of a damaged lease ({holder['path']})"
    return f"process {holder['pid']} on {holder['host']}"


class Watcher:
    """Sees leases age and takes what is free."""

    def __init__(self, output: str | Path, lease_seconds: float) -> None:
        self.folder, self.lease_seconds = leases_folder(output), lease_seconds
        # What was seen, when last, for how long unchanged, and whether it ever changed.
        self._seen: dict[str, tuple[Any, float, float, bool]] = {}

    def take(self, run_id: str) -> Lease | None:
        """The run, unless another executor has it and lives."""
        held = generations(self.folder, run_id)
        top = max(held, default=0)
        before = _read(self._path(run_id, top)) if held else None
        if held and (before is None or not self._silent(run_id, top, before)):
            return None
        lease = self._create(self._path(run_id, top + 1))
        if lease is None:
            return None
        # Of two that came at once the higher generation has it, and what was judged silent must not have
        # ended well since.
        after = _read(self._path(run_id, top)) if held else None
        same = (before and before["token"]) == (after and after["token"])
        if max(generations(self.folder, run_id), default=0) != lease.generation or not same:
            lease.release()
            return None
        self._seen.pop(run_id, None)
        return lease

    def free(self, run_id: str) -> bool:
        """Whether `take` would try to have the run."""
        held = generations(self.folder, run_id)
        owner = _read(self._path(run_id, max(held))) if held else None
        return not held or (owner is not None and self._silent(run_id, max(held), owner))

    def undecided(self, run_id: str) -> bool:
        """Whether the run's lease may be a silent one: `take` has seen it, and has not seen its counter
        change."""
        seen = self._seen.get(run_id)
        return seen is not None and not seen[3]

    def forget(self, run_id: str) -> None:
        """Removes what dead executors left of a run that has its record. One that may live gives its lease
        back itself."""
        for partial in self.folder.glob(f".{run_id}.*"):
            remove(partial)
        held = generations(self.folder, run_id)
        owner = _read(self._path(run_id, max(held))) if held else None
        if owner and ("pid" not in owner or _dead(owner)):
            for generation in sorted(held):
                remove(self._path(run_id, generation))

    def holder(self, run_id: str) -> dict[str, Any] | None:
        """Who has the run: token, host and process. Of a damaged lease: token, and its path."""
        held = generations(self.folder, run_id)
        return _read(self._path(run_id, max(held))) if held else None

    def _silent(self, run_id: str, generation: int, owner: dict[str, Any]) -> bool:
        if generation == LAST:
            raise UserError(
                f"{self._path(run_id, LAST)}: no run has had so many owners. Delete it and run the same"
                " command again"
            )
        if _dead(owner):
            return True
        now, what = time.monotonic(), (generation, owner)
        seen, last, age, changed = self._seen.get(run_id, (what, now, 0.0, False))
        # One look counts for a quarter at most: if this process and the owner slept together, the owner gets
        # its chance.
        age = age + min(now - last, self.lease_seconds / 4) if seen == what else 0.0
        self._seen[run_id] = (what, now, age, changed or seen != what)
        # The owner raises its counter as often as its own lease_seconds say.
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
            # The latter: it was swept up, since the run has its record now
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
    found = (name.rpartition(".") for name in names)
    return [int(number) for stem, _, number in found if stem == run_id and GENERATION.fullmatch(number)]


def _read(path: Path) -> dict[str, Any] | None:
    """A lease: who holds it, and its counter. None where there is none (any more). Of what no executor has
    written: its path, and all of it as its token, so that it is nobody's and grows old while it stays the
    same."""
    damaged = {"token": "? a link", "path": str(path)}
    if os.path.islink(path):
        return damaged
    try:
        content = read_regular(path, LARGEST)
    except ValueError as error:
        missing = isinstance(error.__cause__, OSError) and error.__cause__
        if not missing:
            return damaged | {"token": f"? {error}"}
        if missing.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise missing from None
    try:
        found = json.loads(content)
        sound = found.keys() == KEYS.keys() and all(
            isinstance(found[key], kinds) for key, kinds in KEYS.items()
        )
        sound = sound and 0 < found["lease_seconds"] <= LONGEST
        if sound and type(found["pid"]) is int and 0 < found["pid"] < 2**31:
            return dict(found)
    except (ValueError, AttributeError, RecursionError):
        pass
    return damaged | {"token": f"? {content!r}"}


def lease_seconds(path: Path) -> float:
    """For how long the owner of a lease may be silent; 0 where nobody says so."""
    return float((_read(path) or {}).get("lease_seconds", 0.0))


def _dead(owner: dict[str, Any]) -> bool:
    """Whether a lease's owner was a process of this very machine, which is gone."""
    return bool(owner.get("boot")) and owner["boot"] == _boot() and _started(owner["pid"]) != owner["started"]


def _finished(path: Path) -> bool:
    try:
        return read_record(path).get("status") in FINISHED
    except ValueError:
        return False


@cache
def _boot() -> str | None:
    """This start of this machine, and the set of processes that are seen from here. None where that cannot be
    told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's own ticks since the machine's start; None if there is none of
    that number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
