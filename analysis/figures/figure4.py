"""Figure 4: the performance gain for each 1,000 parameters over the head alone."""

import math
from functools import partial
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.cells import cells
from analysis.figures.figure import (
    LARGE,
    RTE,
    Figure,
    colour,
    is_varied,
    model_name,
    not_in_the_paper,
    paper_first,
    printed_rte,
    suffix,
    with_runs,
)
from analysis.figures.seeds import seed_notes
from analysis.paper import GLUE, NAMES, paper
from analysis.table import make_row
from runs.record import FINISHED, Ledger

GAIN = (
    "Gain, by the paper's formula: 100 x accuracy / accuracy of the head alone / thousands of parameters. A"
    " method that is no better than the head alone has 100 / thousands of parameters: the count weighs more"
    " than the accuracy."
)


def make(ledger: Ledger) -> list[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix B): on RTE, and for
    each model and task whose metric is accuracy and that has runs of the head."""
    of_glue = (r for r in ledger if r["cell"]["task"] in GLUE and r["status"] in FINISHED)
    by_key = cells((r for r in of_glue if r["result"]["metric"] == "accuracy"), wanted=5)
    figures = []
    for model, task in paper_first((key[0], key[2]) for key in by_key if key[1] == "head"):
        by_row = {key[1]: cell for key, cell in by_key.items() if (key[0], key[2]) == (model, task)}
        head = by_row.pop("head", None)
        # Table 2's rows; ranks and ablations have figures and tables of their own.
        by_row = {row: cell for row, cell in by_row.items() if cell.parameters and not is_varied(row)}
        rows, ours, quoted = [], {}, {}
        notes = [GAIN, *seed_notes({**by_row, **({"head": head} if head else {})})]
        if (model, task) == (LARGE, RTE):
            for row, (name, accuracy, value, parameters) in _printed_gains().items():
                quoted[row] = (name, value)
                implied = 100 * accuracy / value / (parameters / 1000)
                numbers = [str(parameters), f"{accuracy:.1f}", f"{implied:.1f}", f"{value:.2f}"]
                rows.append(make_row(name, "paper (quoted)", *numbers, ""))
            notes.append(
                "head, of the paper's: the head-only accuracy that follows from a printed value and table 2's"
                " accuracy. The printed values do not follow from one such accuracy."
            )
        else:
            notes.insert(0, not_in_the_paper(model, task))
        if head is None and by_row:
            notes.append(
                "No run of the head alone on RTE is here, so that no gain of ours can be computed"
                " (experiment=figure4)."
            )
        if (model, task) == (LARGE, RTE) and not by_row:
            notes.append("Nothing has run here: experiment=figure4 runs it.")
        for row, cell in sorted(by_row.items(), key=lambda item: item[1].parameters):
            if head is None or not head.median():
                continue
            gain = 100 * cell.median() / head.median() / (cell.parameters / 1000)
            if math.isfinite(gain):
                ours[row] = (cell.label, gain, cell.complete and head.complete)
            numbers = [str(cell.parameters), f"{cell.median():.1f}", f"{head.median():.1f}", f"{gain:.4g}"]
            rows.append(make_row(cell.label, "ours", *with_runs(numbers, [*cell.ids, *head.ids])))
        records = (record for cell in by_row.values() for record in cell.records)
        title = f"Figure 4: gain per 1K trainable parameters on {GLUE[task]}, {model_name(model, records)}"
        header = ["method", "source", "parameters", "accuracy", "head", "gain", "runs"]
        draw = partial(_draw_gains, ours, quoted, title)
        figures.append(Figure(f"figure4{suffix(model, task)}", title, header, rows, notes, draw))
    return figures


def _printed_gains() -> dict[str, tuple[str, float, float, int]]:
    """By row: name, table 2's accuracy on RTE, the printed gain, and the exact count."""
    gains = {}
    for row, gain in paper()["figure4"]["printed"].items():
        number, count = printed_rte()[row]
        name = number.method if row in NAMES else f"{number.method} {number.size}"
        gains[row] = (name, number.value, float(gain), count)
    return gains


def _draw_gains(
    ours: dict[str, tuple[str, float, bool]], quoted: dict[str, tuple[str, float]], title: str, canvas: Canvas
) -> None:
    axes = canvas.subplots()
    order = list(dict.fromkeys([*quoted, *ours]))
    wide = 0.38 if ours and quoted else 0.6
    for i, row in enumerate(order):
        bars: list[tuple[float, float, dict[str, Any]]] = []
        if row in quoted:
            shift = -wide / 2 if row in ours else 0
            bars.append((shift, quoted[row][1], {"facecolor": "white", "hatch": "////"}))
        if row in ours:
            shift = wide / 2 if row in quoted else 0
            bars.append((shift, ours[row][1], {"facecolor": colour(row) if ours[row][2] else "white"}))
        for shift, value, style in bars:
            axes.bar(i + shift, value, wide * 0.92, edgecolor=colour(row), linewidth=0.8, **style)
            text, top = f"{value:.2g}" if value < 0.1 else f"{value:.2f}", (i + shift, value)
            axes.annotate(text, top, (0, 2), textcoords="offset points", ha="center", fontsize=6)
    names = [quoted[row][0] if row in quoted else ours[row][0] for row in order]
    many = len(order) > 5
    axes.set_xticks(range(len(order)), names, rotation=20 * many, ha="right" if many else "center")
    axes.grid(visible=False, axis="x")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.15)
    axes.set_ylabel("gain per 1K parameters, % (log)")
    axes.set_title(title)
    patches = []
    if quoted:
        patches.append(Patch(facecolor="white", hatch="////", edgecolor="#555555", label="paper (quoted)"))
    if ours:
        fewer = "" if all(whole for *_, whole in ours.values()) else " (hollow: fewer seeds)"
        patches.append(Patch(facecolor="#555555", label=f"ours{fewer}"))
    axes.legend(handles=patches, loc="upper left")
