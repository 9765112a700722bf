"""The devices of this machine, and who has which: two commands do not meet on one by accident."""

import contextlib
import fcntl
import glob
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path


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

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return ["cpu"]
    uuids: dict[str, str] = {}
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
        lines = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=30
        ).stdout.splitlines()
        uuids = dict(line.split(", ") for line in lines if line)
    if visible is not None:
        return [uuids.get(word, word) for word in visible.split(",") if word]
    return list(uuids.values()) or [str(index) for index in range(torch.cuda.device_count())]


class DeviceLease:
    """A device for as many runs as `runs_per_device` says, over all commands of this machine. The kernel
    gives it back when the process ends, however it does."""

    def __init__(self, names: list[str], runs_per_device: int) -> None:
        """Takes a place on the least shared of the devices, and waits while there is none."""
        told = False
        while True:
            for place in range(runs_per_device):
                for name in names:
                    file = _lock(f"{name}.{place}")
                    if file is not None:
                        self.name, self._file = name, file
                        return
            if not told:
                told = True
                print(
                    f"every device is in use by another command here ({', '.join(names)}): waiting for one. "
                    f"runs_per_device={runs_per_device + 1} shares them",
                    flush=True,
                )
            time.sleep(2)

    def use(self) -> None:
        """Makes this the one device that processes begun from here on see."""
        if self.name not in ("cpu", "mps"):
            os.environ["CUDA_VISIBLE_DEVICES"] = self.name

    def release(self) -> None:
        """For the next one."""
        os.close(self._file)


def _lock(name: str) -> int | None:
    folder = Path(tempfile.gettempdir()) / "vera-bench-devices"
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)  # other users' runs count, too
    path = folder / name
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):
            os.fchmod(file, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    os.set_inheritable(file, False)
    return file
