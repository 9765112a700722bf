"""Many runs: what is checked before the first one, who does them, and what is told at the end.

A finished run is skipped, a broken one resumed; a failed one never stops the others.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from runs.config import Run
from runs.config.launch import Launch, Serial
from runs.errors import UserError, interrupted_words, is_users, rank
from runs.identity import identify
from runs.record import FINISHED, Record, is_trial, sweep_up_dead, write_sweep
from runs.record.text import duration, plural
from runs.sweep.attempt import start_fork_server
from runs.sweep.devices import take_device
from runs.sweep.display import Board, Display
from runs.sweep.executor import Executor
from runs.sweep.jobs import (
    Job,
    Outcome,
    Sweep,
    check_ids,
    final_ids,
    finished_record,
    name_of,
    settle,
    settled_record,
    telling_words,
)
from runs.sweep.launchers import check_launcher, environment
from runs.sweep.leases import Watcher, held
from runs.sweep.preflight import check_folders, preflight
from runs.sweep.progress import in_the_way, read_attempts
from runs.sweep.redo import set_all_aside
from runs.sweep.supervise import supervise


def sweep(
    runs: list[Run],
    part: bool = False,
    launch: Launch | None = None,
    again: Sequence[Run] = (),
) -> Outcome:
    """Does every run that has no record yet. Raises UserError or DataError before anything starts.

    part: of a longer command, which has done the preflight, sums up itself, and goes on after a failed run.
    launch: where and how; else one after another, here.
    again: runs that are done although they have a record, which is set aside first.
    """
    first = not rank()
    if not first:  # of torchrun's processes, the first one speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    started, launch = time.monotonic(), launch or Launch()
    # torchrun's processes stay what they are, and a debugger wants no child.
    here = "LOCAL_RANK" in os.environ or runs[0].config["debug"]
    try:
        jobs, finished, replaced = _begin(runs, launch, again, here, checked=part)
    except Exception as error:
        if not is_users(error):
            raise
        raise UserError(
            f"{str(error).rstrip('.')}{'' if str(error).endswith('?') else '.'} Nothing was started."
        ) from None
    output = runs[0].config["output"]
    for part_of in ("records", "sweeps"):
        sweep_up_dead(Path(output) / part_of)
    if replaced and first:
        set_all_aside(replaced, output, launch.lease_seconds)
    many = len(runs) == 1 or len({run.task for run in runs}) > 1
    plan = Sweep(jobs, _failed(jobs), launch.lease_seconds, launch.tracking)
    if first and not part and len(jobs) > 1:
        with contextlib.suppress(OSError):  # on a full disk the runs wait for room
            write_sweep(output, name_of(jobs), [job.id for job in jobs])
    if here:
        outcome = _do_here(plan, Display(len(runs), many), finished, first)
    elif isinstance(launch.launcher, Serial) or len(finished) == len(jobs):
        outcome = Executor(plan, Display(len(runs), many), alone=len(runs) == 1 and not part).go()
    else:
        outcome = supervise(plan, Board(len(runs), many), launch)
    if not part:
        _summary(jobs, outcome, time.monotonic() - started)
    tables = any(not is_trial(run.config) for run in runs)  # trials enter none
    if first and not part and len(jobs) > 1 and tables and not outcome.interrupted:
        _show_table(str(output), name_of(jobs), launch.table)
    if outcome.interrupted and part:
        raise SystemExit(outcome.exit_code)
    return outcome


def _begin(
    runs: list[Run], launch: Launch, again: Sequence[Run], here: bool, checked: bool
) -> tuple[list[Job], set[str], list[Record]]:
    """The jobs of the runs, the ids of those that are finished, and the records of those that are and are
    done again; once all has been checked that can be. checked: the preflight was before this."""
    if here and not isinstance(launch.launcher, Serial):
        raise UserError(
            f"launcher={launch.launcher.name} has processes of its own: leave out torchrun and debug=true"
        )
    output, ids = runs[0].config["output"], identify(runs)
    check_ids(runs, ids)
    finished, left, replaced = set[str](), list[Run](), list[Record]()
    for run, known in zip(runs, ids, strict=True):
        record = finished_record(output, known)
        if record is None or run in again:
            left.append(run)
            replaced += [record] if record else []
        else:
            finished.add(record["id"])
    if left:
        check_launcher(launch.launcher)
        if not here and isinstance(launch.launcher, Serial):
            take_device(left[0].config["device"], launch.launcher.runs_per_device)
            start_fork_server()
        if not checked:
            preflight(left)
    words = telling_words(runs)
    known_now = final_ids(runs, ids)  # what had to be fetched is here
    jobs = [
        Job(position, run, run_id, words[position - 1])
        for position, (run, run_id) in enumerate(zip(runs, known_now, strict=True), 1)
    ]
    check_folders(jobs)
    return jobs, finished, replaced


def _failed(jobs: list[Job]) -> dict[str, str | None]:
    """Whose failed records are there, by run: another one of the same run is an attempt of this sweep."""
    records = {job.id: settled_record(job, {}, quiet=True) for job in jobs}
    return {i: r.get("claim") for i, r in records.items() if r and r["status"] not in FINISHED}


def _do_here(plan: Sweep, display: Display, finished: set[str], first: bool) -> Outcome:
    """Every run in this process: under torchrun, whose first process holds the lease, and for a debugger."""
    from runs.training.loop import Training
    from runs.training.train import train

    outcome = Outcome()
    watcher = Watcher(plan.jobs[0].output, plan.lease_seconds) if first else None
    for job in plan.jobs:
        if job.id in finished:
            settle(job, plan, outcome, display, watcher, None)
            continue
        display.start(job.position, job.run, job.words)
        if why := in_the_way(job.output, job.id):
            outcome.failed.append((job.run, why, job.log))
            display.line(f"FAILED: {why}")
            continue
        attempts, begun = read_attempts(job.output, job.id, job.run.config), time.monotonic()
        with held(job.output, job.id, plan.lease_seconds) if first else nullcontext() as lease:
            alone = "LOCAL_RANK" not in os.environ
            if alone and settle(job, plan, outcome, display, watcher, None):  # by whoever had it before
                continue
            train(Training(job.run, job.id, display.show, lease, attempts=attempts))
        settle(job, plan, outcome, display, watcher, time.monotonic() - begun)
    display.close()
    return outcome


def _summary(jobs: list[Job], outcome: Outcome, seconds: float) -> None:
    parts = [f"{outcome.done} done", f"{outcome.skipped} already there"]
    parts += [f"{len(outcome.diverged)} diverged"] if outcome.diverged else []
    parts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
    where = jobs[0].record.parent
    print(f"{plural(len(jobs), 'run')} in {duration(seconds)}: {', '.join(parts)}. Records: {where}")
    for status, found in (("diverged", outcome.diverged), ("failed", outcome.failed)):
        for run, error, log in found:
            words = next(job.words for job in jobs if job.run is run or job.run == run)
            print(f"  {status}: {run.label}{' ' * bool(words)}{words}: {error} ({log})")
    if outcome.interrupted:
        print(interrupted_words(), file=sys.stderr)


def _show_table(output: str, name: str, table: bool) -> None:
    """Prints the table of a sweep and the command that prints it again. The table is made by a process of its
    own: analysis reads records, and runs know nothing of it."""
    words = ["-m", "analysis.tables", f"sweep={name}", *([f"output={output}"] if output != "outputs" else [])]
    if table:
        made = subprocess.run([sys.executable, *words], env=environment(), capture_output=True, text=True)
        print(f"\n{made.stdout or made.stderr}".rstrip())
    print(f"This table: python {shlex.join(words)}")
