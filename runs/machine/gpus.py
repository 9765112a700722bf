"""This machine's devices: its processor, its GPUs as NVIDIA's driver names them, and
whether torch can use them."""

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
from typing import Literal, NamedTuple, TypeVar

import pynvml

from runs.command.errors import DeviceError, UserError
from runs.machine.locks import Lock

T = TypeVar("T")
#: The device files that NVIDIA's driver makes, a file a GPU.
DEVICE_FILES = "/dev/nvidia[0-9]*"


def attribute_of_all(attribute: Literal["UUID", "Name"]) -> list[str]:
    """This attribute of each of NVIDIA's GPUs, in PCI order; empty where the driver does
    not answer."""
    read_attribute = getattr(pynvml, f"nvmlDeviceGet{attribute}")

    def read_all() -> list[str]:
        numbers = range(pynvml.nvmlDeviceGetCount())
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, numbers)
        return [str(read_attribute(handle)) for handle in handles]

    return _ask_driver(read_all, [])


def visible_uuids() -> list[str]:
    """The UUIDs of the GPUs that CUDA_VISIBLE_DEVICES names, in its order; of all GPUs
    where it is not set. MIG slices keep the names that they have there."""
    uuids = attribute_of_all("UUID")
    names = gpus_of_environment()
    if names is None:
        return uuids
    # the variable may have numbers or UUIDs
    uuid_by_number = {str(number): uuid for number, uuid in enumerate(uuids)}
    return [uuid_by_number.get(name, name) for name in names]


def free_bytes(uuid: str) -> float:
    """How many bytes are free on the GPU with this UUID; 0 where the driver does not
    answer."""

    def read_free() -> float:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return float(pynvml.nvmlDeviceGetMemoryInfo(handle).free)

    return _ask_driver(read_free, 0.0)


class TakenGpu(NamedTuple):
    """A GPU that a run may use, by its UUID or number, and the lock that this process
    holds for it."""

    name: str
    lock: Lock


def take(names: Sequence[str], share: int) -> TakenGpu | None:
    """Takes one of these GPUs for another run: the one with the fewest runs. None if
    there are no names, or while every GPU has `share` runs already.

    share: how many runs of all commands of this machine may share a GPU. Raises
    UserError where no GPU can be locked."""
    if not names:
        return None
    folder = lock_folder()
    errors = list[OSError]()
    # by free memory, which another user's program may have filled
    emptiest_first = sorted(names, key=free_bytes, reverse=True)
    # Each GPU has a lock for each run that may share it. They are tried in this order:
    # the first lock of every GPU, then the second of every GPU, and so on.
    slots = list(itertools.product(range(share), emptiest_first))
    for number, name in slots:
        # a slice's name may have a slash
        file_name = f"{name.replace('/', '-')}.{number}"
        lock = Lock(folder / file_name, mode=0o666)
        try:
            if lock.take(seconds=0):
                return TakenGpu(name, lock)
        except OSError as error:
            # such as another user's file, which the kernel protects
            errors.append(error)
    if len(errors) == len(slots):
        raise _cannot_lock(folder, errors[0])
    return None


def lock_folder() -> Path:
    """The folder of the locks on devices. All users of this machine share one; where
    another user could rename files in it, this user gets a private one. Raises
    UserError where neither can be used."""
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
    """Creates a folder where it is missing. Returns None where it can be used, or else
    why not: it cannot be created, or another user owns it and may rename files in
    it."""
    try:
        # nobody else can use it until it has its mode, which a umask would change here
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        return error
    try:
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid():
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    # in a sticky folder only the owner of a file may rename it; user 0 is root
    is_sticky = status.st_mode & stat.S_ISVTX
    if status.st_uid in (0, os.geteuid()) or is_sticky:
        return None
    return PermissionError(errno.EACCES, "another user's folder")


def _cannot_lock(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"no GPU can be locked in {folder} ({error.strerror}). Fix that, or name"
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
            # the first core's: each core repeats them
            if values.get(name.strip()) == "":
                values[name.strip()] = value.strip()
    if not all(values.values()):  # not Linux, or not x86
        return processor()
    maker, family, model = values.values()
    return f"{maker} family {family} model {model}"


def driver_version() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    return _ask_driver(lambda: str(pynvml.nvmlSystemGetDriverVersion()), None)


def _ask_driver(question: Callable[[], T], default: T) -> T:
    """What `question`, a function that calls NVIDIA's library, returns; `default` where
    there is no driver or no GPU."""
    try:
        pynvml.nvmlInit()
        try:
            return question()
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return default


def gpus_of_environment() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names, none where it hides all; None where it
    is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = map(str.strip, text.split(","))
    return [name for name in names if name not in ("", "-1")]


def uses_cuda(device: str) -> bool:
    """Whether a device (auto, cuda, mps or cpu) means a CUDA GPU on this machine.
    Raises DeviceError for mps or cuda where torch can use none, and for auto where there
    is a GPU, or CUDA_VISIBLE_DEVICES names one, that torch cannot use: a run would train
    on the CPU for months."""
    import torch

    if device == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "device=mps: torch sees no GPU of Apple's here. device=auto takes what there is"
        )
    if device in ("cpu", "mps"):
        return False
    if torch.cuda.is_available():
        return True
    chosen_gpus = gpus_of_environment()
    if chosen_gpus is None:
        chosen_gpus = attribute_of_all("UUID") or glob.glob(DEVICE_FILES)
    if device == "auto" and not chosen_gpus:
        return False
    build = f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'})"
    driver = driver_version() or "none"
    variable = os.environ.get("CUDA_VISIBLE_DEVICES", "(not set)")
    raise DeviceError(
        f"device={device}: {build} can use no GPU here (driver {driver}, "
        f"CUDA_VISIBLE_DEVICES={variable}). Install a build of torch for this driver, "
        "or give device=cpu"
    )


def devices(device: str) -> list[str]:
    """The devices that `device=` may mean here: CUDA devices by their UUIDs, or by
    numbers where NVIDIA's driver does not name them, or cpu, or mps. Raises DeviceError
    where torch cannot use a GPU that is here, or asked for."""
    if not uses_cuda(device):
        return ["mps" if device == "mps" else "cpu"]
    import torch

    uuids = visible_uuids()
    if uuids:
        return uuids
    return [str(number) for number in range(torch.cuda.device_count())]
