"""The paper's findings, tried on our records: a mapping for each finding, model and task, with its
numbers."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import KEY, chosen, reported
from analysis.inference import MARGIN, mean_of
from analysis.paper import GLUE, printed_file
from analysis.results.finding import Finding, decided, finding, paper_epochs, side
from analysis.results.of_figures import of_figures
from runs.record import Record

#: The findings that compare rows of some tables: see the file's head.
RULES: Any = printed_file("findings.yaml")
#: Those of the paper's tables, and "text", which is in none: a user's own, see `tries`.
PAPERS, TABLES = ("glue", "images"), ("glue", "images", "text")
#: A run has collapsed, too, if it has less than so much of its row's median.
COLLAPSED = 2 / 3
#: The larger class of GLUE's dev sets: the accuracy of one answer for every row, in percent.
LARGER_CLASS = {"sst2": 50.9, "mrpc": 68.4, "qnli": 50.5, "rte": 52.7}
#: Tasks of GLUE whose metric is a correlation: chance gives 0.
CORRELATED = {"cola", "stsb"}
#: LoRA's rows by how alpha follows the rank; the recipe's own rank is of both.
CONVENTIONS = {
    "a constant alpha": r"lora(_r\d+)?",
    "alpha proportional to the rank": r"lora(_r\d+_proportional)?",
}
HIGH_RANK = ("of like counts of parameters, VeRA of a high rank is above LoRA", "figure 2", "ranks")


def findings(
    runs: pd.DataFrame, measures: Iterable[Record] = (), tables: Sequence[str] = PAPERS
) -> list[Finding]:
    """Every finding of the paper that the runs and measures can be compared with: see `finding.finding`.
    tables: those whose tasks count, beside table 3's."""
    of_table = runs.family.where(~runs.task.isin(GLUE), "glue")
    texts = (of_table == "e2e") & runs.get("bleu", pd.Series(math.nan, runs.index)).notna()
    kept = chosen(runs.assign(of_table=of_table)[of_table.isin(tables) | texts])
    kept = kept[kept.left_out == ""].sort_values(["model", "task", "seed"], kind="stable")
    by_halves = kept[(kept.of_table != "e2e") & (kept.reported == "best")]
    key = itemgetter("finding", "model", "task")
    crossfit = {key(one): one for one in _of_rows(collapsed(reported(by_halves, "crossfit")))}
    found = [*_of_rows(collapsed(reported(kept))), *of_figures(runs, list(measures))]
    return [decided(one, crossfit.get(key(one))) for one in found]


def collapsed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with `collapsed`: diverged, one class for every row, or far below its row's median."""
    ratio = runs.number / runs.groupby(KEY).number.transform("median")
    far = (1 / ratio).where(runs.less, ratio) < COLLAPSED
    return runs.assign(collapsed=far | runs.diverged.astype(bool) | runs.one_class.notna())


def tries(studies: Mapping[Path, pd.DataFrame], measures: Mapping[Path, Sequence[Record]]) -> list[Finding]:
    """Every try of a finding, with its `studies`: those of all runs together, and by study and number of
    epochs those on runs that none of these has, of other settings of a row, of which a cell shows one, and
    of tasks that are in no table of the paper."""
    every = {one["id"]: one for of_study in measures.values() for one in of_study}
    found = findings(pd.concat(studies.values(), ignore_index=True).drop_duplicates("id"), every.values())
    known = {(one["finding"], run) for one in found for run in one["ids"]}
    for folder, runs in studies.items():
        for _, of_epochs in runs.groupby("epochs"):
            of = findings(of_epochs, measures[folder], TABLES)
            found += [one for one in of if {(one["finding"], run) for run in one["ids"]} - known]
    names = {run: folder.name for folder, runs in [*studies.items()][::-1] for run in runs.id}
    names |= {one["id"]: folder.name for folder, of_study in measures.items() for one in of_study}
    return [
        one | {"studies": sorted({names[side["ids"][-1]] for side in one["sides"] if side["ids"]})}
        for one in found
    ]


def _of_rows(runs: pd.DataFrame) -> list[Finding]:
    """The findings that compare rows, in the order of RULES. runs: of cells, with their numbers."""
    found: list[tuple[int, Finding]] = []
    for _, of in runs.groupby(["model", "task"]):
        of = of.assign(block=list(zip(of.seed, of.measured, strict=True)))
        rows, table = {str(row): part for row, part in of.groupby("row")}, of.of_table.iloc[0]
        for place, rule in enumerate(RULES):
            if table in rule.get("tables", TABLES) and (sides := _over_same_seeds(rows, *rule["rows"])):
                # Against several rows it holds and agrees where it does against each
                near = rule["kind"] != "above"
                compared = [compare(sides[0], other, near) for other in sides[1:]]
                least = map(min, zip(*(one["differences"] for one in compared), strict=True))
                holds = [abs(points) <= MARGIN + 1e-9 if near else points > 0 for points in least]
                words = [one["agrees"] for one in compared]
                agrees = False if False in words else None if None in words else True
                more = {"names": tuple(rule["rows"].values()), "paper": rule.get("paper", {})}
                about = [rule[key] for key in ("finding", "source", "kind")]
                found.append((place, _of_compared(about, sides, compared, holds, agrees, **more)))
        if table != "e2e":
            found += ((len(RULES), one) for one in _ranks(rows))
    return [one for _, one in sorted(found, key=lambda of: of[0])]


# --- rows side by side


def _over_same_seeds(rows: Mapping[str, pd.DataFrame], *names: str) -> list[pd.DataFrame]:
    """The runs of each of these rows, if there are all, with a number in each run. They keep the seeds that
    all have, measured on the same: medians of other seeds could contradict the pairs."""
    if not all(name in rows and rows[name].number.notna().all() for name in names):
        return []
    blocks = frozenset.intersection(*(frozenset(rows[name].block) for name in names))
    kept = [rows[name][rows[name].block.isin(blocks)] for name in names]
    # A BLEU and a perplexity cannot be compared
    return kept if len({name for of in kept for name in of["name"]}) == 1 else []


def compare(x: pd.DataFrame, y: pd.DataFrame, near: bool = False) -> dict[str, Any]:
    """X against Y in pairs of runs of one seed, such that more is better: both sides, the differences by
    seed, which of them have a collapsed run, their mean, and the answer of the rule. near: by the margin,
    else by 0."""
    sign, same = -1 if x.less.iloc[0] else 1, x.number.to_numpy() == y.number.to_numpy()
    with np.errstate(invalid="ignore"):  # of two infinite numbers
        differences = np.where(same, 0.0, sign * (x.number.to_numpy() - y.number.to_numpy()))
    mean, broken = mean_of(differences), x.collapsed.to_numpy() | y.collapsed.to_numpy()
    made = {"x": side(x), "y": side(y), "seeds": tuple(x.seed), "differences": differences.tolist()}
    agrees = {1: True, -1: False}.get(int(mean.near() if near else mean.sign()))
    return made | {"collapsed": broken.tolist(), "mean": mean, "agrees": agrees}


def _of_compared(
    about: Sequence[str],
    rows: Sequence[pd.DataFrame],
    compared: Sequence[dict[str, Any] | None],
    holds: Iterable[bool],
    agrees: bool | None,
    **more: Any,
) -> Finding:
    """A finding on rows that were compared by pairs: undecided where all of them may be chance."""
    first, chance = rows[0].iloc[0], _chance(rows)
    if not math.isnan(chance):
        holds, agrees = (), None
    pairs = min(len(of["differences"]) for of in compared if of)
    more |= {"compared": tuple(compared), "counts": tuple(sorted({len(of) for of in rows})), "chance": chance}
    more |= {"sides": tuple(map(side, rows)), "paper_epochs": paper_epochs(first.of_table, first.task)}
    about = (*about, first.model, first.task, first.model_label, first.task_label)
    return finding(about, holds, agrees, pairs, **more)


def _chance(rows: Sequence[pd.DataFrame]) -> float:
    """What chance gives on a task of GLUE, if no row's median is two standard errors of the dev set above it:
    then no row has learned anything that could be compared. NaN otherwise."""
    first = rows[0].iloc[0]
    if first.task not in LARGER_CLASS and first.task not in CORRELATED:
        return math.nan
    chance = LARGER_CLASS.get(first.task, 0.0)
    error = math.sqrt((chance * (100 - chance) or 100.0**2) / first.dev_rows)
    return chance if all(of.number.median() <= chance + 2 * error for of in rows) else math.nan


def _ranks(rows: Mapping[str, pd.DataFrame]) -> Iterator[Finding]:
    """VeRA of the highest rank that has run, against LoRA of the rank with the nearest count of parameters,
    of several ranks and within a factor of two. Once for each convention of LoRA's alpha; the finding agrees
    only where it does by both. rows: of one model and task."""
    whole = {row: float(of.parameters.iloc[0]) for row, of in rows.items() if of.number.notna().all()}
    sizes = pd.Series(whole, pd.Index([*whole], dtype=str), dtype=float)
    vera = sizes[sizes.index.str.fullmatch(r"vera(_r\d+)?")]
    if len(vera) < 2:  # one rank alone is no comparison of ranks
        return
    shown, compared = dict[str, pd.DataFrame](), list[dict[str, Any] | None]()
    for pattern in CONVENTIONS.values():
        ratio = sizes[sizes.index.str.fullmatch(pattern)] / vera.max()
        near = str(np.log(ratio).abs().idxmin()) if len(ratio) > 1 else ""
        far = not near or not 0.5 <= ratio[near] <= 2
        both = [] if far else _over_same_seeds(rows, str(vera.idxmax()), near)
        compared.append(compare(*both) if both else None)
        shown |= {str(row.label.iloc[0]): row for row in both}
    if shown:
        words = [of["agrees"] if of else None for of in compared]
        holds = [difference > 0 for of in compared if of for difference in of["differences"]]
        agrees = words[0] if words[0] is words[1] else None
        of_rows = list(shown.values())
        yield _of_compared(HIGH_RANK, of_rows, compared, holds, agrees, names=tuple(CONVENTIONS))
