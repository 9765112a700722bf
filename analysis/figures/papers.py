"""Figures 2 to 6 of the paper, for its model and task and for each other of ours: the metric (2) and the gain
over the head alone (4) by trainable parameters, from runs; and from measures, by layer, how far d has moved
(3) and the cosine of weight differences (5), and the error of fitting random matrices (6)."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from analysis.beside import exact_counts
from analysis.figures import figure as shared
from analysis.figures.figure import COLOURS, Figure, Part, draw_lines, finite, look, stacked
from analysis.frame import cells, chosen
from analysis.notes import notes
from analysis.paper import GLUE, NAMES, numbers, paper
from runs.record import Record, plural

#: The model and task of figures 2 to 5.
PAPER = "roberta_large", "rte"
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
#: The columns of the data, in order: of these those that a figure has.
COLUMNS = [
    "method",
    "row",
    "kind",
    "rank",
    "alpha",
    "scaling",
    "pair",
    "source",
    "site",
    "layer",
    "parameters",
]
COLUMNS += ["accuracy", "head", "gain", "median", "mean", "low", "high", "spread", "least", "b", "n", "total"]
COLUMNS += ["wanted", "complete", "runs"]
#: Notes on what is quoted, and on what is not there.
NO_NUMBERS = "The paper prints no numbers of this figure"
OF_TABLE_2 = f"{NO_NUMBERS}: crosses are its table 2's RTE, ranks 256 and 8"
OF_MEANS = "The paper prints two means, over the query matrices at rank 64 (quoted), and none by layer"
NO_GAIN = "Of rows and the head alone not both have run on RTE: no gain of ours (experiment=figure4)."
NO_MEASURE = "Nothing measured: python -m runs experiment={}, then python -m runs.measure {}."
NO_FIT = "Nothing measured: python -m runs.measure matrix_fit takes ten seconds."


def _finding(quoted: str, number: int) -> str:
    return f"{quoted}. Its finding: {paper()[f'figure{number}']['finding']}."


def by_pair(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], str, list[str]]]:
    """Models and tasks in order, after those of the paper's figures, which are always there: each with what
    the figure's name ends with, and a note where the paper has no such figure."""
    yield PAPER, "", []
    for model, task in sorted(set(pairs) - {PAPER}):
        note = f"{model} on {task} is not in the paper, whose figure is RoBERTa-large on RTE."
        yield (model, task), f"_{model}_{task}", [note]


def _columns(data: pd.DataFrame) -> pd.DataFrame:
    return data[[name for name in COLUMNS if name in data]]


# --- figures of runs


def of_pair(frame: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """The rows of a model and task."""
    return frame[(frame.model == pair[0]) & (frame.task == pair[1])]


def _by_pair(part: Part, found: pd.DataFrame, quoted: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """For each model and task of these cells: what the figure's name ends with, the cells, the data (in the
    paper's figure with what is quoted), the labels of model and task, and notes."""
    for pair, suffix, lines in by_pair(zip(found.model, found.task, strict=True)):
        of = of_pair(found, pair)
        lines += notes(of_pair(part.runs, pair), of)
        data, label = of.assign(source=part.whose, runs=of.ids), [*of.model_label, "RoBERTa-large"][0]
        yield suffix, of, data if suffix else stacked(quoted, data), label, GLUE[pair[1]], lines


def printed_rte(rows: list[str]) -> pd.DataFrame:
    """Table 2's accuracies on RTE of RoBERTa-large of these rows, with their exact `parameters` and the
    columns of a figure's data."""
    counts = {entry["method"]: entry["count"] for entry in exact_counts() if entry["model"] == PAPER[0]}
    table2 = of_pair(numbers()[numbers().table == "table2"], PAPER)
    table2 = table2.set_index("row", drop=False).loc[rows].drop(columns="spread")
    kind = table2.row.str.partition("_")[0]
    return table2.assign(parameters=table2.row.map(counts), kind=kind, runs=[()] * len(table2))


def figure2(part: Part) -> Iterator[Figure]:
    """The dev metric against trainable parameters, VeRA's and LoRA's ranks. A rank set on the command line
    and a row of that rank are one point. Of a model and task it has the runs on the data that most of its
    rows have and, of each method, with the number of epochs that most of its rows have (of equals the
    most)."""
    plain = part.runs.row.astype(str).str.fullmatch(r"(vera|lora)(_r\d+)?(_proportional)?")
    every = part.runs[(part.runs.kind == "result") & part.runs.task.isin(list(GLUE)) & plain]
    every = every[every["rank"].notna()]
    rank, ends = every["rank"].astype(int), every.row.astype(str).str.extract("(_proportional)$")[0]
    scaling = every.scaling.fillna(BOTH).where(every.method == "lora", "")
    row, on = every.method + "_r" + rank.astype(str) + ends.fillna(""), ["model", "task"]
    ranks = every = every.assign(row=row, rank=rank, scaling=scaling)
    for group, value in ((on, ["train_rows", "dev_rows"]), ([*on, "method"], ["epochs"])):
        votes = ranks.groupby([*group, *value], as_index=False).row.nunique().sort_values(["row", *value])
        ranks = ranks.merge(votes.drop_duplicates(group, keep="last")[[*group, *value]])
    others = every[~every.id.isin(ranks.id)]
    found = shared.points(ranks, 5).sort_values(["method", "rank", "scaling"], kind="stable")
    found = found.assign(kind=found.method, method=found.method.map(NAMES))
    models = pd.MultiIndex.from_frame(found[on])
    found = found[models.isin([PAPER, *models[found.duplicated([*on, "kind"])]])]
    quoted = printed_rte(["vera", "lora"]).rename(columns={"value": "median"})
    quoted = quoted.assign(rank=[256, 8], scaling="", source="paper, table 2 (quoted)")
    for suffix, of, data, label, task, lines in _by_pair(part, found, quoted):
        if count := len(others.merge(of[on].drop_duplicates())):
            lines += [f"{plural(count, 'run')} on other data, or of other epochs, than most ranks: left out."]
        lines += [] if suffix else [f"{_finding(OF_TABLE_2, 2)} It does not say LoRA's alpha."]
        seeds = f"median of {shared.spanned(of.n)} seeds; bars: lowest to highest" if len(of) else ""
        seeds += "; hollow: fewer seeds" * bool((of.n < of.wanted).any())
        metric = shared.metric_label(of.metric.iloc[0] if len(of) else "accuracy")
        draw = partial(_draw_ranks, ylabel=f"{task} dev {metric}")
        title = f"Figure 2: {task} by trainable parameters, {label}"
        yield Figure(f"figure2{suffix}", title, _columns(data), lines, draw, seeds)


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


def figure4(part: Part) -> Iterator[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix B), where the metric is
    accuracy; the paper's with the accuracy of the head that follows from them. Of table 2's rows: ranks and
    ablations have figures and tables of their own."""
    found = shared.points(part.runs[part.runs.task.isin(list(GLUE)) & (part.runs.metric == "accuracy")], 5)
    found = found[~found.row.astype(str).str.match(shared.VARIED)].sort_values("parameters", kind="stable")
    alone = found[found.row == "head"][["model", "task", "median", "complete", "ids"]]
    found = found.merge(alone, on=["model", "task"], suffixes=("", "_head"))
    found = found.assign(kind=found.method, method=found.label, accuracy=found["median"])
    found = found.assign(head=found.median_head, complete=found.complete & found.complete_head)
    found["ids"] = [(*ids, *heads) for ids, heads in zip(found.ids, found.ids_head, strict=True)]
    found["gain"] = finite(100 * found.accuracy / found["head"] / (found.parameters / 1000))
    gains = paper()["figure4"]["printed"]
    quoted = printed_rte([*gains]).assign(gain=[*map(float, gains.values())], source="paper (quoted)")
    method = quoted.method.where(quoted.row.isin(NAMES), quoted.method + " " + quoted["size"])
    quoted = quoted.assign(method=method, accuracy=quoted.value, complete=True)
    quoted["head"] = 100 * quoted.value / quoted.gain / (quoted.parameters / 1000)
    for suffix, of, data, label, task, lines in _by_pair(part, found, quoted):
        lines += [] if suffix or of.gain.notna().any() else [NO_GAIN]
        data = _columns(data[data.gain.notna()])
        over = "" if data.complete.all() else "light: fewer seeds"
        title = f"Figure 4: gain per 1K trainable parameters on {task}, {label}"
        yield Figure(f"figure4{suffix}", title, data, lines, _draw_gains, over)


def _draw_gains(axes: Any, data: pd.DataFrame) -> None:
    """Groups of bars: a method each, a bar for each source."""
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


def measured(
    runs: pd.DataFrame, measures: Iterable[Record], kind: str, *names: str
) -> Iterator[tuple[str, str, pd.DataFrame, list[str]]]:
    """Values of the measures of a kind, for each model and task, the paper's first, maybe of no measure: what
    the figure's name ends with, both by their labels, these values by site and layer (NaN where one is none,
    with the measure's number and the ids of its runs), and notes on what is left out.

    Magnitudes are of the row vera alone. One for each run of a cell, all of one setting: of several the
    paper's rank 64 in figure 5, then the one of most runs."""
    kept = chosen(runs)
    cell_of, counts = kept[kept.left_out == ""].set_index("id").cell, Counter[Any]()
    groups = defaultdict[Any, dict[Any, dict[Any, Record]]](lambda: defaultdict(dict))
    for measure in sorted(measures, key=lambda of: [run["cell"]["seed"] for run in of["of"]]):
        ids, of = [run["id"] for run in measure["of"]], [run["cell"] for run in measure["of"]]
        if measure["kind"] == kind and (kind == "similarity" or of[0]["row"] == "vera"):
            pair = of[0]["model"], of[0]["task"]
            counts[pair] += 1
            if {*ids} <= {*cell_of.index}:
                groups[pair][str(measure["settings"]), *cell_of[ids]][tuple(ids)] = measure

    def rank(group: dict[Any, Record]) -> tuple[bool, int]:
        return next(iter(group.values()))["settings"].get("ranks") == [64, 64], len(group)

    for pair, suffix, lines in by_pair(counts):
        found = [*max(groups[pair].values(), key=rank, default={}).values()]
        if others := counts[pair] - len(found):
            why = "of other settings, of a run measured before, or of one in no cell"
            lines.append(f"{others} measures are left out: {why}.")
        label = found[0]["of"][0]["label"] if found else {"model": "RoBERTa-large", "task": "RTE"}
        parts = [pd.DataFrame(columns=["site", "layer", "number", "runs", *names])]
        for number, measure in enumerate(found):
            content, behind = measure["values"], tuple(run["id"] for run in measure["of"])
            part = pd.DataFrame({key: content[key] for key in ("site", "layer")}).assign(number=number)
            part = part.assign(**{name: finite(content[name]) for name in names})
            parts.append(part.assign(runs=[behind] * len(part)))
        yield suffix, f"{label['model']} on {label['task']}", stacked(*parts), lines


def _by_layer(part: Part, kind: str, *names: str) -> Iterator[tuple[str, str, int, pd.DataFrame, list[str]]]:
    """As `measured`, with the number of measures, and of each of these values, by site and layer, the median,
    lowest and highest of those that are finite, with how many these are (n), of how many (total), and the ids
    of their runs."""
    how = {"median": "median", "low": "min", "high": "max", "n": "count", "total": "size"}
    aggregates: Any = {name: ("value", of) for name, of in how.items()}
    aggregates["runs"] = ("runs", lambda of: tuple(dict.fromkeys(run for ids in of for run in ids)))
    for suffix, where, of, lines in measured(part.runs, part.measures, kind, *names):
        long = of.melt(["site", "layer", "number", "runs"], var_name="name")
        data = long.groupby(["name", "site", "layer"], as_index=False).agg(**aggregates)
        ran = part.runs[part.runs.id.isin({run for ids in data.runs for run in ids})]
        missing = NO_MEASURE.format("figure3" if kind == "magnitude" else "figure5", kind)
        lines += notes(ran, cells(ran)) if len(ran) else [missing]
        for odd in data[(data.n < data.total) & (data.name != "b")].itertuples():
            lines.append(f"{odd.site}, layer {odd.layer}: {odd.total - odd.n} of {odd.total} not finite.")
        yield suffix, where, of.number.nunique(), data.assign(source=part.whose), lines


def figure3(part: Part) -> Iterator[Figure]:
    """How far d has moved, by layer and site: a figure for each model and task with measures of the row
    vera."""
    for suffix, where, count, found, lines in _by_layer(part, "magnitude", "d", "b"):
        data = found[found.name == "d"].assign(b=[*found["median"][found.name == "b"]])
        lines += [] if suffix else [_finding(NO_NUMBERS, 3)]
        over = f"median of {count} runs, bands from the lowest to the highest" if count > 1 else "one run"
        title = f"Figure 3: change of d by layer, {where}"
        how: Any = {"looks": SITES, "ylabel": "‖d - d_init‖₂", "ylim": (0, None)}
        draw = partial(draw_lines, x="layer", y="median", by="site", xlabel="layer", **how)
        yield Figure(f"figure3{suffix}", title, _columns(data), lines, draw, over)


def figure5(part: Part) -> Iterator[Figure]:
    """Cosine of weight differences by layer: LoRA against VeRA, and each against random (VeRA paper, appendix
    D)."""
    printed = paper()["figure5"]["printed"].items()
    rows = [(PAIRS[key.removeprefix("mean_")], float(mean)) for key, mean in printed]
    quoted = pd.DataFrame(rows, columns=["pair", "median"]).assign(runs=[()] * len(rows))
    quoted = quoted.assign(source="paper's mean (quoted)", site="query")
    for suffix, where, count, found, lines in _by_layer(part, "similarity", *PAIRS):
        data = found.assign(pair=found.name.map(PAIRS))
        means = _of_queries(data).groupby("pair")["median"].mean()
        lines += [f"{pair}: mean over layers of what is drawn {mean:.1e}." for pair, mean in means.items()]
        if not suffix:
            data = stacked(data, quoted.reindex(columns=data.columns))
            lines.append(_finding(OF_MEANS, 5))
        over = f"median of {count} pairs of runs, " * (count > 1)
        over += "query matrices" if (data.site == "query").any() else "all adapted matrices"
        title = f"Figure 5: cosine of weight differences, {where}"
        yield Figure(f"figure5{suffix}", title, _columns(data), lines, _draw_cosines, over)


def _of_queries(data: pd.DataFrame) -> pd.DataFrame:
    """The rows of the query matrices, where there are any."""
    return data[(data.site == "query") | ~(data.site == "query").any()]


def _draw_cosines(axes: Any, data: pd.DataFrame) -> None:
    draw_lines(axes, _of_queries(data), "layer", "median", "pair", OF_PAIRS, xlabel="layer", ylabel="cosine")
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))


# --- figure 6


def figure6(part: Part) -> Iterator[Figure]:
    """Mean squared error of fitting random matrices against parameters, LoRA and VeRA (VeRA paper, appendix
    E)."""
    data, fit = errors(part.measures), _shown(part.measures)
    of, lines, over = fit["settings"], [NO_FIT], ""
    if of:
        words = ", ".join(
            f"{key} {of.get(key)}" for key in ("matrices", "target", "steps", "lr", "optimizer")
        )
        lines = [f"Measure {fit['id']}; settings (this project's choice): {words}."]
        over = f"mean of {of['matrices']} matrices, bands from the lowest to the highest"
    for at in data[data.n < data.total].itertuples():
        lines.append(f"{at.method} at rank {at.rank}: {at.total - at.n} of {at.total} errors are not finite.")
    title = f"Figure 6: fitting random {of.get('size', 10)} x {of.get('size', 10)} matrices"
    how: Any = {"looks": FITTED, "xlabel": "trained parameters", "ylabel": "mean squared error"}
    draw = partial(draw_lines, x="parameters", y="mean", by="method", **how)
    yield Figure("figure6", title, data[data.n > 0], [*lines, _finding(NO_NUMBERS, 6)], draw, over)


def _shown(measures: Iterable[Record]) -> Record:
    """The fit that is drawn: each is complete in itself, and this has the lowest seed; an empty one of
    none."""
    fits = [of for of in measures if of["kind"] == "matrix_fit"]
    none: Any = {"id": "", "settings": {}, "values": {}}
    return min(fits, key=lambda of: (of["seeds"]["random"], of["id"]), default=none)


def errors(measures: Iterable[Record]) -> pd.DataFrame:
    """The errors of the fit that is shown, a row for each method and rank: their mean, spread, lowest and
    highest over the matrices, how many are finite (n, total), and the least that the rank allows."""
    fit = _shown(measures)
    found = pd.DataFrame(fit["values"], columns=["method", "rank", "parameters", "mse", "best"])
    mse, best = (finite(found[name].explode()).groupby(level=0) for name in ("mse", "best"))
    how = {"mean": "mean", "low": "min", "high": "max", "spread": "std", "n": "count", "total": "size"}
    found = found.join(mse.agg(**how)).assign(least=best.mean(), runs=[(fit["id"],)] * len(found))
    kind, spread = found.method, found.spread.fillna(0.0)
    return _columns(found.assign(kind=kind, method=kind.map(NAMES), spread=spread))
