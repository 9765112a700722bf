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

#: The largest half-width of a reproduced cell's interval: in points (of accuracy,
#: Matthews, Pearson, BLEU, METEOR and ROUGE-L), and by the column of each score in
#: another unit (NIST, CIDEr, and a judge's from 1 to 10).
LARGEST_HALF_WIDTH = 1.0
LARGEST_HALF_WIDTH_BY_SCORE = {"nist": 0.1, "cider": 0.1, "score": 0.2}
#: Tables that print means over seeds; the others print medians.
TABLES_OF_MEANS = ("table6", "table7")
#: Verdicts on a cell for which the paper prints a spread, and for which it prints none.
WITH_SPREAD = ("reproduced", "inconclusive", "not reproduced")
WITHOUT_SPREAD = ("inside our interval", "outside our interval")
#: The columns of our cells that `compare_with_paper` has beside the paper's numbers.
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
#: The smallest spread of the paper's that we assume: half of the last digit that it
#: prints, because a printed "0.0" may be rounded.
HALF_DIGIT = 0.05


def compare_with_paper(table: str, cells: pd.DataFrame, part: str = "") -> pd.DataFrame:
    """The paper's numbers of a table on tasks, a row each, with our cell beside each.

    Args:
        table: such as "table2".
        cells: of `frame.cells`, with `column` where a cell has several numbers (the
            scores of E2E).
        part: of table 6, one of its three; "" for a whole table.

    Returns:
        The columns of `printed_numbers`, OWN_COLUMNS and these: `ran`, whether we have a
        cell; `same_size`, whether it trains as many parameters as the paper's row;
        `ours`, our median or mean; `difference`, ours minus the paper's; `half_width` of
        its 95% interval; `margin`, the largest half-width with which a cell is
        reproduced; `variance` and `paper_variance`, of our median or mean and of the
        paper's; and `verdict`.

    The interval is Welch's t over both sides, or over ours alone where the paper prints
    no spread. Verdicts, of which the first that applies counts:

    - quoted: the authors took the number from earlier work, and we have no cell. In
      tables 4 and 13, whose scores are a judge's, it stays quoted even with one.
    - not run: we have no cell.
    - other size: our cell trains another number of parameters.
    - incomplete: it has fewer than SEEDS, or a seed without the number.
    - not reproduced: the interval does not contain 0. reproduced: it does, and its
      half-width is at most the margin. inconclusive: it does, and is wider.
    - inside, outside our interval: the same without a spread of the paper's."""
    rows = _beside_own_cells(table, cells, part)
    of_means = table in TABLES_OF_MEANS
    rows["ours"] = [_middle(values, of_means) for values in rows["values"]]
    n = rows.n.fillna(0).astype(int)
    has_own_spread = rows.our_spread.notna()
    factor = n.map(lambda seeds: _variance_factor(seeds, of_means))
    rows["variance"] = factor * rows.our_spread**2 / n
    has_spread = rows.spread.notna()
    rows[["paper_variance", "half_width"]] = math.nan
    if has_own_spread.any():
        printed_variance = rows.spread.clip(lower=HALF_DIGIT) ** 2 / SEEDS
        rows["paper_variance"] = _variance_factor(SEEDS, of_means) * printed_variance
        variances = [rows.variance, rows.paper_variance.where(has_spread, 0.0)]
        # 1 stands for 0 and -1, whose cells have no spread, to avoid a division by 0
        freedoms = [np.maximum(n - 1, 1), np.full(len(n), SEEDS - 1)]
        half_widths = welch_half_width(variances, freedoms)
        rows["half_width"] = np.where(has_own_spread, half_widths, math.nan)
    rows["difference"] = rows.ours - rows.value
    rows["margin"] = rows.column.map(LARGEST_HALF_WIDTH_BY_SCORE).fillna(
        LARGEST_HALF_WIDTH
    )
    rows["ran"] = rows.runs.notna()
    rows["same_size"] = [*map(_cell_has_papers_size, rows.itertuples())]
    verdicts = verdict_on(rows.difference, rows.half_width, has_spread, rows.margin)
    reasons = {
        "quoted": rows.quoted & (~rows.ran | rows.table.isin(["table4", "table13"])),
        "not run": ~rows.ran,
        "other size": ~rows.same_size,
        "incomplete": (n < SEEDS) | (n != rows.runs),
    }
    # np.select takes arrays, not texts
    reason_names = [*map(np.array, reasons)]
    rows["verdict"] = np.select([*reasons.values()], reason_names, verdicts)
    return rows


def _beside_own_cells(table: str, cells: pd.DataFrame, part: str) -> pd.DataFrame:
    """The paper's numbers of a table, without means over tasks, and OWN_COLUMNS of our
    cell beside each; NaN where we have none. Arguments: as in `compare_with_paper`."""
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
    """The variance of what a table prints, divided by the variance of a mean over as many
    seeds: 1 if it prints means (of_means), more for medians. NaN below two seeds, whose
    spread is unknown."""
    if seeds < 2:
        return math.nan
    return 1.0 if of_means else median_variance(seeds)


def _middle(values: Any, of_means: bool) -> float:
    """The mean (of_means) or the median of a cell's known values; NaN if none is known.
    values: a tuple by seed, or NaN where we have no cell."""
    if not isinstance(values, tuple):
        return math.nan
    known_values = pd.Series(values, dtype=float).dropna()
    if known_values.empty:
        return math.nan
    if of_means:
        return math.fsum(known_values) / len(known_values)
    return float(known_values.median())


def verdict_on(difference: Any, half_width: Any, has_spread: Any, margin: Any) -> Any:
    """The verdicts of WITH_SPREAD and WITHOUT_SPREAD on differences from the paper, each of
    which has an interval; `compare_with_paper` says when each applies. All arguments are
    arrays of one length, or single numbers. has_spread: whether the paper prints a
    spread of its score."""
    # 1e-9: the ends may differ by rounding
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
    """The verdict on a row's mean difference over tasks: the mean, the half-width of its
    interval, and the verdict."""

    difference: float
    half_width: float
    verdict: str


def mean_verdict(rows: pd.DataFrame) -> MeanVerdict | None:
    """The verdict on a row's mean difference over tasks; None for one task, and where a
    cell has no verdict by an interval yet. If the paper prints no spread of one of the
    cells, its spreads are left out of the interval. rows: the lines of one row from
    `compare_with_paper`."""
    count = len(rows)
    if count < 2 or not _all_have_verdict(rows):
        return None
    has_spread = bool(rows.spread.notna().all())
    paper_variance = rows.paper_variance if has_spread else np.zeros(count)
    # the variance of a mean of independent cells is the sum of theirs over count^2
    variances = np.concatenate([rows.variance, paper_variance]) / count**2
    freedoms = np.concatenate([rows.n - 1, np.full(count, SEEDS - 1)])
    half_width = float(welch_half_width(variances, freedoms))
    difference = float(rows.difference.mean())
    verdict = str(verdict_on(difference, half_width, has_spread, LARGEST_HALF_WIDTH))
    return MeanVerdict(difference, half_width, verdict)


def verdict_summary(verdicts: Iterable[str]) -> str:
    """The verdicts on a row's cells, counted: "reproduced 4/6, inconclusive 1, not
    reproduced 1 (0.3 by chance)", "inside 3/4"; "" without any. By chance: how many of
    the cells would be called not reproduced if all of them replicate the paper's."""
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
    """The verdicts on the cells of a row of ours, counted, and the one on their mean (if
    with_mean); "" where a cell has no verdict by an interval yet. rows: the lines of
    this row from `compare_with_paper`."""
    if rows.empty or not _all_have_verdict(rows):
        return ""
    text = verdict_summary(rows.verdict)
    mean = mean_verdict(rows) if with_mean else None
    return f"{text}; mean {mean.verdict}" if mean else text


# --- the size of a row


def rounds_to(printed: str, value: float) -> bool:
    """Whether a value, rounded or cut off, gives a printed number ("36.8K", "9.1MB"). KB,
    MB, GB and TB are powers of 1024."""
    match = re.fullmatch(r"([\d.]+)([KMGT])B?", printed)
    assert match, printed
    number, unit = match.groups()
    base = 1024 if printed.endswith("B") else 1000
    # compared as whole numbers of the last printed digit
    scale = 10 ** len(number.partition(".")[2])
    exact = value / base ** " KMGT".index(unit) * scale
    return round(float(number) * scale) in (round(exact), math.floor(exact))


def _cell_has_papers_size(row: Any) -> bool:
    """Whether our cell trains as many parameters as the paper's row, or the paper prints
    no size; False where we have no cell. row: a line of `compare_with_paper`."""
    if not row.size:
        return True
    if not row.ran:
        return False
    return has_papers_size(int(row.parameters), row.model, row.row, row.size)


def has_papers_size(parameters: int, model: str, row: str, printed: str) -> bool:
    """Whether a row that trains so many parameters has the size of the paper's row: they
    round to the printed size, or they are the exact count that conf/counts.yaml has for
    its model and a method with which its name begins. That file lists printed sizes that
    do not follow from the paper's settings.

    Its entries marked `chosen` do not count here: the paper gives no settings for these
    rows, so that their counts come from settings of this project.

    printed: the size as in `printed_numbers`, perhaps with bytes in brackets."""
    size = printed.partition(" ")[0]
    if size == "0":  # the head alone, or nothing
        return parameters == 0
    if rounds_to(size, parameters):
        return True
    entries_of_paper = [
        entry
        for entry in in_conf("counts.yaml")
        if entry["printed"] == size and not entry.get("chosen")
    ]
    return any(
        entry["count"] == parameters
        and entry["model"] == model
        and row.startswith(entry["method"])
        for entry in entries_of_paper
    )
