"""The devices of this machine, and leases on them: two commands share one only where the user asks for it."""

import contextlib
import functools
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from runs import gpus


def devices(device: str) -> list[str]:
    """The devices that `device=` may mean here: CUDA devices by their UUIDs where NVIDIA's driver names them,
    or cpu, or mps. Raises DeviceError where torch cannot use a GPU that is here, or asked for."""
    if device == "mps":
        gpus.check_mps()
    if device in ("cpu", "mps"):
        return [device]
    if device == "auto" and not gpus.may_be_here() and not gpus.named():
        return ["cpu"]
    if not gpus.check_usable(device):
        return ["cpu"]
    import torch

    return gpus.visible() or [str(index) for index in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class DeviceLease:
    """A device that this process holds. The kernel releases it when the process ends, however it does."""

    name: str
    lock: FileLock

    def use(self) -> None:
        """Makes this the only device that processes started from now on see."""
        if self.name not in ("cpu", "mps"):
            os.environ["CUDA_VISIBLE_DEVICES"] = self.name


def lease_device(names: list[str], runs_per_device: int) -> DeviceLease:
    """The least shared of these devices; waits while each has `runs_per_device` runs, over all commands of
    this machine."""
    if note := waiting_note(names, runs_per_device):
        print(note, flush=True)
    while (lease := _free_device(names, runs_per_device)) is None:
        time.sleep(2)
    return lease


@functools.cache
def take_device(device: str, runs_per_device: int) -> DeviceLease | None:
    """A GPU for the rest of this process; None where `device=` means cpu or mps, which commands share."""
    names = devices(device)
    if {"cpu", "mps"} & set(names):
        return None
    lease = lease_device(names, runs_per_device)
    lease.use()
    return lease


def waiting_note(names: list[str], runs_per_device: int) -> str | None:
    """A line for the user where no device is free now; None where one is."""
    if lease := _free_device(names, runs_per_device):
        lease.lock.release()
        return None
    return (
        f"every device is in use by another command here ({', '.join(names)}): waiting for one. "
        f"launcher.runs_per_device={runs_per_device + 1} shares them"
    )


def _free_device(names: list[str], runs_per_device: int) -> DeviceLease | None:
    """The least shared of the devices; None where all are taken."""
    # Another user's program may have filled one
    emptiest = sorted(names, key=gpus.free_bytes, reverse=True)
    for share in range(runs_per_device):
        for name in emptiest:
            if lock := _lock(f"{name}.{share}"):
                return DeviceLease(name, lock)
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
