"""Many runs, one after another, each in a process of its own: no state leaks from one to the next.

The child processes are forked from a server that has torch imported already, so a run starts in a fraction of a second.
A finished run is skipped, a broken one resumed; a failed one never stops the others.
"""

import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

import tasks
from runs import models
from runs.config import Run
from runs.errors import UserError, describe, is_users
from runs.identity import hash_of, one_look, run_id
from runs.record import FINISHED, SCHEMA, Record, read_record, record_path, run_folder, write_record
from runs.starts import start_file
from runs.text import duration, shown
from tasks.pixels import preprocessing

Event = dict[str, Any]
#: What transformers imports for any model: three seconds.
HEAVY = ("modeling_utils", "models.auto.modeling_auto", "models.auto.tokenization_auto", "models.bert.modeling_bert")


@dataclass
class Outcome:
    """How the runs of one command ended."""

    done: int = 0
    skipped: int = 0
    diverged: int = 0
    failed: list[tuple[Run, str, str]] = field(default_factory=list)  # the run, its error, its log

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0


def sweep(runs: list[Run], part: bool = False) -> Outcome:
    """Does every run that has no record yet. Raises UserError or DataError before anything starts.

    part: of a longer command, which has done the preflight, sums up itself, and goes on after a failed run.
    """
    if int(os.environ.get("RANK", "0")):  # of torchrun's processes, the first one speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    started = time.monotonic()
    # torchrun's processes stay what they are, and a debugger wants no child.
    here = "LOCAL_RANK" in os.environ or runs[0].config["debug"]
    try:
        with one_look():
            finished = [finished_record(run) for run in runs]
        left = [run for run, record in zip(runs, finished, strict=True) if record is None]
        if left:
            if not here:
                start_fork_server()
            if not part:
                preflight(left)
    except Exception as error:
        if not is_users(error):
            raise
        raise UserError(f"{str(error).rstrip('.')}{'' if str(error).endswith('?') else '.'} Nothing was started.") from None
    outcome, spent = Outcome(), dict[str, list[float]]()
    display = Display(len(runs), name_task=len(runs) == 1 or len({run.task for run in runs}) > 1)
    for position, (run, record) in enumerate(zip(runs, finished, strict=True), 1):
        display.start(position, run)
        if record:
            outcome.skipped += 1
            display.line(f"already done ({result_words(record)}, run {record['id']}), skipped")
            continue
        left = left[1:]
        display.later = estimate(left, spent)
        begun = time.monotonic()
        record = _do_here(run, display.show) if here else _do_in_child(run, display.show, alone=len(runs) == 1 and not part)
        seconds = time.monotonic() - begun
        spent.setdefault(run.row, []).append(seconds)
        if record["status"] == "failed":
            log = str(run_folder(run.config["output"], record["id"]) / "log.txt")
            outcome.failed.append((run, record["error"], log))
            display.line(f"FAILED: {record['error']} ({log})")
        elif record["status"] == "diverged":
            outcome.diverged += 1
            display.line(f"DIVERGED: {record['error']}")
        else:
            outcome.done += 1
            display.line(f"{result_words(record)}  {duration(seconds)}  run {record['id']}")
    display.close()
    if not part:
        _summary(runs, outcome, time.monotonic() - started)
    return outcome


def preflight(runs: list[Run]) -> dict[str, str]:
    """Fetches and checks the model, the data and the method of every run, before the first one starts.

    Returns each task's metric.
    """
    import vera

    for run in runs:
        method = vera.make_method(**run.method)
        if run.start:
            vera.check_start(vera.make_method(**run.start.method), method, f"init_from={run.config['init_from']}")
        elif run.config["init_from"]:
            path = start_file(run)
            vera.check_start(vera.read_method(path), method, path)
    metrics, notes = {}, list[str]()
    missing = []  # all that lacks, at once: a user should not mend one thing to hear of the next
    loaded: dict[str, tasks.Task] = {}
    for run in _distinct(runs, "task"):
        try:
            task = loaded[hash_of(run.config["task"])] = tasks.load(run.config["task"])
            metrics[run.task] = task.metric
            notes += [*task.notes, *task.advice]
        except tasks.DataError as error:
            after = next((r for r in runs if r.start and r.start.task == run.task), None)
            missing.append(f"{after.row} starts from {run.label}: {error}" if after and run.task != after.task else str(error))
    for run in _distinct(runs, "model"):
        try:
            models.fetch(run.config["model"])
        except (tasks.DataError, UserError) as error:
            missing.append(str(error))
    if missing:
        raise UserError("; ".join(dict.fromkeys(missing)))
    for run in _distinct(runs, "task", "model"):
        if run.config["model"]["modality"] == "image":  # evaluation images are made ready once for all runs, and can be read
            task = loaded[hash_of(run.config["task"])]
            task.prepare(preprocessing(models.fetch(run.config["model"])), 0)
            notes += task.notes
    for note in dict.fromkeys(notes):  # each seed draws images of its own, and has the same to say of them
        print(f"note: {note}")
    return metrics


def settled_id(run: Run) -> str:
    """The id of a run whose model and data the preflight has brought here."""
    settled = run_id(run)
    if settled is None:
        raise UserError(f"{run.label}: the revision of its data cannot be told. Name one: task.revision= or model.revision=")
    return settled


def finished_record(run: Run) -> Record | None:
    """The record of a run that needs no other try. One that cannot be read counts as none."""
    found = run_id(run)
    path = record_path(run.config["output"], found) if found else None
    if path is None or not path.is_file():
        return None
    try:
        record = read_record(path)
    except ValueError as error:
        print(f"{error}: the run is done again", file=sys.stderr)
        return None
    return record if record["status"] in FINISHED else None


def result_words(record: Record) -> str:
    """A record's result in a few words."""
    result = record["result"]
    if record["status"] == "diverged":
        return f"diverged: {record['error']}"
    best, last = (shown(result["metric"], result[which]) for which in ("best", "last"))
    words = f"{result['metric']} {best} at epoch {result['best_epoch']:.3g}, last {last}"
    scores = record["texts"]["scores"][0] if record.get("texts") else None  # of the last epoch, by the protocol
    return f"{words}, BLEU {scores['bleu']:.1f} on {record['texts']['split']}" if scores else words


def estimate(left: list[Run], spent: dict[str, list[float]]) -> float:
    """Seconds for the runs that are left: each row's median so far, or the median over all rows."""
    every = [seconds for row in spent.values() for seconds in row]
    if left and not every:
        return float("nan")
    return sum(statistics.median(spent.get(run.row, every)) for run in left)


def _distinct(runs: list[Run], *parts: str) -> list[Run]:
    return list({json.dumps([run.config[part] for part in parts], sort_keys=True): run for run in runs}.values())


# --- one run


def _do_here(run: Run, show: Callable[[Event], None]) -> Record:
    from runs.train import train

    settled = settled_id(run)
    return train(run, settled, show)


def start_fork_server() -> None:
    """Starts the process that every run is forked from, while this one goes on: it imports what takes long, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runs.train", *(f"transformers.{m}" for m in HEAVY)])
    multiprocessing.forkserver.ensure_running()


def _do_in_child(run: Run, show: Callable[[Event], None], alone: bool) -> Record:
    settled = settled_id(run)
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(run, settled, sender), daemon=True)
    child.start()
    sender.close()
    error, mistake = None, False
    try:
        while True:
            try:
                event = receiver.recv()
            except EOFError:
                break
            if "error" in event:
                error, mistake = event["error"], event["mistake"]
            else:
                show(event)
        child.join()
    except BaseException:
        child.terminate()
        child.join(5)
        if child.is_alive():  # or its end was lost between it and the fork server
            child.kill()
            child.join(5)
        raise
    if mistake and alone:
        raise UserError(error)
    record = finished_record(run)
    if error is None and record:
        return record
    if error is None:
        code = child.exitcode or 0
        ending = (
            f"signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "") if code < 0 else f"exit code {code}"
        )
        error = f"the process ended with {ending}"
    failed = {
        "schema": SCHEMA,
        "id": settled,
        "status": "failed",
        "error": error,
        "cell": {"paper": run.paper, "row": run.row, "model": run.model, "task": run.config["task"]["name"], "seed": run.seed},
        "label": {part: run.config[name]["label"] for part, name in (("row", "method"), ("model", "model"), ("task", "task"))},
        "config": run.config,
        "config_hash": hash_of(run.config)[:16],
    }
    write_record(run.config["output"], failed)
    return failed


def _child(run: Run, settled: str, events: Connection) -> None:
    """The child's whole life: output into the run's log, progress to the parent, one line for an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = run_folder(run.config["output"], settled)
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {run.label}, run {settled}", flush=True)
    from runs.train import train

    last = 0.0

    def report(event: Event) -> None:
        nonlocal last
        if event["phase"] != "training" or time.monotonic() - last > 0.25:
            last = time.monotonic()
            try:
                events.send(event)
            except OSError:  # the sweep was killed: see _end_with_parent
                os._exit(1)

    try:
        train(run, settled, report)
    except BaseException as error:
        if not is_users(error):
            import traceback

            traceback.print_exc()
        mistake = is_users(error) or isinstance(error, OSError)
        words = describe(error)
        events.send({"error": words if mistake else f"{type(error).__name__}: {words}", "mistake": mistake})
        sys.exit(1)


def _end_with_parent() -> None:
    """Ends this process soon after the sweep was killed: the fork server goes with it, and the parent's id changes."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


# --- what is seen


class Display:
    """One line for the run that is on: a live bar on a terminal, a line for each epoch elsewhere."""

    def __init__(self, total: int, name_task: bool) -> None:
        self.total, self.name_task = total, name_task
        self.live = sys.stderr.isatty() and not int(os.environ.get("RANK", "0"))
        self.bar: Any = None
        self.head = ""
        self.later = 0.0  # seconds for the runs after this one; NaN: not known

    def start(self, position: int, run: Run) -> None:
        width = len(str(self.total))
        task = f"{run.config['task']['label']} " if self.name_task else ""
        self.head = f"[{position:>{width}}/{self.total}] {task}{run.config['method']['label']} seed {run.seed}"

    def show(self, event: Event) -> None:
        if self.live:
            self._bar(event)
        elif event["phase"] == "evaluated":
            print(f"{self.head}  {self._words(event)}", flush=True)
        elif event["phase"].startswith("resuming") or event.get("milestone"):
            print(f"{self.head}  {event['phase']}{self._count(event)}", flush=True)

    def _bar(self, event: Event) -> None:
        if self.bar is None:
            # The words go where tqdm's unit stands: before a postfix it would put a comma.
            self.bar = tqdm(
                total=1, bar_format="{desc}  {bar:12}  {unit}", leave=False, ascii=" -#", dynamic_ncols=True, unit=""
            )
        if "steps" in event:
            self.bar.total, self.bar.n = event["steps"], event["step"]
            epoch, _, self.bar.unit = self._words(event).partition("  ")
            self.bar.set_description_str(f"{self.head}  {epoch}")
        elif "of" in event:
            self.bar.total, self.bar.n = event["of"], event["done"]
            self.bar.unit = self._count(event).strip()
            self.bar.set_description_str(f"{self.head}  {event['phase']}")
        else:
            self.bar.set_description_str(f"{self.head}  {event['phase']}")

    @staticmethod
    def _count(event: Event) -> str:
        """How many of an event's items are done, and the time that the others take."""
        if "of" not in event:
            return ""
        left = event["seconds_left"]
        return f" {event['done']}/{event['of']}" + (f"  left: {duration(left)}" if left is not None else "")

    def _words(self, event: Event) -> str:
        words = [f"epoch {event['epoch']}/{event['epochs']}", f"loss {event['loss']:.3f}"]
        if event["metric"] is not None:
            now, best = (shown(event["metric_name"], event[which]) for which in ("metric", "best"))
            words.append(f"dev {event['metric_name']} {now} (best {best})")
        pace, unit = event["pace"], event["unit"]
        words.append(f"{pace / 1000:.1f}k {unit}/s" if pace >= 1000 else f"{pace:.{pace < 10:d}f} {unit}/s")
        everything = event["seconds_left"] + self.later
        known = everything == everything
        texts = f" and {event['texts']} texts" if event.get("texts") else ""
        all_ = f", all {duration(everything)}" if known and not texts else ""
        words.append(f"left: run {duration(event['seconds_left'])}{texts}{all_}")
        return "  ".join(words)

    def line(self, text: str) -> None:
        self.close()
        print(f"{self.head}  {text}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _summary(runs: list[Run], outcome: Outcome, seconds: float) -> None:
    parts = [f"{outcome.done} done", f"{outcome.skipped} already there"]
    parts += [f"{outcome.diverged} diverged"] if outcome.diverged else []
    parts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
    where = record_path(runs[0].config["output"], "x").parent
    print(f"{len(runs)} run{'s' * (len(runs) > 1)} in {duration(seconds)}: {', '.join(parts)}. Records: {where}")
    for run, error, log in outcome.failed:
        print(f"  failed: {run.label}: {error} ({log})")


@one_look()
def check_ids(runs: list[Run]) -> None:
    """Raises UserError where two runs of a sweep are the same one."""
    seen: dict[str, Run] = {}
    for run in runs:
        found = run_id(run)
        if found in seen and found is not None:
            raise UserError(f"{run.label} appears twice in this sweep")
        seen[found or ""] = run
