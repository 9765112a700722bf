"""The paper's findings, tried on our records: a row for each finding, model and task, with its numbers."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis.frame import chosen, reported
from analysis.inference import both_intervals, is_above, is_near
from analysis.paper import GLUE
from analysis.results.finding import Finding, decided, finding, paper_epochs, side
from analysis.results.of_figures import of_figures
from runs.record import LEVEL, Record

#: X is near Y if it is at most so many points below.
MARGIN = 1.0


class Rule(NamedTuple):
    """A finding that compares rows of these tables: the first row with each other one, by the margin (near,
    of medians; shared, of means) or by 0 (above, of means). rows: with their names beside the numbers."""

    finding: str
    source: str
    kind: str
    rows: dict[str, str]
    tables: tuple[str, ...] = ("glue", "images", "text")


def _near(name: str, row: str, source: str, *tables: str) -> Rule:
    return Rule(f"VeRA is near {name} with fewer parameters", source, "near", {"vera": "", row: ""}, tables)


def _above(words: str, **rows: str) -> Rule:
    return Rule(words, "table 6", "above", {f"vera_{row}".rstrip("_"): name for row, name in rows.items()})


MEANS = "table 5, means of its data sets: BASE 87.5 and"
#: "text" is in no table of the paper: see `left_out`.
RULES = [
    _near("LoRA", "lora", "table 2, averages: LARGE 87.8 and 87.8, BASE 85.2 and 86.6", "glue", "text"),
    _near("Adapter P", "adapter_p", "table 2, LARGE, averages: 87.8, and 87.6 or 86.8", "glue"),
    _near("full fine-tuning", "full", "table 2, BASE, averages: 85.2 and 85.2", "glue", "text"),
    _near("LoRA", "lora", "table 3, BLEU: MEDIUM 70.1 and 68.9, LARGE 70.3 and 70.1", "e2e"),
    _near("LoRA", "lora", f"{MEANS} 88.1, LARGE 86.1 and 86.0", "images"),
    _near("full fine-tuning", "full", f"{MEANS} 88.8, LARGE 86.1 and 85.8", "images"),
    _above("d alone is better than b alone", only_d="only d", only_b="only b"),
    _above("both vectors are better than one", _="both", only_d="only d", only_b="only b"),
    _above("A and B by Kaiming's uniform draw beat one on [0, 0.1]", _="Kaiming", uniform="[0, 0.1]"),
    _above("d that starts at 0.1 beats d that starts at 1", _="0.1", d_init_1="1"),
    _above("d that starts at 1e-7 beats d that starts at 1", **{"d_init_1e-7": "1e-7", "d_init_1": "1"}),
    Rule(
        *("A and B may be shared: with them VeRA is near a pair for each matrix", "table 7", "shared"),
        {"vera": "shared", "vera_unique": "unique"},
    ),
]


def findings(
    runs: pd.DataFrame, measures: Iterable[Record] = (), tables: Sequence[str] = ("glue", "images")
) -> pd.DataFrame:
    """Every finding of the paper that the runs and measures can be compared with, a row each: see
    `finding.finding`. tables: those whose tasks count, beside table 3's."""
    of_table = runs.family.where(~runs.task.isin(GLUE), "glue")
    texts = (of_table == "e2e") & runs.get("bleu", pd.Series(math.nan, runs.index)).notna()
    kept = chosen(runs.assign(of_table=of_table)[of_table.isin(tables) | texts])
    kept = kept[kept.left_out == ""].sort_values(["model", "task", "seed"], kind="stable")
    fitted = reported(kept[(kept.of_table != "e2e") & (kept.reported == "best")], "crossfit")
    crossfit = {(one["finding"], one["model"], one["task"]): one for one in _of_rows(fitted)}
    found = [*_of_rows(reported(kept)), *of_figures(runs, list(measures))]
    return pd.DataFrame(
        decided(one, crossfit.get((one["finding"], one["model"], one["task"]))) for one in found
    )


def left_out(
    studies: Mapping[Path, pd.DataFrame], measures: Sequence[Record], counted: pd.DataFrame
) -> list[tuple[str, Finding]]:
    """Findings on runs that no counted one has, with their study: of other settings of a row, of which a cell
    shows one, and of tasks that are in no table of the paper. By study and number of epochs."""
    known = {(one["finding"], run) for one in counted.to_dict("records") for run in one["ids"]}
    return [
        (folder.name, one)
        for folder, runs in studies.items()
        for _, of_epochs in runs.groupby("epochs")
        for one in findings(of_epochs, measures, ("glue", "images", "text")).to_dict("records")
        if {(one["finding"], run) for run in one["ids"]} - known
    ]


def _of_rows(runs: pd.DataFrame) -> list[Finding]:
    """The findings that compare rows, in the order of RULES. runs: of cells, with their numbers."""
    found: list[tuple[int, Finding]] = []
    for _, of in runs.groupby(["model", "task"]):
        of = of.assign(block=list(zip(of.seed, of.measured, strict=True)))
        rows, table = {str(row): part for row, part in of.groupby("row")}, of.of_table.iloc[0]
        for place, rule in enumerate(RULES):
            if table in rule.tables and (sides := _over_same_seeds(rows, *rule.rows)):
                found.append((place, _tried(rule, sides)))
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
    """X against Y in pairs of runs of one seed, such that more is better: both sides, the differences and
    their mean, its interval by pair and unpaired, and the answer of the rule. near: by one-sided bounds
    against MARGIN, else against 0."""
    sign = -1 if x.less.iloc[0] else 1
    pairs = tuple(zip((sign * x.number).tolist(), (sign * y.number).tolist(), strict=True))
    differences = [0.0 if a == b else a - b for a, b in pairs]  # of two infinite numbers
    paired, unpaired = both_intervals(pairs, 2 * LEVEL - 1 if near else LEVEL)
    agrees = is_near(pairs, MARGIN) if near else is_above(pairs)
    return {
        "x": side(x),
        "y": side(y),
        "differences": differences,
        "agrees": agrees,
        "difference": sum(differences) / len(differences),
        "paired": paired,
        "unpaired": unpaired,
    }


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
    more |= {"counts": tuple(sorted({len(of) for of in rows})), "chance": chance}
    more |= {"sides": tuple(map(side, rows)), "paper_epochs": paper_epochs(first.of_table, first.task)}
    where = (first.model, first.task, first.model_label, first.task_label)
    return finding(about, where, holds, agrees, pairs, compared=tuple(compared), **more)


def _tried(rule: Rule, rows: Sequence[pd.DataFrame]) -> Finding:
    """A finding against several rows holds and agrees where it does against each."""
    near = rule.kind != "above"
    compared = [compare(rows[0], other, near) for other in rows[1:]]
    least = map(min, zip(*(of["differences"] for of in compared), strict=True))
    holds = [difference >= -MARGIN - 1e-9 if near else difference > 0 for difference in least]
    words = [of["agrees"] for of in compared]
    agrees = False if False in words else None if None in words else True
    return _of_compared(rule[:3], rows, compared, holds, agrees, names=tuple(rule.rows.values()))


#: The larger class of GLUE's dev sets: the accuracy of one answer for every row, in percent.
LARGER_CLASS = {"sst2": 50.9, "mrpc": 68.4, "qnli": 50.5, "rte": 52.7}
#: Tasks of GLUE whose metric is a correlation: chance gives 0.
CORRELATED = {"cola", "stsb"}


def _chance(rows: Sequence[pd.DataFrame]) -> float:
    """What chance gives on a task of GLUE, if no row's median is two standard errors of the dev set above it:
    then no row has learned anything that could be compared. NaN otherwise."""
    first = rows[0].iloc[0]
    if first.task not in LARGER_CLASS and first.task not in CORRELATED:
        return math.nan
    chance = LARGER_CLASS.get(first.task, 0.0)
    error = math.sqrt((chance * (100 - chance) or 100.0**2) / first.dev_rows)
    return chance if all(of.number.median() <= chance + 2 * error for of in rows) else math.nan


# --- of like counts of parameters

#: LoRA's rows by how alpha follows the rank; the recipe's own rank is of both.
CONVENTIONS = {
    "a constant alpha": r"lora(_r\d+)?",
    "alpha proportional to the rank": r"lora(_r\d+_proportional)?",
}


def _ranks(rows: Mapping[str, pd.DataFrame]) -> Iterator[Finding]:
    """VeRA of the highest rank that has run, against LoRA of the rank with the nearest count of parameters.
    Once for each convention of LoRA's alpha; the finding agrees only where it does by both. rows: of one
    model and task."""
    sizes = pd.Series(
        {row: of.parameters.iloc[0] for row, of in rows.items() if of.number.notna().all()}, dtype=float
    )
    sizes.index = sizes.index.astype(str)
    vera = sizes[sizes.index.str.fullmatch(r"vera(_r\d+)?")]
    if len(vera) < 2:  # one rank alone is no comparison of ranks
        return
    shown, compared = dict[str, pd.DataFrame](), list[dict[str, Any] | None]()
    for pattern in CONVENTIONS.values():
        near = _nearest(float(vera.max()), sizes[sizes.index.str.fullmatch(pattern)])
        both = _over_same_seeds(rows, str(vera.idxmax()), near)
        compared.append(compare(*both) if both else None)
        shown |= {str(row.label.iloc[0]): row for row in both}
    if shown:
        words = [of["agrees"] if of else None for of in compared]
        holds = [difference > 0 for of in compared if of for difference in of["differences"]]
        agrees = words[0] if words[0] is words[1] else None
        about = ("of like counts of parameters, VeRA of a high rank is above LoRA", "figure 2", "ranks")
        rows_ = list(shown.values())
        yield _of_compared(about, rows_, compared, holds, agrees, names=tuple(CONVENTIONS))


def _nearest(high: float, lora: pd.Series) -> str:
    """The row of LoRA with the nearest count of parameters; "" where there is but one, or none within a
    factor of two."""
    row = min(lora.index, key=lambda row: abs(math.log(lora[row] / high)), default="")
    return str(row) if len(lora) > 1 and 0.5 <= lora[row] / high <= 2 else ""
