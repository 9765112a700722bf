"""How a picture of two numbers of each row is drawn: its points, bars, frontier and
axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

from analysis.figures.figure import look

#: With more rows than this the legend names only the frontier, and the rows that the
#: reader asks for.
CROWDED = 25
#: How the name of a row ends that was trained by demonstrations.
BY_DEMONSTRATIONS = "_by_demonstrations"
#: Where the numbers along an axis differ by more than this factor, it has a tick for
#: each power of ten only: more would overlap.
WIDE_RANGE = 10_000


class Axis(NamedTuple):
    """What an axis shows: a column of the runs, with its label and whether less is better.
    tick: makes the text of a number. name: of the column in the figure's data."""

    column: str
    label: str = ""
    tick: Callable[[float], str] = "{:.4g}".format
    lower_is_better: bool = True
    name: str = ""

    @property
    def low(self) -> str:
        """The column of the interval's lower end."""
        return f"{self.name} low"

    @property
    def high(self) -> str:
        """That of its upper end."""
        return f"{self.name} high"


def draw_rows(
    plot: Axes, data: pd.DataFrame, axes: Sequence[Axis], labels: Sequence[str]
) -> None:
    """Draws all rows but those that have failed. labels: as of `figure_of_rows`."""
    drawn = data[~data.failed]
    is_crowded = len(data) > CROWDED
    _set_limits(plot, drawn, axes)
    looks = [*map(look, drawn.kind, drawn.row)]
    _draw_bars(plot, drawn, axes, [colour for colour, _ in looks])
    named = drawn.frontier | drawn.row.isin(labels) | (not is_crowded and not labels)
    points = zip(drawn.to_dict("records"), looks, named, strict=True)
    for point, (colour, marker), is_named in points:
        _draw_point(plot, point, axes, colour, marker, is_named, not is_crowded)
    if named.any():
        # Along the frontier y improves from row to row: in reverse the best is on top.
        plot.figure.legend(loc="outside right center", fontsize=7, reverse=True)
    _draw_frontier(plot, drawn[drawn.frontier], axes)


def _set_limits(plot: Axes, drawn: pd.DataFrame, axes: Sequence[Axis]) -> None:
    """Sets the axes such that they hold the points, and the ends of the bars except
    those that are far from all others: these leave the picture."""
    for side, axis in zip("xy", axes, strict=True):
        _scale(plot, side, drawn[axis.name], axis)
        low = drawn[axis.low]
        high = drawn[axis.high]
        lower_fence, _ = outer_fences(low)
        _, upper_fence = outer_fences(high)
        shown_numbers = [
            drawn[axis.name],
            low[low >= lower_fence],
            high[high <= upper_fence],
        ]
        # matplotlib takes points, of which only one coordinate counts here
        points = [(number, number) for number in pd.concat(shown_numbers)]
        plot.update_datalim(points, updatex=side == "x", updatey=side == "y")
    plot.margins(0.12)
    plot.autoscale_view()
    plot.autoscale(enable=False)  # longer bars, drawn later, do not widen the axes


def _draw_bars(
    plot: Axes, drawn: pd.DataFrame, axes: Sequence[Axis], colours: Sequence[str]
) -> None:
    """Draws the intervals of both numbers of each point. colours: of the points."""
    x, y = axes
    x_bars, y_bars = (
        (drawn[axis.name] - drawn[axis.low], drawn[axis.high] - drawn[axis.name])
        for axis in (x, y)
    )
    plot.errorbar(
        drawn[x.name],
        drawn[y.name],
        xerr=x_bars,
        yerr=y_bars,
        fmt="none",
        ecolor=colours,  # type: ignore[arg-type]  # a colour for each point
        alpha=0.6,
        elinewidth=1,
    )


def _draw_point(
    plot: Axes,
    point: dict[str, Any],
    axes: Sequence[Axis],
    colour: str,
    marker: str,
    is_named: bool,
    with_seeds: bool,
) -> None:
    """Draws a row's point: hollow where seeds are missing, half-filled if the row was
    trained by demonstrations. is_named: whether the legend names the row. with_seeds:
    whether each seed has a small point of its own, if the metric is on the y axis."""
    x, y = (axis.name for axis in axes)
    label = point["method"]
    if axes[1].column == "number":  # the metric (`pareto.AXES`)
        label += f": {point[y]:.{int(point['digits'])}f}"
        if with_seeds:
            values = point["values"]
            plot.plot([point[x]] * len(values), values, ".", color=colour, alpha=0.6)
    style: dict[str, Any] = {"alpha": 0.5}
    if is_named:
        style = {"label": label, "markersize": 6}
    face = colour if point["n"] >= point["wanted"] else "white"
    is_by_demonstrations = str(point["row"]).endswith(BY_DEMONSTRATIONS)
    plot.plot(
        point[x],
        point[y],
        marker,
        color=colour,
        markerfacecolor=face,
        markerfacecoloralt="white",
        fillstyle="bottom" if is_by_demonstrations else "full",
        zorder=3,
        **style,
    )


def _draw_frontier(plot: Axes, best: pd.DataFrame, axes: Sequence[Axis]) -> None:
    """Draws the frontier as a dashed line: at each x it is at the best y of the rows that
    are at least as good in x. best: the rows on the frontier, from the best x on."""
    if best.empty:
        return
    x, y = axes
    # The line goes from the worst y to the worst x, which are limits of the picture.
    left, right = plot.get_xlim()
    bottom, top = plot.get_ylim()
    worst_x = right if x.lower_is_better else left
    worst_y = top if y.lower_is_better else bottom
    best_x = best[x.name]
    best_y = best[y.name]
    plot.step(
        [best_x.iloc[0], *best_x, worst_x],
        [worst_y, *best_y, best_y.iloc[-1]],
        where="post",
        color="#555555",
        linewidth=0.9,
        linestyle="--",
        zorder=1,
    )


def _scale(plot: Axes, side: str, values: pd.Series, axis: Axis) -> None:
    """Sets the label, scale and ticks of an axis. It is logarithmic where costs differ by
    more than a factor of ten, with a linear piece near zero if some are zero. side: x or
    y. values: along it."""
    positive = values[values > 0]
    ticks_axis = getattr(plot, f"{side}axis")
    set_scale = getattr(plot, f"set_{side}scale")
    plot.set(**{f"{side}label": axis.label})
    is_cost = axis.lower_is_better and values.min() >= 0
    if is_cost and positive.max() > 10 * positive.min():
        if values.min() == 0:
            first_power = 10.0 ** np.floor(np.log10(positive.min()))
            set_scale("symlog", linthresh=first_power, linscale=0.4)
            # those beyond the picture are not drawn
            ticks = [0.0, *first_power * 10.0 ** np.arange(12)]
            ticks_axis.set_major_locator(FixedLocator(ticks))
        else:
            set_scale("log")
            is_wide = positive.max() > WIDE_RANGE * positive.min()
            steps = (1,) if is_wide else (1, 2, 5)
            ticks_axis.set_major_locator(LogLocator(subs=steps))
        ticks_axis.minorticks_off()
    ticks_axis.set_major_formatter(FuncFormatter(lambda value, _: axis.tick(value)))


def outer_fences(values: pd.Series) -> tuple[float, float]:
    """Tukey's outer fences, below and above: three interquartile ranges outside the
    quartiles. NaN without values."""
    if values.empty:
        return math.nan, math.nan
    lower, upper = np.percentile(values, [25, 75])
    reach = 3 * (upper - lower)
    return lower - reach, upper + reach
