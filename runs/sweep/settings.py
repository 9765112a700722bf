"""Where and how the runs of a command are done, and what launchers can be told.

None of it is part of a run's identity or configuration: a sweep that was begun with one launcher goes on with
another."""

from dataclasses import dataclass, field
from typing import Any

from runs.errors import UserError

TRACKING = (None, "online", "offline", "off")


@dataclass
class Serial:
    """One run after another, here."""

    name: str = "serial"
    runs_per_device: int = 1  # how many runs of several commands may share a device


@dataclass
class Local:
    """One executor for each place on each device of this machine."""

    name: str = "local"
    runs_per_device: int = 1  # how many runs may share a device


@dataclass
class Slurm:
    """An array of Slurm jobs, each with one executor. The names are submitit's, where it has one.

    What sbatch knows beside these (comment, exclude, mail_user ...) goes into additional_parameters."""

    name: str = "slurm"
    executors: int | None = None  # how many at once; null: one a run, at most 8
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = 60  # of one job, in minutes: it goes back into the queue and goes on where it was
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gres: str | None = None
    mem_gb: float | None = None  # of a node, in GB
    nodes: int = 1
    array_parallelism: int = 256  # jobs of an array that run at once
    max_num_timeout: int = 1000  # how often a job goes back into the queue
    signal_delay_s: int = 120  # how long before its time is over a job is told, in seconds
    setup: list[str] = field(default_factory=list)  # shell commands before the executor's
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # of sbatch: {exclude: node7}


@dataclass
class Ray:
    """Ray workers, each with one executor."""

    name: str = "ray"
    executors: int | None = None  # how many at once; null: one a run, at most 8
    init: dict[str, Any] = field(default_factory=dict)  # of ray.init: {address: auto}
    remote: dict[str, Any] = field(default_factory=dict)  # of ray.remote: {num_gpus: 1}


#: The launchers by the names that a command gives them.
LAUNCHERS: dict[str, type[Serial | Local | Slurm | Ray]] = {
    "serial": Serial,
    "local": Local,
    "slurm": Slurm,
    "ray": Ray,
}


@dataclass
class Launch:
    """Where and how the runs of a command are done."""

    launcher: Serial | Local | Slurm | Ray = field(default_factory=Serial)
    lease_seconds: float = 30.0  # how long an executor may be silent before another takes over its run
    tracking: str | None = None  # W&B: online, offline, off; null: online where logged in, else offline
    redo: bool = False  # whether runs that have a record are done again; what they left is set aside

    def check(self) -> None:
        """Raises UserError for a value that cannot be meant."""
        if self.tracking not in TRACKING:
            raise UserError(f"tracking={self.tracking}: should be one of online, offline, off, or null")
        if not 1 <= self.lease_seconds < float("inf"):
            raise UserError(f"lease_seconds={self.lease_seconds:g}: should be at least 1")
        for key in ("runs_per_device", "executors"):
            value = getattr(self.launcher, key, None)
            if value is not None and value < 1:
                raise UserError(f"{key}={value}: should be at least 1")
