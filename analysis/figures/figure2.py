"""Figure 2: the dev metric by trainable parameters, over the ranks of VeRA and LoRA."""

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures import points
from analysis.figures.figure import MARKERS, Figure, Part, colour, marker, parameter_count
from analysis.figures.points import LARGE, RTE
from analysis.inference import smallest_p
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
OF_ALPHA = (
    "constant alpha: the recipe's at every rank (Hu et al. 2022). proportional: the recipe's alpha / rank"
    " times the rank. Rates are the recipe's: one for all ranks, or one for each."
)
DATA = ["method", "kind", "rank", "alpha", "scaling", "source", "parameters"]
DATA += ["median", "low", "high", "n", "wanted", "runs"]


def figure2(part: Part) -> list[Figure]:
    """The dev metric against trainable parameters, VeRA's and LoRA's ranks: a figure for the paper's model
    and task, and for each model and task of GLUE on which ranks of either vary."""
    ranks, left_out = _comparable(_by_rank(part.runs))
    found = points.points(ranks, 5)
    found = found.assign(kind=found.method, method=found.method.map(NAMES), source=part.whose)
    found = found.sort_values(["kind", "rank", "scaling"], kind="stable")
    several = found.groupby(["model", "task", "kind"]).filter(lambda of: len(of) > 1)
    figures = []
    for model, task in points.paper_first(zip(several.model, several.task, strict=True)):
        of = points.of_pair(found, model, task)
        notes = points.notes(points.of_pair(part.runs, model, task), of)
        data = of.assign(runs=of.ids).reindex(columns=DATA)
        if count := left_out.get((model, task), 0):
            notes.append(
                f"{plural(count, 'run')} on other data, or of other epochs, than most ranks: left out."
            )
        if (of.kind == "lora").any():
            notes.append(OF_ALPHA)
        if (model, task) == (LARGE, RTE):
            data = points.stacked(data, _quoted())
            notes += _beside_the_paper(of)
        else:
            notes.insert(0, points.not_in_the_paper(model, task))
        title = f"Figure 2: {GLUE[task]} by trainable parameters, {points.label_of(model, of)}"
        metric = points.metric_label(of.metric.iloc[0] if len(of) else "accuracy")
        draw = partial(_draw, name=f"{GLUE[task]} dev {metric}")
        figures.append(
            Figure(f"figure2{points.suffix(model, task)}", title, data, notes, draw, _subtitle(of))
        )
    return figures


def _by_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """GLUE's results of VeRA and LoRA. A rank set on the command line and a row of that rank are one
    point, so both get one row."""
    plain = runs.row.astype(str).str.fullmatch(r"(vera|lora)(_r\d+)?(_proportional)?")
    runs = runs[(runs.kind == "result") & runs.task.isin(list(GLUE)) & plain & runs["rank"].notna()]
    rows = runs.method + "_r" + runs["rank"].astype(int).astype(str)
    proportional = runs.row.str.endswith("_proportional").astype(bool)
    return runs.assign(
        row=rows.where(~proportional, rows + "_proportional"),
        rank=runs["rank"].astype(int),
        scaling=runs.scaling.fillna(BOTH).where(runs.method == "lora", ""),
    )


def _comparable(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict[Any, int]]:
    """The runs of a model and task on the data that most of its rows have and, of each method, with the
    number of epochs that most of its rows have (of equals the most data or epochs); how many of each are left
    out."""
    kept, pair = runs, ["model", "task"]
    for group, value in ((pair, ["train_rows", "dev_rows"]), ([*pair, "method"], ["epochs"])):
        votes = kept.groupby([*group, *value], as_index=False).row.nunique().sort_values(["row", *value])
        kept = kept.merge(votes.drop_duplicates(group, keep="last")[[*group, *value]])
    return kept, runs[~runs.id.isin(kept.id)].groupby(pair).size().to_dict()


def _quoted() -> pd.DataFrame:
    """Table 2's two numbers on RTE."""
    rows = points.printed_rte().loc[["vera", "lora"]]
    made = rows.assign(kind=rows.row, rank=[256, 8], median=rows.value, scaling="", runs=[(), ()])
    return made.assign(source="paper, table 2 (quoted)").reindex(columns=DATA)


def _beside_the_paper(of: pd.DataFrame) -> list[str]:
    """Notes of the paper's own model and task: what is quoted, and the ranks that have not run."""
    notes = ["The paper prints no numbers of this figure: crosses are its table 2's RTE, ranks 256 and 8."]
    for name, (kind, *_) in RANK_LINES.items():
        missing = [r for r in paper()["figure2"][f"{kind}_ranks"] if r not in set(_line(of, name)["rank"])]
        if missing:
            notes.append(f"{name}: not run here at rank {', '.join(map(str, missing))} (make rank-scaling).")
    finding = paper()["figure2"]["finding"]
    return [*notes, f"The paper's finding: {finding}. It does not say which alpha LoRA's ranks have."]


def _line(data: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of the data that are on a line."""
    kind, scalings, _ = RANK_LINES[name]
    return data[(data.kind == kind) & data.scaling.isin(scalings)]


def _draw(axes: Any, data: pd.DataFrame, name: str) -> None:
    ours, quoted = data[(data.runs.map(len) > 0) & data["median"].notna()], data[data.runs.map(len) == 0]
    for label, (kind, _, dash) in RANK_LINES.items():
        line, tint = _line(ours, label), colour(kind)
        if len(line) and (dash == "-" or (line.scaling == "proportional").any()):
            axes.plot(line.parameters, line["median"], dash, color=tint, linewidth=1, alpha=0.8)
            axes.plot([], [], dash, marker=MARKERS[kind], color=tint, label=label)
    for i, of in enumerate(ours.itertuples()):
        tint = colour(of.kind)
        axes.plot([of.parameters] * 2, [of.low, of.high], color=tint, alpha=0.6)
        face = tint if of.n >= of.wanted else "white"
        axes.plot(of.parameters, of.median, marker(of.kind), color=tint, markerfacecolor=face, zorder=3)
        place, shift, across, along = (of.parameters, of.high), (0, 4), "center", "baseline"
        if of.kind == "vera":  # whose lowest ranks have nearly the same count: by turns to the left and right
            place, shift = (of.parameters, of.median), ((-4, 3), (4, -3))[i % 2]
            across, along = (("right", "bottom"), ("left", "top"))[i % 2]
        twice = (
            of.scaling == "proportional" and ((ours["rank"] == of.rank) & (ours.scaling == "constant")).any()
        )
        look: Any = {"textcoords": "offset points", "ha": across, "va": along, "fontsize": 6, "color": tint}
        axes.annotate("" if twice else f"r={of.rank:g}", place, shift, **look)
    for of in quoted.itertuples():
        look = {"color": colour(of.kind), "markersize": 7, "markeredgewidth": 1.5, "linestyle": "none"}
        axes.plot(of.parameters, of.median, "x", label=f"{of.method}, paper's table 2 (quoted)", **look)
    axes.set(xscale="log", xlabel="trainable parameters, without the classification head", ylabel=name)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(parameter_count))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.12)
    axes.legend(loc="best")


def _subtitle(of: pd.DataFrame) -> str:
    """How many seeds, which epoch, and what the bars are. The range of n seeds misses the median of such runs
    where all lie on one side: a sign test's smallest p."""
    if of.empty or (most := int(of.n.max())) < 2:
        return ""
    which = f"of {most} " if of.n.min() < most else ""
    bars = f"lowest to highest ({which}a {100 * (1 - smallest_p(most)):.0f}% interval)"
    return f"median of {points.spanned(of.n)} seeds, {of.reported.iloc[0]} epoch; lines: {bars}"
