"""One executor: claims a run, does it in a process of its own, judges how that ended, and tries again where
the cause says so.

Whatever the launcher, this is who does the runs. The processes are forked from a server that has torch
imported already, so a run starts in a fraction of a second, and no state leaks from one to the next.

python -m runs.executor SWEEP.json PARENT [DEVICE ... RUNS_PER_DEVICE]      what launchers start
                                                                            (runs/launch.py)
"""

import errno
import functools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from runs import begun
from runs.claims import Claim, Heart, LostClaimError, Watcher, holder_words
from runs.config import Run
from runs.display import Display, Event, result_words
from runs.errors import UserError, entry_point, is_users
from runs.identity import hash_of
from runs.record import (
    FINISHED,
    SCHEMA,
    Record,
    read_record,
    record_path,
    row_label,
    run_folder,
    write_atomically,
)
from runs.record.text import describe, duration
from runs.sources import changed_words
from runs.tracking import Tracker, Tracking
from tasks.parent import PARENT, end_with

#: How a run's process ends that was asked to stop: it goes on later (sysexits.h: a temporary failure).
INTERRUPTED = 75
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: How often a run is tried again after a cause, while nothing is won in between.
RETRIES = {"killed": 3, "device": 2}
#: A run that took so many executors with it is not given to another one.
LOST_EXECUTORS = 10
#: How the operating system says that the disk, or the user's part of it, is full.
FULL = (errno.ENOSPC, errno.EDQUOT)
#: Pauses before a run is tried again on a full disk, in seconds: somebody may make room.
ROOM = (30, 60, 120, 240)
#: What a run's process may take to save when it is asked to stop, in seconds.
GRACE = 60


@dataclass(frozen=True)
class Job:
    """A run of a sweep: its place in it from 1, its id, and the words that tell it from others of the same
    row and task."""

    position: int
    run: Run
    id: str
    words: str = ""


@dataclass
class Outcome:
    """How the runs of one command ended."""

    done: int = 0
    skipped: int = 0
    diverged: list[tuple[Run, str, str]] = field(default_factory=list)
    failed: list[tuple[Run, str, str]] = field(default_factory=list)  # the run, its error, its log
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        return 143 if self.interrupted else 1 if self.failed else 0


@dataclass(frozen=True)
class Sweep:
    """What executors are given: the jobs, and whose failed records stood there before (these are tried
    again)."""

    jobs: list[Job]
    failed_before: dict[str, str | None]
    lease_seconds: float
    tracking: str | None

    def save(self, path: Path) -> None:
        """For executors that are other processes, maybe on other machines, and the folder that paths begin
        at."""
        write_atomically(path, json.dumps(asdict(self) | {"folder": os.getcwd()}))

    @staticmethod
    def load(path: Path) -> "Sweep":
        """Reads what `save` wrote, and goes to its folder."""
        found = json.loads(path.read_text(encoding="utf-8"))
        os.chdir(found.pop("folder"))
        return Sweep(
            **found | {"jobs": [Job(**job | {"run": run_from(job["run"])}) for job in found["jobs"]]}
        )


def run_from(plain: dict[str, Any]) -> Run:
    """A run from the plain values that dataclasses.asdict makes of it."""
    return Run(**plain | {"start": run_from(plain["start"]) if plain["start"] else None})


@dataclass(frozen=True)
class Ending:
    """How a try of a run ended. cause: record, mistake, memory, killed, device, disk, error, interrupted or
    lost."""

    cause: str
    error: str = ""
    phase: str = ""


class Executor:
    """Does the runs of a sweep that nobody else does, and takes over those whose owners have fallen silent.

    waits: for runs whose owners live, too. alone: a user's mistake in the one run of a command ends it
    (UserError), without a record.
    """

    def __init__(self, sweep: Sweep, display: Display, waits: bool = True, alone: bool = False) -> None:
        self.sweep, self.display, self.waits, self.alone = sweep, display, waits, alone
        self.output = sweep.jobs[0].run.config["output"]
        self.watcher = Watcher(self.output, sweep.lease_seconds)
        self.tracker = Tracker(Tracking(sweep.tracking), self.output, runs=[job.run for job in sweep.jobs])
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
        claim = self._with_room(lambda: self.watcher.take(job.id))
        if claim is None:
            return False
        begun_at = time.monotonic()
        with Heart(claim, self.sweep.lease_seconds) as heart:
            if self._settled(job, done_here=False):  # by its owner, between the two looks
                return True
            begun.sweep_up(self.output, job.id)
            left = [other.run for other in pending if other.position > job.position]
            self.display.later, self.display.unknown = estimate(left, spent)
            ending = self._do(job, claim, heart)
        seconds = time.monotonic() - begun_at
        if not self._settled(job, done_here=ending != "lost", seconds=seconds):
            return False
        spent.append((job.run, seconds))
        return True

    def _settled(self, job: Job, done_here: bool, seconds: float = 0.0) -> bool:
        """Whether a job has its record, which then counts, and is shown."""
        record = settled_record(job, self.sweep.failed_before)
        log = str(run_folder(self.output, job.id) / "log.txt")
        error = begun.obstacle(record_path(self.output, job.id)) if record is None else failure(record)
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
            self.tracker.skip(job.run, job.id, record)
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

    def _do(self, job: Job, claim: Claim, heart: Heart) -> str:
        """Tries until the run has a record, or has none for now: interrupted, or taken over. The last try's
        cause."""
        why, counts = begun.in_the_way(self.output, job.id), dict[str, int]()
        tries = begun.read_tries(self.output, job.id, job.run.config, None if why else self.display.line)
        if why:
            self._fail(job, claim, why, tries)
            return "record"
        saved = begun.saved(self.output, job.id)
        if claim.generation > 1:
            tries["ended"].append("its executor fell silent")
            self._with_room(lambda: begun.write_tries(self.output, job.id, tries))
        if claim.generation > LOST_EXECUTORS:
            self._fail(job, claim, f"{LOST_EXECUTORS} executors fell silent over it", tries)
            return "record"
        self.tracker.begin(job.run, job.id)
        while True:
            run = replace(job.run, config=job.run.config | tries["settings"])
            ending = self._try(run, job.id, claim, heart)
            if ending.cause == "mistake" and self.alone:
                raise UserError(ending.error)
            if ending.cause in ("record", "interrupted", "lost"):
                break
            if settled_record(job, self.sweep.failed_before, quiet=True):
                break  # it ended after it had written that: another try would begin anew
            before, saved = saved, begun.saved(self.output, job.id)
            # A try that has won something counts as a new beginning
            counts = counts if saved == before else {}
            counts[ending.cause] = counts.get(ending.cause, 0) + 1
            words = self._again(ending, run, tries, counts[ending.cause])
            if words is None:
                self._fail(job, claim, ending.error, tries)
                break
            tries["ended"].append(ending.error)
            self.display.line(f"{ending.error.partition('. Finished runs')[0]}: {words}")
            self._with_room(lambda: begun.write_tries(self.output, job.id, tries))
        record = settled_record(job, {})
        self.tracker.end(record if ending.cause not in ("interrupted", "lost") else None)
        return ending.cause

    def _again(self, ending: Ending, run: Run, tries: dict[str, Any], count: int) -> str | None:
        """How the run is tried again, in words; None where that would not help."""
        if ending.cause == "memory":
            smaller = with_less_memory(run.config, ending.phase)
            if smaller is None:
                return None
            key, before, after = smaller
            tries["settings"][key] = after
            kept = "; the effective batch stays" if key == "micro_batch" else ""
            name = begun.HALVED[key]
            tries["deviations"] = [words for words in tries["deviations"] if not words.startswith(name)]
            tries["deviations"].append(f"{name} {after}, since memory ran out at {before}{kept}")
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

    def _fail(self, job: Job, claim: Claim, error: str, tries: dict[str, Any]) -> None:
        """Writes a record that says so; the same command tries again."""
        run = job.run
        try:
            claim.write(
                self.output,
                {
                    "schema": SCHEMA,
                    "id": job.id,
                    "status": "failed",
                    "error": error,
                    "tries": tries["ended"],
                    "claim": claim.token,
                    "cell": {
                        "paper": run.paper,
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
        except (LostClaimError, UserError):
            # The latter: something else is in its place, which `_settled` says
            return
        begun.remove(run_folder(self.output, job.id) / "tries.json")

    def _try(self, run: Run, run_id: str, claim: Claim, heart: Heart) -> Ending:
        """Does the run in a process of its own."""
        context = multiprocessing.get_context("forkserver")
        receiver, sender = context.Pipe(duplex=False)
        killed_before = _kernel_kills()
        child = context.Process(target=_child, args=(run, run_id, claim, sender), daemon=True)
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
                    begun.write_progress(self.output, run_id, latest | here)
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


def settled_record(job: Job, failed_before: dict[str, str | None], quiet: bool = False) -> Record | None:
    """The record of a job that needs no more: finished, or failed since the sweep began. A damaged one counts
    as none."""
    path = record_path(job.run.config["output"], job.id)
    try:
        record = read_record(path)
    except ValueError as error:
        if path.is_file() and not quiet:
            _say_once(f"{error}: the run is done again")
        return None
    before = job.id in failed_before and failed_before[job.id] == record.get("claim")
    return record if record["status"] in FINISHED or not before else None


def failure(record: Record) -> str | None:
    """The error of a failed run's record; None of a finished one's."""
    return str(record["error"]) if record["status"] == "failed" else None


def skipped_words(record: Record) -> str:
    """The line of a run that has its record already."""
    words = f"already done ({result_words(record)}, run {record['id']}), skipped"
    return ": ".join(filter(None, [words, changed_words(record)]))


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def tidy(job: Job, record: Record, watcher: Watcher) -> None:
    """Removes what a finished run no longer needs, and what killed processes left of it. Whoever sees its
    record may."""
    output = job.run.config["output"]
    kept = record.get("config", job.run.config)["keep"]  # the command at hand may keep another epoch
    begun.clear(output, job.id, kept)
    begun.sweep_up(output, job.id)
    watcher.forget(job.id)


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


def estimate(left: list[Run], spent: list[tuple[Run, float]]) -> tuple[float, int]:
    """Seconds for the runs that are left, and how many of them no finished run says anything of.

    Each takes the median of its row on its task, or of the other rows there. A head alone goes over features
    that are computed once, and a model as it is goes through no training: their times say nothing of other
    rows, nor those of theirs."""
    seconds, unknown = 0.0, 0
    for run in left:
        same = [(done, time_) for done, time_ in spent if (done.model, done.task) == (run.model, run.task)]
        known = [time_ for done, time_ in same if done.row == run.row]
        known = known or [
            time_ for done, time_ in same if not {done.method["kind"], run.method["kind"]} & {"head", "none"}
        ]
        seconds, unknown = (seconds + statistics.median(known), unknown) if known else (seconds, unknown + 1)
    return seconds, unknown


def start_fork_server() -> None:
    """Starts the process that every run is forked from, while this one goes on: it imports what takes long,
    once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runs.preload"])
    os.environ[PARENT] = str(os.getpid())
    # A signal to a whole group of processes, as schedulers and terminals send it, is for the run's process
    # and this one: what is ignored now, the server inherits. It ends with this process (with this thread, to
    # be exact), and its runs with it: see runs/preload.py and tasks/parent.py.
    before = {number: _listen(number, signal.SIG_IGN) for number in (signal.SIGINT, *STOPPING)}
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            _listen(number, handler)


def _listen(number: int, handler: Any) -> Any:
    """Sets a signal's handler and returns the one before, in the main thread; elsewhere signals are somebody
    else's."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(number, handler)


def _kernel_kills() -> int:
    """How often the kernel has ended a process of this machine or container for want of memory."""
    count = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        count += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return count


# --- the run's process


def _child(run: Run, run_id: str, claim: Claim, events: Connection) -> None:
    """The process's whole life: output into the run's log, progress to the executor, one line for an
    error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the executor's, which ends this process
    stop: Any = None

    def asked(number: int, frame: FrameType | None) -> None:
        if stop is not None and stop.listens:
            stop.wanted = True
        else:
            os._exit(INTERRUPTED)

    for number in STOPPING:
        signal.signal(number, asked)
    folder = run_folder(run.config["output"], run_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = begun.append(folder / "log.txt")
    except OSError as error:
        cause, words = cause_of(error)
        events.send({"cause": cause, "error": words})
        sys.exit(1)
    for stream in (1, 2):
        os.dup2(log, stream)
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {run.label}, run {run_id}", flush=True)
    from runs.training.context import Stop, StoppedError
    from runs.training.train import train

    stop = Stop()
    last = 0.0

    def report(event: Event) -> None:
        nonlocal last
        if event["phase"] != "training" or time.monotonic() - last > 0.25:
            last = time.monotonic()
            try:
                events.send(event)
            except OSError:  # the executor was killed
                os._exit(1)

    try:
        train(run, run_id, report, claim, stop)
    except StoppedError:
        os._exit(INTERRUPTED)
    except BaseException as error:
        if not is_users(error) and not isinstance(error, LostClaimError):
            import traceback

            traceback.print_exc()
        cause, words = cause_of(error)
        events.send({"cause": cause, "error": words})
        sys.exit(1)


def cause_of(error: BaseException) -> tuple[str, str]:
    """Why a run's process gave up, and in one line."""
    words, name = describe(error), type(error).__name__
    if isinstance(error, LostClaimError):
        return "lost", words
    if is_users(error):
        return "mistake", words
    if (
        isinstance(error, MemoryError)
        or name == "OutOfMemoryError"
        or getattr(error, "errno", None) == errno.ENOMEM
    ):
        return "memory", "out of memory"
    if isinstance(error, RuntimeError) and any(
        w in str(error) for w in ("out of memory", "can't allocate memory")
    ):
        return "memory", "out of memory"
    if isinstance(error, OSError):
        return ("disk" if error.errno in FULL else "mistake"), words
    if name == "AcceleratorError" or (isinstance(error, RuntimeError) and "CUDA error" in str(error)):
        return "device", f"{name}: {words}"
    return "error", f"{name}: {words}"


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
        from runs.launch import DeviceLease

        DeviceLease(arguments[2:-1], int(arguments[-1])).use()
    start_fork_server()
    tasks = {job.run.task for job in sweep.jobs}
    outcome = Executor(sweep, Display(len(sweep.jobs), name_task=len(tasks) > 1), waits=False).go()
    return outcome.exit_code


if __name__ == "__main__":
    entry_point(main)
