"""Where and how the runs of a command are done: launchers (conf/launcher), W&B (conf/tracking), leases.

None of it is part of a run's identity or configuration: a sweep that was begun with one launcher goes on with
another."""

from dataclasses import dataclass, field
from typing import Any

from runs.errors import UserError


@dataclass
class Launcher:
    """Starts executors. See conf/launcher for what each key means."""

    name: str = "?"


@dataclass
class Serial(Launcher):
    """One run after another, in this process."""

    name: str = "serial"
    runs_per_device: int = 1


@dataclass
class Local(Launcher):
    """A process for each device of this machine."""

    name: str = "local"
    runs_per_device: int = 1


@dataclass
class Slurm(Launcher):
    """Slurm jobs, by submitit."""

    name: str = "slurm"
    executors: int | None = None
    partition: str | None = None


@dataclass
class Ray(Launcher):
    """Ray workers."""

    name: str = "ray"
    executors: int | None = None
    init: dict[str, Any] | None = None
    remote: dict[str, Any] | None = None


LAUNCHERS = (Serial, Local, Slurm, Ray)


@dataclass
class Tracking:
    """Weights & Biases."""

    mode: str | None = None
    stats: bool = False
    adapter: bool = False


@dataclass
class Launch:
    """Where and how the runs of a command are done."""

    launcher: Launcher = field(default_factory=Serial)
    tracking: Tracking = field(default_factory=Tracking)
    lease_seconds: float = 30.0
    redo: bool = False


def from_plain(values: dict[str, Any]) -> Launch:
    """From plain values, as a composed configuration has them. Raises UserError for what cannot be."""
    settings = dict(values["launcher"])
    launcher = {of.name: of for of in LAUNCHERS}[settings["name"]](**settings)
    launch = Launch(launcher, Tracking(**values["tracking"]), values["lease_seconds"], values["redo"])
    for key in ("runs_per_device", "executors"):
        if (count := settings.get(key)) is not None and count < 1:
            raise UserError(f"launcher.{key}={count}: should be at least 1")
    if not 1 <= launch.lease_seconds < float("inf"):
        raise UserError(f"lease_seconds={launch.lease_seconds:g}: should be at least 1")
    return launch
