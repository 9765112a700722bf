"""Where and how the runs of a command are done, and the settings of launchers.

None of it is part of a run's identity or configuration: a sweep can start with one launcher and continue with
another."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from runs.command import mistake
from runs.config.schema import Count
from runs.errors import UserError
from runs.tracking import Tracking

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


@dataclass(config=STRICT)
class Serial:
    """One run after another, each in a process of its own."""

    name: Literal["serial"] = "serial"
    runs_per_device: Count = 1  # how many runs of several commands may share a device


@dataclass(config=STRICT)
class Local:
    """Runs at once on the devices of this machine, each in a process of its own."""

    name: Literal["local"] = "local"
    runs_per_device: Count = 1  # how many runs share a device


@dataclass(config=STRICT)
class Slurm:
    """An array of Slurm jobs, each with one worker. The names are submitit's, where it has one.

    Other options of sbatch (comment, exclude, mail_user ...) go into additional_parameters."""

    name: Literal["slurm"] = "slurm"
    executors: Count | None = None  # how many at once; null: one a run, at most 8
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = 60  # of one job, in minutes; then it is queued again, and continues
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gres: str | None = None
    mem_gb: float | None = None  # of a node, in GB
    nodes: int = 1
    array_parallelism: int = 256  # jobs of an array that run at once
    max_num_timeout: int = 1000  # how often a job goes back into the queue
    signal_delay_s: int = 120  # how many seconds before its time limit a job gets a signal
    setup: list[str] = field(default_factory=list)  # shell commands before the executor's
    additional_parameters: dict[str, Any] | None = None  # of sbatch: {exclude: node7}


@dataclass(config=STRICT)
class Ray:
    """Ray workers."""

    name: Literal["ray"] = "ray"
    executors: Count | None = None  # how many at once; null: one a run, at most 8
    init: dict[str, Any] | None = None  # of ray.init: {address: auto}
    remote: dict[str, Any] | None = None  # of ray.remote: {num_gpus: 1}


Launcher = Annotated[Serial | Local | Slurm | Ray, Field(discriminator="name")]


@dataclass(config=STRICT)
class Launch:
    """Where and how the runs of a command are done."""

    launcher: Launcher = field(default_factory=Serial)
    tracking: Tracking = field(default_factory=Tracking)
    redo: bool = False  # whether runs that have a record are done again; what they left is set aside
    table: bool = True  # whether a sweep ends with the table of its runs


def from_plain(values: dict[str, Any]) -> Launch:
    """From the plain values of a composed configuration. Raises UserError for a value that is not allowed."""
    try:
        return TypeAdapter(Launch).validate_python(values)
    except ValidationError as error:
        name = values["launcher"].get("name")
        raise UserError(mistake(error).replace(f"launcher.{name}.", "launcher.")) from None
