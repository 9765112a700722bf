"""Launchers: they start executors (runs/sweep/executor.py) and know nothing of runs. Their settings are in
runs/config/launch.py.

local        runs_per_device processes for each device
slurm        an array of Slurm jobs, through submitit
ray          Ray's workers
"""

import contextlib
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runs.config import launch as settings
from runs.errors import UserError
from runs.gpus import cores
from runs.record import ROOT
from runs.run import Run
from runs.sweep.attempt import GRACE
from runs.sweep.crowd import MOST, MPS, measured, pinned, room
from runs.sweep.devices import devices, waiting_note
from runs.sweep.progress import append
from runs.sweep.signals import handling
from tasks.parent import tied

#: The most executors of a sweep where `executors` is null.
EXECUTORS = 8


class Launcher(Protocol):
    """Starts executors on a sweep's file, and counts the living ones."""

    size: int  # the most executors at once
    logs: str  # where their output is

    def start(self, count: int) -> None:
        """Starts so many more. Raises UserError where that is refused."""

    def alive(self) -> int:
        """The number of executors that live or wait for their start."""

    def stop(self, done: bool) -> str:
        """Ends the executors, in bounded time. done: whether all runs are; otherwise they save first. Returns
        a line for the user about executors that continue, or an empty one."""


def make_launcher(sweep: Path, launch: settings.Launch, runs: Sequence[Run]) -> Launcher:
    """The launcher that `launch` names, for these runs. It has started no executor yet."""
    match launch.launcher:
        case settings.Local(runs_per_device=shared):
            return local(sweep, devices(runs[0].config["device"]), shared, runs)
        case settings.Slurm() as slurm:
            return SlurmJobs(sweep, slurm, len(runs))
        case settings.Ray() as ray:
            return RayWorkers(sweep, ray, len(runs))
    raise ValueError(f"launcher={launch.launcher.name} starts no executors")


def check_launcher(launcher: settings.Launcher, device: str) -> None:
    """Raises UserError for a launcher that can start nothing here, or not on this `device=`."""
    if isinstance(launcher, settings.Local):
        devices(device)
    if isinstance(launcher, settings.Ray) and importlib.util.find_spec("ray") is None:
        raise UserError("launcher=ray is not installed: pip install 'vera-bench[ray]'")
    if isinstance(launcher, settings.Slurm):
        try:
            subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True, timeout=60)
        except FileNotFoundError:
            raise UserError("launcher=slurm: no squeue here. Log in where sbatch works") from None
        except (OSError, subprocess.SubprocessError) as error:
            text = getattr(error, "stderr", None) or str(error)
            raise UserError(f"launcher=slurm: Slurm does not answer ({_last_line(text)})") from None


def local(sweep: Path, names: list[str], shared: int | None, runs: Sequence[Run]) -> "LocalProcesses":
    """Processes on these devices. Where runs are to share a GPU, MPS is started if it can be. shared: how
    many; None for as many as fit where MPS runs or gpu-check has measured a gain, and one elsewhere."""
    if {"cpu", "mps"} & set(names) or shared == 1:
        return LocalProcesses(sweep, names, shared or 1)
    mps = MPS()
    most = MOST if mps.start() else measured(runs[0].config["output"])
    return LocalProcesses(sweep, names, shared or min(most, room(runs, len(names))), mps)


class LocalProcesses:
    """`runs_per_device` processes for each device of this machine, each with its share of the cores. mps:
    what serves them where they share GPUs."""

    def __init__(self, sweep: Path, names: list[str], runs_per_device: int, mps: MPS | None = None) -> None:
        self.sweep, self.devices, self.runs_per_device = sweep, names, runs_per_device
        self.size, self.logs = len(names) * runs_per_device, str(sweep.parent / "executor-*.log")
        self.mps = mps or MPS()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._places: list[int] = []  # of each process, which share of the cores it has

    def start(self, count: int) -> None:
        if not self.alive() and (note := waiting_note(self.devices, self.runs_per_device)):
            print(note, flush=True)  # an executor says it in its log alone
        env = environment() | self.mps.environment
        if self.devices == ["cpu"] and self.size > 1:
            env.setdefault("OMP_NUM_THREADS", str(max(1, len(cores()) // self.size)))
        command = [*_command(self.sweep), *self.devices, str(self.runs_per_device)]
        for _ in range(count):
            with open(append(self.sweep.parent / f"executor-{len(self._processes)}.log"), "ab") as log:
                how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                living = zip(self._processes, self._places, strict=True)
                taken = {place for process, place in living if process.poll() is None}
                place = min(set(range(self.size)) - taken, default=0)
                how |= pinned(place, self.size)
                # In a group of its own, so that Ctrl-C reaches it through `stop` alone
                self._processes.append(subprocess.Popen(command, env=env, start_new_session=True, **how))
                self._places.append(place)

    def alive(self) -> int:
        return sum(process.poll() is None for process in self._processes)

    def stop(self, done: bool) -> str:
        living = [process for process in self._processes if process.poll() is None]
        if not done:  # otherwise they finish tracking, and end
            for process in living:
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
            self.mps.stop()
        return ""


class SlurmJobs:
    """An array of Slurm jobs, through submitit. squeue counts the living ones: sacct does not notice a killed
    job on a cluster without accounting."""

    #: Settings with submitit's own names for every cluster, and those that it has for Slurm alone.
    GENERAL = ("timeout_min", "nodes", "cpus_per_task", "gpus_per_node", "mem_gb")
    SPECIAL = (
        *("partition", "account", "qos", "constraint", "gres", "array_parallelism", "signal_delay_s"),
        *("setup", "additional_parameters"),
    )

    def __init__(self, sweep: Path, slurm: settings.Slurm, runs: int) -> None:
        self.sweep, self.slurm, self.name = sweep, slurm, sweep.parent.name
        self.size = min(runs, slurm.executors or EXECUTORS)
        self.folder = sweep.parent / ".submitit"
        self.logs = f"squeue --name={self.name}; {sweep.parent}/executor-*.log, and {self.folder}"
        self._jobs = 0  # as squeue last said

    def start(self, count: int) -> None:
        import submitit

        parameters = {key: getattr(self.slurm, key) for key in self.GENERAL}
        parameters |= {f"slurm_{key}": getattr(self.slurm, key) for key in self.SPECIAL}
        try:
            executor = submitit.AutoExecutor(
                self.folder / "%j", cluster="slurm", slurm_max_num_timeout=self.slurm.max_num_timeout
            )
            executor.update_parameters(name=self.name, tasks_per_node=1, **parameters)
            with contextlib.redirect_stderr(io.StringIO()):  # sbatch's message is in the error below
                executor.map_array(RemoteExecutor(str(self.sweep)), range(count))
        except Exception as error:
            raise UserError(f"Slurm takes no job: {_last_line(error)}") from None
        self._jobs += count

    def alive(self) -> int:
        # A line for each task of an array that has not ended
        command = ["squeue", "--noheader", "--array", f"--name={self.name}", "--format=%T"]
        # Where the controller does not answer now, the last answer stays
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            self._jobs = len(done.stdout.split())
        return self._jobs

    def stop(self, done: bool) -> str:
        if done:  # jobs that are back in the queue have nothing left to do
            subprocess.run(
                ["scancel", f"--name={self.name}", "--state=PENDING"], capture_output=True, check=False
            )
            return ""
        if jobs := self.alive():
            return f"{jobs} jobs go on without this command. To end them: scancel --name={self.name}"
        return ""


class RayWorkers:
    """Ray's workers, of a cluster that `init` names, or of this machine."""

    def __init__(self, sweep: Path, ray: settings.Ray, runs: int) -> None:
        self.sweep, self.settings = sweep, ray
        self.size = min(runs, ray.executors or EXECUTORS)
        self.logs = str(sweep.parent / "executor-*.log")
        self._workers: list[Any] = []  # Ray's references to those that have not ended

    def start(self, count: int) -> None:
        import ray

        try:
            if not ray.is_initialized():
                init = self.settings.init or {}
                # Nothing passes through Ray's store, so a Ray of our own gets the smallest one
                store = {} if init.get("address") else {"object_store_memory": 75 * 2**20}
                ray.init(**store | init)
            remote = ray.remote(**self.settings.remote) if self.settings.remote else ray.remote
            task = remote(_on_ray)
            executor = RemoteExecutor(str(self.sweep))
            self._workers += [task.remote(executor, number) for number in range(count)]
        except Exception as error:
            raise UserError(f"Ray: {_last_line(error)}") from None

    def alive(self) -> int:
        import ray

        if self._workers:
            ended, self._workers = ray.wait(self._workers, num_returns=len(self._workers), timeout=0)
            try:
                ray.get(ended)
            except Exception as error:
                raise UserError(f"Ray: {_last_line(error)}") from None
        return len(self._workers)

    def stop(self, done: bool) -> str:
        import ray

        if done and self._workers:  # they finish tracking, and end
            ray.wait(self._workers, num_returns=len(self._workers), timeout=GRACE)
        ray.shutdown()  # ends the workers, and each executor ends with its worker
        return ""


def _last_line(error: Exception | str) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _command(sweep: Path | str) -> list[str]:
    """The command of an executor on a sweep's file, which ends with this process."""
    return [sys.executable, "-m", "runs.sweep.executor", str(sweep), str(os.getpid())]


def environment() -> dict[str, str]:
    """The environment variables of an executor, with this project on Python's path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


# --- on the other machine


def _on_ray(executor: "RemoteExecutor", number: int) -> int:
    return executor(number)


@dataclass(frozen=True)
class RemoteExecutor:
    """The function of Slurm's jobs and Ray's workers: an executor in a process of its own, which is asked to
    stop before the job's time ends. submitit then puts the job back into the queue, with `checkpoint`."""

    sweep: str

    def __call__(self, number: int) -> int:
        """Runs the executor; returns its exit code. number: of the job in its array."""
        log_file = Path(self.sweep).parent / f"executor-{socket.gethostname()}-{os.getpid()}.log"
        with open(log_file, "ab") as log:
            process = subprocess.Popen(
                _command(self.sweep), env=environment(), stdout=log, stderr=log, **tied()
            )
        signals: list[int] = []  # that asked for an end

        def stop(number: int, frame: Any) -> None:
            signals.append(number)
            process.terminate()

        with handling(stop) as before:
            code = process.wait()
        submitits = before.get(signal.SIGUSR2)  # its handler puts the job back into the queue
        if signals and signals[0] != signal.SIGTERM and callable(submitits):
            submitits(signals[0], None)
        return code

    def checkpoint(self, number: int) -> Any:
        """The job that submitit puts into the queue when this one's time is over: the same, since executors
        continue unfinished runs."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, number)
