"""Does the runs of a sweep on this machine, each in a process of its own, as many at once as there are
places."""

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from runs.errors import UserError
from runs.sweep.attempt import BUSY, FAILED, STOPPED, Process, handling
from runs.sweep.claim import PATIENCE
from runs.sweep.devices import Place
from runs.sweep.display import Display
from runs.sweep.jobs import Job, Outcome, Sweep, send_to_agent, try_finish
from runs.tracking import of_run
from runs.training.files import Attempt, saved

#: How often a run whose process was killed is tried again, unless it has saved more in between.
RETRIES = 3
#: Seconds that runs have to save, after they were asked to stop.
GRACE = 60


@dataclass(eq=False)
class Running:
    """A run whose process is on."""

    job: Job
    place: Place
    process: Process
    since: float


class Pool:
    """waits: whether it also waits for the runs that other commands do. alone: whether this is the one run of
    a command, in which a user's mistake is raised (UserError) and leaves no record."""

    def __init__(
        self,
        sweep: Sweep,
        places: Sequence[Place],
        display: Display,
        waits: bool = True,
        alone: bool = False,
    ) -> None:
        self.sweep, self.places, self.display, self.waits, self.alone = sweep, places, display, waits, alone
        self.pending, self.running, self.outcome = [*sweep.jobs], list[Running](), Outcome()
        self.signal = 0  # the one that asked for an end
        self._tries: dict[str, tuple[object, int]] = {}  # by run: what it had saved, and tries since
        self._idle = time.monotonic()  # since when nothing is on here; infinity once that was said

    def go(self) -> Outcome:
        """Does runs until none is left that this process can do."""
        self._finish_elsewhere(None)
        if self.pending and not any(place.take() for place in self.places):
            place = self.places[0]
            self.display.line(
                f"every device is in use by another command here ({', '.join(place.gpus)}): waiting for one."
                f" launcher.runs_per_device={place.runs_per_device + 1} shares them"
            )
        try:
            with handling(self._stop):
                while self.pending and not self.signal:
                    self._start()
                    if not (self.running or self.waits):
                        break
                    self._look()
                    self._finish_elsewhere(0.0)
        finally:
            self._end()
            self.display.close()
            for place in self.places:
                place.release()
        self.outcome.interrupted = bool(self.signal)
        return self.outcome

    def _finish_elsewhere(self, seconds: float | None) -> None:
        """Finishes the runs that are not on here and have a record: from before (None), or of another
        command."""
        on = [running.job for running in self.running]
        for job in [job for job in self.pending if job not in on]:
            if try_finish(job, self.sweep, self.outcome, self.display, seconds):
                self.pending.remove(job)
                if seconds is not None:
                    send_to_agent(job, self.sweep)

    def _start(self) -> None:
        """Starts a run at each free place."""
        taken = [running.place for running in self.running]
        for place in [place for place in self.places if place not in taken and place.take()]:
            if (job := next((job for job in self.pending if self._is_free(job)), None)) and not self.signal:
                tracking = of_run(self.sweep.tracking, job.run, [other.run for other in self.sweep.jobs])
                process = Process(job.run, job.id, tracking, self.alone, place.name)
                self.running.append(Running(job, place, process, time.monotonic()))

    def _is_free(self, job: Job) -> bool:
        """Whether nobody does a job, and the run that it starts from is there."""
        on = any(running.job is job for running in self.running)
        return not (on or any(other.run == job.run.start for other in self.pending) or job.claim.is_held())

    def _look(self) -> None:
        """Waits a second for the end of a process, and shows how far the others are."""
        ended = wait([running.process.ready for running in self.running], timeout=1.0)
        for running in [running for running in self.running if running.process.ready in ended]:
            self.running.remove(running)
            self._ended(running)
        if self.running:
            self._idle = time.monotonic()
            self.display.show([(on.job.head, on.job.progress) for on in self.running], len(self.pending))
        elif not ended:
            time.sleep(1.0)
            if self.pending and time.monotonic() - self._idle > PATIENCE:
                job, self._idle = self.pending[0], float("inf")
                self.display.line(f"{job.head}  is being done by {job.claim.holder()}: waiting for it")

    def _ended(self, running: Running) -> None:
        """Finishes a run whose process has ended, or leaves it pending for another try."""
        job, (code, error) = running.job, running.process.ended()
        if code == FAILED and self.alone and not job.record.exists():
            raise UserError(error)
        seconds = time.monotonic() - running.since
        if try_finish(job, self.sweep, self.outcome, self.display, seconds, error if code == FAILED else ""):
            self.pending.remove(job)
        elif code not in (BUSY, STOPPED) and not self.signal:
            before, count = self._tries.get(job.id, (None, 0))
            now = saved(job.output, job.id)
            self._tries[job.id] = now, count + 1 if now == before else 1
            again = self._tries[job.id][1] <= RETRIES
            self.display.line(f"{job.head}  {error}: {'tried again' if again else 'given up'}")
            claim = job.claim
            if not again and claim.take():
                with contextlib.suppress(OSError):  # a full disk: it is tried again after all
                    Attempt(job.output, job.id).fail(job.run, error)
                claim.release()

    def _stop(self, number: int, frame: Any = None) -> None:
        self.signal = number
        for running in self.running:
            running.process.stop()

    def _end(self) -> None:
        """Ends the processes that are on, which may save first. A second Ctrl-C ends them at once."""
        end = time.monotonic() + GRACE
        if self.running and not self.signal:
            print("\nsaving checkpoints. Ctrl-C again does not wait for them", file=sys.stderr, flush=True)
        try:
            while self.running and time.monotonic() < end:
                self._stop(self.signal)  # again, for a process that had not set its handler yet
                self._look()
        finally:
            for running in self.running:
                running.process.kill()
