"""Figures 3 and 5, by layer: how far d has moved, and how alike the changes of two
methods are."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.figure import COLOURS, Figure, Part, draw_lines, finite
from analysis.figures.paper_figure import paper_figure
from analysis.frame import cells, mark_left_out
from analysis.notes import notes
from analysis.paper import paper
from runs.record.schema import Measure
from runs.record.text import plural

#: The colour, dash and marker of each line of figure 3, by the site of the matrices.
SITES = {
    "query": ("#D55E00", "-", "D"),
    "value": ("#E69F00", "--", "s"),
    "key": ("#CC79A7", "-.", "^"),
}
#: The cosines that a measure of similarity has, and what figure 5 calls them.
PAIRS = {
    "lora_vera": "LoRA and VeRA",
    "lora_random": "LoRA and random",
    "vera_random": "VeRA and random",
}
#: The colour, dash and marker of the lines of figures 5 and 6, in their order.
LOOKS = (
    (COLOURS["vera"], "-", "D"),
    (COLOURS["lora"], "--", "o"),
    (COLOURS["random"], ":", "^"),
)
#: The ranks of the paper's figure 5.
PAPER_RANKS = [64, 64]
#: Why measures are left out, for a note.
WHY_LEFT_OUT = "of other settings, of a run measured before, or of one in no cell"
#: The columns of a figure's data over measures: each a function of the column "value".
STATISTICS = {
    "median": ("value", "median"),
    "low": ("value", "min"),
    "high": ("value", "max"),
    "n": ("value", "count"),
    "total": ("value", "size"),
}


class Measured(NamedTuple):
    """Values of the measures of a model and task.

    model_and_task: their names. place: their labels, as a text. values: a line for each
    measure (number), site and layer, with the ids of the measure's runs and a column for
    each name of a value; NaN where a value is not finite. notes: on the measures that
    are left out.
    """

    model_and_task: tuple[str, str]
    place: str
    values: pd.DataFrame
    notes: list[str]


@dataclass(frozen=True)
class LayerStatistics:
    """What a figure of a model and task shows of its measures.

    model_and_task, place: as of Measured. data: the STATISTICS over measures, a line for
    each name of a value, site and layer. notes: on the runs and measures behind them.
    subtitle: says over how many measures they are."""

    model_and_task: tuple[str, str]
    place: str
    data: pd.DataFrame
    notes: list[str]
    subtitle: str


def measured_values(
    runs: pd.DataFrame, measures: Iterable[Measure], kind: str, *names: str
) -> Iterator[Measured]:
    """The values of the measures of a kind, for each model and task.

    Only measures of runs in cells count, and only those of one setting
    (`_measures_of_one_setting`). Magnitudes are of the row vera alone, as in the paper.

    Args:
        runs: of `frame.runs`.
        measures: of any kind.
        kind: "magnitude" or "similarity".
        names: of the values, such as d.
    """
    marked = mark_left_out(runs)
    cell_by_run = marked[marked.left_out == ""].set_index("id").cell
    columns = ["site", "layer", *names]
    groups = _measures_by_model_and_task(measures, kind)
    for model_and_task, group in sorted(groups.items()):
        of_setting = _measures_of_one_setting(group, cell_by_run)
        lines = [
            {"number": number, "runs": ids, **measure["values"]}
            for number, (ids, measure) in enumerate(of_setting.items())
        ]
        values = pd.DataFrame(lines, columns=["number", "runs", *columns])
        # A measure has a list for each column, of equal lengths. Empty lists become a line
        # of NaN, which is dropped.
        values = values.explode(columns, ignore_index=True).dropna(subset="layer")
        values = values.assign(**{name: finite(values[name]) for name in names})
        if values.empty:
            continue
        left_out = len(group) - len(of_setting)
        left_out_notes = list[str]()
        if left_out:
            left_out_notes.append(f"{left_out} measures are left out: {WHY_LEFT_OUT}.")
        # all runs of the group are of this model and task, so any of them names both
        label = group[0]["of"][0]["label"]
        place = f"{label['model']} on {label['task']}"
        yield Measured(model_and_task, place, values, left_out_notes)


def _measures_by_model_and_task(
    measures: Iterable[Measure], kind: str
) -> dict[tuple[str, str], list[Measure]]:
    """The measures of a kind by model and task, sorted by seed; magnitudes of the row
    vera alone."""
    groups = defaultdict[tuple[str, str], list[Measure]](list)
    of_kind = [measure for measure in measures if measure["kind"] == kind]
    for measure in sorted(of_kind, key=_seeds_of):
        # both runs of a pair are of one model and task
        cell = measure["of"][0]["cell"]
        if kind == "similarity" or cell["row"] == "vera":
            groups[cell["model"], cell["task"]].append(measure)
    return groups


def _seeds_of(measure: Measure) -> list[int]:
    """The seeds of the runs that a measure is of."""
    return [run["cell"]["seed"] for run in measure["of"]]


def _measures_of_one_setting(
    group: Sequence[Measure], cell_by_run: pd.Series
) -> dict[tuple[str, ...], Measure]:
    """The measures of one setting, by the ids of their runs: with the same settings of the
    measure, of runs in the same cells. We take the setting with the most measures, of
    those with the paper's ranks if there are any. Runs that were measured again have
    their last measure.

    group: the measures of one model and task. cell_by_run: the cell of each run that is
    in one, by its id."""
    by_setting = defaultdict[tuple[Any, ...], dict[tuple[str, ...], Measure]](dict)
    for measure in group:
        ids = tuple(run["id"] for run in measure["of"])
        settings = measure["settings"]
        every_run_is_in_cell = cell_by_run.index.isin(ids).sum() == len(ids)
        if every_run_is_in_cell:
            has_paper_ranks = settings.get("ranks") == PAPER_RANKS
            setting = (has_paper_ranks, str(settings), *cell_by_run[[*ids]])
            by_setting[setting][ids] = measure
    best = dict[tuple[str, ...], Measure]()
    best_order = (False, 0)
    for (has_paper_ranks, *_), of_setting in by_setting.items():
        # the paper's ranks decide first, and then the number of measures
        order = (has_paper_ranks, len(of_setting))
        if order > best_order:
            best_order = order
            best = of_setting
    return best


def layer_statistics(
    part: Part, names: Iterable[str], *, kind: str, unit: str
) -> Iterator[LayerStatistics]:
    """The statistics of `measured_values`, for each model and task: the median, lowest
    and highest of the finite values, how many these are (n), and of how many (total).
    names: of the values. kind: of the measures. unit: what the subtitle calls the runs of
    one measure, "run" or "pair"."""
    for measured in measured_values(part.runs, part.measures, kind, *names):
        values = measured.values
        long = values.melt(["site", "layer", "number", "runs"], var_name="name")
        groups = long.groupby(["name", "site", "layer"], as_index=False)
        data = groups.agg(**STATISTICS, runs=("runs", distinct_runs))
        ids = {run for group in data.runs for run in group}
        ran = part.runs[part.runs.id.isin(ids)]
        lines = [*measured.notes, *notes(ran, cells(ran)), *notes_on_infinite(data)]
        count = plural(values.number.nunique(), unit)
        yield LayerStatistics(
            model_and_task=measured.model_and_task,
            place=measured.place,
            data=data.assign(source=part.source),
            notes=lines,
            subtitle=f"median of {count}, bands from the lowest to the highest",
        )


def distinct_runs(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The ids of the runs of several measures, each once. groups: the ids of the runs of
    each measure."""
    return tuple(dict.fromkeys(run for ids in groups for run in ids))


def notes_on_infinite(data: pd.DataFrame) -> list[str]:
    """A note for each site and layer that has values which are not finite. The norm of b
    has none, since it is not drawn."""
    with_infinite = data[(data.n < data.total) & (data.name != "b")]
    return [
        f"{line.site}, layer {line.layer}: {line.total - line.n} of {line.total} "
        "not finite."
        for line in with_infinite.itertuples()
    ]


def figure3(part: Part) -> Iterator[Figure]:
    """How far VeRA's vector d has moved in the runs of the row vera, by layer and site
    (query or value). The figure's data have the norm of b, too, which is not drawn."""
    draw: Any = partial(
        draw_lines,
        x="layer",
        y="median",
        by="site",
        looks=SITES,
        xlabel="layer",
        ylabel="‖d - d_init‖₂",
        ylim=(0, None),
    )
    for panel in layer_statistics(part, ["d", "b"], kind="magnitude", unit="run"):
        # The lines of b and of d have the same sites and layers, in the same order.
        norms_of_b = panel.data["median"][panel.data.name == "b"]
        data = panel.data[panel.data.name == "d"].assign(b=[*norms_of_b])
        title = f"change of d by layer, {panel.place}"
        yield paper_figure(
            number=3,
            title=title,
            data=data,
            notes=panel.notes,
            draw=draw,
            subtitle=panel.subtitle,
            model_and_task=panel.model_and_task,
        )


def figure5(part: Part) -> Iterator[Figure]:
    """Cosine of weight differences by layer: LoRA against VeRA, and each against random
    (VeRA paper, appendix D)."""
    printed = paper()["figure5"]["printed"]
    quoted = pd.DataFrame(printed.items(), columns=["pair", "median"])
    quoted = quoted.assign(
        source="paper's mean (quoted)",
        site="query",
        runs=[()] * len(quoted),
        pair=quoted.pair.str.removeprefix("mean_").map(PAIRS),
    )
    for panel in layer_statistics(part, PAIRS, kind="similarity", unit="pair"):
        data = panel.data.assign(pair=panel.data.name.map(PAIRS))
        means = queries_of(data).groupby("pair")["median"].mean()
        mean_notes = [
            f"{name}: mean over layers of what is drawn {mean:.1e}."
            for name, mean in means.items()
        ]
        title = f"cosine of weight differences, {panel.place}"
        yield paper_figure(
            number=5,
            title=title,
            data=data,
            notes=panel.notes + mean_notes,
            draw=_draw_cosines,
            subtitle=panel.subtitle,
            model_and_task=panel.model_and_task,
            quoted=quoted,
        )


def queries_of(data: pd.DataFrame) -> pd.DataFrame:
    """The lines of the query matrices, which the paper shows; all lines if no query matrix
    was measured."""
    is_query = data.site == "query"
    return data[is_query | ~is_query.any()]


def _draw_cosines(axes: Axes, data: pd.DataFrame) -> None:
    """Draws the cosines by layer: a line for each pair of methods. The data have every
    site, and the picture only the query matrices."""
    looks = dict(zip(PAIRS.values(), LOOKS, strict=True))
    queries = queries_of(data)
    labels = {"xlabel": "layer", "ylabel": "cosine"}
    draw_lines(axes, queries, "layer", "median", "pair", looks, **labels)
