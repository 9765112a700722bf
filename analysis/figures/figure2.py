"""Figure 2: the dev metric by trainable parameters, over the ranks of VeRA and LoRA."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.cells import Cell, cells
from analysis.figures.figure import (
    LARGE,
    MARKERS,
    RTE,
    Figure,
    colour,
    model_name,
    not_in_the_paper,
    paper_first,
    parameter_count,
    printed_rte,
    suffix,
    with_runs,
)
from analysis.figures.seeds import draw_point, drawable, median_and_range, metric_label, seed_notes
from analysis.inference import smallest_p
from analysis.paper import GLUE, NAMES, paper
from analysis.series import series
from analysis.table import TableCell, make_row
from runs.record import FINISHED, Ledger, Record, is_trial, lora_scaling
from runs.record.text import plural

#: The lines of figure 2: a name, a row's kind, and the rows on it. LoRA's has two, by how alpha follows the
#: rank; the rank of the recipe is on both.
RANK_LINES = {
    "VeRA": ("vera", r"vera_r(\d+)"),
    "LoRA, constant alpha": ("lora", r"lora_r(\d+)"),
    "LoRA, alpha proportional to r": ("lora", r"lora_r(\d+)_proportional"),
}


def make(ledger: Ledger) -> list[Figure]:
    """The dev metric against trainable parameters, VeRA's and LoRA's ranks: a figure for the paper's model
    and task, and for each model and task of GLUE on which ranks of either vary."""
    ranks, left_out = _comparable(list(_by_rank(ledger)))
    by_key = cells(ranks, wanted=5)
    points = Counter((model, task, row.partition("_")[0]) for model, row, task in by_key)
    several = {(model, task) for (model, task, _), count in points.items() if count > 1}
    figures = []
    for model, task in paper_first(several):
        by_row = {key[1]: cell for key, cell in sorted(by_key.items()) if (key[0], key[2]) == (model, task)}
        records = [record for cell in by_row.values() for record in cell.records]
        rows, notes = [_row(row, cell) for row, cell in by_row.items()], seed_notes(by_row)
        if of_others := left_out[model, task]:
            notes.append(
                f"{plural(of_others, 'run')} on other data, or of other epochs, than most ranks: left out."
            )
        quoted: list[tuple[str, int, float]] = []
        if any(row.startswith("lora") for row in by_row):
            notes.append(
                "constant alpha: the recipe's at every rank (Hu et al. 2022). proportional: the recipe's"
                " alpha / rank times the rank. Rates are the recipe's: one for all ranks, or one for each."
            )
        if (model, task) == (LARGE, RTE):
            papers = {kind: printed_rte()[kind] for kind in ("vera", "lora")}
            quoted = [(kind, count, number.value) for kind, (number, count) in papers.items()]
            for (kind, count, value), rank in zip(quoted, (256, 8), strict=True):
                source = [NAMES[kind], str(rank), "-", "paper, table 2 (quoted)"]
                rows.append(make_row(*source, str(count), f"{value:.1f}", "", "", "", ""))
            notes += _beside_the_paper(by_row)
        else:
            notes.insert(0, not_in_the_paper(model, task))
        title = f"Figure 2: {GLUE[task]} by trainable parameters, {model_name(model, records)}"
        header = ["method", "rank", "alpha", "source", "parameters", "median", "low", "high", "seeds", "runs"]
        metric = metric_label(next((str(r["result"]["metric"]) for r in records), "accuracy"))
        draw = partial(_draw_ranks, drawable(by_row), quoted, title, f"{GLUE[task]} dev {metric}")
        figures.append(Figure(f"figure2{suffix(model, task)}", title, header, rows, notes, draw))
    return figures


def _by_rank(ledger: Ledger) -> Iterator[Record]:
    """GLUE's records of VeRA and LoRA, each with its rank in its row's name."""
    for record in ledger:
        method, row = record["config"]["method"], record["cell"]["row"]
        plain = row in ("vera", "lora") or row.removeprefix("vera_r").removeprefix("lora_r").isdecimal()
        of_table = record["status"] in FINISHED and not is_trial(record["config"])
        if of_table and record["cell"]["task"] in GLUE and plain and method.get("rank"):
            # A rank set on the command line and a row of that rank are one point, so both get that row.
            yield record | {"cell": record["cell"] | {"row": f"{method['kind']}_r{method['rank']:04d}"}}


def _comparable(records: list[Record]) -> tuple[list[Record], Counter[tuple[str, str]]]:
    """The records of a model and task on the data that most of its rows have and, of each method, with the
    number of epochs that most of its rows have; how many of each model and task are left out."""
    kept, left_out = records, Counter[tuple[str, str]]()
    for group, value in ((_model_and_task, _data), (_method, _epochs)):
        votes: dict[Any, Counter[Any]] = defaultdict(Counter)
        for of_group, of_value, _ in {(group(r), value(r), r["cell"]["row"]) for r in kept}:
            votes[of_group][of_value] += 1
        # Of equals, the most data or epochs
        most = {of: max((n, v) for v, n in counts.items())[1] for of, counts in votes.items()}
        left_out.update(_model_and_task(r) for r in kept if value(r) != most[group(r)])
        kept = [r for r in kept if value(r) == most[group(r)]]
    return kept, left_out


def _model_and_task(record: Record) -> tuple[str, str]:
    return record["cell"]["model"], record["cell"]["task"]


def _method(record: Record) -> tuple[str, str, str]:
    return *_model_and_task(record), record["config"]["method"]["kind"]


def _data(record: Record) -> tuple[int, int]:
    return record["data"]["train_rows"], record["data"]["dev_rows"]


def _epochs(record: Record) -> int:
    return int(record["config"]["train"]["epochs"])


def _row(row: str, cell: Cell) -> list[TableCell]:
    kind, _, rank = row.partition("_r")
    alpha = "-"
    if kind == "lora":
        method = cell.records[0]["config"]["method"]
        how = lora_scaling(cell.records[0]["config"]) or "constant and proportional"
        alpha = f"{method['alpha']:g}, {how}" if "alpha" in method else how
    ours = with_runs([str(cell.parameters), *median_and_range(cell)], cell.ids)
    return make_row(NAMES[kind], str(int(rank.partition("_")[0])), alpha, "ours", *ours)


def _beside_the_paper(by_row: dict[str, Cell]) -> list[str]:
    """Notes of the paper's own model and task: what is quoted, and the ranks that have not run."""
    notes = ["The paper prints no numbers of this figure: crosses are its table 2's RTE, ranks 256 and 8."]
    ranks = paper()["figure2"]
    for name, (kind, pattern) in RANK_LINES.items():
        ran = {int(of[1]) for row in [*by_row, *_shared_rank(by_row)] if (of := re.fullmatch(pattern, row))}
        missing = [r for r in ranks[f"{kind}_ranks"] if r not in ran]
        if missing:
            notes.append(f"{name}: not run here at rank {', '.join(map(str, missing))} (make rank-scaling).")
    notes.append(f"The paper's finding: {ranks['finding']}. It does not say which alpha LoRA's ranks have.")
    return notes


def _shared_rank(by_row: dict[str, Cell]) -> dict[str, Cell]:
    """LoRA's cells at the recipe's own rank and alpha, as rows of the proportional line too."""
    constant = {row: cell for row, cell in by_row.items() if re.fullmatch(r"lora_r\d+", row)}
    shared = {row: cell for row, cell in constant.items() if lora_scaling(cell.records[0]["config"]) is None}
    return {f"{row}_proportional": cell for row, cell in shared.items()}


def _draw_ranks(
    by_row: dict[str, Cell], quoted: list[tuple[str, int, float]], title: str, metric: str, canvas: Canvas
) -> None:
    axes = canvas.subplots()
    proportional = [row for row in by_row if row.endswith("_proportional")]
    for name, (kind, pattern) in RANK_LINES.items():
        second = name.endswith("to r")
        cells_ = {**by_row, **_shared_rank(by_row)} if second and proportional else by_row
        line = sorted((int(match[1]), row) for row in cells_ if (match := re.fullmatch(pattern, row)))
        points = [(cells_[row].parameters, cells_[row].median()) for _, row in line]
        if not points:
            continue
        dashes = "--" if second else "-"
        axes.plot(*zip(*points, strict=True), color=colour(kind), linewidth=1, alpha=0.8, linestyle=dashes)
        for i, (rank, row) in enumerate((rank, row) for rank, row in line if row in by_row):
            cell = by_row[row]
            draw_point(axes, cell.parameters, cell, row)
            top, shift, across, along = max(cell.values()), (0, 4), "center", "baseline"
            # The lowest ranks have nearly the same count: above to the left, below to the right, by turns
            if kind == "vera":
                top, shift = cell.median(), ((-4, 3), (4, -3))[i % 2]
                across, along = (("right", "bottom"), ("left", "top"))[i % 2]
            look: dict[str, Any] = {"ha": across, "va": along, "fontsize": 6, "color": colour(kind)}
            if (
                not second or f"lora_r{rank:04d}" not in by_row
            ):  # one name for the two lines' points of a rank
                axes.annotate(f"r={rank}", (cell.parameters, top), shift, textcoords="offset points", **look)
        axes.plot([], [], marker=MARKERS[kind], color=colour(kind), label=name, linestyle=dashes)
    for kind, count, value in quoted:
        label = f"{NAMES[kind]}, paper's table 2 (quoted)"
        look = {"color": colour(kind), "markersize": 7, "markeredgewidth": 1.5, "linestyle": "none"}
        axes.plot(count, value, "x", label=label, **look)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(parameter_count))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.12)
    axes.set_xlabel("trainable parameters, without the classification head")
    axes.set_ylabel(metric)
    counts = sorted({cell.seeds for cell in by_row.values()}) or [0]
    of, most = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))), counts[-1]
    # The range of n seeds misses the median of such runs where all lie on one side: a sign test's smallest p.
    which = f"of {most} " if counts[0] < most else ""
    lines = f"lowest to highest ({which}a {100 * (1 - smallest_p(most)):.0f}% interval)"
    epoch = next((series(cell).name.partition(", ")[2] for cell in by_row.values()), "")
    axes.set_title(f"{title}\nmedian of {of} seeds, {epoch}; lines: {lines}" if most > 1 else title)
    axes.legend(loc="best")
