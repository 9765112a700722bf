"""Score over what a row costs, with both intervals."""

from functools import partial
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from analysis.figures.figure import PARAMETERS, Figure
from analysis.figures.pareto import on_frontier
from analysis.leaderboard.board import Board
from runs.record import megabytes

#: Colours of the two questions, and of rows on the frontier.
RERUN, QUESTIONS, FRONTIER = "#0072B2", "#BBBBBB", "#D55E00"
#: Rows below this score, in points, are left out: their answers are mostly not parsed.
LEAST_SCORE = 20.0


class Cost(NamedTuple):
    """A column on the x axis."""

    column: str
    label: str
    ticks: FuncFormatter | None = None


COSTS = {
    "parameters": Cost("parameters", "trained parameters", PARAMETERS),
    "memory": Cost(
        "memory_bytes",
        "peak memory",
        FuncFormatter(lambda value, _: megabytes(value)),
    ),
    "seconds": Cost("seconds", "training seconds"),
    "bytes": Cost(
        "file_bytes", "adapter file", FuncFormatter(lambda value, _: megabytes(value))
    ),
}


def pareto_figures(board: Board) -> list[Figure]:
    """Score by parameters, memory, seconds and size of the file."""
    return [score_figure(board, name) for name in COSTS]


def score_figure(board: Board, by: str = "parameters") -> Figure:
    """The picture of a set: score with both intervals over one cost."""
    cost = COSTS[by]
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
        name=f"leaderboard_{by}",
        title=f"{board.name}: {board.decoding} answers, one seed",
        data=rows,
        notes=foot,
        draw=partial(draw_scores, cost=cost),
        foot=foot,
        size=(7.5, 4.6),
    )


def draw_scores(axes: Axes, rows: pd.DataFrame, cost: Cost) -> None:
    """Draws score over a cost, with names for the rows on the frontier."""
    x = rows[cost.column].astype(float)
    axes.vlines(x, rows.low, rows.high, color=QUESTIONS, linewidth=0.8, zorder=1)
    axes.vlines(
        x,
        rows.score - rows.rerun_half,
        rows.score + rows.rerun_half,
        color=RERUN,
        alpha=0.6,
        linewidth=2.4,
        zorder=2,
    )
    colours = rows.frontier.map({True: FRONTIER, False: RERUN})
    axes.scatter(x, rows.score, s=14, c=colours, zorder=3)
    for row in rows[rows.frontier].to_dict("records"):
        axes.annotate(
            short_name(str(row["row"])),
            (float(row[cost.column]), row["score"]),
            xytext=(-3, 4),
            textcoords="offset points",
            ha="right",
            fontsize=6,
            color=FRONTIER,
        )
    axes.set_xscale("log")
    axes.set(xlabel=cost.label, ylabel="GSM8K, % of questions")
    if cost.ticks is not None:
        axes.xaxis.set_major_formatter(cost.ticks)


def short_name(row: str) -> str:
    """An experiment's name without the model: lora rank32 of lora/llama-3.2-3B-rank32."""
    method, _, rest = row.partition("/")
    setting = rest.partition("B-")[2] or rest
    return method if setting == "default" else f"{method} {setting}"
