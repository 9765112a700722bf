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
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tasks
from runs import models
from runs.command.errors import UserError, interrupted_words, rank
from runs.config import Launch, Launcher
from runs.machine.fork_server import start_fork_server
from runs.machine.locks import alone
from runs.record.cell import hash_of, is_trial
from runs.record.ledger import finished_record, read_record, sweep_up_dead, write_sweep
from runs.record.schema import Record
from runs.record.text import duration, plural
from runs.run.definition import Run
from runs.run.identity import check_ids, final_ids, identify, start_file
from runs.run.methods import make_method, refusal
from runs.run.provenance import code_state
from runs.sweep.display import heads
from runs.sweep.launch import (
    check_launcher,
    environment,
    folder_of,
    launched,
    sbatch_script,
    workers_for,
)
from runs.sweep.pool import Job, Places, Sweep, places
from runs.tracking.settings import Tracking, ask_before_upload
from runs.tracking.tracker import log_file
from runs.training.files import Attempt
from runs.training.train import Reporter
from tasks.images import preprocessing


def sweep(
    runs: list[Run], launch: Launch | None = None, again: Sequence[Run] = ()
) -> Sweep:
    """Does every run that has no record yet. Raises a user's error (is_users) before
    anything starts.

    launch: where and how; default: one after another, here. again: runs whose record is
    set aside first."""
    first = not rank()  # of torchrun's processes this one writes the files of the sweep
    started, launch, output = (
        time.monotonic(),
        launch or Launch(),
        runs[0].config["output"],
    )
    launcher, whole = launch.launcher, first and len(runs) > 1
    # Torchrun's processes train themselves, and a debugger cannot follow into a child
    here = "LOCAL_RANK" in os.environ or runs[0].config["debug"]
    jobs, replaced, on = _begin(runs, launcher, again, here)
    log = log_file(output)
    trouble = log.exists() and log.stat().st_size
    for folder in ("records", "sweeps"):
        sweep_up_dead(Path(output) / folder)
    if replaced and first:
        count = sum(set_aside(job, record) for job, record in replaced)
        print(
            f"redo: {plural(count, 'record')} set aside, in {Path(output) / 'replaced'}",
            flush=True,
        )
    left = sum(not job.record.is_file() for job in jobs)
    done = Sweep(jobs, ask_before_upload(launch.tracking, left, output))
    if whole:
        with contextlib.suppress(OSError):  # a full disk: the runs wait for room
            write_sweep(output, done.name, [job.id for job in jobs])
    for job in [] if here else jobs:  # torchrun's processes might not see the same
        done.finish(job, None)
    if here:
        _do_here(done)
    elif launcher.name in ("slurm", "ray"):
        launched(done, launcher)
    else:
        done.go(on, alone=len(runs) == 1)
    if first and log.exists() and log.stat().st_size != trouble:
        words = "make sync" if output == "outputs" else f"make sync OUTPUT={output}"
        print(
            f"note: W&B does not have everything: {words} uploads it", file=sys.stderr
        )
    _summary(done, time.monotonic() - started)
    ended = first and not done.signal and (whole or not done.failed)
    if ended and not all(
        is_trial(run.config) or run.config["train"].get("max_steps") for run in runs
    ):
        task = runs[0].config["task"]["name"]
        which = f"sweep={done.name}" if whole else f"model={runs[0].model} task={task}"
        _show_table(output, which.split(), launch.table and whole)
    return done


def dry_run(runs: list[Run], launcher: Launcher) -> str:
    """The sbatch script of the runs that are left, without fetching, checking or
    submitting anything."""
    output, ids = runs[0].config["output"], identify(runs)
    done = [bool(finished_record(output, run_id)) for run_id in ids]
    left = done.count(False)
    if not left:
        return f"# {plural(len(runs), 'run')} already done: nothing to submit"
    jobs = [
        Job(run.label, run, run_id or "unknown")
        for run, run_id in zip(runs, ids, strict=True)
    ]
    folder = folder_of(Sweep(jobs, Tracking("off")))
    workers = workers_for(launcher, left)
    head = (
        f"# {plural(workers, 'worker')} for {plural(left, 'run')}; nothing is submitted"
    )
    if None in ids:
        head += (
            "\n# The jobs will have another name: it is known once models and data are"
            " fetched"
        )
    # the first line of the script has to stay the first
    shebang, _, rest = sbatch_script(launcher, folder, workers).partition("\n")
    return f"{shebang}\n{head}\n{rest}".rstrip()


def _begin(
    runs: list[Run], launcher: Launcher, again: Sequence[Run], here: bool
) -> tuple[list[Job], list[tuple[Job, Record]], Places]:
    """Checks all that can be checked before the first run. Returns the jobs, the
    records of those that are done again, and the places of this machine, where the
    launcher uses them.

    here: in this process."""
    if here and launcher.name != "serial":
        raise UserError(
            f"launcher={launcher.name} has its own processes: leave out torchrun and debug=true"
        )
    output, ids = runs[0].config["output"], identify(runs)
    if len({run.config["output"] for run in runs}) > 1:
        raise UserError(
            "output= differs from run to run: the runs of a command go to one folder"
        )
    check_ids(runs, ids)
    records, on = [finished_record(output, run_id) for run_id in ids], Places()
    left = [
        run
        for run, record in zip(runs, records, strict=True)
        if record is None or run in again
    ]
    if left:
        check_launcher(launcher)
        if launcher.name in ("serial", "local"):
            on = places(
                left[0].config["device"],
                launcher.runs_per_device,
                launcher.name == "local",
            )
            if not here:
                start_fork_server(len(left) > 1)
        preflight(left)
    jobs = [
        Job(*job)
        for job in zip(heads(_names(runs)), runs, final_ids(runs), strict=True)
    ]
    # a file in a folder's place is found now
    for name in ("locks", "runs", "sweeps", "records"):
        Path(output, name).mkdir(parents=True, exist_ok=True)
    of_jobs = zip(jobs, records, strict=True)
    return (
        jobs,
        [(job, record) for job, record in of_jobs if record and job.run in again],
        on,
    )


def preflight(runs: list[Run]) -> None:
    """Fetches and checks the model, the data and the method of every run.

    Raises UserError with all that is missing at once."""
    import vera

    for run in runs:
        method = make_method(run.method)
        if run.start:
            vera.check_start(
                make_method(run.start.method),
                method,
                f"init_from={run.config['init_from']}",
            )
        elif run.config["init_from"]:
            path = start_file(run)
            vera.check_start(vera.read_method(path), method, path)
    found, missing, notes = dict[str, Any](), list[str](), list[str]()
    for part, load in dict[str, Any](task=tasks.load, model=models.fetch).items():
        for run in _distinct(runs, part):
            try:
                found[hash_of(run.config[part])] = load(run.config[part])
            except (tasks.DataError, UserError) as error:
                after = next(
                    (r for r in runs if r.start and r.start.task == run.task != r.task),
                    None,
                )
                first = (
                    f"{after.row} starts from {run.label}: "
                    if after and part == "task"
                    else ""
                )
                missing.append(f"{first}{error}")
    missing += [
        why for run in _distinct(runs, "model", "method") if (why := refusal(run))
    ]
    if missing:
        raise UserError("; ".join(dict.fromkeys(missing)))
    for run in _distinct(runs, "task", "model"):
        task, folder = (found[hash_of(run.config[part])] for part in ("task", "model"))
        if run.config["model"]["modality"] == "image":
            # Evaluation images are preprocessed once for all runs, which shows that
            # they can be read
            task.prepare(preprocessing(folder), 0)
        notes += [*task.notes, *task.advice]
    if others := code_state().get("altered"):
        more = f" and {len(others) - 1} more" * (len(others) > 1)
        why = "A result of changed code cannot be published (vera-bench publish check=)"
        notes.append(f"{others[0]}{more}: changed, of the project itself. {why}")
    gaps: dict[str, dict[str, None]] = defaultdict(dict)
    for run in runs:
        gaps[run.recipe_gap][f"{run.row} on {run.task}"] = None
    notes += [f"{words} ({', '.join(of)})" for words, of in gaps.items() if words]
    # the image tasks of all seeds have the same notes
    for note in dict.fromkeys(notes):
        print(f"note: {note}")


def _distinct(runs: list[Run], *parts: str) -> list[Run]:
    """One run for each combination of these parts of the configuration."""
    return list(
        {hash_of([run.config[part] for part in parts]): run for run in runs}.values()
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """For each run its label, and the overrides that the others lack."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    shown = ("method", "method.config_class", "model", "task", "recipe", "seed")
    own = [
        [
            w
            for w in run.overrides
            if w not in common and w.partition("=")[0] not in shown
        ]
        for run in runs
    ]
    return [
        ", ".join([run.label, *words]) for run, words in zip(runs, own, strict=True)
    ]


def _do_here(done: Sweep) -> None:
    """Does every run in this process: for a debugger, and under torchrun, whose first
    process holds the locks and makes the attempt that the others work on, too."""
    from accelerate.utils import broadcast_object_list

    from runs.training.context import make_accelerator
    from runs.training.loop import Training
    from runs.training.train import train

    for job in done.jobs:
        start, attempts = time.monotonic(), list[Attempt | None]([None])
        with contextlib.nullcontext() if rank() else alone(job.lock, job.head):
            if not rank() and not finished_record(job.output, job.id):
                attempts = [Attempt(job.output, job.id)]
            if "LOCAL_RANK" in os.environ:
                make_accelerator(job.run)  # joins the processes
                broadcast_object_list(attempts)
            if attempt := attempts[0]:
                # A micro-batch may have been halved, since memory ran out
                run = dataclasses.replace(
                    job.run, config=job.run.config | attempt.settings
                )
                try:
                    train(
                        Training(run, job.id, Reporter(run, job.id), attempt),
                        done.tracking_of(job),
                    )
                except BaseException:
                    attempt.save(stopped=True)
                    raise
        done.finish(job, time.monotonic() - start if attempt else None)


def set_aside(job: Job, record: Record) -> bool:
    """Moves a finished run's record, folder and measures to OUTPUT/replaced/ID.TIME,
    under the run's lock, for redo=true. Returns False where another command was first.
    The record goes last: a kill loses none."""
    folder = Path(job.log).parent
    with alone(job.lock, job.head):
        if finished_record(job.output, job.id) != record:
            return False
        aside = (
            Path(job.output)
            / "replaced"
            / f"{job.id}.{time.strftime('%Y%m%d-%H%M%S')}.{os.getpid()}"
        )
        aside.mkdir(parents=True)
        if folder.is_dir():
            os.replace(folder, aside / "run")
        for measure in (Path(job.output) / "measures").glob("*.json"):
            with contextlib.suppress(ValueError):  # one that cannot be read
                if job.id in [
                    run["id"] for run in read_record(measure, "measure")["of"]
                ]:
                    os.replace(measure, aside / f"measure_{measure.name}")
        os.replace(job.record, aside / "record.json")
    return True


def _summary(done: Sweep, seconds: float) -> None:
    counts = {"done": done.done, "already there": done.skipped}
    others = {
        "diverged": len(done.diverged),
        "failed": len(done.failed),
        "left": len(done.pending),
    }
    counts |= {status: count for status, count in others.items() if count}
    words = ", ".join(f"{count} {status}" for status, count in counts.items())
    records = done.jobs[0].record.parent
    print(
        f"{plural(len(done.jobs), 'run')} in {duration(seconds)}: {words}. Records: {records}"
    )
    unfinished = [*done.pending, *(job for job, _ in done.failed)]
    finished = [job for job in done.jobs if job not in unfinished]
    limits = [job.run.config["train"].get("max_steps") for job in finished]
    if limits and None not in limits:
        which = "the others" if unfinished else "all"
        print(f"  {which} stopped early by train.max_steps: in no table")
    for status, ended in (("diverged", done.diverged), ("failed", done.failed)):
        for job, error in ended:
            print(f"  {status}: {job.head}: {error} ({job.log})")
    if done.signal:
        print(interrupted_words(), file=sys.stderr)


def _show_table(output: str, which: list[str], table: bool) -> None:
    """Prints a table, made by another process (runs does not import analysis), and its
    command."""
    words = [*which]
    if output != "outputs":
        words.append(f"output={output}")
    command = f"vera-bench table {shlex.join(words)}"
    if not table:
        print(f"Its table: {command}")
        return
    done = subprocess.run(
        [sys.executable, "-m", "analysis.tables", *words],
        env=environment(),
        capture_output=True,
        text=True,
    )
    print(f"\n{done.stdout or done.stderr}".rstrip())
    print(f"This table: {command}")
