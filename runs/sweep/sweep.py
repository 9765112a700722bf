"""A whole command: the checks before the first run, the runs, and the summary at the end.

A finished run is skipped and an interrupted one resumed. A failed one does not stop the others.
"""

import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runs.config import Launch, Local, Serial
from runs.errors import UserError, interrupted_words, is_users, rank
from runs.identity import check_ids, final_ids, identify
from runs.preflight import check_folders, preflight
from runs.record import (
    Record,
    finished_record,
    is_trial,
    read_measure,
    record_path,
    row_label,
    run_folder,
    sweep_up_dead,
    write_sweep,
)
from runs.record.text import duration, plural
from runs.run import Run
from runs.sweep.attempt import Event, reporter, start_fork_server
from runs.sweep.claim import check_leases, claimed
from runs.sweep.devices import devices, places
from runs.sweep.display import Display, head
from runs.sweep.jobs import Job, Outcome, Sweep, final_record, name_of, send_to_agent, try_finish
from runs.sweep.launch import check_launcher, environment, launched
from runs.sweep.pool import Pool
from runs.tracking import log_file, of_run
from runs.training.files import Attempt


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
        jobs, left, replaced = _begin(runs, launch, again, here, checked=part)
    except Exception as error:
        if not is_users(error):
            raise
        text = str(error).rstrip(".")
        raise UserError(f"{text}{'' if text.endswith('?') else '.'} Nothing was started.") from None
    output = runs[0].config["output"]
    trouble = _trouble(output)
    for folder in ("records", "sweeps"):
        sweep_up_dead(Path(output) / folder)
    if replaced and first:
        count = sum(set_aside(record, output) for record in replaced)
        print(f"redo: {plural(count, 'record')} set aside, in {Path(output) / 'replaced'}", flush=True)
    plan = Sweep(jobs, _failed(jobs), launch.tracking)
    for job in jobs:
        if job.run not in left:
            send_to_agent(job, plan)
    if first and not part and len(jobs) > 1:
        with contextlib.suppress(OSError):  # a full disk: the runs wait for room
            write_sweep(output, name_of(jobs), [job.id for job in jobs])
    outcome = _do(plan, launch, here, alone=len(runs) == 1 and not part, left=left)
    if first and _trouble(output) > trouble:
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
) -> tuple[list[Job], list[Run], list[Record]]:
    """Checks all that can be checked before the first run. Returns the jobs, the runs that are to be done,
    and the records of those that are done again.

    here: in this process. checked: the preflight was done before."""
    launcher = launch.launcher
    if here and not isinstance(launcher, Serial):
        raise UserError(
            f"launcher={launcher.name} has processes of its own: leave out torchrun and debug=true"
        )
    output, ids = runs[0].config["output"], identify(runs)
    if len({run.config["output"] for run in runs}) > 1:
        raise UserError("output= differs from run to run: the runs of a command go to one folder")
    check_leases(output)
    check_ids(runs, ids)
    records = [finished_record(output, run_id) for run_id in ids]
    left = [run for run, record in zip(runs, records, strict=True) if record is None or run in again]
    replaced = [record for run, record in zip(runs, records, strict=True) if record and run in again]
    if left:
        check_launcher(launcher)
        if here or isinstance(launcher, Serial | Local):
            devices(left[0].config["device"])
        if not here and isinstance(launcher, Serial | Local):
            start_fork_server(several=len(left) > 1)
        if not checked:
            preflight(left)
    heads = [head(number, len(runs), name) for number, name in enumerate(_names(runs), 1)]
    jobs = [Job(*job) for job in zip(heads, runs, final_ids(runs, ids), strict=True)]
    check_folders(output, [job.id for job in jobs])
    return jobs, left, replaced


def _names(runs: Sequence[Run]) -> list[str]:
    """For each run its row and seed, its task where there are several, and the overrides that the others
    lack."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    shown = ("method", "method.config_class", "model", "task", "recipe", "seed")
    name_task = len(runs) == 1 or len({run.task for run in runs}) > 1
    names = []
    for run in runs:
        words = [w for w in run.overrides if w not in common and w.partition("=")[0] not in shown]
        task = [run.config["task"]["label"]] * name_task
        names.append(" ".join([*task, row_label(run.config), *words, f"seed {run.seed}"]))
    return names


def _failed(jobs: list[Job]) -> dict[str, str | None]:
    """The attempts of failed records that exist before the sweep, by run. A failed record of another one is
    of this sweep."""
    records = [(job.id, final_record(job, {}, quiet=True)) for job in jobs]
    return {i: record.get("claim") for i, record in records if record and record["status"] == "failed"}


def _do(plan: Sweep, launch: Launch, here: bool, alone: bool, left: list[Run]) -> Outcome:
    """Does the runs where the launcher says, or in this process. left: those without a record."""
    launcher = launch.launcher
    display = Display(len(plan.jobs), brief=not isinstance(launcher, Serial))
    if here:
        return _do_here(plan, display)
    if not isinstance(launcher, Serial | Local):
        return launched(plan, display, launcher)
    device, every = left[0].config["device"] if left else "cpu", isinstance(launcher, Local)
    return Pool(plan, places(device, launcher.runs_per_device, every), display, alone=alone).go()


def _do_here(plan: Sweep, display: Display) -> Outcome:
    """Does every run in this process: under torchrun, whose first process holds the locks, and for a
    debugger."""
    from runs.training.loop import Training
    from runs.training.train import train

    outcome, output = Outcome(), plan.jobs[0].output
    with contextlib.closing(display):
        for job in plan.jobs:
            start = time.monotonic()
            with claimed(output, job.id, job.head) if not rank() else contextlib.nullcontext():
                there = None if rank() or finished_record(output, job.id) else Attempt(output, job.id)
                if attempt := _of_the_first(there, job.run):

                    def show(event: Event, head: str = job.head) -> None:
                        display.show([(head, event)])

                    # A micro-batch that was halved, since memory ran out
                    run = dataclasses.replace(job.run, config=job.run.config | attempt.settings)
                    tracking = of_run(plan.tracking, job.run, [other.run for other in plan.jobs])
                    try:
                        train(Training(run, job.id, reporter(run, job.id, show), attempt), tracking)
                    except BaseException:
                        attempt.save(stopped=True)
                        raise
            try_finish(job, plan, outcome, display, time.monotonic() - start if attempt else None)
    return outcome


def _trouble(output: str) -> int:
    """How much has gone wrong with W&B: the bytes of its log."""
    return log_file(output).stat().st_size if log_file(output).exists() else 0


def _of_the_first(attempt: Attempt | None, run: Run) -> Attempt | None:
    """The attempt that torchrun's first process has made, or None where it found a record. The others wait
    for it."""
    if "LOCAL_RANK" not in os.environ:
        return attempt
    from accelerate.utils import broadcast_object_list

    from runs.training.build import make_accelerator

    make_accelerator(run)  # joins the processes
    return broadcast_object_list([attempt])[0]


def set_aside(record: Record, output: str) -> bool:
    """Moves a finished run's record, folder and measures to OUTPUT/replaced/ID.TIME, under the run's lock,
    for redo=true. Returns False where another command was first: it finds no record, or a new one, which it
    leaves alone.

    The record goes last: after a kill in between, the same command sets it aside, and no file of the old run
    is in the new one's way."""
    name = record["id"]
    path, folder = record_path(output, name), run_folder(output, name)
    with claimed(output, name, f"run {name}"):
        if finished_record(output, name) != record:
            return False
        aside = Path(output) / "replaced" / f"{name}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}"
        aside.mkdir(parents=True)
        if folder.is_dir():
            os.replace(folder, aside / "run")
        for measure in (Path(output) / "measures").glob("*.json"):
            with contextlib.suppress(ValueError):  # one that cannot be read
                if name in [run["id"] for run in read_measure(measure)["of"]]:
                    os.replace(measure, aside / f"measure_{measure.name}")
        os.replace(path, aside / "record.json")
    return True


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
            name = next(job.head for job in jobs if job.run == run)
            print(f"  {status}: {name}: {error} ({log})")
    if outcome.interrupted:
        print(interrupted_words(), file=sys.stderr)


def _show_table(output: str, name: str, table: bool) -> None:
    """Prints the table of a sweep and the command that prints it again. Another process makes the table: runs
    does not import analysis."""
    words = ["-m", "analysis.tables", f"sweep={name}", *([f"output={output}"] if output != "outputs" else [])]
    if table:
        done = subprocess.run([sys.executable, *words], env=environment(), capture_output=True, text=True)
        print(f"\n{done.stdout or done.stderr}".rstrip())
    print(f"{'This' if table else 'Its'} table: python {shlex.join(words)}")
