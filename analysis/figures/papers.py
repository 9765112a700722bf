"""Figures 2 to 6 of the paper, for its model and task and for each other that has run:
the metric (2) and the gain over the head alone (4) by trainable parameters, from runs;
and from measures, by layer, how far d has moved (3) and the cosine of weight
differences (5), and the error of fitting random matrices (6)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator

from analysis.figures import figure as shared
from analysis.figures.figure import COLOURS, Figure, Part, draw_lines, finite, look
from analysis.frame import cells, mark_left_out, reported_cells
from analysis.notes import notes
from analysis.paper import GLUE, NAMES, numbers, paper
from runs.record import Record, in_conf, plural

#: The model and task of figures 2 to 5.
PAPER = "roberta_large", "rte"
#: LoRA's recipe's own rank is on both of its lines.
BOTH = "constant and proportional"
#: The lines of figure 2, by what their method's name is followed by.
ALPHAS = dict.fromkeys(("constant", "given"), ", constant alpha")
ALPHAS |= {"proportional": ", alpha proportional to r"}
VERA, LORA = look("vera"), look("lora")
RANKS = {
    "VeRA": (VERA[0], "-", VERA[1]),
    "LoRA, constant alpha": (LORA[0], "-", LORA[1]),
}
RANKS |= {
    "LoRA, alpha proportional to r": (LORA[0], "--", LORA[1]),
    "LoRA": (LORA[0], "", ""),
}
#: Those of figure 3: shade, dash and marker distinguish query and value of one method.
SITES = {
    "query": ("#D55E00", "-", "D"),
    "value": ("#E69F00", "--", "s"),
    "key": ("#CC79A7", "-.", "^"),
}
#: The cosines of a measure, and the lines of figures 5 and 6.
PAIRS = {
    "lora_vera": "LoRA and VeRA",
    "lora_random": "LoRA and random",
    "vera_random": "VeRA and random",
}
LOOKS = (
    (COLOURS["vera"], "-", "D"),
    (COLOURS["lora"], "--", "o"),
    (COLOURS["random"], ":", "^"),
)
#: What a note says of a fit.
FITTED = ("matrices", "target", "steps", "lr", "optimizer")
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
]
COLUMNS += [
    "parameters",
    "accuracy",
    "head",
    "gain",
    "median",
    "mean",
    "low",
    "high",
    "spread",
    "least",
    "b",
]
COLUMNS += ["n", "total", "wanted", "complete", "runs"]


def _figure(
    number: int,
    title: str,
    data: pd.DataFrame,
    notes: list[str],
    draw: Callable[..., None],
    subtitle: str,
    pair: tuple[str, str] = PAPER,
    quoted: pd.DataFrame | None = None,
) -> Figure:
    """A figure of a model and task (`pair`): the paper's own with what is quoted and
    its finding, another one with a name and a note of its own."""
    of, suffix = paper()[f"figure{number}"], ""
    if pair == PAPER:
        data = pd.concat([quoted, data], ignore_index=True)
        notes += (
            [f"{of['note']}. Its finding: {of['finding']}."] if "note" in of else []
        )
    else:
        suffix = "_" + "_".join(pair)
        notes += [
            f"{' on '.join(pair)} is not in the paper, whose figure is RoBERTa-large on RTE."
        ]
    data = data[[name for name in COLUMNS if name in data]]
    return Figure(
        f"figure{number}{suffix}",
        f"Figure {number}: {title}",
        data,
        notes,
        draw,
        subtitle,
    )


# --- figures of runs


def _by_pair(part: Part, found: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """These cells by model and task: both by name, the cells as a figure's data, both
    by label, and notes."""
    for (model, task), of in found.groupby(["model", "task"]):
        lines = notes(
            part.runs[(part.runs.model == model) & (part.runs.task == task)], of
        )
        data = of.assign(source=part.whose, runs=of.ids)
        yield (model, task), data, of.model_label.iloc[0], GLUE[task], lines


def printed_rte(rows: list[str]) -> pd.DataFrame:
    """Table 2's accuracies on RTE of RoBERTa-large of these rows, with their exact
    `parameters` and the columns of a figure's data."""
    counts = {
        of["method"]: of["count"]
        for of in in_conf("counts.yaml")
        if of["model"] == PAPER[0]
    }
    table2 = numbers().query(
        "table == 'table2' and model == @PAPER[0] and task == @PAPER[1]"
    )
    table2 = table2.set_index("row", drop=False).loc[rows].drop(columns="spread")
    kind = table2.row.str.partition("_")[0]
    return table2.assign(
        parameters=table2.row.map(counts), kind=kind, runs=[()] * len(table2)
    )


def figure2(part: Part) -> Iterator[Figure]:
    """The dev metric against trainable parameters, VeRA's and LoRA's ranks. A rank set
    on the command line and a row of that rank are one point. Of a model and task it has
    the runs on the data that most of its rows have and, of each method, with the number
    of epochs that most of its rows have (of equals the most)."""
    plain = part.runs.row.astype(str).str.fullmatch(
        r"(vera|lora)(_r\d+)?(_proportional)?"
    )
    every = part.runs[
        (part.runs.kind == "result") & part.runs.task.isin(list(GLUE)) & plain
    ]
    every = every[every["rank"].notna()]
    rank, ends = (
        every["rank"].astype(int),
        every.row.astype(str).str.extract("(_proportional)$")[0],
    )
    scaling = every.scaling.fillna(BOTH).where(every.method == "lora", "")
    row, on = (
        every.method + "_r" + rank.astype(str) + ends.fillna(""),
        ["model", "task"],
    )
    ranks = every = every.assign(row=row, rank=rank, scaling=scaling)
    for group, value in (
        (on, ["train_rows", "dev_rows"]),
        ([*on, "method"], ["epochs"]),
    ):
        votes = (
            ranks.groupby([*group, *value], as_index=False)
            .row.nunique()
            .sort_values(["row", *value])
        )
        ranks = ranks.merge(votes.drop_duplicates(group, keep="last")[[*group, *value]])
    others = every[~every.id.isin(ranks.id)]
    found = reported_cells(ranks, seeds=5).sort_values(
        ["method", "rank", "scaling"], kind="stable"
    )
    # NaN where a seed has none
    low, high = (found["values"].map(end) for end in (np.min, np.max))
    found = found.assign(
        kind=found.method, method=found.method.map(NAMES), low=low, high=high
    )
    models = pd.MultiIndex.from_frame(found[on])
    found = found[models.isin([PAPER, *models[found.duplicated([*on, "kind"])]])]
    quoted = printed_rte(["vera", "lora"]).rename(columns={"value": "median"})
    quoted = quoted.assign(rank=[256, 8], scaling="", source="paper, table 2 (quoted)")
    for pair, of, label, task, lines in _by_pair(part, found):
        if count := len(others.merge(of[on].drop_duplicates())):
            lines += [
                f"{plural(count, 'run')} on other data, or of other epochs, than most ranks: left out."
            ]
        over = f"median of {shared.spanned(of.n)} seeds, bands from the lowest to the highest"
        over += "; hollow: fewer seeds" * bool((of.n < of.wanted).any())
        draw = partial(
            _draw_ranks, ylabel=f"{task} dev {shared.metric_label(of.metric.iloc[0])}"
        )
        yield _figure(
            2,
            f"{task} by trainable parameters, {label}",
            of,
            lines,
            draw,
            over,
            pair,
            quoted,
        )


def _draw_ranks(axes: Any, data: pd.DataFrame, ylabel: str) -> None:
    # LoRA of its own rank alone makes no second line
    lines = data.assign(line=data.scaling.str.split(" and ")).explode(
        "line", ignore_index=True
    )
    if not (data.scaling == "proportional").any():
        lines = lines[lines.line != "proportional"]
    lines["line"] = lines.method + lines.line.map(lambda of: ALPHAS.get(of, ""))
    how = {
        "xlabel": "trainable parameters, without the classification head",
        "ylabel": ylabel,
    }
    draw_lines(axes, lines, "parameters", "median", "line", RANKS, xscale="log", **how)
    ours = data[(data.runs.map(len) > 0) & data["median"].notna()].drop_duplicates(
        ["kind", "rank"]
    )
    for of in ours.itertuples():
        axes.text(
            of.parameters,
            of.median,
            f" r={of.rank:g}",
            fontsize=6,
            color=look(of.kind)[0],
            rotation=45,
        )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(shared.PARAMETERS)
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.12)


def figure4(part: Part) -> Iterator[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix
    B), where the metric is accuracy; the paper's with the accuracy of the head that
    follows from them. Of table 2's rows: ranks and ablations have figures and tables of
    their own."""
    accuracies = part.runs[
        part.runs.task.isin([*GLUE]) & (part.runs.metric == "accuracy")
    ]
    found = reported_cells(accuracies, seeds=5)
    found = found[~found.row.astype(str).str.match(shared.VARIED)].sort_values(
        "parameters", kind="stable"
    )
    alone = found[found.row == "head"][["model", "task", "median", "complete", "ids"]]
    found = found.merge(alone, on=["model", "task"], suffixes=("", "_head"))
    found = found.assign(
        kind=found.method, method=found.label, accuracy=found["median"]
    )
    found = found.assign(
        head=found.median_head, complete=found.complete & found.complete_head
    )
    found["ids"] = [
        (*ids, *heads) for ids, heads in zip(found.ids, found.ids_head, strict=True)
    ]
    found["gain"] = finite(
        100 * found.accuracy / found["head"] / (found.parameters / 1000)
    )
    gains = paper()["figure4"]["printed"]
    quoted = printed_rte([*gains]).assign(
        gain=[*map(float, gains.values())], source="paper (quoted)"
    )
    method = quoted.method.where(
        quoted.row.isin(NAMES), quoted.method + " " + quoted["size"]
    )
    quoted = quoted.assign(method=method, accuracy=quoted.value, complete=True)
    quoted["head"] = 100 * quoted.value / quoted.gain / (quoted.parameters / 1000)
    for pair, of, label, task, lines in _by_pair(part, found[found.gain.notna()]):
        few, where = ", ".join(of.method[~of.complete.astype(bool)]), f"{task}, {label}"
        title, over = (
            f"gain per 1K trainable parameters on {where}",
            f"fewer seeds: {few}" * bool(few),
        )
        yield _figure(4, title, of, lines, _draw_gains, over, pair, quoted)


def _draw_gains(axes: Any, data: pd.DataFrame) -> None:
    """Groups of bars: a row each, a bar of one colour for each source."""
    names = data.drop_duplicates("row").set_index("row").method
    bars = data.pivot(index="row", columns="source", values="gain").reindex(names.index)
    bars = bars[data.source.unique()].set_axis(names)
    colours = [
        "#555555" if of.any() else "#cccccc"
        for _, of in data.groupby("source", sort=False).runs
    ]
    bars.plot.bar(ax=axes, width=0.8, color=colours, logy=True, rot=20)
    for of in axes.containers:
        axes.bar_label(of, fmt="{:.2g}", padding=1, fontsize=6)
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="", ylabel="gain per 1K parameters, % (log)")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.margins(y=0.15)
    axes.legend()


# --- figures of measures, by layer


def measured(
    runs: pd.DataFrame, measures: Iterable[Record], kind: str, *names: str
) -> Iterator[tuple[tuple[str, str], str, pd.DataFrame, list[str]]]:
    """Values of the measures of a kind, for each model and task: both by name, both by
    label, these values by site and layer (NaN where one is none, with the measure's
    number and the ids of its runs), and notes on what is left out.

    Magnitudes are of the row vera alone. One for each run of a cell, all of one
    setting: of several the paper's rank 64 in figure 5, then the one of most runs."""
    kept, groups = mark_left_out(runs), defaultdict[Any, list[Record]](list)
    cell_of = kept[kept.left_out == ""].set_index("id").cell
    for one in sorted(
        measures, key=lambda of: [run["cell"]["seed"] for run in of["of"]]
    ):
        if one["kind"] == kind and (
            kind == "similarity" or one["of"][0]["cell"]["row"] == "vera"
        ):
            groups[one["of"][0]["cell"]["model"], one["of"][0]["cell"]["task"]].append(
                one
            )
    for pair, every in sorted(groups.items()):
        alike = defaultdict[Any, dict[Any, Record]](dict)
        for one in every:
            ids, setting = tuple(run["id"] for run in one["of"]), one["settings"]
            if cell_of.index.isin(ids).sum() == len(ids):
                alike[setting.get("ranks") == [64, 64], str(setting), *cell_of[[*ids]]][
                    ids
                ] = one
        found = max(
            alike.items(), key=lambda of: (of[0][0], len(of[1])), default=(None, {})
        )[1]
        values = [
            {"runs": ids, **found[ids]["values"], "number": i}
            for i, ids in enumerate(found)
        ]
        columns = ["site", "layer", *names]
        data = pd.DataFrame(values, columns=["number", "runs", *columns]).explode(
            columns, ignore_index=True
        )
        data = data.dropna(subset="layer").assign(
            **{name: finite(data[name]) for name in names}
        )
        if len(data):
            why = "of other settings, of a run measured before, or of one in no cell"
            others, label = len(every) - len(found), every[0]["of"][0]["label"]
            lines = [f"{others} measures are left out: {why}."] * bool(others)
            yield pair, f"{label['model']} on {label['task']}", data, lines


def _by_layer(
    part: Part, kind: str, unit: str, *names: str
) -> Iterator[tuple[Any, ...]]:
    """As `measured`, with what the values are over, and of each value, by site and
    layer, the median, lowest and highest of those that are finite, with how many these
    are (n), of how many (total). unit: what a measure is of."""
    how = {
        "median": "median",
        "low": "min",
        "high": "max",
        "n": "count",
        "total": "size",
    }
    aggregates: Any = {name: ("value", of) for name, of in how.items()}
    aggregates["runs"] = (
        "runs",
        lambda of: tuple(dict.fromkeys(run for ids in of for run in ids)),
    )
    for pair, where, of, lines in measured(part.runs, part.measures, kind, *names):
        long = of.melt(["site", "layer", "number", "runs"], var_name="name")
        data = long.groupby(["name", "site", "layer"], as_index=False).agg(**aggregates)
        ran = part.runs[part.runs.id.isin({run for ids in data.runs for run in ids})]
        lines += notes(ran, cells(ran))
        for odd in data[(data.n < data.total) & (data.name != "b")].itertuples():
            lines.append(
                f"{odd.site}, layer {odd.layer}: {odd.total - odd.n} of {odd.total} not finite."
            )
        over = f"median of {plural(of.number.nunique(), unit)}, bands from the lowest to the highest"
        yield pair, where, data.assign(source=part.whose), lines, over


def figure3(part: Part) -> Iterator[Figure]:
    """How far d has moved in the runs of the row vera, by layer and site."""
    looks: dict[str, Any] = {
        "xlabel": "layer",
        "ylabel": "‖d - d_init‖₂",
        "ylim": (0, None),
    }
    draw: Any = partial(
        draw_lines, x="layer", y="median", by="site", looks=SITES, **looks
    )
    for pair, where, data, lines, over in _by_layer(part, "magnitude", "run", "d", "b"):
        d = data[data.name == "d"].assign(b=[*data["median"][data.name == "b"]])
        yield _figure(3, f"change of d by layer, {where}", d, lines, draw, over, pair)


def figure5(part: Part) -> Iterator[Figure]:
    """Cosine of weight differences by layer: LoRA against VeRA, and each against random
    (VeRA paper, appendix D)."""
    quoted = pd.DataFrame(
        paper()["figure5"]["printed"].items(), columns=["pair", "median"]
    )
    quoted = quoted.assign(
        source="paper's mean (quoted)", site="query", runs=[()] * len(quoted)
    )
    quoted["pair"] = quoted.pair.str.removeprefix("mean_").map(PAIRS)
    for pair, where, data, lines, over in _by_layer(part, "similarity", "pair", *PAIRS):
        data = data.assign(pair=data.name.map(PAIRS))
        means = _of_queries(data).groupby("pair")["median"].mean()
        lines += [
            f"{name}: mean over layers of what is drawn {mean:.1e}."
            for name, mean in means.items()
        ]
        title = f"cosine of weight differences, {where}"
        yield _figure(5, title, data, lines, _draw_cosines, over, pair, quoted)


def _of_queries(data: pd.DataFrame) -> pd.DataFrame:
    """The rows of the query matrices, where there are any."""
    return data[(data.site == "query") | ~(data.site == "query").any()]


def _draw_cosines(axes: Any, data: pd.DataFrame) -> None:
    looks = dict(zip(PAIRS.values(), LOOKS, strict=True))
    draw_lines(
        axes,
        _of_queries(data),
        "layer",
        "median",
        "pair",
        looks,
        xlabel="layer",
        ylabel="cosine",
    )


# --- figure 6


def figure6(part: Part) -> Iterator[Figure]:
    """Mean squared error of fitting random matrices against parameters, LoRA and VeRA
    (VeRA paper, appendix E)."""
    for fit in shown_fit(part.measures):
        data, of = errors(fit), fit["settings"]
        words = ", ".join(f"{key} {of.get(key)}" for key in FITTED)
        lines = [f"Measure {fit['id']}; settings (this project's choice): {words}."]
        for at in data[data.n < data.total].itertuples():
            lines.append(
                f"{at.method}, rank {at.rank}: {at.total - at.n} of {at.total} errors not finite."
            )
        how: Any = {
            "looks": dict(zip(("VeRA", "LoRA"), LOOKS, strict=False)),
            "by": "method",
        }
        how |= {"xlabel": "trained parameters", "ylabel": "mean squared error"}
        draw = partial(draw_lines, x="parameters", y="mean", **how)
        over = (
            f"mean of {of['matrices']} matrices, bands from the lowest to the highest"
        )
        title = f"fitting random {of['size']} x {of['size']} matrices"
        yield _figure(6, title, data[data.n > 0], lines, draw, over)


def shown_fit(measures: Iterable[Record]) -> list[Record]:
    """The fit that is drawn, if there is any: each is complete in itself, and this has
    the lowest seed."""
    fits = [of for of in measures if of["kind"] == "matrix_fit"]
    return sorted(fits, key=lambda of: (of["seeds"]["random"], of["id"]))[:1]


def errors(fit: Record) -> pd.DataFrame:
    """The errors of a fit, a row for each method and rank: their mean, spread, lowest
    and highest over the matrices, how many are finite (n, total), and the least that
    the rank allows."""
    found = pd.DataFrame(
        fit["values"], columns=["method", "rank", "parameters", "mse", "best"]
    )
    mse, best = (
        finite(found[name].explode()).groupby(level=0) for name in ("mse", "best")
    )
    how = {
        "mean": "mean",
        "low": "min",
        "high": "max",
        "spread": "std",
        "n": "count",
        "total": "size",
    }
    found = found.join(mse.agg(**how)).assign(
        least=best.mean(), runs=[(fit["id"],)] * len(found)
    )
    kind, spread = found.method, found.spread.fillna(0.0)
    return found.assign(kind=kind, method=kind.map(NAMES), spread=spread)
