"""Figure 4: the gain over the head alone by trainable parameters."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analysis.figures.figure import VARIED, Figure, Part, finite, look
from analysis.figures.paper_figure import panels, paper_figure, printed_rte
from analysis.frame import SEEDS, reported_cells
from analysis.paper import GLUE, METHOD_NAMES, paper

#: The height of a row's bars, as a share of a row.
BAR_HEIGHT = 0.8
#: The height of a row, and of the title and axis around the rows, in inches.
ROW_HEIGHT, FRAME_HEIGHT = 0.22, 1.0


def figure4(part: Part) -> Iterator[Figure]:
    """The gain over the head alone per 1,000 parameters (VeRA paper, appendix B) of table
    2's rows, on the tasks whose metric is accuracy: a figure for each model and task.
    Ranks and ablations have figures and tables of their own."""
    cells = cells_with_gain(part.runs)
    quoted = printed_gains()
    for panel in panels(part, cells[cells.gain.notna()]):
        place = f"{panel.task_label}, {panel.model_label}"
        title = f"gain per 1K trainable parameters on {place}"
        incomplete = panel.data.method[~panel.data.complete.astype(bool)]
        subtitle = f"fewer seeds: {', '.join(incomplete)}" if len(incomplete) else ""
        rows = panel.data.row.nunique()
        yield paper_figure(
            number=4,
            title=title,
            data=panel.data,
            notes=panel.notes,
            draw=_draw_gains,
            subtitle=subtitle,
            model_and_task=panel.model_and_task,
            quoted=quoted,
            height=max(2.0, FRAME_HEIGHT + ROW_HEIGHT * rows),
        )


def cells_with_gain(runs: pd.DataFrame) -> pd.DataFrame:
    """The cells of GLUE's tasks with accuracy, without other ranks and ablations (VARIED),
    each with the accuracy of the head alone (`head`) and, as the paper defines it, the
    gain over it (`gain`): the accuracy in percent of the head's, divided by thousands of
    parameters. A cell without one of the head alone is left out."""
    is_accuracy = runs.task.isin([*GLUE]) & (runs.metric == "accuracy")
    cells = reported_cells(runs[is_accuracy], seeds=SEEDS)
    is_varied = cells.row.astype(str).str.match(VARIED)
    cells = cells[~is_varied].sort_values("parameters", kind="stable")
    heads = cells[cells.row == "head"]
    heads = heads[["model", "task", "way", "median", "complete", "ids"]]
    cells = cells.merge(heads, on=["model", "task", "way"], suffixes=("", "_head"))
    cells = cells.assign(
        kind=cells.method,
        method=cells.label,
        accuracy=cells["median"],
        head=cells.median_head,
        complete=cells.complete & cells.complete_head,
    )
    ids = zip(cells.ids, cells.ids_head, strict=True)
    cells["ids"] = [(*row_ids, *head_ids) for row_ids, head_ids in ids]
    percent_of_head = 100 * cells.accuracy / cells["head"]
    cells["gain"] = finite(percent_of_head / (cells.parameters / 1000))
    return cells


def printed_gains() -> pd.DataFrame:
    """The paper's gains as lines of figure 4's data. The paper does not print the accuracy
    of the head alone, so we compute it from the gain and the row's accuracy."""
    gains = paper()["figure4"]["printed"]
    quoted = printed_rte([*gains])
    # Rows of several sizes, such as adapter_p_3m, share a method's name.
    has_name = quoted.row.isin(METHOD_NAMES)
    quoted = quoted.assign(
        gain=[*map(float, gains.values())],
        source="paper (quoted)",
        method=quoted.method.where(has_name, quoted.method + " " + quoted["size"]),
        accuracy=quoted.value,
        complete=True,
    )
    quoted["head"] = 100 * quoted.value / quoted.gain / (quoted.parameters / 1000)
    return quoted


def _draw_gains(axes: Axes, data: pd.DataFrame) -> None:
    """Draws a group of bars for each row: a bar from each source (our runs, the paper) in
    the method's colour, pale if it is quoted from the paper."""
    rows = data.drop_duplicates("row")
    position_of_row = {row: position for position, row in enumerate(rows.row)}
    colours = [look(row.kind, row.row)[0] for row in rows.itertuples()]
    sources = data.source.unique()
    height = BAR_HEIGHT / len(sources)
    legend = list[Patch]()
    for index, (source, bars) in enumerate(data.groupby("source", sort=False)):
        shift = (index - (len(sources) - 1) / 2) * height
        positions = bars.row.map(position_of_row)
        is_quoted = not bars.runs.map(len).any()  # no run of ours is behind it
        alpha = 0.4 if is_quoted else 1.0
        legend.append(Patch(color="#555555", alpha=alpha, label=source))
        container = axes.barh(
            positions + shift,
            bars.gain,
            height,
            color=[colours[position] for position in positions],
            alpha=alpha,
        )
        axes.bar_label(container, fmt="{:.2g}", padding=2, fontsize=6)
    if len(sources) > 1:
        axes.figure.legend(handles=legend, loc="outside right center")
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), rows.method)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="gain per 1K parameters, % (log)", ylabel="")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.02)
