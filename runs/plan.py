"""What a command would do: done, running, failed, missing or blocked, and what it would cost. Runs nothing,
and needs no torch but for probe=true.

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
from dataclasses import dataclass, field
from typing import Any

from runs.command import COMPOSING, Common, entry_point, open_ledger, read, setting
from runs.config import Run, read_command, starts
from runs.errors import UserError
from runs.forecast import Left, estimate, unknown
from runs.identity import Contents, data_of, identify, start_file
from runs.pairs import refusal
from runs.record import Ledger, Metric, is_trial, read_record, records_folder, run_folder
from runs.record.text import duration, plural
from runs.sweep.jobs import check_ids
from runs.sweep.leases import lease_seconds, leases_folder
from runs.sweep.progress import read_progress

MARKS = {"running": "*", "failed": "f", "diverged": "d", "partial": "r", "blocked": "b", "unknown": "?"}
LEGEND = {
    "*": "running",
    "f": "failed (the same command tries again)",
    "d": "diverged (a result)",
    "r": "begun, goes on from its checkpoint",
    "b": "blocked",
    "?": "not known without the network",
}


#: Why a run may be missing although there is a record of its cell.
OTHER_DATA = (
    "have finished on data of other content: task.data_dir= names a folder, and without it the data are the"
    " hub's"
)


#: A run's id, and why there is none.
Known = tuple[str | None, str]


@dataclass(frozen=True)
class Planned:
    """A run and where it stands: done, diverged, running, failed, partial, missing, blocked or unknown; `why`
    in one line.

    progress: of one that runs, the last event of its training (runs/training/loop.py), and on which host.
    """

    run: Run
    state: str
    why: str = ""
    progress: dict[str, Any] = field(default_factory=dict)


def plan(runs: list[Run], ledger: Ledger, ids: Sequence[Known] | None = None) -> list[Planned]:
    """Where each run stands, from the ledger and the files on this machine alone. ids: of `identified`."""
    held = running(runs[0].config["output"]) if runs else set()
    elsewhere: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for record in ledger:
        if record["status"] == "done" and not is_trial(record["config"]):
            elsewhere[tuple(record["cell"][key] for key in ("row", "model", "task", "seed"))].add(
                record["data"]["content"]
            )
    looked = Contents()
    return [
        _state(
            run,
            known,
            ledger,
            held,
            elsewhere[run.row, run.model, run.config["task"]["name"], run.seed],
            looked,
        )
        for run, known in zip(runs, ids or identified(runs), strict=True)
    ]


def identified(runs: list[Run]) -> list[Known]:
    """Each run's id, and why none can be told where a file is missing."""
    problems = dict[int, str]()
    ids = identify(runs, problems)
    return [(run_id, problems.get(index, "")) for index, run_id in enumerate(ids)]


def running(output: str) -> set[str]:
    """The runs whose executors gave a sign of life within the last minute, or within half of a longer lease.
    To show, by the clock: nothing is decided by it."""
    found = set()
    for path in leases_folder(output).glob("*.*"):
        with contextlib.suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) < max(60.0, lease_seconds(path) / 2):
                found.add(path.stem)
    return found


def _state(
    run: Run, known: Known, ledger: Ledger, held: set[str], elsewhere: set[str], looked: Contents
) -> Planned:
    """elsewhere: the contents of the data that this cell has finished on. looked: at which data already."""
    found, problem = known
    if problem:
        return Planned(run, "blocked", problem)
    refused = None if found and found in ledger.records else refusal(run)
    if refused:
        return Planned(run, "blocked", refused)
    if found is None:
        return Planned(
            run, "unknown", f"{run.model} or {run.task} has no pinned revision and is not on this machine"
        )
    record = ledger.records.get(found)
    if record and record["status"] != "failed":
        return Planned(run, record["status"])
    if found in held:
        return Planned(run, "running", progress=read_progress(run.config["output"], found))
    folder = run_folder(run.config["output"], found)
    if run.config["init_from"]:
        try:
            start_file(run, looked)
        except UserError as error:
            return Planned(run, "blocked", str(error))
    if record:
        return Planned(run, "failed", f"{record['error']} ({folder / 'log.txt'})")
    if (folder / "checkpoint.safetensors").is_file():
        return Planned(run, "partial")
    other = elsewhere and elsewhere - {data_of(run, looked)}
    return Planned(run, "missing", OTHER_DATA if other else "")


def show(planned: list[Planned], ledger: Ledger, title: str, first: list[Planned] | None = None) -> str:
    """The plan as text: a grid of rows x tasks, totals, cost, and why anything failed or is blocked.

    first: runs that were not asked for and come before, because others start from their adapters.
    """
    first = first or []
    models = list(dict.fromkeys(p.run.model for p in planned))
    sizes = {"task": len(_columns(planned)), "row": len({p.run.row for p in planned})}
    sizes["seed"] = len({p.run.seed for p in planned})
    size = " x ".join(plural(count, word) for word, count in sizes.items())
    before = f", and {len(first)} before them" if first else ""
    lines = [f"{title}: {size} = {len(planned)} runs on {', '.join(models)}{before}", ""]
    for p in first:
        waiting = sum(q.run.start == p.run for q in planned)
        why = f" ({p.why})" if p.why else ""
        lines += [f"first: {p.run.label}, from which {waiting} of them start: {p.state}{why}", ""]
    lines += [*_grid(planned), "", _totals(planned), cost([*first, *planned], ledger)]
    return "\n".join(lines + _remarks(planned, first))


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
    used = {MARKS[p.state] for p in planned if p.state in MARKS}
    if used:
        lines.append("; ".join(f"{mark}: {LEGEND[mark]}" for mark in LEGEND if mark in used))
    return lines


def _cell(states: Counter[str]) -> str:
    marks = "".join(mark for state, mark in MARKS.items() if states[state])
    finished = states["done"] + states["diverged"]
    return f"{finished}/{states.total()} {marks}".strip() if states.total() else "-"


def _totals(planned: list[Planned]) -> str:
    totals = Counter(p.state for p in planned)
    order = ("done", "diverged", "running", "failed", "partial", "missing", "blocked", "unknown")
    return " · ".join(f"{state} {totals[state]}" for state in order if totals[state])


def _remarks(planned: list[Planned], first: list[Planned]) -> list[str]:
    """What runs, what is missing for its data alone, and why others failed or wait."""
    lines = [f"running: {p.run.label}: {progress_words(p.progress)}" for p in planned if p.state == "running"]
    if other := sum(p.why == OTHER_DATA for p in planned):
        lines.append(f"missing: {other} of them {OTHER_DATA}")
    coming = [p.run for p in first if p.state not in ("done", "diverged", "blocked")]
    for state in ("failed", "blocked", "unknown"):
        reasons: Counter[str] = Counter()
        for p in (p for p in planned if p.state == state):
            soon = ", and is done first by the same command" if p.run.start in coming else ""
            reasons[f"{p.run.label}: {p.why}" if state == "failed" else f"{p.why}{soon}"] += 1
        lines += [
            f"{state}: {why}" + (f" ({count} runs)" if count > 1 else "") for why, count in reasons.items()
        ]
    return lines


def progress_words(event: dict[str, Any]) -> str:
    """How a run stands, in a few words: epoch, metric, time left, host."""
    words = [str(event.get("phase", "begins"))]
    if "epoch" in event:
        words = [f"epoch {event['epoch']}/{event['epochs']}"]
        if event["metric"] is not None:
            now, best = (
                Metric(event["metric_name"], scale=event["scale"]).text(event[which])
                for which in ("metric", "best")
            )
            words.append(f"{event['metric_name']} {now} (best {best})")
    if "of" in event:
        words.append(f"{event['done']}/{event['of']}")
    if event.get("seconds_left") is not None:
        words.append(f"left: {duration(event['seconds_left'])}")
    return ", ".join(words) + (f" (on {event['host']})" if "host" in event else "")


def cost(planned: list[Planned], ledger: Ledger) -> str:
    """Time and disk that are left, from finished runs of the same model and task, and from what running ones
    say; or else a forecast."""
    left = _left(planned)
    if not left:
        return (
            "nothing left to do"
            if all(p.state != "blocked" for p in planned)
            else "nothing that can be done yet"
        )
    return estimate(left, ledger)


def _left(planned: list[Planned]) -> list[Left]:
    coming = [p for p in planned if p.state not in ("done", "diverged", "blocked")]
    # A run that waits for one of these can be done after it, by the same command.
    waiting = [p for p in planned if p.state == "blocked" and p.run.start in [q.run for q in coming]]
    return [Left(p.run, p.state == "running", p.progress.get("seconds_left")) for p in [*coming, *waiting]]


def before(runs: list[Run]) -> list[Run]:
    """Those that were not asked for, and that others start from."""
    return [run for run in starts(runs) if run not in runs]


def text(
    planned: list[Planned],
    ledger: Ledger,
    first: list[Planned] | None = None,
    probe: bool = False,
    redo: bool = False,
) -> str:
    """The whole plan of a command.

    first: the plan of the runs that come `before` these. probe: first measure how fast this device is
    (runs/probe.py), for runs that are left and that no finished one is like. redo: the command repeats the
    finished runs, too."""
    runs = [p.run for p in planned]
    first = plan(before(runs), ledger) if first is None else first
    if probe:
        from runs.probe import probe as measure  # imports torch

        measure(unknown(_left([*first, *planned]), ledger), [r for r in ledger if r["status"] == "done"])
    title = f"experiment={runs[0].experiment}" if runs[0].experiment else "plan"
    shown = show(planned, ledger, title, first)
    if redo:
        done = sum(p.state in ("done", "diverged") for p in planned)
        are = "is" if done == 1 else "are"
        shown += f"\nredo=true: also {plural(done, 'run')} that {are} done, beyond that estimate"
    return shown


def watch(runs: list[Run], every: float = 2.0, probe: bool = False, redo: bool = False) -> None:
    """Shows the plan again whenever it has changed, until nothing is left that is running or can be done; or
    Ctrl-C. probe, redo: as for `text`; probe once."""
    output, live, shown = runs[0].config["output"], sys.stdout.isatty(), ""
    ledger, stamps = Ledger(), dict[str, int]()
    while True:
        # A ledger of thousands is read once, and then what is new
        for path in records_folder(output).glob("*.json"):
            stamp = path.stat().st_mtime_ns
            if stamps.get(path.name) != stamp:
                stamps[path.name] = stamp
                with contextlib.suppress(ValueError):
                    record = read_record(path)
                    ledger.records[record["id"]] = record
        planned = plan(runs, ledger)
        now, probe = text(planned, ledger, probe=probe, redo=redo), False
        if now != shown:
            shown = now
            clear = "\x1b[H\x1b[2J" if live else ""
            print(
                f"{clear}{now}" + ("\n\nCtrl-C ends the watch, not the sweep" if live else "\n"), flush=True
            )
        if not {p.state for p in planned} & {"running", "partial", "missing", "unknown"}:
            return
        time.sleep(every)


@dataclass(frozen=True)
class Settings(Common):
    """What a plan can be given beside the runs."""

    watch: bool = setting(False, "again and again while a sweep runs, here or on a cluster")
    probe: bool = setting(False, "first train some steps of random weights: how fast this device is")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, overrides="the runs, as for python -m runs", passes=COMPOSING)
    command = read_command([*line.options, *line.overrides])
    runs = command.runs
    if line.settings.watch:
        with contextlib.suppress(KeyboardInterrupt):
            watch(runs, probe=line.settings.probe, redo=command.launch.redo)
        return 0
    # What was run elsewhere is not done here; and of a ledger of 100,000 what is shown is read, and a sample
    # for the forecast.
    first = before(runs)
    ids = identified([*runs, *first])
    check_ids(runs, [run_id for run_id, _ in ids[: len(runs)]])
    ledger = open_ledger(runs[0].config["output"], published=False, wanted={i for i, _ in ids if i})
    planned = plan(runs, ledger, ids[: len(runs)])
    planned_first = plan(first, ledger, ids[len(runs) :])
    print(text(planned, ledger, planned_first, line.settings.probe, command.launch.redo))
    return 0


if __name__ == "__main__":
    entry_point(main)
