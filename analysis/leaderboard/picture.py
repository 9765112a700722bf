"""Score over what a row costs, with both intervals."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures.figure import PARAMETERS, Figure
from analysis.figures.pareto import on_frontier
from analysis.leaderboard.board import Board
from runs.record.text import megabytes

#: Colours of the two questions, and of rows on the frontier.
RERUN, QUESTIONS, FRONTIER = "#0072B2", "#BBBBBB", "#D55E00"
#: Rows below this score, in points, are left out: they hardly learned the task.
LEAST_SCORE = 20.0
#: Rows that are named wherever they stand, as most readers look for them.
NAMED = (
    "vera/llama-3.2-3B-default",
    "lora/llama-3.2-3B-rank32",
    "full-finetuning/llama-3.2-3B-lr_0.00001",
)
#: Distance of two labels, in points of score, and the room that a label takes to the
#: left, as a share of a wide axis.
LABEL_GAP, LABEL_ROOM = 1.0, 0.3


class CostAxis(NamedTuple):
    """A column on the x axis, and how a tick is written."""

    column: str
    label: str
    tick: Callable[[float], str]


def short_count(value: float) -> str:
    """A count at an axis: 10k, 1M, 3.2B."""
    return str(PARAMETERS(value)).replace("G", "B")


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
    """The picture of a set: score with both intervals over one cost."""
    cost = COSTS[cost_name]
    rows = board.rows[board.rows.score >= LEAST_SCORE]
    rows = rows[rows[cost.column] > 0].reset_index(drop=True)
    rows["frontier"] = on_frontier([*-rows[cost.column]], [*rows.score])
    rows["runs"] = [()] * len(rows)
    left_out = len(board.rows) - len(rows)
    foot = [
        "thick: 95% interval of a re-run with the same seed on the same questions; "
        "thin: of other questions of this kind",
        f"orange: no row is better and smaller at once; {left_out} rows below "
        f"{LEAST_SCORE:.0f}% are not drawn",
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
    """Draws score over a cost, with names for the rows on the frontier."""
    x = rows[cost.column].astype(float)
    axes.vlines(x, rows.low, rows.high, color=QUESTIONS, linewidth=0.8, zorder=1)
    low = rows.score - rows.rerun_half
    high = rows.score + rows.rerun_half
    rerun = axes.vlines(x, low, high, color=RERUN, linewidth=2.4, zorder=2)
    rerun.set_alpha(0.6)
    colours = rows.frontier.map({True: FRONTIER, False: RERUN})
    axes.scatter(x, rows.score, s=14, c=colours, zorder=3)
    axes.set_xscale("log")
    span = max(float(np.log10(x.max() / x.min())), 0.1)
    axes.set_xlim(x.min() / 10 ** (0.35 * span), x.max() * 10 ** (0.05 * span))
    label_rows(axes, rows, cost)
    axes.set(xlabel=cost.label, ylabel="GSM8K, % of questions")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cost.tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if span < 1.5:  # less than two powers of ten
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))


def label_rows(axes: Axes, rows: pd.DataFrame, cost: CostAxis) -> None:
    """Names the rows on the frontier, and NAMED, to the left of all points at their
    height. A label moves down until it is clear of those above it."""
    log_costs = np.log10(rows[cost.column].astype(float))
    label_width = LABEL_ROOM * float(np.ptp(np.log10(axes.get_xlim())))
    labelled = rows[rows.frontier | rows.row.isin(NAMED)]
    placed = list[tuple[float, float]]()
    for index in labelled.score.sort_values(ascending=False).index:
        row = rows.loc[index]
        log_cost = float(log_costs[index])
        in_the_way = (rows.score - row.score).abs() < 2 * LABEL_GAP
        in_the_way &= log_costs.between(log_cost - 0.35 * label_width, log_cost)
        label_x = float(log_costs[in_the_way].min()) - 0.08 * label_width
        label_y = float(row.score)
        for other_x, other_y in placed:
            overlaps = abs(label_x - other_x) < label_width
            if overlaps and abs(label_y - other_y) < LABEL_GAP:
                label_y = other_y - LABEL_GAP
        placed.append((label_x, label_y))
        colour = FRONTIER if row.frontier else RERUN
        point = (10**log_cost, float(row.score))
        line = {"arrowstyle": "-", "lw": 0.4, "color": colour}
        label = axes.annotate(
            short_name(str(row.row)), point, (10**label_x, label_y), arrowprops=line
        )
        label.set(ha="right", va="center", fontsize=6, color=colour, zorder=1.5)


def short_name(row: str) -> str:
    """An experiment's name without the model: lora rank32 of lora/llama-3.2-3B-rank32."""
    method, _, rest = row.partition("/")
    setting = rest.partition("B-")[2] or rest
    return method if setting == "default" else f"{method} {setting}"
