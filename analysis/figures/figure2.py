"""Figure 2: the dev metric by trainable parameters, over the ranks of VeRA and LoRA."""

from typing import Any

import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis import paper
from analysis.figures.figure import MARKERS, Figure, Part, colour, metric_label, parameter_count, spanned
from analysis.figures.points import (
    LARGE,
    RTE,
    draw_point,
    not_in_the_paper,
    notes,
    of_pair,
    paper_first,
    points,
    printed_rte,
    suffix,
)
from analysis.frame import chosen
from analysis.inference import smallest_p
from analysis.paper import GLUE, NAMES
from runs.record.text import plural

#: The lines of figure 2: a method, and how alpha follows the rank. LoRA's recipe's own rank is on both of its.
RANK_LINES = {
    "VeRA": ("vera", ("",)),
    "LoRA, constant alpha": ("lora", ("constant", "constant and proportional", "given")),
    "LoRA, alpha proportional to r": ("lora", ("proportional", "constant and proportional")),
}
OF_ALPHA = (
    "constant alpha: the recipe's at every rank (Hu et al. 2022). proportional: the recipe's alpha / rank times the"
    " rank. Rates are the recipe's: one for all ranks, or one for each."
)
DATA = ["method", "row", "kind", "rank", "alpha", "scaling", "source", "parameters"]
DATA += ["median", "low", "high", "n", "wanted", "runs"]


def make(part: Part) -> list[Figure]:
    """The dev metric against trainable parameters, VeRA's and LoRA's ranks: a figure for the paper's model
    and task, and for each model and task of GLUE on which ranks of either vary."""
    ranks, left_out = _comparable(_by_rank(part.runs))
    found = points(ranks, seeds=5)
    of_rank = ranks.drop_duplicates("cell").set_index("cell")[["rank", "alpha", "scaling"]]
    found = found.drop(columns=[name for name in of_rank if name in found]).join(of_rank, on="cell")
    found = found.assign(kind=found.method, method=found.method.map(NAMES), source=part.whose)
    several = found.groupby(["model", "task", "kind"]).size().loc[lambda count: count > 1].reset_index()
    figures = []
    for model, task in paper_first(zip(several.model, several.task, strict=True)):
        of, label = of_pair(found, model, task)
        lines, data = notes(of), of.reindex(columns=DATA)
        if count := left_out.get((model, task), 0):
            lines.append(
                f"{plural(count, 'run')} on other data, or of other epochs, than most ranks: left out."
            )
        if (of.kind == "lora").any():
            lines.append(OF_ALPHA)
        if (model, task) == (LARGE, RTE):
            data = pd.concat([data, _quoted()], ignore_index=True) if len(data) else _quoted()
            lines += _beside_the_paper(of)
        else:
            lines.insert(0, not_in_the_paper(model, task))
        title = f"Figure 2: {GLUE[task]} by trainable parameters, {label}"
        metric = metric_label(of.metric.iloc[0] if len(of) else "accuracy")

        def draw(axes: Any, data: pd.DataFrame, name: str = f"{GLUE[task]} dev {metric}") -> None:
            _draw(axes, data)
            axes.set_ylabel(name)

        file = f"figure2{suffix(model, task)}"
        figures.append(Figure(file, title, data, lines, draw, _subtitle(of)))
    return figures


def _by_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """GLUE's results of VeRA and LoRA, with rank, alpha and its scaling. A rank set on the command line and a row
    of that rank are one point, so both get that row."""
    plain = runs.row.astype(str).str.fullmatch(r"(vera|lora)(_r\d+)?(_proportional)?")
    runs = runs[(runs.kind == "result") & runs.task.isin(list(GLUE)) & plain]
    runs = runs.assign(**{key: [of.get(key) for of in runs.settings] for key in ("rank", "alpha")})
    runs = runs[runs["rank"].notna()].astype({"rank": int})
    proportional = runs.row.str.endswith("_proportional")
    names = runs.method + "_r" + runs["rank"].map("{:04d}".format)
    both = runs.scaling.fillna("constant and proportional")
    return runs.assign(
        row=names.where(~proportional, names + "_proportional"), scaling=both.where(runs.method == "lora", "")
    )


def _comparable(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict[Any, int]]:
    """The runs of a model and task on the data that most of its rows have and, of each method, with the number of
    epochs that most of its rows have (of equals the most data or epochs); how many of each are left out."""
    kept, pair = runs, ["model", "task"]
    for group, value in ((pair, ["train_rows", "dev_rows"]), ([*pair, "method"], ["epochs"])):
        votes = kept[[*group, *value, "row"]].drop_duplicates().groupby([*group, *value]).size()
        most = votes.rename("rows").reset_index().sort_values(["rows", *value])
        kept = kept.merge(most.drop_duplicates(group, keep="last")[[*group, *value]])
    gone = runs[~runs.id.isin(kept.id)].groupby(pair).size()
    return chosen(kept), gone.to_dict()


def _quoted() -> pd.DataFrame:
    """Table 2's two numbers on RTE."""
    rows = printed_rte().loc[["vera", "lora"]]
    made = rows.assign(kind=rows.index, rank=[256, 8], median=rows.value, parameters=rows["count"])
    made = made.assign(row=made.kind, scaling="", source="paper, table 2 (quoted)", runs=[(), ()])
    return made.reindex(columns=DATA)


def _beside_the_paper(of: pd.DataFrame) -> list[str]:
    """Notes of the paper's own model and task: what is quoted, and the ranks that have not run."""
    lines = ["The paper prints no numbers of this figure: crosses are its table 2's RTE, ranks 256 and 8."]
    printed = paper.paper()["figure2"]
    for name in RANK_LINES:
        ran = set(_line(of, name)["rank"])
        if missing := [rank for rank in printed[f"{RANK_LINES[name][0]}_ranks"] if rank not in ran]:
            lines.append(f"{name}: not run here at rank {', '.join(map(str, missing))} (make rank-scaling).")
    finding = f"The paper's finding: {printed['finding']}. It does not say which alpha LoRA's ranks have."
    return [*lines, finding]


def _line(data: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of the data that are on a line, by rank."""
    kind, scalings = RANK_LINES[name]
    return data[(data.kind == kind) & data.scaling.isin(scalings)].sort_values("rank")


def _draw(axes: Any, data: pd.DataFrame) -> None:
    quoted, ours = data[data.runs.map(len) == 0], data[(data.runs.map(len) > 0) & data["median"].notna()]
    for name, (kind, _) in RANK_LINES.items():
        line, second = _line(ours, name), name.endswith("to r")
        if line.empty or (second and not (line.scaling == "proportional").any()):
            continue
        look: Any = {"color": colour(kind), "linestyle": "--" if second else "-"}
        axes.plot(line.parameters, line["median"], linewidth=1, alpha=0.8, **look)
        own = line[line.scaling != "constant and proportional"] if second else line
        named = set(_line(ours, "LoRA, constant alpha")["rank"]) if second else ()
        for i, of in enumerate(own.itertuples()):
            draw_point(axes, of.parameters, of)
            if of.rank not in named:  # one name for the points that two lines have of a rank
                _name_rank(axes, of, i)
        axes.plot([], [], marker=MARKERS[kind], label=name, **look)
    for of in quoted.itertuples():
        cross: Any = {"markersize": 7, "markeredgewidth": 1.5, "linestyle": "none", "color": colour(of.kind)}
        axes.plot(of.parameters, of.median, "x", label=f"{of.method}, paper's table 2 (quoted)", **cross)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(parameter_count))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.12)
    axes.set_xlabel("trainable parameters, without the classification head")
    axes.legend(loc="best")


def _name_rank(axes: Any, of: Any, i: int) -> None:
    """Writes the rank of a point: above its seeds or, of VeRA, whose lowest ranks have nearly the same count, above
    to the left and below to the right by turns."""
    place, shift, across, along = (of.parameters, of.high), (0, 4), "center", "baseline"
    if of.kind == "vera":
        place, shift = (of.parameters, of.median), ((-4, 3), (4, -3))[i % 2]
        across, along = (("right", "bottom"), ("left", "top"))[i % 2]
    look: Any = {"ha": across, "va": along, "fontsize": 6, "color": colour(of.kind)}
    axes.annotate(f"r={of.rank:g}", place, shift, textcoords="offset points", **look)


def _subtitle(of: pd.DataFrame) -> str:
    """How many seeds, which epoch, and what the bars are. The range of n seeds misses the median of such runs where
    all lie on one side: a sign test's smallest p."""
    if of.empty or (most := of.n.max()) < 2:
        return ""
    which = f"of {most} " if of.n.min() < most else ""
    lines = f"lowest to highest ({which}a {100 * (1 - smallest_p(int(most))):.0f}% interval)"
    return f"median of {spanned(of.n)} seeds, {of.reported.iloc[0]} epoch; lines: {lines}"
