"""Workers that Slurm and Ray start. A worker does the runs of a sweep that nobody else does, one after
another, as a command does on its own machine; so it imports torch once. The engines watch, requeue and retry
workers."""

import contextlib
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from runs.config.launch import Launcher, Ray, Slurm
from runs.errors import UserError
from runs.record import ROOT
from runs.record.text import plural
from runs.sweep.attempt import handling, start_fork_server
from runs.sweep.devices import Place
from runs.sweep.display import Display
from runs.sweep.jobs import Outcome, Sweep, name_of, try_finish
from runs.sweep.pool import GRACE, Pool

#: The most workers of a sweep where `executors` is null.
WORKERS = 8
#: So many starts of workers in a row without any progress are the last.
EMPTY_STARTS = 3


def launched(sweep: Sweep, display: Display, launcher: Launcher) -> Outcome:
    """Has workers do the runs until none is left, and shows what they do. If they or this command are killed,
    nothing is lost."""
    outcome, signals, empty, before = Outcome(), list[int](), 0, None
    pending = [job for job in sweep.jobs if not try_finish(job, sweep, outcome, display, None)]
    display.line(f"{outcome.skipped} already done, {len(pending)} to do")
    folder = (Path(sweep.jobs[0].output) / "sweeps" / name_of(sweep.jobs)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    engine = (SlurmJobs if isinstance(launcher, Slurm) else RayWorkers)(launcher, folder)  # type: ignore[arg-type]
    with handling(lambda number, frame: signals.append(number)):
        try:
            while pending and not signals:
                progress = [(job, job.progress) for job in pending]
                on = [(job.head, event) for job, event in progress if event and job.claim.is_held()]
                if not engine.alive() and len(on) < len(pending):
                    empty, before = empty + 1 if before == progress else 0, progress
                    if empty == EMPTY_STARTS:
                        raise UserError(
                            f"workers end before they begin a run. The reason is in {engine.logs}"
                        )
                    count = min(launcher.executors or WORKERS, len(pending) - len(on))  # type: ignore[attr-defined]
                    engine.start(Work(sweep, folder, count), count)
                    display.line(f"{plural(count, 'worker')} started ({engine.logs})")
                display.show(on, len(pending))
                time.sleep(1.0)
                pending = [job for job in pending if not try_finish(job, sweep, outcome, display, 0.0)]
            outcome.interrupted = bool(signals)
        finally:
            display.close()
            if left := engine.stop(done=not pending):
                print(left, file=sys.stderr)
    return outcome


class SlurmJobs:
    """An array of Slurm jobs, through submitit. squeue counts the living ones: sacct does not notice a killed
    job on a cluster without accounting."""

    #: Settings with submitit's own names for every cluster, and its names for Slurm alone.
    GENERAL = ("timeout_min", "nodes", "cpus_per_task", "gpus_per_node", "mem_gb")
    SPECIAL = (
        *("partition", "account", "qos", "constraint", "gres", "array_parallelism", "signal_delay_s"),
        *("setup", "additional_parameters"),
    )

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.name, self.folder = slurm, folder.name, folder / ".submitit"
        self.logs = f"squeue --name={self.name}; {folder}/worker-*.log, and {self.folder}"
        self._jobs = 0  # as squeue last said

    def start(self, work: "Work", count: int) -> None:
        """Submits so many jobs. Raises UserError where Slurm refuses."""
        import submitit

        parameters = {key: getattr(self.slurm, key) for key in self.GENERAL}
        parameters |= {f"slurm_{key}": getattr(self.slurm, key) for key in self.SPECIAL}
        os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]  # which sbatch passes on
        try:
            executor = submitit.AutoExecutor(
                self.folder / "%j", cluster="slurm", slurm_max_num_timeout=self.slurm.max_num_timeout
            )
            executor.update_parameters(name=self.name, tasks_per_node=1, **parameters)
            with contextlib.redirect_stderr(io.StringIO()):  # sbatch's message is in the error below
                executor.map_array(work, range(count))
        except Exception as error:
            raise UserError(f"Slurm takes no job: {_last_line(error)}") from None
        self._jobs = count

    def alive(self) -> int:
        """The number of jobs that run, or wait for their start."""
        # A line for each task of an array. Where the controller does not answer now, the last answer stays
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self._jobs = len(
                _output("squeue", "--noheader", "--array", f"--name={self.name}", "--format=%T").split()
            )
        return self._jobs

    def stop(self, done: bool) -> str:
        """Jobs go on without this command, but for those that have nothing left to do. Returns a line on
        them."""
        if done:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                _output("scancel", f"--name={self.name}", "--state=PENDING")
            return ""
        jobs = self.alive()
        return (
            f"{jobs} jobs go on without this command. To end them: scancel --name={self.name}" if jobs else ""
        )


class RayWorkers:
    """Ray's workers, of a cluster that `init` names, or of this machine."""

    def __init__(self, ray: Ray, folder: Path) -> None:
        self.ray, self.logs = ray, f"{folder}/worker-*.log"
        self._workers: list[Any] = []  # Ray's references to those that have not ended

    def start(self, work: "Work", count: int) -> None:
        """Starts so many workers. Raises UserError where Ray refuses."""
        import ray

        try:
            if not ray.is_initialized():
                init = self.ray.init or {}
                # Nothing passes through Ray's store, so a Ray of our own gets the smallest one
                store = {} if init.get("address") else {"object_store_memory": 75 * 2**20}
                path = {"runtime_env": {"env_vars": {"PYTHONPATH": environment()["PYTHONPATH"]}}}
                ray.init(**store | path | init)
            task = ray.remote(**self.ray.remote or {"num_cpus": 1})(Work.__call__)
            self._workers += [task.remote(work, number) for number in range(count)]
        except Exception as error:
            raise UserError(f"Ray: {_last_line(error)}") from None

    def alive(self) -> int:
        """The number of workers that have not ended. Raises UserError where one has failed."""
        import ray

        if self._workers:
            ended, self._workers = ray.wait(self._workers, num_returns=len(self._workers), timeout=0)
            try:
                ray.get(ended)
            except Exception as error:
                raise UserError(f"Ray: {_last_line(error)}") from None
        return len(self._workers)

    def stop(self, done: bool) -> str:
        """Ends the workers, and each run ends with its worker."""
        import ray

        if done and self._workers:
            ray.wait(self._workers, num_returns=len(self._workers), timeout=GRACE)
        ray.shutdown()
        return ""


class Work:
    """A worker: the function of Slurm's jobs and Ray's tasks.

    workers: how many there are. A run has as many threads everywhere: as OMP_NUM_THREADS said where the
    command was given, or as torch chooses for the cores that it sees."""

    def __init__(self, sweep: Sweep, folder: Path, workers: int) -> None:
        self.sweep, self.folder, self.workers, self.place = sweep, folder, workers, os.getcwd()
        self.threads = os.environ.get("OMP_NUM_THREADS")

    def __call__(self, number: int) -> int:
        """Does the runs that no other worker does; returns the exit code. number: of the worker, which begins
        with another run than the others."""
        os.chdir(self.place)
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets one
        os.environ |= {"OMP_NUM_THREADS": self.threads} if self.threads else {}
        submitits, first = signal.getsignal(signal.SIGUSR2), number * len(self.sweep.jobs) // self.workers
        jobs = [*self.sweep.jobs[first:], *self.sweep.jobs[:first]]
        log_file = self.folder / f"worker-{socket.gethostname()}-{os.getpid()}.log"
        with open(log_file, "a", buffering=1) as log, contextlib.redirect_stdout(log):
            start_fork_server()
            pool = Pool(
                replace(self.sweep, jobs=jobs), [Place([])], Display(len(jobs), brief=True), waits=False
            )
            outcome = pool.go()
        if pool.signal not in (0, signal.SIGTERM) and callable(submitits):
            submitits(pool.signal, None)  # the job goes back into the queue
        return outcome.exit_code

    def checkpoint(self, number: int) -> Any:
        """The job that submitit puts into the queue when this one's time is over: the same, since runs go
        on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, number)


def check_launcher(launcher: Launcher) -> None:
    """Raises UserError for a launcher that can start nothing here."""
    if isinstance(launcher, Ray) and importlib.util.find_spec("ray") is None:
        raise UserError("launcher=ray is not installed: pip install 'vera-bench[ray]'")
    if isinstance(launcher, Slurm):
        try:
            _output("squeue", "--noheader")
        except FileNotFoundError:
            raise UserError("launcher=slurm: no squeue here. Log in where sbatch works") from None
        except (OSError, subprocess.SubprocessError) as error:
            text = getattr(error, "stderr", None) or str(error)
            raise UserError(f"launcher=slurm: Slurm does not answer ({_last_line(text)})") from None


def environment() -> dict[str, str]:
    """The environment variables of another process of this project, with the project on Python's path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _last_line(error: Exception | str) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1]
