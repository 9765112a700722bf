"""The dev metric by trainable parameters: of the demo, and of the tasks of tables 2 and 5."""

import statistics
from collections.abc import Collection
from functools import partial
from typing import Any

from matplotlib.figure import Figure as Canvas

from analysis.beside import VERDICT_SEEDS
from analysis.cells import Cell, Key, by_rows, cells, is_of_demo
from analysis.figures.figure import Figure, colour, draw_nothing, is_varied, with_runs
from analysis.figures.pareto import CROWDED, of_cells
from analysis.figures.seeds import (
    draw_point,
    drawable,
    median_and_range,
    metric_label,
    parameters_label,
    seed_notes,
    values_of,
)
from analysis.paper import GLUE
from analysis.series import series
from analysis.table import make_row
from analysis.wanted import with_wanted
from runs.record import Ledger, Record


def demo(ledger: Ledger) -> list[Figure]:
    """The demo's: a picture for each model and number of rows; bars span the seeds."""
    sizes = by_rows(record for record in ledger if is_of_demo(record))
    figures, name = list[Figure](), "accuracy_vs_parameters"
    for size, records in sizes.items():
        # The demo's own size has the plain name, where there are others
        plain = len(sizes) == 1 or size == DEMO
        of_size = name if plain else f"{name}_{size[0]}_{size[1]}"
        by_key = with_wanted(cells(records, 3))
        figures += _by_parameters(by_key, of_size, "minilm", "" if len(sizes) == 1 else _size(records[0]))
    if not figures:
        title, why = "The demo: dev metric by parameters", ["Nothing has run: make demo."]
        return [Figure(name, title, [], [], why, draw_nothing, (7, 4))]
    return figures


#: The demo's numbers of training and dev rows (conf/task/reviews.yaml).
DEMO = (1000, 500)


def _size(record: Record) -> str:
    data = record["data"]
    return f", {data['train_rows']:,} training and {data['dev_rows']:,} dev rows"


def make(ledger: Ledger, tasks: Collection[str] = ()) -> list[Figure]:
    """The same of the tasks of tables 2 and 5, a picture for each model and task: table 2's rows, without
    other ranks and ablations. tasks: of these instead, whatever they are, there with every row."""

    def shown(record: Record) -> bool:
        cell, family = record["cell"], record["config"]["task"].get("family")
        if tasks:
            return cell["task"] in tasks
        return (cell["task"] in GLUE or family == "images") and not is_varied(cell["row"])

    by_key = with_wanted(cells(filter(shown, ledger), VERDICT_SEEDS))
    figures = []
    for task in sorted({key[2] for key in by_key}):
        of_task = {key: cell for key, cell in by_key.items() if key[2] == task}
        figures += _by_parameters(of_task, f"parameters_{task}")
    return figures


def _by_parameters(by_key: dict[Key, Cell], name: str, usual: str = "", size: str = "") -> list[Figure]:
    """A picture for each model, of one task's cells; of very many rows a picture for each of COSTS, with the
    frontier. usual: the model that the name needs no word for. size: the numbers of rows, for the title."""
    header = ["method", "parameters", "median", "low", "high", "seeds", "runs"]
    figures = []
    for model in sorted({key[0] for key in by_key}):
        by_row = {key[1]: cell for key, cell in by_key.items() if key[0] == model}
        whole = name if model == usual else f"{name}_{model}"
        if len(by_row) > CROWDED:
            of_model = list(by_row.values())
            figures += [of_cells(of_model, (x, "metric"), whole.replace("parameters", x)) for x in COSTS]
            continue
        rows = []
        for _, cell in sorted(by_row.items(), key=lambda item: item[1].parameters):
            numbers = with_runs([str(cell.parameters), *median_and_range(cell)], cell.ids)
            rows.append(make_row(cell.label, *numbers))
        first = next(iter(by_row.values()))
        label, number = first.records[0]["label"], series(first)
        epoch = number.name.partition(", ")[2]
        seeds = sorted({cell.seeds for cell in by_row.values()})
        over = f"median of {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds"
        over, span = (over, "; lines span the seeds") if seeds[-1] > 1 else ("one seed", "")
        title = f"{label['model']} on {label['task']}{size}: {over}, {epoch}{span}"
        draw = partial(_draw_parameters, drawable(by_row), title)
        figures.append(Figure(whole, title, header, rows, seed_notes(by_row), draw, (7, 4)))
    return figures


#: The axes of the pictures of very many rows.
COSTS = ("parameters", "bytes", "seconds", "memory")
#: Counts of parameters that are so near each other, by their ratio, that labels above both would meet.
CLOSE = 1.5


def _draw_parameters(by_row: dict[str, Cell], title: str, canvas: Canvas) -> None:
    axes = canvas.subplots()
    ordered = sorted(by_row.items(), key=lambda item: item[1].parameters)
    counts = [cell.parameters for _, cell in ordered]
    for i, (row, cell) in enumerate(ordered):
        values, x, tint = values_of(cell), cell.parameters, colour(row, cell.kind)
        middle = statistics.median(values)
        look_: Any = {"color": tint, "markersize": 5, "alpha": 0.6, "label": cell.label}
        axes.plot([x] * len(values), values, ".", **look_)
        draw_point(axes, x, cell, row, cell.label)
        # Above the seeds, in two short lines: neighbours on the axis are often equal in height. To the right
        # of the point where the one before has nearly the same count.
        beside = i > 0 and x < CLOSE * counts[i - 1]
        place, shift = ((x, middle), (7, 0)) if beside else ((x, max(values)), (0, 7))
        look: Any = {"ha": "left", "va": "center"} if beside else {"ha": "center", "va": "bottom"}
        label = f"{cell.label}\n{middle:.{series(cell).decimals}f}"
        axes.annotate(label, place, shift, textcoords="offset points", color=tint, fontsize=8, **look)
    axes.set_xscale("symlog", linthresh=1000, linscale=0.4)
    axes.set_xlim(left=-400)
    axes.margins(y=0.18)
    axes.set_xticks([0, 1e3, 1e4, 1e5, 1e6, 1e7], ["0", "1K", "10K", "100K", "1M", "10M"])
    axes.minorticks_off()
    axes.set_xlabel(parameters_label(by_row.values()))
    if ordered:
        number = series(ordered[0][1])
        name = number.name.partition(",")[0]
        of_dev = "" if name == "BLEU" else "dev "  # texts are those of the test set
        axes.set_ylabel(f"{of_dev}{metric_label(name, number.decimals)}")
    axes.set_title(title)
