"""A finding over its tasks: the mean difference by each analysis, the word on which all of them agree, and
their forest plot."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.figure import COLOURS, Figure
from analysis.inference import MARGIN, Mean, mean_of, over_tasks, seeds_to_decide
from analysis.results.findings import Finding

#: What decides a finding over several tasks: weighted or not, without collapsed runs or with them.
ANALYSES = {
    "weighted": (True, False),
    "unweighted": (False, False),
    "weighted without collapsed runs": (True, True),
    "unweighted without collapsed runs": (False, True),
}
#: Where the axis ends, in points; a longer interval leaves the picture.
FARTHEST = 11.0
MARKS = {"paper": ("D", "#000000"), "task": ("o", COLOURS["lora"]), "pooled": ("s", COLOURS["vera"])}


def summaries(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Each finding over all of its tries, a line for each of its comparisons: finding, name (of the
    comparison), kind, tries, paper, tasks (the Mean of each, by model and task), analyses (a Mean by name),
    word, why (where analyses differ), margin (the smallest at which all would call it near), seeds (pairs a
    task to decide at MARGIN). A finding that compares no rows has no tasks. Tries at chance are out, and
    those with a diverged perplexity."""
    made = list[dict[str, Any]]()
    for name in dict.fromkeys(one["finding"] for one in found):
        tries = [one for one in found if one["finding"] == name]
        paper = {(one["source"], model): of for one in tries for model, of in one["paper"].items()}
        about = {"finding": name, "kind": tries[0]["kind"], "tries": tries, "paper": paper}
        names = tries[0]["names"] if len(tries[0]["compared"]) > 1 else ("",)
        for place, comparison in enumerate(names[-len(tries[0]["compared"]) or None :]):
            lines = [
                (f"{one['model_label']}, {one['task_label']}", number, *pair)
                for number, one in enumerate(tries)
                if math.isnan(one["chance"])
                and place < len(one["compared"])
                and (of := one["compared"][place])
                if np.isfinite(of["differences"]).all()
                for pair in zip(of["seeds"], of["differences"], of["collapsed"], strict=True)
            ]
            pairs = pd.DataFrame(lines, columns=["where", "number", "seed", "difference", "collapsed"])
            decided = _decided(pairs, about["kind"] in ("near", "shared"))
            made.append(about | {"name": comparison} | decided)
    return made


def _decided(pairs: pd.DataFrame, near: bool) -> dict[str, Any]:
    """What the differences of a comparison say, by task (model and task), try and seed. Tries of one task are
    averaged by seed, so that a task counts once however often it was tried."""
    if pairs.empty:
        return {"tasks": {}, "analyses": {}, "word": "", "why": "", "margin": math.nan, "seeds": 0}
    by_seed = pairs.groupby(["where", "seed"], sort=False).agg({"difference": "mean", "collapsed": "any"})
    by_task = by_seed.unstack()
    every, collapsed = by_task.difference.to_numpy(float), by_task.collapsed.eq(True).to_numpy()
    kept, analyses = np.where(collapsed, np.nan, every), dict[str, Mean]()
    for name, (weighted, without) in ANALYSES.items():
        if (collapsed.any() or not without) and (len(every) > 1 or weighted):
            values, flags = (kept, np.zeros_like(collapsed)) if without else (every, collapsed)
            analyses[name] = over_tasks(values, flags, weighted) if len(every) > 1 else mean_of(values[0])
    words = {name: word(mean, near) for name, mean in analyses.items()}
    by_word = {of: [name for name in words if words[name] == of] for of in dict.fromkeys(words.values())}
    # The variance of differences within a try, without collapsed runs
    within = pairs[~pairs.collapsed].groupby(["where", "number"]).difference
    freedom = (within.count() - 1).clip(lower=0)
    variance = (within.var() * freedom).sum() / freedom.sum() if freedom.sum() else math.nan
    return {
        "tasks": {where: mean_of(of) for where, of in zip(by_task.index, every, strict=True)},
        "analyses": analyses,
        "word": next(iter(by_word)) if len(by_word) == 1 else "depends",
        "why": "; ".join(f"{of}: {', '.join(names)}" for of, names in by_word.items()),
        "margin": max(float(mean.margin()) for mean in analyses.values()),
        "seeds": 0 if math.isnan(variance) else seeds_to_decide(math.sqrt(variance)),
    }


def word(mean: Mean, near: bool) -> str:
    """What a mean difference says: near (within the margin), above, below or undecided."""
    if near and mean.near() > 0:
        return "near"
    return {1: "above", -1: "below", 0: "undecided"}[int(mean.sign())]


def forest(made: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The forest plot of the findings that VeRA is near a row, on several tasks, if there are any: by line
    (title, paper, its averages, task or pooled) the difference with its 95% interval. Lines of one kind and
    label that follow each other share a place."""
    lines = list[tuple[Any, ...]]()
    for one in (one for one in made if one["kind"] == "near" and len(one["tasks"]) > 1):
        against = one["finding"].removeprefix("VeRA is near ").removesuffix(" with fewer parameters")
        lines.append(("title", f"less {against}", *[math.nan] * 3))
        lines += [("paper", "the paper's averages", x - y, *[math.nan] * 2) for x, y in one["paper"].values()]
        for kind, means in (("task", one["tasks"]), ("pooled", one["analyses"])):
            lines += [(kind, name, mean.mean, *mean.interval()) for name, mean in means.items()]
    data = pd.DataFrame(lines, columns=["kind", "label", "difference", "low", "high"])
    place = (data.label != data.label.shift()) | (data.kind != data.kind.shift())
    data = data.assign(place=place.cumsum() - 1)
    title, size = "VeRA less the other row, in points, with 95% intervals", (5.5, 0.7 + 0.16 * place.sum())
    return Figure("forest", title, data, [], _draw, size=size) if lines else None


def _draw(axes: Any, data: pd.DataFrame) -> None:
    axes.axvspan(-MARGIN, MARGIN, color="#dddddd", zorder=0)
    axes.axvline(0, color="#777777", linewidth=0.8)
    for kind, (marker, colour) in MARKS.items():
        of, face = data[data.kind == kind], "none" if kind == "paper" else colour
        axes.hlines(of.place, of.low, of.high, color=colour)
        axes.plot(of.difference, of.place, marker, markersize=4, mfc=face, color=colour)
    names = data.drop_duplicates("place")
    axes.set_xlim(-FARTHEST, FARTHEST)
    axes.set_yticks(names.place, names.label)
    axes.set_ylim(names.place.max() + 0.5, -0.5)
    for label, kind in zip(axes.get_yticklabels(), names.kind, strict=True):
        label.set_fontweight("bold" if kind in ("title", "pooled") else "normal")
    axes.grid(visible=False, axis="y")
