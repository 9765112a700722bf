"""Launchers: they start executors (runs/sweep/executor.py) and know nothing of runs.
runs/config/launch.py says what each can be told.

local        one process for each place on each device
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runs.config import launch as settings
from runs.errors import UserError
from runs.sweep.devices import devices, note_of_waiting
from runs.sweep.progress import append
from runs.sweep.signals import handling
from tasks.parent import tied

ROOT = Path(__file__).parent.parent.parent
#: What executors may take to end, or to save when they are asked to stop, in seconds.
GRACE = 60
#: Of a sweep with more runs, so many executors are started unless `executors` says otherwise.
EXECUTORS = 8


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


def make_launcher(sweep: Path, launch: settings.Launch, device: str, runs: int) -> Launcher:
    """The launcher that `launch` names, for so many runs; it has started nothing yet."""
    match launch.launcher:
        case settings.Local(runs_per_device=shared):
            return LocalProcesses(sweep, devices(device), shared)
        case settings.Slurm() as slurm:
            return SlurmJobs(sweep, slurm, runs)
        case settings.Ray() as ray:
            return RayWorkers(sweep, ray, runs)
    raise ValueError(f"launcher={launch.launcher.name} starts no executors")


def check_launcher(launcher: settings.Launcher) -> None:
    """Raises UserError for a launcher that can start nothing here, before anything is set aside or begun."""
    if isinstance(launcher, settings.Ray) and importlib.util.find_spec("ray") is None:
        raise UserError("launcher=ray is not installed: pip install 'vera-bench[ray]'")
    if isinstance(launcher, settings.Slurm):
        try:
            subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True, timeout=60)
        except FileNotFoundError:
            raise UserError("launcher=slurm: no squeue here. Log in where sbatch works") from None
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            raise UserError(f"launcher=slurm: Slurm does not answer ({' '.join(said)})") from None


class LocalProcesses:
    """A process for each place on each device of this machine."""

    def __init__(self, sweep: Path, names: list[str], runs_per_device: int) -> None:
        self.sweep, self.devices, self.runs_per_device = sweep, names, runs_per_device
        self.size, self.logs = len(names) * runs_per_device, str(sweep.parent / "executor-*.log")
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, count: int) -> None:
        if not self.alive() and (note := note_of_waiting(self.devices, self.runs_per_device)):
            print(note, flush=True)  # an executor says it in its log alone
        env = environment()
        if self.devices == ["cpu"] and self.size > 1:
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.size)))
        command = [*_command(self.sweep), *self.devices, str(self.runs_per_device)]
        for _ in range(count):
            with open(append(self.sweep.parent / f"executor-{len(self._processes)}.log"), "ab") as log:
                how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **tied()}
                # A group of its own: Ctrl-C reaches it through `stop`, and so once.
                self._processes.append(subprocess.Popen(command, env=env, start_new_session=True, **how))

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


class SlurmJobs:
    """An array of Slurm jobs, through submitit. Which of them live is asked of squeue: without accounting,
    sacct would never tell of a job that was killed."""

    def __init__(self, sweep: Path, slurm: settings.Slurm, runs: int) -> None:
        self.sweep, self.slurm, self.name = sweep, slurm, sweep.parent.name
        self.size = min(runs, slurm.executors or EXECUTORS)
        self.folder = sweep.parent / ".submitit"
        self.logs = f"squeue --name={self.name}; {sweep.parent}/executor-*.log, and {self.folder}"
        self._seen = 0

    def start(self, count: int) -> None:
        import submitit

        slurm = self.slurm
        try:
            executor = submitit.AutoExecutor(
                self.folder / "%j", cluster="slurm", slurm_max_num_timeout=slurm.max_num_timeout
            )
            executor.update_parameters(
                name=self.name,
                timeout_min=slurm.timeout_min,
                nodes=slurm.nodes,
                tasks_per_node=1,
                cpus_per_task=slurm.cpus_per_task,
                gpus_per_node=slurm.gpus_per_node,
                mem_gb=slurm.mem_gb,
                slurm_partition=slurm.partition,
                slurm_account=slurm.account,
                slurm_qos=slurm.qos,
                slurm_constraint=slurm.constraint,
                slurm_gres=slurm.gres,
                slurm_array_parallelism=slurm.array_parallelism,
                slurm_signal_delay_s=slurm.signal_delay_s,
                slurm_setup=slurm.setup or None,
                slurm_additional_parameters=slurm.additional_parameters or {},
            )
            with contextlib.redirect_stderr(io.StringIO()):  # what sbatch says is said once, below
                executor.map_array(ExecutorThere(str(self.sweep)), range(count))
        except Exception as error:
            raise UserError(f"Slurm takes no job: {_last_line(error)}") from None
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


class RayWorkers:
    """Ray's workers, of a cluster that `init` names, or of this machine."""

    def __init__(self, sweep: Path, ray: settings.Ray, runs: int) -> None:
        self.sweep, self.settings = sweep, ray
        self.size = min(runs, ray.executors or EXECUTORS)
        self.logs = str(sweep.parent / "executor-*.log")
        self._workers: list[Any] = []  # what Ray gives for each, until it has ended

    def start(self, count: int) -> None:
        import ray

        try:
            if not ray.is_initialized():
                given = self.settings.init or {}
                # Nothing is passed through Ray's store, so on a machine of our own the least will do.
                store = {} if given.get("address") else {"object_store_memory": 75 * 2**20}
                ray.init(**store | given)
            there = ExecutorThere(str(self.sweep))
            remote = ray.remote(**self.settings.remote) if self.settings.remote else ray.remote
            task = remote(_on_ray)
            self._workers += [task.remote(there, number) for number in range(count)]
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

        if done and self._workers:  # they tell the tracker of their last runs, and end
            ray.wait(self._workers, num_returns=len(self._workers), timeout=GRACE)
        ray.shutdown()  # which ends the workers; an executor ends with its worker
        return ""


def _last_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _command(sweep: Path | str) -> list[str]:
    """An executor on a sweep's file, which ends with this process."""
    return [sys.executable, "-m", "runs.sweep.executor", str(sweep), str(os.getpid())]


def environment() -> dict[str, str]:
    """In which an executor finds this project."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


# --- on the other machine


def _on_ray(there: "ExecutorThere", number: int) -> int:
    return there(number)


@dataclass(frozen=True)
class ExecutorThere:
    """What Slurm's jobs and Ray's workers call: an executor in a process of its own, which hears of the end
    of the job's time in good time. submitit then puts the job into the queue again, by `checkpoint`."""

    sweep: str

    def __call__(self, number: int) -> int:
        """Returns the executor's exit code. number: the job's, in its array."""
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
        """What submitit puts into the queue when the job's time is over: the same, since an executor goes on
        where runs were."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, number)
