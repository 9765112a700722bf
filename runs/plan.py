"""Shows what a command would do: which runs are done, running, failed, missing or
blocked, and what the missing ones would cost. It starts no run.

vera-bench plan experiment=table2_base
    the state of each run
vera-bench plan experiment=table2_base probe=true
    also hours, from 20 steps of a run of each row on this device
vera-bench plan experiment=table2_base card=H100
    hours on a card that you do not have
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from runs.command.errors import UserError
from runs.command.parser import (
    COMPOSING_OPTIONS,
    CommonSettings,
    entry_point,
    read_command_line,
    setting,
)
from runs.config import read_command
from runs.forecast.pace import Planned, estimate
from runs.forecast.probe import probe
from runs.forecast.work import outline
from runs.machine.locks import run_lock
from runs.models import dtype_of, memory_of_weights
from runs.record.cell import shown_model
from runs.record.folder import RecordFolder
from runs.record.ledger import run_folder
from runs.record.schema import FINISHED
from runs.record.text import megabytes, plural
from runs.run.definition import Run, with_starts
from runs.run.identity import Contents, check_ids, identify, start_file
from runs.run.methods import count_weights, method_problem, skeleton_arguments
from runs.sweep.display import SHORTENED, event_words, read_progress
from runs.training.files import saved_progress
from runs.training.reach import reach_of_run

#: The states of a run, and their marks in the grid; "" for a state without one.
STATES = {
    "to repeat": "",
    "done": "",
    "diverged": "d",
    "running": "*",
    "failed": "f",
    "partial": "r",
    "missing": "",
    "blocked": "b",
    "unknown": "?",
}


def plan(
    runs: list[Run], records: RecordFolder, runs_to_repeat: Sequence[Run] = ()
) -> list[Planned]:
    """The state of each run, from its record and the files of this machine alone.
    runs_to_repeat: those that redo=true does again if they are finished."""
    contents = Contents()
    problems = dict[int, str]()
    planned = list[Planned]()
    for index, run_id in enumerate(identify(runs, problems)):
        run = runs[index]
        if index in problems:
            entry = Planned(run, "blocked", problems[index])
        else:
            entry = _planned(run, run_id, records, contents)
        if entry.state in FINISHED and run in runs_to_repeat:
            entry = Planned(run, "to repeat")
        planned.append(entry)
    return planned


def _planned(
    run: Run, run_id: str | None, records: RecordFolder, contents: Contents
) -> Planned:
    """One run's state. run_id: None where the id is not known yet. contents: the hashes
    of models and data that were read for other runs, so that each is read once."""
    record = records.get(run_id)
    reason = method_problem(run) if record is None else None
    if reason:
        return Planned(run, "blocked", reason)
    if run_id is None:
        data = f"{run.model} or {run.task}"
        reason = f"{data} has no pinned revision and is not on this machine"
        return Planned(run, "unknown", reason)
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
        log = run_folder(output, run_id) / "log.txt"
        return Planned(run, "failed", f"{record['error']} ({log})")
    if saved_progress(output, run_id):
        return Planned(run, "partial", "", progress)
    return Planned(run, "missing")


def runs_to_do(planned: list[Planned]) -> list[Planned]:
    """The runs that are left, and the blocked ones that start from one of these."""
    coming = list[Planned]()
    for entry in planned:
        if entry.state not in (*FINISHED, "blocked"):
            coming.append(entry)
    runs_to_come = [entry.run for entry in coming]
    for entry in planned:
        if entry.state == "blocked" and entry.run.start in runs_to_come:
            coming.append(entry)
    return coming


# --- in words


def plan_text(
    planned: list[Planned],
    records: RecordFolder,
    card: str | None = None,
    after_probe: bool = False,
) -> str:
    """The plan of a command: a grid of rows x tasks, totals, cost, and why runs failed
    or are blocked.

    card: a name in conf/cards.yaml, to estimate the hours on that card. after_probe:
    whether a probe has just measured what it could."""
    totals = Counter(entry.state for entry in planned)
    states = " · ".join(f"{state} {totals[state]}" for state in STATES if totals[state])
    coming = runs_to_do(planned)
    if card:
        # a run that lacks a file here may have it on the machine with that card
        for entry in planned:
            is_blocked = entry.state == "blocked" and entry not in coming
            if is_blocked and not method_problem(entry.run):
                coming.append(entry)
    if coming:
        cost = estimate(coming, records, card, after_probe)
    elif {*totals} <= {"done", "diverged"}:
        cost = "nothing is left to run"
    else:
        cost = "nothing that can be done now"
    body = [_title(planned), "", *_grid(planned), "", states, cost]
    if any(entry.run.config["train"]["max_steps"] for entry in planned):
        body.append(f"note: these runs are {SHORTENED}")
    body += [*_memory(coming), *_reaches(coming)]
    return "\n".join([*body, *_remarks(planned)])


def _title(planned: list[Planned]) -> str:
    """The preset, how many runs, and their models."""
    presets = [entry.run.experiment for entry in planned if entry.run.experiment]
    name = f"experiment={presets[0]}" if presets else "plan"
    models = ", ".join(dict.fromkeys(_model_name(entry.run) for entry in planned))
    return f"{name}: {plural(len(planned), 'run')} on {models}"


def _model_name(run: Run) -> str:
    """The name of a run's model, as tables have it."""
    return shown_model(run.model, run.config["model"])


def _grid(planned: list[Planned]) -> list[str]:
    """A line for each row: how many of its runs are finished, and marks for the others,
    by task and model."""
    names_model = len({_model_name(entry.run) for entry in planned}) > 1
    counts = defaultdict[tuple[str, str], Counter[str]](Counter)
    for entry in planned:
        column = str(entry.run.config["task"]["name"])
        if names_model:
            column += f"@{_model_name(entry.run)}"
        counts[entry.run.row, column][entry.state] += 1
    columns = list(dict.fromkeys(column for _, column in counts))
    lines = [["", *columns]]
    for row in dict.fromkeys(row for row, _ in counts):
        cells = [_counts_in_words(counts.get((row, column))) for column in columns]
        lines.append([row, *cells])
    widths = []
    for texts in zip(*lines, strict=True):
        widths.append(max(9, *(len(text) + 2 for text in texts)))
    grid = ["".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    legend = list[str]()
    for state in STATES:
        if STATES[state] and any(entry.state == state for entry in planned):
            legend.append(f"{STATES[state]}: {state}")
    return [*grid, "; ".join(legend)] if legend else grid


def _counts_in_words(count: Counter[str] | None) -> str:
    """The finished runs of a cell among all, and the marks of its runs' states: 3/5 f.
    count: of runs by state; None for a cell without runs."""
    if count is None:
        return "-"
    marks = "".join(STATES[state] for state in STATES if count[state])
    finished = sum(count[state] for state in FINISHED)
    return f"{finished}/{count.total()} {marks}".strip()


def _memory(planned: list[Planned]) -> list[str]:
    """A line for each language model, and for full fine-tuning of it: the memory that
    its weights take whatever the batch is. Without a known architecture there is no
    line."""
    lines = dict[str, None]()  # each line once, in order
    for entry in planned:
        run = entry.run
        is_language = run.config["task"]["modality"] == "text generation"
        if not is_language or skeleton_arguments(run) is None:
            continue
        weights_held, bytes_of_value = memory_of_weights(run.config)
        dtype = run.config["model"].get("quantise") or dtype_of(run.config)
        size = megabytes(count_weights(run) * bytes_of_value)
        line = f"memory of {_model_name(run)} in {dtype}: {size} for its {weights_held}"
        lines[f"{line}, and activations"] = None
    return list(lines)


def _reaches(planned: list[Planned]) -> list[str]:
    """A line for each row of a language model: how far its steps can move a trained
    number."""
    lines = dict[str, None]()  # each line once, in order
    for entry in planned:
        run = entry.run
        if run.config["task"]["modality"] != "text generation":
            continue
        steps = outline(run).steps
        if not steps:
            continue
        reach = reach_of_run(run, steps)
        line = (
            f"reach of {run.row}: its rates add up to {reach.constant:.3g}, and Adam moves "
            f"a number by {reach.adam:.3g} at most"
        )
        lines[line] = None
    return list(lines)


def _remarks(planned: list[Planned]) -> list[str]:
    """Lines on runs that are running, and on why others failed or wait."""
    runs_to_come = [entry.run for entry in runs_to_do(planned)]
    states = [*STATES]
    counts = Counter[str]()
    for entry in sorted(planned, key=lambda entry: states.index(entry.state)):
        if entry.state not in ("running", "failed", "blocked", "unknown"):
            continue
        line = f"{entry.state}: "
        if entry.state in ("running", "failed"):
            line += f"{entry.run.label}: "
        line += entry.reason or event_words(entry.progress)
        if entry.run.start in runs_to_come:
            line += ", and is done first by the same command"
        counts[line] += 1
    return [
        f"{line} ({count} runs)" if count > 1 else line
        for line, count in counts.items()
    ]


# --- the command


@dataclass(frozen=True)
class Settings(CommonSettings):
    """The settings of a plan, beside the overrides of the runs."""

    probe: bool = setting(
        False, "first do 20 steps of a run of each row: how fast this device is"
    )
    card: str | None = setting(
        None, "hours on a card of conf/cards.yaml, such as H100, wherever you are"
    )


def main(arguments: list[str]) -> int:
    line = read_command_line(
        arguments,
        Settings,
        overrides_help="the runs, as for vera-bench run",
        options=COMPOSING_OPTIONS,
    )
    command = read_command(line.overrides, line.config_dir)
    settings = line.settings
    for note in command.notes:
        print(note, file=sys.stderr)
    runs = with_starts(command.runs)
    check_ids(runs, identify(runs, {}))
    output = runs[0].config["output"]
    # Published records do not count: a run is done if its record is here
    records = RecordFolder(output)
    # Not the runs that these start from
    runs_to_repeat = command.runs if command.launch.redo else []
    if settings.probe:
        planned = plan(runs, records, runs_to_repeat)
        probe(entry.run for entry in runs_to_do(planned))
    planned = plan(runs, records, runs_to_repeat)
    print(plan_text(planned, records, settings.card, settings.probe))
    for problem in records.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    entry_point(main)
