"""Figure 2, the dev metric over the ranks of VeRA and LoRA, and figure 4, the gain over the head alone, both
by trainable parameters: for the paper's model and task, and for each other of GLUE that has run."""

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from analysis.beside import exact_counts
from analysis.figures import figure as shared
from analysis.figures.figure import PAPER, Figure, Part, look
from analysis.notes import notes
from analysis.paper import GLUE, NAMES, numbers, paper
from runs.record.text import plural

#: LoRA's recipe's own rank is on both of its lines.
BOTH = "constant and proportional"
#: The lines of figure 2: a method, how alpha follows the rank, and a dash.
RANK_LINES = {
    "VeRA": ("vera", ("",), "-"),
    "LoRA, constant alpha": ("lora", ("constant", "given", BOTH), "-"),
    "LoRA, alpha proportional to r": ("lora", ("proportional", BOTH), "--"),
}
OF_RANKS = ["method", "kind", "rank", "alpha", "scaling", "source", "parameters"]
OF_RANKS += ["median", "low", "high", "n", "wanted", "runs"]
OF_GAINS = ["method", "row", "kind", "source", "parameters", "accuracy", "head", "gain", "complete", "runs"]
QUOTED = (
    "The paper prints no numbers of this figure: crosses are its table 2's RTE, ranks 256 and 8. Its finding"
)
NOTHING = "Of rows and the head alone not both have run on RTE: no gain of ours (experiment=figure4)."


def printed_rte(rows: list[str]) -> pd.DataFrame:
    """Table 2's accuracies on RTE of RoBERTa-large of these rows, with their exact `parameters` and the
    columns of a figure's data."""
    counts = {entry["method"]: entry["count"] for entry in exact_counts() if entry["model"] == PAPER[0]}
    table2 = shared.of_pair(numbers()[numbers().table == "table2"], PAPER)
    table2 = table2.set_index("row", drop=False).loc[rows]
    kind = table2.row.str.partition("_")[0]
    return table2.assign(parameters=table2.row.map(counts), kind=kind, runs=[()] * len(table2))


# --- figure 2


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
    every = every.assign(
        row=every.method + "_r" + rank.astype(str) + ends.fillna(""), rank=rank, scaling=scaling
    )
    ranks = every
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
    for pair, suffix, lines in shared.by_pair(zip(several.model, several.task, strict=True)):
        of, task = shared.of_pair(found, pair), GLUE[pair[1]]
        data = of.assign(runs=of.ids).reindex(columns=OF_RANKS)
        lines += notes(shared.of_pair(part.runs, pair), of)
        if count := int(left_out.get(pair, 0)):
            words = "on other data, or of other epochs, than most ranks: left out."
            lines.append(f"{plural(count, 'run')} {words}")
        if pair == PAPER:
            quoted = printed_rte(["vera", "lora"]).rename(columns={"value": "median"})
            quoted = quoted.assign(rank=[256, 8], scaling="", source="paper, table 2 (quoted)")
            data = shared.stacked(data, quoted.reindex(columns=OF_RANKS))
            lines.append(f"{QUOTED}: {paper()['figure2']['finding']}. It does not say LoRA's alpha.")
        label, metric = of.iloc[0][["model_label", "metric"]] if len(of) else ("RoBERTa-large", "accuracy")
        seeds = f"median of {shared.spanned(of.n)} seeds; lines: lowest to highest" if len(of) else ""
        seeds += "; hollow: fewer seeds" * bool((of.n < of.wanted).any())
        draw = partial(_draw_ranks, name=f"{task} dev {shared.metric_label(metric)}")
        title = f"Figure 2: {task} by trainable parameters, {label}"
        figures.append(Figure(f"figure2{suffix}", title, data, lines, draw, seeds))
    return figures


def _draw_ranks(axes: Any, data: pd.DataFrame, name: str) -> None:
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


# --- figure 4


def figure4(part: Part) -> list[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix B), where the metric is
    accuracy; the paper's with the accuracy of the head that follows from them. Of table 2's rows: ranks and
    ablations have figures and tables of their own."""
    found = shared.points(part.runs[part.runs.task.isin(list(GLUE)) & (part.runs.metric == "accuracy")], 5)
    heads, figures = found[found.row == "head"], []
    rows = found[(found.parameters > 0) & ~found.row.astype(str).str.match(shared.VARIED)]
    rows = rows.sort_values("parameters", kind="stable")
    for pair, suffix, lines in shared.by_pair(zip(heads.model, heads.task, strict=True)):
        of, head = shared.of_pair(rows, pair), shared.of_pair(heads, pair)
        data = pd.DataFrame(columns=OF_GAINS)
        if len(of) and len(head) and head["median"].iloc[0]:  # else there is no gain over it
            alone = head.iloc[0]
            data = of.assign(kind=of.method, method=of.label, source=part.whose, accuracy=of["median"])
            data = data.assign(head=alone["median"], complete=of.complete & alone.complete)
            data["runs"] = [(*ids, *alone.ids) for ids in of.ids]
            data["gain"] = 100 * data.accuracy / data["head"] / (data.parameters / 1000)
        lines += notes(shared.of_pair(part.runs, pair), shared.stacked(of, head))
        data = data[OF_GAINS]
        if pair == PAPER:
            lines += [NOTHING] * data.empty
            gains = paper()["figure4"]["printed"]
            quoted = printed_rte([*gains]).assign(gain=[*map(float, gains.values())], source="paper (quoted)")
            method = quoted.method.where(quoted.row.isin(NAMES), quoted.method + " " + quoted["size"])
            head_alone = 100 * quoted.value / quoted.gain / (quoted.parameters / 1000)
            quoted = quoted.assign(method=method, head=head_alone, accuracy=quoted.value, complete=True)
            data = shared.stacked(quoted[OF_GAINS], data)
        label = of.model_label.iloc[0] if len(of) else "RoBERTa-large"
        title = f"Figure 4: gain per 1K trainable parameters on {GLUE[pair[1]]}, {label}"
        figures.append(Figure(f"figure4{suffix}", title, data, lines, _draw_gains))
    return figures


def _draw_gains(axes: Any, data: pd.DataFrame) -> None:
    data = data[data.gain.map(shared.finite).notna()]
    quoted, names = data.runs.map(len) == 0, data.drop_duplicates("row").set_index("row").method
    twice = data.row.isin(data.row[quoted]) & data.row.isin(data.row[~quoted])
    wide = 0.38 if 0 < quoted.sum() < len(quoted) else 0.6
    at = names.index.get_indexer(data.row) + twice * (wide / 2 - wide * quoted)
    edges = [look(of.kind, of.row)[0] for of in data.itertuples()]
    faces = pd.Series(edges, data.index).where(data.complete & ~quoted, "white")
    hatches = quoted.map({True: "////", False: ""})
    bars = axes.bar(at, data.gain, wide * 0.92, color=faces, edgecolor=edges, hatch=hatches, linewidth=0.8)
    axes.bar_label(bars, [f"{of:.2g}" for of in data.gain], padding=1, fontsize=6)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set(yscale="log", ylabel="gain per 1K parameters, % (log)")
    axes.yaxis.set_major_formatter(FuncFormatter("{:g}".format))
    axes.minorticks_off()
    axes.margins(y=0.15)
    patches = [Patch(facecolor="white", hatch="////", edgecolor="#555555", label="paper (quoted)")]
    fewer = "" if data.complete.all() else " (hollow: fewer seeds)"
    patches += [Patch(color="#555555", label=f"{of}{fewer}") for of in data.source[~quoted].unique()]
    axes.legend(handles=patches[not quoted.any() :])
