"""The devices of this machine, and who has which: two commands do not meet on one by accident."""

import contextlib
import functools
import glob
import os
import shutil
import tempfile
import time
from pathlib import Path

import pynvml
from filelock import FileLock, Timeout


def devices(device: str) -> list[str]:
    """The devices that `device=` may mean here: CUDA devices by their UUIDs where these can be told, or cpu,
    or mps."""
    if device in ("cpu", "mps"):
        return [device]
    if not (
        shutil.which("nvidia-smi")
        or any(glob.glob(path) for path in ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg"))
    ):
        return ["cpu"]  # without waiting for torch, which takes two seconds to say so
    import torch

    if not torch.cuda.is_available():
        return ["cpu"]
    uuids, visible = _uuids(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [uuids.get(word, word) for word in visible.split(",") if word]
    return list(uuids.values()) or [str(index) for index in range(torch.cuda.device_count())]


def _uuids() -> dict[str, str]:
    """The GPUs' UUIDs by their numbers; empty where NVIDIA's driver does not say."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return {str(index): pynvml.nvmlDeviceGetUUID(handle) for index, handle in enumerate(handles)}
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


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
