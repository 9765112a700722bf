"""A worker of a sweep, on this machine or another, and the command that watches the
workers. A worker does the runs that nobody else does, one after another, as a command
does on its own machine; so it imports torch once."""

import contextlib
import copy
import os
import signal
import socket
from pathlib import Path
from typing import Any

from runs.launchers.contract import ByWorkers
from runs.machine.processes import start_fork_server
from runs.record.text import plural
from runs.sweep.pool import Job, Slots, Sweep

#: How Slurm warns a job of its time limit. submitit asks for USR2, or for the signal that
#: SUBMITIT_PREEMPT_SIGNAL names, and has a handler for it.
TIME_LIMIT_SIGNALS = (signal.SIGUSR2, signal.SIGUSR1)


def log_folder(sweep: Sweep) -> Path:
    """The folder of the logs of a sweep's workers."""
    return (Path(sweep.jobs[0].output) / "sweeps" / sweep.name).resolve()


def run_by_workers(sweep: Sweep, launcher: ByWorkers) -> None:
    """Has workers do the pending runs of a sweep, and shows how far they are until all
    have ended. A run that is then left has failed."""
    folder = log_folder(sweep)
    pending = sweep.pending  # the sweep takes out runs that end
    folder.mkdir(parents=True, exist_ok=True)
    sweep.display.line(f"{sweep.skipped} already done, {len(pending)} to do")
    if pending:
        count = launcher.count_workers(len(pending))
        worker = SweepWorker(sweep, folder, count)
        with launcher.start(worker) as count_living_workers:

            def waits_for_others() -> bool:
                """Whether a worker lives, or another command does one of the runs."""
                if count_living_workers():
                    return True
                return any(job.lock.is_held() for job in pending)

            workers = plural(count, "worker")
            sweep.display.line(f"{workers} of {folder.name}. Logs: {folder}")
            # No slots: this command does no run itself
            sweep.do_pending_runs(Slots(), waits_for_others=waits_for_others)
    if sweep.signal:
        return
    error = f"its workers have ended, see {folder}. The same command goes on"
    for job in [*pending]:
        sweep.finish(job, 0.0, error)


class SweepWorker:
    """What each worker does; see runs.launchers.contract.Worker.

    A worker takes the command's folder and its OMP_NUM_THREADS, so that a run has as many
    threads everywhere; without that variable, as many as torch chooses there."""

    def __init__(self, sweep: Sweep, folder: Path, workers: int) -> None:
        self.sweep = sweep
        self.folder = folder
        self.workers = workers
        self.directory = os.getcwd()
        self.threads = os.environ.get("OMP_NUM_THREADS")

    def all_done(self) -> bool:
        """Whether every run of the sweep has ended."""
        return not self.sweep.pending

    def __call__(self, number: int) -> int:
        """Does the runs that no other worker does, one after another, beginning at another
        run than the other workers. number: of the worker, from 0 on. Returns the exit
        code."""
        os.chdir(self.directory)
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets one
        if self.threads:
            os.environ["OMP_NUM_THREADS"] = self.threads
        # The sweep below sets handlers of its own, so this one is read first
        handlers = map(signal.getsignal, TIME_LIMIT_SIGNALS)
        handler_of_submitit = next(filter(callable, handlers), None)
        log_file = self.folder / f"worker-{socket.gethostname()}-{os.getpid()}.log"
        with open(log_file, "a", buffering=1) as log, contextlib.redirect_stdout(log):
            start_fork_server()
            sweep = Sweep(self._jobs_from(number), self.sweep.tracking)
            # A worker that has nothing to do ends: the command waits for the others
            sweep.do_pending_runs(Slots(1), waits_for_others=lambda: False)
        # submitit's handler puts the job back into the queue (see `checkpoint`), for
        # whatever signal
        if sweep.signal in TIME_LIMIT_SIGNALS and handler_of_submitit is not None:
            handler_of_submitit(sweep.signal, None)
        return sweep.exit_code

    def _jobs_from(self, number: int) -> list[Job]:
        """Copies of the jobs, in the order of the worker with this number: each begins at
        another job, so that they do not all try the same lock first. Copies, because a
        Slurm job that goes back into the queue pickles this object, and started processes
        cannot be pickled."""
        first = number * len(self.sweep.jobs) // self.workers
        in_order = [*self.sweep.jobs[first:], *self.sweep.jobs[:first]]
        return [copy.copy(job) for job in in_order]

    def checkpoint(self, number: int) -> Any:
        """The job that submitit puts into the queue when the time of this one is over: the
        same again. It is here, and not in Slurm's launcher, since submitit asks the
        object that it calls."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, number)
