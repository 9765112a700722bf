"""The paper's findings, tried on our records: a row for each finding, model and task, with its numbers."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from analysis.frame import chosen, reported
from analysis.inference import both_intervals, is_above, is_near
from analysis.paper import GLUE
from analysis.results.finding import Compared, Finding, paper_epochs, side
from analysis.results.of_figures import of_figures
from runs.record import LEVEL, Record


def findings(
    runs: pd.DataFrame, measures: Iterable[Record] = (), tables: Sequence[str] = ("glue", "images")
) -> list[Finding]:
    """Every finding of the paper that the runs and measures can be compared with. tables: those whose tasks
    count, beside table 3's."""
    of_table = runs.family.where(~runs.task.isin(GLUE), "glue")
    texts = (of_table == "e2e") & runs.get("bleu", pd.Series(math.nan, runs.index)).notna()
    kept = chosen(runs.assign(of_table=of_table)[of_table.isin(tables) | texts])
    kept = kept[kept.left_out == ""].sort_values(["model", "task", "seed"], kind="stable")
    fitted = reported(kept[(kept.of_table != "e2e") & (kept.reported == "best")], "crossfit")
    crossfit = {(one.finding, one.model, one.task): one for one in _of_rows(fitted)}
    found = [*_of_rows(reported(kept)), *of_figures(runs, list(measures))]
    for one in found:
        one.crossfit = crossfit.get((one.finding, one.model, one.task))
    return found


def left_out(
    studies: Mapping[Path, pd.DataFrame], measures: Sequence[Record], counted: Iterable[Finding]
) -> list[tuple[str, Finding]]:
    """Findings on runs that no counted one has, with their study: of other settings of a row, of which a cell
    shows one, and of tasks that are in no table of the paper. By study and number of epochs."""
    known = {(one.finding, run) for one in counted for of in one.sides for run in of.ids}
    return [
        (folder.name, one)
        for folder, runs in studies.items()
        for epochs in sorted(runs.epochs.unique())
        for one in findings(runs[runs.epochs == epochs], measures, ("glue", "images", "text"))
        if {(one.finding, run) for of in one.sides for run in of.ids} - known
    ]


# --- rows side by side


def _of_rows(runs: pd.DataFrame) -> list[Finding]:
    """The findings that compare rows. runs: of cells, with their numbers."""
    tables = runs[runs.of_table != "e2e"]
    return [*_near(runs), *_ablations(tables), *_shared(tables), *_ranks(tables)]


def _sides(runs: pd.DataFrame, *rows: str) -> Iterator[list[pd.DataFrame]]:
    """The runs of each of these rows, for each model and task that has them all with a number in each run.
    They keep the seeds that all have, measured on the same: medians of other seeds could contradict the
    pairs."""
    for _, of in runs[runs.row.isin(rows)].groupby(["model", "task"]):
        shared = of.groupby(["seed", "measured"]).row.transform("nunique") == len(rows)
        # A BLEU and a perplexity cannot be compared
        if of.number.notna().all() and shared.any() and of[shared]["name"].nunique() == 1:
            yield [of[shared & (of.row == row)] for row in rows]


def _compare(x: pd.DataFrame, y: pd.DataFrame, near: bool = False, convention: str = "") -> Compared:
    """Two rows over the same seeds. near: by one-sided bounds against MARGIN, else against 0."""
    sign = -1 if x.less.iloc[0] else 1
    values = tuple(zip((sign * x.number).tolist(), (sign * y.number).tolist(), strict=True))
    difference = sum(0.0 if a == b else a - b for a, b in values) / len(values)
    paired, unpaired = both_intervals(values, 2 * LEVEL - 1 if near else LEVEL)
    agrees = is_near(values, MARGIN) if near else is_above(values)
    return Compared(side(x), side(y), values, difference, paired, unpaired, agrees, convention)


def _finding(
    finding: str,
    source: str,
    kind: str,
    rows: Sequence[pd.DataFrame],
    compared: Sequence[Compared | None],
    holds: Iterable[bool],
    agrees: bool | None,
    names: Iterable[str] = (),
) -> Finding:
    """A finding on rows that were compared by pairs: undecided where all of them may be chance."""
    first, chance = rows[0].iloc[0], _chance(rows)
    if not math.isnan(chance):
        holds, agrees = (), None
    return Finding(
        *(finding, source, kind, first.model, first.task, first.model_label, first.task_label),
        *(tuple(holds), agrees, min(len(of.values) for of in compared if of)),
        sides=tuple(map(side, rows)),
        compared=tuple(compared),
        names=tuple(names),
        counts=tuple(sorted({len(of) for of in rows})),
        chance=chance,
        paper_epochs=paper_epochs(first.of_table, first.task),
    )


#: The larger class of GLUE's dev sets: the accuracy of one answer for every row, in percent.
LARGER_CLASS = {"sst2": 50.9, "mrpc": 68.4, "qnli": 50.5, "rte": 52.7}
#: Tasks of GLUE whose metric is a correlation: chance gives 0.
CORRELATED = {"cola", "stsb"}


def _chance(rows: Sequence[pd.DataFrame]) -> float:
    """What chance gives on a task of GLUE, if no row's median is two standard errors of the dev set above it:
    then no row has learned anything that could be compared. NaN otherwise."""
    first = rows[0].iloc[0]
    if first.task in CORRELATED:
        chance, error = 0.0, 100 / math.sqrt(first.dev_rows)
    elif first.task in LARGER_CLASS:
        chance = LARGER_CLASS[first.task]
        error = math.sqrt(chance * (100 - chance) / first.dev_rows)
    else:
        return math.nan
    return chance if all(of.number.median() <= chance + 2 * error for of in rows) else math.nan


# --- the findings that compare rows

#: Rows that the paper finds VeRA near to, by table; and the paper's numbers, VeRA's first.
NEAR = {
    ("glue", "lora"): ("LoRA", "table 2, averages: LARGE 87.8 and 87.8, BASE 85.2 and 86.6"),
    ("glue", "adapter_p"): ("Adapter P", "table 2, LARGE, averages: 87.8, and 87.6 or 86.8"),
    ("glue", "full"): ("full fine-tuning", "table 2, BASE, averages: 85.2 and 85.2"),
    ("e2e", "lora"): ("LoRA", "table 3, BLEU: MEDIUM 70.1 and 68.9, LARGE 70.3 and 70.1"),
    ("images", "lora"): ("LoRA", "table 5, means of its data sets: BASE 87.5 and 88.1, LARGE 86.1 and 86.0"),
    ("images", "full"): (
        "full fine-tuning",
        "table 5, means of its data sets: BASE 87.5 and 88.8, LARGE 86.1 and 85.8",
    ),
}
NEAR |= {("text", row): NEAR["glue", row] for row in ("lora", "full")}  # in no table: see left_out
#: X is near Y if it is at most so many points below.
MARGIN = 1.0


def _within_margin(of: Compared) -> list[bool]:
    return [difference >= -MARGIN - 1e-9 for difference in of.differences]


def _near(runs: pd.DataFrame) -> Iterator[Finding]:
    for (table, row), (name, source) in NEAR.items():
        for vera, other in _sides(runs[runs.of_table == table], "vera", row):
            of, finding = _compare(vera, other, near=True), f"VeRA is near {name} with fewer parameters"
            yield _finding(finding, source, "near", [vera, other], [of], _within_margin(of), of.agrees)


#: Findings of table 6: the rows that each compares, the better one first, and their names beside the numbers.
ABLATIONS = {
    "d alone is better than b alone": {"vera_only_d": "only d", "vera_only_b": "only b"},
    "both vectors are better than one": {"vera": "both", "vera_only_d": "only d", "vera_only_b": "only b"},
    "A and B by Kaiming's uniform draw beat one on [0, 0.1]": {"vera": "Kaiming", "vera_uniform": "[0, 0.1]"},
    "d that starts at 0.1 beats d that starts at 1": {"vera": "0.1", "vera_d_init_1": "1"},
    "d that starts at 1e-7 beats d that starts at 1": {"vera_d_init_1e-7": "1e-7", "vera_d_init_1": "1"},
}


def _ablations(runs: pd.DataFrame) -> Iterator[Finding]:
    """By means, as table 6 prints them. A finding against several rows agrees where it does against each."""
    for finding, names in ABLATIONS.items():
        for rows in _sides(runs, *names):
            compared = [_compare(rows[0], other) for other in rows[1:]]
            holds = [min(apart) > 0 for apart in zip(*(of.differences for of in compared), strict=True)]
            words = [of.agrees for of in compared]
            agrees = False if False in words else None if None in words else True
            yield _finding(finding, "table 6", "above", rows, compared, holds, agrees, names.values())


def _shared(runs: pd.DataFrame) -> Iterator[Finding]:
    """By means, as table 7 prints them."""
    finding = "A and B may be shared: with them VeRA is near a pair for each matrix"
    for rows in _sides(runs, "vera", "vera_unique"):
        of, names = _compare(rows[0], rows[1], near=True), ("shared", "unique")
        yield _finding(finding, "table 7", "near", rows, [of], _within_margin(of), of.agrees, names)


#: LoRA's rows by how alpha follows the rank; the recipe's own rank is of both.
CONVENTIONS = {
    "a constant alpha": r"lora(_r\d+)?",
    "alpha proportional to the rank": r"lora(_r\d+_proportional)?",
}


def _ranks(runs: pd.DataFrame) -> Iterator[Finding]:
    """VeRA of the highest rank that has run, against LoRA of the rank with the nearest count of parameters.
    Once for each convention of LoRA's alpha; the finding agrees only where it does by both."""
    finding = "of like counts of parameters, VeRA of a high rank is above LoRA"
    for _, of in runs.groupby(["model", "task"]):
        known = of[of.number.notna().groupby(of.row).transform("all")]
        sizes = known.groupby("row").parameters.first()
        vera = sizes[sizes.index.str.fullmatch(r"vera(_r\d+)?")]
        if len(vera) < 2:  # one rank alone is no comparison of ranks
            continue
        shown, compared = dict[str, pd.DataFrame](), list[Compared | None]()
        for convention, pattern in CONVENTIONS.items():
            near = _nearest(float(vera.max()), sizes[sizes.index.str.fullmatch(pattern)])
            both = next(_sides(known, str(vera.idxmax()), near), None) if near else None
            compared.append(_compare(both[0], both[1], convention=convention) if both else None)
            shown |= {str(row.label.iloc[0]): row for row in both or ()}
        if not shown:
            continue
        words = [of.agrees if of else None for of in compared]
        holds = [difference > 0 for of in compared if of for difference in of.differences]
        agrees = words[0] if len(set(words)) == 1 else None
        rows = list(shown.values())
        yield _finding(finding, "figure 2", "ranks", rows, compared, holds, agrees, CONVENTIONS)


def _nearest(high: float, lora: pd.Series) -> str:
    """The row of LoRA with the nearest count of parameters; "" where there is but one, or none within a
    factor of two."""
    if len(lora) < 2:
        return ""
    row = min(lora.index, key=lambda row: abs(math.log(lora[row] / high)))
    return str(row) if 0.5 <= lora[row] / high <= 2 else ""
