"""The GPUs of this machine: which ones NVIDIA's driver names, and whether torch can use them."""

import glob
import os
from typing import Any

import pynvml

from runs.errors import DeviceError

#: Where a driver of a GPU shows: NVIDIA's, AMD's, and that of Windows' subsystem for Linux.
DRIVERS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")


def may_be_here() -> bool:
    """Whether this machine may have a GPU. Takes no time; torch needs two seconds to be asked."""
    return any(glob.glob(path) for path in DRIVERS) or bool(uuids())


def uuids() -> dict[str, list[str]]:
    """The UUIDs of NVIDIA's GPUs by their numbers (PCI order); of a GPU that is cut into slices (MIG), those
    of its slices. Empty where the driver does not answer."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return {
            str(index): _slices(handle) or [pynvml.nvmlDeviceGetUUID(handle)]
            for index, handle in enumerate(handles)
        }
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


def _slices(handle: Any) -> list[str]:
    """The UUIDs of a GPU's MIG slices; none where it is whole."""
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) if current else 0
    except pynvml.NVMLError:  # a GPU that has no MIG
        return []
    slices = []
    for index in range(count):
        try:
            slices.append(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
        except pynvml.NVMLError:  # fewer than there may be
            continue
    return slices


def named() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; None where it is not set. Empty: none is to be used."""
    words = os.environ.get("CUDA_VISIBLE_DEVICES")
    if words is None:
        return None
    return [word for word in (part.strip() for part in words.split(",")) if word and word != "-1"]


def check_usable(device: str) -> bool:
    """Whether device=auto or device=cuda means a GPU here. Raises DeviceError where a GPU is here, or is
    named by CUDA_VISIBLE_DEVICES, and torch cannot use it: a run would train on the CPU for months."""
    import torch

    if torch.cuda.is_available():
        return True
    wanted, here = named(), uuids() or glob.glob(DRIVERS[0])
    if device == "auto" and not (wanted if wanted is not None else here):
        return False
    if not here and not wanted:
        raise DeviceError(f"device={device}: no GPU is here that torch sees. device=auto takes what there is")
    which = f"CUDA_VISIBLE_DEVICES={','.join(wanted)}" if wanted else "this machine has a GPU"
    raise DeviceError(f"{which}, but torch {torch.__version__} cannot use it: {_why()}, or give device=cpu")


def _why() -> str:
    import torch

    if torch.version.cuda is None:
        return "it is a build for the CPU. Install torch's build for CUDA"
    return (
        f"its CUDA {torch.version.cuda} may need a newer driver than {driver() or 'the one here'}. Install a"
        " build of torch for an older CUDA"
    )


def driver() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
