"""Prints a table from the records, beside the paper's where there is one.

    python -m analysis.tables table2 [--format md|latex|csv] [--runs] [--select paper|crossfit] [--output outputs] [--save]
    python -m analysis.tables table6     (table1 to table13, demo)

Each cell is the median over the seeds of the best epoch, +- the sample standard deviation (in tables 6 and 7 the mean). A cell
with fewer seeds than the protocol's says so and enters no average. --runs lists the run ids behind each cell. Table 1 is
computed from formulas, tables 8 to 11 are the recipes of conf/: neither needs a record.
"""

import csv
import io
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from analysis import beside
from analysis.beside import MARGIN, MARGIN_OF_10, MARGIN_OF_JUDGES, Beside, follows, mean, off_formula, same_size, status, told
from analysis.cells import Cell, Key, cells, ids, over_shared_seeds, published
from analysis.command import Parser, entry_point, open_ledger
from analysis.series import series
from runs.record import Ledger, Record, write_atomically
from runs.record.text import megabytes, one_line, plural

GLUE = {"sst2": "SST-2", "mrpc": "MRPC", "cola": "CoLA", "qnli": "QNLI", "rte": "RTE", "stsb": "STS-B"}
#: Cells of the paper that started from an adapter trained on MNLI: not like for like with a run that did not.
FROM_MNLI = {("roberta_base", "lora"): ("mrpc", "rte", "stsb")}
#: The paper's row, by its name and printed size, where this project's row has another name.
ROWS = {
    ("adapter_drop", "0.3M"): "adapter_drop_300k",
    ("adapter_drop", "0.9M"): "adapter_drop_900k",
    ("adapter_p", "3M"): "adapter_p_3m",
    ("adapter_p", "0.8M"): "adapter_p_800k",
    ("adapter_h", "6M"): "adapter_h_6m",
    ("adapter_h", "0.8M"): "adapter_h_800k",
    ("adapter_l", "0.37M"): "adapter_l_370k",
    ("adapter_l", "11.09M"): "adapter_l_11m",
    ("adapter_h", "11.09M"): "adapter_h_11m",
    ("adapter_l", "0.88M"): "adapter_l_880k",
    ("adapter_l", "23.00M"): "adapter_l_23m",
}
NAMES = {"full": "full", "bitfit": "BitFit", "lora": "LoRA", "vera": "VeRA", "head": "head", "lora_fa": "LoRA-FA"}
NAMES |= {"adapter_drop": "Adapter D", "adapter_p": "Adapter P", "adapter_h": "Adapter H", "adapter_l": "Adapter L"}
NAMES |= {"dylora": "DyLoRA", "adalora": "AdaLoRA"}


class Number(str):
    """The text of a table's number, with the ids of the records behind it."""

    ids: tuple[str, ...]

    def __new__(cls, text: str, ids: Iterable[str]) -> "Number":
        made = super().__new__(cls, text)
        made.ids = tuple(ids)
        return made


@dataclass
class Table:
    """A table as text: a title, a header, rows of equal length, and notes under it.

    For the dashboard, what it is made of: a model, tasks with their labels, and the numbers of a run that its cells show.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    model: str
    tasks: dict[str, str]
    shows: tuple[str, ...]

    @property
    def runs(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """The run ids behind each cell, by its row and column."""
        return {(i, j): cell.ids for i, row in enumerate(self.rows) for j, cell in enumerate(row) if isinstance(cell, Number)}

    def render(self, form: str, runs: bool = False) -> str:
        """As md, latex or csv. runs: with a list of the run ids of each cell under it (csv has a column of them anyway)."""
        flat = self.flat()
        text = {"md": flat._markdown, "latex": flat._latex, "csv": flat._csv}[form]()
        if not runs or form == "csv":
            return text
        mark = "% " if form == "latex" else ""
        lines = [f"{mark}{flat._of_row(i)} / {flat.header[j]}: {' '.join(found)}" for (i, j), found in flat.runs.items()]
        return "\n".join([text, *([] if form == "latex" else [""]), *lines]) if lines else text

    def flat(self) -> "Table":
        """The same without line breaks: a label or a deviation is a stranger's text, and stays in its cell or comment."""

        def cell(text: str) -> str:
            return Number(one_line(text), map(one_line, text.ids)) if isinstance(text, Number) else one_line(text)

        texts: dict[str, Any] = {"title": one_line(self.title), "notes": [one_line(note) for note in self.notes]}
        return replace(self, **texts, header=[cell(h) for h in self.header], rows=[[cell(c) for c in r] for r in self.rows])

    def _of_row(self, i: int) -> str:
        """A row's name for the list of runs: a row without one is of the row above it."""
        named = next((row[0] for row in reversed(self.rows[: i + 1]) if row[0]), "")
        return f"{named}, {self.rows[i][1]}" if len(self.rows[i]) > 1 and not self.rows[i][0] else named

    def _markdown(self) -> str:
        widths = [max(len(row[i]) for row in [self.header, *self.rows]) for i in range(len(self.header))]

        def line(row: list[str]) -> str:
            cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            return "| " + " | ".join(cells) + " |"

        rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
        return "\n".join([self.title, "", line(self.header), rule, *map(line, self.rows), "", *self.notes]).rstrip()

    def _latex(self) -> str:
        def line(row: list[str]) -> str:
            return " & ".join(_escape(cell) for cell in row) + r" \\"

        spec = "l" + "r" * (len(self.header) - 1)
        body = [line(self.header), r"\midrule", *map(line, self.rows)]
        notes = [f"% {note}" for note in self.notes]
        return "\n".join(
            [f"% {self.title}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}", *notes]
        )

    def _csv(self) -> str:
        """Numbers a spreadsheet can count with: "94.6 +-0.1 (3/5)" becomes three columns, and the title a first one."""
        wide = [any(re.search(r"\+-| \(\d+/\d+\)$", row[i]) for row in self.rows) for i in range(len(self.header))]
        header = ["table"]
        for name, splits in zip(self.header, wide, strict=True):
            header += [name, f"{name} spread", f"{name} mark"] if splits else [name]
        lines = [[*header, "runs"]]
        for row in self.rows:
            line = [self.title]
            for cell, splits in zip(row, wide, strict=True):
                number = re.fullmatch(r"([+-]?[\d.]+)(?: \+-([\d.]+))?(.*)", cell)
                parts = [part or "" for part in number.groups()] if number else ["", "", cell]
                line += [part.strip() for part in parts] if splits else [cell.replace(",", "") if cell[:1].isdigit() else cell]
            found = [(name, cell.ids) for name, cell in zip(self.header, row, strict=True) if isinstance(cell, Number)]
            lines.append([*line, "; ".join(f"{name}: {' '.join(runs)}" for name, runs in found)])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[spreadsheet(cell) for cell in line] for line in lines])
        return text.getvalue().rstrip("\n")


#: A number of a table: -0.3, +0.2 +-1.1 (3/5), -8.0e-05. None of its signs can call or name anything.
_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?%?( \+-[\d.,]+)?( \(\d+/\d+\))?\*?")


def spreadsheet(cell: str) -> str:
    """A cell of a CSV file. A text that a spreadsheet would run as a formula gets an apostrophe before it; numbers, and
    the dash that stands for none, stay."""
    runs = cell.lstrip()[:1] in ("=", "+", "-", "@") and cell != "-" and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if runs else cell


#: What LaTeX takes for its own.
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "+-": r"$\pm$"}
_LATEX |= {"<": "$<$", ">": "$>$", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def _escape(text: str) -> str:
    return re.sub(r"\+-|[\\~^<>&%$#_{}]", lambda found: _LATEX[found[0]], text)


#: What cross-fitted selection is, in a sentence.
CROSSFIT = "Cross-fitted: the epoch is chosen on one half of dev and reported on the other, both ways, weighted by rows."


@cache
def paper() -> dict[str, Any]:
    """The numbers that the paper prints."""
    found: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "paper" / "tables.yaml").read_text())
    return found


# --- table 1

#: Adapted matrices (query and key of each block) and their width.
SHAPES = {"roberta-base": (24, 768), "roberta-large": (48, 1024), "gpt-3": (192, 12288)}
MODELS = {"roberta-base": "RoBERTa-base", "roberta-large": "RoBERTa-large", "gpt-3": "GPT-3"}


def memory(model: str, rank: int) -> dict[str, int]:
    """Table 1's numbers by formula: trained parameters of LoRA (2 d r for each adapted matrix) and of VeRA (d + r), and the
    frozen elements of VeRA's shared A and B (2 d r in all), which the seed brings back. float32: 4 bytes each."""
    matrices, width = SHAPES[model]
    return {"lora": matrices * 2 * width * rank, "vera": matrices * (width + rank), "frozen": 2 * width * rank}


def table1(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Trained parameters and bytes of LoRA and VeRA on query and key, by formula, beside the printed ones. Needs no record."""
    header = ["model", "rank", "LoRA", "printed", "LoRA bytes", "printed", "VeRA", "printed", "VeRA bytes", "printed", "status"]
    rows = []
    for model, rank, *printed in paper()["table1"]["rows"]:
        exact = memory(model, rank)
        values = [exact["lora"], 4 * exact["lora"], exact["vera"], 4 * exact["vera"]]
        differing = [i for i, (text, value) in enumerate(zip(printed, values, strict=True)) if not follows(text, value)]
        whole = exact["vera"] + exact["frozen"]
        status = ", ".join(_told(printed, differing, whole)) or "as printed"
        shown_ = [f"{values[0]:,}", _binary(values[1]), f"{values[2]:,}", _binary(values[3])]
        marked = [text + ("*" if i in differing else "") for i, text in enumerate(printed)]
        pairs = [cell for pair in zip(shown_, marked, strict=True) for cell in pair]
        rows.append([MODELS[model], str(rank), *pairs, status])
    notes = [
        "By formula: LoRA 2 d r, VeRA d + r for each adapted matrix (query and key of every block), float32.",
        "KB, MB, GB: powers of 1024. *: does not follow from the formula, rounded or cut off.",
        "VeRA with A and B: the printed number counts the frozen matrices too, 2 d r elements that a seed brings back.",
        "RoBERTa-large at rank 16 has 49,920 parameters, and its printed bytes are right; GPT-3's 4608 MB are 4.5 GB.",
    ]
    return [Table("Table 1: trained parameters and their memory, by formula", header, rows, notes, "", {}, ())]


def _told(printed: list[str], differing: list[int], whole: int) -> list[str]:
    """In words, which of LoRA's and VeRA's two printed numbers do not follow. whole: VeRA's parameters with A and B."""
    told = ["LoRA differs"] if any(i < 2 for i in differing) else []
    of_vera = [i for i in differing if i > 1]
    if of_vera:
        counted = all(follows(printed[i], (whole, 4 * whole)[i - 2]) for i in of_vera)
        told.append("VeRA with A and B" if counted else "VeRA differs")
    return told


def _binary(size: float) -> str:
    """Bytes in powers of 1024."""
    unit, scale = next((u, s) for u, s in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)) if size >= s)
    return f"{size / scale:.1f} {unit}"


# --- table 2


def table2(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """GLUE: a table for each of the paper's models, and one for each other model that has records."""
    found = {key: cell for key, cell in cells(ledger, seeds or 5, select).items() if key[2] in GLUE}
    tables = []
    for name, label in (("roberta-base", "RoBERTa-base"), ("roberta-large", "RoBERTa-large")):
        model = name.replace("-", "_")
        rows: list[list[str]] = []
        used = set()
        for method, size, *values in paper()["table2"][name]:
            row = ROWS.get((method, size), method)
            used.add(row)
            printed = dict(zip((*GLUE, "avg"), values, strict=True))
            rows += _paper_rows(model, row, f"{NAMES[method]}", size, printed, found)
            if (model, row) in FROM_MNLI:
                used.add(f"{row}_mnli")
        for row in sorted({key[1] for key in found if key[0] == model} - used):
            rows.append(_our_row({t: found[model, row, t] for t in GLUE if (model, row, t) in found}))
        tables.append(_glue_table(f"Table 2, {label}: GLUE dev sets", rows, found, model, select))
    for model in sorted({key[0] for key in found} - {"roberta_base", "roberta_large"}):
        rows = []
        tasks = tuple(task for task in GLUE if any(key[0] == model and key[2] == task for key in found))
        for row in dict.fromkeys([*("full", "head", "bitfit", "lora", "vera"), *sorted(key[1] for key in found)]):
            ours = {task: found[model, row, task] for task in tasks if (model, row, task) in found}
            if ours:
                rows.append(_our_row(ours, "other model", tasks, columns=tasks))
        title = f"Table 2's protocol on {model}, a model that the paper does not use"
        tables.append(_glue_table(title, rows, found, model, select, tasks))
    return tables


def _glue_table(
    title: str, rows: list[list[str]], found: dict[Key, Cell], model: str, select: str, tasks: tuple[str, ...] = tuple(GLUE)
) -> Table:
    notes = [
        "Medians over seeds of the best epoch on dev, +- sample standard deviation. CoLA Matthews, STS-B Pearson, else accuracy"
    ]
    heads = sorted({r["parameters"]["head"] for key, cell in found.items() if key[0] == model for r in cell.records})
    if heads:
        notes.append(
            f"params: without the classification head, which every method trains ({' or '.join(map('{:,}'.format, heads))})."
        )
    if select == "crossfit":
        notes[0] = f"Medians over seeds. {CROSSFIT} The paper's numbers are not."
    notes += beside.notes(rows)
    if any((model, row) in FROM_MNLI and (model, f"{row}_mnli", task) in found for _, row, task in found):
        notes.append("The average of a row from MNLI takes the other tasks from the same method without that start.")
    if any("quoted" in row[-1] for row in rows):
        notes.append("quoted: the paper's number, not run here. (n/m): n of m seeds, which enters no average.")
        notes += off_formula(model)
    notes += _about({key: cell for key, cell in found.items() if key[0] == model})
    labels = {task: GLUE[task] for task in tasks}
    average = ["Avg"] if len(tasks) == len(GLUE) else []
    header = ["method", "source", "params", *labels.values(), *average, "status"]
    return Table(title, header, rows, notes, model, labels, ("best",))


def _about(found: dict[Key, Cell]) -> list[str]:
    """What is not in a table's cells, and what deviates in those that are."""
    notes = []
    left_out = sum(cell.left_out for cell in found.values())
    if left_out:
        one = "1 record with other settings is" if left_out == 1 else f"{left_out} records with other settings are"
        notes.append(f"{one} left out: a row shows the settings that deviate least from its recipe.")
    notes += [problem for cell in found.values() for problem in cell.problems]
    again = [name for cell in found.values() for name in cell.again]
    if again:
        notes.append(f"more than one record of the same settings and seed; not counted twice, left out: {', '.join(again)}.")
    unknown = sum(cell.unknown for cell in found.values())
    if unknown:
        notes.append(f"nan: {unknown} of the runs finished without that number.")
    for (_, row, task), cell in found.items():
        if cell.collapsed:
            which = f"seed{'s' * (len(cell.collapsed) > 1)} {', '.join(map(str, cell.collapsed))}"
            notes.append(
                f"collapsed (the same {_metric(cell)} at every epoch), and counted like any other: {row} on {task}, {which}."
            )
    if any(_keeps_one_pair(cell) for cell in found.values()):
        notes.append(
            "VeRA keeps one pair A, B for all seeds: its spread leaves out what another pair would change (see vera_redrawn)."
        )
    words: dict[str, set[str]] = defaultdict(set)  # a deviation, and the cells it belongs to
    for (_, row, task), cell in found.items():
        rank = f"rank {row.rpartition('_r')[2]} instead of"  # which the row's name says: lora_r64
        for word in (word for record in cell.records for word in record["deviations"] if not word.startswith(rank)):
            words[word].add(f"{row} on {task}")
    return [*notes, *(f"deviation: {word} ({', '.join(sorted(where))})" for word, where in sorted(words.items()))]


def _keeps_one_pair(cell: Cell) -> bool:
    """Whether the seeds of a cell share VeRA's random matrices."""
    method = cell.records[0]["config"]["method"]
    return cell.seeds > 1 and method["kind"] == "vera" and not method.get("redrawn")


def _metric(cell: Cell) -> str:
    return str(cell.records[0]["result"]["metric"])


def _paper_rows(model: str, row: str, name: str, size: str, printed: dict[str, Any], found: dict[Key, Cell]) -> list[list[str]]:
    """The paper's row, ours under it, and the difference; where the paper's started from MNLI, our row that did so too."""
    started = FROM_MNLI.get((model, row), ())
    quoted = [_printed(printed[task]) + ("*" if task in started else "") for task in GLUE]
    source = "paper, * from MNLI" if started else "paper"
    rows = [[name, source, size, *quoted, f"{printed['avg']:.1f}", "quoted"]]

    def like_for_like(ours: dict[str, Cell], tasks: Iterable[str]) -> dict[str, Beside]:
        return {
            task: Beside(cell, *split(printed[task]), same_size=same_size(cell, model, row, size))
            for task, cell in ours.items()
            if task in tasks
        }

    plain = {task: found[model, row, task] for task in GLUE if (model, row, task) in found}
    from_mnli = {task: found[model, f"{row}_mnli", task] for task in started if (model, f"{row}_mnli", task) in found}
    if plain:
        compared = like_for_like(plain, [task for task in GLUE if task not in started])  # only what is like for like
        rows.append(_our_row(plain, status(list(compared.values()))))
        rows += _difference(compared, compared if not started else {}, printed["avg"])
    if from_mnli:
        compared = like_for_like(from_mnli, started)
        # The paper's average is over both kinds of cells, and so is this one.
        both = {**like_for_like(plain, [task for task in GLUE if task not in started]), **compared}
        averaged = {task: one.cell for task, one in both.items()}
        rows.append(_our_row(from_mnli, status(list(compared.values())), started, averaged))
        rows += _difference(compared, both, printed["avg"])
    return rows


def _difference(compared: dict[str, Beside], averaged: dict[str, Beside], printed: float) -> list[list[str]]:
    """The line under our row; none where it is of another size. averaged: what the average is over. printed: the paper's."""
    if not all(one.same_size for one in compared.values()):
        return []
    gaps = [_gap(compared.get(task)) for task in GLUE]
    cells_ = {task: one.cell for task, one in averaged.items()}
    average, whole = _average(cells_), mean(list(averaged.values()))
    text = told(whole) if whole else f"{average - printed:+.1f}" if average is not None else "-"
    return [["", "difference", "", *gaps, _of_cells(text, *cells_.values()) if average is not None else "-", ""]]


def _our_row(
    ours: dict[str, Cell],
    word: str = "ours",
    tasks: tuple[str, ...] = tuple(GLUE),
    averaged: dict[str, Cell] | None = None,
    columns: tuple[str, ...] = tuple(GLUE),
) -> list[str]:
    """A row of ours. word: its status where it is complete. tasks: those that it should have; columns: those that the table
    shows, with an average if they are all."""
    first = next(iter(ours.values()))
    averaged = ours if averaged is None else averaged
    average = _average(averaged)
    missing = [task for task in tasks if task not in ours]
    incomplete = [task for task, cell in ours.items() if not cell.complete]
    if (missing or incomplete) and "another size" not in word:
        word = "ours, incomplete"
    diverged = sum(cell.diverged for cell in ours.values())
    word += f", {diverged} diverged" if diverged else ""
    cells_ = [shown(ours[task]) if task in ours else "missing" if task in tasks else "-" for task in columns]
    whole = (
        [_of_cells(f"{average:.1f}", *averaged.values()) if average is not None else "-"] if len(columns) == len(GLUE) else []
    )
    return [first.label, "ours", _size(first), *cells_, *whole, word]


def _size(cell: Cell) -> Number:
    """Its trained parameters."""
    return _of_cells(f"{cell.parameters:,}", cell)


def _average(ours: dict[str, Cell]) -> float | None:
    """The mean over tasks of the medians over seeds; None unless every task is there with all its seeds."""
    if set(ours) != set(GLUE) or not all(cell.complete for cell in ours.values()):
        return None
    return sum(cell.median() for cell in ours.values()) / len(GLUE)


def shown(cell: Cell, which: str = "best", middle: str = "median") -> Number:
    """A cell's median (or mean) and spread, with the number of seeds where it is not complete and of those that diverged."""
    spread = cell.spread(which)
    value = cell.mean(which) if middle == "mean" else cell.median(which)
    text = f"{value:.1f}" + (f" +-{spread:.1f}" if spread is not None else "")
    text += f" ({cell.seeds - cell.unknown}/{cell.wanted})" if not cell.complete else ""
    return _of_cells(text + (f" {cell.diverged}d" if cell.diverged else ""), cell)


def over_seeds(cell: Cell, values: Sequence[float], decimals: int) -> str:
    """The median and spread of a number that a cell's seeds have, and how many where some lack it; "-" where all do."""
    if not values:
        return "-"
    spread = f" +-{statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    part = f" ({len(values)}/{cell.wanted})" if len(values) < cell.wanted else ""
    return _of_cells(f"{statistics.median(values):.{decimals}f}{spread}{part}", cell)


def _of_cells(text: str, *found: Cell) -> Number:
    """A number that is made of these cells."""
    return Number(text, (name for cell in found for name in ids(cell.records)))


def _gap(one: Beside | None) -> str:
    """The difference to the paper's number, with its runs; "-" where there is none."""
    text = one.gap() if one else "-"
    return _of_cells(text, one.cell) if one and text != "-" else text


def split(printed: Any) -> tuple[float, float | None]:
    """A printed number, [x, s] or x, and its spread."""
    return (float(printed[0]), float(printed[1])) if isinstance(printed, list) else (float(printed), None)


def _printed(printed: Any) -> str:
    return f"{printed[0]:.1f} +-{printed[1]:.1f}" if isinstance(printed, list) else f"{printed:.1f}"


# --- table 3

#: The scores of texts, and their decimals as the paper prints them.
SCORES = {"bleu": ("BLEU", 1), "nist": ("NIST", 2), "meteor": ("METEOR", 1), "rouge_l": ("ROUGE-L", 1), "cider": ("CIDEr", 2)}


def table3(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """E2E NLG: a table for each of the paper's models, and one for each other model that has records."""
    decoded = [r for r in ledger if r["cell"]["task"] == "e2e" and (r.get("texts") or r["status"] == "diverged")]
    found = cells(decoded, seeds or 3, select)
    tables = []
    for name, label in (("gpt2-medium", "GPT-2 medium"), ("gpt2-large", "GPT-2 large")):
        model, rows, used = name.replace("-", "_"), [], set()
        for method, size, *values in paper()["table3"][name]:
            row = ROWS.get((method, size), method)
            used.add(row)
            printed = dict(zip(SCORES, values, strict=True))
            shown_ = [f"{printed[key]:.{decimals}f}" for key, (_, decimals) in SCORES.items()]
            rows.append([NAMES[method], "paper", size, *shown_, "quoted"])
            if (model, row, "e2e") in found:
                cell = found[model, row, "e2e"]
                rows += _score_rows(cell, printed, same_size(cell, model, row, size))
        for row in sorted({key[1] for key in found if key[0] == model} - used):
            rows += _score_rows(found[model, row, "e2e"], None)
        tables.append(_score_table(f"Table 3, {label}: E2E NLG", rows, found, model, select))
    for model in sorted({key[0] for key in found} - {"gpt2_medium", "gpt2_large"}):
        order = [*("full", "lora", "vera"), *sorted(key[1] for key in found)]
        ours = [found[model, row, "e2e"] for row in dict.fromkeys(order) if (model, row, "e2e") in found]
        rows = [line for cell in ours for line in _score_rows(cell, None)]
        tables.append(
            _score_table(f"Table 3's protocol on {model}, a model that the paper does not use", rows, found, model, select)
        )
    return tables


def _score_rows(cell: Cell, printed: dict[str, float] | None, same_size: bool = True) -> list[list[str]]:
    """Our row, the difference to the paper's, and the other ways of counting: another length penalty, the best epoch."""
    variants = next(
        (list(dict.fromkeys(e["variant"] for e in r["texts"]["scores"])) for r in cell.records if r.get("texts")), [""]
    )
    lines = [_score_row(cell, "ours", "last", variants[0])]
    if printed and cell.complete:
        compared = [score_beside(cell, key, value, same_size) for key, value in printed.items()]
        words = status(compared).partition(";")[0]  # five scores of one set of texts have no mean
        lines[0][-1] = lines[0][-1].replace("ours", words, 1)
        if same_size:
            gaps = [_gap(one if len(one.seeds) >= cell.wanted else None) for one in compared]
            lines.append(["", "difference", "", *gaps, ""])
    lines += [_score_row(cell, f"ours, length penalty {v}", "last", v, again=True) for v in variants[1:]]
    if any(e["which"] == "best" and e["epoch"] != r["curve"]["epoch"][-1] for r in cell.records for e in _entries(r)):
        lines.append(_score_row(cell, "ours, best epoch", "best", variants[0], again=True))
    return lines


def score_beside(cell: Cell, key: str, printed: float, same_size: bool) -> Beside:
    """A score of a cell's texts beside the paper's."""
    decimals = SCORES[key][1]
    margin = MARGIN if decimals == 1 else MARGIN_OF_10
    return Beside(cell, printed, None, cell.scores(key), margin, decimals=decimals, same_size=same_size)


def _entries(record: dict[str, Any]) -> list[dict[str, Any]]:
    return (record.get("texts") or {}).get("scores", [])


def _score_row(cell: Cell, source: str, which: str, variant: str, again: bool = False) -> list[str]:
    shown_: list[str] = []
    for key, (_, decimals) in SCORES.items():
        shown_.append(over_seeds(cell, cell.scores(key, which, variant or None), decimals))
    status = "ours" if cell.complete else f"ours, {cell.seeds - cell.unknown} of {cell.wanted} seeds"
    status += f", {cell.diverged} diverged" if cell.diverged else ""
    status = "" if again else status
    name, size = ("", "") if again else (cell.label, _size(cell))
    return [name, source, size, *shown_, status]


def _score_table(title: str, rows: list[list[str]], found: dict[Key, Cell], model: str, select: str) -> Table:
    mine = {key: cell for key, cell in found.items() if key[0] == model}
    notes = ["Medians over seeds of the last epoch, +- sample standard deviation. BLEU, METEOR and ROUGE-L times 100."]
    if any("/" in cell for row in rows for cell in row[3:-1]):
        notes.append("(n/m): n of m seeds.")
    notes += beside.notes(rows)
    if select == "crossfit":
        notes.append("--select changes nothing here: the last epoch is reported.")
    if any("quoted" in row[-1] for row in rows):
        notes.append("quoted: the paper's number, not run here.")
    notes += off_formula(model)
    empty = [cell.label for cell in mine.values() if not cell.parameters and max(cell.scores("bleu"), default=1.0) < 0.05]
    if empty:
        notes.append(
            f"{', '.join(empty)}: BLEU 0.0 of an untrained model: its texts end at once, or share no 4 tokens in a row with a"
            " reference."
        )
    for cell in mine.values():
        reasons = {why for r in cell.records for e in _entries(r) for why in (e.get("unavailable") or {}).values()}
        notes += [f"- for {cell.label}: {why}" for why in sorted(reasons)]
    header = ["method", "source", "params", *(name for name, _ in SCORES.values()), "status"]
    return Table(title, header, rows, [*notes, *_about(mine)], model, {"e2e": "E2E"}, tuple(SCORES))


# --- table 5

IMAGES = {"cifar100": "CIFAR-100", "food101": "Food-101", "flowers102": "Flowers-102", "resisc45": "RESISC45"}


def table5(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Few-shot images: a table for each of the paper's models, and one for each other model that has records."""
    records = [r for r in ledger if r["config"]["task"].get("family") == "images"]
    found = cells(records, seeds or 5, select)
    tables = []
    for name, label in (("vit-base", "ViT-B/16"), ("vit-large", "ViT-L/16")):
        model, rows, used = name.replace("-", "_"), [], set()
        more = _tasks(found, model, tuple(IMAGES))
        for row, size, *values in paper()["table5"][name]:
            used.add(row)
            printed = [f"{value:.1f}" for value in values] + ["-"] * (len(more) - len(values))
            rows.append([NAMES[row], "paper", str(size), *printed, "quoted"])
            ours = {task: found[model, row, task] for task in more if (model, row, task) in found}
            if ours:
                compared = {
                    task: image_beside(ours[task], value, same_size(ours[task], model, row, size))
                    for task, value in zip(IMAGES, values, strict=True)
                    if task in ours
                }
                rows.append(_image_row(ours, more, tuple(IMAGES), status(list(compared.values()))))
                if all(one.same_size for one in compared.values()):
                    gaps = [_gap(compared.get(task)) for task in IMAGES]
                    rows.append(["", "difference", "", *gaps, *["-"] * (len(more) - len(gaps)), ""])
        for row in sorted({key[1] for key in found if key[0] == model} - used):
            rows.append(_image_row({t: found[model, row, t] for t in more if (model, row, t) in found}, more, tuple(IMAGES)))
        tables.append(_image_table(f"Table 5, {label}: 10 training images a class", rows, found, model, more, select))
    for model in sorted({key[0] for key in found} - {"vit_base", "vit_large"}):
        more = _tasks(found, model, ())
        order = [*("head", "full", "lora", "vera"), *sorted(key[1] for key in found)]
        mine = [{t: found[model, row, t] for t in more if (model, row, t) in found} for row in dict.fromkeys(order)]
        rows = [_image_row(ours, more, more, "other model") for ours in mine if ours]
        title = f"Table 5's protocol on {model}, a model that the paper does not use"
        tables.append(_image_table(title, rows, found, model, more, select))
    return tables


def _tasks(found: dict[Key, Cell], model: str, first: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a model's table: the paper's, and whatever else has records."""
    return tuple(dict.fromkeys([*first, *sorted((key[2] for key in found if key[0] == model), key=_place)]))


def _place(task: str) -> tuple[int, str]:
    return (list(IMAGES).index(task) if task in IMAGES else len(IMAGES), task)


def image_beside(cell: Cell, printed: float, same_size: bool) -> Beside:
    """A cell's accuracy at the last epoch beside the paper's."""
    return Beside(cell, printed, None, list(series(cell, "last").values.values()), same_size=same_size)


def _image_row(ours: dict[str, Cell], tasks: tuple[str, ...], wanted: tuple[str, ...], word: str = "ours") -> list[str]:
    first = next(iter(ours.values()))
    shown_ = [shown(ours[task], "last") if task in ours else "missing" if task in wanted else "-" for task in tasks]
    whole = all(task in ours and ours[task].complete for task in wanted)
    diverged = sum(cell.diverged for cell in ours.values())
    word = (word if whole or "another size" in word else "ours, incomplete") + (f", {diverged} diverged" if diverged else "")
    return [first.label, "ours", _size(first), *shown_, word]


def _image_table(
    title: str, rows: list[list[str]], found: dict[Key, Cell], model: str, tasks: tuple[str, ...], select: str
) -> Table:
    mine = {key: cell for key, cell in found.items() if key[0] == model}
    notes = [
        "Accuracy. Medians over seeds of the last epoch, +- sample standard deviation. Each seed draws its own training images."
    ]
    notes.append("params: without the classification head, which every method trains.")
    if select == "crossfit":
        notes.append("--select changes nothing here: the last epoch is reported.")
    notes += beside.notes(rows)
    if any("quoted" in row[-1] for row in rows):
        notes.append("quoted: the paper's number, not run here. (n/m): n of m seeds.")
    names = {r["cell"]["task"]: r["label"]["task"] for cell in mine.values() for r in cell.records}
    for task in tasks:
        shots = {r["config"]["task"].get("shots") for key, cell in mine.items() if key[2] == task for r in cell.records}
        if shots and shots != {10}:
            notes.append(
                f"{task}: {' or '.join('all' if n is None else str(n) for n in sorted(shots, key=str))} images a class"
            )
    labels = {task: IMAGES.get(task) or names.get(task, task) for task in tasks}
    header = ["method", "source", "params", *labels.values(), "status"]
    return Table(title, header, rows, [*notes, *_about(mine)], model, labels, ("last",))


# --- tables 4, 12 and 13

#: Rows that the paper itself took from earlier work and prints no hyperparameters for.
QUOTED = {
    "table2": {"full", "bitfit", "adapter_drop_300k", "adapter_drop_900k", "lora_fa"},
    "table3": {"full", "adapter_l_370k", "adapter_l_880k", "adapter_l_11m", "adapter_l_23m", "adapter_h_11m"},
    "table4": {"none"},
}
QUOTED["table3"] |= {"dylora", "adalora"}
LLAMAS = {"llama_7b": "Llama 7B", "llama_13b": "Llama 13B", "llama2_7b": "Llama 2 7B", "llama2_13b": "Llama 2 13B"}
BENCHES = {"mt_bench": "MT-Bench", "vicuna_bench": "Vicuna-bench"}
#: Rows of Alpaca-cleaned that table 13 trains on; table 4 takes all.
TABLE_13_ROWS = 10000


def table4(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """MT-Bench: a table for each of the paper's models, and one for each other model that has records."""
    printed: dict[str, list[list[Any]]] = defaultdict(list)
    for name, *row in paper()["table4"]["rows"]:
        printed[name.replace("-", "_")].append(row)
    found = cells([r for r in _instructed(ledger) if not _part(r)], seeds or 1, select)
    return _judged_tables("Table 4", "mt_bench", found, {model: printed[model] for model in LLAMAS})


def table13(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Vicuna-bench after 10,000 rows of Alpaca-cleaned; other models with their own rows, once a run is judged."""
    rows = [["lora", *paper()["table13"]["rows"][0][1:]], ["vera_r256", *paper()["table13"]["rows"][1][1:]]]
    judged = [r for r in _instructed(ledger) if any(j["bench"] == "vicuna_bench" for j in r.get("judged", []))]
    others = {r["cell"]["model"] for r in judged} - set(LLAMAS)
    records = [r for r in _instructed(ledger) if _part(r) or r in judged or r["cell"]["model"] in others]
    sized = [[row, f"{params} ({size})", score] for row, params, size, score in rows]
    return _judged_tables("Table 13", "vicuna_bench", cells(records, seeds or 1, select), {"llama_7b": sized})


def _instructed(ledger: Ledger) -> list[Record]:
    return [r for r in ledger if r["config"]["task"].get("family") == "instruct"]


def _part(record: Record) -> bool:
    """Whether it was trained on table 13's part of the rows."""
    return record["cell"]["model"] in LLAMAS and record["config"]["task"].get("train_rows") == TABLE_13_ROWS


def _judged_tables(name: str, bench: str, found: dict[Key, Cell], printed: dict[str, list[list[Any]]]) -> list[Table]:
    order = [*("none", "lora", "vera", "vera_r256"), *sorted(key[1] for key in found)]
    tables = []
    for model in dict.fromkeys([*printed, *sorted(key[0] for key in found)]):
        rows: list[list[str]] = []
        for row, size, score in printed.get(model, []):
            method = "none" if row == "none" else NAMES[row.partition("_")[0]]
            rows.append([method, "paper", str(size), f"{score:.2f}", "", "", "", "GPT-4", "quoted"])
            for cell in _of(found, model, row):
                theirs = None if row in QUOTED["table4"] else score
                rows += _judged_rows(cell, bench, theirs, same_size(cell, model, row, size))
        told = {row for row, *_ in printed.get(model, [])}
        others = [cell for row in dict.fromkeys(order) if row not in told for cell in _of(found, model, row)]
        rows += [line for cell in others for line in _judged_rows(cell, bench, None)]
        label = LLAMAS.get(model)
        title = f"{name}, {label}" if label else f"{name}'s protocol on {model}, a model that the paper does not use"
        mine = {key: cell for key, cell in found.items() if key[0] == model}
        tables.append(_judged_table(f"{title}: {BENCHES[bench]}", rows, model, mine, bench))
    return tables


def _of(found: dict[Key, Cell], model: str, row: str) -> list[Cell]:
    """A row's cells, of each task (a user's own instructions are another)."""
    return [cell for key, cell in sorted(found.items()) if key[:2] == (model, row)]


def _judged_rows(cell: Cell, bench: str, printed: float | None, same_size: bool = True) -> list[list[str]]:
    """A line for each judge, with the difference to the paper's score where that judge is a GPT-4 too."""
    task = cell.records[0]["cell"]["task"]
    head = [cell.label if task == "alpaca" else f"{cell.label} on {task}", "ours", _size(cell)]
    judges = dict.fromkeys(j["judge"] for r in cell.records for j in r.get("judged", []) if j["bench"] == bench)
    if not judges:
        state = "diverged" if cell.diverged else f"ours, not judged by {BENCHES[bench]}"
        return [[*head, *["-"] * 4, "", state]]
    lines = []
    for judge in judges:
        found = [j for r in cell.records for j in r.get("judged", []) if (j["bench"], j["judge"]) == (bench, judge)]
        scores = [j["mean"] for j in found if j["mean"] is not None]
        wanted = max(cell.wanted, cell.seeds)
        share = f" ({len(found)}/{wanted})" if len(found) < wanted else ""
        if len(scores) > 1:
            share = f" +-{statistics.stdev(scores):.2f}{share}"
        single = found[0] if len(found) == 1 else None
        interval = f"{single['low']:.2f} to {single['high']:.2f}" if single and single["low"] is not None else "-"
        turns = [[j["turns"][t] for j in found if j["turns"][t] is not None] for t in found[0]["turns"]]
        valid = f"{sum(j['n_valid'] for j in found)} of {sum(j['n'] for j in found)}"
        judged = [r for r in cell.records if any((j["bench"], j["judge"]) == (bench, judge) for j in r.get("judged", []))]
        score = f"{statistics.median(scores):.2f}{share}" if scores else "-"
        by_turn = " / ".join(f"{statistics.median(turn):.2f}" if turn else "-" for turn in turns)
        word = "ours" if not share.endswith(")") else "ours, incomplete"
        numbers = [Number(text, ids(judged)) if text != "-" else text for text in (score, interval, by_turn, valid)]
        lines.append([*head, *numbers, judge, word])
        if printed is not None and scores and _is_gpt_4(judge) and word == "ours":
            one = judged_beside(cell, printed, scores, same_size)
            lines[-1][-1] = status([one])
            if same_size:
                lines.append(["", "difference", "", Number(one.gap(), ids(judged)), "", "", "", "", ""])
        head = ["", "ours", ""]
    return lines


def judged_beside(cell: Cell, printed: float, scores: Sequence[float], same_size: bool) -> Beside:
    """A judge's means of a cell's seeds beside the paper's score."""
    return Beside(cell, printed, None, scores, MARGIN_OF_JUDGES, decimals=2, same_size=same_size)


def _is_gpt_4(judge: str) -> bool:
    """The paper's judge, or a snapshot of it; gpt-4o and its like are other models."""
    return bool(re.fullmatch(r"gpt-4(-32k)?(-\d{4})?", judge))


def _ways(mine: dict[Key, Cell], bench: str) -> list[str]:
    """How answers were made, where that is not FastChat's way, and prompts in other words than Alpaca's."""
    words: dict[str, list[str]] = defaultdict(list)
    for cell in mine.values():
        own = [r for r in cell.records if not r["config"]["task"].get("template")]
        if any(not any(word.startswith("prompts ") for word in r["deviations"]) for r in own):  # from before it was noted
            words["prompts in this project's own words, not Alpaca's"].append(cell.label)
        for j in (j for r in cell.records for j in r.get("judged", []) if j["bench"] == bench):
            how = j["answering"]
            said = {
                f"answers of at most {how['answer_tokens']} tokens, not 1024": how["answer_tokens"] != 1024,
                f"sampled from {_sampled(how)}; FastChat's are drawn from the 50 likeliest, transformers' default": (
                    (how["top_p"], how["top_k"]) != (1, 50)
                ),
                f"{how['without_room']} answers cut short or empty for want of positions": how["without_room"] > 0,
            }
            for word in (word for word, holds in said.items() if holds):
                words[word] += [cell.label] if cell.label not in words[word] else []
    return [f"deviation: {word} ({', '.join(labels)})" for word, labels in words.items()]


def _sampled(how: dict[str, Any]) -> str:
    """What tokens were drawn from, in words: the likeliest so many, and of these the share."""
    likeliest = "all tokens" if how["top_k"] is None else f"the {how['top_k']} likeliest tokens"
    return likeliest + (f" (top_p {how['top_p']:g})" if how["top_p"] != 1 else "")


def _judged_table(title: str, rows: list[list[str]], model: str, mine: dict[Key, Cell], bench: str) -> Table:
    notes = ["The judge's scores from 1 to 10, pooled over questions, turns and passes; 95% by resampling questions."]
    if any(row[1] == "ours" and row[7] for row in rows):
        notes.append("valid: replies of the judge that hold a score. Others are counted here and enter no mean.")
    if any(row[1] == "ours" and row[7] and not _is_gpt_4(row[7]) for row in rows):
        notes.append("A judge that is no GPT-4 has a scale of its own: no difference to the paper's is shown.")
    if any("not judged" in row[-1] for row in rows):
        notes.append("not judged: python -m runs.answer ID, then python -m runs.judge ID.")
    if any("quoted" in row[-1] for row in rows):
        notes.append("quoted: the paper's number, not run here.")
    if any(row[0] == "none" and row[1] == "paper" for row in rows):
        notes.append(
            "none: the paper's 2.61 is that of Zheng et al. 2023 (arXiv 2306.05685), who asked with another prompt and not in"
            " 4 bit: no difference is shown."
        )
    notes += beside.notes(rows)
    header = ["method", "source", "params", "score", "95%", "by turn", "valid", "judge", "status"]
    return Table(title, header, rows, [*notes, *_about(mine), *_ways(mine, bench)], model, _instructions(mine), ())


def _instructions(mine: dict[Key, Cell]) -> dict[str, str]:
    """The tasks of a table of instruction tuning: Alpaca, and a user's own."""
    return {"alpaca": "Alpaca"} | {r["cell"]["task"]: r["label"]["task"] for cell in mine.values() for r in cell.records}


def table12(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Time and memory of instruction tuning, LoRA and VeRA of rank 64."""
    ranked = [r for r in _instructed(ledger) if r["config"]["method"].get("rank") == 64]
    found = cells(ranked, seeds or 1, select)
    tables = []
    for model in dict.fromkeys(["llama_7b", *sorted(key[0] for key in found)]):
        rows: list[list[str]] = []
        for row, minutes, memory in paper()["table12"]["rows"]:
            if model == "llama_7b":
                rows.append([f"{NAMES[row]} r=64", "paper", "", f"{minutes:.1f}", "", "", f"{memory:.2f}", "", "quoted"])
            for cell in _of(found, model, {"vera": "vera_r64"}.get(row, row)):
                first, pace = cell.records[0], f"{cell.cost('tokens_per_second'):,.0f}"
                seconds, steps = cell.cost("train_seconds"), first["steps"]
                memory = f"{cell.cost('peak_memory_bytes') / 1e9:.2f}"
                times = [f"{seconds / 60:.1f}", f"{seconds / max(steps, 1):.2f}", pace]
                numbers = [_of_cells(text, cell) for text in (*times, memory)]
                rows.append([cell.label, "ours", _size(cell), *numbers, first["device"]["name"], "ours"])
        if not rows:
            continue
        mine = {k: c for k, c in found.items() if k[0] == model and k[1] in ("lora", "vera_r64")}
        notes = ["minutes: of training alone, the median over seeds. GB: the device's largest memory, on a CPU the process's."]
        title = f"Table 12, {LLAMAS['llama_7b']}" if model == "llama_7b" else f"Table 12's protocol on {model}"
        header = ["method", "source", "params", "minutes", "s/step", "tok/s", "GB", "device", "status"]
        shows = ("train_seconds", "peak_memory_bytes")
        title = f"{title}: time and memory, rank 64"
        tables.append(Table(title, header, rows, [*notes, *_about(mine)], model, _instructions(mine), shows))
    return tables


# --- tables 6 and 7

#: The rows of conf/method, in the order of the paper's.
ABLATIONS: dict[str, tuple[str, dict[Any, str]]] = {
    "scaling_vectors": ("scaling vectors", {"vera": "d and b", "only_d": "only d", "only_b": "only b"}),
    "matrix_init": ("matrix initialisation", {"kaiming_uniform": "Kaiming uniform", "kaiming_normal": "Kaiming normal"}),
    "d_init": ("initial d", {0.1: "0.1", 1e-7: "1e-7", 1.0: "1.0"}),
}
ABLATIONS["matrix_init"][1]["uniform_0_0.1"] = "uniform [0, 0.1]"
SETTINGS: dict[Any, str] = {"vera": "vera", "only_d": "vera_only_d", "only_b": "vera_only_b", "kaiming_uniform": "vera"}
SETTINGS |= {"kaiming_normal": "vera_kaiming_normal", "uniform_0_0.1": "vera_uniform"}
SETTINGS |= {0.1: "vera", 1e-7: "vera_d_init_1e-7", 1.0: "vera_d_init_1", "shared": "vera", "unique": "vera_unique"}


def table6(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Ablations: a table for each of the paper's three on RoBERTa-large, and for each other model that has such runs."""
    tables = []
    for key, (title, names) in ABLATIONS.items():
        tables += _ablation(f"Table 6, {title}", paper()["table6"][key], names, ("mrpc", "rte"), ledger, select, seeds)
    return tables


def table7(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Shared or unique random matrices, on RoBERTa-large, and on each other model that has such runs."""
    names = {"shared": "shared A, B", "unique": "unique A, B"}
    rows = paper()["table7"]["rows"]
    return _ablation("Table 7, random matrices", rows, names, ("mrpc", "rte", "cola", "stsb"), ledger, select, seeds)


def _ablation(
    title: str,
    printed: list[list[Any]],
    names: dict[Any, str],
    tasks: tuple[str, ...],
    ledger: Ledger,
    select: str,
    seeds: int | None,
) -> list[Table]:
    wanted, printed_tasks = {SETTINGS[setting] for setting, *_ in printed}, tasks
    rows_of = {key: cell for key, cell in cells(ledger, seeds or 5, select).items() if key[1] in wanted and key[2] in GLUE}
    varied = {(key[0], key[2]) for key in rows_of if key[1] != "vera"}
    tables = []
    for model in ["roberta_large", *sorted({model for model, _ in varied} - {"roberta_large"})]:
        # The paper's model on the paper's tasks; another one on those that it was tried on.
        tasks = printed_tasks if model == "roberta_large" else tuple(task for task in GLUE if (model, task) in varied)
        found = {key: cell for key, cell in rows_of.items() if key[0] == model and key[2] in tasks}
        rows: list[list[str]] = []
        for setting, *values in printed:
            ours = {task: found[model, SETTINGS[setting], task] for task in tasks if (model, SETTINGS[setting], task) in found}
            if model == "roberta_large":
                rows.append([names[setting], "paper", *map(_printed, values), "quoted"])
            if not ours:
                continue
            whole = all(task in ours and ours[task].complete for task in tasks)
            word, compared = "other model", dict[str, Beside]()
            if model == "roberta_large":
                compared = {
                    task: Beside(ours[task], *split(value), middle=statistics.fmean)
                    for task, value in zip(tasks, values, strict=True)
                    if task in ours
                }
                word = status(list(compared.values()))
            diverged = sum(cell.diverged for cell in ours.values())
            word = (word if whole else "ours, incomplete") + (f", {diverged} diverged" if diverged else "")
            name = names[setting] if model != "roberta_large" else ""
            rows.append([name, "ours", *(shown(ours[t], middle="mean") if t in ours else "missing" for t in tasks), word])
            if model == "roberta_large":
                gaps = [_gap(compared.get(task)) for task in tasks]
                rows.append(["", "difference", *gaps, ""])
        notes = [f"Means over seeds of the best epoch on dev, +- sample standard deviation, as the paper's table {title[6]}."]
        if select == "crossfit":
            notes[0] = f"Means over seeds. {CROSSFIT}"
        notes += beside.notes(rows)
        if model == "roberta_large":
            notes.append("quoted: the paper's number, not run here. (n/m): n of m seeds. 1d: one diverged.")
        for task in tasks:
            of_task = {name: found.get((model, SETTINGS[setting], task)) for setting, name in names.items()}
            notes += _over_the_same_seeds({name: cell for name, cell in of_task.items() if cell}, GLUE[task])
        if title.startswith("Table 7"):
            notes.append("The paper's shared row is not its table 6's row of the same settings.")
        if model != "roberta_large":
            notes.append(f"{model} is a model that the paper does not use.")
        whose = "RoBERTa-large" if model == "roberta_large" else model
        header = ["setting", "source", *(GLUE[task] for task in tasks), "status"]
        tables.append(
            Table(f"{title}, {whose}", header, rows, [*notes, *_about(found)], model, {t: GLUE[t] for t in tasks}, ("best",))
        )
    return tables


def _over_the_same_seeds(rows: dict[str, Cell], task: str) -> list[str]:
    """Rows of unlike seeds are not to be compared by their means: a note with those over the seeds that all of them have."""
    alike = over_shared_seeds(rows.values()) if rows else []
    if not alike or not alike[0].records or all(a.seeds == b.seeds for a, b in zip(alike, rows.values(), strict=True)):
        return []
    means = ", ".join(f"{name} {cell.mean():.1f}" for name, cell in zip(rows, alike, strict=True))
    return [f"{task}: rows have unlike seeds. Over the {plural(alike[0].seeds, 'seed')} that all have: {means}."]


# --- tables 8 to 11: the recipes

CONF = Path(__file__).parent.parent / "conf"
ORDER = ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")  # of the columns in paper/recipes.yaml
#: Keys of a recipe as tables call them.
KEYS = {"rank": "rank", "effective_batch": "batch size", "max_length": "tokens", "epochs": "epochs", "lr": "learning rate"}
KEYS |= {"lr_head": "learning rate, head", "warmup_ratio": "warm-up ratio", "warmup_steps": "warm-up steps"}
KEYS |= {"schedule": "schedule", "weight_decay": "weight decay", "label_smoothing": "label smoothing"}


@cache
def recipes() -> dict[str, Any]:
    """The hyperparameters that the papers print."""
    found: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "paper" / "recipes.yaml").read_text())
    return found


@cache
def _recipe_file(row: str, model: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONF / "recipe" / row / f"{model}.yaml").read_text())
    return found


def recipe(row: str, model: str, task: str, key: str) -> Any:
    """A value of conf/recipe/ROW/MODEL.yaml: by task, or at its top; None where the file names none. Numbers as numbers."""
    file = _recipe_file(row, model)
    value = (file.get("by_task") or {}).get(key, {}).get(task, file.get(key))
    try:
        return float(value) if isinstance(value, str) else value  # YAML 1.1 takes 4e-3 for a word
    except ValueError:
        return value


Column = tuple[str, str, str]  # row, model, task


def _recipe_table(title: str, columns: dict[str, Column], printed: dict[str, list[Any]], notes: list[str]) -> Table:
    """The recipe's values, a line a key, with a last column that says whether the paper prints the same.

    printed: the paper's values by key, one for each column; None where it prints none.
    """
    rows = []
    for key, values in printed.items():
        ours = [recipe(*column, key) for column in columns.values()]
        pairs = [(a, b) for a, b in zip(ours, values, strict=True) if b is not None]
        wrong = ", ".join(str(b) for _, b in pairs) if any(a != b for a, b in pairs) else ""
        status = f"DIFFERS: {wrong}" if wrong else "as printed" if pairs else "not printed"
        rows.append([KEYS[key], *map(_plain, ours), status])
    chosen: dict[str, None] = {}
    for row, model, _ in columns.values():
        chosen |= dict.fromkeys(f"{key}: {why}" for key, why in (_recipe_file(row, model).get("chosen") or {}).items())
    notes = [*notes, *(f"this project's choice: {line}" for line in chosen)]
    return Table(title, ["hyperparameter", *columns, "paper"], rows, notes, "", {}, ())


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def table8(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """The recipes of VeRA on GLUE. Needs no record."""
    tables, common = [], recipes()["glue"]["common"]
    for name, label in (("roberta-base", "RoBERTa-base"), ("roberta-large", "RoBERTa-large")):
        paper_ = recipes()["glue"]["vera"][name]
        printed = {key: [paper_[other]] * 6 for key, other in (("rank", "rank"), ("effective_batch", "batch"))}
        printed |= {"max_length": [paper_["max_length"]] * 6, "epochs": paper_["epochs"]}
        printed |= {"lr": paper_["lr"], "lr_head": paper_["lr_head"]}
        printed |= {key: [common[key]] * 6 for key in ("warmup_ratio", "schedule")} | {"weight_decay": [None] * 6}
        columns = {GLUE[task]: ("vera", name.replace("-", "_"), task) for task in ORDER}
        tables.append(_recipe_table(f"Table 8, {label}: VeRA on GLUE, from conf/recipe", columns, printed, ["AdamW."]))
    return tables


def table9(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """The recipes of instruction tuning, the same for each Llama. Needs no record."""
    paper_ = recipes()["instruct"]
    common = paper_["common"]
    tables = []
    for model, label in LLAMAS.items():
        columns = {NAMES[row]: (row, model, "alpaca") for row in ("lora", "vera")}
        printed = {key: [paper_[row][key] for row in ("lora", "vera")] for key in ("rank", "lr")}
        printed |= {"effective_batch": [common["batch"] * common["accumulation"]] * 2}
        printed |= {key: [common[key]] * 2 for key in ("epochs", "warmup_ratio", "schedule")} | {"max_length": [None] * 2}
        notes = [f"AdamW. The paper's batch is {common['batch']}, accumulated {common['accumulation']} times."]
        tables.append(_recipe_table(f"Table 9, {label}: instruction tuning, from conf/recipe", columns, printed, notes))
    return tables


def table10(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """The recipes of VeRA on E2E. Needs no record."""
    paper_ = recipes()["e2e"]
    columns = {label: ("vera", model, "e2e") for label, model in (("medium", "gpt2_medium"), ("large", "gpt2_large"))}
    printed = {key: [paper_["vera"][name][key] for name in ("gpt2-medium", "gpt2-large")] for key in ("rank", "lr")}
    printed |= {"effective_batch": [paper_["common"]["batch"]] * 2}
    keys = ("epochs", "warmup_steps", "schedule", "weight_decay", "label_smoothing")
    printed |= {key: [paper_["common"][key]] * 2 for key in keys}
    return [_recipe_table("Table 10: VeRA on E2E with GPT-2, from conf/recipe", columns, printed, ["AdamW."])]


def table11(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """The recipes of image classification. Needs no record."""
    common = recipes()["images"]["common"]
    tables = []
    for name, label in (("vit-base", "ViT-B/16"), ("vit-large", "ViT-L/16")):
        for row in ("head", "full", "lora", "vera"):
            paper_ = recipes()["images"][name][row]
            columns = {IMAGES[task]: (row, name.replace("-", "_"), task) for task in IMAGES}
            printed = {"rank": [paper_["rank"]] * 4} if "rank" in paper_ else {}
            printed |= {key: paper_[key] for key in ("lr", "lr_head") if key in paper_}
            printed |= {key: [common[key]] * 4 for key in ("epochs", "schedule", "weight_decay")}
            printed |= {key: [None] * 4 for key in ("effective_batch", "warmup_ratio")}
            title = f"Table 11, {label}, {NAMES[row]}: images, from conf/recipe"
            tables.append(_recipe_table(title, columns, printed, ["AdamW. 10 training images a class."]))
    return tables


# --- the demo


def demo(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Every method on the demo's task, with what it costs."""
    records = [r for r in ledger if r["cell"]["task"] == "reviews"]
    found = cells(records, seeds or 3, select)
    tables = []
    for model in sorted({key[0] for key in found}):
        mine = {key[1]: cell for key, cell in found.items() if key[0] == model}
        lora = mine.get("lora")
        rows = []
        for cell in sorted(mine.values(), key=lambda cell: (cell.unknown, -cell.median())):
            both = lora and lora.parameters and cell.parameters
            ratio = _of_cells(f"{cell.parameters / lora.parameters:.2f}x", cell, lora) if lora and both else "-"
            spread = cell.spread()
            size = _of_cells(megabytes(cell.cost("adapter_bytes")), cell) if cell.parameters else "-"
            rows.append(
                [
                    cell.label + (f" ({cell.seeds - cell.unknown}/{cell.wanted} seeds)" if not cell.complete else ""),
                    _size(cell),
                    ratio,
                    _of_cells(f"{cell.median():.1f}" + (f" {cell.diverged}d" if cell.diverged else ""), cell),
                    _of_cells(f"{spread:.1f}", cell) if spread is not None else "-",
                    _of_cells(f"{cell.median('last'):.1f}", cell),
                    _of_cells(f"{cell.seconds:.0f}", cell),
                    size,
                    _of_cells(megabytes(4 * cell.records[0]["parameters"]["head"]), cell),
                ]
            )
        first = next(iter(mine.values())).records[0]
        header = ["method", "trainable", "vs LoRA", "best ep.", "spread", "last ep.", "s/run", "adapter", "head"]
        names, data = first["label"], first["data"]
        over = (
            f"median of {seeds or 3} seeds"
            if all(cell.complete for cell in mine.values())
            else "median over the seeds there are"
        )
        title = f"{names['task']} ({names['model']}, {over}): dev {first['result']['metric']}"
        chosen = "The best epoch is chosen on the rows reported."
        if select == "crossfit":
            chosen = CROSSFIT
        notes = [
            "trainable: without the classification head, which every method trains. spread: sample standard deviation.",
            "adapter, head: the size of the two files that a run keeps (full keeps none, unless keep=best).",
            f"{data['train_rows']} training and {data['dev_rows']} dev rows. {chosen}",
        ]
        notes += _about({key: cell for key, cell in found.items() if key[0] == model})
        tables.append(Table(title, header, rows, notes, model, {"reviews": names["task"]}, ("best",)))
    return tables


TABLES = {"table1": table1, "table2": table2, "table3": table3, "table4": table4, "table5": table5, "table6": table6}
TABLES |= {"table7": table7, "table8": table8, "table9": table9, "table10": table10, "table11": table11}
TABLES |= {"table12": table12, "table13": table13, "demo": demo}
#: Those that need no record.
WITHOUT_RECORDS = ("table1", "table8", "table9", "table10", "table11")


def make(name: str, ledger: Ledger, select: str = "paper", seeds: int | None = None) -> list[Table]:
    """A table's parts by its name, each with what of it is of published records."""
    made = TABLES[name](ledger, select, seeds)
    for table in made:
        table.notes += published(ledger, (run for runs in table.runs.values() for run in runs))
    return made


def main(arguments: list[str]) -> int:
    parser = Parser("tables", __doc__)
    parser.add_argument("name", help=", ".join(TABLES))
    parser.add_argument("--format", choices=("md", "latex", "csv"), default="md")
    parser.add_argument("--select", choices=("paper", "crossfit"), default="paper")
    parser.add_argument(
        "--seeds", type=int, help="seeds of a complete cell (table2, 5, 6 and 7: 5, table3 and demo: 3, the others: 1)"
    )
    parser.add_argument("--runs", action="store_true", help="also list the run ids behind each cell (CSV has them anyway)")
    parser.add_argument("--save", action="store_true", help="also write it to OUTPUT/NAME/table.md (.tex, .csv)")
    options = parser.read(arguments)
    if options.name not in TABLES:
        print(
            f"error: no table {options.name!r}. Known: {', '.join(TABLES)}. A preset's runs stand in the paper's table of its "
            "protocol (glue_minilm: table2)",
            file=sys.stderr,
        )
        return 2
    if options.seeds is not None and options.seeds < 1:
        print(f"error: --seeds {options.seeds}: should be at least 1", file=sys.stderr)
        return 2
    ledger = Ledger() if options.name in WITHOUT_RECORDS else open_ledger(options.output)
    tables = make(options.name, ledger, options.select, options.seeds)
    if not tables:
        print(f"error: no records of {options.name} in {options.output}/records yet (make {options.name})", file=sys.stderr)
        return 2
    text = "\n\n".join(table.render(options.format, options.runs) for table in tables)
    print(text)
    if options.save:
        ending = {"md": "md", "latex": "tex", "csv": "csv"}[options.format]
        path = Path(options.output) / options.name / f"table.{ending}"
        write_atomically(path, text + "\n")
        print(f"\nTable: {path}")
    return 0


if __name__ == "__main__":
    entry_point(main)
