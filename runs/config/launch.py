"""Where and how the runs of a command are done, and the settings of launchers.

None of it is part of a run's identity or configuration: a sweep can start with one launcher and continue with
another."""

from dataclasses import dataclass, field
from typing import Any

from runs.errors import UserError
from runs.tracking import Tracking


@dataclass
class Launcher:
    """The base of the launchers' settings. See conf/launcher."""

    name: str = "?"


@dataclass
class Serial(Launcher):
    """One run after another, each in a process of its own."""

    name: str = "serial"
    runs_per_device: int = 1  # how many runs of several commands may share a device


@dataclass
class Local(Launcher):
    """Runs at once on the devices of this machine, each in a process of its own."""

    name: str = "local"
    runs_per_device: int = 1  # how many runs share a device


@dataclass
class Slurm(Launcher):
    """An array of Slurm jobs, each with one worker. The names are submitit's, where it has one.

    Other options of sbatch (comment, exclude, mail_user ...) go into additional_parameters."""

    name: str = "slurm"
    executors: int | None = None  # how many at once; null: one a run, at most 8
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
    additional_parameters: Any = None  # a mapping: of sbatch: {exclude: node7}


@dataclass
class Ray(Launcher):
    """Ray workers."""

    name: str = "ray"
    executors: int | None = None  # how many at once; null: one a run, at most 8
    init: Any = None  # a mapping: of ray.init: {address: auto}
    remote: Any = None  # a mapping: of ray.remote: {num_gpus: 1}


LAUNCHERS = (Serial, Local, Slurm, Ray)
MODES = (None, "online", "offline", "off")


@dataclass
class Launch:
    """Where and how the runs of a command are done."""

    launcher: Launcher = field(default_factory=Serial)
    tracking: Tracking = field(default_factory=Tracking)
    redo: bool = False  # whether runs that have a record are done again; what they left is set aside
    table: bool = True  # whether a sweep ends with the table of its runs


def from_plain(values: dict[str, Any]) -> Launch:
    """From the plain values of a composed configuration. Raises UserError for a value that is not allowed."""
    settings, kinds = dict(values["launcher"]), {of.name: of for of in LAUNCHERS}
    if settings["name"] not in kinds:
        raise UserError(f"launcher.name={settings['name']}: should be one of {', '.join(kinds)}")
    try:
        launcher = kinds[settings["name"]](**settings)
    except TypeError:
        raise UserError(f"launcher.name={settings['name']}: launcher={settings['name']} chooses it") from None
    if values["tracking"]["mode"] not in MODES:
        raise UserError(
            f"tracking.mode={values['tracking']['mode']}: should be one of null, online, offline, off"
        )
    rest = {key: values[key] for key in ("redo", "table")}
    launch = Launch(launcher, Tracking(**values["tracking"]), **rest)
    for key in ("runs_per_device", "executors"):
        if (count := settings.get(key)) is not None and count < 1:
            raise UserError(f"launcher.{key}={count}: should be at least 1")
    for key in ("init", "remote", "additional_parameters"):
        if not isinstance(settings.get(key), dict | None):
            raise UserError(f"launcher.{key}={settings[key]}: should be a mapping, such as {{a: b}}")
    return launch
