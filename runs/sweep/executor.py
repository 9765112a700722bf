"""One executor: takes a run, has it done in a process of its own, judges how that ended, and tries again
where the cause says so.

Whatever the launcher, this is who does the runs.

python -m runs.sweep.executor SWEEP.json PARENT [DEVICE ... RUNS_PER_DEVICE]      what launchers start
                                                                            (runs/sweep/launchers.py)
"""

import multiprocessing
import os
import signal
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
from runs.record import SCHEMA, record_path, row_label, run_folder
from runs.record.text import describe, duration
from runs.sweep import progress
from runs.sweep.attempt import (
    FULL,
    INTERRUPTED,
    STOPPING,
    Ending,
    _child,
    _kernel_kills,
    _listen,
    start_fork_server,
)
from runs.sweep.display import Display, Event, estimate, result_words
from runs.sweep.jobs import Job, Outcome, Sweep, failure, settled_record, skipped_words, tidy
from runs.sweep.leases import Heart, Lease, LostLeaseError, Watcher, holder_words
from runs.tracking import Tracker
from tasks.parent import end_with

#: How often a run is tried again after a cause, while nothing is won in between.
RETRIES = {"killed": 3, "device": 2}
#: A run that took so many executors with it is not given to another one.
LOST_EXECUTORS = 10
#: Pauses before a run is tried again on a full disk, in seconds: somebody may make room.
ROOM = (30, 60, 120, 240)
#: What a run's process may take to save when it is asked to stop, in seconds.
GRACE = 60


class Executor:
    """Does the runs of a sweep that nobody else does, and takes over those whose owners have fallen silent.

    waits: for runs whose owners live, too. alone: a user's mistake in the one run of a command ends it
    (UserError), without a record.
    """

    def __init__(self, sweep: Sweep, display: Display, waits: bool = True, alone: bool = False) -> None:
        self.sweep, self.display, self.waits, self.alone = sweep, display, waits, alone
        self.output = sweep.jobs[0].run.config["output"]
        self.watcher = Watcher(self.output, sweep.lease_seconds)
        self.tracker = Tracker(sweep.tracking, self.output)
        self.outcome = Outcome()
        self.child: Any = None  # the process of the run that is on
        self.signal: int | None = None  # that asked for an end

    def go(self) -> Outcome:
        """Until no run is left that this executor could do."""
        pending, spent = list(self.sweep.jobs), list[tuple[Run, float]]()
        told: set[str] = set()
        before = {number: _listen(number, self._stop) for number in STOPPING}
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
                    self._tell_waiting(pending, told)
                    time.sleep(min(1.0, self.sweep.lease_seconds / 8))
        finally:
            for number, handler in before.items():
                _listen(number, handler)
            self.display.close()
            self.tracker.close()
        self.outcome.interrupted = self.signal is not None
        return self.outcome

    def _look(self, job: Job, pending: list[Job], spent: list[tuple[Run, float]]) -> bool:
        """Does a job if it is free. Whether it needs no more looks."""
        self.display.start(job.position, job.run, job.words)
        if self._settled(job, done_here=False):
            return True
        if any(other.run == job.run.start for other in pending):
            return False  # it starts from that one's adapter
        lease = self._with_room(lambda: self.watcher.take(job.id))
        if lease is None:
            return False
        begun_at = time.monotonic()
        with Heart(lease, self.sweep.lease_seconds) as heart:
            if self._settled(job, done_here=False):  # by its owner, between the two looks
                return True
            progress.sweep_up(self.output, job.id)
            left = [other.run for other in pending if other.position > job.position]
            self.display.later, self.display.unknown = estimate(left, spent)
            ending = self._do(job, lease, heart)
        seconds = time.monotonic() - begun_at
        if not self._settled(job, done_here=ending != "lost", seconds=seconds):
            return False
        spent.append((job.run, seconds))
        return True

    def _settled(self, job: Job, done_here: bool, seconds: float = 0.0) -> bool:
        """Whether a job has its record, which then counts, and is shown."""
        record = settled_record(job, self.sweep.failed_before)
        log = str(run_folder(self.output, job.id) / "log.txt")
        error = progress.obstacle(record_path(self.output, job.id)) if record is None else failure(record)
        if error is not None:
            self.outcome.failed.append((job.run, error, log))
            self.display.line(f"FAILED: {error} ({log})")
            return True
        if record is None:
            return False
        tidy(job, record, self.watcher)
        if not done_here:
            self.outcome.skipped += 1
            self.display.line(skipped_words(record))
        elif record["status"] == "diverged":
            self.outcome.diverged.append((job.run, record["error"], log))
            self.display.line(f"DIVERGED: {record['error']}")
        else:
            self.outcome.done += 1
            self.display.line(f"{result_words(record)}  {duration(seconds)}  run {record['id']}")
        return True

    def _tell_waiting(self, pending: list[Job], told: set[str]) -> None:
        for job in pending:
            holder = self.watcher.holder(job.id)
            if holder and job.id not in told:
                told.add(job.id)
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
            ending = self._try(run, job.id, lease, attempts, heart)
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
                    "cell": {
                        "paper": run.experiment,
                        "row": run.row,
                        "model": run.model,
                        "task": run.config["task"]["name"],
                        "seed": run.seed,
                    },
                    "label": {"row": row_label(run.config)}
                    | {part: run.config[part]["label"] for part in ("model", "task")},
                    "config": run.config,
                    "config_hash": hash_of(run.config)[:16],
                },
            )
        except (LostLeaseError, UserError):
            # The latter: something else is in its place, which `_settled` says
            return
        progress.remove(run_folder(self.output, job.id) / "attempts.json")

    def _try(self, run: Run, run_id: str, lease: Lease, attempts: dict[str, Any], heart: Heart) -> Ending:
        """Does the run in a process of its own."""
        context = multiprocessing.get_context("forkserver")
        receiver, sender = context.Pipe(duplex=False)
        killed_before = _kernel_kills()
        child = context.Process(target=_child, args=(run, run_id, lease, attempts, sender), daemon=True)
        try:
            child.start()
        except (OSError, EOFError):  # of a connection: the server was killed at this moment
            return Ending("killed", "the process that runs are forked from was killed", "loading")
        finally:
            sender.close()
        self.child = child  # which can be asked to stop from here on
        ended: Event | None = None
        latest: Event = {}
        phase, written, here = "loading", 0.0, {"host": os.uname().nodename, "pid": os.getpid()}
        try:
            while True:
                if self.signal is not None and child.is_alive():
                    child.terminate()  # it may have come before there was a process to ask
                if heart.lost:
                    child.kill()
                try:
                    if not receiver.poll(1.0):
                        continue
                    event = receiver.recv()
                except EOFError:
                    break
                if "cause" in event:
                    ended = event
                    continue
                phase = event["phase"]
                self.display.show(event)
                self.tracker.event(event)
                latest = {k: v for k, v in latest.items() if k not in ("done", "of", "milestone")} | event
                if phase != "training" or time.monotonic() - written > 2:
                    written = time.monotonic()
                    progress.write_progress(self.output, run_id, latest | here)
            child.join()
        except BaseException:
            self._end(child)
            raise
        finally:
            self.child = None
            receiver.close()
        if heart.lost:
            return Ending("lost")
        if ended:
            return Ending(ended["cause"], ended["error"], phase)
        code = child.exitcode or 0
        if code == INTERRUPTED or (
            self.signal is not None and code in (-signal.SIGTERM, -signal.SIGUSR1, -signal.SIGUSR2)
        ):
            return Ending("interrupted")
        if code == 0:
            return Ending("record")
        if code == -signal.SIGKILL and _kernel_kills() > killed_before:
            return Ending("memory", "out of memory: the kernel ended the process", phase)
        if code in (-signal.SIGKILL, 255):  # 255: the server that it was forked from is gone, too
            return Ending("killed", "the process was killed (signal 9; out of memory?)", phase)
        words = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Ending("killed" if code < 0 else "error", f"the process ended with {words}", phase)

    def _end(self, child: Any) -> None:
        """Ends a run's process: it may save first. A second Ctrl-C does not wait."""
        end, told = time.monotonic() + GRACE, False
        try:
            while child.is_alive() and time.monotonic() < end:
                child.terminate()  # again: one that comes before the process listens is not heard
                child.join(1)
                if child.is_alive() and not told:
                    told = True
                    print(
                        "\nsaving where the run is. Ctrl-C again does not wait for it",
                        file=sys.stderr,
                        flush=True,
                    )
        finally:
            if child.is_alive():
                child.kill()
                child.join(5)

    def _stop(self, number: int, frame: FrameType | None = None) -> None:
        self.signal = number
        if self.child is not None:
            self.child.terminate()


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
    if len(arguments) > 2:
        from runs.sweep.devices import DeviceLease

        DeviceLease(arguments[2:-1], int(arguments[-1])).use()
    start_fork_server()
    tasks = {job.run.task for job in sweep.jobs}
    outcome = Executor(sweep, Display(len(sweep.jobs), name_task=len(tasks) > 1), waits=False).go()
    return outcome.exit_code


if __name__ == "__main__":
    entry_point(main)
