"""Many executors: started until no run is left, and what they do is shown."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from runs.errors import UserError
from runs.identity import hash_of
from runs.record import record_path, run_folder
from runs.record.text import duration, plural
from runs.sources import changed_words
from runs.sweep.display import Board, result_words
from runs.sweep.jobs import Job, Outcome, Sweep, failure, settled_record, skipped_words, tidy
from runs.sweep.launchers import Launch, make_launcher
from runs.sweep.leases import Watcher
from runs.sweep.progress import obstacle, read_progress

#: Executors that end at once, so many times in a row without a run begun, are not started again.
EMPTY_STARTS = 3


def supervise(plan: Sweep, board: Board, launch: Launch, words: list[str]) -> Outcome:
    """Starts executors until no run is left, and shows what they do. What ends them or this command loses
    nothing."""
    output = Path(plan.jobs[0].run.config["output"])
    name = f"vera-bench-{hash_of([str(output.resolve()), [job.id for job in plan.jobs]])[:8]}"
    path = (output / "sweeps" / name / "sweep.json").resolve()
    plan.save(path)
    pending, outcome = list(plan.jobs), Outcome()
    watcher = Watcher(output, plan.lease_seconds)
    for job in list(pending):
        if _seen(job, plan, board, outcome, watcher, here=False):
            pending.remove(job)
    board.say(f"{outcome.skipped} already done, {len(pending)} to do")
    launcher = make_launcher(path, launch, words, plan.jobs[0].run.config["device"], len(pending))
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {
        number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    }
    empty = 0
    try:
        while pending and not asked:
            count = len(pending)
            for job in list(pending):
                if _seen(job, plan, board, outcome, watcher, here=True):
                    pending.remove(job)
            busy = [job for job in pending if watcher.holder(job.id)]
            empty = 0 if len(pending) < count or busy else empty
            waiting = [job for job in pending if any(other.run == job.run.start for other in pending)]
            free = [
                job for job in pending if job not in waiting and (job not in busy or watcher.free(job.id))
            ]
            alive = launcher.alive()
            wanted = min(launcher.size, len(free) + alive) - alive
            if free and wanted > 0:
                if empty == EMPTY_STARTS:
                    raise UserError(
                        f"executors end without having begun a run. They say why: {launcher.logs}"
                    )
                empty += 1
                launcher.start(wanted)
                board.say(f"{plural(wanted, 'executor')} started ({launcher.logs})")
            board.state(len(pending), [read_progress(output, job.id) for job in busy], alive)
            time.sleep(1.0 if pending else 0.0)
        outcome.interrupted = bool(asked)
    except BaseException:
        outcome.interrupted = True
        raise
    finally:
        board.close()
        left = launcher.stop(done=not pending)
        for number, handler in before.items():
            signal.signal(number, handler)
        if left:
            print(left, file=sys.stderr)
    return outcome


def _seen(job: Job, plan: Sweep, board: Board, outcome: Outcome, watcher: Watcher, here: bool) -> bool:
    """Whether a job has its record; counts it and shows it."""
    record = settled_record(job, plan.failed_before)
    error = obstacle(record_path(job.run.config["output"], job.id)) if record is None else failure(record)
    if record is None and error is None:
        return False
    board.start(job.position, job.run, job.words)
    log = str(run_folder(job.run.config["output"], job.id) / "log.txt")
    if record is None or error is not None:
        outcome.failed.append((job.run, str(error), log))
        board.line(f"FAILED: {error} ({log})")
        return True
    tidy(job, record, watcher)
    if not here:
        outcome.skipped += 1
        if changed_words(record):  # of the others the number is told
            board.line(skipped_words(record))
    elif record["status"] == "diverged":
        outcome.diverged.append((job.run, record["error"], log))
        board.line(f"DIVERGED: {record['error']}")
    else:
        outcome.done += 1
        seconds = sum(record["cost"].get(f"{part}_seconds", 0.0) for part in ("train", "evaluate", "decode"))
        board.line(f"{result_words(record)}  {duration(seconds)}  run {record['id']}")
    return True
