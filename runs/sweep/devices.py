"""The devices of this machine, and leases on them: two commands share one only where the user asks for it."""

import contextlib
import functools
import os
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from runs import gpus


def devices(device: str) -> list[str]:
    """The devices that `device=` may mean here: CUDA devices by their UUIDs where NVIDIA's driver names them,
    or cpu, or mps. Raises DeviceError where a GPU is here that torch cannot use."""
    if device in ("cpu", "mps"):
        return [device]
    if device == "auto" and not gpus.may_be_here() and not gpus.named():
        return ["cpu"]
    if not gpus.check_usable(device):
        return ["cpu"]
    import torch

    uuids, named = gpus.uuids(), gpus.named()
    if named is not None:
        return [uuid for word in named for uuid in uuids.get(word, [word])]
    return [uuid for group in uuids.values() for uuid in group] or [
        str(index) for index in range(torch.cuda.device_count())
    ]


class DeviceLease:
    """A device for as many runs as `runs_per_device` says, over all commands of this machine. The kernel
    releases it when the process ends, however it does."""

    def __init__(self, names: list[str], runs_per_device: int) -> None:
        """Takes the least shared of the devices, and waits while all are taken."""
        lease, waits = _lease(names, runs_per_device), False
        while lease is None:
            if not waits:
                print(_waiting_words(names, runs_per_device), flush=True)
            waits = True
            time.sleep(2)
            lease = _lease(names, runs_per_device)
        self.name, self._lock = lease

    def use(self) -> None:
        """Makes this the only device that processes started from now on see."""
        if self.name not in ("cpu", "mps"):
            os.environ["CUDA_VISIBLE_DEVICES"] = self.name

    def release(self) -> None:
        """Gives the device back."""
        self._lock.release()


@functools.cache
def take_device(device: str, runs_per_device: int) -> DeviceLease | None:
    """A GPU for the rest of this process; None where `device=` means cpu or mps, which commands share."""
    names = devices(device)
    if {"cpu", "mps"} & set(names):
        return None
    lease = DeviceLease(names, runs_per_device)
    lease.use()
    return lease


def note_of_waiting(names: list[str], runs_per_device: int) -> str | None:
    """A line for the user where no device is free now: whoever wants one has to wait."""
    lease = _lease(names, runs_per_device)
    if lease is None:
        return _waiting_words(names, runs_per_device)
    lease[1].release()
    return None


def _waiting_words(names: list[str], runs_per_device: int) -> str:
    return (
        f"every device is in use by another command here ({', '.join(names)}): waiting for one. "
        f"launcher.runs_per_device={runs_per_device + 1} shares them"
    )


def _lease(names: list[str], runs_per_device: int) -> tuple[str, FileLock] | None:
    """The least shared of the devices, with the lock that holds it; None where all are taken."""
    for share in range(runs_per_device):
        for name in names:
            lock = _lock(f"{name}.{share}")
            if lock is not None:
                return name, lock
    return None


def _lock(name: str) -> FileLock | None:
    """Acquires a lock of this machine; None where another process, of any user, holds it."""
    folder = Path(tempfile.gettempdir()) / "vera-bench-devices"
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(PermissionError):  # another user has created it
            folder.chmod(0o1777)  # other users' runs take locks here, too
    lock = FileLock(folder / name, timeout=0, mode=0o666, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
