"""Figures 2 to 6 of the paper, for its model and task and for each other of ours: the metric (2) and the gain
over the head alone (4) by trainable parameters, from runs; and from measures, by layer, how far d has moved
(3) and the cosine of weight differences (5), and the error of fitting random matrices (6)."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from analysis.beside import exact_counts
from analysis.figures import figure as shared
from analysis.figures.figure import (
    COLOURS,
    PAPER,
    Figure,
    Part,
    by_pair,
    draw_lines,
    finite,
    look,
    of_pair,
    stacked,
)
from analysis.frame import cells, chosen
from analysis.notes import notes
from analysis.paper import GLUE, NAMES, numbers, paper
from runs.record import Record
from runs.record.text import plural

#: LoRA's recipe's own rank is on both of its lines.
BOTH = "constant and proportional"
#: The lines of figure 2, by what their method's name is followed by.
ALPHAS = dict.fromkeys(("constant", "given"), ", constant alpha")
ALPHAS |= {"proportional": ", alpha proportional to r"}
VERA, LORA = look("vera"), look("lora")
RANKS = {"VeRA": (VERA[0], "-", VERA[1]), "LoRA, constant alpha": (LORA[0], "-", LORA[1])}
RANKS |= {"LoRA, alpha proportional to r": (LORA[0], "--", LORA[1]), "LoRA": (LORA[0], "", "")}
#: Those of figure 3: shade, dash and marker distinguish query and value of one method.
SITES = {"query": ("#D55E00", "-", "D"), "value": ("#E69F00", "--", "s"), "key": ("#CC79A7", "-.", "^")}
#: The cosines of a measure, and the lines of figures 5 and 6.
PAIRS = {"lora_vera": "LoRA and VeRA", "lora_random": "LoRA and random", "vera_random": "VeRA and random"}
LOOKS = (COLOURS["vera"], "-", "D"), (COLOURS["lora"], "--", "o"), (COLOURS["random"], ":", "^")
OF_PAIRS, FITTED = (
    dict(zip(PAIRS.values(), LOOKS, strict=True)),
    dict(zip(("VeRA", "LoRA"), LOOKS, strict=False)),
)
#: The columns of their data.
OF_RANKS = ["method", "kind", "rank", "alpha", "scaling", "source", "parameters", "median", "low", "high"]
OF_RANKS += ["n", "wanted", "runs"]
OF_GAINS = ["method", "row", "kind", "source", "parameters", "accuracy", "head", "gain", "complete", "runs"]
OF_SITES = ["site", "layer", "median", "low", "high", "b", "n", "runs"]
OF_COSINES = ["pair", "source", "site", "layer", "median", "low", "high", "n", "runs"]
OF_FITS = [
    "method",
    "kind",
    "rank",
    "parameters",
    "mean",
    "low",
    "high",
    "spread",
    "least",
    "n",
    "of",
    "runs",
]
#: Notes on what is quoted, and on what is not there.
NO_NUMBERS = "The paper prints no numbers of this figure"
OF_TABLE_2 = f"{NO_NUMBERS}: crosses are its table 2's RTE, ranks 256 and 8"
OF_MEANS = "The paper prints two means, over the query matrices at rank 64 (quoted), and none by layer"
NO_GAIN = "Of rows and the head alone not both have run on RTE: no gain of ours (experiment=figure4)."
NO_MEASURE = "Nothing measured: python -m runs experiment={}, then python -m runs.measure {}."
NO_FIT = "Nothing measured: python -m runs.measure matrix_fit takes ten seconds."


def _finding(quoted: str, number: int) -> str:
    return f"{quoted}. Its finding: {paper()[f'figure{number}']['finding']}."


# --- figures of runs


def printed_rte(rows: list[str]) -> pd.DataFrame:
    """Table 2's accuracies on RTE of RoBERTa-large of these rows, with their exact `parameters` and the
    columns of a figure's data."""
    counts = {entry["method"]: entry["count"] for entry in exact_counts() if entry["model"] == PAPER[0]}
    table2 = of_pair(numbers()[numbers().table == "table2"], PAPER)
    table2 = table2.set_index("row", drop=False).loc[rows]
    kind = table2.row.str.partition("_")[0]
    return table2.assign(parameters=table2.row.map(counts), kind=kind, runs=[()] * len(table2))


def figure2(part: Part) -> list[Figure]:
    """The dev metric against trainable parameters, VeRA's and LoRA's ranks. A rank set on the command line
    and a row of that rank are one point. Of a model and task it has the runs on the data that most of its
    rows have and, of each method, with the number of epochs that most of its rows have (of equals the
    most)."""
    plain = part.runs.row.astype(str).str.fullmatch(r"(vera|lora)(_r\d+)?(_proportional)?")
    every = part.runs[(part.runs.kind == "result") & part.runs.task.isin(list(GLUE)) & plain]
    every = every[every["rank"].notna()]
    rank, ends = every["rank"].astype(int), every.row.astype(str).str.extract("(_proportional)$")[0]
    scaling = every.scaling.fillna(BOTH).where(every.method == "lora", "")
    row = every.method + "_r" + rank.astype(str) + ends.fillna("")
    ranks = every = every.assign(row=row, rank=rank, scaling=scaling)
    for group, value in (
        (["model", "task"], ["train_rows", "dev_rows"]),
        (["model", "task", "method"], ["epochs"]),
    ):
        votes = ranks.groupby([*group, *value], as_index=False).row.nunique().sort_values(["row", *value])
        ranks = ranks.merge(votes.drop_duplicates(group, keep="last")[[*group, *value]])
    left_out = every[~every.id.isin(ranks.id)].groupby(["model", "task"]).size()
    found = shared.points(ranks, 5).sort_values(["method", "rank", "scaling"], kind="stable")
    found = found.assign(kind=found.method, method=found.method.map(NAMES), source=part.whose)
    several, figures = found.groupby(["model", "task", "kind"]).filter(lambda of: len(of) > 1), []
    for pair, suffix, lines in by_pair(zip(several.model, several.task, strict=True)):
        of, task = of_pair(found, pair), GLUE[pair[1]]
        lines += notes(of_pair(part.runs, pair), of)
        if count := int(left_out.get(pair, 0)):
            lines.append(
                f"{plural(count, 'run')} on other data, or of other epochs, than most ranks: left out."
            )
        data = of.assign(runs=of.ids).reindex(columns=OF_RANKS)
        if pair == PAPER:
            quoted = printed_rte(["vera", "lora"]).rename(columns={"value": "median"})
            quoted = quoted.assign(rank=[256, 8], scaling="", source="paper, table 2 (quoted)")
            data = stacked(data, quoted.reindex(columns=OF_RANKS))
            lines.append(f"{_finding(OF_TABLE_2, 2)} It does not say LoRA's alpha.")
        label, metric = of.iloc[0][["model_label", "metric"]] if len(of) else ("RoBERTa-large", "accuracy")
        seeds = f"median of {shared.spanned(of.n)} seeds; bars: lowest to highest" if len(of) else ""
        seeds += "; hollow: fewer seeds" * bool((of.n < of.wanted).any())
        draw = partial(_draw_ranks, ylabel=f"{task} dev {shared.metric_label(metric)}")
        title = f"Figure 2: {task} by trainable parameters, {label}"
        figures.append(Figure(f"figure2{suffix}", title, data, lines, draw, seeds))
    return figures


def _draw_ranks(axes: Any, data: pd.DataFrame, ylabel: str) -> None:
    lines = data.assign(line=data.scaling.str.split(" and ")).explode("line", ignore_index=True)
    if not (data.scaling == "proportional").any():  # LoRA's own rank alone makes no line
        lines = lines[lines.line != "proportional"]
    lines["line"] = lines.method + lines.line.map(lambda of: ALPHAS.get(of, ""))
    how = {"xlabel": "trainable parameters, without the classification head", "ylabel": ylabel}
    draw_lines(axes, lines, "parameters", "median", "line", RANKS, bars=True, xscale="log", **how)
    # The lowest ranks have nearly the same count: labels by turns to the left and right, of a rank one
    ours = data[(data.runs.map(len) > 0) & data["median"].notna()].drop_duplicates(["kind", "rank"])
    for i, of in enumerate(ours.itertuples()):
        place, side = ((4, -8), "left") if i % 2 else ((-4, 3), "right")
        more: Any = {"textcoords": "offset points", "fontsize": 6, "color": look(of.kind)[0]}
        axes.annotate(f"r={of.rank:g}", (of.parameters, of.median), place, ha=side, **more)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(shared.PARAMETERS)
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.12)


def figure4(part: Part) -> list[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix B), where the metric is
    accuracy; the paper's with the accuracy of the head that follows from them. Of table 2's rows: ranks and
    ablations have figures and tables of their own."""
    found = shared.points(part.runs[part.runs.task.isin(list(GLUE)) & (part.runs.metric == "accuracy")], 5)
    heads, figures = found[found.row == "head"], []
    rows = found[(found.parameters > 0) & ~found.row.astype(str).str.match(shared.VARIED)]
    rows = rows.sort_values("parameters", kind="stable")
    for pair, suffix, lines in by_pair(zip(heads.model, heads.task, strict=True)):
        of, head = of_pair(rows, pair), of_pair(heads, pair)
        data = pd.DataFrame(columns=OF_GAINS)
        if len(of) and len(head) and head["median"].iloc[0]:  # else there is no gain over it
            alone = head.iloc[0]
            data = of.assign(kind=of.method, method=of.label, source=part.whose, accuracy=of["median"])
            data = data.assign(head=alone["median"], complete=of.complete & alone.complete)
            data["runs"] = [(*ids, *alone.ids) for ids in of.ids]
            data["gain"] = 100 * data.accuracy / data["head"] / (data.parameters / 1000)
        lines += notes(of_pair(part.runs, pair), stacked(of, head))
        data = data[OF_GAINS]
        if pair == PAPER:
            lines += [NO_GAIN] * data.empty
            gains = paper()["figure4"]["printed"]
            quoted = printed_rte([*gains]).assign(gain=[*map(float, gains.values())], source="paper (quoted)")
            method = quoted.method.where(quoted.row.isin(NAMES), quoted.method + " " + quoted["size"])
            alone = 100 * quoted.value / quoted.gain / (quoted.parameters / 1000)
            quoted = quoted.assign(method=method, head=alone, accuracy=quoted.value, complete=True)
            data = stacked(quoted[OF_GAINS], data)
        label = of.model_label.iloc[0] if len(of) else "RoBERTa-large"
        title = f"Figure 4: gain per 1K trainable parameters on {GLUE[pair[1]]}, {label}"
        over = "" if data.complete.all() else "light: fewer seeds"
        figures.append(Figure(f"figure4{suffix}", title, data, lines, _draw_gains, over))
    return figures


def _draw_gains(axes: Any, data: pd.DataFrame) -> None:
    """Groups of bars: a method each, a bar for each source."""
    data = data[finite(data.gain).notna()]
    names, sources = data.drop_duplicates("row").set_index("row").method, data.source.unique()
    legend = list[Patch]()
    for i, source in enumerate(sources):
        of, wide = data[data.source == source], 0.8 / len(sources)
        at, quoted = names.index.get_indexer(of.row) + (i + 0.5) * wide - 0.4, not of.runs.any()
        colours = ["#dddddd" if quoted else look(*key)[0] for key in zip(of.kind, of.row, strict=True)]
        bars = axes.bar(at, of.gain, wide * 0.92, color=colours, hatch="///" * quoted)
        legend.append(Patch(color="#dddddd" if quoted else "#555555", hatch="///" * quoted, label=source))
        for bar, complete in zip(bars, of.complete, strict=True):
            bar.set_alpha(1 if complete else 0.5)
        axes.bar_label(bars, [f"{gain:.2g}" for gain in of.gain], padding=1, fontsize=6)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set(yscale="log", ylabel="gain per 1K parameters, % (log)")
    axes.yaxis.set_major_formatter(FuncFormatter("{:g}".format))
    axes.minorticks_off()
    axes.margins(y=0.15)
    axes.legend(handles=legend)


# --- figures of measures, by layer


class Measured(NamedTuple):
    """The measures of a model and a task, one for each run: what the figure's name ends with, model and task
    by their labels, and notes on what is left out."""

    suffix: str
    where: str
    measures: list[Record]
    notes: list[str]


def measured(runs: pd.DataFrame, measures: Iterable[Record], kind: str) -> Iterator[Measured]:
    """The measures of a kind by model and task, the paper's first, maybe without measures; magnitudes of the
    row vera alone. One for each run of a cell, all of one setting: of several the paper's rank 64 in figure
    5, then the one of most runs."""
    kept = chosen(runs)
    cell_of, counts = kept[kept.left_out == ""].set_index("id").cell, Counter[Any]()
    groups = defaultdict[Any, dict[Any, dict[Any, Record]]](lambda: defaultdict(dict))
    for measure in sorted(measures, key=lambda of: [run["cell"]["seed"] for run in of["of"]]):
        ids, (cell, *_) = (
            tuple(run["id"] for run in measure["of"]),
            [*(run["cell"] for run in measure["of"]), {}],
        )
        if measure["kind"] == kind and (kind == "similarity" or cell.get("row") == "vera"):
            pair = cell["model"], cell["task"]
            counts[pair] += 1
            if {*ids} <= {*cell_of.index}:
                setting = str(measure["settings"]), *cell_of[[*ids]]
                groups[pair][setting][ids] = measure

    def rank(group: dict[Any, Record]) -> tuple[bool, int]:
        return next(iter(group.values()))["settings"].get("ranks") == [64, 64], len(group)

    for pair, suffix, lines in by_pair(counts):
        found = [*max(groups[pair].values(), key=rank, default={}).values()]
        if others := counts[pair] - len(found):
            why = "of other settings, of a run measured before, or of one in no cell"
            lines.append(f"{others} measures are left out: {why}.")
        label = found[0]["of"][0]["label"] if found else {"model": "RoBERTa-large", "task": "RTE"}
        yield Measured(suffix, f"{label['model']} on {label['task']}", found, lines)


def values(measures: Sequence[Record], *names: str) -> pd.DataFrame:
    """These values of measures by site and layer, NaN where one is none, with the measure's place in the
    sequence (number) and the ids of its runs."""
    parts = [pd.DataFrame(columns=["site", "layer", "number", "runs", *names])]
    for number, measure in enumerate(measures):
        of, ids = measure["values"], tuple(run["id"] for run in measure["of"])
        part = pd.DataFrame({"site": of["site"], "layer": of["layer"], "number": number})
        parts.append(part.assign(runs=[ids] * len(part), **{name: finite(of[name]) for name in names}))
    return stacked(*parts)


def _by_layer(part: Part, kind: str, *names: str) -> Iterator[tuple[Measured, pd.DataFrame, list[str]]]:
    """The measures of a kind; of each of these values, by site and layer, the median, lowest and highest of
    those that are finite, with how many these are (n), of how many (of), and the ids of their runs; and
    notes."""
    how = {"median": "median", "low": "min", "high": "max", "n": "count", "of": "size"}
    aggregates: Any = {name: ("value", of) for name, of in how.items()}
    aggregates["runs"] = ("runs", lambda of: tuple(dict.fromkeys(run for ids in of for run in ids)))
    for group in measured(part.runs, part.measures, kind):
        long = values(group.measures, *names).melt(["site", "layer", "number", "runs"], var_name="name")
        data = long.groupby(["name", "site", "layer"], as_index=False).agg(**aggregates)
        ran = part.runs[part.runs.id.isin({run for ids in data.runs for run in ids})]
        missing = NO_MEASURE.format("figure3" if kind == "magnitude" else "figure5", kind)
        odd = data[(data.n < data.of) & (data.name != "b")]
        gone = [
            f"{of.site}, layer {of.layer}: {of.of - of.n} of {of.of} not finite." for of in odd.itertuples()
        ]
        yield group, data, [*group.notes, *(notes(ran, cells(ran)) if len(ran) else [missing]), *gone]


def figure3(part: Part) -> list[Figure]:
    """How far d has moved, by layer and site: a figure for each model and task with measures of the row
    vera."""
    figures = []
    for group, found, lines in _by_layer(part, "magnitude", "d", "b"):
        data = found[found.name == "d"].assign(b=[*found["median"][found.name == "b"]])
        lines += [] if group.suffix else [_finding(NO_NUMBERS, 3)]
        count = len(group.measures)
        over = f"median of {count} runs, bands from the lowest to the highest" if count > 1 else "one run"
        title = f"Figure 3: change of d by layer, {group.where}"
        how: Any = {"looks": SITES, "ylabel": "‖d - d_init‖₂", "ylim": (0, None)}
        draw = partial(draw_lines, x="layer", y="median", by="site", xlabel="layer", **how)
        figures.append(Figure(f"figure3{group.suffix}", title, data[OF_SITES], lines, draw, over))
    return figures


def figure5(part: Part) -> list[Figure]:
    """Cosine of weight differences by layer: LoRA against VeRA, and each against random (VeRA paper, appendix
    D)."""
    figures = []
    for group, found, lines in _by_layer(part, "similarity", *PAIRS):
        data = found.assign(pair=found.name.map(PAIRS), source=part.whose)
        means = _of_queries(data).groupby("pair")["median"].mean()
        lines += [f"{pair}: mean over layers of what is drawn {mean:.1e}." for pair, mean in means.items()]
        if not group.suffix:
            printed = paper()["figure5"]["printed"].items()
            rows = [(PAIRS[key.removeprefix("mean_")], float(mean)) for key, mean in printed]
            quoted = pd.DataFrame(rows, columns=["pair", "median"]).assign(runs=[()] * len(rows))
            data = stacked(data, quoted.assign(source="paper's mean (quoted)", site="query"))
            lines.append(_finding(OF_MEANS, 5))
        over = "query matrices" if (data.site == "query").any() else "all adapted matrices"
        if (count := len(group.measures)) > 1:
            over = f"median of {count} pairs of runs, {over}"
        title, data = (
            f"Figure 5: cosine of weight differences, {group.where}",
            data.reindex(columns=OF_COSINES),
        )
        figures.append(Figure(f"figure5{group.suffix}", title, data, lines, _draw_cosines, over))
    return figures


def _of_queries(data: pd.DataFrame) -> pd.DataFrame:
    """The rows of the query matrices, where there are any."""
    return data[(data.site == "query") | ~(data.site == "query").any()]


def _draw_cosines(axes: Any, data: pd.DataFrame) -> None:
    draw_lines(axes, _of_queries(data), "layer", "median", "pair", OF_PAIRS, xlabel="layer", ylabel="cosine")
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))


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
    lines.append(_finding(NO_NUMBERS, 6))
    over = f"mean of {of['matrices']} matrices, bands from the lowest to the highest" if fit else ""
    title = f"Figure 6: fitting random {of.get('size', 10)} x {of.get('size', 10)} matrices"
    how: Any = {"looks": FITTED, "xlabel": "trained parameters", "ylabel": "mean squared error"}
    draw = partial(draw_lines, x="parameters", y="mean", by="method", **how)
    return [Figure("figure6", title, data[data.n > 0], lines, draw, over)]


def _shown(measures: Iterable[Record]) -> Record | None:
    """The fit that is drawn: each is complete in itself, and this has the lowest seed."""
    fits = [of for of in measures if of["kind"] == "matrix_fit"]
    return min(fits, key=lambda of: (of["seeds"]["random"], of["id"]), default=None)


def errors(measures: Iterable[Record]) -> pd.DataFrame:
    """The errors of the fit that is shown, a row for each method and rank: their mean, spread, lowest and
    highest over the matrices, how many are finite (n, of), and the least that the rank allows."""
    fit, rows = _shown(measures) or {"id": "", "values": {}}, []
    for method, rank, count, mse, least in zip(*fit["values"].values(), strict=True):
        mse, best = finite(mse), finite(least or [])
        spread = mse.std() if mse.count() > 1 else 0.0
        row = NAMES[method], method, rank, count, mse.mean(), mse.min(), mse.max(), spread
        rows.append((*row, best.mean(), mse.count(), len(mse), (fit["id"],)))
    return pd.DataFrame(rows, columns=OF_FITS)
