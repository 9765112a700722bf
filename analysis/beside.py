"""Our cells beside the paper's numbers: whether they may be compared, by how much they
differ, and the verdict."""

import math
import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import SEEDS
from analysis.inference import median_variance, welch_half
from analysis.paper import numbers
from runs.record import LEVEL, in_conf

#: How wide half of the interval of a reproduced cell may be: for accuracy, Matthews,
#: Pearson, BLEU, METEOR and ROUGE-L in points, for NIST and CIDEr, and for a judge's
#: scores from 1 to 10.
MARGIN, MARGINS = 1.0, {"nist": 0.1, "cider": 0.1, "score": 0.2}
#: Tables that print means over seeds; the others print medians.
MEANS = ("table6", "table7")
#: Words of a verdict where the paper prints a spread, and where it prints none; and
#: all, in the order of a page.
WITH_SPREAD = ("reproduced", "consistent, wide", "not reproduced")
WITHOUT_SPREAD = ("inside our interval", "outside our interval")
WORDS = (
    *(
        *WITH_SPREAD,
        *WITHOUT_SPREAD,
        "incomplete",
        "other size",
        "other model",
        "not in the paper",
    ),
    *("not run", "quoted"),
)
#: What is read of our cells.
OURS = ("our_spread", "values", "ids", "runs", "n", "complete", "parameters", "variant")
#: Half of the last digit of a spread as the paper prints it: one of "0.0" need not be
#: none.
HALF_DIGIT = 0.05


def beside(table: str, cells: pd.DataFrame, part: str = "") -> pd.DataFrame:
    """The paper's numbers of a table, or of a part of it, a row each, with our cells:
    `ours`, the `difference` (ours less the paper's), `half` of its 95% interval, the
    `margin` that half may have, and the `word` of the verdict.

    cells: of `frame.cells`, with `column` where a cell has several numbers (the scores
    of E2E). Welch's t over both sides, as medians or means vary; where the paper prints
    no spread, over ours alone. reproduced: the interval holds 0, and half of it is at
    most the margin; consistent, wide: it is wider; not reproduced: it does not hold 0.
    Fewer than SEEDS, or a seed without the number, are incomplete, however close; a row
    that trains another number of parameters is of another size."""
    printed = numbers()[
        lambda of: (
            (of.table == table) & (of.task != "") & (of.part == (part or of.part))
        )
    ]
    printed = printed.reset_index(drop=True)
    on = ["model", "like", "task"]
    ours = cells.rename(columns={"row": "like", "spread": "our_spread"})
    on += [name for name in ("column",) if name in ours]
    rows = printed.merge(
        ours[[*on, *(name for name in OURS if name in ours)]], on=on, how="left"
    )
    means = table in MEANS
    n, known, has = (
        rows.n.fillna(0).astype(int),
        rows.our_spread.notna(),
        rows.runs.notna(),
    )
    factor = n.map(
        lambda k: (1.0 if means else median_variance(k)) if k > 1 else math.nan
    )
    variance, both = factor * rows.our_spread**2 / n, rows.spread.notna()
    theirs = (
        (1.0 if means else median_variance(SEEDS))
        * rows.spread.clip(lower=HALF_DIGIT) ** 2
        / SEEDS
    )
    freedom = np.stack([np.maximum(n - 1, 1), np.full(len(n), SEEDS - 1)])
    half = welch_half(np.stack([variance, theirs.where(both, 0.0)]), freedom)
    values = [
        pd.Series(of if ran else (), dtype=float)
        for of, ran in zip(rows["values"], has, strict=True)
    ]
    rows["ours"] = [
        math.fsum(of.dropna()) / max(of.count(), 1) if means else of.median()
        for of in values
    ]
    rows["ours"] = rows.ours.where([of.count() > 0 for of in values])
    rows["half"] = np.where(known, half, math.nan)
    rows["variance"], rows["paper_variance"] = variance, theirs
    rows["difference"] = rows.ours - rows.value
    rows["margin"] = rows.column.map(MARGINS).fillna(MARGIN)
    rows["same_size"] = [
        not of.size
        or (ran and same_size(int(of.parameters), of.model, of.row, of.size))
        for of, ran in zip(
            rows[["size", "parameters", "model", "row"]].itertuples(), has, strict=True
        )
    ]
    enough = (n >= SEEDS) & (n == rows.runs)
    rows["word"] = np.select(
        [
            rows.quoted & (~has | rows.table.isin(["table4", "table13"])),
            ~has,
            ~rows.same_size,
            ~enough,
        ],
        [*map(np.array, ("quoted", "not run", "other size", "incomplete"))],
        word(rows.difference, rows.half, both, rows.margin),
    )
    return rows.assign(ran=has)


def word(difference: Any, half: Any, both: Any, margin: Any) -> Any:
    """The verdicts on differences, arrays or numbers; see `beside`. both: whether the
    paper prints a spread, too."""
    holds, narrow = np.abs(difference) <= half + 1e-9, half <= margin + 1e-9
    with_spread = np.select(
        [~holds, narrow], ["not reproduced", "reproduced"], "consistent, wide"
    )
    return np.where(both, with_spread, np.where(holds, *WITHOUT_SPREAD))


def mean_of(rows: pd.DataFrame) -> dict[str, Any] | None:
    """The mean over tasks of a row's differences: difference, half and word; None where
    a cell has no verdict yet. Where one cell of the paper has no spread, the paper's
    are left out of the interval."""
    if len(rows) < 2 or not rows.word.isin([*WITH_SPREAD, *WITHOUT_SPREAD]).all():
        return None
    both, count = bool(rows.spread.notna().all()), len(rows)
    theirs = rows.paper_variance if both else 0 * rows.variance
    variances = np.concatenate([rows.variance, theirs]) / count**2
    half = float(
        welch_half(variances, np.concatenate([rows.n - 1, np.full(count, SEEDS - 1)]))
    )
    difference = float(rows.difference.mean())
    return {
        "difference": difference,
        "half": half,
        "word": str(word(difference, half, both, MARGIN)),
    }


def summary(words: Any) -> str:
    """The verdicts of a row's cells: "reproduced 4/6, wide 1, not 1 (0.3 by chance)",
    "inside 3/4"; "" without any."""
    count = Counter(words)
    parts = []
    if of := sum(count[word] for word in WITH_SPREAD):
        wide, wrong = count["consistent, wide"], count["not reproduced"]
        chance = f"{(1 - LEVEL) * of:.2g} by chance"
        parts.append(
            f"reproduced {count['reproduced']}/{of}, wide {wide}, not {wrong} ({chance})"
        )
    if of := sum(count[word] for word in WITHOUT_SPREAD):
        parts.append(f"inside {count['inside our interval']}/{of}")
    return ", ".join(parts)


def status(rows: pd.DataFrame, mean: bool = True) -> str:
    """The verdicts of the cells of our row, of its rows in `beside`, and of their mean;
    "" where one has none yet."""
    if rows.empty or not rows.word.isin([*WITH_SPREAD, *WITHOUT_SPREAD]).all():
        return ""
    whole = mean_of(rows) if mean else None
    return summary(rows.word) + (f"; mean {whole['word']}" if whole else "")


# --- the size of a row


def follows(printed: str, value: float) -> bool:
    """Whether a printed number ("36.8K", "9.1MB") is a value's, rounded or cut off. KB,
    MB, GB and TB are powers of 1024."""
    number, unit = re.fullmatch(r"([\d.]+)([KMGT])B?", printed).groups()  # type: ignore[union-attr]
    base = 1024 if printed.endswith("B") else 1000
    scale = 10 ** len(number.partition(".")[2])
    exact = value / base ** " KMGT".index(unit) * scale
    return round(float(number) * scale) in (round(exact), math.floor(exact))


def same_size(parameters: int, model: str, row: str, printed: str | int) -> bool:
    """Whether a row of ours trains as many numbers as the paper's: what it prints,
    rounded, or what its formula gives. The count of a size that was chosen here is no
    formula of the paper's."""
    size = str(printed).partition(" ")[0]
    if size == "0":  # the head alone, or nothing
        return parameters == 0
    return follows(size, parameters) or any(
        entry["count"] == parameters
        and entry["model"] == model
        and row.startswith(entry["method"])
        for entry in in_conf("counts.yaml")
        if entry["printed"] == size and not entry.get("chosen")
    )
