"""A whole command: the checks before the first run, the runs, and the summary at the
end. A finished run is skipped and an interrupted one resumed. A failed one does not
stop the others."""

import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

from runs.command.errors import UserError, interruption_message, process_rank
from runs.config import Launch
from runs.launchers.contract import ByScript, ByWorkers, Launcher, OnThisMachine
from runs.machine.locks import holding
from runs.machine.processes import (
    process_environment,
    remove_leftovers,
    start_fork_server,
)
from runs.record.cell import is_trial_or_stopped
from runs.record.configuration import Configuration
from runs.record.ledger import finished_record, read_measure
from runs.record.schema import Record
from runs.record.sweeps import write_sweep
from runs.record.text import duration, plural
from runs.run.definition import Run
from runs.run.identity import check_ids, final_ids, identify
from runs.sweep.display import SHORTENED, heads
from runs.sweep.pool import Job, Slots, Sweep, slots_of
from runs.sweep.preflight import downloads_before, preflight
from runs.sweep.worker import log_folder, run_by_workers
from runs.tracking.tracker import (
    Tracking,
    ask_before_upload,
    log_file,
    sync_advice,
    with_mode_of_variable,
)
from runs.training.files import Attempt
from runs.training.train import Reporter


def sweep(
    runs: list[Run], launch: Launch | None = None, runs_to_repeat: Sequence[Run] = ()
) -> Sweep:
    """Does every run that has no finished record yet, and returns how they ended. Raises
    a user's error (is_user_error) before anything starts.

    Args:
        launch: where and how they are done; by default one after another, here.
        runs_to_repeat: runs that are done again; their records are archived first.
    """
    started = time.monotonic()
    launch = launch or Launch()
    output = runs[0].config["output"]
    # only the first of torchrun's processes writes the files of the sweep
    is_first = not process_rank()
    # torchrun's processes train themselves, and a debugger cannot follow into a child
    in_this_process = "LOCAL_RANK" in os.environ or runs[0].config["debug"]
    plan = _check_and_plan(runs, launch.launcher, runs_to_repeat, in_this_process)
    # W&B's errors are written into this file, which grows if this command has some
    tracking_log = log_file(output)
    bytes_before = _size(tracking_log)
    for folder in ("records", "sweeps"):
        remove_leftovers(Path(output) / folder)
    if plan.replaced and is_first:
        _archive_all(plan.replaced, output)
    todo = sum(not finished_record(output, job.id) for job in plan.jobs)
    tracking = with_mode_of_variable(launch.tracking)
    this_sweep = Sweep(plan.jobs, ask_before_upload(tracking, todo, output))
    if is_first and len(runs) > 1:
        with contextlib.suppress(OSError):  # a full disk: the runs wait for space
            write_sweep(output, this_sweep.name, [job.id for job in plan.jobs])
    _run_all(this_sweep, launch.launcher, plan.slots, in_this_process)
    if is_first and _size(tracking_log) not in (0, bytes_before):
        _note_unsent(output, this_sweep.tracking.mode == "online")
    # only for the user's own choice: ask_before_upload says how to send runs that it
    # has made offline
    elif is_first and todo and tracking.mode == "offline":
        _note_offline(output)
    _print_summary(this_sweep, time.monotonic() - started)
    if is_first:
        _point_to_table(this_sweep, runs, launch.table)
        _point_to_suspect_labels(this_sweep)
    return this_sweep


def _run_all(
    this_sweep: Sweep, launcher: Launcher, available: Slots, in_this_process: bool
) -> None:
    """Does the runs, in this process or through the launcher. available: the slots of
    this machine; none if the launcher has workers."""
    if in_this_process:
        # Nothing is skipped here: torchrun's processes might not see the same records.
        _do_in_this_process(this_sweep)
        return
    for job in this_sweep.jobs:
        this_sweep.finish(job, None)  # counts it, if it was done before
    if isinstance(launcher, ByWorkers):
        run_by_workers(this_sweep, launcher)
    else:
        this_sweep.do_pending_runs(available, is_only_run=len(this_sweep.jobs) == 1)


def dry_run(runs: list[Run], launcher: ByScript) -> str:
    """The text that launcher.dry_run=true prints: the script of the runs that are left,
    with notes as comments. It fetches, checks and submits nothing."""
    output = runs[0].config["output"]
    ids = identify(runs)
    todo = sum(not finished_record(output, run_id) for run_id in ids)
    if not todo:
        return f"# {plural(len(runs), 'run')} already done: nothing to submit"
    jobs = []
    for run, run_id in zip(runs, ids, strict=True):
        jobs.append(Job(run.label, run, run_id or "unknown"))
    workers = launcher.count_workers(todo)
    text = f"{plural(workers, 'worker')} for {plural(todo, 'run')}"
    notes = [f"# {text}; nothing is submitted"]
    if None in ids:
        notes.append(
            "# The jobs will have another name: it is known once models and data are"
            " fetched"
        )
    if downloads := downloads_before(runs):
        notes.append(
            "# Fetched before jobs are submitted, where this machine lacks them: "
            f"{', '.join(downloads)}"
        )
    notes += [f"# {remark}" for remark in launcher.remarks]
    # the folder is named by all runs of the sweep, those that are done included
    folder = log_folder(Sweep(jobs, Tracking("off")))
    # The notes go below the first line, which names the shell
    shebang, _, rest = launcher.script(folder, workers).partition("\n")
    return "\n".join([shebang, *notes, rest]).rstrip()


# --- before the first run


class SweepPlan(NamedTuple):
    """What a command will do. jobs: all runs. replaced: those that are done again, each
    with the record that is archived. slots: of this machine; none if nothing is left to
    do, or if the launcher has workers."""

    jobs: list[Job]
    replaced: list[tuple[Job, Record]]
    slots: Slots


def _check_and_plan(
    runs: list[Run],
    launcher: Launcher,
    runs_to_repeat: Sequence[Run],
    in_this_process: bool,
) -> SweepPlan:
    """Checks all that can be checked before the first run, and fetches models and data.
    Raises UserError. in_this_process: whether the command trains itself."""
    if in_this_process and launcher.name != "serial":
        raise UserError(
            f"launcher={launcher.name} has its own processes: "
            "leave out torchrun and debug=true"
        )
    output = runs[0].config["output"]
    # None for a run whose model or data have to be fetched first
    ids = identify(runs)
    if len({run.config["output"] for run in runs}) > 1:
        raise UserError(
            "output= differs from run to run: the runs of a command go to one folder"
        )
    check_ids(runs, ids)
    records = [finished_record(output, run_id) for run_id in ids]
    todo = list[Run]()
    for run, record in zip(runs, records, strict=True):
        if record is None or run in runs_to_repeat:
            todo.append(run)
    available = Slots()  # none, unless this machine does the runs
    if todo:
        launcher.check()
        if isinstance(launcher, OnThisMachine):
            available = slots_of(
                todo[0].config["device"],
                launcher.runs_per_device,
                launcher.uses_all_devices,
            )
            if not in_this_process:
                start_fork_server(several_runs=len(todo) > 1)
        preflight(todo)
    run_heads = heads(_run_names(runs))
    # By now models and data are here, so every id is known
    jobs = []
    for head, run, run_id in zip(run_heads, runs, final_ids(runs), strict=True):
        jobs.append(Job(head, run, run_id))
    # Now, so that a file in the place of a folder is noticed before the first run
    for name in ("locks", "runs", "sweeps", "records"):
        Path(output, name).mkdir(parents=True, exist_ok=True)
    replaced = list[tuple[Job, Record]]()
    for job, record in zip(jobs, records, strict=True):
        if record and job.run in runs_to_repeat:
            replaced.append((job, record))
    return SweepPlan(jobs, replaced, available)


def _run_names(runs: Sequence[Run]) -> list[str]:
    """For each run its label, and its overrides that not all runs have, except those
    that the label shows."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    keys_of_label = ("method", "method.config_class", "model", "task", "recipe", "seed")
    names = []
    for run in runs:
        parts = [run.label]
        for override in run.overrides:
            key = override.partition("=")[0]
            if override not in common and key not in keys_of_label:
                parts.append(override)
        names.append(", ".join(parts))
    return names


def _archive_all(replaced: Sequence[tuple[Job, Record]], output: str) -> None:
    """Archives the records of these jobs for redo=true, and says so."""
    count = sum(archive(job, record) for job, record in replaced)
    folder = Path(output) / "replaced"
    print(f"redo: {plural(count, 'record')} archived in {folder}", flush=True)


def archive(job: Job, record: Record) -> bool:
    """Moves a finished run's record, folder and measures to OUTPUT/replaced/ID.TIME.PID,
    under the run's lock, for redo=true. Returns False if the run no longer has this
    record, because another command was first. The record goes last: if the command is
    killed before, redo=true archives the rest."""
    output = Path(job.output)
    run_files = Path(job.log).parent
    with holding(job.lock, job.head):
        if finished_record(job.output, job.id) != record:
            return False
        date = time.strftime("%Y%m%d-%H%M%S")
        folder = output / "replaced" / f"{job.id}.{date}.{os.getpid()}"
        folder.mkdir(parents=True)
        if run_files.is_dir():
            os.replace(run_files, folder / "run")
        for measure in (output / "measures").glob("*.json"):
            if job.id in _measured_ids(measure):
                os.replace(measure, folder / f"measure_{measure.name}")
        os.replace(job.record, folder / "record.json")
    return True


def _measured_ids(path: Path) -> list[str]:
    """The ids of the runs that a measure is of; none where it cannot be read."""
    try:
        return [run["id"] for run in read_measure(path)["of"]]
    except ValueError:
        return []


# --- runs in this process


def _do_in_this_process(this_sweep: Sweep) -> None:
    """Does every run in this process: for a debugger, and under torchrun. torchrun's
    first process holds the locks and makes the attempts, on which the others work,
    too."""
    for job in this_sweep.jobs:
        started = time.monotonic()
        is_first = not process_rank()
        with holding(job.lock, job.head) if is_first else contextlib.nullcontext():
            job.read_earlier_seconds()
            attempt = _shared_attempt(job)
            if attempt:
                _train_here(job, attempt, this_sweep.tracking_of(job))
        # without an attempt the run was done before, which None stands for
        this_sweep.finish(job, time.monotonic() - started if attempt else None)


def _shared_attempt(job: Job) -> Attempt | None:
    """The attempt that all of torchrun's processes work on; None for a finished run. The
    first process decides, and the others are told: they might not see its files yet."""
    from accelerate.utils import broadcast_object_list

    from runs.training.context import make_accelerator

    attempts: list[Attempt | None] = [None]
    if not process_rank() and not finished_record(job.output, job.id):
        attempts = [Attempt(job.output, job.id)]
    if "LOCAL_RANK" in os.environ:
        make_accelerator(job.run)  # joins the processes
        broadcast_object_list(attempts)
    return attempts[0]


def _train_here(job: Job, attempt: Attempt, tracking: Tracking) -> None:
    """Trains a run in this process. If that raises an error, the attempt is saved as one
    that has stopped, so that the same command resumes it."""
    from runs.training.loop import Training
    from runs.training.train import train

    # An earlier attempt may have halved its batch, because memory ran out
    config = cast(Configuration, {**job.run.config, **attempt.settings})
    run = dataclasses.replace(job.run, config=config)
    try:
        train(Training(run, job.id, Reporter(run, job.id), attempt), tracking)
    except BaseException:
        attempt.save(stopped=True)
        raise


# --- after the last run


def _size(path: Path) -> int:
    """A file's size in bytes; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def _note_unsent(output: str, was_asked_to_send: bool) -> None:
    """Says that something went wrong with W&B, and how to send what this machine has.
    was_asked_to_send: whether the runs were to be sent at once (tracking=online)."""
    trouble = "W&B did not write all of these runs"
    if was_asked_to_send:
        trouble = "W&B lacks some of these runs, or a part of them"
    print(
        f"note: {trouble} ({log_file(output)} says why). To send what is here: "
        f"{sync_advice(output)}",
        file=sys.stderr,
    )


def _note_offline(output: str) -> None:
    """Says where the runs of tracking=offline are, and how to send them."""
    print(
        f"note: {Path(output, 'wandb')} has these runs for W&B, and nothing was sent. "
        f"To send all runs there: {sync_advice(output)}. To send one: "
        f"wandb sync {Path(output, 'wandb')}/*-ID",
        file=sys.stderr,
    )


def _print_summary(this_sweep: Sweep, seconds: float) -> None:
    """Prints how many runs ended how, and a line for each that diverged or failed.
    seconds: how long the command took."""
    total = plural(len(this_sweep.jobs), "run")
    summary = f"{this_sweep.done} of {total} done in {duration(seconds)}"
    counts = {
        "done before": this_sweep.skipped,
        "diverged": len(this_sweep.diverged),
        "failed": len(this_sweep.failed),
        "left": len(this_sweep.pending),
    }
    for status, count in counts.items():
        if count:
            summary += f", {count} {status}"
    print(f"{summary}. Records: {this_sweep.jobs[0].record.parent}")
    unfinished = [*this_sweep.pending, *(job for job, _ in this_sweep.failed)]
    finished = [job for job in this_sweep.jobs if job not in unfinished]
    limits = [job.run.config["train"].get("max_steps") for job in finished]
    if limits and None not in limits:  # train.max_steps limited every finished run
        which_runs = "the others" if unfinished else "all"
        print(f"  {which_runs} {SHORTENED}")
    for job, error in this_sweep.diverged:
        print(f"  diverged: {job.head}: {error} ({job.log})")
    for job, error in this_sweep.failed:
        print(f"  failed: {job.head}: {error} ({job.log})")
    if this_sweep.signal:
        print(interruption_message(), file=sys.stderr)


def _point_to_table(this_sweep: Sweep, runs: list[Run], prints_table: bool) -> None:
    """Prints the command of the table that the runs are in; after several runs, also the
    table itself if prints_table. It prints nothing for runs that are in no table: trials,
    runs that train.max_steps stopped, and a single run that failed."""
    is_sweep = len(runs) > 1
    if this_sweep.signal or (this_sweep.failed and not is_sweep):
        return
    if all(is_trial_or_stopped(run.config) for run in runs):
        return
    task = runs[0].config["task"]["name"]
    selection = [f"model={runs[0].model}", f"task={task}"]
    if is_sweep:
        selection = [f"sweep={this_sweep.name}"]
    _show_table(runs[0].config["output"], selection, prints_table and is_sweep)


def _point_to_suspect_labels(this_sweep: Sweep) -> None:
    """After a cross-validation (task.folds), prints the command that lists the labels
    that may be wrong. It takes one finished run, and joins all folds itself."""
    if this_sweep.signal or len(this_sweep.jobs) == 1:
        return
    without_predictions = [*this_sweep.pending]
    for job, _ in [*this_sweep.failed, *this_sweep.diverged]:
        without_predictions.append(job)
    for job in this_sweep.jobs:
        if job in without_predictions or job.run.config["task"].get("folds") is None:
            continue
        words = [job.id, "out=suspects.csv"]
        if job.output != "outputs":
            words.append(f"output={job.output}")
        command = f"vera-bench mistakes {shlex.join(words)}"
        print(f"Which labels may be wrong: {command}")
        return


def _show_table(output: str, selection: list[str], prints_table: bool) -> None:
    """Prints the command of a table. If prints_table, another process first prints the
    table: the package runs may not import the package analysis.

    selection: the command's arguments without the output folder."""
    words = [*selection]
    if output != "outputs":
        words.append(f"output={output}")
    command = f"vera-bench table {shlex.join(words)}"
    if not prints_table:
        print(f"Its table: {command}")
        return
    result = subprocess.run(
        [sys.executable, "-m", "analysis.tables", *words],
        env=process_environment(),
        capture_output=True,
        text=True,
    )
    print(f"\n{result.stdout or result.stderr}".rstrip())
    print(f"This table: {command}")
