"""Many executors: started until no run is left, and what they do is shown."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from runs.config.launch import Launch
from runs.errors import UserError
from runs.record.text import plural
from runs.sweep.display import Board
from runs.sweep.jobs import Job, Outcome, Sweep, name_of, settle
from runs.sweep.launchers import make_launcher
from runs.sweep.leases import Watcher
from runs.sweep.progress import read_progress

#: Executors that end at once, so many times in a row without a run begun, are not started again.
EMPTY_STARTS = 3


def supervise(sweep: Sweep, board: Board, launch: Launch) -> Outcome:
    """Starts executors until no run is left, and shows what they do. What ends them or this command loses
    nothing."""
    output = Path(sweep.jobs[0].output)
    path = (output / "sweeps" / name_of(sweep.jobs) / "sweep.json").resolve()
    sweep.save(path)
    outcome, watcher = Outcome(), Watcher(output, sweep.lease_seconds)
    pending = [job for job in sweep.jobs if not settle(job, sweep, outcome, board, watcher, None)]
    board.say(f"{outcome.skipped} already done, {len(pending)} to do")
    launcher = make_launcher(path, launch, sweep.jobs[0].run.config["device"], len(pending))
    with _asked_to_stop() as asked:
        try:
            empty = 0  # starts of executors in a row that came to nothing
            while pending and not asked:
                count = len(pending)
                pending = [job for job in pending if not settle(job, sweep, outcome, board, watcher, 0.0)]
                busy = [job for job in pending if watcher.holder(job.id)]
                empty = 0 if len(pending) < count or busy else empty
                alive, free = launcher.alive(), _free(pending, busy, watcher)
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
        finally:
            board.close()
            left = launcher.stop(done=not pending)
    if left:
        print(left, file=sys.stderr)
    return outcome


def _free(pending: list[Job], busy: list[Job], watcher: Watcher) -> list[Job]:
    """What an executor could do now: jobs that start from no run that is still to be done, and that nobody
    who lives has."""
    return [
        job
        for job in pending
        if not any(other.run == job.run.start for other in pending)
        and (job not in busy or watcher.free(job.id))
    ]


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Meanwhile the signals that ask for an end are collected here, and end nothing by themselves."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
