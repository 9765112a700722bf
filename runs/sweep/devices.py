"""The devices of this machine, and who has which: two commands do not meet on one by accident."""

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
    gives it back when the process ends, however it does."""

    def __init__(self, names: list[str], runs_per_device: int) -> None:
        """Takes the least shared of the devices, and waits while all are taken."""
        waits = False
        while True:
            for share in range(runs_per_device):
                for name in names:
                    lock = _lock(f"{name}.{share}")
                    if lock is not None:
                        self.name, self._lock = name, lock
                        return
            if not waits:
                waits = True
                print(
                    f"every device is in use by another command here ({', '.join(names)}): waiting for one. "
                    f"launcher.runs_per_device={runs_per_device + 1} shares them",
                    flush=True,
                )
            time.sleep(2)

    def use(self) -> None:
        """Makes this the one device that processes begun from here on see."""
        if self.name not in ("cpu", "mps"):
            os.environ["CUDA_VISIBLE_DEVICES"] = self.name

    def release(self) -> None:
        """For the next one."""
        self._lock.release()


@functools.cache
def take_device(device: str, runs_per_device: int) -> DeviceLease | None:
    """For the rest of this process, where there is a choice: two commands do not meet on one GPU by
    accident."""
    names = devices(device)
    if {"cpu", "mps"} & set(names):
        return None
    lease = DeviceLease(names, runs_per_device)
    lease.use()
    return lease


def _lock(name: str) -> FileLock | None:
    """Holds a lock of this machine; None where another process, whoever's, holds it."""
    folder = Path(tempfile.gettempdir()) / "vera-bench-devices"
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(PermissionError):  # somebody else was first
            folder.chmod(0o1777)  # other users' runs count, too
    lock = FileLock(folder / name, timeout=0, mode=0o666, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
