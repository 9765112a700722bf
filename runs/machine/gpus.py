"""This machine's devices: its processor, NVIDIA's GPUs by their driver, and whether
torch can use them."""

import contextlib
import errno
import glob
import itertools
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import pynvml

from runs.command.errors import DeviceError, UserError
from runs.machine.locks import Lock

T = TypeVar("T")
#: Where NVIDIA's driver shows.
DRIVER = "/dev/nvidia[0-9]*"


def cards(attribute: str) -> list[str]:
    """The UUID or Name of each of NVIDIA's GPUs, in PCI order; empty where the driver
    does not answer."""
    read_attribute = getattr(pynvml, f"nvmlDeviceGet{attribute}")

    def read_all() -> list[str]:
        handles = map(
            pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount())
        )
        return [str(read_attribute(handle)) for handle in handles]

    return _answer(read_all, [])


def visible() -> list[str]:
    """The UUIDs of the GPUs in CUDA_VISIBLE_DEVICES, in its order, MIG slices as they
    are; else of all."""
    uuids = cards("UUID")
    names = gpus_of_environment()
    if names is None:
        return uuids
    by_number = {str(number): uuid for number, uuid in enumerate(uuids)}
    return [by_number.get(name, name) for name in names]


def free_bytes(name: str) -> float:
    """Bytes that are free on a GPU, by its UUID; 0 where the driver does not answer."""
    memory, handle = pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlDeviceGetHandleByUUID
    return _answer(lambda: float(memory(handle(name)).free), 0.0)


class TakenGpu(NamedTuple):
    """A GPU that a run has, and the lock on it."""

    name: str
    lock: Lock


def take(names: Sequence[str], share: int) -> TakenGpu | None:
    """The least shared of these GPUs, for a run; None where there are none, and while
    each has `share` runs, over all commands of this machine. Raises UserError where
    none can be locked."""
    if not names:
        return None
    folder = lock_folder()
    errors = list[OSError]()
    # Another user's program may have filled one
    emptiest = sorted(names, key=free_bytes, reverse=True)
    places = list(itertools.product(range(share), emptiest))
    for number, name in places:
        # a slice's name may have a slash
        file_name = f"{name.replace('/', '-')}.{number}"
        lock = Lock(folder / file_name, mode=0o666)
        try:
            if lock.take(0):
                return TakenGpu(name, lock)
        except OSError as error:
            # such as another user's, which the kernel protects
            errors.append(error)
    if len(errors) == len(places):
        raise _cannot_lock(folder, errors[0])
    return None


def lock_folder() -> Path:
    """The folder of the locks on devices: one for all users of this machine, or this
    user's own where another user could change the names in that one. Raises UserError
    where there is neither."""
    shared = Path(tempfile.gettempdir()) / "vera-bench-devices"
    private = shared.with_name(f"{shared.name}-{os.geteuid()}")
    # other users' runs take locks here, too
    if _make_folder(shared, mode=0o1777) is None:
        return shared
    error = _make_folder(private, mode=0o700)
    if error:
        raise _cannot_lock(private, error)
    return private


def _make_folder(folder: Path, mode: int) -> OSError | None:
    """Creates a folder where it is missing. Returns what is wrong with it: it cannot be
    created, or another user owns it and may rename what this user creates in it."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        return error
    try:
        about = os.fstat(descriptor)
        if about.st_uid == os.geteuid():
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    is_sticky = about.st_mode & stat.S_ISVTX
    if about.st_uid in (0, os.geteuid()) or is_sticky:
        return None
    return PermissionError(errno.EACCES, "another user's folder")


def _cannot_lock(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"no GPU can be locked in {folder} ({error.strerror}). Mend that, or name"
        " another folder: TMPDIR="
    )


def processor() -> str:
    """The processor of this machine, as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_model() -> str:
    """The maker, family and model of this machine's processor, such as "GenuineIntel
    family 6 model 143". Clouds give several models one name, and they round
    differently."""
    values = {"vendor_id": "", "cpu family": "", "model": ""}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if values.get(name.strip()) == "":
                values[name.strip()] = value.strip()
    if not all(values.values()):  # not Linux, or not x86
        return processor()
    maker, family, model = values.values()
    return f"{maker} family {family} model {model}"


def driver() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    return _answer(lambda: str(pynvml.nvmlSystemGetDriverVersion()), None)


def _answer(question: Callable[[], T], otherwise: T) -> T:
    """What NVIDIA's library answers; `otherwise` where it has no driver or no GPU to
    ask."""
    try:
        pynvml.nvmlInit()
        try:
            return question()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return otherwise


def gpus_of_environment() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; None where it is not set. Empty: none
    is to be used."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = map(str.strip, text.split(","))
    return [name for name in names if name not in ("", "-1")]


def check_usable(device: str) -> bool:
    """Whether a device (auto, cuda, mps or cpu) means a GPU of CUDA here. Raises
    DeviceError where one is here or in CUDA_VISIBLE_DEVICES, and torch cannot use it: a
    run would train on the CPU for months."""
    import torch

    if device == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "device=mps: torch sees no GPU of Apple's here. device=auto takes what there is"
        )
    if device in ("cpu", "mps") or torch.cuda.is_available():
        return device not in ("cpu", "mps")
    chosen_gpus = gpus_of_environment()
    if chosen_gpus is None:
        chosen_gpus = cards("UUID") or glob.glob(DRIVER)
    if device == "auto" and not chosen_gpus:
        return False
    build = f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'})"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "(not set)")
    seen = f"driver {driver() or 'none'}, CUDA_VISIBLE_DEVICES={hidden}"
    mend = "Install a build of torch for this driver, or give device=cpu"
    raise DeviceError(f"device={device}: {build} can use no GPU here ({seen}). {mend}")


def devices(device: str) -> list[str]:
    """The devices that `device=` may mean here: CUDA devices by their UUIDs where
    NVIDIA's driver names them, or cpu, or mps. Raises DeviceError where torch cannot
    use a GPU that is here, or asked for."""
    if not check_usable(device):
        return ["mps" if device == "mps" else "cpu"]
    import torch

    return visible() or [str(index) for index in range(torch.cuda.device_count())]
