"""What a command would do: which runs are done, running, failed, missing or blocked, and what the others
would cost. It starts no run. torch is imported to count FLOPs, once, and for probe=true.

python -m runs.plan experiment=table2_base
python -m runs.plan task=rte,mrpc method=vera seed=0,1,2
python -m runs.plan experiment=table2_base probe=true   and hours, before the first run
python -m runs.plan experiment=table2_base card=H100    hours on a card that is not here
python -m runs.plan experiment=table2_base watch=true   again and again while a sweep runs
"""

import contextlib
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from runs.command import COMPOSING, Common, entry_point, open_ledger, read, setting
from runs.config import read_command
from runs.errors import UserError
from runs.forecast.cost import Left, estimate
from runs.identity import Contents, check_ids, data_of, identify, start_file
from runs.meta import refusal
from runs.record import Ledger, is_trial, read_ledger, records_folder, run_folder
from runs.record.text import duration, plural
from runs.run import Run, starts
from runs.sweep.claim import Claim
from runs.sweep.display import metric_words, read_progress
from runs.training.files import last_checkpoint

#: The states of a run: its mark in the grid, and what the legend says of the mark.
STATES = {
    "done": ("", ""),
    "diverged": ("d", "diverged (a result)"),
    "running": ("*", "running"),
    "failed": ("f", "failed (the same command tries again)"),
    "partial": ("r", "begun, goes on from its checkpoint"),
    "missing": ("", ""),
    "blocked": ("b", "blocked"),
    "unknown": ("?", "not known without the network"),
}
#: Why a run may be missing although there is a record of its cell.
OTHER_DATA = "the cell has finished on data of other content"


@dataclass(frozen=True)
class Planned:
    """A run and its state (see STATES); `why` in one line. progress: of one that has begun, the last event of
    its training (runs/training/loop.py), and its host. steps: those that its checkpoint has."""

    run: Run
    state: str
    why: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    steps: int = 0


def plan(runs: list[Run], ledger: Ledger) -> list[Planned]:
    """The state of each run, from the ledger and the files of this machine alone."""
    finished: dict[tuple[Any, ...], set[str]] = defaultdict(set)  # the data that a cell has finished on
    for record in ledger:
        if record["status"] == "done" and not is_trial(record["config"]):
            cell = tuple(record["cell"][key] for key in ("row", "model", "task", "seed"))
            finished[cell].add(record["data"]["content"])
    contents, problems, planned = Contents(), dict[int, str](), list[Planned]()
    for index, (run, run_id) in enumerate(zip(runs, identify(runs, problems), strict=True)):
        one = _planned(run, run_id, problems.get(index), ledger, contents)
        elsewhere = finished[run.row, run.model, run.config["task"]["name"], run.seed]
        if one.state == "missing" and elsewhere and elsewhere - {data_of(run, contents)}:
            one = replace(one, why=OTHER_DATA)
        planned.append(one)
    return planned


def _planned(run: Run, run_id: str | None, why: str | None, ledger: Ledger, contents: Contents) -> Planned:
    """One run's state. why: it has no id."""
    record = ledger.records.get(run_id) if run_id else None
    if why or (record is None and (why := refusal(run))):
        return Planned(run, "blocked", why)
    if run_id is None:
        why = f"{run.model} or {run.task} has no pinned revision and is not on this machine"
        return Planned(run, "unknown", why)
    if record and record["status"] != "failed":
        return Planned(run, record["status"])
    output, folder = run.config["output"], run_folder(run.config["output"], run_id)
    checkpoint, progress = last_checkpoint(output, run_id), read_progress(output, run_id)
    if Claim(output, run_id).is_held():
        return Planned(run, "running", "", progress, _saved_steps(checkpoint))
    if run.config["init_from"]:
        try:
            start_file(run, contents)
        except UserError as error:
            return Planned(run, "blocked", str(error))
    if record:
        return Planned(run, "failed", f"{record['error']} ({folder / 'log.txt'})")
    if checkpoint:
        return Planned(run, "partial", "", progress, _saved_steps(checkpoint))
    return Planned(run, "missing")


def _saved_steps(checkpoint: Path | None) -> int:
    """The steps that a checkpoint has; 0 for none, and for a file that is none."""
    if checkpoint is None:
        return 0
    try:
        with safe_open(checkpoint, "np") as file:
            return int(json.loads(file.metadata()["header"])["state"]["step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return 0


# --- in words


def text(
    planned: list[Planned],
    ledger: Ledger,
    first: list[Planned] | None = None,
    redo: bool = False,
    card: str | None = None,
) -> str:
    """The plan of a command: a grid of rows x tasks, totals, cost, and why runs failed or are blocked.

    first: the plan of the runs that come before these. redo: the command repeats the finished runs, too.
    card: of conf/cards.yaml, whose hours are wanted."""
    runs = [p.run for p in planned]
    first = plan(before(runs), ledger) if first is None else first
    title = f"experiment={runs[0].experiment}" if runs[0].experiment else "plan"
    columns = list(dict.fromkeys((p.run.model, p.run.config["task"]["name"]) for p in planned))
    counts = {"task": columns, "row": {run.row for run in runs}, "seed": {run.seed for run in runs}}
    size = " x ".join(plural(len(values), word) for word, values in counts.items())
    models = ", ".join(dict.fromkeys(run.model for run in runs))
    others = f", and {len(first)} before them" if first else ""
    lines = [f"{title}: {size} = {plural(len(planned), 'run')} on {models}{others}", ""]
    for p in first:
        why, waiting = p.why and f" ({p.why})", sum(run.start == p.run for run in runs)
        lines += [f"first: {p.run.label}, from which {waiting} of them start: {p.state}{why}", ""]
    totals = Counter(p.state for p in planned)
    lines += [
        *_grid(planned, columns),
        "",
        " · ".join(f"{state} {totals[state]}" for state in STATES if totals[state]),
    ]
    lines += [cost([*first, *planned], ledger, card), *_remarks(planned, first)]
    if redo:
        done = totals["done"] + totals["diverged"]
        also = f"{plural(done, 'run')} that {'is' if done == 1 else 'are'} done"
        lines.append(f"redo=true: also {also}, beyond that estimate")
    return "\n".join(lines)


def _grid(planned: list[Planned], columns: list[tuple[str, str]]) -> list[str]:
    """A line for each row: how many of its runs are finished, and marks for the others, by model and task."""
    rows = list(dict.fromkeys(p.run.row for p in planned))
    several = len({model for model, _ in columns}) > 1
    names = [f"{task}@{model}" if several else task for model, task in columns]
    width, margin = max(9, *(len(name) + 2 for name in names)), max(len(row) for row in rows) + 2
    states: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for p in planned:
        states[p.run.row, p.run.model, p.run.config["task"]["name"]][p.state] += 1
    lines = [" " * margin + "".join(f"{name:<{width}}" for name in names)]
    for row in rows:
        cells = [_cell(states[row, *column]) for column in columns]
        lines.append(f"{row:<{margin}}" + "".join(f"{cell:<{width}}" for cell in cells).rstrip())
    there = {p.state for p in planned}
    legend = [f"{mark}: {about}" for state, (mark, about) in STATES.items() if mark and state in there]
    return [*lines, "; ".join(legend)] if legend else lines


def _cell(states: Counter[str]) -> str:
    marks = "".join(mark for state, (mark, _) in STATES.items() if states[state])
    return f"{states['done'] + states['diverged']}/{states.total()} {marks}".strip() if states else "-"


def _remarks(planned: list[Planned], first: list[Planned]) -> list[str]:
    """Lines on runs that are running, on those that are missing for their data alone, and on why others
    failed or wait."""
    lines = [f"running: {p.run.label}: {progress_words(p.progress)}" for p in planned if p.state == "running"]
    if other := [p for p in planned if p.why == OTHER_DATA]:
        folder = any("data_dir" in p.run.config["task"] for p in other)
        hint = ": task.data_dir= names a folder, and without it the data are the hub's" if folder else ""
        lines.append(f"missing: {plural(len(other), 'run')} of which {OTHER_DATA}{hint}")
    coming = [p.run for p in first if p.state not in ("done", "diverged", "blocked")]
    reasons: Counter[str] = Counter()
    for p in sorted(planned, key=lambda p: [*STATES].index(p.state)):
        soon = ", and is done first by the same command" if p.run.start in coming else ""
        if p.state in ("failed", "blocked", "unknown"):
            reasons[
                f"{p.state}: " + (f"{p.run.label}: {p.why}" if p.state == "failed" else p.why + soon)
            ] += 1
    return lines + [f"{why}" + (f" ({count} runs)" if count > 1 else "") for why, count in reasons.items()]


def progress_words(event: dict[str, Any]) -> str:
    """A run's progress in a few words: epoch, metric, time left, host."""
    words = [str(event.get("phase", "begins"))]
    if "epoch" in event:
        words = [f"epoch {event['epoch']}/{event['epochs']}"]
        words += [metric_words(event)] if event["metric"] is not None else []
    words += [f"{event['done']}/{event['of']}"] if "of" in event else []
    left = event.get("seconds_left")
    words += [f"left: {duration(left)}"] if left is not None else []
    return ", ".join(words) + (f" (on {event['host']})" if "host" in event else "")


def cost(planned: list[Planned], ledger: Ledger, card: str | None = None) -> str:
    """Time and disk that the runs which are left take (runs/forecast/cost.py)."""
    if left := _left(planned):
        return estimate(left, ledger, card)
    blocked = any(p.state == "blocked" for p in planned)
    return "nothing that can be done yet" if blocked else "nothing left to do"


def _left(planned: list[Planned]) -> list[Left]:
    coming = [p for p in planned if p.state not in ("done", "diverged", "blocked")]
    # A run that waits for one of these can be done after it, by the same command.
    coming += [p for p in planned if p.state == "blocked" and p.run.start in [q.run for q in coming]]
    return [Left(p.run, p.steps, p.progress.get("seconds_left")) for p in coming]


def before(runs: list[Run]) -> list[Run]:
    """The runs that these start from and that the command does not name."""
    return [run for run in starts(runs) if run not in runs]


# --- the command


def watch(runs: list[Run], redo: bool = False, card: str | None = None, every: float = 2.0) -> None:
    """Shows the plan again whenever it has changed, until no run is running or can be done. every: seconds
    between two looks. The others are those of `text`."""
    ledger, stamp, shown, live = Ledger(), 0, "", sys.stdout.isatty()
    clear, note = ("\x1b[H\x1b[2J", "\n\nCtrl-C ends the watch, not the sweep") if live else ("", "\n")
    while True:
        with contextlib.suppress(OSError):  # there is no folder yet
            if stamp != (stamp := records_folder(runs[0].config["output"]).stat().st_mtime_ns):
                ledger = read_ledger(runs[0].config["output"], published=False)
        planned, first = plan(runs, ledger), plan(before(runs), ledger)
        if (now := text(planned, ledger, first, redo, card)) != shown:
            shown = now
            print(f"{clear}{now}{note}", flush=True)
        if not {p.state for p in [*first, *planned]} & {"running", "partial", "missing", "unknown"}:
            return
        time.sleep(every)


@dataclass(frozen=True)
class Settings(Common):
    """The settings of a plan, beside the words for runs."""

    watch: bool = setting(False, "again and again while a sweep runs, here or on a cluster")
    probe: bool = setting(False, "first train some steps of random weights: how fast this device is")
    card: str | None = setting(None, "hours on a card of conf/cards.yaml, such as H100, wherever you are")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, overrides="the runs, as for python -m runs", options=COMPOSING)
    command, settings = read_command(line.overrides, line.config_dir), line.settings
    runs = command.runs
    every = [*runs, *before(runs)]
    ids = identify(every, {})
    check_ids(runs, ids[: len(runs)])
    # Published records do not make a run done here. Of a ledger of 100,000 records this reads those of the
    # plan, and a sample for the forecast.
    ledger = open_ledger(runs[0].config["output"], published=False, wanted={i for i in ids if i})
    if settings.probe:
        from runs.probe import probe  # imports torch

        probe([left.run for left in _left(plan(every, ledger))])
    if settings.watch:
        with contextlib.suppress(KeyboardInterrupt):
            watch(runs, command.launch.redo, settings.card)
        return 0
    print(text(plan(runs, ledger), ledger, None, command.launch.redo, settings.card))
    return 0


if __name__ == "__main__":
    entry_point(main)
