"""Figures 3 and 5, by layer: how far d has moved, and the cosine of weight differences."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis.figures.figure import COLOURS, OTHERS, Figure, Part, finite
from analysis.figures.points import LARGE, RTE, not_in_the_paper, paper_first, stacked, suffix
from analysis.frame import cells
from analysis.notes import notes as table_notes
from analysis.paper import paper
from runs.record import Record

#: Of sites: query and value of one method are told apart by shade, dash and marker.
SITES = {"query": ("#D55E00", "-", "D"), "value": ("#E69F00", "--", "s"), "key": ("#CC79A7", "-.", "^")}
PAIRS = {"lora_vera": "LoRA and VeRA", "lora_random": "LoRA and random", "vera_random": "VeRA and random"}
LOOKS = (COLOURS["vera"], "-", "D"), (COLOURS["lora"], "--", "o"), (COLOURS["random"], ":", "^")
OF_PAIRS = dict(zip(PAIRS.values(), LOOKS, strict=True))
NOTHING = "Nothing measured: python -m runs experiment={}, then python -m runs.measure {}."


# --- which measures


@dataclass
class Measured:
    """What a figure shows of a model and a task: the measures, one for each run, and notes on what is left
    out. The paper's model and task are always there, maybe without measures."""

    model: str
    task: str
    measures: list[Record]
    notes: list[str]

    @property
    def of_the_paper(self) -> bool:
        """Whether it is of the model and task that the paper's figure shows."""
        return (self.model, self.task) == (LARGE, RTE)

    @property
    def where(self) -> str:
        """The model and task by their labels."""
        label = self.measures[0]["of"][0]["label"] if self.measures else {}
        return f"{label.get('model', 'RoBERTa-large')} on {label.get('task', 'RTE')}"


def measured(
    runs: pd.DataFrame, measures: Iterable[Record], kind: str, keep: Callable[[Record], bool] = lambda _: True
) -> Iterator[Measured]:
    """The measures of a kind by model and task, the paper's first; none of trials. keep: which measures."""
    trials = set(runs.id[runs.kind.isin(["trial", "stopped"])])
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for measure in measures:
        if measure["kind"] == kind and keep(measure) and not trials & {run["id"] for run in measure["of"]}:
            cell = measure["of"][0]["cell"]
            groups[cell["model"], cell["task"]].append(measure)
    for model, task in paper_first(groups):
        yield Measured(model, task, *_one_each(groups.get((model, task), []), runs.set_index("id")))


def _one_each(measures: list[Record], runs: pd.DataFrame) -> tuple[list[Record], list[str]]:
    """The measures of runs of one setting, one for each run, in order of seeds; and notes on what that leaves
    out. Of several settings: the paper's rank 64 in figure 5, then what deviates least from its recipe, then
    the most runs. runs: by id."""
    notes, groups = list[str](), defaultdict[str, list[Record]](list)
    for measure in sorted(measures, key=lambda m: [run["cell"]["seed"] for run in m["of"]]):
        ids = [run["id"] for run in measure["of"]]
        if unknown := [run for run in ids if run not in runs.index]:
            notes.append(f"measure {measure['id']}: no record of run {', '.join(unknown)} is here: left out.")
        else:
            groups[" ".join([str(measure["settings"]), *runs.cell[ids]])].append(measure)
    if not groups:
        return [], notes

    def rank(group: list[Record]) -> tuple[bool, int, int]:
        deviations = sum(len(runs.deviations[run["id"]]) for run in group[0]["of"])
        return group[0]["settings"].get("ranks") == [64, 64], -deviations, len(group)

    chosen = max(groups.values(), key=rank)
    if others := sum(map(len, groups.values())) - len(chosen):
        notes.append(f"{others} measures of other settings are left out.")
    by_runs = {tuple(run["id"] for run in measure["of"]): measure for measure in chosen}
    if again := len(chosen) - len(by_runs):
        notes.append(f"{again} measures of a run that is measured twice are left out.")
    return list(by_runs.values()), notes


def by_layer(measures: Sequence[Record], names: Sequence[str]) -> pd.DataFrame:
    """Of each of these values of the measures, by site and layer: the median, lowest and highest of those
    that are finite, with how many these are (n), of how many (of), and the ids of their runs."""
    rows = [
        (name, site, layer, finite(value), tuple(run["id"] for run in measure["of"]))
        for measure in measures
        for name in names
        for site, layer, value in zip(
            *(measure["values"][key] for key in ("site", "layer", name)), strict=True
        )
    ]
    groups = pd.DataFrame(rows, columns=["name", "site", "layer", "value", "ids"]).groupby(
        ["name", "site", "layer"]
    )
    how = {"median": "median", "low": "min", "high": "max", "n": "count", "of": "size"}
    found = groups.agg(**{name: ("value", of) for name, of in how.items()})
    found["runs"] = groups.ids.agg(lambda ids: tuple(dict.fromkeys(run for of in ids for run in of)))
    return found.reset_index()


# --- the figures


def figure3(part: Part) -> list[Figure]:
    """How far d has moved, by layer and site: a figure for each model and task with measures of the row
    vera."""
    figures = []
    for group in measured(
        part.runs, part.measures, "magnitude", lambda m: m["of"][0]["cell"]["row"] == "vera"
    ):
        found, count = by_layer(group.measures, ["d", "b"]), len(group.measures)
        data = found[found.name == "d"].assign(b=[*found["median"][found.name == "b"]])
        notes = _notes(group, part, data, "figure3", "magnitude", "runs have no finite change of d")
        if group.of_the_paper:
            notes.append(
                f"The paper prints no numbers of this figure. Its finding: {paper()['figure3']['finding']}."
            )
        data = data[["site", "layer", "median", "low", "high", "b", "n", "runs"]]
        title, name = (
            f"Figure 3: change of d by layer, {group.where}",
            f"figure3{suffix(group.model, group.task)}",
        )
        of = f"median of {count} runs, bands from the lowest to the highest" if count > 1 else "one run"
        figures.append(Figure(name, title, data, notes, _draw_sites, of))
    return figures


def figure5(part: Part) -> list[Figure]:
    """Cosine of weight differences by layer: LoRA against VeRA, and each against random (VeRA paper, appendix
    D)."""
    figures = []
    for group in measured(part.runs, part.measures, "similarity"):
        found, count = by_layer(group.measures, [*PAIRS]), len(group.measures)
        data = found.assign(pair=found.name.map(PAIRS), source=part.whose)
        notes = _notes(group, part, data, "figure5", "similarity", "have no cosine (a change that is zero)")
        means = of_queries(data).groupby("pair")["median"].mean()
        notes += [f"{pair}: mean over layers of what is drawn {mean:.1e}." for pair, mean in means.items()]
        if group.of_the_paper:
            printed = {
                PAIRS[key.removeprefix("mean_")]: of for key, of in paper()["figure5"]["printed"].items()
            }
            quoted = pd.DataFrame({"pair": [*printed], "median": map(float, printed.values())})
            data = stacked(
                data, quoted.assign(source="paper (quoted)", site="query", runs=[()] * len(quoted))
            )
            notes.append(
                "The paper prints two means, over the query matrices at rank 64 (quoted); it gives no value"
                f" by layer. Its finding: {paper()['figure5']['finding']}."
            )
        data = data.reindex(columns=["pair", "source", "site", "layer", "median", "low", "high", "n", "runs"])
        title = f"Figure 5: cosine of weight differences, {group.where}"
        matrices = "query matrices" if (data.site == "query").any() else "all adapted matrices"
        of = f"median of {count} pairs of runs, {matrices}" if count > 1 else matrices
        figures.append(
            Figure(f"figure5{suffix(group.model, group.task)}", title, data, notes, _draw_pairs, of)
        )
    return figures


def of_queries(data: pd.DataFrame) -> pd.DataFrame:
    """The rows of the query matrices, where there are any, that have a number."""
    queries = data.site == "query"
    return data[(queries if queries.any() else True) & data["median"].notna()]


def _notes(group: Measured, part: Part, data: pd.DataFrame, preset: str, kind: str, lost: str) -> list[str]:
    """The notes of a figure: those of the group, of a table on its runs, and on what has no number."""
    ran = part.runs[part.runs.id.isin({run for ids in data.runs for run in ids})]
    notes = [] if group.of_the_paper else [not_in_the_paper(group.model, group.task)]
    notes += [*group.notes, *(table_notes(ran, cells(ran)) if len(ran) else [NOTHING.format(preset, kind)])]
    for of in data[data.n < data.of].itertuples():
        pair = f"{of.pair}, " if kind == "similarity" else ""
        notes.append(f"{pair}layer {of.layer}, {of.site}: {of.of - of.n} of {of.of} {lost}.")
    return notes


# --- drawing


def draw_band(
    axes: Any, data: pd.DataFrame, label: str, look: Sequence[Any], x: str = "layer", middle: str = "median"
) -> None:
    """A column as a line by x, and a band from `low` to `high`. look: a colour, a dash and a marker."""
    data, (tint, dash, marker) = data.sort_values(x), look
    axes.fill_between(data[x].astype(float), data.low, data.high, color=tint, alpha=0.15, linewidth=0)
    axes.plot(data[x], data[middle], dash, marker=marker, markersize=4, color=tint, label=label)


def _draw_sites(axes: Any, data: pd.DataFrame) -> None:
    known = data.dropna(subset="median")
    for i, site in enumerate(sorted(set(known.site), key=lambda site: (site not in SITES, site))):
        look = SITES.get(site, (OTHERS[i % len(OTHERS)], ":", "o"))
        draw_band(axes, known[known.site == site], site, look)
    axes.set(xlabel="layer", ylabel="‖d - d_init‖₂", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(known):
        axes.legend()


def _draw_pairs(axes: Any, data: pd.DataFrame) -> None:
    ours = of_queries(data[data.layer.notna()])
    for pair, look in OF_PAIRS.items():
        if (ours.pair == pair).any():
            draw_band(axes, ours[ours.pair == pair], pair, look)
    for of in data[data.layer.isna()].itertuples():
        line: Any = {"color": OF_PAIRS[of.pair][0], "linestyle": (0, (1, 2)), "linewidth": 1}
        axes.axhline(of.median, label=f"{of.pair}, paper's mean (quoted)", **line)
    axes.set(xlabel="layer", ylabel="cosine")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    if ours.empty:
        axes.set_xticks([])  # the paper's two means, and no layers
    axes.legend()
