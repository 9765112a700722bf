"""Many runs: what is checked before the first one, who does them, and what is told at the end.

A finished run is skipped, a broken one resumed; a failed one never stops the others.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import tasks
from runs import models
from runs.begun import in_the_way, obstacle, read_progress
from runs.claims import Heart, Watcher, held
from runs.config import Run
from runs.display import Board, Display, result_words
from runs.errors import UserError, interrupted_words, is_users
from runs.executor import (
    Executor,
    Job,
    Outcome,
    Sweep,
    failure,
    settled_record,
    skipped_words,
    start_fork_server,
    tidy,
)
from runs.identity import hash_of, one_look, run_id, start_file
from runs.launch import DeviceLease, Launch, devices, make_launcher
from runs.pairs import refusal
from runs.record import FINISHED, Record, read_measure, read_record, record_path, run_folder, sweep_up_dead
from runs.record.text import duration, plural
from runs.sources import changed_words
from tasks.images import preprocessing

#: Executors that end at once, so many times in a row without a run begun, are not started again.
EMPTY_STARTS = 3


def sweep(
    runs: list[Run],
    part: bool = False,
    launch: Launch | None = None,
    words: list[str] | None = None,
    again: Sequence[Run] = (),
) -> Outcome:
    """Does every run that has no record yet. Raises UserError or DataError before anything starts.

    part: of a longer command, which has done the preflight, sums up itself, and goes on after a failed run.
    launch, words: where and how (runs/launch.py), and Hydra's words for its launcher; else one after another,
    here.
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
        _check_folders(jobs)
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


def _check_folders(jobs: list[Job]) -> None:
    """Raises UserError where something else stands in the place of a folder that the runs write to."""
    output = Path(jobs[0].run.config["output"])
    for folder in (output, *(output / name for name in ("records", "claims", "runs", "sweeps"))):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is no folder, and stands where runs keep their files. Move it away")
    for job in jobs:
        folder = run_folder(output, job.id)
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(
                f"{folder} is no folder, and stands where the run {job.id} keeps its files. Move it away"
            )


def preflight(runs: list[Run]) -> dict[str, tasks.Task]:
    """Fetches and checks the model, the data and the method of every run, before the first one starts.

    Returns each task.
    """
    import vera

    for run in runs:
        method = vera.make_method(**run.method)
        if run.start:
            vera.check_start(
                vera.make_method(**run.start.method), method, f"init_from={run.config['init_from']}"
            )
        elif run.config["init_from"]:
            path = start_file(run)
            vera.check_start(vera.read_method(path), method, path)
    found, notes = {}, list[str]()
    missing = []  # all that lacks, at once: a user should not mend one thing to hear of the next
    loaded: dict[str, tasks.Task] = {}
    for run in _distinct(runs, "task"):
        try:
            task = loaded[hash_of(run.config["task"])] = found[run.task] = tasks.load(run.config["task"])
            notes += [*task.notes, *task.advice]
        except tasks.DataError as error:
            after = next((r for r in runs if r.start and r.start.task == run.task), None)
            missing.append(
                f"{after.row} starts from {run.label}: {error}"
                if after and run.task != after.task
                else str(error)
            )
    for run in _distinct(runs, "model"):
        try:
            models.fetch(run.config["model"])
        except (tasks.DataError, UserError) as error:
            missing.append(str(error))
    missing += [why for run in _distinct(runs, "model", "method") if (why := refusal(run))]
    if missing:
        raise UserError("; ".join(dict.fromkeys(missing)))
    for run in _distinct(runs, "task", "model"):
        # Evaluation images are made ready once for all runs, and can be read
        if run.config["model"]["modality"] == "image":
            task = loaded[hash_of(run.config["task"])]
            task.prepare(preprocessing(models.fetch(run.config["model"])), 0)
            notes += task.notes
    for note in dict.fromkeys(notes):  # each seed draws images of its own, and has the same to say of them
        print(f"note: {note}")
    return found


def settled_id(run: Run) -> str:
    """The id of a run whose model and data the preflight has brought here."""
    settled = run_id(run)
    if settled is None:
        raise UserError(
            f"{run.label}: the revision of its data cannot be told. Name one: task.revision= or"
            " model.revision="
        )
    return settled


def finished_record(run: Run) -> Record | None:
    """The record of a run that needs no other try. One that cannot be read counts as none."""
    found = run_id(run)
    path = record_path(run.config["output"], found) if found else None
    if path is None or not path.is_file():
        return None
    try:
        record = read_record(path)
    except ValueError:
        return None  # which the executor says
    return record if record["status"] in FINISHED else None


def replaced_folder(output: str | Path) -> Path:
    """Where what redo=true replaces is kept. No ledger reads it."""
    return Path(output) / "replaced"


def set_aside(record: Record, output: str, lease_seconds: float) -> None:
    """Moves a finished run's record, folder and measures to outputs/replaced/ID.TIME, under the run's lease.

    Of two commands that want it at once, one does it: the other finds no record, or a new one, which it
    leaves alone. The folder goes first: a kill in between leaves a record without it, and no file of the old
    run in a new one's way."""
    name, watcher = record["id"], Watcher(output, lease_seconds)
    path, folder = record_path(output, name), run_folder(output, name)
    while _is_there(path, record):
        claim = watcher.take(name)
        if claim is None:
            time.sleep(min(1.0, lease_seconds / 8))
            continue
        with Heart(claim, lease_seconds):
            if not _is_there(path, record):
                return
            aside = replaced_folder(output) / f"{name}.{time.strftime('%Y%m%d-%H%M%S')}-{claim.token[:4]}"
            aside.mkdir(parents=True)
            if folder.is_dir():
                os.replace(folder, aside / "run")
            for measure in (Path(output) / "measures").glob("*.json"):
                with contextlib.suppress(ValueError):  # one that cannot be read
                    if name in [run["id"] for run in read_measure(measure)["of"]]:
                        os.replace(measure, aside / f"measure_{measure.name}")
            os.replace(path, aside / "record.json")


def _is_there(path: Path, record: Record) -> bool:
    try:
        return read_record(path) == record
    except ValueError:
        return False


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


def _distinct(runs: list[Run], *parts: str) -> list[Run]:
    return list(
        {json.dumps([run.config[part] for part in parts], sort_keys=True): run for run in runs}.values()
    )


def _do_here(plan: Sweep, display: Display, finished: list[Record | None]) -> Outcome:
    """Every run in this process: under torchrun, whose first process holds the claim, and for a debugger."""
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
        begun = time.monotonic()
        if first:
            with held(job.run.config["output"], job.id, plan.lease_seconds) as claim:
                record = train(job.run, job.id, display.show, claim)
        else:
            record = train(job.run, job.id, display.show)
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


# --- many executors


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


def telling_words(runs: list[Run]) -> list[str]:
    """The words of each run that not all of a sweep have, but for those that its row, model and task say
    already."""
    common = set.intersection(*(set(run.words) for run in runs))
    groups = ("method", "model", "task", "recipe", "seed")
    return [
        " ".join(w for w in run.words if w not in common and w.partition("=")[0] not in groups)
        for run in runs
    ]


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


@one_look()
def check_ids(runs: list[Run]) -> None:
    """Raises UserError where two runs of a sweep are the same one."""
    seen: dict[str, Run] = {}
    for run in runs:
        found = run_id(run)
        if found in seen and found is not None:
            raise UserError(f"{run.label} appears twice in this sweep")
        seen[found or ""] = run
