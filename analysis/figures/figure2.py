"""Figure 2: the dev metric by trainable parameters, over the ranks of VeRA and LoRA."""

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.ticker import LogLocator

from analysis.figures import figure as shared
from analysis.figures.figure import Figure, Part, look
from analysis.notes import notes
from analysis.paper import GLUE, NAMES, paper
from runs.record.text import plural

#: LoRA's recipe's own rank is on both of its lines.
BOTH = "constant and proportional"
#: The lines of figure 2: a method, how alpha follows the rank, and a dash.
RANK_LINES = {
    "VeRA": ("vera", ("",), "-"),
    "LoRA, constant alpha": ("lora", ("constant", "given", BOTH), "-"),
    "LoRA, alpha proportional to r": ("lora", ("proportional", BOTH), "--"),
}
DATA = ["method", "kind", "rank", "alpha", "scaling", "source", "parameters"]
DATA += ["median", "low", "high", "n", "wanted", "runs"]
QUOTED = (
    "The paper prints no numbers of this figure: crosses are its table 2's RTE, ranks 256 and 8. Its finding"
)


def figure2(part: Part) -> list[Figure]:
    """The dev metric against trainable parameters, VeRA's and LoRA's ranks: a figure for the paper's model
    and task, and for each model and task of GLUE on which ranks of either vary."""
    every = _by_rank(part.runs)
    ranks, figures = _comparable(every), list[Figure]()
    left_out = every[~every.id.isin(ranks.id)].groupby(["model", "task"]).size()
    found = shared.points(ranks, 5).sort_values(["method", "rank", "scaling"], kind="stable")
    found = found.assign(kind=found.method, method=found.method.map(NAMES), source=part.whose)
    several = found.groupby(["model", "task", "kind"]).filter(lambda of: len(of) > 1)
    for pair, suffix, lines in shared.by_pair(zip(several.model, several.task, strict=True)):
        of, task = shared.of_pair(found, pair), GLUE[pair[1]]
        data = of.assign(runs=of.ids).reindex(columns=DATA)
        lines += notes(shared.of_pair(part.runs, pair), of)
        if count := int(left_out.get(pair, 0)):
            words = "on other data, or of other epochs, than most ranks: left out."
            lines.append(f"{plural(count, 'run')} {words}")
        if pair == shared.PAPER:
            quoted = shared.printed_rte(["vera", "lora"]).rename(columns={"value": "median"})
            quoted = quoted.assign(rank=[256, 8], scaling="", source="paper, table 2 (quoted)")
            data = shared.stacked(data, quoted.reindex(columns=DATA))
            lines.append(f"{QUOTED}: {paper()['figure2']['finding']}. It does not say LoRA's alpha.")
        label, metric = of.iloc[0][["model_label", "metric"]] if len(of) else ("RoBERTa-large", "accuracy")
        seeds = f"median of {shared.spanned(of.n)} seeds; lines: lowest to highest" if len(of) else ""
        seeds += "; hollow: fewer seeds" * bool((of.n < of.wanted).any())
        draw = partial(_draw, name=f"{task} dev {shared.metric_label(metric)}")
        title = f"Figure 2: {task} by trainable parameters, {label}"
        figures.append(Figure(f"figure2{suffix}", title, data, lines, draw, seeds))
    return figures


def _by_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """GLUE's results of VeRA and LoRA. A rank set on the command line and a row of that rank are one
    point, so both get one row."""
    plain = runs.row.astype(str).str.fullmatch(r"(vera|lora)(_r\d+)?(_proportional)?")
    runs = runs[(runs.kind == "result") & runs.task.isin(list(GLUE)) & plain & runs["rank"].notna()]
    rank, scaling = runs["rank"].astype(int), runs.scaling.fillna(BOTH).where(runs.method == "lora", "")
    ends = runs.row.astype(str).str.extract("(_proportional)$")[0].fillna("")
    return runs.assign(row=runs.method + "_r" + rank.astype(str) + ends, rank=rank, scaling=scaling)


def _comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of a model and task on the data that most of its rows have and, of each method, with the
    number of epochs that most of its rows have (of equals the most data or epochs)."""
    for group, value in (
        (["model", "task"], ["train_rows", "dev_rows"]),
        (["model", "task", "method"], ["epochs"]),
    ):
        votes = runs.groupby([*group, *value], as_index=False).row.nunique().sort_values(["row", *value])
        runs = runs.merge(votes.drop_duplicates(group, keep="last")[[*group, *value]])
    return runs


def _draw(axes: Any, data: pd.DataFrame, name: str) -> None:
    ours, quoted = data[(data.runs.map(len) > 0) & data["median"].notna()], data[data.runs.map(len) == 0]
    for label, (kind, scalings, dash) in RANK_LINES.items():
        of, (colour, marker) = ours[(ours.kind == kind) & ours.scaling.isin(scalings)], look(kind)
        if len(of) and (dash == "-" or (of.scaling == "proportional").any()):
            axes.plot([of.parameters] * 2, [of.low, of.high], color=colour, alpha=0.6)
            axes.plot(of.parameters, of["median"], dash + marker, color=colour, linewidth=1, label=label)
            few = of[of.n < of.wanted]
            axes.plot(few.parameters, few["median"], marker, color=colour, markerfacecolor="white", zorder=3)
    # The lowest ranks have nearly the same count: labels by turns to the left and right, of a rank one
    for i, of in enumerate(ours.drop_duplicates(["kind", "rank"]).itertuples()):
        place, side = ((4, -8), "left") if i % 2 else ((-4, 3), "right")
        more: Any = {"textcoords": "offset points", "fontsize": 6, "color": look(of.kind)[0]}
        axes.annotate(f"r={of.rank:g}", (of.parameters, of.median), place, ha=side, **more)
    for of in quoted.itertuples():
        label, colour = f"{of.method}, paper's table 2 (quoted)", look(of.kind)[0]
        axes.plot(of.parameters, of.median, "x", label=label, color=colour, markersize=7)
    axes.set(xscale="log", xlabel="trainable parameters, without the classification head", ylabel=name)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(shared.PARAMETERS)
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.12)
    axes.legend()
