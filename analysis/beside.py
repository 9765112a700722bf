"""A cell of ours beside the paper's number: whether they may be compared, by how much they differ, and the
verdict."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from analysis.cells import Cell
from analysis.inference import Difference, Estimate, difference, mean_difference, outside_by_chance
from analysis.series import series
from runs.record import CONF, LEVEL

#: Seeds that a verdict needs, and that the paper's medians and means are over.
VERDICT_SEEDS = 5
#: How wide half of the interval of a reproduced cell may be: for accuracy, Matthews, Pearson, BLEU, METEOR
#: and ROUGE-L in points, for NIST and CIDEr, and for a judge's scores from 1 to 10.
MARGIN, MARGIN_OF_10, MARGIN_OF_JUDGES = 1.0, 0.1, 0.2
#: Words of a verdict where the paper prints a spread, and where it prints none.
WITH_SPREAD = ("reproduced", "consistent, wide", "not reproduced")
WITHOUT_SPREAD = ("inside our interval", "outside our interval")
#: What the words in the last column of a table mean, by what they begin with.
VERDICTS = {
    "difference": (
        "difference: ours less the paper's, +- half of its 95% interval (Welch's t over the seeds of both"
        " sides)."
    ),
    "reproduced": (
        "reproduced n/m: in n of m cells the interval holds 0, and half of it is at most the margin:"
        f" {MARGIN:g} point ({MARGIN_OF_10:g} for NIST and CIDEr, {MARGIN_OF_JUDGES:g} for judges). wide: it"
        f" holds 0 and is wider. not: it does not hold 0, as in {1 - LEVEL:.0%} of perfect replications: so"
        " many of these cells by chance. Where the paper's spread is 0.7 or more (0.9 of its means), half of"
        " the interval exceeds 1 point whatever is run here: at best wide."
    ),
    "inside": (
        "inside n/m: the paper prints no spread, and its number is in the 95% interval of ours. That leaves"
        f" the paper's own seeds out: {outside_by_chance(VERDICT_SEEDS):.0%} of perfect replications over"
        f" {VERDICT_SEEDS} seeds are outside."
    ),
    "mean": "mean: the same rule for the mean over the tasks of the row.",
}


@dataclass(frozen=True)
class Verdict:
    """One of verdicts.WORDS, and what it rests on. interval: the 95% interval of `difference`, ours less the
    paper's, from both sides, or from ours alone where the paper prints no spread."""

    word: str
    ours: float | None = None
    printed: float | None = None
    margin: float = MARGIN
    difference: float | None = None
    interval: tuple[float, float] | None = None
    seeds: int = 0
    deviations: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


#: Half of the last digit of a spread as the paper prints it: a spread of "0.1" may be 0.05, and one of "0.0"
#: need not be none.
HALF_DIGIT = 0.05


@dataclass(frozen=True)
class Beside:
    """A cell of ours beside the paper's number and its spread, where it prints one.

    values: of each seed, in the unit of the table, where they are not the number that the cell's table
    reports. margin: how wide half of the interval of a reproduced cell may be. middle: the mean where the
    paper prints one. same_size: whether our row trains as many parameters as the paper's.
    """

    cell: Cell
    printed: float
    spread: float | None = None
    values: Sequence[float] | None = None
    margin: float = MARGIN
    middle: Any = statistics.median
    decimals: int = 1
    same_size: bool = True

    @property
    def seeds(self) -> list[float]:
        """The value of each seed that has one."""
        return list(series(self.cell).values.values() if self.values is None else self.values)

    @property
    def sides(self) -> tuple[Estimate, Estimate]:
        """Ours and the paper's number, each with its variance."""
        spread = None if self.spread is None else max(self.spread, HALF_DIGIT)
        papers = Estimate.printed(self.printed, spread, VERDICT_SEEDS, self.middle)
        return Estimate.of(self.seeds, self.middle), papers

    @property
    def verdict(self) -> Verdict:
        """Whether the paper's number is reproduced, over at least 5 seeds.

        Where the paper prints a spread: "reproduced" (the interval of the difference holds 0, and half of it
        is at most the margin), "consistent, wide" (it holds 0 and is wider), "not reproduced" (it does not
        hold 0). Else the paper's number is "inside our interval" or "outside our interval". Fewer than 5
        seeds, or a seed without the number, are "incomplete", however close. A row that trains another number
        of parameters is of "other size".
        """
        values, interval, gap = self.seeds, None, None
        ours = float(self.middle(values)) if values else None
        if not self.same_size:
            word = "other size"
        elif ours is None or len(values) < max(VERDICT_SEEDS, self.cell.seeds):
            word, gap = "incomplete", None if ours is None else ours - self.printed
        else:
            apart = difference(*self.sides)
            word, interval, gap = str(apart.word(self.margin)), apart.interval, apart.value
        deviations = dict.fromkeys(word for record in self.cell.records for word in record["deviations"])
        return Verdict(
            word,
            ours,
            self.printed,
            self.margin,
            gap,
            interval,
            len(values),
            tuple(deviations),
            self.cell.ids,
        )

    def gap(self) -> str:
        """The difference, with half of its interval where the seeds are enough for a verdict; "-" for an
        incomplete cell."""
        if not self.cell.complete or not self.seeds:
            return "-"
        return difference_text(difference(*self.sides), self.decimals, len(self.seeds) >= VERDICT_SEEDS)


def mean(rows: Sequence[Beside]) -> Difference | None:
    """The mean over tasks; None where a cell has no verdict yet."""
    if len(rows) < 2 or not all(row.verdict.word in (*WITH_SPREAD, *WITHOUT_SPREAD) for row in rows):
        return None
    return mean_difference([row.sides for row in rows])


def difference_text(gap: Difference, decimals: int = 1, firm: bool = True) -> str:
    """A difference as tables print it: "+0.3 +-1.2". firm: with its interval."""
    half = f" +-{gap.half:.{decimals}f}" if firm and gap.half is not None else ""
    return f"{gap.value:+.{decimals}f}{half}"


def summary(words: Sequence[str]) -> str:
    """The verdicts of a row's cells: "reproduced 4/6, wide 1, not 1 (0.3 by chance)", "inside 3/4"; ""
    without any."""
    count = Counter(words)
    parts = []
    if of := sum(count[word] for word in WITH_SPREAD):
        wide, wrong = count["consistent, wide"], count["not reproduced"]
        parts.append(
            f"reproduced {count['reproduced']}/{of}, wide {wide}, not {wrong} ({(1 - LEVEL) * of:.2g} by"
            " chance)"
        )
    if of := sum(count[word] for word in WITHOUT_SPREAD):
        parts.append(f"inside {count['inside our interval']}/{of}")
    return ", ".join(parts)


def status(rows: Sequence[Beside]) -> str:
    """The last column of our row: the verdicts of its cells and of their mean; "ours" where one has none
    yet."""
    words = [row.verdict.word for row in rows]
    if "other size" in words:
        return "ours, another size: not compared"
    if not words or "incomplete" in words or any(row.cell.select != "paper" for row in rows):
        return "ours"
    whole = mean(rows)
    return summary(words) + (f"; mean {whole.word(MARGIN)}" if whole else "")


def notes(rows: Sequence[Sequence[str]]) -> list[str]:
    """What the words of a table's rows mean, of those that are there. The second column is a row's source."""
    words = " ".join([row[1] for row in rows] + [row[-1] for row in rows])
    return [note for word, note in VERDICTS.items() if re.search(rf"\b{word}\b", words)]


# --- the size of a row


def follows(printed: str, value: float) -> bool:
    """Whether a printed number ("36.8K", "9.1MB") is a value's, rounded or cut off. KB, MB, GB and TB are
    powers of 1024."""
    number, unit = re.fullmatch(r"([\d.]+)([KMGT])B?", printed).groups()  # type: ignore[union-attr]
    base = 1024 if printed.endswith("B") else 1000
    scale = 10 ** len(number.partition(".")[2])
    exact = value / base ** " KMGT".index(unit) * scale
    return round(float(number) * scale) in (round(exact), math.floor(exact))


@cache
def exact_counts() -> list[dict[str, Any]]:
    """Counts of the paper's rows: model, method, count, printed, a note where the printed one is not that,
    and chosen where the size is this project's choice."""
    counts: list[dict[str, Any]] = yaml.safe_load((CONF / "counts.yaml").read_text())
    return counts


def same_size(cell: Cell, model: str, row: str, printed: str | int) -> bool:
    """Whether our row trains as many numbers as the paper's: what it prints, rounded, or what its formula
    gives. The count of a size that was chosen here is no formula of the paper's."""
    size = str(printed).partition(" ")[0]
    if size == "0":  # the head alone, or nothing
        return cell.parameters == 0
    return follows(size, cell.parameters) or any(
        entry["count"] == cell.parameters and entry["model"] == model and row.startswith(entry["method"])
        for entry in exact_counts()
        if entry["printed"] == size and not entry.get("chosen")
    )


def about_counts(model: str) -> list[str]:
    """The printed counts of a model's rows that do not follow from their own formula, and the rows whose size
    is this project's choice, in words."""
    notes = []
    for entry in exact_counts():
        method, count, note = entry["method"], f"{entry['count']:,}", entry.get("note")
        if entry["model"] == model and entry.get("chosen"):
            size = f" with {count} parameters for the paper's {entry['printed']}{f': {note}' if note else ''}"
            notes.append(f"{method}: size and rates chosen here,{size}.")
        elif entry["model"] == model and note:
            exact = f"whose exact count is {count}: {note}"
            notes.append(f"The paper prints {entry['printed']} for {method}, {exact}.")
    return notes
