"""One executor: takes a run, has it done in a process of its own, judges how that ended, and tries again
where the cause says so.

Whatever the launcher, this is who does the runs.

python -m runs.sweep.executor SWEEP.json PARENT [DEVICE ... RUNS_PER_DEVICE]      what launchers start
                                                                            (runs/sweep/launchers.py)
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from runs.command import entry_point
from runs.config import Run
from runs.errors import UserError
from runs.identity import hash_of
from runs.record import SCHEMA, run_folder
from runs.record.text import describe, duration
from runs.sweep import progress
from runs.sweep.attempt import FULL, STOPPING, Attempt, Ending, listen, start_fork_server
from runs.sweep.devices import DeviceLease
from runs.sweep.display import LINES, Display, Event, estimate
from runs.sweep.jobs import Job, Outcome, Sweep, finished_record, settle, settled_record
from runs.sweep.leases import Heart, Lease, LostLeaseError, Watcher, holder_words
from runs.tracking import Tracker
from tasks.parent import end_with

#: How often a run is tried again after a cause, while nothing is won in between.
RETRIES = {"killed": 3, "device": 2}
#: A run that took so many executors with it is not given to another one.
LOST_EXECUTORS = 10
#: Pauses before a run is tried again on a full disk, in seconds: somebody may make room.
ROOM = (30, 60, 120, 240)


class Executor:
    """Does the runs of a sweep that nobody else does, and takes over those whose owners have fallen silent.

    waits: for runs whose owners live, too. alone: a user's mistake in the one run of a command ends it
    (UserError), without a record.
    """

    def __init__(self, sweep: Sweep, display: Display, waits: bool = True, alone: bool = False) -> None:
        self.sweep, self.display, self.waits, self.alone = sweep, display, waits, alone
        self.output = sweep.jobs[0].run.config["output"]
        self.watcher = Watcher(self.output, sweep.lease_seconds)
        self.tracker = Tracker(sweep.tracking, self.output, runs=[job.run for job in sweep.jobs])
        self.outcome = Outcome()
        self.attempt: Attempt | None = None  # that is on
        self.signal: int | None = None  # that asked for an end

    def go(self) -> Outcome:
        """Until no run is left that this executor could do."""
        pending, spent = list(self.sweep.jobs), list[tuple[Run, float]]()
        next_word: dict[str, float] = {}
        before = {number: listen(number, self._stop) for number in STOPPING}
        try:
            while pending and self.signal is None:
                count = len(pending)
                for job in list(pending):
                    if self.signal is None and self._look(job, pending, spent):
                        pending.remove(job)
                if len(pending) == count and pending and self.signal is None:
                    # Nobody else watches for this one: a lease that it leaves before it can have grown old
                    # never would.
                    if not self.waits and not any(self.watcher.undecided(job.id) for job in pending):
                        break
                    self._tell_waiting(pending, next_word)
                    time.sleep(min(1.0, self.sweep.lease_seconds / 8))
        finally:
            for number, handler in before.items():
                listen(number, handler)
            self.display.close()
            self.tracker.close()
        self.outcome.interrupted = self.signal is not None
        return self.outcome

    def _look(self, job: Job, pending: list[Job], spent: list[tuple[Run, float]]) -> bool:
        """Does a job if it is free. Whether it needs no more looks."""
        self.display.start(job.position, job.run, job.words)
        if self._settle(job, None):
            return True
        if any(other.run == job.run.start for other in pending):
            return False  # it starts from that one's adapter
        lease = self._with_room(lambda: self.watcher.take(job.id))
        if lease is None:
            return False
        begun_at = time.monotonic()
        with Heart(lease, self.sweep.lease_seconds) as heart:
            if self._settle(job, None):  # by its owner, between the two looks
                return True
            progress.sweep_up(self.output, job.id)
            left = [other.run for other in pending if other.position > job.position]
            self.display.later, self.display.unknown = estimate(left, spent)
            ending = self._do(job, lease, heart)
        seconds = time.monotonic() - begun_at
        if not self._settle(job, seconds if ending != "lost" else None):
            return False
        spent.append((job.run, seconds))
        return True

    def _settle(self, job: Job, seconds: float | None) -> bool:
        settled = settle(job, self.sweep, self.outcome, self.display, self.watcher, seconds)
        asked_for = settled and seconds is None and job.run == self.tracker.agents
        if asked_for and (record := finished_record(job.output, job.id)):
            self.tracker.skip(job.run, job.id, record)
        return settled

    def _tell_waiting(self, pending: list[Job], next_word: dict[str, float]) -> None:
        """Says who does the jobs that are left: once on a terminal, elsewhere once a minute (next_word: when,
        by job)."""
        now = time.monotonic()
        for job in pending:
            holder = self.watcher.holder(job.id)
            if holder and now >= next_word.get(job.id, now):
                next_word[job.id] = math.inf if self.display.live else now + LINES
                self.display.start(job.position, job.run, job.words)
                self.display.line(f"is being done by {holder_words(holder)}: waiting for it")

    # --- one run

    def _do(self, job: Job, lease: Lease, heart: Heart) -> str:
        """Tries until the run has a record, or has none for now: interrupted, or taken over. The last try's
        cause."""
        why, counts = progress.in_the_way(self.output, job.id), dict[str, int]()
        attempts = progress.read_attempts(
            self.output, job.id, job.run.config, None if why else self.display.line
        )
        if why:
            self._fail(job, lease, why, attempts)
            return "record"
        saved = progress.saved(self.output, job.id)
        if lease.generation > 1:
            attempts["ended"].append("its executor fell silent")
            self._with_room(lambda: progress.write_attempts(self.output, job.id, attempts))
        if lease.generation > LOST_EXECUTORS:
            self._fail(job, lease, f"{LOST_EXECUTORS} executors fell silent over it", attempts)
            return "record"
        self.tracker.begin(job.run, job.id)
        while True:
            run = replace(job.run, config=job.run.config | attempts["settings"])
            ending = self._attempt(Attempt(run, job.id, lease, attempts), heart)
            if ending.cause == "mistake" and self.alone:
                raise UserError(ending.error)
            if ending.cause in ("record", "interrupted", "lost"):
                break
            if settled_record(job, self.sweep.failed_before, quiet=True):
                break  # it ended after it had written that: another try would begin anew
            before, saved = saved, progress.saved(self.output, job.id)
            # A try that has won something counts as a new beginning
            counts = counts if saved == before else {}
            counts[ending.cause] = counts.get(ending.cause, 0) + 1
            words = self._again(ending, run, attempts, counts[ending.cause])
            if words is None:
                self._fail(job, lease, ending.error, attempts)
                break
            attempts["ended"].append(ending.error)
            self.display.line(f"{ending.error.partition('. Finished runs')[0]}: {words}")
            self._with_room(lambda: progress.write_attempts(self.output, job.id, attempts))
        record = settled_record(job, {})
        self.tracker.end(record if ending.cause not in ("interrupted", "lost") else None)
        return ending.cause

    def _attempt(self, attempt: Attempt, heart: Heart) -> Ending:
        """Makes one attempt, which a signal stops."""

        def show(event: Event) -> None:
            self.display.show(event)
            self.tracker.event(event)

        self.attempt = attempt
        if self.signal is not None:  # it came before there was an attempt to stop
            attempt.stop()
        try:
            return attempt.go(heart, show, self.display.remind)
        finally:
            self.attempt = None

    def _again(self, ending: Ending, run: Run, attempts: dict[str, Any], count: int) -> str | None:
        """How the run is tried again, in words; None where that would not help."""
        if ending.cause == "memory":
            smaller = with_less_memory(run.config, ending.phase)
            if smaller is None:
                return None
            key, before, after = smaller
            attempts["settings"][key] = after
            kept = "; the effective batch stays" if key == "micro_batch" else ""
            name = progress.HALVED[key]
            attempts["deviations"] = [words for words in attempts["deviations"] if not words.startswith(name)]
            attempts["deviations"].append(f"{name} {after}, since memory ran out at {before}{kept}")
            return f"tried again with {name} {after}"
        if ending.cause == "disk" and count <= len(ROOM):
            self._pause(ROOM[count - 1])
            return "tried again"
        return "tried again" if count <= RETRIES.get(ending.cause, 0) else None

    def _with_room(self, write: Callable[[], Any]) -> Any:
        """Writes something of the executor's own; a full disk is given time to be emptied."""
        for pause in (*ROOM, None):
            try:
                return write()
            except OSError as error:
                if pause is None or error.errno not in FULL or self.signal is not None:
                    raise
                self.display.line(
                    f"{describe(error).partition('. Finished runs')[0]}: tried again in {duration(pause)}"
                )
                self._pause(pause)
        return None

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.signal is None and time.monotonic() < end:  # a signal ends it
            time.sleep(0.1)

    def _fail(self, job: Job, lease: Lease, error: str, attempts: dict[str, Any]) -> None:
        """Writes a record that says so; the same command tries again."""
        run = job.run
        try:
            lease.write(
                self.output,
                {
                    "schema": SCHEMA,
                    "id": job.id,
                    "status": "failed",
                    "error": error,
                    "tries": attempts["ended"],
                    "claim": lease.token,
                    **run.names,
                    "config": run.config,
                    "config_hash": hash_of(run.config)[:16],
                },
            )
        except (LostLeaseError, UserError):
            # The latter: something else is in its place, which `settle` says
            return
        progress.remove(run_folder(self.output, job.id) / "attempts.json")

    def _stop(self, number: int, frame: FrameType | None = None) -> None:
        self.signal = number
        if self.attempt is not None:
            self.attempt.stop()


def with_less_memory(config: dict[str, Any], phase: str) -> tuple[str, int, int] | None:
    """What is halved after memory ran out, its value before, and after; None where that would not help.

    The effective batch stays: a micro-batch changes the gradient by rounding, and what dropout draws.
    """
    if phase.startswith("training"):
        key, before = (
            "micro_batch",
            min(config["micro_batch"] or sys.maxsize, config["train"]["effective_batch"]),
        )
    elif phase.startswith(("evaluat", "decoding")):
        key, before = "eval_batch", config["eval_batch"]
    else:
        return None
    return (key, before, before // 2) if before > 1 else None


def main(arguments: list[str]) -> int:
    """An executor that a launcher starts, with devices and how many runs may share one, or where it is. It
    leaves waiting for others to whoever started it. The parent is named, since it may be gone before this
    process can ask for it."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    end_with(int(arguments[1]))
    sweep = Sweep.load(Path(arguments[0]))
    device = DeviceLease(arguments[2:-1], int(arguments[-1])) if len(arguments) > 2 else None
    if device:  # until this process ends
        device.use()
    start_fork_server()
    tasks = {job.run.task for job in sweep.jobs}
    outcome = Executor(sweep, Display(len(sweep.jobs), name_task=len(tasks) > 1), waits=False).go()
    return outcome.exit_code


if __name__ == "__main__":
    entry_point(main)
