"""The runs of a command: how each ends, and the processes that do them on this machine,
as many at once as there are places. One function counts and shows each end, whoever did
the run.

A process takes its run's lock and trains, once: another try is another process. It is
forked from a server that has imported torch: a run starts in a fraction of a second,
and leaves no state to the next one."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from runs.command.errors import Stop, UserError
from runs.machine import gpus
from runs.machine.fork_server import STOPPING, end_with_parent, handling
from runs.machine.locks import PATIENCE, Lock, run_lock
from runs.record.cell import hash_of
from runs.record.ledger import finished_record, read_record, record_path, run_folder
from runs.record.schema import FINISHED, Record
from runs.record.text import duration
from runs.run.definition import Run
from runs.run.provenance import differs
from runs.sweep.display import (
    Display,
    SweepState,
    leave_terminal,
    read_progress,
    result_words,
)
from runs.sweep.time_left import RunningRun, TimeLeft, left_of, sweep_words
from runs.tracking.settings import Tracking, of_run
from runs.tracking.tracker import Tracker
from runs.training.files import Attempt, saved, tidy
from runs.training.train import (
    BUSY,
    FAILED,
    KILLED,
    NO_ROOM,
    ROOM,
    SMALLER,
    End,
    cause_of,
    do,
    no_room,
)

#: How often a run is tried again, unless it has saved more in between.
RETRIES = 3
#: Seconds that runs have to save, after they were asked to stop.
GRACE = 60


class Job:
    """A run of a sweep, and its process. head: how its lines begin, with its number and
    what tells it from the others. record, log: paths. saved, tries: what a process of
    it that failed had saved, and those that have failed since: the error of a full
    disk, "" of another end. before: the attempt whose failed record is from before the
    command. ready: what multiprocessing.connection.wait waits for."""

    before: str | None = None

    def __init__(self, head: str, run: Run, run_id: str) -> None:
        self.head, self.run, self.id, self.output = (
            head,
            run,
            run_id,
            str(run.config["output"]),
        )
        self.record, self.saved, self.tries = (
            record_path(self.output, run_id),
            list[Any](),
            list[str](),
        )
        self.log = str(run_folder(self.output, run_id) / "log.txt")

    @property
    def lock(self) -> Lock:
        """The lock that its process takes."""
        return run_lock(self.output, self.id)

    def start(
        self, gpu: tuple[str, Lock] | None, tracking: Tracking, alone: bool
    ) -> None:
        """Starts its process. gpu: a GPU, if any, and its lock. alone: a user's mistake
        leaves no record."""
        self.gpu, self.since = gpu, time.monotonic()
        context = multiprocessing.get_context("forkserver")
        self.ready, sender = context.Pipe(duplex=False)
        work = (self.run, self.id, self.tries, gpu and gpu[0], tracking, alone, sender)
        self.child: Any = context.Process(target=_child, args=work, daemon=True)
        # the server was killed now
        with contextlib.closing(sender), contextlib.suppress(OSError, EOFError):
            self.child.start()

    def signal(self, number: int) -> None:
        """SIGTERM asks the run to save and to end."""
        with contextlib.suppress(OSError, TypeError):  # it has ended, or never begun
            os.kill(self.child.pid, number)

    def ended(self) -> End:
        """Waits for its process's end, gives the GPU back, and returns how it ended."""
        end: End | None = None
        with contextlib.closing(self.ready), contextlib.suppress(EOFError, OSError):
            end = self.ready.recv()
        if self.child.pid:
            self.child.join()
        if self.gpu:
            self.gpu[1].release()
        code = self.child.exitcode
        # 255: the server has ended, too. None: before it began
        killed = code in (-signal.SIGKILL, 255, None)
        why = "was killed (out of memory?)" if killed else f"ended with code {code}"
        return end or (KILLED, f"the process {why}")


class Places(NamedTuple):
    """total: how many runs this machine does at once. gpus: of which each run takes
    one, unless `share` runs have it, over all commands of this machine; none on a CPU,
    or where a scheduler has chosen."""

    total: int = 0
    gpus: Sequence[str] = ()
    share: int = 1


def places(device: str, share: int, every: bool) -> Places:
    """The places for runs with this `device=`; only one unless every."""
    names = gpus.devices(device)
    return Places(
        len(names) * share if every else 1,
        () if {"cpu", "mps"} & set(names) else names,
        share,
    )


class Sweep:
    """The runs of one command, which it does in processes of their own, and how they
    have ended. Paths begin at the command's folder. diverged, failed: with the
    error."""

    def __init__(self, jobs: list[Job], tracking: Tracking) -> None:
        self.jobs, self.tracking, self.pending, self.display = (
            jobs,
            tracking,
            [*jobs],
            Display(),
        )
        self.done, self.skipped, self.places, self.running = 0, 0, Places(), list[Job]()
        self.diverged, self.failed = list[tuple[Job, str]](), list[tuple[Job, str]]()
        self.signal = 0  # the one that asked for an end
        self._idle = 0.0  # since when nothing is on here; infinity once that was said
        self._room = 0.0  # when there may be room on a full disk: no run starts before
        self._told = False  # that a run waits for a GPU
        self._time_left = TimeLeft()

    @property
    def exit_code(self) -> int:
        """143 where the command was interrupted, 1 where a run failed. One that
        diverged is a result."""
        return 143 if self.signal else 1 if self.failed else 0

    @property
    def name(self) -> str:
        """The name of the sweep and of its Slurm jobs: its preset, and a hash of its
        runs and folder."""
        folder, preset = (
            str(Path(self.jobs[0].output).resolve()),
            self.jobs[0].run.experiment or "runs",
        )
        return f"{preset}-{hash_of([folder, [job.id for job in self.jobs]])[:8]}"

    def tracking_of(self, job: Job) -> Tracking:
        """W&B's settings of a run."""
        return of_run(self.tracking, job.run, [other.run for other in self.jobs])

    def finish(self, job: Job, seconds: float | None, error: str = "") -> bool:
        """Counts, shows and tidies up a job that has ended. Returns False without a
        record or an error.

        seconds: it took, 0 if not known here, None if done before. error: why it wrote
        no record."""
        record: Record | None = None
        try:
            record = read_record(job.record)
        except ValueError as damage:  # there is none, or a damaged one
            if seconds is None and job.record.is_file():
                print(f"{damage}: the run is done again", file=sys.stderr)
        if record and record["status"] not in FINISHED:
            job.before = record.get("claim") if seconds is None else job.before
            error = error if record.get("claim") == job.before else record["error"]
            record = None
        if record is None and not error:
            return False
        self.pending.remove(job)
        if record is None:
            self.failed.append((job, error))
            self.display.line(f"{job.head}  FAILED: {error} ({job.log})")
            return True
        tidy(job.output, record)
        line = result_words(record)
        if seconds is None:
            self.skipped += 1
            self.send_to_agent(job)
            why = differs(record, job.run)
            line = (
                f"already done ({line}, run {job.id}), skipped{': ' * bool(why)}{why}"
            )
        elif record["status"] == "diverged":
            self.diverged.append((job, record["error"]))
        else:
            self.done += 1
            parts = ("train", "evaluate", "decode")
            seconds = seconds or sum(
                record["cost"].get(f"{part}_seconds", 0.0) for part in parts
            )
            line += f"  {duration(seconds)}  run {job.id}"
        if seconds is not None:
            self._time_left.add(job.run, seconds)
            if self.pending and (state := self._state(self.running)):
                line += f"  ({state.words})"
        self.display.line(f"{job.head}  {line}")
        return True

    def _state(self, running: Sequence[Job]) -> SweepState | None:
        """How far the sweep is, and the time that is left; None for a single run."""
        if len(self.jobs) == 1:
            return None
        entries = list[RunningRun]()
        for job in running:
            expected = left_of(read_progress(job.output, job.id))
            elapsed = time.monotonic() - getattr(job, "since", time.monotonic())
            entries.append(RunningRun(job.run, elapsed, expected))
        waiting = [job.run for job in self.pending if job not in running]
        seconds = self._time_left.of_sweep(waiting, entries)
        total = len(self.jobs)
        ended = total - len(self.pending)
        return SweepState(ended, total, sweep_words(ended, total, seconds))

    def send_to_agent(self, job: Job) -> None:
        """Sends a run that this command did not do, where `wandb agent` started the
        command for it."""
        settings = self.tracking_of(job)
        if settings.agent and (record := finished_record(job.output, job.id)):
            Tracker(settings, job.run, job.id, record).finish(record)

    def go(
        self,
        places: Places,
        alone: bool = False,
        others: Callable[[], bool] = lambda: True,
    ) -> None:
        """Does runs, as many at once as there are places, until none is left that this
        process can do, or has to wait for. alone: this is the one run of a command, in
        which a user's mistake is raised (UserError) and leaves no record. others:
        whether to wait for the runs that other processes do."""
        self.places, self.alone, self._idle = places, alone, time.monotonic()
        try:
            with handling(self._stop):
                waits = True
                while (
                    self.pending
                    and not self.signal
                    and ((on := self._start()) or waits)
                ):
                    waits = others()
                    self._look(1.0 if on or waits else 0.0)
                    for job in [job for job in self.pending if job not in self.running]:
                        # Another process has done it; without places, one of this
                        # command's workers
                        if self.finish(job, 0.0) and places.total:
                            self.send_to_agent(job)
        finally:
            self._end()
            self.display.show([])

    def _start(self) -> bool:
        """Starts a run for each free place. Returns whether runs are on, or wait for
        room on the disk."""
        if time.monotonic() < self._room:
            return True
        for _ in range(self.places.total - len(self.running)):
            left = [job.run for job in self.pending]
            # Another run that one starts from comes first
            free = (
                job
                for job in self.pending
                if job not in self.running and job.run.start not in left
            )
            job = next((job for job in free if not job.lock.is_held()), None)
            if job is None or self.signal:
                break
            gpu, names = (
                gpus.take(self.places.gpus, self.places.share),
                ", ".join(self.places.gpus),
            )
            if names and not gpu:
                more = f"launcher.runs_per_device={self.places.share + 1} shares them"
                told = f"every device here is in use ({names}): waiting for one. {more}"
                if not self._told:
                    self.display.line(told)
                self._idle, self._told = time.monotonic(), True
                break
            job.start(gpu, self.tracking_of(job), self.alone)
            self.running.append(job)
            self.display.started(job.head)
        return bool(self.running)

    def _look(self, seconds: float) -> None:
        """Waits for the end of a process, and shows how far the runs are."""
        ended = connection.wait([job.ready for job in self.running], seconds)
        for job in [job for job in self.running if job.ready in ended]:
            self.running.remove(job)
            self._ended(job)
        pending, on = self.pending, self.running
        if (
            on := on
            if self.places.total
            else [job for job in pending if job.lock.is_held()]
        ):
            self._idle = time.monotonic()
            shown = [(job.head, read_progress(job.output, job.id)) for job in on]
            self.display.show(shown, self._state(on))
        elif pending and self.places.total and time.monotonic() - self._idle > PATIENCE:
            self._idle, holder = float("inf"), pending[0].lock.holder()
            self.display.line(
                f"{pending[0].head}  is being done by {holder}: waiting for it"
            )

    def _ended(self, job: Job) -> None:
        """Finishes a run whose process has ended, or leaves it pending for another
        try."""
        how, error = job.ended()
        if how == FAILED and self.alone and not job.record.exists():
            raise UserError(error)
        finished = self.finish(
            job, time.monotonic() - job.since, error if how == FAILED else ""
        )
        # another process did it, while this one was to begin
        if finished and how == BUSY:
            self.send_to_agent(job)
        if finished or how not in (KILLED, NO_ROOM, SMALLER) or self.signal:
            return
        before, job.saved = job.saved, saved(job.output, job.id)
        since = job.tries if job.saved == before else []
        job.tries = [*since, *{KILLED: [""], NO_ROOM: [error]}.get(how, [])]
        again, lock, when = len(job.tries) <= RETRIES, job.lock, ""
        if how == NO_ROOM:
            pause = ROOM[len(job.tries) - 1]
            self._room = self._idle = time.monotonic() + pause
            when = f" in {duration(pause)}"
        self.display.line(
            f"{job.head}  {error}: {f'tried again{when}' if again else 'given up'}"
        )
        if not again and lock.take():
            # a full disk: it is tried again after all
            with contextlib.suppress(OSError):
                Attempt(job.output, job.id).fail(job.run, error)
            lock.release()

    def _stop(self, number: int, frame: Any = None) -> None:
        self.signal = number
        if number == signal.SIGHUP:
            leave_terminal()
        for job in self.running:
            job.signal(signal.SIGTERM)

    def _end(self) -> None:
        """Ends the processes that are on, which may save first. A second Ctrl-C ends
        them at once."""
        end = time.monotonic() + GRACE
        if self.running and not self.signal:
            print(
                "\nsaving checkpoints. Ctrl-C again does not wait for them",
                file=sys.stderr,
                flush=True,
            )
        try:
            while self.running and time.monotonic() < end:
                # again, for a process that had not set its handler yet
                self._stop(self.signal)
                self._look(1.0)
        finally:
            for job in self.running:
                job.signal(signal.SIGKILL)


# --- a run's process


def _child(
    run: Run,
    run_id: str,
    tries: list[str],
    gpu: str | None,
    tracking: Tracking,
    alone: bool,
    sender: Any,
) -> None:
    """The main function of a run's process. Its output goes into the run's log. It
    sends how it has ended."""
    end_with_parent()
    # the command handles Ctrl-C and a closed terminal, and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop, lock = Stop(), run_lock(run.config["output"], run_id)
    for number in STOPPING:
        handler = signal.SIG_IGN if number == signal.SIGHUP else stop.ask
        signal.signal(number, handler)
    os.environ |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    try:
        _log_into(run, run_id)
        end = BUSY, ""
        if lock.take():  # to the process's end
            end = do(run, run_id, tries, stop, tracking, alone)
    except Exception as error:  # such as a log that cannot be written
        cause, words = cause_of(error)
        end = no_room(tries) if cause == "disk" else FAILED, words
    sender.send(end)


def _log_into(run: Run, run_id: str) -> None:
    """Opens the run's log at its end, as this process's output."""
    path = run_folder(run.config["output"], run_id) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    print(
        f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {run.label}, run {run_id}",
        flush=True,
    )
