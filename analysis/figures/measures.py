"""Figures of measures: by layer, how far d has moved (3) and the cosine of weight differences (5); and the
mean squared error of fitting random matrices (6)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from analysis.figures.figure import COLOURS, Figure, Part, by_pair, draw_bands, finite, stacked
from analysis.frame import cells
from analysis.notes import notes
from analysis.paper import NAMES, paper
from runs.record import Record

#: Of sites: shade, dash and marker distinguish query and value of one method.
SITES = {"query": ("#D55E00", "-", "D"), "value": ("#E69F00", "--", "s"), "key": ("#CC79A7", "-.", "^")}
PAIRS = {"lora_vera": "LoRA and VeRA", "lora_random": "LoRA and random", "vera_random": "VeRA and random"}
LOOKS = (COLOURS["vera"], "-", "D"), (COLOURS["lora"], "--", "o"), (COLOURS["random"], ":", "^")
OF_PAIRS = dict(zip(PAIRS.values(), LOOKS, strict=True))
OF_FITS = ["method", "kind", "rank", "parameters", "mean", "low", "high", "spread", "least"]
OF_FITS += ["n", "of", "runs"]
FITTED = {"LoRA": (COLOURS["lora"], "--", "o"), "VeRA": (COLOURS["vera"], "-", "D")}
NO_FIT = "Nothing measured: python -m runs.measure matrix_fit takes ten seconds."
NOTHING = "Nothing measured: python -m runs experiment={}, then python -m runs.measure {}."


class Measured(NamedTuple):
    """What a figure shows of a model and a task: what its name ends with, model and task by their labels, the
    measures, one for each run, and notes on what is left out."""

    suffix: str
    where: str
    measures: list[Record]
    notes: list[str]


def measured(runs: pd.DataFrame, measures: Iterable[Record], kind: str) -> Iterator[Measured]:
    """The measures of a kind by model and task, the paper's first, maybe without measures; none of trials,
    and magnitudes of the row vera alone. One for each run, of runs of one setting: of several the paper's
    rank 64 in figure 5, then what deviates least from its recipe, then the most runs."""
    known, trials = runs.set_index("id"), set(runs.id[runs.kind.isin(["trial", "stopped"])])
    counts, groups = defaultdict[Any, int](int), defaultdict[Any, dict[Any, dict[Any, Record]]](dict)
    for measure in sorted(measures, key=lambda of: [run["cell"]["seed"] for run in of["of"]]):
        ids, cell = (
            tuple(run["id"] for run in measure["of"]),
            measure["of"][0]["cell"] if measure["of"] else {},
        )
        shown = measure["kind"] == kind and (kind == "similarity" or cell.get("row") == "vera")
        if shown and not trials & {*ids}:
            pair = cell["model"], cell["task"]
            counts[pair] += 1
            if {*ids} <= {*known.index}:
                setting = str(measure["settings"]), *known.cell[[*ids]]
                groups[pair].setdefault(setting, {})[ids] = measure

    def rank(group: dict[Any, Record]) -> tuple[bool, int, int]:
        ids, first = next(iter(group.items()))
        return (
            first["settings"].get("ranks") == [64, 64],
            -known.deviations[[*ids]].map(len).sum(),
            len(group),
        )

    for pair, suffix, lines in by_pair(counts):
        chosen = [*max(groups[pair].values(), key=rank, default={}).values()]
        if others := counts[pair] - len(chosen):
            why = "of other settings, of a run measured before, or of one without a record"
            lines.append(f"{others} measures are left out: {why}.")
        label = chosen[0]["of"][0]["label"] if chosen else {"model": "RoBERTa-large", "task": "RTE"}
        yield Measured(suffix, f"{label['model']} on {label['task']}", chosen, lines)


def by_layer(measures: Sequence[Record], names: Sequence[str]) -> pd.DataFrame:
    """Of each of these values of the measures, by site and layer: the median, lowest and highest of those
    that are finite, with how many these are (n), of how many (of), and the ids of their runs."""
    key, rows = ["name", "site", "layer"], list[tuple[Any, ...]]()
    for measure in measures:
        of, ids = measure["values"], tuple(run["id"] for run in measure["of"])
        for name in names:
            sites = zip(of["site"], of["layer"], map(finite, of[name]), strict=True)
            rows += [(name, *site, ids) for site in sites]
    groups = pd.DataFrame(rows, columns=[*key, "value", "runs"]).groupby(key, as_index=False)
    how = {"median": "median", "low": "min", "high": "max", "n": "count", "of": "size"}
    of_runs = ("runs", lambda of: tuple(dict.fromkeys(run for ids in of for run in ids)))
    return groups.agg(**{name: ("value", of) for name, of in how.items()}, runs=of_runs)


def figure3(part: Part) -> list[Figure]:
    """How far d has moved, by layer and site: a figure for each model and task with measures of the row
    vera."""
    figures = []
    for group in measured(part.runs, part.measures, "magnitude"):
        found = by_layer(group.measures, ["d", "b"])
        data = found[found.name == "d"].assign(b=[*found["median"][found.name == "b"]])
        lines = _notes(group, part, data, "figure3", "magnitude")
        if not group.suffix:
            lines.append(f"The paper prints no numbers of this figure. {_finding('figure3')}")
        data = data[["site", "layer", "median", "low", "high", "b", "n", "runs"]]
        count = len(group.measures)
        over = f"median of {count} runs, bands from the lowest to the highest" if count > 1 else "one run"
        title = f"Figure 3: change of d by layer, {group.where}"
        draw = partial(_draw, by="site", looks=SITES, ylabel="‖d - d_init‖₂")
        figures.append(Figure(f"figure3{group.suffix}", title, data, lines, draw, over))
    return figures


def figure5(part: Part) -> list[Figure]:
    """Cosine of weight differences by layer: LoRA against VeRA, and each against random (VeRA paper, appendix
    D)."""
    figures = []
    for group in measured(part.runs, part.measures, "similarity"):
        found = by_layer(group.measures, [*PAIRS])
        data = found.assign(pair=found.name.map(PAIRS), source=part.whose)
        lines = _notes(group, part, data, "figure5", "similarity")
        means = _of_queries(data).groupby("pair")["median"].mean()
        lines += [f"{pair}: mean over layers of what is drawn {mean:.1e}." for pair, mean in means.items()]
        if not group.suffix:
            printed = paper()["figure5"]["printed"].items()
            rows = [(PAIRS[key.removeprefix("mean_")], float(mean)) for key, mean in printed]
            quoted = pd.DataFrame(rows, columns=["pair", "median"]).assign(runs=[()] * len(rows))
            data = stacked(data, quoted.assign(source="paper (quoted)", site="query"))
            quotes = "The paper prints two means, over the query matrices at rank 64 (quoted)"
            lines.append(f"{quotes}, and none by layer. {_finding('figure5')}")
        data = data.reindex(columns=["pair", "source", "site", "layer", "median", "low", "high", "n", "runs"])
        over = "query matrices" if (data.site == "query").any() else "all adapted matrices"
        if (count := len(group.measures)) > 1:
            over = f"median of {count} pairs of runs, {over}"
        title = f"Figure 5: cosine of weight differences, {group.where}"
        draw = partial(_draw, by="pair", looks=OF_PAIRS, ylabel="cosine")
        figures.append(Figure(f"figure5{group.suffix}", title, data, lines, draw, over))
    return figures


def _finding(figure: str) -> str:
    return f"Its finding: {paper()[figure]['finding']}."


def _of_queries(data: pd.DataFrame) -> pd.DataFrame:
    """The rows of the query matrices, where there are any, that have a number."""
    queries = data.site == "query"
    return data[(queries if queries.any() else True) & data["median"].notna()]


def _notes(group: Measured, part: Part, data: pd.DataFrame, preset: str, kind: str) -> list[str]:
    """The notes of a figure: those of the group, of a table on its runs, and on what has no number."""
    ran = part.runs[part.runs.id.isin({run for ids in data.runs for run in ids})]
    odd = data[data.n < data.of]
    gone = [f"{of.site}, layer {of.layer}: {of.of - of.n} of {of.of} not finite." for of in odd.itertuples()]
    of_runs = notes(ran, cells(ran)) if len(ran) else [NOTHING.format(preset, kind)]
    return [*group.notes, *of_runs, *gone]


def _draw(axes: Any, data: pd.DataFrame, by: str, looks: dict[str, Any], ylabel: str) -> None:
    quoted = data.layer.isna()
    shown = data[~quoted].dropna(subset="median") if by == "site" else _of_queries(data[~quoted])
    draw_bands(axes, shown, by, looks, "layer")
    for name, mean in zip(data[by][quoted], data["median"][quoted], strict=True):
        look: Any = {"color": looks[name][0], "linestyle": (0, (1, 2)), "linewidth": 1}
        axes.axhline(mean, label=f"{name}, paper's mean (quoted)", **look)
    axes.set(xlabel="layer", ylabel=ylabel)
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    if by == "site":
        axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend()


# --- figure 6


def figure6(part: Part) -> list[Figure]:
    """Mean squared error of fitting random matrices against parameters, LoRA and VeRA (VeRA paper, appendix
    E)."""
    data, fit = errors(part.measures), _shown(part.measures)
    of = fit["settings"] if fit else {}
    words = ", ".join(f"{key} {of.get(key)}" for key in ("matrices", "target", "steps", "lr", "optimizer"))
    lines = [f"Measure {fit['id']}; settings (this project's choice): {words}." if fit else NO_FIT]
    for at in data[data.n < data.of].itertuples():
        lines.append(f"{at.method} at rank {at.rank}: {at.of - at.n} of {at.of} errors are not finite.")
    lines.append(f"The paper prints no numbers of this figure. {_finding('figure6')}")
    over = f"mean of {of['matrices']} matrices, bands from the lowest to the highest" if fit else ""
    title = f"Figure 6: fitting random {of.get('size', 10)} x {of.get('size', 10)} matrices"
    return [Figure("figure6", title, data[data.n > 0], lines, _draw_fits, over)]


def _shown(measures: Iterable[Record]) -> Record | None:
    """The fit that is drawn: each is complete in itself, and this has the lowest seed."""
    fits = [of for of in measures if of["kind"] == "matrix_fit"]
    return min(fits, key=lambda of: (of["seeds"]["random"], of["id"]), default=None)


def errors(measures: Iterable[Record]) -> pd.DataFrame:
    """The errors of the fit that is shown, a row for each method and rank: their mean, spread, lowest and
    highest over the matrices, how many are finite (n, of), and the least that the rank allows."""
    fit, rows = _shown(measures) or {"id": "", "values": {}}, []
    for method, rank, count, mse, least in zip(*fit["values"].values(), strict=True):
        mse, best = (pd.Series([*map(finite, values or [])], dtype=float) for values in (mse, least))
        spread = mse.std() if mse.count() > 1 else 0.0
        row = NAMES[method], method, rank, count, mse.mean(), mse.min(), mse.max(), spread
        rows.append((*row, best.mean(), mse.count(), len(mse), (fit["id"],)))
    return pd.DataFrame(rows, columns=OF_FITS)


def _draw_fits(axes: Any, data: pd.DataFrame) -> None:
    draw_bands(axes, data, "method", FITTED, "parameters", "mean")
    first = data.parameters[data.kind == "lora"].min()
    if first == first:  # LoRA has run
        axes.axvline(first, color="#555555", linestyle=":", linewidth=0.8, label="LoRA, rank 1")
    axes.set(xlabel="trained parameters", ylabel="mean squared error", ylim=(-0.02, None))
    axes.legend()
