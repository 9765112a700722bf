"""Our cells beside the paper's numbers: whether they may be compared, by how much they
differ, and the verdict."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.frame import SEEDS
from analysis.inference import median_variance, welch_half_width
from analysis.paper import printed_numbers
from runs.record.intervals import LEVEL
from runs.record.ledger import in_conf

#: The largest half-width of a reproduced cell's interval, in points (accuracy, Matthews,
#: Pearson, BLEU, METEOR and ROUGE-L); and in the units of the scores that have another
#: one: NIST, CIDEr and a judge's, from 1 to 10.
LARGEST_HALF_WIDTH = 1.0
LARGEST_HALF_WIDTH_BY_SCORE = {"nist": 0.1, "cider": 0.1, "score": 0.2}
#: Tables that print means over seeds; the others print medians.
TABLES_OF_MEANS = ("table6", "table7")
#: Verdicts where the paper prints a spread, and where it prints none.
WITH_SPREAD = ("reproduced", "inconclusive", "not reproduced")
WITHOUT_SPREAD = ("inside our interval", "outside our interval")
#: The columns of our cells that stand beside the paper's numbers.
OWN_COLUMNS = (
    "our_spread",
    "values",
    "ids",
    "runs",
    "n",
    "complete",
    "parameters",
    "variant",
)
#: Half of the last digit of a spread that the paper prints: the smallest one that we
#: assume, because a printed "0.0" may be rounded.
HALF_DIGIT = 0.05


def compare_with_paper(table: str, cells: pd.DataFrame, part: str = "") -> pd.DataFrame:
    """The paper's numbers of a table, or of a part of it, a row each, with our cells:
    `ran` (whether there is one), `ours`, the `difference` (ours minus the paper's),
    the `half_width` of its 95% interval, the `margin` that it may have, and the
    `verdict`.

    cells: of `frame.cells`, with `column` where a cell has several numbers (the scores
    of E2E).

    The interval is Welch's t over both sides, as medians or means vary; where the paper
    prints no spread, over ours alone. reproduced: it contains 0, and its half-width is
    at most the margin; inconclusive: it is wider; not reproduced: it does not contain 0.
    Fewer than SEEDS, or a seed without the number, are incomplete, however close. A row
    that trains another number of parameters is of another size."""
    rows = _beside_own_cells(table, cells, part)
    of_means = table in TABLES_OF_MEANS
    rows["ours"] = [_middle(values, of_means) for values in rows["values"]]
    n = rows.n.fillna(0).astype(int)
    is_known = rows.our_spread.notna()
    factor = n.map(lambda seeds: _variance_factor(seeds, of_means))
    rows["variance"] = factor * rows.our_spread**2 / n
    has_spread = rows.spread.notna()
    rows[["paper_variance", "half_width"]] = math.nan
    if is_known.any():
        printed_variance = rows.spread.clip(lower=HALF_DIGIT) ** 2 / SEEDS
        rows["paper_variance"] = _variance_factor(SEEDS, of_means) * printed_variance
        variances = [rows.variance, rows.paper_variance.where(has_spread, 0.0)]
        freedoms = [np.maximum(n - 1, 1), np.full(len(n), SEEDS - 1)]
        rows["half_width"] = np.where(
            is_known, welch_half_width(variances, freedoms), math.nan
        )
    rows["difference"] = rows.ours - rows.value
    rows["margin"] = rows.column.map(LARGEST_HALF_WIDTH_BY_SCORE).fillna(
        LARGEST_HALF_WIDTH
    )
    rows["ran"] = rows.runs.notna()
    rows["same_size"] = [*map(_is_same_size, rows.itertuples())]
    verdicts = verdict_on(rows.difference, rows.half_width, has_spread, rows.margin)
    reasons = {
        "quoted": rows.quoted & (~rows.ran | rows.table.isin(["table4", "table13"])),
        "not run": ~rows.ran,
        "other size": ~rows.same_size,
        "incomplete": (n < SEEDS) | (n != rows.runs),
    }
    names = [*map(np.array, reasons)]
    rows["verdict"] = np.select([*reasons.values()], names, verdicts)
    return rows


def _beside_own_cells(table: str, cells: pd.DataFrame, part: str) -> pd.DataFrame:
    """The paper's numbers with OWN_COLUMNS of our cells; NaN where none ran."""
    printed = printed_numbers()
    printed = printed[(printed.table == table) & (printed.task != "")]
    if part:
        printed = printed[printed.part == part]
    ours = cells.rename(columns={"row": "like", "spread": "our_spread"})
    keys = ["model", "like", "task"]
    if "column" in ours:
        keys.append("column")
    own_columns = [name for name in OWN_COLUMNS if name in ours]
    ours = ours[[*keys, *own_columns]]
    return printed.merge(ours, on=keys, how="left")


def _variance_factor(seeds: int, of_means: bool) -> float:
    """How many times the variance of a mean over seeds the statistic has that a table
    prints: 1 for a mean, more for a median. NaN for one seed, or none."""
    if seeds < 2:
        return math.nan
    return 1.0 if of_means else median_variance(seeds)


def _middle(values: Any, of_means: bool) -> float:
    """The mean or median of a cell's values that are known; NaN for none. values: NaN
    where we have no cell."""
    if not isinstance(values, tuple):
        return math.nan
    known_values = pd.Series(values, dtype=float).dropna()
    if known_values.empty:
        return math.nan
    if of_means:
        return math.fsum(known_values) / len(known_values)
    return float(known_values.median())


def verdict_on(difference: Any, half_width: Any, has_spread: Any, margin: Any) -> Any:
    """The verdicts on differences, arrays or numbers; see `compare_with_paper`.
    has_spread: whether the paper prints a spread, too."""
    contains_0 = np.abs(difference) <= half_width + 1e-9
    is_narrow = half_width <= margin + 1e-9
    choices = [~contains_0, is_narrow]
    with_spread = np.select(choices, ["not reproduced", "reproduced"], "inconclusive")
    inside, outside = WITHOUT_SPREAD
    without_spread = np.where(contains_0, inside, outside)
    return np.where(has_spread, with_spread, without_spread)


def _all_have_verdict(rows: pd.DataFrame) -> bool:
    return bool(rows.verdict.isin([*WITH_SPREAD, *WITHOUT_SPREAD]).all())


class MeanVerdict(NamedTuple):
    """The mean over tasks of a row's differences, the half-width of its interval,
    and the verdict on it."""

    difference: float
    half_width: float
    verdict: str


def mean_verdict(rows: pd.DataFrame) -> MeanVerdict | None:
    """The mean over tasks of a row's differences; None where a cell has no verdict yet.
    Where one cell of the paper has no spread, the paper's spreads are left out of the
    interval."""
    count = len(rows)
    if count < 2 or not _all_have_verdict(rows):
        return None
    has_spread = bool(rows.spread.notna().all())
    paper_variance = rows.paper_variance if has_spread else 0 * rows.variance
    variances = np.concatenate([rows.variance, paper_variance]) / count**2
    freedoms = np.concatenate([rows.n - 1, np.full(count, SEEDS - 1)])
    half_width = float(welch_half_width(variances, freedoms))
    difference = float(rows.difference.mean())
    verdict = str(verdict_on(difference, half_width, has_spread, LARGEST_HALF_WIDTH))
    return MeanVerdict(difference, half_width, verdict)


def verdict_summary(verdicts: Iterable[str]) -> str:
    """The verdicts on a row's cells: "reproduced 4/6, inconclusive 1, not reproduced 1
    (0.3 by chance)", "inside 3/4"; "" without any."""
    counts = Counter(verdicts)
    parts = list[str]()
    if total := sum(counts[verdict] for verdict in WITH_SPREAD):
        other_counts = [f"{verdict} {counts[verdict]}" for verdict in WITH_SPREAD[1:]]
        by_chance = f"{(1 - LEVEL) * total:.2g} by chance"
        reproduced = f"reproduced {counts['reproduced']}/{total}"
        parts.append(f"{reproduced}, {', '.join(other_counts)} ({by_chance})")
    if total := sum(counts[verdict] for verdict in WITHOUT_SPREAD):
        parts.append(f"inside {counts['inside our interval']}/{total}")
    return ", ".join(parts)


def row_status(rows: pd.DataFrame, with_mean: bool = True) -> str:
    """The verdicts on the cells of a row of ours, and on their mean; "" where a cell
    has no verdict yet. rows: of `compare_with_paper`, those of this row."""
    if rows.empty or not _all_have_verdict(rows):
        return ""
    text = verdict_summary(rows.verdict)
    mean = mean_verdict(rows) if with_mean else None
    return f"{text}; mean {mean.verdict}" if mean else text


# --- the size of a row


def rounds_to(printed: str, value: float) -> bool:
    """Whether a printed number ("36.8K", "9.1MB") is a value's, rounded or cut off. KB,
    MB, GB and TB are powers of 1024."""
    match = re.fullmatch(r"([\d.]+)([KMGT])B?", printed)
    assert match, printed
    number, unit = match.groups()
    base = 1024 if printed.endswith("B") else 1000
    # compared as whole numbers of the last printed digit
    scale = 10 ** len(number.partition(".")[2])
    exact = value / base ** " KMGT".index(unit) * scale
    return round(float(number) * scale) in (round(exact), math.floor(exact))


def _is_same_size(row: Any) -> bool:
    """Whether our cell of a row of `compare_with_paper` trains as many parameters as
    the paper's row, or the paper prints no size."""
    if not row.size:
        return True
    if not row.ran:
        return False
    return same_size(int(row.parameters), row.model, row.row, row.size)


def same_size(parameters: int, model: str, row: str, printed: str) -> bool:
    """Whether a row of ours trains as many parameters as the paper's: what it prints,
    rounded, or what its formula gives (conf/counts.yaml). A size that this project
    chose is no formula of the paper's. printed: the count, and perhaps the bytes in
    brackets."""
    size = printed.partition(" ")[0]
    if size == "0":  # the head alone, or nothing
        return parameters == 0
    if rounds_to(size, parameters):
        return True
    formulas = [
        entry
        for entry in in_conf("counts.yaml")
        if entry["printed"] == size and not entry.get("chosen")
    ]
    return any(
        entry["count"] == parameters
        and entry["model"] == model
        and row.startswith(entry["method"])
        for entry in formulas
    )
