"""Where a campaign happens: on this machine, on Ray or on Slurm. Each ground knows how
to start its commands, and what can be killed there."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from chaos.watch import MARK, Sighting, end_all, members, parent

from runs.command.errors import UserError
from runs.record.ledger import ROOT

#: Seconds that jobs have to leave the queue.
QUEUE_S = 120.0


class Ground:
    """One launcher, and its victims.

    Attributes:
        name: in file names and on the page.
        victims: what can be killed, and how often of ten times.
        about: what each victim is.
        launchers: the overrides of its launcher; a command takes one of these lists.
    """

    name = ""
    victims: ClassVar[dict[str, int]] = {}
    about: ClassVar[dict[str, str]] = {}
    launchers: ClassVar[list[list[str]]] = []

    def __init__(self, home: Path, dice: random.Random) -> None:
        self.home = home
        self.dice = dice

    def check(self) -> None:
        """Raises UserError where the launcher cannot work on this machine."""

    def open(self) -> None:
        """Starts what the launcher needs."""

    def close(self) -> None:
        """Ends what `open` started."""

    def overrides(self) -> list[str]:
        """Those of the next command."""
        return self.dice.choice(self.launchers)

    def strike(self, victim: str, run: Sighting, command: int) -> None:
        """Kills a victim of a run that is on. command: the process of the command.
        Raises OSError, psutil.Error or SubprocessError where it has ended meanwhile."""
        strikes: dict[str, Callable[[], None]] = {
            "run": lambda: kill(run.pid),
            "server": lambda: kill(parent(run.pid)),
            "worker": lambda: kill(parent(parent(run.pid))),
            "command": lambda: kill(command),
            "everything": lambda: end_all(self.home, signal.SIGKILL),
        }
        strikes[victim]()

    def settle(self) -> None:
        """Ends what outlives a command, such as jobs in a queue."""


def kill(pid: int) -> None:
    """Kills a process."""
    os.kill(pid, signal.SIGKILL)


class ThisMachine(Ground):
    """Runs on this machine, one at a time or two."""

    name = "local"
    victims: ClassVar = {"run": 6, "server": 1, "command": 2, "everything": 1}
    about: ClassVar = {
        "run": "the run's process",
        "server": "the process that runs are forked from",
        "command": "the command that a user started",
        "everything": "all of them at once",
    }
    launchers: ClassVar = [
        ["launcher=serial"],
        ["launcher=local", "launcher.runs_per_device=2"],
    ]


class OnRay(Ground):
    """Two workers of a Ray on this machine."""

    name = "ray"
    victims: ClassVar = {
        "run": 5,
        "server": 1,
        "worker": 2,
        "command": 1,
        "everything": 1,
    }
    about: ClassVar = ThisMachine.about | {
        "worker": "the worker process of Ray that does runs",
        "everything": "all of them at once, and Ray's own processes",
    }
    launchers: ClassVar = [
        [
            "launcher=ray",
            "launcher.executors=2",
            "launcher.init={include_dashboard:false,num_cpus:2,log_to_driver:false}",
        ]
    ]

    def check(self) -> None:
        if find_spec("ray") is None:
            raise UserError("launcher=ray is not installed: pip install -e '.[ray]'")


class OnSlurm(Ground):
    """Two jobs of a Slurm of one node, which tests/slurm.sh starts."""

    name = "slurm"
    victims: ClassVar = {
        "run": 3,
        "server": 1,
        "worker": 1,
        "job": 1,
        "requeued job": 1,
        "job at its time limit": 1,
        "command": 1,
        "everything": 1,
    }
    about: ClassVar = ThisMachine.about | {
        "worker": "the job's process that does runs",
        "job": "the job, by scancel",
        "requeued job": "the job, by scontrol requeue, which starts it again",
        "job at its time limit": "nothing: the job is asked to save, as before the end "
        "of its time, and goes back into the queue",
        "everything": "all of them at once; Slurm's own processes stay",
    }
    launchers: ClassVar = [
        ["launcher=slurm", "launcher.executors=2", "launcher.cpus_per_task=1"]
    ]

    def check(self) -> None:
        if os.geteuid():
            raise UserError("tests/slurm.sh starts a Slurm as root alone")

    def open(self) -> None:
        """Starts the Slurm."""
        self._call_script("start")

    def close(self) -> None:
        """Ends it."""
        self._call_script("stop")

    def _call_script(self, action: str) -> None:
        script = ROOT / "tests" / "slurm.sh"
        subprocess.run(["bash", str(script), action], check=True, timeout=60)

    def strike(self, victim: str, run: Sighting, command: int) -> None:
        """Kills a process, or has Slurm end the run's job."""
        commands = {
            "job": ["scancel"],
            "requeued job": ["scontrol", "requeue"],
            "job at its time limit": ["scancel", "--signal=USR2"],
        }
        if victim not in commands:
            super().strike(victim, run, command)
            return
        line = [*commands[victim], _job_of(run.pid)]
        subprocess.run(line, check=True, capture_output=True, timeout=QUEUE_S)

    def settle(self) -> None:
        """Ends the jobs of the campaign, and waits until they have left the queue."""
        subprocess.run(["scancel", "--me"], check=False, timeout=QUEUE_S)
        deadline = time.monotonic() + QUEUE_S
        while _queue() and time.monotonic() < deadline:
            time.sleep(0.5)


def _job_of(pid: int) -> str:
    """The Slurm job of a process. Raises OSError where it has ended."""
    for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        name, _, value = variable.decode(errors="replace").partition("=")
        if name == "SLURM_JOB_ID":
            return value
    raise ProcessLookupError(pid)


def _queue() -> list[str]:
    """The jobs in Slurm's queue. A busy controller answers with an error."""
    line = ["squeue", "--noheader", "--me", "--format=%i"]
    answer = subprocess.run(line, capture_output=True, text=True, check=False)
    return answer.stdout.split() if answer.returncode == 0 else ["unknown"]


GROUNDS: dict[str, type[Ground]] = {
    ground.name: ground for ground in (ThisMachine, OnRay, OnSlurm)
}


def left_over(home: Path, seconds: float) -> list[int]:
    """The processes of a campaign that are still alive after so many seconds."""
    deadline = time.monotonic() + seconds
    while members(home) and time.monotonic() < deadline:
        time.sleep(0.2)
    return members(home)


def environment(home: Path) -> dict[str, str]:
    """The environment variables of a campaign's commands: without Java, which takes ten
    seconds to score what otherwise takes a tenth."""
    programs = home / "bin"
    if not programs.exists():
        programs.mkdir(parents=True)
        for folder in os.get_exec_path():
            for path in Path(folder).glob("*"):
                if path.name != "java":
                    with contextlib.suppress(FileExistsError):
                        (programs / path.name).symlink_to(path)
    paths = [str(ROOT), str(home), os.environ.get("PYTHONPATH", "")]
    inherited = dict(os.environ)
    # commands start often, and would compile every module each time
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return inherited | {
        MARK: str(home),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PATH": str(programs),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(home / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "XDG_CACHE_HOME": str(home / "cache"),
    }
