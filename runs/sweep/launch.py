"""Workers that Slurm and Ray start, watch, requeue and retry. A worker does the runs of
a sweep that nobody else does, one after another, as a command does on its own machine;
so it imports torch once."""

import contextlib
import copy
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runs.command.errors import UserError
from runs.config import Launcher
from runs.machine.fork_server import start_fork_server
from runs.record.ledger import ROOT
from runs.record.text import plural
from runs.sweep.pool import GRACE, Places, Sweep

#: The most workers of a sweep where `executors` is null.
WORKERS = 8


def launched(sweep: Sweep, launcher: Launcher) -> None:
    """Has workers do the runs, and shows what they do."""
    folder = folder_of(sweep)
    pending = sweep.pending
    folder.mkdir(parents=True, exist_ok=True)
    count = workers_for(launcher, len(pending))
    sweep.display.line(f"{sweep.skipped} already done, {len(pending)} to do")
    if pending:
        work = Work(sweep, folder, count)
        with (
            on_slurm(launcher, work)
            if launcher.name == "slurm"
            else on_ray(launcher, work) as alive
        ):
            sweep.display.line(
                f"{plural(count, 'worker')} of {folder.name}. Logs: {folder}"
            )
            sweep.go(
                Places(),
                others=lambda: (
                    bool(alive()) or any(job.lock.is_held() for job in pending)
                ),
            )
    for job in [] if sweep.signal else [*pending]:
        sweep.finish(
            job, 0.0, f"its workers have ended, see {folder}. The same command goes on"
        )


def folder_of(sweep: Sweep) -> Path:
    """The folder of a sweep's logs."""
    return (Path(sweep.jobs[0].output) / "sweeps" / sweep.name).resolve()


def workers_for(launcher: Launcher, runs: int) -> int:
    """How many workers do so many runs."""
    return min(launcher.executors or WORKERS, runs)


@contextlib.contextmanager
def on_slurm(slurm: Launcher, work: "Work") -> Iterator[Callable[[], int]]:
    """Submits an array of Slurm jobs, through submitit, unless those of an earlier
    command are there. Gives a function that counts them. Jobs go on without this
    command. Raises UserError where Slurm refuses."""
    name = work.folder.name
    jobs = 0

    def alive() -> int:
        nonlocal jobs
        # sacct misses killed jobs on a cluster without accounting. Without an answer
        # now, the last one stays
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            jobs = len(
                _output(
                    "squeue", "--noheader", "--array", f"--name={name}", "--format=%T"
                ).split()
            )
        return jobs

    if not alive():
        os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]  # which sbatch passes on
        try:
            executor = slurm_executor(slurm, work.folder)
            # sbatch's message is in the error below
            with contextlib.redirect_stderr(io.StringIO()):
                executor.map_array(work, range(work.workers))
        except Exception as error:
            raise UserError(f"Slurm takes no job: {_last_line(error)}") from None
        jobs = work.workers
    try:
        yield alive
    finally:
        if not work.of.pending:  # for jobs that have not begun nothing is left
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                _output("scancel", f"--name={name}", "--state=PENDING")
        elif alive():
            how = f"To end them: scancel --name={name}"
            print(f"{jobs} jobs go on without this command. {how}", file=sys.stderr)


def slurm_executor(slurm: Launcher, folder: Path, without_slurm: bool = False) -> Any:
    """submitit's executor with the launcher's settings. folder: of the sweep; its name
    is the jobs'. without_slurm: whether it may be made where there is no Slurm."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1 if without_slurm else int(super().affinity())

    settings = dict(slurm.model_extra or {})
    # as in conf/launcher/slurm.yaml
    max_num_timeout = settings.pop("max_num_timeout", 1000)
    executor = Executor(folder / "submitit" / "%j", max_num_timeout=max_num_timeout)
    given = {key: value for key, value in settings.items() if value is not None}
    # into sbatch's names
    parameters = executor._convert_parameters(
        {"name": folder.name, "tasks_per_node": 1, **given}
    )
    executor.update_parameters(**parameters)
    return executor


def sbatch_script(slurm: Launcher, folder: Path, workers: int) -> str:
    """What sbatch would get for so many workers. Raises UserError for a setting that
    submitit does not take."""
    try:
        executor = slurm_executor(slurm, folder, without_slurm=True)
    except Exception as error:
        raise UserError(f"launcher=slurm: {_last_line(error)}") from None
    if workers > 1:
        executor.parameters["map_count"] = workers
    command = executor._submitit_command_str
    return str(executor._make_submission_file_text(command, ""))


@contextlib.contextmanager
def on_ray(settings: Launcher, work: "Work") -> Iterator[Callable[[], int]]:
    """Starts Ray's workers, on a cluster that `init` names, or here; they end with this
    command. Gives a function that counts them. Raises UserError where one fails, or Ray
    refuses."""
    import ray

    # Nothing passes through Ray's store, so a Ray of our own gets the smallest one
    store = (
        {}
        if (settings.init or {}).get("address")
        else {"object_store_memory": 75 * 2**20}
    )
    path = {"runtime_env": {"env_vars": {"PYTHONPATH": environment()["PYTHONPATH"]}}}
    try:
        ray.init(**store | path | (settings.init or {}))
        task = ray.remote(**settings.remote or {"num_cpus": 1})(Work.__call__)
        workers = [task.remote(work, number) for number in range(work.workers)]
    except Exception as error:
        raise UserError(f"Ray: {_last_line(error)}") from None

    def alive(seconds: float = 0) -> int:
        nonlocal workers
        if workers:
            ended, workers = ray.wait(
                workers, num_returns=len(workers), timeout=seconds
            )
            ray.get(ended)
        return len(workers)

    try:
        yield alive
        alive(0 if work.of.pending else GRACE)
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray: {_last_line(error)}") from None
    finally:
        ray.shutdown()


class Work:
    """A worker: the function of Slurm's jobs and Ray's tasks.

    workers: how many there are. A run has as many threads everywhere: as
    OMP_NUM_THREADS said where the command was given, or as torch chooses for the cores
    that it sees."""

    def __init__(self, sweep: Sweep, folder: Path, workers: int) -> None:
        self.of, self.folder, self.workers, self.place = (
            sweep,
            folder,
            workers,
            os.getcwd(),
        )
        self.threads = os.environ.get("OMP_NUM_THREADS")

    def __call__(self, number: int) -> int:
        """Does the runs that no other worker does, from another on by its number;
        returns the exit code."""
        os.chdir(self.place)
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets one
        os.environ |= {"OMP_NUM_THREADS": self.threads} if self.threads else {}
        submitits, first = (
            signal.getsignal(signal.SIGUSR2),
            number * len(self.of.jobs) // self.workers,
        )
        # Copies: a job that goes back into the queue is pickled, and no process of a
        # run can be
        jobs = [
            copy.copy(job) for job in (*self.of.jobs[first:], *self.of.jobs[:first])
        ]
        log_file = self.folder / f"worker-{socket.gethostname()}-{os.getpid()}.log"
        with open(log_file, "a", buffering=1) as log, contextlib.redirect_stdout(log):
            start_fork_server()
            sweep = Sweep(jobs, self.of.tracking)
            sweep.go(Places(1), others=lambda: False)
        at_time_limit = sweep.signal in (signal.SIGUSR1, signal.SIGUSR2)
        if at_time_limit and callable(submitits):
            submitits(sweep.signal, None)  # the job goes back into the queue
        return sweep.exit_code

    def checkpoint(self, number: int) -> Any:
        """The job that submitit puts into the queue when this one's time is over: the
        same."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, number)


def check_launcher(launcher: Launcher) -> None:
    """Raises UserError for a launcher that can start nothing here."""
    if launcher.name == "ray" and importlib.util.find_spec("ray") is None:
        raise UserError("launcher=ray is not installed: pip install 'vera-bench[ray]'")
    if launcher.name == "slurm":
        try:
            _output("squeue", "--noheader")
        except (OSError, subprocess.SubprocessError) as error:
            # no squeue, or no answer
            why = _last_line(getattr(error, "stderr", None) or str(error))
            raise UserError(
                f"launcher=slurm: no Slurm here ({why}). Log in where sbatch works"
            ) from None


def environment() -> dict[str, str]:
    """The environment variables of another process of this project, with the project on
    Python's path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def _output(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def _last_line(error: Exception | str) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1]
