"""The numbers in a study's notes. NOTES.md is a template in which each count, score,
difference, interval and list of rows is a call of what stands here:

    Over {{ minus("vera", "lora", task="mrpc").n }} pairs VeRA is
    {{ minus("vera", "lora", task="mrpc") | gap }}.

Everything is computed from the study's own records when `make results` writes its page.
docs/records.md lists the calls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from analysis.frame import reported
from analysis.inference import Mean, TwoWay, mean_of, two_way
from analysis.paper import numbers
from analysis.results.claims import MARGIN_TEXT
from analysis.results.comparisons import collapsed
from analysis.results.study_rows import OverTasks, StudyRows, over_tasks
from analysis.results.templates import distance, interval, templates
from runs.errors import UserError

NOTES = "NOTES.md"


def rendered_notes(folder: Path, runs: pd.DataFrame, rows: StudyRows) -> str:
    """A study's notes with their numbers; "" where the study has none.

    Raises:
        UserError: a call fails, with the file.
    """
    if not (folder / NOTES).is_file():
        return ""
    study = StudyNumbers(runs, rows)
    environment = templates(folder).overlay()
    environment.filters = {**environment.filters, "gap": gap, "fixed": fixed}
    try:
        template = environment.get_template(NOTES)
        return template.render(study.calls())
    except (jinja2.TemplateError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{folder.name}/{NOTES}: {error}") from error


def fixed(value: float | Sequence[float], decimals: int = 1) -> str:
    """A number, or several, with this many decimals."""
    if isinstance(value, int | float | np.floating):
        return f"{value:,.{decimals}f}"
    return listed([f"{one:,.{decimals}f}" for one in value])


def gap(difference: "Difference", decimals: int = 1) -> str:
    """A difference in words: 1.2 points below (95% CI -2.3 to -0.1)."""
    ends = interval(difference.mean, decimals)
    words = distance(difference.mean, decimals)
    return words if ends == "-" else f"{words} (95% CI {ends})"


def listed(names: Sequence[str]) -> str:
    """Names as prose lists them: a, b and c; "none" of no names."""
    if len(names) < 2:
        return "".join(names) or "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


@dataclass(frozen=True)
class Scores:
    """The scores of some runs, by seed."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    collapsed: int

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        return float(np.std(self.values, ddof=1))

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    @property
    def lowest_seed(self) -> int:
        return self.seeds[self.values.index(self.lowest)]

    @property
    def standard_error(self) -> float:
        """Of a mean over these runs."""
        return self.sd / math.sqrt(self.n)

    def sd_without_lowest(self) -> float:
        """The standard deviation without the lowest score, such as a collapsed run."""
        return float(np.std(sorted(self.values)[1:], ddof=1))


@dataclass(frozen=True)
class Difference:
    """Differences of pairs of one seed; positive: the first row is better."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @cached_property
    def mean(self) -> Mean:
        return mean_of(self.values)

    @property
    def sd(self) -> float:
        return float(np.std(self.values, ddof=1))

    @property
    def p(self) -> float:
        return float(self.mean.p())

    @property
    def above(self) -> int:
        """In how many pairs the first row is better."""
        return sum(value > 0 for value in self.values)

    @property
    def below(self) -> int:
        return sum(value < 0 for value in self.values)

    @property
    def smallest(self) -> float:
        """The smallest difference of a pair, without its sign."""
        return min(map(abs, self.values))

    @property
    def largest(self) -> float:
        return max(map(abs, self.values))

    def ends(self, level: float = 0.95) -> tuple[float, float]:
        """Both ends of the interval of the mean."""
        low, high = self.mean.interval(level)
        return float(low), float(high)

    def corrected_ends(self, comparisons: int) -> tuple[float, float]:
        """Both ends after Bonferroni's correction for this many comparisons."""
        return self.ends(1 - 0.05 / comparisons)


class StudyNumbers:
    """What a study's notes can ask. runs: of the study; rows: beside VeRA."""

    def __init__(self, runs: pd.DataFrame, rows: StudyRows) -> None:
        self.runs = collapsed(reported(runs[runs.kind != "failed"]))
        self.rows = rows

    def calls(self) -> dict[str, Any]:
        """The names that a template knows."""
        return {
            "score": self.score,
            "minus": self.minus,
            "count": self.count,
            "parameters": self.parameters,
            "ratio": self.ratio,
            "rates": self.rates,
            "best_rate": self.best_rate,
            "trial": self.trial,
            "best_is_last": self.best_is_last,
            "at_end": self.at_end,
            "firm": self.firm,
            "difference_of": self.difference_of,
            "comparisons": self.rows.comparisons,
            "over_tasks": self.over_tasks,
            "two_way_of": self.two_way_of,
            "rank_correlation": self.rank_correlation,
            "label": self.label,
            "listed": listed,
            "paper": paper_number,
            "margin": MARGIN_TEXT,
            "row_error": row_error,
        }

    # --- runs

    def select(self, row: str = "", kind: str = "result", **where: Any) -> pd.DataFrame:
        """The runs of a row, by columns of `frame.runs` or by settings."""
        chosen = self.runs[self.runs.kind == kind]
        if row:
            chosen = chosen[chosen.row == row]
        for key, value in where.items():
            values = value if isinstance(value, list) else [value]
            chosen = chosen[column_or_setting(chosen, key).isin(values)]
        if chosen.empty:
            raise ValueError(f"no {kind} of {row or 'any row'} with {where}")
        return chosen

    def _by_seed(self, row: str, column: str, where: dict[str, Any]) -> pd.DataFrame:
        """The runs of one cell, sorted by seed."""
        chosen = self.select(row, **where).sort_values("seed")
        if chosen.duplicated(["model", "task", "seed"]).any():
            raise ValueError(f"{row} with {where} is several runs of one seed")
        return chosen.assign(number=chosen[column].astype(float))

    def score(self, row: str, of: str = "number", **where: Any) -> Scores:
        """A row's scores. of: best, last, crossfit, or a column of `frame.runs`; by
        default what the task's table reports."""
        chosen = self._by_seed(row, of, where)
        return Scores(
            tuple(chosen.seed), tuple(chosen.number), int(chosen.collapsed.sum())
        )

    def minus(
        self, left: str, right: str, of: str = "number", **where: Any
    ) -> Difference:
        """One row minus another in pairs of one seed, such that more is better. where:
        of both rows; with the prefix left_ or right_, of one of them."""
        sides = []
        for row, side in ((left, "left_"), (right, "right_")):
            other = "right_" if side == "left_" else "left_"
            of_side = {
                key.removeprefix(side): value
                for key, value in where.items()
                if not key.startswith(other)
            }
            sides.append(self._by_seed(row, of, of_side).set_index("seed"))
        shared = sides[0].index.intersection(sides[1].index)
        difference = sides[0].number[shared] - sides[1].number[shared]
        is_less = of == "number" and bool(sides[0].lower_is_better.iloc[0])
        if is_less or (of == "value" and sides[0].higher_is_better.iloc[0] == False):  # noqa: E712
            difference = -difference
        return Difference(tuple(shared), tuple(difference))

    def count(self, row: str = "", kind: str = "result", **where: Any) -> int:
        """How many runs there are (kind: result or trial)."""
        return len(self.select(row, kind, **where))

    def label(self, row: str) -> str:
        return str(self.select(row).label.iloc[0])

    def parameters(self, row: str, **where: Any) -> str:
        """How many parameters a row trains: 7,680."""
        return f"{self.select(row, **where).parameters.iloc[0]:,.0f}"

    def ratio(self, left: str, right: str, **where: Any) -> float:
        """How many times as many parameters the first row trains."""
        sizes = [self.select(row, **where).parameters.iloc[0] for row in (left, right)]
        return float(sizes[0] / sizes[1])

    # --- trials

    def rates(self, row: str, **where: Any) -> list[float]:
        """The learning rates that trials of a row tried."""
        column = "lr_head" if row == "head" else "lr"
        return sorted(self.select(row, "trial", **where)[column].unique())

    def best_rate(self, row: str, **where: Any) -> float:
        column = "lr_head" if row == "head" else "lr"
        trials = self.select(row, "trial", **where)
        means = trials.groupby(column).number.mean()
        return float(
            means.idxmin() if trials.lower_is_better.iloc[0] else means.idxmax()
        )

    def trial(self, row: str, lr: float, **where: Any) -> float:
        """The mean score of the trials at a rate."""
        column = "lr_head" if row == "head" else "lr"
        trials = self.select(row, "trial", **where)
        return float(trials[np.isclose(trials[column], lr)].number.mean())

    def at_end(self, **where: Any) -> list[str]:
        """The labels of the rows whose best rate is at an end of those tried."""
        cells = [row.cell for row in self.rows.rows if row.at_end]
        return [
            cell.label
            for cell in cells
            if all(getattr(cell, key) == value for key, value in where.items())
        ]

    def best_is_last(self, **where: Any) -> int:
        """In how many runs the best epoch is the last."""
        chosen = self.select(**where)
        return int((chosen.best_epoch == chosen.last_epoch).sum())

    # --- a study of many rows

    def firm(
        self, sign: int, pairs: bool = False, without: Sequence[str] = (), **where: Any
    ) -> list[str]:
        """The labels of the rows that are above (1) or below (-1) VeRA after Holm's
        correction. pairs: by their own pairs, in place of the pooled variance."""
        names = list[str]()
        for row in self.rows.rows:
            cell: Any = row.cell
            is_firm = row.is_firm_by_pairs if pairs else row.is_firm
            matches = all(getattr(cell, key) == value for key, value in where.items())
            mean = row.paired if pairs else row.mean
            if is_firm and matches and np.sign(mean.mean) == sign:
                names.append(cell.label)
        return [name for name in names if name not in without]

    def difference_of(self, label: str, **where: Any) -> Any:
        """The line of a row (`study_rows.RowDifference`) by its label."""
        for row in self.rows.rows:
            cell: Any = row.cell
            matches = all(getattr(cell, key) == value for key, value in where.items())
            if cell.label == label and matches:
                return row
        raise ValueError(f"no row {label} with {where}")

    def over_tasks(self, *tasks: str, share_of_gain: bool = False) -> OverTasks:
        """The rows over these tasks (labels; by default all)."""
        gains = self.rows.cells if share_of_gain else None
        made = over_tasks(self.rows.alike, tasks, gains)
        if made is None:
            raise ValueError(f"too few rows or tasks: {tasks}")
        return made

    def rank_correlation(self, left: str, right: str) -> tuple[float, int]:
        """Spearman's correlation of the rows' means on two tasks (labels), and of how
        many rows."""
        cells = self.rows.cells[self.rows.cells.parameters > 0]
        means = cells.pivot_table(index="row", columns="task_label", values="mean")
        both = means[[left, right]].dropna()
        return float(both.corr(method="spearman").iloc[0, 1]), len(both)

    def two_way_of(
        self, rows: str, columns: str, of: str = "number", **where: Any
    ) -> TwoWay:
        """The analysis of variance of scores by two columns or settings of the runs."""
        chosen = self.select(**where)
        for name in (rows, columns):
            chosen = chosen.assign(**{name: column_or_setting(chosen, name)})
        table = chosen.pivot_table(index=rows, columns=columns, values=of)
        return two_way(table.to_numpy())


def column_or_setting(runs: pd.DataFrame, name: str) -> pd.Series:
    """A column of the runs, or what each has for a setting."""
    if name in runs:
        return runs[name]
    return runs.settings.map(lambda settings: settings.get(name))


def paper_number(table: str, model: str, row: str, column: str) -> str:
    """A number that the paper prints."""
    frame = numbers()
    chosen = frame[
        (frame.table == table)
        & (frame.model == model)
        & (frame.row == row)
        & (frame.column == column)
    ]
    if len(chosen) != 1:
        raise ValueError(f"{table} has {len(chosen)} numbers of {row} on {column}")
    return f"{chosen.value.iloc[0]:g}"


def row_error(percent: float, rows: int) -> float:
    """The standard error of an accuracy in percent, over this many rows."""
    return math.sqrt(percent * (100 - percent) / rows)
