"""What a command would do: which runs are done, running, failed, missing or blocked, and what the others
would cost. It starts no run, and imports torch for probe=true alone.

python -m runs.plan experiment=table2_base
python -m runs.plan task=rte,mrpc method=vera seed=0,1,2
python -m runs.plan experiment=table2_base probe=true   and hours, before the first run
python -m runs.plan experiment=table2_base watch=true   again and again while a sweep runs
"""

import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runs.command import COMPOSING, Common, entry_point, open_ledger, read, setting
from runs.config import Launch, read_command
from runs.errors import UserError
from runs.forecast import Left, estimate, unknown
from runs.forecast.rows import Sources
from runs.identity import Contents, data_of, identify, start_file
from runs.pairs import refusal
from runs.record import Ledger, is_trial, read_record, records_folder, run_folder
from runs.record.text import duration, plural
from runs.run import Run, starts
from runs.sweep.crowd import advice
from runs.sweep.jobs import check_ids
from runs.sweep.leases import lease_seconds, leases_folder
from runs.sweep.progress import metric_words, read_progress

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
#: A run's id, and why it has none.
Identity = tuple[str | None, str]


@dataclass(frozen=True)
class Planned:
    """A run and its state (see STATES); `why` in one line.

    progress: of one that has begun, the last event of its training (runs/training/loop.py), and its host.
    """

    run: Run
    state: str
    why: str = ""
    progress: dict[str, Any] = field(default_factory=dict)


def plan(runs: list[Run], ledger: Ledger, ids: Sequence[Identity] | None = None) -> list[Planned]:
    """The state of each run, from the ledger and the files of this machine alone.

    ids: of `identities`, where they are known already."""
    leased = leased_runs(runs[0].config["output"]) if runs else set()
    finished: dict[tuple[Any, ...], set[str]] = defaultdict(set)  # the data that a cell has finished on
    for record in ledger:
        if record["status"] == "done" and not is_trial(record["config"]):
            cell = tuple(record["cell"][key] for key in ("row", "model", "task", "seed"))
            finished[cell].add(record["data"]["content"])
    contents, planned = Contents(), list[Planned]()
    for run, identity in zip(runs, ids or identities(runs), strict=True):
        one = _planned(run, identity, ledger, leased, contents)
        elsewhere = finished[run.row, run.model, run.config["task"]["name"], run.seed]
        if one.state == "missing" and elsewhere and elsewhere - {data_of(run, contents)}:
            one = replace(one, why=OTHER_DATA)
        planned.append(one)
    return planned


def identities(runs: list[Run]) -> list[Identity]:
    """Each run's id, and why it has none: where a file is missing."""
    problems = dict[int, str]()
    ids = identify(runs, problems)
    return [(run_id, problems.get(index, "")) for index, run_id in enumerate(ids)]


def leased_runs(output: str) -> set[str]:
    """The ids of runs whose executors raised a lease's counter within the last minute, or within half of a
    longer lease. This compares clocks, so it is shown and decides nothing."""
    ids = set()
    for path in leases_folder(output).glob("*.*"):
        with contextlib.suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) < max(60.0, lease_seconds(path) / 2):
                ids.add(path.stem)
    return ids


def _planned(run: Run, identity: Identity, ledger: Ledger, leased: set[str], contents: Contents) -> Planned:
    """One run's state. contents: of the data that were hashed already."""
    run_id, problem = identity
    problem = problem or (None if run_id and run_id in ledger.records else refusal(run)) or ""
    if problem:
        return Planned(run, "blocked", problem)
    if run_id is None:
        return Planned(
            run, "unknown", f"{run.model} or {run.task} has no pinned revision and is not on this machine"
        )
    record = ledger.records.get(run_id)
    if record and record["status"] != "failed":
        return Planned(run, record["status"])
    output = run.config["output"]
    if run_id in leased:
        return Planned(run, "running", progress=read_progress(output, run_id))
    if run.config["init_from"]:
        try:
            start_file(run, contents)
        except UserError as error:
            return Planned(run, "blocked", str(error))
    folder = run_folder(output, run_id)
    if record:
        return Planned(run, "failed", f"{record['error']} ({folder / 'log.txt'})")
    if (folder / "checkpoint.safetensors").is_file():
        return Planned(run, "partial", progress=read_progress(output, run_id))
    return Planned(run, "missing")


def text(
    planned: list[Planned],
    ledger: Ledger,
    first: list[Planned] | None = None,
    probe: bool = False,
    launch: Launch | None = None,
) -> str:
    """The plan of a command: a grid of rows x tasks, totals, cost, and why runs failed or are blocked.

    first: the plan of the runs that come `before` these. probe: first measure how fast this device is
    (runs/probe.py), for runs that are left and that no finished one is like. launch: what the
    command says of where and how: whether it repeats the finished runs, too, and whether runs share a GPU."""
    runs = [p.run for p in planned]
    first = plan(before(runs), ledger) if first is None else first
    if probe:
        from runs.probe import probe as measure  # imports torch

        measure(unknown(_left([*first, *planned]), ledger), [r for r in ledger if r["status"] == "done"])
    title = f"experiment={runs[0].experiment}" if runs[0].experiment else "plan"
    counts = {"task": _columns(planned), "row": {run.row for run in runs}, "seed": {run.seed for run in runs}}
    size = " x ".join(plural(len(values), word) for word, values in counts.items())
    models = ", ".join(dict.fromkeys(run.model for run in runs))
    others = f", and {len(first)} before them" if first else ""
    lines = [f"{title}: {size} = {plural(len(planned), 'run')} on {models}{others}", ""]
    for p in first:
        waiting = sum(run.start == p.run for run in runs)
        why = f" ({p.why})" if p.why else ""
        lines += [f"first: {p.run.label}, from which {waiting} of them start: {p.state}{why}", ""]
    lines += [*_grid(planned), "", _totals(planned), cost([*first, *planned], ledger)]
    left = [one.run for one in _left(planned)]
    if launch and (line := advice(left, Sources(list(ledger)), launch.launcher)):
        lines.append(line)
    lines += _remarks(planned, first)
    if launch and launch.redo:
        done = sum(p.state in ("done", "diverged") for p in planned)
        are = "is" if done == 1 else "are"
        lines.append(f"redo=true: also {plural(done, 'run')} that {are} done, beyond that estimate")
    return "\n".join(lines)


def _columns(planned: list[Planned]) -> list[tuple[str, str]]:
    """The columns of the grid: model and task."""
    return list(dict.fromkeys((p.run.model, p.run.config["task"]["name"]) for p in planned))


def _grid(planned: list[Planned]) -> list[str]:
    """A line for each row: how many of its runs are finished, by task, and marks for the others."""
    rows, columns = list(dict.fromkeys(p.run.row for p in planned)), _columns(planned)
    several = len({model for model, _ in columns}) > 1
    names = [f"{task}@{model}" if several else task for model, task in columns]
    width = max(9, *(len(name) + 2 for name in names))
    margin = max(len(row) for row in rows) + 2
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
    finished = states["done"] + states["diverged"]
    return f"{finished}/{states.total()} {marks}".strip() if states.total() else "-"


def _totals(planned: list[Planned]) -> str:
    totals = Counter(p.state for p in planned)
    return " · ".join(f"{state} {totals[state]}" for state in STATES if totals[state])


def _remarks(planned: list[Planned], first: list[Planned]) -> list[str]:
    """Lines on runs that are running, on those that are missing for their data alone, and on why others
    failed or wait."""
    lines = [f"running: {p.run.label}: {progress_words(p.progress)}" for p in planned if p.state == "running"]
    if other := sum(p.why == OTHER_DATA for p in planned):
        folder = any(p.why == OTHER_DATA and "data_dir" in p.run.config["task"] for p in planned)
        hint = ": task.data_dir= names a folder, and without it the data are the hub's" if folder else ""
        lines.append(f"missing: {plural(other, 'run')} of which {OTHER_DATA}{hint}")
    coming = [p.run for p in first if p.state not in ("done", "diverged", "blocked")]
    for state in ("failed", "blocked", "unknown"):
        reasons: Counter[str] = Counter()
        for p in (p for p in planned if p.state == state):
            soon = ", and is done first by the same command" if p.run.start in coming else ""
            reasons[f"{p.run.label}: {p.why}" if state == "failed" else f"{p.why}{soon}"] += 1
        for why, count in reasons.items():
            lines.append(f"{state}: {why}" + (f" ({count} runs)" if count > 1 else ""))
    return lines


def progress_words(event: dict[str, Any]) -> str:
    """A run's progress in a few words: epoch, metric, time left, host."""
    words = [str(event.get("phase", "begins"))]
    if "epoch" in event:
        words = [f"epoch {event['epoch']}/{event['epochs']}"]
        if event["metric"] is not None:
            words.append(metric_words(event))
    if "of" in event:
        words.append(f"{event['done']}/{event['of']}")
    if event.get("seconds_left") is not None:
        words.append(f"left: {duration(event['seconds_left'])}")
    return ", ".join(words) + (f" (on {event['host']})" if "host" in event else "")


def cost(planned: list[Planned], ledger: Ledger) -> str:
    """Time and disk that the runs which are left take: from finished runs of the same model and task, from
    the progress of those that have begun, or else a forecast."""
    if left := _left(planned):
        return estimate(left, ledger)
    blocked = any(p.state == "blocked" for p in planned)
    return "nothing that can be done yet" if blocked else "nothing left to do"


def _left(planned: list[Planned]) -> list[Left]:
    coming = [p for p in planned if p.state not in ("done", "diverged", "blocked")]
    # A run that waits for one of these can be done after it, by the same command.
    waiting = [p for p in planned if p.state == "blocked" and p.run.start in [q.run for q in coming]]
    return [Left(p.run, p.state == "running", p.progress.get("seconds_left")) for p in [*coming, *waiting]]


def before(runs: list[Run]) -> list[Run]:
    """The runs that these start from and that the command does not name."""
    return [run for run in starts(runs) if run not in runs]


def watch(runs: list[Run], every: float = 2.0, probe: bool = False, launch: Launch | None = None) -> None:
    """Shows the plan again whenever it has changed, until no run is running or can be done.

    every: seconds between two looks. probe, launch: as for `text`; the probe runs once."""
    output, live, shown = runs[0].config["output"], sys.stdout.isatty(), ""
    ledger, stamps = Ledger(), dict[str, int]()
    clear, note = ("\x1b[H\x1b[2J", "\n\nCtrl-C ends the watch, not the sweep") if live else ("", "\n")
    while True:
        # Each record is read once: there may be thousands
        paths = {path.stem: path for path in records_folder(output).glob("*.json")}
        for run_id, path in paths.items():
            with contextlib.suppress(OSError, ValueError):  # OSError: it was set aside meanwhile
                stamp = path.stat().st_mtime_ns
                if stamps.get(run_id) != stamp:
                    stamps[run_id] = stamp
                    ledger.records[run_id] = read_record(path)
        for run_id in stamps.keys() - paths.keys():  # redo=true has set them aside
            del stamps[run_id]
            ledger.records.pop(run_id, None)
        planned, first = plan(runs, ledger), plan(before(runs), ledger)
        now, probe = text(planned, ledger, first=first, probe=probe, launch=launch), False
        if now != shown:
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


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, overrides="the runs, as for python -m runs", options=COMPOSING)
    command = read_command(line.overrides, line.config_dir)
    runs = command.runs
    if line.settings.watch:
        with contextlib.suppress(KeyboardInterrupt):
            watch(runs, probe=line.settings.probe, launch=command.launch)
        return 0
    # Published records do not make a run done here. Of a ledger of 100,000 records this reads those of the
    # plan, and a sample for the forecast.
    first = before(runs)
    ids = identities([*runs, *first])
    check_ids(runs, [run_id for run_id, _ in ids[: len(runs)]])
    ledger = open_ledger(runs[0].config["output"], published=False, wanted={i for i, _ in ids if i})
    planned = plan(runs, ledger, ids[: len(runs)])
    planned_first = plan(first, ledger, ids[len(runs) :])
    print(text(planned, ledger, planned_first, line.settings.probe, command.launch))
    return 0


if __name__ == "__main__":
    entry_point(main)
