"""Many runs: what is checked before the first one, who does them, and what is told at the end.

A finished run is skipped, a broken one resumed; a failed one never stops the others.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runs.config import Run
from runs.errors import UserError, interrupted_words, is_users
from runs.identity import one_look
from runs.record import FINISHED, Record, record_path, run_folder, sweep_up_dead
from runs.record.text import duration, plural
from runs.sweep.attempt import start_fork_server
from runs.sweep.devices import DeviceLease, devices
from runs.sweep.display import Board, Display, result_words
from runs.sweep.executor import Executor
from runs.sweep.jobs import (
    Job,
    Outcome,
    Sweep,
    finished_record,
    settled_id,
    settled_record,
    skipped_words,
    telling_words,
)
from runs.sweep.launchers import Launch
from runs.sweep.leases import held
from runs.sweep.preflight import check_folders, preflight
from runs.sweep.progress import clear, in_the_way, read_attempts
from runs.sweep.redo import replaced_folder, set_aside
from runs.sweep.supervise import supervise


def sweep(
    runs: list[Run],
    part: bool = False,
    launch: Launch | None = None,
    words: list[str] | None = None,
    again: Sequence[Run] = (),
) -> Outcome:
    """Does every run that has no record yet. Raises UserError or DataError before anything starts.

    part: of a longer command, which has done the preflight, sums up itself, and goes on after a failed run.
    launch, words: where and how (runs/sweep/launchers.py), and Hydra's words for its launcher; else one after
    another, here.
    again: runs that are done although they have a record, which is set aside first.
    """
    if int(os.environ.get("RANK", "0")):  # of torchrun's processes, the first one speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    started, launch = time.monotonic(), launch or Launch()
    # torchrun's processes stay what they are, and a debugger wants no child.
    here = "LOCAL_RANK" in os.environ or runs[0].config["debug"]
    try:
        if here and launch.launcher != "serial":
            raise UserError(
                f"launcher={launch.launcher} has processes of its own: leave out torchrun and debug=true"
            )
        with one_look():
            finished = [finished_record(run) for run in runs]
        replaced = {
            position: record for position, record in enumerate(finished) if record and runs[position] in again
        }
        finished = [None if position in replaced else record for position, record in enumerate(finished)]
        left = [run for run, record in zip(runs, finished, strict=True) if record is None]
        if left:
            if not here and launch.launcher == "serial":
                _take_device(left[0], launch)
                start_fork_server()
            if not part:
                preflight(left)
        words_of = telling_words(runs)
        jobs = [
            Job(position, run, settled_id(run), words_of[position - 1])
            for position, run in enumerate(runs, 1)
        ]
        check_folders(jobs)
    except Exception as error:
        if not is_users(error):
            raise
        raise UserError(
            f"{str(error).rstrip('.')}{'' if str(error).endswith('?') else '.'} Nothing was started."
        ) from None
    for part_of in ("records", "sweeps"):
        sweep_up_dead(Path(runs[0].config["output"]) / part_of)
    if replaced and not int(os.environ.get("RANK", "0")):
        for position, record in replaced.items():
            set_aside(record, runs[position].config["output"], launch.lease_seconds)
        print(
            f"redo: {plural(len(replaced), 'record')} set aside, in"
            f" {replaced_folder(runs[0].config['output'])}",
            flush=True,
        )
    many = len(runs) == 1 or len({run.task for run in runs}) > 1
    plan = Sweep(jobs, _failed(jobs), launch.lease_seconds, launch.tracking)
    if here:
        outcome = _do_here(plan, Display(len(runs), many), finished)
    elif launch.launcher == "serial" or not left:
        outcome = Executor(plan, Display(len(runs), many), alone=len(runs) == 1 and not part).go()
    else:
        outcome = supervise(plan, Board(len(runs), many), launch, words or [])
    if not part:
        _summary(jobs, outcome, time.monotonic() - started)
    if outcome.interrupted and part:
        raise SystemExit(outcome.exit_code)
    return outcome


def _failed(jobs: list[Job]) -> dict[str, str | None]:
    """Whose failed records are there, by run: another one of the same run is a try of this sweep."""
    found = {}
    for job in jobs:
        record = settled_record(job, {}, quiet=True)
        if record and record["status"] not in FINISHED:
            found[job.id] = record.get("claim")
    return found


def _take_device(run: Run, launch: Launch) -> None:
    """For the rest of this process, where there is a choice: two commands do not meet on one GPU by
    accident."""
    names = devices(run.config["device"])
    if not {"cpu", "mps"} & set(names):
        DeviceLease(names, launch.runs_per_device).use()


def _do_here(plan: Sweep, display: Display, finished: list[Record | None]) -> Outcome:
    """Every run in this process: under torchrun, whose first process holds the lease, and for a debugger."""
    from runs.training.train import train

    outcome, first = Outcome(), not int(os.environ.get("RANK", "0"))
    for job, record in zip(plan.jobs, finished, strict=True):
        display.start(job.position, job.run, job.words)
        if record:
            outcome.skipped += 1
            display.line(skipped_words(record))
            continue
        if why := in_the_way(job.run.config["output"], job.id):
            outcome.failed.append(
                (job.run, why, str(run_folder(job.run.config["output"], job.id) / "log.txt"))
            )
            display.line(f"FAILED: {why}")
            continue
        attempts = read_attempts(job.run.config["output"], job.id, job.run.config)
        begun = time.monotonic()
        if first:
            with held(job.run.config["output"], job.id, plan.lease_seconds) as lease:
                record = train(job.run, job.id, display.show, lease, None, attempts)
            clear(job.run.config["output"], job.id, job.run.config["keep"])
        else:
            record = train(job.run, job.id, display.show, attempts=attempts)
        if record["status"] == "diverged":
            outcome.diverged.append(
                (job.run, record["error"], str(run_folder(job.run.config["output"], job.id) / "log.txt"))
            )
            display.line(f"DIVERGED: {record['error']}")
        else:
            outcome.done += 1
            display.line(f"{result_words(record)}  {duration(time.monotonic() - begun)}  run {record['id']}")
    display.close()
    return outcome


def _summary(jobs: list[Job], outcome: Outcome, seconds: float) -> None:
    runs = [job.run for job in jobs]
    parts = [f"{outcome.done} done", f"{outcome.skipped} already there"]
    parts += [f"{len(outcome.diverged)} diverged"] if outcome.diverged else []
    parts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
    where = record_path(runs[0].config["output"], "x").parent
    print(f"{plural(len(runs), 'run')} in {duration(seconds)}: {', '.join(parts)}. Records: {where}")
    for status, found in (("diverged", outcome.diverged), ("failed", outcome.failed)):
        for run, error, log in found:
            words = next(job.words for job in jobs if job.run is run or job.run == run)
            print(f"  {status}: {run.label}{' ' * bool(words)}{words}: {error} ({log})")
    if outcome.interrupted:
        print(interrupted_words(), file=sys.stderr)
