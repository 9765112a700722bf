"""The devices of this machine, and locks on them: two commands share one only where the user asks for it."""

import contextlib
import tempfile
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


@dataclass(eq=False)
class Place:
    """A place for one run at a time. gpus: to choose from; none on a CPU, or where a scheduler has chosen.
    name: its own."""

    gpus: list[str]
    runs_per_device: int = 1
    name: str | None = None
    _lock: FileLock | None = None

    def take(self) -> bool:
        """Takes the least shared GPU, if it has none yet. Returns False while all have `runs_per_device`
        runs, over all commands of this machine."""
        if not self.gpus or self.name:
            return True
        # Another user's program may have filled one
        emptiest = sorted(self.gpus, key=gpus.free_bytes, reverse=True)
        for share in range(self.runs_per_device):
            for name in emptiest:
                if lock := _lock(f"{name}.{share}"):  # the kernel releases it when this process ends
                    self.name, self._lock = name, lock
                    return True
        return False

    def release(self) -> None:
        """Gives the GPU back."""
        if self._lock:
            self._lock.release()
        self.name = self._lock = None


def places(device: str, runs_per_device: int, every: bool) -> list[Place]:
    """The places of this machine for runs with this `device=`; only one unless every."""
    names = devices(device)
    count = len(names) * runs_per_device if every else 1
    return [Place([] if {"cpu", "mps"} & set(names) else names, runs_per_device) for _ in range(count)]


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
