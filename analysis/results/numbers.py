"""The numbers in a study's notes. NOTES.md is a template in which each count, score,
difference, interval and list of rows is a call of what stands here:

    Over {{ minus("vera", "lora", task="mrpc").n }} pairs VeRA is
    {{ minus("vera", "lora", task="mrpc") | gap }}.

Everything is computed from the study's own records when `make results` writes its page.
docs/stats.md lists the calls."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from scipy import special

from analysis.frame import SELECTIONS, with_reported_scores
from analysis.frame import runs as all_runs
from analysis.inference import Mean, TwoWay, two_way
from analysis.paper import printed_numbers
from analysis.results.comparisons import CHANCE, mark_collapsed
from analysis.results.rates import rate_change_of_search
from analysis.results.scores import FILTERS, SeedDifferences, SeedScores, listed
from analysis.results.study_rows import (
    OverTasks,
    RowDifference,
    StudyRows,
    rows_over_tasks,
)
from analysis.results.templates import results_environment
from analysis.sizes import SizeBound, size_bounds
from runs.command.errors import UserError
from runs.record.ledger import read_study

NOTES = "NOTES.md"


def rendered_notes(folder: Path, runs: pd.DataFrame, rows: StudyRows) -> str:
    """A study's notes with their numbers; "" where the study has no notes.

    Args:
        folder: of the study.
        runs: of the study (`frame.runs`).
        rows: of the study, beside VeRA.

    Raises:
        UserError: a call fails, with the file.
    """
    if not (folder / NOTES).is_file():
        return ""
    study = StudyNumbers(runs, rows, folder.parent)
    # The environment is cached, and other pages use it: only a copy gets the filters.
    environment = results_environment(folder).overlay()
    environment.filters = {**environment.filters, **FILTERS}
    try:
        template = environment.get_template(NOTES)
        return template.render(study.calls())
    except (jinja2.TemplateError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{folder.name}/{NOTES}: {error}") from error


#: The methods of StudyNumbers that a template may call.
CALLS = (
    "score",
    "minus",
    "change",
    "spread",
    "mean_of_runs",
    "best_within",
    "count",
    "parameters",
    "ratio",
    "rates",
    "best_rate",
    "trial",
    "highest_trial",
    "seeds",
    "seeds_of",
    "best_is_last",
    "at_end",
    "rank_regret",
    "firm",
    "difference_of",
    "row_labels",
    "over_tasks",
    "two_way_of",
    "rank_correlation",
    "size_bounds",
    "label",
)


class StudyNumbers:
    """What a study's notes can ask for (CALLS).

    runs: of the study, with scores (`scored_runs`). rows: its rows beside VeRA. studies:
    the folder of all studies, from which a call with `study=` reads another study.

    Filters choose runs: they are columns of `frame.runs` or settings, each with a value
    or a list of values, such as task="mrpc". A call that matches no run raises
    ValueError."""

    def __init__(self, runs: pd.DataFrame, rows: StudyRows, studies: Path) -> None:
        self.runs = scored_runs(runs)
        self.rows = rows
        self.studies = studies

    def calls(self) -> dict[str, Any]:
        """What a template may use, by name: the calls, two counts and HELPERS."""
        methods = {name: getattr(self, name) for name in CALLS}
        counts = {
            "comparisons": self.rows.comparisons,
            "row_count": len(self.rows.rows),
        }
        return {**methods, **counts, **HELPERS}

    # --- runs

    def select(
        self, row: str = "", kind: str = "result", study: str = "", **filters: Any
    ) -> pd.DataFrame:
        """The runs that the filters choose, of this study or another one.

        Args:
            row: of these runs; "" for any.
            kind: result or trial.
            study: the name of another study; "" for this one.
            filters: see StudyNumbers.

        Raises:
            ValueError: there is no such run.
        """
        chosen = runs_of_study(self.studies / study) if study else self.runs
        chosen = chosen[chosen.kind == kind]
        if row:
            chosen = chosen[chosen.row == row]
        for key, value in filters.items():
            values = value if isinstance(value, list) else [value]
            chosen = chosen[column_or_setting(chosen, key).isin(values)]
        if chosen.empty:
            raise ValueError(f"no {kind} of {row or 'any row'} with {filters}")
        return chosen

    def _runs_by_seed(
        self, row: str, column: str, filters: dict[str, Any]
    ) -> pd.DataFrame:
        """The results that the filters choose, sorted by seed, with the values of a
        column as `number`. Raises ValueError if a model and task has several runs of one
        seed."""
        chosen = self.select(row, **filters).sort_values("seed")
        if chosen.duplicated(["model", "task", "seed"]).any():
            raise ValueError(f"{row} with {filters} is several runs of one seed")
        return chosen.assign(number=chosen[column].astype(float))

    def score(self, row: str, score: str = "number", **filters: Any) -> SeedScores:
        """A row's scores. score: a column of `frame.runs`, such as best, last or
        crossfit; by default what the task's table reports (`frame.with_reported_scores`)."""
        chosen = self._runs_by_seed(row, score, filters)
        return SeedScores(
            tuple(chosen.seed), tuple(chosen.number), int(chosen.collapsed.sum())
        )

    def minus(
        self,
        left: str,
        right: str,
        score: str = "number",
        trained: bool = False,
        **filters: Any,
    ) -> SeedDifferences:
        """One row minus another in pairs of runs of one seed. Positive: `left` is better.

        Args:
            score: the column that is compared, as for `score`.
            trained: whether to keep only the pairs in which both runs trained.
            filters: of both rows; with the prefix left_ or right_, of one of them.
        """
        sides = []
        for row, prefix in ((left, "left_"), (right, "right_")):
            side_filters = filters_of_side(filters, prefix)
            runs = self._runs_by_seed(row, score, side_filters)
            sides.append(runs.set_index("seed"))
        if trained:
            sides = [side[~side.collapsed] for side in sides]
        left_runs, right_runs = sides
        seeds = left_runs.index.intersection(right_runs.index)
        differences = left_runs.number[seeds] - right_runs.number[seeds]
        if less_is_better(left_runs, score):
            differences = -differences
        return SeedDifferences(tuple(seeds), tuple(differences))

    def change(
        self, rows: str | list[str], score: str, minus_score: str, **filters: Any
    ) -> SeedDifferences:
        """One score of some runs minus another score of the same runs, such as best minus
        last, by seed. Of several rows each seed has the mean. It keeps its sign where
        less of a score is better."""
        names = [rows] if isinstance(rows, str) else rows
        changes = list[pd.Series]()
        for row in names:
            runs = self._runs_by_seed(row, score, filters).set_index("seed")
            changes.append(runs[score].astype(float) - runs[minus_score])
        means = pd.concat(changes, axis=1).mean(axis=1)
        return SeedDifferences(tuple(means.index), tuple(means))

    def spread(
        self, row: str, score: str = "number", within: str = "", **filters: Any
    ) -> float:
        """The standard deviation of a row's scores. within: a column or setting. If it is
        given, we take the deviation among the runs with the same value of it, pooled
        over its values."""
        chosen = self.select(row, **filters)
        scores = chosen[score].astype(float)
        if not within:
            return float(scores.std())
        groups = scores.groupby(column_or_setting(chosen, within))
        squares = (groups.var() * (groups.count() - 1)).sum()
        return math.sqrt(squares / (len(scores) - groups.ngroups))

    def mean_of_runs(self, row: str, score: str = "number", **filters: Any) -> float:
        """The mean of a row's scores over all of its runs."""
        return float(self.select(row, **filters)[score].mean())

    def best_within(self, epoch: int, **filters: Any) -> int:
        """In how many runs the best epoch is this one or an earlier one."""
        return int((self.select(**filters).best_epoch <= epoch).sum())

    def count(self, row: str = "", kind: str = "result", **filters: Any) -> int:
        """How many runs there are (kind: result or trial)."""
        return len(self.select(row, kind, **filters))

    def label(self, row: str) -> str:
        """The name of a row in tables."""
        return str(self.select(row).label.iloc[0])

    def parameters(self, row: str, **filters: Any) -> str:
        """How many parameters a row trains: 7,680."""
        return f"{self.select(row, **filters).parameters.iloc[0]:,.0f}"

    def ratio(self, left: str, right: str, **filters: Any) -> float:
        """How many times as many parameters the left row trains as the right one."""
        sizes = [
            self.select(row, **filters).parameters.iloc[0] for row in (left, right)
        ]
        return float(sizes[0] / sizes[1])

    def size_bounds(
        self, rewarded: Sequence[str], demonstrated: Sequence[str], **filters: Any
    ) -> list[SizeBound]:
        """The bounds that rows trained by reward give (`sizes.size_bounds`), the smallest
        row first. rewarded: the rows that were trained by reward; demonstrated: those
        that were trained by demonstrations."""

        def scores_by_size(rows: Sequence[str]) -> dict[int, tuple[float, ...]]:
            scores = dict[int, tuple[float, ...]]()
            for row in rows:
                size = int(self.select(row, **filters).parameters.iloc[0])
                scores[size] = self.score(row, **filters).values
            return scores

        return size_bounds(scores_by_size(rewarded), scores_by_size(demonstrated))

    # --- trials

    def rates(self, row: str, **filters: Any) -> list[float]:
        """The learning rates that trials of a row tried, the lowest first."""
        column = rate_column(row)
        return sorted(self.select(row, "trial", **filters)[column].unique())

    def best_rate(self, row: str, **filters: Any) -> float:
        """The learning rate with the best mean score over the trials of a row."""
        column = rate_column(row)
        trials = self.select(row, "trial", **filters)
        means = trials.groupby(column).number.mean()
        if trials.lower_is_better.iloc[0]:
            return float(means.idxmin())
        return float(means.idxmax())

    def trial(self, row: str, lr: float, **filters: Any) -> float:
        """The mean score of a row's trials at a learning rate."""
        column = rate_column(row)
        trials = self.select(row, "trial", **filters)
        return float(trials[np.isclose(trials[column], lr)].number.mean())

    def highest_trial(self, **filters: Any) -> float:
        """The highest score of any trial."""
        return float(self.select("", "trial", **filters).number.max())

    def seeds(self, row: str = "", kind: str = "trial", **filters: Any) -> int:
        """How many seeds the trials (or results) of a row have."""
        return int(self.select(row, kind, **filters).seed.nunique())

    def seeds_of(self, row: str, **filters: Any) -> int:
        """How many seeds the results of a row have."""
        return self.seeds(row, "result", **filters)

    def at_end(self, **filters: Any) -> list[str]:
        """The labels of the rows whose best rate is the lowest or the highest that was
        tried. filters: columns of the row's cell."""
        cells = [row.cell for row in self.rows.rows if row.at_end]
        return [cell.label for cell in cells if cell_matches(cell, filters)]

    def rank_regret(self, **filters: Any) -> Mean:
        """How much the score of a rank of VeRA changes at the rate that is best for
        another rank (`rates.change_at_other_rates`); NaN where trials are too few. The filters must
        choose the trials of one search."""
        trials = self.select("", "trial", method="vera", **filters)
        return rate_change_of_search(trials)

    def best_is_last(self, **filters: Any) -> int:
        """In how many runs the best epoch is the last."""
        chosen = self.select(**filters)
        return int((chosen.best_epoch == chosen.last_epoch).sum())

    # --- a study of many rows

    def firm(
        self,
        sign: int,
        pairs: bool = False,
        excluded: Sequence[str] = (),
        **filters: Any,
    ) -> list[str]:
        """The labels of the rows that are firmly above (sign 1) or below (-1) VeRA, that
        is, significantly after Holm's correction.

        Args:
            sign: 1 or -1.
            pairs: whether to test each row by the variance of its own pairs, in place of
                the pooled one.
            excluded: labels to leave out.
            filters: columns of the row's cell.
        """
        labels = list[str]()
        for row in self.rows.rows:
            is_firm = row.is_firm_by_pairs if pairs else row.is_firm
            mean = row.paired if pairs else row.mean
            has_sign = np.sign(mean.mean) == sign
            if is_firm and has_sign and cell_matches(row.cell, filters):
                labels.append(row.cell.label)
        return [label for label in labels if label not in excluded]

    def row_labels(self, task: str) -> list[str]:
        """The rows of conf/method that have results on a task. task: its label."""
        cells = self.rows.cells
        return sorted({*cells[cells.task_label == task].conf_row})

    def difference_of(self, label: str, **filters: Any) -> RowDifference:
        """A row's difference from VeRA on one task, by the row's label. filters: columns
        of the row's cell, such as task; of several matches the first one counts. Raises
        ValueError for an unknown row."""
        for row in self.rows.rows:
            if row.cell.label == label and cell_matches(row.cell, filters):
                return row
        raise ValueError(f"no row {label} with {filters}")

    def over_tasks(self, *tasks: str, share_of_gain: bool = False) -> OverTasks:
        """The rows over these tasks (labels; by default all). share_of_gain: whether each
        score is replaced by its share of the gain from the head alone to LoRA, in
        percent. Raises ValueError where rows or tasks are too few."""
        reference_cells = self.rows.cells if share_of_gain else None
        over_tasks = rows_over_tasks(self.rows.poolable, tasks, reference_cells)
        if over_tasks is None:
            raise ValueError(f"too few rows or tasks: {tasks}")
        return over_tasks

    def rank_correlation(self, left: str, right: str) -> tuple[float, int]:
        """Spearman's correlation of the means of all rows with an adapter on two tasks,
        and over how many rows it is. left, right: the labels of the tasks."""
        cells = self.rows.cells[self.rows.cells.parameters > 0]
        means = cells.pivot_table(index="row", columns="task_label", values="mean")
        pairs = means[[left, right]].dropna()
        return float(pairs.corr(method="spearman").iloc[0, 1]), len(pairs)

    def two_way_of(
        self, rows: str, columns: str, score: str = "number", **filters: Any
    ) -> TwoWay:
        """The analysis of variance of a table of scores.

        Args:
            rows: a column or setting of the runs, such as "row". Each of its values is a
                line of the table.
            columns: another one, such as "seed". Each of its values is a column.
            score: as for `score`. Of several runs in a cell we take the mean.
            filters: see StudyNumbers.
        """
        chosen = self.select(**filters)
        for name in (rows, columns):
            chosen = chosen.assign(**{name: column_or_setting(chosen, name)})
        table = chosen.pivot_table(index=rows, columns=columns, values=score)
        return two_way(table.to_numpy())


def cell_matches(cell: Any, filters: Mapping[str, Any]) -> bool:
    """Whether a cell (a line of `frame.cells`) has these values, by column."""
    return all(getattr(cell, key) == value for key, value in filters.items())


def rate_column(row: str) -> str:
    """The column with the learning rate of a row: that of the head if it trains nothing
    else."""
    return "lr_head" if row == "head" else "lr"


def filters_of_side(filters: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The filters of one side of a difference: those of both sides, and those with its
    prefix (left_ or right_), without it."""
    opposite = "right_" if prefix == "left_" else "left_"
    return {
        key.removeprefix(prefix): value
        for key, value in filters.items()
        if not key.startswith(opposite)
    }


def less_is_better(runs: pd.DataFrame, score: str) -> bool:
    """Whether less of a score is better. score: a column of the runs. The reported score
    ("number") and the metric by any choice of the epoch say it themselves. We take every
    other column to be better where it is higher, as all scores of texts are."""
    if score == "number":
        return bool(runs.lower_is_better.iloc[0])
    is_metric = score in ("value", *SELECTIONS)
    return is_metric and not runs.higher_is_better.iloc[0]


def column_or_setting(runs: pd.DataFrame, name: str) -> pd.Series:
    """A column of the runs, or each run's value of a setting (None where it has none)."""
    if name in runs:
        return runs[name]
    return runs.settings.map(lambda settings: settings.get(name))


def scored_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Those of `frame.runs` that did not fail, with their scores and `collapsed`: False
    for stopped runs, and for trials, as a search tries bad rates, too."""
    finished = with_reported_scores(runs[runs.kind != "failed"])
    is_result = finished.kind == "result"
    results = mark_collapsed(finished[is_result])
    return pd.concat([results, finished[~is_result].assign(collapsed=False)])


@cache
def runs_of_study(folder: Path) -> pd.DataFrame:
    """The runs of a published study, with their scores. folder: of the study."""
    return scored_runs(all_runs(read_study(folder)))


def paper_number(table: str, model: str, row: str, column: str) -> str:
    """A number that the paper prints, as text. Raises ValueError if a table prints
    several different ones, and KeyError if it prints none."""
    frame = printed_numbers()
    by_key = frame.set_index(["table", "model", "row", "column"]).sort_index()
    lines = by_key.loc[[(table, model, row, column)]]
    values = {*lines.value}  # a row may stand in several parts of a table
    if len(values) != 1:
        raise ValueError(f"{table} has {len(values)} numbers of {row} on {column}")
    return f"{values.pop():.1f}"


def larger_class(task: str) -> str:
    """The share of the larger class in a task's dev set, in percent."""
    return f"{CHANCE[task]:g}%"


def width(difference: SeedDifferences) -> float:
    """The width of the 95% interval of a mean difference."""
    low, high = difference.ends()
    return high - low


def power_of_columns(deviation: float, table: TwoWay, rows: int, columns: int) -> float:
    """The power of the F test at 5% to find that the columns of a table differ, if their
    true means are normal with this standard deviation. table: the analysis of variance
    that gives the standard deviation of the residuals."""
    freedoms = (columns - 1, (rows - 1) * (columns - 1))
    critical = special.fdtri(*freedoms, 0.95)
    # The expected mean square of the columns, divided by that of the residuals. The test
    # statistic divided by it has the F distribution.
    ratio = 1 + rows * (deviation / table.deviation) ** 2
    return float(special.fdtrc(*freedoms, critical / ratio))


def row_error(percent: float, rows: int) -> float:
    """The standard error of an accuracy in percent, over this many rows."""
    return math.sqrt(percent * (100 - percent) / rows)


#: The functions that a template may call, besides CALLS.
HELPERS = {
    "listed": listed,
    "paper": paper_number,
    "row_error": row_error,
    "larger_class": larger_class,
    "width": width,
    "power_of_columns": power_of_columns,
}
