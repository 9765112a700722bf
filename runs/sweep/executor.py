"""An executor: takes a run, does it in a process of its own, and tries again where the cause of a failure
allows it. Executors do the runs of every launcher.

python -m runs.sweep.executor SWEEP.json PARENT [DEVICE ... RUNS_PER_DEVICE]      as launchers start it
                                                                            (runs/sweep/launchers.py)
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from runs.command import entry_point
from runs.errors import UserError
from runs.forecast.memory import fitting
from runs.gpus import free_memory
from runs.identity import hash_of
from runs.record import SCHEMA, run_folder
from runs.record.text import FULL, describe, duration
from runs.run import Run
from runs.sweep import progress
from runs.sweep.attempt import Attempt, Ending, start_fork_server
from runs.sweep.devices import lease_device
from runs.sweep.display import LINES, Display, estimate
from runs.sweep.jobs import Job, Outcome, Sweep, settle, settled_record
from runs.sweep.leases import Heart, Lease, LostLeaseError, Watcher, holder_words
from runs.sweep.signals import handling
from runs.tracking import of_run
from tasks.parent import end_with

#: How often a run is tried again after a cause, unless it has saved more in between.
RETRIES = {"killed": 3, "device": 2}
#: So many executors may fall silent over a run. Then it has failed.
LOST_EXECUTORS = 10
#: On a full disk: seconds before each new try. Somebody may make room meanwhile.
ROOM = (30, 60, 120, 240)


class Executor:
    """Does the runs of a sweep that no other executor does, and takes over those of silent ones.

    waits: whether it also waits for the runs of living ones. alone: whether this is the one run of a command,
    in which a user's mistake is raised (UserError) and leaves no record.
    """

    def __init__(self, sweep: Sweep, display: Display, waits: bool = True, alone: bool = False) -> None:
        self.sweep, self.display, self.waits, self.alone = sweep, display, waits, alone
        self.output = sweep.jobs[0].output
        self.watcher = Watcher(self.output, sweep.lease_seconds)
        self.outcome = Outcome()
        self.attempt: Attempt | None = None  # the current one
        self.signal: int | None = None  # the one that asked for an end

    def go(self) -> Outcome:
        """Does runs until none is left that this executor can do."""
        pending, spent = list(self.sweep.jobs), list[tuple[Run, float]]()
        next_line: dict[str, float] = {}
        try:
            with handling(self._stop):
                while pending and self.signal is None:
                    count = len(pending)
                    for job in list(pending):
                        if self.signal is None and self._try(job, pending, spent):
                            pending.remove(job)
                    if len(pending) == count and pending and self.signal is None:
                        # Before it ends, an executor sees each lease grow old or change: nobody else watches
                        if not self.waits and not any(self.watcher.undecided(job.id) for job in pending):
                            break
                        self._show_waiting(pending, next_line)
                        time.sleep(min(1.0, self.sweep.lease_seconds / 8))
        finally:
            self.display.close()
        self.outcome.interrupted = self.signal is not None
        return self.outcome

    def _try(self, job: Job, pending: list[Job], spent: list[tuple[Run, float]]) -> bool:
        """Does a job if it is free. Returns whether it is settled."""
        self.display.start(job.position, job.run, job.words)
        if self._settle(job, None):
            return True
        if any(other.run == job.run.start for other in pending):
            return False  # it starts from that one's adapter
        lease = self._with_room(lambda: self.watcher.take(job.id))
        if lease is None:
            return False
        start = time.monotonic()
        with Heart(lease, self.sweep.lease_seconds) as heart:
            if self._settle(job, None):  # its owner finished it since the check above
                return True
            progress.sweep_up(self.output, job.id)
            left = [other.run for other in pending if other.position > job.position]
            self.display.later, self.display.unknown = estimate(left, spent)
            ending = self._do(job, lease, heart)
        seconds = time.monotonic() - start
        if not self._settle(job, seconds if ending != "lost" else None):
            return False
        spent.append((job.run, seconds))
        return True

    def _settle(self, job: Job, seconds: float | None) -> bool:
        return settle(job, self.sweep, self.outcome, self.display, self.watcher, seconds)

    def _show_waiting(self, pending: list[Job], next_line: dict[str, float]) -> None:
        """Shows who does the jobs that are left: once on a terminal, elsewhere once a minute.

        next_line: by job, the time from which another line is due."""
        now = time.monotonic()
        for job in pending:
            holder = self.watcher.holder(job.id)
            if holder and now >= next_line.get(job.id, now):
                next_line[job.id] = math.inf if self.display.live else now + LINES
                self.display.start(job.position, job.run, job.words)
                self.display.line(f"is being done by {holder_words(holder)}: waiting for it")

    # --- one run

    def _do(self, job: Job, lease: Lease, heart: Heart) -> str:
        """Tries until the run has a record, is interrupted, or is taken over. Returns the cause of the last
        try's end."""
        obstacle, counts = progress.in_the_way(self.output, job.id), dict[str, int]()
        warn = None if obstacle else self.display.line
        attempts = progress.read_attempts(self.output, job.id, job.run.config, warn)
        if obstacle:
            self._fail(job, lease, obstacle, attempts)
            return "record"
        saved = progress.saved(self.output, job.id)
        read = copy.deepcopy(attempts)
        if lease.generation > 1:
            attempts["ended"].append("its executor fell silent")
        if job.run.config["device"] in ("auto", "cuda") and (free := free_memory()):
            # Kept with the attempts: a resumed run computes with the same, whatever is free then
            attempts["settings"] = fitting(job.run, free) | attempts["settings"]
        if attempts != read:
            self._with_room(lambda: progress.write_attempts(self.output, job.id, attempts))
        if lease.generation > LOST_EXECUTORS:
            self._fail(job, lease, f"{LOST_EXECUTORS} executors fell silent over it", attempts)
            return "record"
        tracking = of_run(self.sweep.tracking, job.run, [other.run for other in self.sweep.jobs])
        while True:
            run = replace(job.run, config=job.run.config | attempts["settings"])
            ending = self._attempt(Attempt(run, job.id, lease, attempts, tracking), heart)
            if ending.cause == "mistake" and self.alone:
                raise UserError(ending.error)
            if ending.cause in ("record", "interrupted", "lost"):
                break
            if settled_record(job, self.sweep.failed_before, quiet=True):
                break  # the attempt ended after it had written the record
            before, saved = saved, progress.saved(self.output, job.id)
            counts = counts if saved == before else {}  # it has saved more: count from here
            counts[ending.cause] = counts.get(ending.cause, 0) + 1
            words = self._again(ending, run, attempts, counts[ending.cause])
            if words is None:
                self._fail(job, lease, ending.error, attempts)
                break
            attempts["ended"].append(ending.error)
            self.display.line(f"{_short(ending.error)}: {words}")
            self._with_room(lambda: progress.write_attempts(self.output, job.id, attempts))
        return ending.cause

    def _attempt(self, attempt: Attempt, heart: Heart) -> Ending:
        """Makes one attempt, which `_stop` can end."""
        self.attempt = attempt
        if self.signal is not None:  # the signal came before there was an attempt to stop
            attempt.stop()
        try:
            return attempt.go(heart, self.display.show, self.display.remind)
        finally:
            self.attempt = None

    def _again(self, ending: Ending, run: Run, attempts: dict[str, Any], count: int) -> str | None:
        """Prepares another try. Returns it in words, or None where another try would not help."""
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
        """Writes a file of the executor's own. On a full disk it tries again after pauses."""
        for pause in ROOM:
            try:
                return write()
            except OSError as error:
                if error.errno not in FULL or self.signal is not None:
                    raise
                self.display.line(f"{_short(describe(error))}: tried again in {duration(pause)}")
                self._pause(pause)
        return write()

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.signal is None and time.monotonic() < end:
            time.sleep(0.1)

    def _fail(self, job: Job, lease: Lease, error: str, attempts: dict[str, Any]) -> None:
        """Writes the record of a failed run."""
        record = {
            "schema": SCHEMA,
            "id": job.id,
            "status": "failed",
            "error": error,
            "tries": attempts["ended"],
            "claim": lease.token,
            **job.run.names,
            "config": job.run.config,
            "config_hash": hash_of(job.run.config)[:16],
        }
        try:
            lease.write(self.output, record)
        except (LostLeaseError, UserError):  # UserError: a folder has the record's name, as `settle` reports
            return
        progress.remove(run_folder(self.output, job.id) / "attempts.json")

    def _stop(self, number: int, frame: FrameType | None = None) -> None:
        self.signal = number
        if self.attempt is not None:
            self.attempt.stop()


def with_less_memory(config: dict[str, Any], phase: str) -> tuple[str, int, int] | None:
    """The setting to halve after memory ran out, with its value before and after; None where that would not
    help.

    The effective batch stays: a micro-batch changes the gradient by rounding, and what dropout draws.
    """
    if phase.startswith(("training", "evaluated")):  # an epoch's first step tells of itself when it is done
        whole = config["train"]["effective_batch"]
        key, before = "micro_batch", min(config["micro_batch"] or whole, whole)
    elif phase.startswith(("evaluating", "decoding")):
        key, before = "eval_batch", config["eval_batch"]
    else:
        return None
    return (key, before, before // 2) if before > 1 else None


def _short(error: str) -> str:
    """An error of `describe` without its advice."""
    return error.partition(". Finished runs")[0]


def main(arguments: list[str]) -> int:
    """An executor that a launcher starts. It does not wait for others: its parent does.

    PARENT: the id of the process to end with, which may end before this one can ask for it. DEVICE: those to
    choose from; without them the executor runs where it is."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    end_with(int(arguments[1]))
    sweep = Sweep.load(Path(arguments[0]))
    device = lease_device(arguments[2:-1], int(arguments[-1])) if len(arguments) > 2 else None
    if device:  # held until this process ends
        device.use()
    start_fork_server()
    tasks = {job.run.task for job in sweep.jobs}
    outcome = Executor(sweep, Display(len(sweep.jobs), name_task=len(tasks) > 1), waits=False).go()
    return outcome.exit_code


if __name__ == "__main__":
    entry_point(main)
