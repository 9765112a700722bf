"""Shows what a command would do: which runs are done, running, failed, missing or
blocked, and what the missing ones would cost. It starts no run.

vera-bench plan experiment=table2_base
    the state of each run
vera-bench plan experiment=table2_base probe=true
    also hours, from 20 steps of a run of each row on this device
vera-bench plan experiment=table2_base card=H100
    hours on a card that is not here

It imports torch to count FLOPs, once, and for probe=true.
"""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass

from runs.command.errors import UserError
from runs.command.parser import COMPOSING, Common, entry_point, read, setting
from runs.config import read_command
from runs.forecast.pace import Planned, estimate, probe
from runs.forecast.work import outline
from runs.machine.locks import run_lock
from runs.models import dtype_of, memory_of_weights
from runs.record.folder import RecordFolder
from runs.record.ledger import run_folder
from runs.record.text import megabytes, plural
from runs.run.definition import Run, with_starts
from runs.run.identity import Contents, check_ids, identify, start_file
from runs.run.methods import refusal, weights, words_of
from runs.sweep.display import read_progress, words
from runs.training.files import saved
from runs.training.reach import reach_of_run

#: The states of a run, and their marks in the grid.
STATES = {
    "done": "",
    "diverged": "d",
    "running": "*",
    "failed": "f",
    "partial": "r",
    "missing": "",
}
STATES |= {"blocked": "b", "unknown": "?"}


def plan(runs: list[Run], records: RecordFolder) -> list[Planned]:
    """The state of each run, from its record and the files of this machine alone."""
    contents, problems = Contents(), dict[int, str]()
    ids = identify(runs, problems)
    return [
        Planned(run, "blocked", problems[i])
        if i in problems
        else _planned(run, ids[i], records, contents)
        for i, run in enumerate(runs)
    ]


def _planned(
    run: Run, run_id: str | None, records: RecordFolder, contents: Contents
) -> Planned:
    """One run's state."""
    record = records.get(run_id)
    if record is None and (why := refusal(run)):
        return Planned(run, "blocked", why)
    if run_id is None:
        why = f"{run.model} or {run.task} has no pinned revision and is not on this machine"
        return Planned(run, "unknown", why)
    if record and record["status"] != "failed":
        return Planned(run, record["status"])
    output = run.config["output"]
    progress = read_progress(output, run_id)
    if run_lock(output, run_id).is_held():
        return Planned(run, "running", "", progress)
    if run.config["init_from"]:
        try:
            start_file(run, contents)
        except UserError as error:
            return Planned(run, "blocked", str(error))
    if record:
        return Planned(
            run,
            "failed",
            f"{record['error']} ({run_folder(output, run_id) / 'log.txt'})",
        )
    return (
        Planned(run, "partial", "", progress)
        if saved(output, run_id)
        else Planned(run, "missing")
    )


def left(planned: list[Planned], redo: bool = False) -> list[Planned]:
    """The runs that are left, and those that wait for one of these. redo: what is done
    is left, too."""
    over = ("blocked",) if redo else ("done", "diverged", "blocked")
    coming = [p for p in planned if p.state not in over]
    return coming + [
        p
        for p in planned
        if p.state == "blocked" and p.run.start in [q.run for q in coming]
    ]


# --- in words


def text(
    planned: list[Planned],
    records: RecordFolder,
    card: str | None = None,
    redo: bool = False,
) -> str:
    """The plan of a command: a grid of rows x tasks, totals, cost, and why runs failed
    or are blocked.

    card: of conf/cards.yaml, whose hours are wanted. redo: the command repeats the
    finished runs, too."""
    name = next(
        (f"experiment={p.run.experiment}" for p in planned if p.run.experiment), "plan"
    )
    models = ", ".join(dict.fromkeys(p.run.model for p in planned))
    totals = Counter(p.state for p in planned)
    states = " · ".join(f"{state} {totals[state]}" for state in STATES if totals[state])
    runs = left(planned, redo)
    if card:  # where that card is, what is not here may be
        runs += [
            p
            for p in planned
            if p.state == "blocked" and p not in runs and not refusal(p.run)
        ]
    cost = estimate(runs, records, card) if runs else "nothing that can be done now"
    title = f"{name}: {plural(len(planned), 'run')} on {models}"
    body = [title, "", *_grid(planned), "", states, cost]
    body += [*_memory(runs), *_reaches(runs)]
    return "\n".join([*body, *_remarks(planned)])


def _grid(planned: list[Planned]) -> list[str]:
    """A line for each row: how many of its runs are finished, and marks for the others,
    by task and model."""
    several = len({p.run.model for p in planned}) > 1
    counts = defaultdict[tuple[str, str], Counter[str]](Counter)
    for p in planned:
        task = p.run.config["task"]["name"] + f"@{p.run.model}" * several
        counts[p.run.row, task][p.state] += 1
    texts = dict[tuple[str, str], str]()
    for key, of in counts.items():
        marks = "".join(STATES[state] for state in STATES if of[state])
        texts[key] = f"{of['done'] + of['diverged']}/{of.total()} {marks}".strip()
    rows, tasks = (list(dict.fromkeys(names)) for names in zip(*counts, strict=True))
    lines = [
        ["", *tasks],
        *([row, *(texts.get((row, task), "-") for task in tasks)] for row in rows),
    ]
    widths = [
        max(9, *(len(text) + 2 for text in column))
        for column in zip(*lines, strict=True)
    ]
    there = {p.state for p in planned}
    legend = "; ".join(
        f"{STATES[state]}: {state}"
        for state in STATES
        if STATES[state] and state in there
    )
    return [
        *("".join(map(str.ljust, line, widths)).rstrip() for line in lines),
        *filter(None, [legend]),
    ]


def _memory(planned: list[Planned]) -> list[str]:
    """A line for each language model, and for full fine-tuning of it: the memory that
    its weights take whatever the batch is."""
    lines = dict[str, None]()
    for entry in planned:
        run = entry.run
        is_language = run.config["task"]["modality"] == "text generation"
        if not is_language or not words_of(run):
            continue
        what, bytes_of_value = memory_of_weights(run.config)
        held = run.config["model"].get("quantise") or dtype_of(run.config)
        size = megabytes(weights(run) * bytes_of_value)
        lines[
            f"memory of {run.model} in {held}: {size} for its {what}, and activations"
        ] = None
    return list(lines)


def _reaches(planned: list[Planned]) -> list[str]:
    """A line for each row of a language model: how far its steps can move a trained
    number."""
    lines = dict[str, None]()
    for entry in planned:
        run = entry.run
        if run.config["task"]["modality"] != "text generation":
            continue
        steps = outline(run).steps
        if not steps:
            continue
        reach = reach_of_run(run, steps)
        lines[
            f"reach of {run.row}: its rates add up to {reach.constant:.3g}, and Adam moves "
            f"a number by {reach.adam:.3g} at most"
        ] = None
    return list(lines)


def _remarks(planned: list[Planned]) -> list[str]:
    """Lines on runs that are running, and on why others failed or wait."""
    coming, lines = [p.run for p in left(planned)], Counter[str]()
    for p in sorted(planned, key=lambda p: [*STATES].index(p.state)):
        soon = (
            ", and is done first by the same command" if p.run.start in coming else ""
        )
        name = f"{p.run.label}: " if p.state in ("running", "failed") else ""
        if p.state in ("running", "failed", "blocked", "unknown"):
            lines[f"{p.state}: {name}{p.why or words(p.progress)}{soon}"] += 1
    return [
        f"{line} ({count} runs)" if count > 1 else line for line, count in lines.items()
    ]


# --- the command


@dataclass(frozen=True)
class Settings(Common):
    """The settings of a plan, beside the words for runs."""

    probe: bool = setting(
        False, "first do 20 steps of a run of each row: how fast this device is"
    )
    card: str | None = setting(
        None, "hours on a card of conf/cards.yaml, such as H100, wherever you are"
    )


def main(arguments: list[str]) -> int:
    line = read(
        arguments,
        Settings,
        overrides="the runs, as for vera-bench run",
        options=COMPOSING,
    )
    command, settings = read_command(line.overrides, line.config_dir), line.settings
    for reason in command.left_out:
        print(f"left out: {reason}", file=sys.stderr)
    runs = with_starts(command.runs)
    check_ids(runs, identify(runs, {}))
    output = runs[0].config["output"]
    # a published record makes no run done here
    records = RecordFolder(output)
    if settings.probe:
        probe(p.run for p in left(plan(runs, records)))
    print(text(plan(runs, records), records, settings.card, command.launch.redo))
    for problem in records.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    entry_point(main)
