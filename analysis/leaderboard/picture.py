"""Score over what a row costs, with both intervals."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures.figure import COUNT_FORMATTER, Figure
from analysis.figures.pareto import on_frontier
from analysis.leaderboard.board import Board
from runs.record.text import megabytes

#: The colours of the intervals of both questions, and of rows on the frontier.
RERUN_COLOUR = "#0072B2"
QUESTIONS_COLOUR = "#BBBBBB"
FRONTIER_COLOUR = "#D55E00"
#: Rows below this score, in points, are left out: they hardly learned the task.
LOWEST_SCORE = 20.0
#: Rows that are named wherever they stand, as most readers look for them.
NAMED = (
    "vera/llama-3.2-3B-default",
    "lora/llama-3.2-3B-rank32",
    "full-finetuning/llama-3.2-3B-lr_0.00001",
)
#: The smallest distance of two labels, in points of score.
LABEL_GAP = 1.0
#: How wide a label may be, as a share of the x axis.
LABEL_WIDTH = 0.3


class CostAxis(NamedTuple):
    """A column on the x axis, and how a tick is written."""

    column: str
    label: str
    tick: Callable[[float], str]


def short_count(value: float) -> str:
    """A count at an axis: 10k, 1M, 3.2B."""
    return str(COUNT_FORMATTER(value)).replace("G", "B")


#: The x axes of the pictures, by the names of their files.
COSTS = {
    "parameters": CostAxis("parameters", "trained parameters", short_count),
    "memory": CostAxis("memory_bytes", "peak memory", megabytes),
    "seconds": CostAxis("seconds", "training seconds", "{:,.0f}".format),
    "bytes": CostAxis("file_bytes", "adapter file", megabytes),
}


def pareto_figures(board: Board) -> list[Figure]:
    """Score by parameters, memory, seconds and size of the file."""
    return [score_figure(board, name) for name in COSTS]


def score_figure(board: Board, cost_name: str = "parameters") -> Figure:
    """The picture of a set: score with both intervals over one cost. cost_name: a key of
    COSTS."""
    cost = COSTS[cost_name]
    rows = board.rows[board.rows.score >= LOWEST_SCORE]
    rows = rows[rows[cost.column] > 0].reset_index(drop=True)
    # more is better on a frontier, so costs are negated
    rows["frontier"] = on_frontier([*-rows[cost.column]], [*rows.score])
    rows["runs"] = [()] * len(rows)  # a figure's data names runs of ours: here are none
    left_out = len(board.rows) - len(rows)
    foot = [
        "thick: 95% interval of a re-run with the same seed on the same questions; "
        "thin: of other questions of this kind",
        f"orange: no row is better and smaller at once; {left_out} rows below "
        f"{LOWEST_SCORE:.0f}% are not drawn",
    ]
    return Figure(
        name=f"leaderboard_{cost_name}",
        title=f"{board.label}: {board.decoding} answers, one seed",
        data=rows,
        notes=foot,
        draw=partial(draw_scores, cost=cost),
        foot=foot,
        size=(7.5, 4.6),
    )


def draw_scores(axes: Axes, rows: pd.DataFrame, cost: CostAxis) -> None:
    """Draws score over a cost, and names some rows (`label_rows`). rows: of a board, with
    `frontier`."""
    x = rows[cost.column].astype(float)
    axes.vlines(x, rows.low, rows.high, color=QUESTIONS_COLOUR, linewidth=0.8, zorder=1)
    low = rows.score - rows.rerun_half
    high = rows.score + rows.rerun_half
    rerun = axes.vlines(x, low, high, color=RERUN_COLOUR, linewidth=2.4, zorder=2)
    rerun.set_alpha(0.6)
    colours = rows.frontier.map({True: FRONTIER_COLOUR, False: RERUN_COLOUR})
    axes.scatter(x, rows.score, s=14, c=colours, zorder=3)
    axes.set_xscale("log")
    # The span is in powers of ten. The axis has more room on the left, where labels stand.
    span = max(float(np.log10(x.max() / x.min())), 0.1)
    axes.set_xlim(x.min() / 10 ** (0.35 * span), x.max() * 10 ** (0.05 * span))
    label_rows(axes, rows, cost)
    axes.set(xlabel=cost.label, ylabel="GSM8K, % of questions")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cost.tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if span < 1.5:
        # The powers of ten alone would be too few ticks.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))


def label_rows(axes: Axes, rows: pd.DataFrame, cost: CostAxis) -> None:
    """Names the rows on the frontier, and NAMED. A label stands to the left of its point
    and of the points that it would cover, and moves down until it is clear of the labels
    above it."""
    log_costs = np.log10(rows[cost.column].astype(float))
    label_width = LABEL_WIDTH * float(np.ptp(np.log10(axes.get_xlim())))
    labelled = rows[rows.frontier | rows.row.isin(NAMED)]
    placed = list[tuple[float, float]]()
    for index in labelled.score.sort_values(ascending=False).index:
        row = rows.loc[index]
        log_cost = float(log_costs[index])
        # points at about the same height, a short way to the left
        is_covered = (rows.score - row.score).abs() < 2 * LABEL_GAP
        is_covered &= log_costs.between(log_cost - 0.35 * label_width, log_cost)
        # the point itself is among them
        label_x = float(log_costs[is_covered].min()) - 0.08 * label_width
        label_y = float(row.score)
        for other_x, other_y in placed:
            overlaps = abs(label_x - other_x) < label_width
            if overlaps and abs(label_y - other_y) < LABEL_GAP:
                label_y = other_y - LABEL_GAP
        placed.append((label_x, label_y))
        colour = FRONTIER_COLOUR if row.frontier else RERUN_COLOUR
        point = (10**log_cost, float(row.score))
        line = {"arrowstyle": "-", "lw": 0.4, "color": colour}
        label = axes.annotate(
            short_name(str(row.row)), point, (10**label_x, label_y), arrowprops=line
        )
        label.set(ha="right", va="center", fontsize=6, color=colour, zorder=1.5)


def short_name(row: str) -> str:
    """An experiment's name without the model: "lora rank32" for
    lora/llama-3.2-3B-rank32, and "vera" for vera/llama-3.2-3B-default."""
    method, _, rest = row.partition("/")
    setting = rest.partition("B-")[2] or rest
    return method if setting == "default" else f"{method} {setting}"
