"""Launchers, chosen by one word: they start executors (runs/sweep/executor.py) and know nothing of runs.

serial       in this process
local        one process a device
slurm, ray   Hydra's launchers, with their own settings
"""

import contextlib
import functools
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runs.config import CONF
from runs.errors import UserError
from runs.sweep.devices import devices
from runs.sweep.progress import append
from tasks.parent import tied

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Launch:
    """The words of a command that say where and how its runs are done. See conf/launch.yaml."""

    launcher: str = "serial"
    executors: int | None = None
    runs_per_device: int = 1
    lease_seconds: float = 30.0
    tracking: str | None = None
    redo: bool = False


ConfigStore.instance().store(name="launch_schema", node=Launch)

#: Hydra's launcher behind a word, what installs it, and settings of it that suit executors, which go on where
#: they were.
HYDRA = {
    "slurm": ("submitit_slurm", "hydra-submitit-launcher", ["hydra.launcher.max_num_timeout=1000"]),
    "ray": ("ray", "'vera-bench[ray]'", []),
}
LAUNCHERS = ("serial", "local", *HYDRA)
TRACKING = (None, "online", "offline", "off")
#: What executors may take to end, or to save when they are asked to stop, in seconds.
GRACE = 60
#: Of a sweep with more runs, so many executors are started unless `executors` says otherwise.
EXECUTORS = 8


def take(words: list[str]) -> tuple[Launch, list[str], list[str]]:
    """Where and how, Hydra's words for the launcher, and the other words of a command. UserError for what is
    wrong."""
    names = {f.name for f in fields(Launch)}
    own = [word for word in words if word.partition("=")[0] in names]
    hydra = [
        word
        for word in words
        if word.startswith(("hydra.launcher.", "+hydra.launcher.", "++hydra.launcher."))
    ]
    rest = [word for word in words if word not in own and word not in hydra]
    cfg = _compose(own)
    launch = Launch(**{name: cfg[name] for name in names})
    if launch.launcher not in LAUNCHERS:
        raise UserError(f"launcher={launch.launcher}: should be one of {', '.join(LAUNCHERS)}")
    if launch.tracking not in TRACKING:
        raise UserError(f"tracking={launch.tracking}: should be one of online, offline, off, or null")
    if launch.runs_per_device < 1 or (launch.executors is not None and launch.executors < 1):
        raise UserError("runs_per_device and executors should be at least 1")
    if launch.executors is not None and launch.launcher not in HYDRA:
        raise UserError(
            f"executors={launch.executors} is for launcher=slurm and launcher=ray; local starts one a device"
        )
    if not 1 <= launch.lease_seconds < float("inf"):
        raise UserError(f"lease_seconds={launch.lease_seconds:g}: should be at least 1")
    if launch.launcher in HYDRA:
        _check_called(launch.launcher, hydra)
    elif hydra:
        raise UserError(f"{hydra[0]} is for launcher=slurm and launcher=ray")
    return launch, hydra, rest


def _check_called(launcher: str, words: list[str]) -> None:
    """Raises UserError for words that Hydra's launcher does not know, or that have Hydra call something else
    (_target_)."""
    called = []
    for given in (words, []):
        settings = _compose(_hydra_words(launcher, given)).hydra.launcher
        try:
            # Resolved, as when it is called: an interpolation may bring in a mapping.
            called.append(list(_targets(OmegaConf.to_container(settings, resolve=True))))
        except OmegaConfBaseException as error:
            raise UserError(f"{' '.join(given)}: {str(error).splitlines()[0]}") from None
    if called[0] != called[1]:
        raise UserError(f"{' '.join(words)}: _target_ names what is called, which no word does")


def _targets(node: Any) -> Iterator[Any]:
    """Every _target_ in a plain value."""
    for key, value in (
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    ):
        if key == "_target_":
            yield value
        yield from _targets(value)


def _compose(words: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("launch", words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        lines = [line for e in (error, error.__cause__) if e for line in str(e).splitlines() if line.strip()]
        if "Could not find 'hydra/launcher/" in lines[0]:
            name = lines[0].partition("hydra/launcher/")[2].partition("'")[0]
            missing = next(package for known, package, _ in HYDRA.values() if known == name)
            raise UserError(f"launcher={name} is not installed: pip install {missing}") from None
        raise UserError(" ".join(dict.fromkeys(lines[:2]))) from None


def _hydra_words(launcher: str, words: list[str]) -> list[str]:
    name, _, own = HYDRA[launcher]
    given = {word.partition("=")[0] for word in words}
    return [f"hydra/launcher={name}", *(word for word in own if word.partition("=")[0] not in given), *words]


# --- launchers


class Launcher(Protocol):
    """Starts executors on a sweep's file, and knows how many of them live."""

    size: int  # how many there should be, at most
    logs: str  # where their output is

    def start(self, count: int) -> None:
        """Starts so many more. Raises UserError where that is refused."""

    def alive(self) -> int:
        """How many live, or wait to be started."""

    def stop(self, done: bool) -> str:
        """At the end, where all is done, or at Ctrl-C: what becomes of them, in words. Returns in bounded
        time."""


class Local:
    """A process for each place on each device of this machine."""

    def __init__(self, sweep: Path, launch: Launch, device: str) -> None:
        self.sweep, self.launch, self.devices = sweep, launch, devices(device)
        self.size, self.logs = (
            len(self.devices) * launch.runs_per_device,
            str(sweep.parent / "executor-*.log"),
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, count: int) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        }
        if self.devices == ["cpu"] and self.size > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.size)))
        places = [*self.devices, str(self.launch.runs_per_device)]
        command = [sys.executable, "-m", "runs.sweep.executor", str(self.sweep), str(os.getpid()), *places]
        for _ in range(count):
            with open(append(self.sweep.parent / f"executor-{len(self._processes)}.log"), "ab") as log:
                how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **tied()}
                # A group of its own: Ctrl-C reaches it through `stop`, and so once.
                self._processes.append(
                    subprocess.Popen(command, env=environment, start_new_session=True, **how)
                )

    def alive(self) -> int:
        return sum(process.poll() is None for process in self._processes)

    def stop(self, done: bool) -> str:
        living = [process for process in self._processes if process.poll() is None]
        for process in living if not done else []:  # else they tell the tracker of their last runs, and end
            process.terminate()
        try:
            end = time.monotonic() + GRACE
            for process in living:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
        finally:
            for process in living:
                if process.poll() is None:
                    process.kill()
        return ""


def _launch(sweep: Path, words: list[str], count: int, first: int) -> None:
    """Has Hydra's launcher start so many executors, numbered from `first`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("launch", words, return_hydra_config=True)
        launcher = instantiate(cfg.hydra.launcher)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
        task = functools.partial(run_executor, sweep=str(sweep))
        launcher.setup(hydra_context=context, task_function=task, config=cfg)
        launcher.launch([[] for _ in range(count)], initial_job_idx=first)


def _quiet(sweep: Path, name: str) -> list[str]:
    """Hydra's files stay in the sweep's folder, and few."""
    folder = [
        f"hydra.sweep.dir={sweep.parent}",
        "hydra.sweep.subdir=${hydra.job.num}",
        "hydra.output_subdir=null",
    ]
    return [*folder, f"hydra.job.name={name}", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]


class Slurm:
    """An array of Slurm jobs, by Hydra's submitit launcher. Which of them live is asked of squeue: without
    accounting, sacct would never tell of a job that was killed."""

    def __init__(self, sweep: Path, launch: Launch, words: list[str], runs: int) -> None:
        self.sweep, self.name, self.size = sweep, sweep.parent.name, min(runs, launch.executors or EXECUTORS)
        self.logs = f"squeue --name={self.name}; {sweep.parent}/executor-*.log, and {sweep.parent}/.submitit"
        self._words = [*_hydra_words("slurm", words), *_quiet(sweep, self.name)]
        self._started, self._seen = 0, 0

    def start(self, count: int) -> None:
        from submitit.slurm.slurm import SlurmJob

        # Hydra's launcher would wait for results, which are records here; and what sbatch says is said once.
        unwatched = mock.patch.object(SlurmJob, "results", return_value=[None])
        try:
            with unwatched, contextlib.redirect_stderr(io.StringIO()):
                _launch(self.sweep, self._words, count, self._started)
        except Exception as error:
            told = (str(error).strip() or repr(error)).splitlines()[-1]
            raise UserError(f"Slurm takes no job: {told}") from None
        self._started += count
        self._seen += count

    def alive(self) -> int:
        # A line for each task of an array; those that have ended are not among them.
        command = ["squeue", "--noheader", "--array", f"--name={self.name}", "--format=%T"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            self._seen = len(done.stdout.split())
        except (OSError, subprocess.SubprocessError):
            pass  # the controller does not answer now: as it was
        return self._seen

    def stop(self, done: bool) -> str:
        if done:  # those that were to go on after their time limit have nothing left to do
            subprocess.run(
                ["scancel", f"--name={self.name}", "--state=PENDING"], capture_output=True, check=False
            )
            return ""
        jobs = self.alive()
        return (
            f"{jobs} jobs go on without this command. To end them: scancel --name={self.name}" if jobs else ""
        )


class Ray:
    """Ray's workers, by Hydra's Ray launcher, which waits for them: in a thread, and for each lot in one of
    its own."""

    def __init__(self, sweep: Path, launch: Launch, words: list[str], runs: int) -> None:
        self.sweep, self.size = sweep, min(runs, launch.executors or EXECUTORS)
        self.logs = str(sweep.parent / "executor-*.log")
        self._words = [*_hydra_words("ray", words), *_quiet(sweep, sweep.parent.name)]
        self._lots: list[tuple[threading.Thread, int]] = []
        self._error: Exception | None = None

    def start(self, count: int) -> None:
        first = sum(size for _, size in self._lots)
        thread = threading.Thread(target=self._wait, args=(count, first), daemon=True)
        thread.start()
        self._lots.append((thread, count))

    def alive(self) -> int:
        if self._error is not None:
            told = (str(self._error).strip() or repr(self._error)).splitlines()[-1]
            raise UserError(f"Ray: {told}")
        return sum(size for thread, size in self._lots if thread.is_alive())

    def stop(self, done: bool) -> str:
        import ray

        for thread, _ in self._lots if done else []:
            thread.join(GRACE)
        ray.shutdown()  # which ends the workers; an executor ends with its worker
        return ""

    def _wait(self, count: int, first: int) -> None:
        try:
            _launch(self.sweep, self._words, count, first)
        except Exception as error:
            self._error = error


def make_launcher(sweep: Path, launch: Launch, words: list[str], device: str, runs: int) -> Launcher:
    """The launcher that `launch` names, for so many runs; it has started nothing yet."""
    if launch.launcher == "local":
        return Local(sweep, launch, device)
    return (Slurm if launch.launcher == "slurm" else Ray)(sweep, launch, words, runs)


def run_executor(_: Any, sweep: str) -> int:
    """What Hydra's launchers call on the other machine: an executor in a process of its own, which hears of
    the end of the job's time in good time. Slurm's launcher then puts the job into the queue again."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(Path(sweep).parent / f"executor-{socket.gethostname()}-{os.getpid()}.log", "ab") as log:
        command = [sys.executable, "-m", "runs.sweep.executor", sweep, str(os.getpid())]
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log, **tied()
        )
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        process.terminate()

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in numbers} if main else {}
    code = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    again = before.get(signal.SIGUSR2)
    if asked and asked[0] != signal.SIGTERM and callable(again):
        again(asked[0], None)
    return code
