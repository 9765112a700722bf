"""Draws a figure from the records, beside what the paper prints of it.

    python -m analysis.figures figure2 [--output outputs]     (figure2 to figure6, parameters, demo; all: whatever there is)

The vector PDF, the PNG and the data behind them as CSV go to OUTPUT/NAME/; each row of the data names the run ids (or the
measure) that it comes from. Figures 3, 5 and 6 are drawn from measures: python -m runs.measure.
"""

import csv
import io
import math
import os
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.cells import Cell, Key, cells, ids, label_of, published
from analysis.command import Parser, entry_point, open_ledger
from analysis.paper import GLUE, NAMES, ROWS, paper
from analysis.stats import smallest_p
from analysis.table import TableCell, make_row, spreadsheet, texts
from runs.record import FINISHED, Ledger, Record, cell_id, is_trial, lora_scaling, write_atomically
from runs.record.text import one_line

#: Okabe and Ito's palette, safe for colour-blind readers; a method has the same colour everywhere.
COLOURS = {"vera": "#D55E00", "lora": "#0072B2", "bitfit": "#009E73", "full": "#000000", "head": "#777777"}
COLOURS |= {"adapter": "#E69F00", "random": "#999999"}
OTHER = "#CC79A7"
MARKERS = {"vera": "D", "lora": "o"}
#: Of a figure across the text of a paper, in inches.
SIZE = (5.5, 3.3)
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "path",
    "svg.hashsalt": "vera-bench",  # the same data give the same file
}
#: The model and task of the paper's figures 2 to 4.
LARGE, RTE = "roberta_large", "rte"


@dataclass
class Figure:
    """A figure: its name and title, the data behind it as text, what is missing, and how it is drawn.

    The last column of the data, "runs", names the run ids (or the measure) of each point, as each of its numbers does.
    Without rows there is nothing to draw, and the notes say why. size: inches.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[TableCell]]
    notes: list[str]
    draw: Callable[[Any], None]
    size: tuple[float, float] = field(default=SIZE)


def colour(row: str) -> str:
    """Of a row of conf/method, by its method: vera_r64 has VeRA's."""
    return COLOURS.get(row) or COLOURS.get(row.partition("_")[0], OTHER)


# --- files


def _canvas(figure: Figure) -> Canvas:
    canvas = Canvas(figsize=figure.size, layout="constrained")
    if figure.rows:
        figure.draw(canvas)
    else:
        canvas.text(0.5, 0.5, "\n".join([figure.title, "", *figure.notes]), ha="center", va="center", wrap=True)
    return canvas


def svg(figure: Figure) -> str:
    """The figure as an SVG element (without an XML header), for a page of HTML."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure.name}):
        _canvas(figure).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def save(figure: Figure, folder: Path) -> list[Path]:
    """Writes PDF, PNG and CSV, each whole or not at all; the same data give the same bytes. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        for form, unstable in (("pdf", {"CreationDate": None, "ModDate": None}), ("png", {})):
            path = folder / f"{figure.name}.{form}"
            partial_ = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                _canvas(figure).savefig(partial_, format=form, dpi=200, metadata=unstable)
                os.replace(partial_, path)
            finally:
                partial_.unlink(missing_ok=True)
            paths.append(path)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [[spreadsheet(one_line(cell)) for cell in row] for row in (figure.header, *texts(figure.rows))]
    )
    write_atomically(folder / f"{figure.name}.csv", text.getvalue())
    return [*paths, folder / f"{figure.name}.csv"]


# --- what figures share


def _finite(values: Iterable[Any]) -> list[float]:
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _numbers(numbers: Iterable[str], of: Iterable[str]) -> list[TableCell]:
    """Numbers that are made of these runs (or measures), which the last column, "runs", names."""
    names = tuple(dict.fromkeys(of))
    return [*(TableCell(text, () if text in ("", "-") else names) for text in numbers), TableCell(" ".join(names))]


def _middle(cell: Cell, which: str = "best") -> list[str]:
    """A cell's median, and its lowest and highest seed: not a number where a seed's is none."""
    values = [math.nan] if cell.unknown else cell.values(which)
    return [f"{v:.1f}" for v in (cell.median(which), min(values), max(values))] + [f"{cell.seeds - cell.unknown}/{cell.wanted}"]


def _drawn(mine: dict[str, Cell]) -> dict[str, Cell]:
    """Those whose every seed has its number."""
    return {row: cell for row, cell in mine.items() if not cell.unknown}


def _seed_notes(found: dict[str, Cell]) -> list[str]:
    """Fewer seeds than wanted, diverged ones, and what cells() has left out."""
    notes = []
    for cell in found.values():
        if not cell.complete:
            notes.append(f"{cell.label}: {cell.seeds - cell.unknown} of {cell.wanted} seeds (hollow).")
        if cell.unknown:
            notes.append(f"{cell.label}: {cell.unknown} of {cell.seeds} runs finished without the number (nan): not drawn.")
        if cell.again:
            more = "more than one record of the same settings and seed; not counted twice, left out"
            notes.append(f"{cell.label}: {more}: {', '.join(cell.again)}.")
        if cell.diverged:
            notes.append(f"{cell.label}: {cell.diverged} of {cell.seeds} seeds diverged, and count by their best epoch before.")
        if cell.left_out:
            notes.append(f"{cell.label}: {cell.left_out} records with other settings are left out.")
        notes += cell.problems
    return notes


def _point(axes: Any, x: float, cell: Cell, row: str, label: str | None = None, which: str = "best") -> None:
    """A cell's median and the range of its seeds; hollow where seeds are missing."""
    values, tint = cell.values(which), colour(row)
    axes.plot([x, x], [min(values), max(values)], color=tint, alpha=0.6)
    face = tint if cell.complete else "white"
    marker = MARKERS.get(row.partition("_")[0], "s")
    axes.plot(x, cell.median(which), marker, color=tint, markerfacecolor=face, label=label, zorder=3)


def _paper_first(found: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Models and tasks, those of the paper's figures first, whether they are among them or not."""
    return sorted({(LARGE, RTE), *found}, key=lambda key: (key != (LARGE, RTE), key))


def _suffix(model: str, task: str) -> str:
    """Of a figure's name, where it is not the paper's own."""
    return "" if (model, task) == (LARGE, RTE) else f"_{model}_{task}"


def _metric(name: str) -> str:
    """A metric as an axis calls it."""
    return f"{name}, %" if name == "accuracy" else f"{name.capitalize()} x 100"


def _name(model: str, records: Iterable[Record]) -> str:
    return next((str(r["label"]["model"]) for r in records), "RoBERTa-large" if model == LARGE else model)


def _count(value: float, _: Any) -> str:
    """Parameters at an axis: 50K, 2M."""
    return next((f"{value / scale:g}{unit}" for unit, scale in (("M", 1e6), ("K", 1e3)) if value >= scale), f"{value:g}")


def _empty(_: Any) -> None:
    """Draws nothing."""


# --- figure 2


#: The lines of figure 2: a name, a row's kind, and the rows on it. LoRA's has two, by how alpha follows the rank; the rank of
#: the recipe is on both.
RANK_LINES = {
    "VeRA": ("vera", r"vera_r(\d+)"),
    "LoRA, constant alpha": ("lora", r"lora_r(\d+)"),
    "LoRA, alpha proportional to r": ("lora", r"lora_r(\d+)_proportional"),
}


def figure2(ledger: Ledger) -> list[Figure]:
    """The dev metric against trainable parameters, VeRA's and LoRA's ranks: a figure for the paper's model and task, and for
    each model and task of GLUE on which ranks of both vary."""
    by_rank = []
    for record in ledger:
        method, row = record["config"]["method"], record["cell"]["row"]
        plain = row in ("vera", "lora") or row.removeprefix("vera_r").removeprefix("lora_r").isdecimal()
        if record["cell"]["task"] in GLUE and plain and method.get("rank"):
            # A rank set on the command line and a row of that rank are one point: cells() is told so.
            by_rank.append(record | {"cell": record["cell"] | {"row": f"{method['kind']}_r{method['rank']:04d}"}})
    found = cells(by_rank, wanted=5)
    points = Counter((model, task, row.partition("_")[0]) for model, row, task in found)
    several = {(model, task) for (model, task, _), count in points.items() if count > 1}
    printed = {row[0]: row for row in paper()["table2"]["roberta-large"]}
    figures = []
    for model, task in _paper_first(several):
        mine = {key[1]: cell for key, cell in sorted(found.items()) if (key[0], key[2]) == (model, task)}
        records = [record for cell in mine.values() for record in cell.records]
        rows, quoted = [], []
        for row, cell in mine.items():
            kind, _, rank = row.partition("_r")
            alpha = "-"
            if kind == "lora":
                method = cell.records[0]["config"]["method"]
                how = lora_scaling(cell.records[0]["config"]) or "constant and proportional"
                alpha = f"{method['alpha']:g}, {how}" if "alpha" in method else how
            numbers = _numbers([str(cell.parameters), *_middle(cell)], ids(cell.records))
            rows.append(make_row(NAMES[kind], str(int(rank.partition("_")[0])), alpha, "ours", *numbers))
        notes = _seed_notes(mine)
        if any(row.startswith("lora") for row in mine):
            notes.append(
                "constant alpha: the recipe's at every rank (Hu et al. 2021). proportional: the recipe's alpha / rank times"
                " the rank. Rates are the recipe's, tuned at its rank, where both are one."
            )
        if (model, task) == (LARGE, RTE):
            for kind, usual, count in (("vera", 256, 61440), ("lora", 8, 786432)):
                value = printed[kind][6][0]
                quoted.append((kind, count, value))
                rows.append(
                    make_row(
                        NAMES[kind], str(usual), "-", "paper, table 2 (quoted)", str(count), f"{value:.1f}", "", "", "", ""
                    )
                )
            notes.append("The paper prints no numbers of this figure: crosses are its table 2's RTE, ranks 256 and 8.")
            ranks = paper()["figure2"]
            for name, (kind, pattern) in RANK_LINES.items():
                ran = {int(of[1]) for row in [*mine, *_shared_rank(mine)] if (of := re.fullmatch(pattern, row))}
                missing = [r for r in ranks[f"{kind}_ranks"] if r not in ran]
                if missing:
                    notes.append(f"{name}: not run here at rank {', '.join(map(str, missing))} (make rank-scaling).")
            notes.append(f"The paper's finding: {ranks['finding']}. It does not say which alpha LoRA's ranks have.")
        else:
            notes.insert(0, f"{model} on {task} is not in the paper, whose figure is RoBERTa-large on RTE.")
        title = f"Figure 2: {GLUE[task]} by trainable parameters, {_name(model, records)}"
        header = ["method", "rank", "alpha", "source", "parameters", "median", "low", "high", "seeds", "runs"]
        metric = next((str(r["result"]["metric"]) for r in records), "accuracy")
        draw = partial(_draw_ranks, _drawn(mine), quoted, title, f"{GLUE[task]} dev {_metric(metric)}")
        figures.append(Figure(f"figure2{_suffix(model, task)}", title, header, rows, notes, draw))
    return figures


def _shared_rank(mine: dict[str, Cell]) -> dict[str, Cell]:
    """LoRA's cells at the recipe's own rank and alpha, as rows of the proportional line too."""
    lora = {row: cell for row, cell in mine.items() if re.fullmatch(r"lora_r\d+", row)}
    return {f"{row}_proportional": c for row, c in lora.items() if lora_scaling(c.records[0]["config"]) is None}


def _draw_ranks(mine: dict[str, Cell], quoted: list[tuple[str, int, float]], title: str, metric: str, canvas: Canvas) -> None:
    axes = canvas.subplots()
    proportional = [row for row in mine if row.endswith("_proportional")]
    for name, (kind, pattern) in RANK_LINES.items():
        second = name.endswith("to r")
        cells_ = {**mine, **_shared_rank(mine)} if second and proportional else mine
        line = sorted((int(found[1]), row) for row in cells_ if (found := re.fullmatch(pattern, row)))
        points = [(cells_[row].parameters, cells_[row].median()) for _, row in line]
        if not points:
            continue
        dashes = "--" if second else "-"
        axes.plot(*zip(*points, strict=True), color=colour(kind), linewidth=1, alpha=0.8, linestyle=dashes)
        for i, (rank, row) in enumerate((rank, row) for rank, row in line if row in mine):
            cell = mine[row]
            _point(axes, cell.parameters, cell, row)
            top, shift, across, along = max(cell.values()), (0, 4), "center", "baseline"
            if kind == "vera":  # the lowest ranks have nearly the same count: above to the left, below to the right, by turns
                top, shift = cell.median(), ((-4, 3), (4, -3))[i % 2]
                across, along = (("right", "bottom"), ("left", "top"))[i % 2]
            look: dict[str, Any] = {"ha": across, "va": along, "fontsize": 6, "color": colour(kind)}
            if not second or f"lora_r{rank:04d}" not in mine:  # one name for the two lines' points of a rank
                axes.annotate(f"r={rank}", (cell.parameters, top), shift, textcoords="offset points", **look)
        axes.plot([], [], marker=MARKERS[kind], color=colour(kind), label=name, linestyle=dashes)
    for kind, count, value in quoted:
        label = f"{NAMES[kind]}, paper's table 2 (quoted)"
        axes.plot(count, value, "x", color=colour(kind), markersize=7, markeredgewidth=1.5, label=label, linestyle="none")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.12)
    axes.set_xlabel("trainable parameters, without the classification head")
    axes.set_ylabel(metric)
    counts = sorted({cell.seeds for cell in mine.values()}) or [0]
    of, most = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))), counts[-1]
    # The range of n seeds misses the median of such runs where all lie on one side: a sign test's smallest p.
    which = f"of {most} " if counts[0] < most else ""
    lines = f"lowest to highest ({which}a {100 * (1 - smallest_p(most)):.0f}% interval)"
    axes.set_title(f"{title}\nmedian of {of} seeds, best epoch; lines: {lines}" if most > 1 else title)
    axes.legend(loc="best")


# --- figure 3


def figure3(ledger: Ledger) -> list[Figure]:
    """How far d has moved, by layer and site: a figure for each model and task with measures of the row vera."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for measure in _measures(ledger, "magnitude"):
        if measure["of"][0]["cell"]["row"] == "vera":
            cell = measure["of"][0]["cell"]
            groups[cell["model"], cell["task"]].append(measure)
    finding = f"The paper's finding: {paper()['figure3']['finding']}."
    figures = []
    for model, task in _paper_first(groups):
        measures, notes = _one_each(groups.get((model, task), []), ledger)
        points: dict[tuple[str, int], list[tuple[float | None, float | None, str]]] = defaultdict(list)
        for measure in measures:
            values = measure["values"]
            for layer, site, d, b in zip(*(values[key] for key in ("layer", "site", "d", "b")), strict=True):
                points[site, layer].append((d, b, measure["of"][0]["id"]))
        rows, lines = [], defaultdict[str, list[tuple[int, float, float, float]]](list)
        for (site, layer), found in sorted(points.items()):
            d, b = _finite(p[0] for p in found), _finite(p[1] for p in found)
            if len(d) < len(found):
                notes.append(f"layer {layer}, {site}: {len(found) - len(d)} of {len(found)} runs have no finite change of d.")
            numbers = [statistics.median(d), min(d), max(d)] if d else []
            shown = [f"{v:.4g}" for v in numbers] or ["-"] * 3
            of_b = f"{statistics.median(b):.4g}" if b else "-"
            rows.append(make_row(site, str(layer), *_numbers([*shown, of_b, str(len(d))], (p[2] for p in found))))
            if numbers:
                lines[site].append((layer, numbers[0], numbers[1], numbers[2]))
        if not measures:
            notes.append("Nothing measured: python -m runs paper=figure3, then python -m runs.measure magnitude.")
        if (model, task) == (LARGE, RTE):
            notes += ["The paper prints no numbers of this figure.", finding]
        else:
            notes.insert(0, f"{model} on {task} is not in the paper, whose figure is RoBERTa-large on RTE.")
        label = measures[0]["of"][0]["label"] if measures else {"model": "RoBERTa-large", "task": "RTE"}
        title = f"Figure 3: change of d by layer, {label['model']} on {label['task']}"
        header = ["site", "layer", "d median", "d low", "d high", "b median", "n", "runs"]
        draw = partial(_draw_layers, dict(lines), title, len(measures))
        figures.append(Figure(f"figure3{_suffix(model, task)}", title, header, rows, notes, draw))
    return figures


def _measures(ledger: Ledger, kind: str) -> Iterator[Record]:
    """Those of a kind, but for trials: they are in no table, and in no figure."""
    for measure in ledger.measures.values():
        known = [ledger.records[run["id"]] for run in measure["of"] if run["id"] in ledger.records]
        if measure["kind"] == kind and not any(is_trial(record["config"]) for record in known):
            yield measure


def _one_each(measures: list[Record], ledger: Ledger) -> tuple[list[Record], list[str]]:
    """The measures of runs of one setting, one for each run, in order of seeds; and what that leaves out, in words.

    Of several settings: the paper's rank 64 in figure 5, then what deviates least from its recipe, then the most runs.
    """
    notes: list[str] = []
    groups: dict[str, list[Record]] = defaultdict(list)
    for measure in sorted(measures, key=lambda m: [run["cell"]["seed"] for run in m["of"]]):
        unknown = [run["id"] for run in measure["of"] if run["id"] not in ledger.records]
        if unknown:
            notes.append(f"measure {measure['id']}: no record of run {', '.join(unknown)} is here: left out.")
            continue
        records = [ledger.records[run["id"]] for run in measure["of"]]
        groups[" ".join([str(measure["settings"]), *map(cell_id, records)])].append(measure)
    if not groups:
        return [], notes

    def rank(group: list[Record]) -> tuple[bool, int, int]:
        deviations = sum(len(ledger.records[run["id"]]["deviations"]) for run in group[0]["of"])
        return group[0]["settings"].get("ranks") == [64, 64], -deviations, len(group)

    chosen = max(groups.values(), key=rank)
    others = sum(map(len, groups.values())) - len(chosen)
    if others:
        notes.append(f"{others} measures of other settings are left out.")
    by_runs = {tuple(run["id"] for run in measure["of"]): measure for measure in chosen}
    if len(by_runs) < len(chosen):
        notes.append(f"{len(chosen) - len(by_runs)} measures of a run that is measured twice are left out.")
    return list(by_runs.values()), notes


#: Of sites: query and value of one method are told apart by shade, dash and marker.
SITES = {"query": ("#D55E00", "-", "D"), "value": ("#E69F00", "--", "s"), "key": ("#CC79A7", "-.", "^")}


def _draw_layers(lines: dict[str, list[tuple[int, float, float, float]]], title: str, runs: int, canvas: Canvas) -> None:
    axes = canvas.subplots()
    spare = iter(["#009E73", "#56B4E9", "#0072B2", "#000000", "#777777", "#F0E442"] * 9)
    for site, points in sorted(lines.items(), key=lambda item: (item[0] not in SITES, item[0])):
        tint, dash, marker = SITES.get(site) or (next(spare), ":", "o")
        layers, middle, low, high = zip(*points, strict=True)
        axes.fill_between(layers, low, high, color=tint, alpha=0.15, linewidth=0)
        axes.plot(layers, middle, dash, marker=marker, markersize=4, color=tint, label=site)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(r"$\|d - d_{init}\|_2$")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{title}\n" + (f"median of {runs} runs, bands from the lowest to the highest" if runs > 1 else "one run"))
    if lines:
        axes.legend()


# --- figure 4


GAIN = (
    "Gain, by the paper's formula: 100 x accuracy / accuracy of the head alone / thousands of parameters. A method that is no "
    "better than the head alone has 100 / thousands of parameters: the count weighs more than the accuracy."
)


def figure4(ledger: Ledger) -> list[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix B): on RTE, and for each model and task
    whose metric is accuracy and that has runs of the head."""
    of_glue = (r for r in ledger if r["cell"]["task"] in GLUE)
    found = cells([r for r in of_glue if r["status"] in FINISHED and r["result"]["metric"] == "accuracy"], wanted=5)
    figures = []
    for model, task in _paper_first((key[0], key[2]) for key in found if key[1] == "head"):
        mine = {key[1]: cell for key, cell in found.items() if (key[0], key[2]) == (model, task)}
        head = mine.pop("head", None)
        # Table 2's rows; ranks and ablations have figures and tables of their own.
        mine = {row: cell for row, cell in mine.items() if cell.parameters and not row.startswith(("vera_", "lora_"))}
        rows, ours, quoted = [], {}, {}
        notes = [GAIN, *_seed_notes({**mine, **({"head": head} if head else {})})]
        if (model, task) == (LARGE, RTE):
            for row, (name, accuracy, value, parameters) in _printed_gains().items():
                quoted[row] = (name, value)
                implied = 100 * accuracy / value / (parameters / 1000)
                rows.append(
                    make_row(name, "paper (quoted)", str(parameters), f"{accuracy:.1f}", f"{implied:.1f}", f"{value:.2f}", "")
                )
            notes.append(
                "head, of the paper's: the head-only accuracy that follows from a printed value and table 2's accuracy. "
                "The printed values do not follow from one such accuracy."
            )
        else:
            notes.insert(0, f"{model} on {task} is not in the paper, whose figure is RoBERTa-large on RTE.")
        if head is None and mine:
            notes.append("No run of the head alone on RTE is here, so that no gain of ours can be computed (paper=figure4).")
        if (model, task) == (LARGE, RTE) and not mine:
            notes.append("Nothing has run here: paper=figure4 runs it.")
        for row, cell in sorted(mine.items(), key=lambda item: item[1].parameters):
            if head is None or not head.median():
                continue
            gain = 100 * cell.median() / head.median() / (cell.parameters / 1000)
            if math.isfinite(gain):
                ours[row] = (cell.label, gain, cell.complete and head.complete)
            numbers = [str(cell.parameters), f"{cell.median():.1f}", f"{head.median():.1f}", f"{gain:.4g}"]
            rows.append(make_row(cell.label, "ours", *_numbers(numbers, ids([*cell.records, *head.records]))))
        records = (record for cell in mine.values() for record in cell.records)
        title = f"Figure 4: gain per 1K trainable parameters on {GLUE[task]}, {_name(model, records)}"
        header = ["method", "source", "parameters", "accuracy", "head", "gain", "runs"]
        draw = partial(_draw_gains, ours, quoted, title)
        figures.append(Figure(f"figure4{_suffix(model, task)}", title, header, rows, notes, draw))
    return figures


def _printed_gains() -> dict[str, tuple[str, float, float, int]]:
    """By row: name, table 2's accuracy on RTE, the printed gain, and the exact count."""
    counts = {"adapter_p_3m": 3171840, "adapter_p_800k": 811392, "adapter_h_6m": 6343680, "adapter_h_800k": 835968}
    counts |= {"lora": 786432, "vera": 61440}
    printed = {ROWS.get((m, size), m): (m, size, values[4][0]) for m, size, *values in _table2_large()}
    gains = paper()["figure4"]["printed"]
    found = {}
    for row, count in counts.items():
        method, size, accuracy = printed[row]
        name = NAMES[method] if method in ("lora", "vera") else f"{NAMES[method]} {size}"
        found[row] = (name, float(accuracy), float(gains[method if method in gains else f"{method}_{size}"]), count)
    return found


def _table2_large() -> list[list[Any]]:
    return [row for row in paper()["table2"]["roberta-large"] if isinstance(row[6], list)]


def _draw_gains(
    ours: dict[str, tuple[str, float, bool]], quoted: dict[str, tuple[str, float]], title: str, canvas: Canvas
) -> None:
    axes = canvas.subplots()
    order = [*quoted, *(row for row in ours if row not in quoted)]
    wide = 0.38 if ours and quoted else 0.6
    for i, row in enumerate(order):
        bars: list[tuple[float, float, dict[str, Any]]] = []
        if row in quoted:
            bars.append((-wide / 2 if row in ours else 0, quoted[row][1], {"facecolor": "white", "hatch": "////"}))
        if row in ours:
            look = {"facecolor": colour(row) if ours[row][2] else "white"}
            bars.append((wide / 2 if row in quoted else 0, ours[row][1], look))
        for shift, value, style in bars:
            axes.bar(i + shift, value, wide * 0.92, edgecolor=colour(row), linewidth=0.8, **style)
            place = (i + shift, value)
            told = f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
            axes.annotate(told, place, (0, 2), textcoords="offset points", ha="center", fontsize=6)
    names = [quoted[row][0] if row in quoted else ours[row][0] for row in order]
    axes.set_xticks(range(len(order)), names, rotation=20 if len(order) > 5 else 0, ha="right" if len(order) > 5 else "center")
    axes.grid(visible=False, axis="x")
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_ylabel("gain per 1K parameters, % (log)")
    axes.set_title(title)
    fewer = "" if all(whole for *_, whole in ours.values()) else " (hollow: fewer seeds)"
    keys = [Patch(facecolor="white", hatch="////", edgecolor="#555555", label="paper (quoted)")] if quoted else []
    axes.legend(handles=[*keys, *([Patch(facecolor="#555555", label=f"ours{fewer}")] if ours else [])], loc="upper left")


# --- figure 5

PAIRS = {"lora_vera": "LoRA and VeRA", "lora_random": "LoRA and random", "vera_random": "VeRA and random"}


def figure5(ledger: Ledger) -> list[Figure]:
    """Cosine of weight differences by layer: LoRA against VeRA, and each against random (VeRA paper, appendix D)."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for measure in _measures(ledger, "similarity"):
        groups[measure["of"][0]["cell"]["model"], measure["of"][0]["cell"]["task"]].append(measure)
    printed = {key: float(value) for key, value in paper()["figure5"]["printed"].items()}
    header = ["pair", "source", "site", "layer", "median", "low", "high", "n", "runs"]
    quoted = [
        make_row("LoRA and VeRA", "paper (quoted)", "query", "mean", f"{printed['mean_lora_vera']:.1e}", "", "", "", ""),
        make_row("LoRA and random", "paper (quoted)", "query", "mean", f"{printed['mean_lora_random']:.1e}", "", "", "", ""),
    ]
    figures = []
    for model, task in _paper_first(groups):
        measures, notes = _one_each(groups.get((model, task), []), ledger)
        points: dict[tuple[str, str, int], list[tuple[Any, list[str]]]] = defaultdict(list)
        for measure in measures:
            values, of = measure["values"], ids(measure["of"])
            for i, (layer, site) in enumerate(zip(values["layer"], values["site"], strict=True)):
                for pair in PAIRS:
                    points[pair, site, layer].append((values[pair][i], of))
        rows, lines = [], defaultdict[str, list[tuple[int, float, float, float]]](list)
        sites = {site for _, site, _ in points}
        for (pair, site, layer), found in sorted(points.items()):
            numbers = _finite(value for value, _ in found)
            if len(numbers) < len(found):
                lost = f"{len(found) - len(numbers)} of {len(found)}"
                notes.append(f"{PAIRS[pair]}, layer {layer}, {site}: {lost} have no cosine (a change that is zero).")
            middle = [statistics.median(numbers), min(numbers), max(numbers)] if numbers else []
            shown = [f"{v:.3e}" for v in middle] or ["-"] * 3
            runs = (name for _, of in found for name in of)
            rows.append(make_row(PAIRS[pair], "ours", site, str(layer), *_numbers([*shown, str(len(numbers))], runs)))
            if middle and (site == "query" or "query" not in sites):
                lines[pair].append((layer, middle[0], middle[1], middle[2]))
        means = {pair: statistics.fmean(line[1] for line in lines[pair]) for pair in lines}
        notes += [f"{PAIRS[pair]}: mean over layers of what is drawn {mean:.1e}." for pair, mean in means.items()]
        known = (ledger.records[run["id"]] for m in measures for run in m["of"] if run["id"] in ledger.records)
        if labels := sorted({label_of(record) for record in known}):
            notes.append(f"The runs are {' and '.join(labels)}.")
        if not measures:
            notes.append("Nothing measured: python -m runs paper=figure5, then python -m runs.measure similarity.")
        if (model, task) == (LARGE, RTE):
            rows += quoted
            notes.append("The paper prints two means, over the query matrices at rank 64 (quoted); it gives no value by layer.")
            notes.append(f"The paper's finding: {paper()['figure5']['finding']}.")
        else:
            notes.insert(0, f"{model} on {task} is not in the paper: no comparison with its means.")
        label = measures[0]["of"][0]["label"] if measures else {"model": "RoBERTa-large", "task": "RTE"}
        title = f"Figure 5: cosine of weight differences, {label['model']} on {label['task']}"
        where = "query matrices" if "query" in sites or not sites else "all adapted matrices"
        means_ = printed if (model, task) == (LARGE, RTE) else {}
        draw = partial(_draw_cosines, dict(lines), means_, title, len(measures), where)
        figures.append(Figure(f"figure5{_suffix(model, task)}", title, header, rows, notes, draw))
    return figures


def _draw_cosines(
    lines: dict[str, list[tuple[int, float, float, float]]],
    printed: dict[str, float],
    title: str,
    measured: int,
    where: str,
    canvas: Canvas,
) -> None:
    axes = canvas.subplots()
    looks = {"lora_vera": (COLOURS["vera"], "-", "D"), "lora_random": (COLOURS["lora"], "--", "o")}
    looks |= {"vera_random": (COLOURS["random"], ":", "^")}
    for pair, (tint, dash, marker) in looks.items():
        if pair in lines:
            layers, middle, low, high = zip(*sorted(lines[pair]), strict=True)
            axes.fill_between(layers, low, high, color=tint, alpha=0.15, linewidth=0)
            axes.plot(layers, middle, dash, marker=marker, markersize=4, color=tint, label=PAIRS[pair])
    for key, value in printed.items():
        tint, _, _ = looks[key.removeprefix("mean_")]
        label = f"{PAIRS[key.removeprefix('mean_')]}, paper's mean (quoted)"
        axes.axhline(value, color=tint, linestyle=(0, (1, 2)), linewidth=1, label=label)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("cosine")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    if not lines:
        axes.set_xticks([])  # the paper's two means, and no layers
    pairs = f"median of {measured} pairs of runs, {where}" if measured > 1 else where
    axes.set_title(f"{title}\n{pairs}")
    if lines or printed:
        axes.legend()


# --- figure 6


def figure6(ledger: Ledger) -> list[Figure]:
    """Mean squared error of fitting random matrices against parameters, LoRA and VeRA (VeRA paper, appendix E)."""
    measures = [m for m in ledger.measures.values() if m["kind"] == "matrix_fit"]
    rows: list[list[TableCell]] = []
    lines: dict[str, list[tuple[int, float, float, float]]] = defaultdict(list)
    notes: list[str] = []
    title, settings = "Figure 6: fitting random 10 x 10 matrices", None
    if measures:
        # Of several, the one with the lowest seed; each is whole in itself.
        chosen = min(measures, key=lambda m: (m["seeds"]["random"], m["id"]))
        settings, values = chosen["settings"], chosen["values"]
        title = f"Figure 6: fitting random {settings['size']} x {settings['size']} matrices"
        for method, rank, count, errors, best in zip(*values.values(), strict=True):
            finite = _finite(errors)
            if len(finite) < len(errors):
                lost = f"{len(errors) - len(finite)} of {len(errors)}"
                notes.append(f"{NAMES[method]} at rank {rank}: {lost} errors are not finite.")
            if not finite:
                continue
            mean, spread = statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else 0.0
            least = f"{statistics.fmean(best):.3e}" if best else ""
            numbers = _numbers([str(count), f"{mean:.3e}", f"{spread:.3e}", least], [chosen["id"]])
            rows.append(make_row(NAMES[method], str(rank), *numbers))
            lines[method].append((count, mean, min(finite), max(finite)))
        keys = ("matrices", "target", "steps", "lr", "optimizer")
        notes.append("Settings (this project's choice): " + ", ".join(f"{key} {settings[key]}" for key in keys) + ".")
        notes.append("least: of any matrix of that rank, by singular values; LoRA's fit has converged where it is the same.")
        if len(measures) > 1:
            notes.append(f"{len(measures) - 1} other fits are left out: measure {chosen['id']} is shown.")
    else:
        notes.append("Nothing measured: python -m runs.measure matrix_fit takes ten seconds.")
    notes += ["The paper prints no numbers of this figure.", f"The paper's finding: {paper()['figure6']['finding']}."]
    header = ["method", "rank", "parameters", "mse mean", "mse spread", "least", "runs"]
    return [Figure("figure6", title, header, rows, notes, partial(_draw_fit, dict(lines), title, settings or {}))]


def _draw_fit(
    lines: dict[str, list[tuple[int, float, float, float]]], title: str, settings: dict[str, Any], canvas: Canvas
) -> None:
    axes = canvas.subplots()
    for method in (method for method in ("lora", "vera") if method in lines):
        counts, mean, low, high = zip(*sorted(lines[method]), strict=True)
        axes.fill_between(counts, low, high, color=colour(method), alpha=0.15, linewidth=0)
        dash = "--" if method == "lora" else "-"
        axes.plot(counts, mean, dash, marker=MARKERS[method], markersize=4, color=colour(method), label=NAMES[method])
    if "lora" in lines:
        least = min(count for count, *_ in lines["lora"])
        axes.axvline(least, color="#555555", linestyle=":", linewidth=0.8)
        at: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate("LoRA, rank 1", (least, 1), (4, -2), va="top", **at)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("mean squared error")
    axes.set_ylim(bottom=-0.02)
    axes.set_title(f"{title}\nmean of {settings['matrices']} matrices, bands from the lowest to the highest")
    axes.legend()


# --- the metric against trainable parameters


def demo(ledger: Ledger) -> list[Figure]:
    """The demo's: one picture a model; bars span the seeds."""
    found = cells([r for r in ledger if r["cell"]["task"] == "reviews"], wanted=3)
    figures = _by_parameters(found, "accuracy_vs_parameters", "minilm")
    if not figures:
        why = ["Nothing has run: make demo."]
        title = "The demo: dev metric by parameters"
        figures = [Figure("accuracy_vs_parameters", title, [], [], why, _empty, (7, 4))]
    return figures


def parameters(ledger: Ledger) -> list[Figure]:
    """The same of the tasks of tables 2 and 5, a picture for each model and task: table 2's rows, without other ranks and
    ablations."""
    known = [r for r in ledger if r["cell"]["task"] in GLUE or r["config"]["task"].get("family") == "images"]
    found = cells([r for r in known if not r["cell"]["row"].startswith(("vera_", "lora_"))], wanted=5)
    return [
        figure
        for task in sorted({key[2] for key in found})
        for figure in _by_parameters({key: cell for key, cell in found.items() if key[2] == task}, f"parameters_{task}")
    ]


def _by_parameters(found: dict[Key, Cell], name: str, usual: str = "") -> list[Figure]:
    """A picture for each model, of one task's cells. usual: the model that the name needs no word for."""
    header = ["method", "parameters", "median", "low", "high", "seeds", "runs"]
    figures = []
    for model in sorted({key[0] for key in found}):
        mine = {key[1]: cell for key, cell in found.items() if key[0] == model}
        images = next(iter(mine.values())).records[0]["config"]["task"].get("family") == "images"
        which = "last" if images else "best"
        rows = []
        for _, cell in sorted(mine.items(), key=lambda item: item[1].parameters):
            rows.append(make_row(cell.label, *_numbers([str(cell.parameters), *_middle(cell, which)], ids(cell.records))))
        label = next(iter(mine.values())).records[0]["label"]
        most = max(cell.seeds for cell in mine.values())
        seeds = f"median of {most} seeds, {which} epoch; lines span the seeds" if most > 1 else f"one seed, {which} epoch"
        title = f"{label['model']} on {label['task']}: {seeds}"
        draw = partial(_draw_parameters, _drawn(mine), title, which)
        whole = name if model == usual else f"{name}_{model}"
        figures.append(Figure(whole, title, header, rows, _seed_notes(mine), draw, (7, 4)))
    return figures


#: Counts of parameters that are so near each other, by their ratio, that labels above both would meet.
CLOSE = 1.5


def _draw_parameters(mine: dict[str, Cell], title: str, which: str, canvas: Canvas) -> None:
    axes = canvas.subplots()
    ordered = sorted(mine.items(), key=lambda item: item[1].parameters)
    counts = [cell.parameters for _, cell in ordered]
    for i, (row, cell) in enumerate(ordered):
        values, x = cell.values(which), cell.parameters
        axes.plot([x] * len(values), values, ".", color=colour(row), markersize=5, alpha=0.6)
        _point(axes, x, cell, row, which=which)
        # Above the seeds, in two short lines: neighbours on the axis are often equal in height. To the right of the point
        # where the one before has nearly the same count.
        beside = i > 0 and x < CLOSE * counts[i - 1]
        place, shift = ((x, cell.median(which)), (7, 0)) if beside else ((x, max(values)), (0, 7))
        look: Any = {"ha": "left", "va": "center"} if beside else {"ha": "center", "va": "bottom"}
        label = f"{cell.label}\n{cell.median(which):.1f}"
        axes.annotate(label, place, shift, textcoords="offset points", color=colour(row), fontsize=8, **look)
    axes.set_xscale("symlog", linthresh=1000, linscale=0.4)
    axes.set_xlim(left=-400)
    axes.margins(y=0.18)
    axes.set_xticks([0, 1e3, 1e4, 1e5, 1e6, 1e7], ["0", "1K", "10K", "100K", "1M", "10M"])
    axes.minorticks_off()
    metric = next((cell.records[0]["result"]["metric"] for cell in mine.values()), "metric")
    axes.set_xlabel("trainable parameters, without the classification head")
    axes.set_ylabel(f"dev {_metric(metric)}")
    axes.set_title(title)


FIGURES: dict[str, Callable[[Ledger], list[Figure]]] = {
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure6,
    "parameters": parameters,
    "demo": demo,
}


def make(name: str, ledger: Ledger) -> list[Figure]:
    """A figure's parts by its name, each with what of it is of published records."""
    made = FIGURES[name](ledger)
    for figure in made:
        figure.notes += published(ledger, (run for row in figure.rows for run in row[-1].text.split()))
    return made


def main(arguments: list[str]) -> int:
    parser = Parser("figures", __doc__, "the folder that holds records/; the files go to its NAME/")
    parser.add_argument("name", help=f"{', '.join(FIGURES)}, all")
    options = parser.read(arguments)
    if options.name not in (*FIGURES, "all"):
        print(f"error: no figure {options.name!r}. Known: {', '.join(FIGURES)}, all", file=sys.stderr)
        return 2
    ledger = open_ledger(options.output)
    drawn = 0
    for name in FIGURES if options.name == "all" else [options.name]:
        for figure in make(name, ledger):
            notes = [f"  {note}" for note in figure.notes]
            if figure.rows:
                paths = save(figure, Path(options.output) / name)
                png = next(str(path) for path in paths if path.suffix == ".png")
                print("\n".join([f"{figure.title}", *notes, f"Plot: {png} (.pdf, .csv beside it)"]))
                drawn += 1
            else:
                print("\n".join([f"{figure.title}: nothing to draw", *notes]), file=sys.stderr)
    if not drawn:
        print(
            f"error: no records of {options.name} in {options.output}/records yet (make help lists what runs them)",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    entry_point(main)
