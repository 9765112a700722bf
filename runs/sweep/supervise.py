"""Starts many executors until no run is left, and shows what they do."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from runs.config import Launch
from runs.errors import UserError
from runs.record.text import plural
from runs.sweep.display import Board
from runs.sweep.jobs import Job, Outcome, Sweep, name_of, settle
from runs.sweep.launchers import make_launcher
from runs.sweep.leases import Watcher
from runs.sweep.progress import read_progress
from runs.sweep.signals import handling

#: So many starts in a row without any run begun are the last.
EMPTY_STARTS = 3


def supervise(sweep: Sweep, board: Board, launch: Launch, undo: Callable[[], None]) -> Outcome:
    """Starts executors until no run is left, and shows what they do. If they or this command are killed,
    nothing is lost. undo: called where the launcher does not start even the first executors."""
    output = Path(sweep.jobs[0].output)
    path = (output / "sweeps" / name_of(sweep.jobs) / "sweep.json").resolve()
    sweep.save(path)
    outcome, watcher = Outcome(), Watcher(output, sweep.lease_seconds)
    pending = [job for job in sweep.jobs if not settle(job, sweep, outcome, board, watcher, None)]
    board.say(f"{outcome.skipped} already done, {len(pending)} to do")
    launcher = make_launcher(path, launch, [job.run for job in pending or sweep.jobs])
    signals, started = list[int](), False  # signals: those that asked for an end
    with handling(lambda number, frame: signals.append(number)):
        try:
            empty = 0  # starts in a row without any run begun
            while pending and not signals:
                count = len(pending)
                pending = [job for job in pending if not settle(job, sweep, outcome, board, watcher, 0.0)]
                busy = [job for job in pending if watcher.holder(job.id)]
                empty = 0 if len(pending) < count or busy else empty
                alive, free = launcher.alive(), _free(pending, busy, watcher)
                wanted = min(launcher.size, len(free) + alive) - alive
                if free and wanted > 0:
                    if empty == EMPTY_STARTS:
                        raise UserError(
                            f"executors end before they begin a run. The reason is in {launcher.logs}"
                        )
                    empty += 1
                    try:
                        launcher.start(wanted)
                    except UserError:
                        if not started:
                            undo()
                        raise
                    started = True
                    board.say(f"{plural(wanted, 'executor')} started ({launcher.logs})")
                board.state(len(pending), [read_progress(output, job.id) for job in busy], alive)
                time.sleep(1.0 if pending else 0.0)
            outcome.interrupted = bool(signals)
        finally:
            board.close()
            left = launcher.stop(done=not pending)
    if left:
        print(left, file=sys.stderr)
    return outcome


def _free(pending: list[Job], busy: list[Job], watcher: Watcher) -> list[Job]:
    """The jobs that an executor could do now: those that no living executor has, and that start from no
    pending run."""
    return [
        job
        for job in pending
        if not any(other.run == job.run.start for other in pending)
        and (job not in busy or watcher.free(job.id))
    ]
