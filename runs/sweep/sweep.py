"""A whole command: the checks before the first run, the runs, and the summary at the end.

A finished run is skipped and an interrupted one resumed. A failed one does not stop the others.
"""

import contextlib
import dataclasses
import functools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from runs.config import Launch, Serial
from runs.errors import UserError, interrupted_words, is_users, rank
from runs.identity import identify
from runs.record import Record, is_trial, sweep_up_dead, write_sweep
from runs.record.text import duration, plural
from runs.run import Run
from runs.sweep.attempt import start_fork_server
from runs.sweep.devices import devices, take_device
from runs.sweep.display import Board, Display
from runs.sweep.executor import Executor
from runs.sweep.jobs import (
    Job,
    Outcome,
    Sweep,
    check_ids,
    distinguishing_words,
    final_ids,
    finished_record,
    name_of,
    settle,
    settled_record,
)
from runs.sweep.launchers import check_launcher, environment
from runs.sweep.leases import Watcher, held
from runs.sweep.preflight import check_folders, preflight
from runs.sweep.progress import in_the_way, read_attempts
from runs.sweep.redo import put_back, set_all_aside
from runs.sweep.supervise import supervise
from runs.tracking import Tracker, log_file, of_run


def sweep(
    runs: list[Run],
    part: bool = False,
    launch: Launch | None = None,
    again: Sequence[Run] = (),
) -> Outcome:
    """Does every run that has no record yet. Raises UserError or DataError before anything starts.

    part: whether this is a part of a longer command, which has done the preflight, prints its own summary,
    and continues after a failed run. launch: where and how; default: one after another, here. again: runs to
    do although they have a record, which is set aside first.
    """
    first = not rank()  # of torchrun's processes this one writes the files of the sweep
    started, launch = time.monotonic(), launch or Launch()
    # Torchrun's processes train themselves, and a debugger cannot follow into a child
    here = "LOCAL_RANK" in os.environ or runs[0].config["debug"]
    try:
        jobs, finished, replaced = _begin(runs, launch, again, here, checked=part)
    except Exception as error:
        if not is_users(error):
            raise
        text = str(error).rstrip(".")
        raise UserError(f"{text}{'' if text.endswith('?') else '.'} Nothing was started.") from None
    output = runs[0].config["output"]
    before = _trouble(output)
    _send_to_agent(jobs, finished, launch)
    for folder in ("records", "sweeps"):
        sweep_up_dead(Path(output) / folder)
    aside = set_all_aside(replaced, output, launch.lease_seconds) if replaced and first else []
    name_task = len(runs) == 1 or len({run.task for run in runs}) > 1
    plan = Sweep(jobs, _failed(jobs), launch.lease_seconds, launch.tracking)
    if first and not part and len(jobs) > 1:
        with contextlib.suppress(OSError):  # a full disk: the runs wait for room
            write_sweep(output, name_of(jobs), [job.id for job in jobs])
    if here:
        outcome = _do_here(plan, Display(len(runs), name_task), finished, first)
    elif isinstance(launch.launcher, Serial) or len(finished) == len(jobs):
        outcome = Executor(plan, Display(len(runs), name_task), alone=len(runs) == 1 and not part).go()
    else:
        undo = functools.partial(put_back, aside, output)
        outcome = supervise(plan, Board(len(runs), name_task), launch, undo)
    if first and _trouble(output) > before:
        words = "make sync" if output == "outputs" else f"make sync OUTPUT={output}"
        why = f"{words} uploads what was written offline ({log_file(output)})"
        print(f"note: W&B does not have everything: {why}", file=sys.stderr)
    if not part:
        _summary(jobs, outcome, time.monotonic() - started)
    in_tables = not all(is_trial(run.config) for run in runs)
    if first and not part and len(jobs) > 1 and in_tables and not outcome.interrupted:
        _show_table(output, name_of(jobs), launch.table)
    if outcome.interrupted and part:
        raise SystemExit(outcome.exit_code)
    return outcome


def _begin(
    runs: list[Run], launch: Launch, again: Sequence[Run], here: bool, checked: bool
) -> tuple[list[Job], set[str], list[Record]]:
    """Checks all that can be checked before the first run. Returns the jobs, the ids of those that are
    finished, and the records of those that are done again.

    here: in this process. checked: the preflight was done before."""
    if here and not isinstance(launch.launcher, Serial):
        raise UserError(
            f"launcher={launch.launcher.name} has processes of its own: leave out torchrun and debug=true"
        )
    output, ids = runs[0].config["output"], identify(runs)
    if len({run.config["output"] for run in runs}) > 1:
        raise UserError("output= differs from run to run: the runs of a command go to one folder")
    check_ids(runs, ids)
    finished, left, replaced = set[str](), list[Run](), list[Record]()
    for run, run_id in zip(runs, ids, strict=True):
        record = finished_record(output, run_id)
        if record is None or run in again:
            left.append(run)
            replaced += [record] if record else []
        else:
            finished.add(record["id"])
    if left:
        check_launcher(launch.launcher, left[0].config["device"])
        if here:
            devices(left[0].config["device"])
        elif isinstance(launch.launcher, Serial):
            take_device(left[0].config["device"], launch.launcher.runs_per_device)
            start_fork_server(several=len(left) > 1)
        if not checked:
            preflight(left)
    every = zip(runs, final_ids(runs, ids), distinguishing_words(runs), strict=True)
    jobs = [Job(position, *job) for position, job in enumerate(every, 1)]
    check_folders(jobs)
    return jobs, finished, replaced


def _failed(jobs: list[Job]) -> dict[str, str | None]:
    """The owners of failed records that exist before the sweep, by run. A failed record of another owner is
    an attempt of this sweep."""
    records = [(job.id, settled_record(job, {}, quiet=True)) for job in jobs]
    return {i: record.get("claim") for i, record in records if record and record["status"] == "failed"}


def _do_here(plan: Sweep, display: Display, finished: set[str], first: bool) -> Outcome:
    """Does every run in this process: under torchrun, whose first process holds the leases, and for a
    debugger."""
    from runs.training.loop import Training
    from runs.training.train import train

    outcome, output = Outcome(), plan.jobs[0].output
    watcher = Watcher(output, plan.lease_seconds) if first else None
    alone = "LOCAL_RANK" not in os.environ
    with contextlib.closing(display):
        for job in plan.jobs:
            if job.id in finished:
                settle(job, plan, outcome, display, watcher, None)
                continue
            display.start(job.position, job.run, job.words)
            if obstacle := in_the_way(job.output, job.id):
                outcome.failed.append((job.run, obstacle, job.log))
                display.line(f"FAILED: {obstacle}")
                continue
            attempts, start = read_attempts(job.output, job.id, job.run.config), time.monotonic()
            with held(job.output, job.id, plan.lease_seconds) if first else nullcontext() as lease:
                if alone and settle(job, plan, outcome, display, watcher, None):  # another executor did it
                    continue
                if first and finished_record(job.output, job.id):  # the other processes do not know of it
                    raise UserError(f"{job.run.label}: another command has finished it. Give this one again")
                # A micro-batch that was halved, since memory ran out
                run = dataclasses.replace(job.run, config=job.run.config | attempts["settings"])
                tracking = of_run(plan.tracking, job.run, [other.run for other in plan.jobs])
                train(Training(run, job.id, display.show, lease, attempts=attempts), tracking)
            settle(job, plan, outcome, display, watcher, time.monotonic() - start)
    return outcome


def _send_to_agent(jobs: list[Job], finished: set[str], launch: Launch) -> None:
    """Sends the run that `wandb agent` started this command for, where it has its record already."""
    for job in jobs:
        settings = of_run(launch.tracking, job.run, [other.run for other in jobs])
        if settings.agent and job.id in finished and (record := finished_record(job.output, job.id)):
            Tracker(settings, job.run, job.id, record).finish(record)


def _trouble(output: str) -> int:
    """How much has gone wrong with W&B: the bytes of its log."""
    return log_file(output).stat().st_size if log_file(output).exists() else 0


def _summary(jobs: list[Job], outcome: Outcome, seconds: float) -> None:
    others = {"diverged": outcome.diverged, "failed": outcome.failed}
    counts = {"done": outcome.done, "already there": outcome.skipped}
    counts |= {status: len(runs) for status, runs in others.items() if runs}
    if left := len(jobs) - sum(counts.values()):
        counts["left"] = left
    words = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{plural(len(jobs), 'run')} in {duration(seconds)}: {words}. Records: {jobs[0].record.parent}")
    if all(job.run.config["train"].get("max_steps") is not None for job in jobs):
        print("  all stopped early by train.max_steps: in no table")
    for status, runs in others.items():
        for run, error, log in runs:
            words = next(job.words for job in jobs if job.run == run)
            print(f"  {status}: {run.label}{' ' * bool(words)}{words}: {error} ({log})")
    if outcome.interrupted:
        print(interrupted_words(), file=sys.stderr)


def _show_table(output: str, name: str, table: bool) -> None:
    """Prints the table of a sweep and the command that prints it again. Another process makes the table:
    runs does not import analysis."""
    words = ["-m", "analysis.tables", f"sweep={name}", *([f"output={output}"] if output != "outputs" else [])]
    if table:
        done = subprocess.run([sys.executable, *words], env=environment(), capture_output=True, text=True)
        print(f"\n{done.stdout or done.stderr}".rstrip())
    print(f"{'This' if table else 'Its'} table: python {shlex.join(words)}")
