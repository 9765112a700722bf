"""The runs of a command: how each ends, and the processes that do them on this machine,
as many at once as there are slots. One function counts and shows each end, whoever did
the run.

A process takes its run's lock and trains, once: a retry is another process. It is
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

from runs.command.errors import UserError
from runs.machine import gpus
from runs.machine.locks import PATIENCE_S, Lock, run_lock
from runs.machine.processes import handling_signals
from runs.record.cell import hash_of
from runs.record.ledger import finished_record, read_record, record_path, run_folder
from runs.record.schema import FINISHED, Record
from runs.record.text import duration
from runs.run.definition import Run
from runs.run.provenance import difference_if_run_again
from runs.sweep.child import run_in_child
from runs.sweep.display import (
    Display,
    RunningRun,
    SweepState,
    TimeLeft,
    leave_terminal,
    read_progress,
    result_words,
    seconds_left_of,
    seconds_of_record,
    seconds_spent,
    sweep_words,
)
from runs.tracking.tracker import Tracker, Tracking, tracking_of_run
from runs.training.files import Attempt, saved_progress, tidy
from runs.training.train import (
    BATCH_HALVED,
    BUSY,
    DISK_FULL,
    DISK_PAUSES_S,
    FAILED,
    KILLED,
    End,
)

#: How often a run is retried, unless it has saved more in between.
RETRIES = 3
#: Seconds that runs have to save, after they were asked to stop.
GRACE_S = 60
#: Seconds between two looks at the running processes.
LOOK_INTERVAL_S = 1.0


class Job:
    """A run of a sweep, and its process.

    Attributes:
        head: how its lines begin: with its number, and what tells it from other runs.
        record, log: the paths of its record and its log.
        earlier_seconds: how long the attempts took that its process continues.
        earlier_claim: the `claim` of a failed record from before the command: a token
            of the attempt that wrote it. The record of a new failure has another.
        failures: as in `attempt_run`.
        saved: what attempts had saved when a process last failed (`saved_progress`).
        child, ready: its process, and a pipe that can be read when the process ends.
        started_at: when it was started, by time.monotonic(); None if it was not.
    """

    def __init__(self, head: str, run: Run, run_id: str) -> None:
        self.head = head
        self.run = run
        self.id = run_id
        self.output = str(run.config["output"])
        self.record = record_path(self.output, run_id)
        self.log = str(run_folder(self.output, run_id) / "log.txt")
        self.earlier_claim: str | None = None
        self.failures: list[str] = []
        self.saved: list[tuple[str, int]] = []
        self.gpu: gpus.TakenGpu | None = None
        self.started_at: float | None = None
        self.earlier_seconds = 0.0
        self.ready: Any = None
        self.child: Any = None

    @property
    def lock(self) -> Lock:
        """The lock that its process takes."""
        return run_lock(self.output, self.id)

    def start(
        self, gpu: gpus.TakenGpu | None, tracking: Tracking, is_only_run: bool
    ) -> None:
        """Starts its process, on `gpu` if there is one. is_only_run: whether the command
        has no other run; a user's mistake then leaves no record."""
        self.gpu = gpu
        self.read_earlier_seconds()
        self.started_at = time.monotonic()
        context = multiprocessing.get_context("forkserver")
        self.ready, sender = context.Pipe(duplex=False)
        name = gpu.name if gpu else None
        args = (self.run, self.id, self.failures, name, tracking, is_only_run, sender)
        self.child = context.Process(target=run_in_child, args=args, daemon=True)
        # The fork server may have been killed; `wait_for_end` then reports it
        with contextlib.closing(sender), contextlib.suppress(OSError, EOFError):
            self.child.start()

    def read_earlier_seconds(self) -> None:
        """Looks up how long the attempts took whose checkpoint the process continues."""
        self.earlier_seconds = 0.0
        if saved_progress(self.output, self.id):
            progress = read_progress(self.output, self.id)
            self.earlier_seconds = seconds_spent(progress)

    def signal(self, number: int) -> None:
        """Sends its process a signal. SIGTERM asks the run to save and to end."""
        with contextlib.suppress(OSError, TypeError):  # it has ended, or never started
            os.kill(self.child.pid, number)

    def wait_for_end(self) -> End:
        """Waits until its process has ended, gives the GPU back, and returns how it
        ended."""
        end: End | None = None
        with contextlib.closing(self.ready), contextlib.suppress(EOFError, OSError):
            end = self.ready.recv()
        if self.child.pid:
            self.child.join()
        if self.gpu:
            self.gpu.lock.release()
        if end:
            return end
        code = self.child.exitcode
        # 255: the fork server was killed, too. None: the process never started.
        if code in (-signal.SIGKILL, 255, None):
            return KILLED, "the process was killed (out of memory?)"
        return KILLED, f"the process ended with code {code}"


class Slots(NamedTuple):
    """How many runs this command does at once on this machine (total), and on which GPUs.
    With a total of 0 it does none, and only watches workers.

    gpus: the names of the GPUs. Each run takes one that fewer than `share` runs use,
    counted over all commands of this machine. Empty on a CPU, or if a scheduler has
    chosen the GPU."""

    total: int = 0
    gpus: Sequence[str] = ()
    share: int = 1


def slots_of(device: str, share: int, all_devices: bool) -> Slots:
    """The slots for `device=`: `share` on each device, or one in all if not all_devices."""
    names = gpus.devices(device)
    has_gpus = not {"cpu", "mps"} & set(names)
    return Slots(
        total=len(names) * share if all_devices else 1,
        gpus=names if has_gpus else (),
        share=share,
    )


class Sweep:
    """The runs of one command, which it does in processes of their own, and how they
    have ended. Paths begin at the command's folder.

    pending: the jobs that have not ended, here or elsewhere. running: those that have a
    process of this command. done, skipped: how many it has done, and how many were done
    before. diverged, failed: these jobs, each with its error. signal: the number of the
    signal that asked for an end, or 0."""

    def __init__(self, jobs: list[Job], tracking: Tracking) -> None:
        self.jobs = jobs
        self.tracking = tracking
        self.pending = [*jobs]
        self.running: list[Job] = []
        self.done = 0
        self.skipped = 0
        self.diverged: list[tuple[Job, str]] = []
        self.failed: list[tuple[Job, str]] = []
        self.signal = 0
        self.display = Display()
        self.slots = Slots()
        self.is_only_run = False
        self._time_left = TimeLeft()
        #: Since when no process has been running; infinity once the display has said so.
        self._idle_since = 0.0
        #: After a full disk: no run starts before this time.
        self._disk_retry_at = 0.0
        self._waits_for_gpu = False

    @property
    def exit_code(self) -> int:
        """143 if a signal other than Ctrl-C ended the command (after Ctrl-C the caller
        exits with 130); 1 if a run failed. A diverged run is a result, not a failure."""
        if self.signal:
            return 143
        return 1 if self.failed else 0

    @property
    def name(self) -> str:
        """The name of the sweep and of its Slurm jobs: its preset, and a hash of its
        runs and folder."""
        folder = str(Path(self.jobs[0].output).resolve())
        preset = self.jobs[0].run.experiment or "runs"
        content = hash_of([folder, [job.id for job in self.jobs]])
        return f"{preset}-{content[:8]}"

    def tracking_of(self, job: Job) -> Tracking:
        """The settings for sending a run to W&B."""
        runs = [entry.run for entry in self.jobs]
        return tracking_of_run(self.tracking, job.run, runs)

    # --- how a run ends

    def finish(self, job: Job, seconds: float | None, error: str = "") -> bool:
        """Counts, shows and tidies up a job, if it has ended: if it has a finished
        record, or has failed. Otherwise returns False, and the job stays pending.

        Args:
            seconds: how long its process took; 0 if another command did the run, None
                for the look before this command does its first run.
            error: why its process wrote no record; "" if it may still be tried again.
        """
        record = self._read_record(job, is_first_look=seconds is None)
        if record and record["status"] not in FINISHED:
            claim = record.get("claim")
            if seconds is None:
                job.earlier_claim = claim
            # A failure from before this command does not count: the run is tried again
            if claim != job.earlier_claim:
                error = record["error"] or ""
            record = None
        if record is None and not error:
            return False
        self.pending.remove(job)
        if record is None:
            self.failed.append((job, error))
            self.display.line(f"{job.head}  FAILED: {error} ({job.log})")
        else:
            tidy(job.output, record)
            self._count(job, record, seconds)
        return True

    def _read_record(self, job: Job, is_first_look: bool) -> Record | None:
        """A job's record; None if there is none, or if it is damaged."""
        try:
            return read_record(job.record)
        except ValueError as damage:
            if is_first_look and job.record.is_file():
                print(f"{damage}: the run is done again", file=sys.stderr)
            return None

    def _count(self, job: Job, record: Record, seconds: float | None) -> None:
        """Counts and shows a job with a finished record. seconds: as in `finish`."""
        line = result_words(record, job.output)
        if seconds is None:  # it was done before this command
            self.skipped += 1
            self.send_to_agent(job)
            line = f"already done ({line}, run {job.id}), skipped"
            difference = difference_if_run_again(record, job.run)
            if difference:
                line += f": {difference}"
            self.display.line(f"{job.head}  {line}")
            return
        if record["status"] == "diverged":
            self.diverged.append((job, record["error"] or ""))
        else:
            self.done += 1
        # 0 seconds: another command did it, and the record says how long it took
        total_seconds = (
            job.earlier_seconds + seconds if seconds else seconds_of_record(record)
        )
        if record["status"] == "done":
            line += f"  {duration(total_seconds)}"
            if seconds and job.earlier_seconds:
                line += f" ({duration(seconds)} since it was resumed)"
            line += f"  run {job.id}"
        self._time_left.add(job.run, total_seconds)
        state = self._sweep_state(self.running)
        if self.pending and state:
            line += f"  ({state.words})"
        self.display.line(f"{job.head}  {line}")

    def _sweep_state(self, running: Sequence[Job]) -> SweepState | None:
        """How far the sweep is, and the time that is left; None for a single run.
        running: the jobs that are running now, here or elsewhere."""
        if len(self.jobs) == 1:
            return None
        entries = list[RunningRun]()
        for job in running:
            seconds_left = seconds_left_of(read_progress(job.output, job.id))
            elapsed = job.earlier_seconds
            if job.started_at is not None:
                elapsed += time.monotonic() - job.started_at
            entries.append(RunningRun(job.run, elapsed, seconds_left))
        waiting = [job.run for job in self.pending if job not in running]
        seconds_left = self._time_left.of_sweep(waiting, entries)
        total = len(self.jobs)
        ended = total - len(self.pending)
        return SweepState(ended, total, sweep_words(ended, total, seconds_left))

    def send_to_agent(self, job: Job) -> None:
        """Sends the record of a run that this command did not do to W&B, if `wandb agent`
        started the command for that run."""
        settings = self.tracking_of(job)
        if not settings.agent:
            return
        record = finished_record(job.output, job.id)
        if record:
            Tracker(settings, job.run, job.id, record).finish(record)

    # --- the processes of runs

    def do_pending_runs(
        self,
        slots: Slots,
        is_only_run: bool = False,
        waits_for_others: Callable[[], bool] = lambda: True,
    ) -> None:
        """Does runs, as many at once as there are slots, until none is left that this
        process can do or has to wait for.

        Args:
            is_only_run: whether the command has no other run. A user's mistake is then
                raised (UserError) and leaves no record.
            waits_for_others: tells in each round whether to stay although this process
                has nothing to do, for the runs that others do now. By default it stays.
        """
        self.slots = slots
        self.is_only_run = is_only_run
        self._idle_since = time.monotonic()
        try:
            with handling_signals(self._pass_signal_on):
                waits = True
                while self.pending and not self.signal:
                    is_busy = self._fill_slots()
                    # waits is of the last round: what others did by then was counted
                    if not is_busy and not waits:
                        break
                    waits = waits_for_others()
                    self._await_ends(LOOK_INTERVAL_S if is_busy or waits else 0.0)
                    self._finish_runs_of_others()
        finally:
            self._end_processes()
            self.display.show([])

    def _finish_runs_of_others(self) -> None:
        """Finishes pending runs that other processes have done. A command without slots
        watches its workers, which have sent their runs to W&B themselves."""
        for job in [job for job in self.pending if job not in self.running]:
            if self.finish(job, 0.0) and self.slots.total:
                self.send_to_agent(job)

    def _fill_slots(self) -> bool:
        """Starts a run for each free slot. Returns whether runs are running, or wait
        because the disk was full."""
        if time.monotonic() < self._disk_retry_at:
            return True
        for _ in range(self.slots.total - len(self.running)):
            job = self._free_job()
            if job is None or self.signal:
                break
            gpu = gpus.take(self.slots.gpus, self.slots.share)
            if self.slots.gpus and not gpu:
                self._wait_for_gpu()
                break
            job.start(gpu, self.tracking_of(job), self.is_only_run)
            self.running.append(job)
            self.display.started(job.head)
        return bool(self.running)

    def _free_job(self) -> Job | None:
        """A pending job that no process does now. If it starts from another run, that run
        has to be done."""
        pending_runs = [job.run for job in self.pending]
        for job in self.pending:
            is_free = job not in self.running and job.run.start not in pending_runs
            if is_free and not job.lock.is_held():
                return job
        return None

    def _wait_for_gpu(self) -> None:
        """Says, the first time, that every GPU is in use."""
        if not self._waits_for_gpu:
            names = ", ".join(self.slots.gpus)
            shared = f"launcher.runs_per_device={self.slots.share + 1} shares them"
            self.display.line(
                f"every device here is in use ({names}): waiting for one. {shared}"
            )
        self._idle_since = time.monotonic()
        self._waits_for_gpu = True

    def _await_ends(self, seconds: float) -> None:
        """Waits for the end of a process, so many seconds at most, and shows how far the
        runs are: this command's own or, without slots, those of its workers."""
        ended = connection.wait([job.ready for job in self.running], seconds)
        for job in [job for job in self.running if job.ready in ended]:
            self.running.remove(job)
            self._handle_end(job)
        watched = self.running
        if not self.slots.total:
            watched = [job for job in self.pending if job.lock.is_held()]
        if watched:
            self._idle_since = time.monotonic()
            events = [(job.head, read_progress(job.output, job.id)) for job in watched]
            self.display.show(events, self._sweep_state(watched))
        elif self.pending and self.slots.total:
            self._note_long_wait()

    def _note_long_wait(self) -> None:
        """Says, once and after PATIENCE_S, which process this command waits for."""
        if time.monotonic() - self._idle_since > PATIENCE_S:
            self._idle_since = float("inf")
            job = self.pending[0]
            holder = job.lock.holder()
            self.display.line(f"{job.head}  is being done by {holder}: waiting for it")

    def _handle_end(self, job: Job) -> None:
        """Finishes a run whose process has ended, or leaves it pending for a retry. Raises
        UserError for a user's mistake in the only run of a command."""
        ending, error = job.wait_for_end()
        if ending == FAILED and self.is_only_run and not job.record.exists():
            raise UserError(error)
        seconds = time.monotonic() - (job.started_at or 0.0)
        finished = self.finish(job, seconds, error if ending == FAILED else "")
        if finished and ending == BUSY:  # another process had the lock, and did the run
            self.send_to_agent(job)
        # BUSY leaves it to another process, and STOPPED to a later command
        if finished or ending not in (KILLED, DISK_FULL, BATCH_HALVED) or self.signal:
            return
        self._count_failure(job, ending, error)
        if len(job.failures) > RETRIES:
            self.display.line(f"{job.head}  {error}: given up")
            self._give_up(job, error)
            return
        line = f"{job.head}  {error}: tried again"
        if ending == DISK_FULL:
            pause = DISK_PAUSES_S[len(job.failures) - 1]
            self._disk_retry_at = self._idle_since = time.monotonic() + pause
            line += f" in {duration(pause)}"
        self.display.line(line)

    def _count_failure(self, job: Job, ending: str, error: str) -> None:
        """Counts a failed process, from 0 if more was saved since the last failure. One
        that ran out of memory is not counted, since the next halves its batch."""
        saved_earlier = job.saved
        job.saved = saved_progress(job.output, job.id)
        if job.saved != saved_earlier:
            job.failures = []
        if ending == KILLED:
            job.failures = [*job.failures, ""]
        elif ending == DISK_FULL:
            job.failures = [*job.failures, error]

    def _give_up(self, job: Job, error: str) -> None:
        """Writes the failed record of a job that is not retried any more. The next look
        at the pending jobs (`finish`) counts it as failed."""
        lock = job.lock
        if lock.take():
            # a full disk may refuse this record, too: the run then stays pending
            with contextlib.suppress(OSError):
                Attempt(job.output, job.id).fail(job.run, error)
            lock.release()

    def _pass_signal_on(self, number: int, frame: Any = None) -> None:
        """Handles a signal to the command: asks its runs to save and to end."""
        self.signal = number
        if number == signal.SIGHUP:
            leave_terminal()
        for job in self.running:
            job.signal(signal.SIGTERM)

    def _end_processes(self) -> None:
        """Asks the running processes to save, and ends them after GRACE_S seconds or, by a
        KeyboardInterrupt, at a second Ctrl-C."""
        deadline = time.monotonic() + GRACE_S
        if self.running and not self.signal:
            print(
                "\nsaving checkpoints. Ctrl-C again does not wait for them",
                file=sys.stderr,
                flush=True,
            )
        try:
            while self.running and time.monotonic() < deadline:
                # Again, for a process that had not set its handlers yet
                self._pass_signal_on(self.signal)
                self._await_ends(LOOK_INTERVAL_S)
        finally:
            for job in self.running:
                job.signal(signal.SIGKILL)
