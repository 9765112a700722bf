"""The notes under a table: how its runs differ from what they are compared with, what
you should know of its numbers, and which runs are left out. What holds for every table
is in docs/tables.md."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from textwrap import shorten
from typing import Any

import pandas as pd

from analysis.frame import CELL_KEY, in_cells
from runs.record.text import plural
from runs.record.wording import in_words, is_difference

#: How many runs or rows a note names at most. Of more it says how many there are, and
#: COMMAND.
LONGEST_LIST = 5
COMMAND = "vera-bench report lists them"
#: How many studies a note names at most.
LONGEST_STUDIES = 3
#: How many characters a note has at most, and how many of them are left free for "; and
#: 12 more".
NOTE_LENGTH = 200
COUNT_LENGTH = 16
#: How many lines the notices of one kind have at most.
MAX_LINES = 2
#: What select= says of the epoch, where it is not chosen as in the paper.
SELECTED = {
    "crossfit": "Cross-fitted: one half of dev chooses the epoch and the other one is reported, both ways.",
    "half": "One half of dev chooses the epoch and the other one is reported, with one split for all seeds.",
}
#: The last sentence under every table.
HOW_TO_READ = "How to read it: docs/tables.md."
#: A row of a table, and one of its tasks.
RowOnTask = tuple[str, str]


def notes(
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    extra: Iterable[str] = (),
    description: str = "",
    reference: str = "recipe",
) -> list[str]:
    """The notes of a table whose numbers are these cells.

    runs: every run of the table's models and tasks, whether or not it is in one of its
    cells. reference: what the runs are compared with, the paper or their recipe. extra:
    further ways in which they differ from it. description: what the table's numbers
    are."""
    notices = {
        f"Differs from the {reference}": [*extra, *deviation_notes(cells)],
        "Note": [
            *cautions(cells),
            *remarks(cells),
            *mixed_source_notices(in_cells(runs, cells)),
        ],
        "Left out": left_out_notices(runs, cells),
    }
    lines = list[str]()
    for head, notices_of_kind in notices.items():
        lines += notice_lines(head, notices_of_kind)
    published = published_sentence(in_cells(runs, cells))
    return [*lines, *paragraphs([published, *sentences(description), HOW_TO_READ])]


def sentences(text: str) -> list[str]:
    """The sentences of a description, which `paragraphs` keeps whole."""
    return re.split(r"(?<=\.) (?=[A-Z])", text)


def paragraphs(parts: Iterable[str]) -> list[str]:
    """The sentences joined to lines of at most NOTE_LENGTH characters. A longer sentence
    is a line of its own; empty texts are left out."""
    lines = list[str]()
    for part in filter(None, parts):
        if lines and len(lines[-1]) + len(part) < NOTE_LENGTH:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return lines


def notice_lines(head: str, notices: list[str]) -> list[str]:
    """The notices as lines of at most NOTE_LENGTH characters. After MAX_LINES lines the
    last one says how many more notices there are. A notice that is longer than a line,
    such as one with long names, is cut. head: what each line begins with."""
    lines = list[str]()
    room = NOTE_LENGTH - COUNT_LENGTH
    for number, full_notice in enumerate(notices):
        notice = shorten(full_notice, room - len(head) - len(": ."), placeholder=" ...")
        if lines and len(lines[-1]) + len(f"; {notice}.") <= room:
            lines[-1] += f"; {notice}"
        elif len(lines) < MAX_LINES:
            lines.append(f"{head}: {notice}")
        else:
            lines[-1] += f"; and {len(notices) - number} more"
            break
    return [f"{line}." for line in lines]


def published_sentence(runs: pd.DataFrame) -> str:
    """A sentence that says which studies have published these runs; "" for none."""
    counts = runs.origin[runs.origin != "ours"].value_counts().sort_index()
    if counts.empty:
        return ""
    studies = f"{counts.sum()} runs of {len(counts)} studies"
    if len(counts) <= LONGEST_STUDIES:
        studies = ", ".join(f"{count} of {study}" for study, count in counts.items())
    return f"Published by the project in runs/records: {studies}."


def enumeration(names: list[str], plural_noun: str, separator: str = ", ") -> str:
    """The names one after the other or, of more than LONGEST_LIST, how many there are and
    the command that lists them. plural_noun: what is counted, such as "runs"."""
    if len(names) <= LONGEST_LIST:
        return separator.join(names)
    return f"{len(names)} {plural_noun} ({COMMAND})"


# --- how runs differ from their recipes


def deviation_notes(cells: pd.DataFrame) -> list[str]:
    """How the runs of these cells differ from their recipes, and on what part of the
    data they ran (task.train_rows, task.dev_rows): a note for each difference, with its
    rows and tasks. A rank that the row's name says (vera_r256) is no difference."""
    parts = [cells[["row", "task", "deviations"]], subset_deviations(cells)]
    rows_by_text = defaultdict[str, set[RowOnTask]](set)
    for row, task, deviation in _recorded_sentences(pd.concat(parts)):
        # "256" of vera_r256; for a name without a rank, a text that no sentence has
        rank = row.rpartition("_r")[2]
        text = in_words(deviation)
        if is_difference(deviation) and not text.startswith(f"rank {rank} instead of"):
            rows_by_text[text].add((row, task))
    return _with_rows(rows_by_text, cells)


def remarks(cells: pd.DataFrame) -> list[str]:
    """What the records of these cells say that is no difference from their recipes: a
    note for each sentence, with its rows and tasks."""
    rows_by_text = defaultdict[str, set[RowOnTask]](set)
    for row, task, sentence in _recorded_sentences(cells):
        if not is_difference(sentence):
            rows_by_text[in_words(sentence)].add((row, task))
    return _with_rows(rows_by_text, cells)


def _recorded_sentences(cells: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """The row, the task and the sentence of each of the cells' deviations. Records also
    keep remarks there (`is_difference`)."""
    for row, task, sentences in zip(
        cells.row, cells.task, cells.deviations, strict=True
    ):
        for sentence in sentences:
            yield row, task, sentence


def _with_rows(
    rows_by_text: Mapping[str, set[RowOnTask]], cells: pd.DataFrame
) -> list[str]:
    """The texts in alphabetical order, each with its rows and tasks in brackets
    (`which_rows`). cells: of the table."""
    every_row = {*zip(cells.row, cells.task, strict=True)}
    return [
        f"{text} ({which_rows(rows, every_row)})"
        for text, rows in sorted(rows_by_text.items())
    ]


def which_rows(rows: set[RowOnTask], every_row: set[RowOnTask]) -> str:
    """How a note names some rows of a table: "all rows", "all rows on mrpc", or "vera on
    mrpc, lora on mrpc". every_row: the table's, on each of their tasks."""
    # a row that is the only one is named
    if len(rows) == len(every_row) > 1:
        return "all rows"
    counts = Counter(task for _, task in every_row)
    rows_by_task = defaultdict[str, list[str]](list)
    for row, task in rows:
        rows_by_task[task].append(row)
    names = list[str]()
    for task, task_rows in sorted(rows_by_task.items()):
        if len(task_rows) == counts[task] > 1:
            names.append(f"all rows on {task}")
        else:
            names += [f"{row} on {task}" for row in sorted(task_rows)]
    return enumeration(names, "rows")


def subset_deviations(cells: pd.DataFrame) -> pd.DataFrame:
    """The row and task of each cell that ran on a part of the data, with a sentence on the
    part's size as its deviations. Cells whose record says so already are left out."""
    # A run that asked for more rows than there are had all of them, and one that did not
    # ask has 0 here: neither number is the one that it ran on.
    is_subset = cells.asked_train_rows == cells.train_rows
    is_subset |= cells.asked_dev_rows == cells.dev_rows
    recorded = cells.deviations.astype(str).str.contains("subset of")
    parts = cells[is_subset & ~recorded]
    # a tuple of one sentence, as in cells.deviations
    sentences_on_size = [
        (f"trained on {train_rows:,.0f} rows and evaluated on {dev_rows:,.0f}",)
        for train_rows, dev_rows in zip(parts.train_rows, parts.dev_rows, strict=True)
    ]
    return parts[["row", "task"]].assign(deviations=sentences_on_size)


# --- what you should know of the numbers


def cautions(cells: pd.DataFrame) -> list[str]:
    """Notices on seeds that diverged, that predict one class, or that finished without
    their score, and on rows whose seeds share one draw of random matrices."""
    notices = list[str]()
    if diverged := int(cells.diverged.sum()):
        notices.append(f"{plural(diverged, 'diverged run')} (1d: one seed of the cell)")
    if without_score := int((cells.runs - cells.n).sum()):
        notices.append(
            f"nan: {plural(without_score, 'run')} finished without the score"
        )
    collapsed = cells[cells.one_class.map(len) > 0]
    for (task, share), group in collapsed.groupby(["task", "class_share"]):
        rows = [
            f"{cell.row}, seed {', '.join(map(str, cell.one_class))}"
            for cell in group.itertuples()
        ]
        count = sum(map(len, group.one_class))
        verb = "predicts" if count == 1 else "predict"
        in_brackets = f" ({share})" if share else ""
        notices.append(
            f"collapsed: {plural(count, 'run')} on {task} {verb} one class"
            f"{in_brackets}: {enumeration(rows, 'rows', '; ')}"
        )
    shares_draw = cells.one_draw.astype(bool) & (cells.runs > 1)
    if rows := sorted({*cells.row[shares_draw]}):
        names = enumeration(rows, "rows")
        notices.append(
            f"{names}: all seeds share one A and B, so +- excludes their variance"
        )
    return notices


def mixed_source_notices(runs: pd.DataFrame) -> list[str]:
    """Notices on cells whose seeds ran with several versions of their method's or their
    task's file, or of what that file imports, if at least one version is in no
    commit: what changed then cannot be looked up. runs: of the cells."""
    notices = list[str]()
    for (_, row, task, _), cell in runs.groupby(CELL_KEY, sort=False):
        for part in ("method", "task"):
            if text := _version_text(cell, part):
                notices.append(f"{row} on {task}: {text}")
    return notices


def _version_text(cell: pd.DataFrame, part: str) -> str:
    """Which seeds of a cell ran with each version of a file; "" if all ran with one
    version, or all versions are committed. cell: its runs. part: whose file, the
    method's or the task's."""
    sources = {
        seed: every_source[part]
        for seed, every_source in zip(cell.seed, cell.sources, strict=True)
        if every_source.get(part)
    }
    # Older records lack the imports.
    have_imports = all("imports" in source for source in sources.values())
    seeds_by_version = defaultdict[Any, list[str]](list)
    for seed, source in sorted(sources.items()):
        imports = source["imports"] if have_imports else None
        seeds_by_version[source["sha256"], imports].append(str(seed))
    # None, for a run outside of a git checkout, counts as uncommitted
    committed = all(source["uncommitted"] is False for source in sources.values())
    count = len(seeds_by_version)
    if count < 2 or committed:
        return ""
    file = next(iter(sources.values()))["file"]
    seeds = " | ".join(", ".join(names) for names in seeds_by_version.values())
    return f"its seeds ran with {count} versions of {file} or its imports: {seeds}"


# --- what is left out


def left_out_notices(runs: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """Notices on the runs that are in none of a table's cells, with the reason. runs: of
    the table's models and tasks."""
    cells = cells.drop_duplicates(CELL_KEY)  # one line of a cell with several numbers
    notices = list[str]()
    if other_settings := int(cells.other_settings.sum()):
        notices.append(
            f"{plural(other_settings, 'run')} with settings further from the recipe"
            " (all=true shows them)"
        )
    for cell in cells[cells.older_protocols.map(len) > 0].itertuples():
        count = plural(len(cell.older_protocols), "run")
        protocols = sorted({*cell.older_protocols})
        older = ", ".join(f"{protocol:g}" for protocol in protocols)
        newest = f"not mixed with those of {cell.protocol:g}"
        notices.append(
            f"{cell.row} on {cell.task}: {count} of protocol {older}, {newest}"
        )
    if repeated := [*itertools.chain(*cells.repeated_ids)]:
        names = enumeration(repeated, "runs")
        notices.append(f"further records of the same settings and seed: {names}")
    return notices + unfinished_notices(runs)


def unfinished_notices(runs: pd.DataFrame) -> list[str]:
    """Notices on the runs that train.max_steps has stopped early, and on those that
    failed."""
    notices = list[str]()
    reasons = {"stopped": "stopped early by train.max_steps", "failed": "failed"}
    for kind, reason in reasons.items():
        of_kind = runs[runs.kind == kind]
        label_and_task = of_kind.label + " on " + of_kind.task_label
        names = [*(of_kind.id + " (" + label_and_task + ")")]
        if names:
            notices.append(f"{reason}: {enumeration(names, 'runs')}")
    return notices
