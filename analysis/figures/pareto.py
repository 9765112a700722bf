"""Two numbers of each row against each other, with the frontier: rows than which no other is better in
both."""

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.cells import Cell, run_seconds
from analysis.figures.figure import COLOURS, Figure, colour, draw_nothing, marker, parameter_count, with_runs
from analysis.figures.labels import Label, place_labels
from analysis.figures.seeds import metric_label, parameters_label
from analysis.forgetting import change, texts_of
from analysis.own import parts_of_data
from analysis.series import Series, series
from analysis.table import TableCell, make_row
from analysis.wanted import all_cells
from runs.record import Ledger, Record, median_interval
from runs.record.text import megabytes

Numbers = dict[int, float]


@dataclass(frozen=True)
class Axis:
    """What an axis shows: its label, the values of a cell by seed (a seed without one is left out), how they
    are printed, and how at the axis (None: as numbers). Less is better, except of most metrics. linear: also
    where values differ widely."""

    label: str
    values: Callable[[Cell], Numbers]
    form: str
    tick: Callable[[float, Any], str] | None = None
    linear: bool = False


def _of_records(value: Callable[[Record], float | None]) -> Callable[[Cell], Numbers]:
    """The values of a cell's records by seed, without those of diverged runs, which ended early."""

    def values(cell: Cell) -> Numbers:
        done = {r["cell"]["seed"]: value(r) for r in cell.records if r["status"] == "done"}
        return {seed: float(number) for seed, number in done.items() if number is not None}

    return values


def _parameters(cell: Cell) -> Numbers:
    return {record["cell"]["seed"]: float(record["parameters"]["adapter"]) for record in cell.records}


def _size(value: float, _: Any) -> str:
    return megabytes(value)


#: The axes by the names that x= and y= take. The labels of the first two, and the metric's direction and
#: decimals, are the records'.
AXES = {
    "metric": Axis("", lambda cell: series(cell).values, ""),
    "parameters": Axis("", _parameters, ".0f", parameter_count),
    "bytes": Axis("adapter file", _of_records(lambda r: r["cost"].get("adapter_bytes")), ".0f", _size),
    "seconds": Axis("seconds of a run: training, evaluation and decoding", _of_records(run_seconds), ".1f"),
    "memory": Axis("peak memory", _of_records(lambda r: r["cost"].get("peak_memory_bytes")), ".0f", _size),
    "forgetting": Axis("forgetting on a fixed text, nats a token", _of_records(change), ".4f", linear=True),
}
USUAL = ("parameters", "metric")
#: What depends on the machine.
OF_DEVICES = {"seconds", "memory"}
#: Values whose ratio is larger have a logarithmic axis.
WIDE = 10.0
#: Of more rows than these, labels stand at the frontier and at the paper's methods alone.
CROWDED = 25


@dataclass(frozen=True)
class Point:
    """A row's number on an axis: the median over its seeds and, of several, its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Collection[float]) -> "Point":
        """The median of these values, one at least."""
        middle = statistics.median(values)
        return cls(middle, *(median_interval(list(values)) or (middle, middle)))


@dataclass(frozen=True)
class Row:
    """A cell in the picture."""

    cell: Cell
    x: Point
    y: Point


def make(ledger: Ledger, tasks: Collection[str] = (), axes: tuple[str, str] = USUAL) -> list[Figure]:
    """A picture for each model and task. tasks: of these alone. axes: the names of x and y."""
    by_key = {key: cell for key, cell in all_cells(ledger).items() if not tasks or key[2] in tasks}
    if not by_key:
        why = ["Nothing has run: make demo."]
        return [Figure("pareto", f"{axes[1]} against {axes[0]}", [], [], why, draw_nothing)]
    pairs = sorted({(task, model) for model, _, task in by_key})
    return [
        of_cells(
            [by_key[key] for key in sorted(by_key) if (key[2], key[0]) == pair],
            axes,
            f"pareto_{axes[1]}_by_{axes[0]}_{'_'.join(pair)}",
        )
        for pair in pairs
    ]


def of_cells(cells: Sequence[Cell], names: tuple[str, str], file: str) -> Figure:
    """The picture of the cells of a model and task. names: of its axes. file: the name of the figure."""
    number = _common_number(cells)
    rows, notes = _rows(cells, names, number.name)
    better = (_sign(names[0], number), _sign(names[1], number))
    rows.sort(key=lambda row: (better[0] * -row.x.value, row.cell.label))
    best = frontier([(row.x.value, row.y.value) for row in rows], better)
    if devices := _devices(cells, names):
        notes.append(f"{devices}: seconds and memory of different machines do not compare.")
    notes += parts_of_data(record for cell in cells for record in cell.records)
    if "memory" in names and any(cell.records[0]["device"]["type"] == "cpu" for cell in cells):
        notes.append("memory on a CPU: the largest of the process, the libraries included.")
    if "forgetting" in names and len(texts_of(r for cell in cells for r in cell.records)) > 1:
        notes.append("forgetting was measured on several texts, which do not compare.")
    axes = (_axis(names[0], number, cells), _axis(names[1], number, cells))
    label = cells[0].records[0]["label"]
    words = [axes[i].label.partition(",")[0] if name == "metric" else name for i, name in enumerate(names)]
    title = f"{label['model']} on {label['task']}: {words[1]} against {words[0]}"
    header = ["method"]
    for name in names:
        shown = number.name if name == "metric" else name
        header += [shown, f"{shown} low", f"{shown} high"]
    header += ["seeds", "frontier", "runs"]
    lines = [_line(row, axes, i in best) for i, row in enumerate(rows)]
    if not lines:
        notes.insert(0, "no row has both numbers.")
    if len(rows) > CROWDED:
        notes.append("Labels: the frontier, and the methods of the paper. Every row is in the data.")
    draw = partial(_draw, rows, best, axes, better, title)
    return Figure(file, title, header, lines, notes, draw, (7, 6.4 if len(rows) > CROWDED else 4.4))


def _common_number(cells: Sequence[Cell]) -> Series:
    """The number that most of the cells report: of texts, a run that diverged before them has another."""
    reported = [series(cell) for cell in cells]
    names = [of.name for of in reported]
    return max(reported, key=lambda of: (names.count(of.name), of.name))


def _rows(cells: Sequence[Cell], names: tuple[str, str], number: str) -> tuple[list[Row], list[str]]:
    """The rows that have both numbers, and notes on the others and on what cells() left out."""
    rows, notes = list[Row](), list[str]()
    for cell in cells:
        if "metric" in names and series(cell).name != number:
            notes.append(f"{cell.label}: reports {series(cell).name}, and the others {number}: not drawn.")
            continue
        points = []
        for name in names:
            values = AXES[name].values(cell)
            finite = {seed: value for seed, value in values.items() if math.isfinite(value)}
            if len(finite) < cell.seeds:
                without = f"{cell.seeds - len(finite)} of {cell.seeds} runs"
                drawn = "left out" if finite else "not drawn"
                notes.append(f"{cell.label}: {without} without a finite {name}: {drawn}.")
            points += [Point.of(finite.values())] if finite else []
        if len(points) == 2:
            rows.append(Row(cell, *points))
        if cell.left_out:
            notes.append(f"{cell.label}: {cell.left_out} records with other settings are left out.")
        notes += cell.problems
    fewer = [f"{row.cell.label} ({row.cell.count})" for row in rows if row.cell.seeds < row.cell.wanted]
    if fewer:
        notes.insert(0, f"hollow, of fewer seeds than the protocol's: {', '.join(fewer)}.")
    return rows, notes


def _devices(cells: Sequence[Cell], names: tuple[str, str]) -> str:
    """The machines of these cells in words, where an axis depends on them and there are several."""
    devices = sorted({str(r["device"]["name"]) for cell in cells for r in cell.records})
    return ", ".join(devices) if len(devices) > 1 and OF_DEVICES & {*names} else ""


def _sign(name: str, number: Series) -> int:
    """1 where more is better on this axis, -1 where less is."""
    return 1 if name == "metric" and not number.less else -1


def _axis(name: str, number: Series, cells: Sequence[Cell]) -> Axis:
    """The axis of this name; the metric's has the words of the number that the rows report."""
    axis = AXES[name]
    if name == "parameters":
        return replace(axis, label=parameters_label(cells))
    if name != "metric":
        return axis
    metric, comma, epoch = number.name.partition(", ")
    words = metric_label(metric, number.decimals)
    return Axis(f"{words}{comma}{epoch}", axis.values, f".{number.decimals}f", linear=not number.less)


def _line(row: Row, axes: tuple[Axis, Axis], best: bool) -> list[TableCell]:
    """A row of the data."""
    points = zip((row.x, row.y), axes, strict=True)
    numbers = [f"{value:{axis.form}}" for p, axis in points for value in (p.value, p.low, p.high)]
    texts = [*numbers, row.cell.count, "yes" if best else "no"]
    return make_row(row.cell.label, *with_runs(texts, row.cell.ids))


# --- the frontier


def frontier(points: Sequence[tuple[float, float]], better: tuple[int, int]) -> list[int]:
    """Indices of the points than which no other is better in one number and at least as good in the other,
    from the best in x to the best in y. better: for x and y 1 where more is better, -1 where less is."""
    scores = [(better[0] * x, better[1] * y) for x, y in points]
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i][0], -scores[i][1], i))
    kept = list[int]()
    for i in ranked:
        if not kept or scores[i][1] > scores[kept[-1]][1] or scores[i] == scores[kept[-1]]:
            kept.append(i)
    return kept


def steps(points: Sequence[tuple[float, float]], worst: tuple[float, float]) -> list[tuple[float, float]]:
    """The corners of the frontier's line, through its points from the best in x to the best in y: at an x it
    is at the best y that a row at least as good in x has. worst: where the line begins (y) and ends (x)."""
    corners = [(points[0][0], worst[1])]
    for x, y in points:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (worst[0], corners[-1][1])]


# --- drawing


def _draw(
    rows: Sequence[Row],
    best: Sequence[int],
    axes: tuple[Axis, Axis],
    better: tuple[int, int],
    title: str,
    canvas: Canvas,
) -> None:
    plot = canvas.subplots()
    for row in rows:
        tint, of = colour(_name(row), row.cell.kind), row.cell
        bar: Any = {"color": tint, "alpha": 0.6, "linewidth": 1}
        plot.plot([row.x.low, row.x.high], [row.y.value] * 2, **bar)
        plot.plot([row.x.value] * 2, [row.y.low, row.y.high], **bar)
        face = tint if of.seeds >= of.wanted else "white"
        look: Any = {"color": tint, "markerfacecolor": face, "zorder": 3, "linestyle": "none"}
        plot.plot(row.x.value, row.y.value, marker(_name(row), of.kind), label=of.label, **look)
    for which, axis in zip("xy", axes, strict=True):
        _scale(plot, which, [getattr(row, which).value for row in rows], axis)
    plot.margins(0.12)
    on = [(rows[i].x.value, rows[i].y.value) for i in best]
    ends = [plot.get_xlim(), plot.get_ylim()]
    corners = steps(on, (ends[0][better[0] < 0], ends[1][better[1] < 0]))
    plot.plot(*zip(*corners, strict=True), color="#555555", linewidth=0.9, linestyle="--", zorder=1)
    plot.set_xlim(ends[0])
    plot.set_ylim(ends[1])
    plot.set_xlabel(axes[0].label)
    plot.set_ylabel(axes[1].label)
    plot.set_title(f"{title}\n{_words(rows)}")
    labels = [
        Label(row.cell.label, row.x.value, row.y.value, colour(_name(row), row.cell.kind))
        for i, row in enumerate(rows)
        if len(rows) <= CROWDED or i in best or _name(row) in COLOURS
    ]
    bars = [((r.x.low, r.y.value), (r.x.high, r.y.value)) for r in rows]
    bars += [((r.x.value, r.y.low), (r.x.value, r.y.high)) for r in rows]
    place_labels(canvas, plot, labels, [*bars, *pairwise(corners)])


def _name(row: Row) -> str:
    return str(row.cell.records[0]["cell"]["row"])


def _words(rows: Sequence[Row]) -> str:
    """How many seeds, and what the lines are."""
    counts, line = sorted({row.cell.seeds for row in rows}), "dashed: the frontier"
    if counts == [1]:
        return f"one seed; {line}"
    of = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    # Of five seeds or fewer the interval is their range (analysis/stats.py)
    bars = "95% interval of the median" if counts[-1] > 5 else "lowest to highest"
    return f"median of {of} seeds; bars: {bars}; {line}"


def _scale(plot: Any, which: str, values: Sequence[float], axis: Axis) -> None:
    """A logarithmic axis where positive values differ widely, with a linear piece for zeros."""
    positive, side = [value for value in values if value > 0], getattr(plot, f"{which}axis")
    tick = axis.tick or (lambda value, _: f"{value:g}")
    if not axis.linear and positive and min(values) >= 0 and max(positive) > WIDE * min(positive):
        if min(values) == 0:
            first, last = math.floor(math.log10(min(positive))), math.log10(max(positive))
            getattr(plot, f"set_{which}scale")("symlog", linthresh=10.0**first, linscale=0.4)
            decades = [10.0**power for power in range(first, math.floor(last) + 1)]
            side.set_major_locator(FixedLocator([0.0, *decades]))
        else:
            getattr(plot, f"set_{which}scale")("log")
            several = max(positive) > 1000 * min(positive)
            side.set_major_locator(LogLocator(subs=(1.0,) if several else (1.0, 2.0, 5.0)))
        side.set_major_formatter(FuncFormatter(tick))
        side.set_minor_locator(NullLocator())
    elif axis.tick:
        side.set_major_formatter(FuncFormatter(tick))
