"""Records as two pandas frames: `runs` has a row for each run, and `cells` one for each
cell (model, row, task, and the way in which it was measured) over its seeds.

Every value is a number or a name; tables make text of them. A metric's columns (value,
best, last, crossfit, half, optimism, median, mean, spread) are in the unit that tables
print: points for fractions. The names of other columns say their unit, such as seconds
and bytes. NaN means that a run has no such number."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.facts import FACTS, is_method_recipe, short_hash
from analysis.rows import RowMaker, RunRow
from runs.record.files import read_yaml
from runs.record.ledger import CONF, Ledger, read_ledger
from runs.record.override import split_seeds
from runs.record.schema import TEXT_SCORES

#: The columns that identify a cell of the paper's tables, and one of ours: we may have
#: measured a row in several ways on a task, such as on 1,000 training rows and on 5,000.
ROW_ON_TASK = ["model", "row", "task"]
CELL_KEY = [*ROW_ON_TASK, "way"]
#: How many seeds a complete cell has: as many as the paper's medians are over, and on
#: some tasks as many as the task's protocol has.
SEEDS = 5
SEEDS_BY_TASK = {
    "alpaca": 1,
    "commonsense": 1,
    "e2e": 3,
    "gsm8k": 1,
    "reviews": 3,
    "sums": 1,
}
#: Tasks on which a study may have more seeds than the protocol: its preset says so.
STUDY_TASKS = ("alpaca", "commonsense", "gsm8k", "reviews", "sums")

# --- runs


def runs(ledger: Ledger | str | None = None) -> pd.DataFrame:
    """Every run of a ledger, with a column for each of FACTS and these: origin ("ours",
    or the study that has published it), settings (what defines its result), left_out
    (why it is in no cell; "" if it is in one), and is_nearest (see `mark_left_out`).

    ledger: records, or the folder of them; by default outputs/. With a folder the
    published records are read, too."""
    if not isinstance(ledger, Ledger):
        ledger = read_ledger(ledger or "outputs", make_row=RowMaker())
    make_row = RowMaker()
    # a ledger that was read with a RowMaker has rows in the place of records
    rows = [entry if isinstance(entry, RunRow) else make_row(entry) for entry in ledger]
    # For so few rows Python's strings are faster than Arrow's.
    with pd.option_context("mode.string_storage", "python"):
        frame = pd.DataFrame(rows, columns=RunRow._fields)
        origins = [ledger.origin.get(row.id, "ours") for row in rows]
        frame["origin"] = pd.Series(origins, frame.index, dtype=frame.id.dtype)
        return mark_left_out(name_base_models(frame))


def name_base_models(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a different model name for each base model, that is, for each hash of
    a model's weights. If several base models share a name, the one with the most runs
    keeps it, and the names of the others get the hash as a suffix. If the name is that
    of their folders, all of them get it, as none of them is the usual one."""
    base_model_counts = runs.groupby("model").base_model.nunique()
    for model in base_model_counts.index[base_model_counts > 1]:
        results = runs[(runs.model == model) & runs.base_model.notna()]
        run_counts = results.base_model.value_counts(sort=False)
        renamed = run_counts.sort_values(kind="stable").index  # the most runs last
        # model=encoder model.path=... is named after its folder
        has_folder_name = (results.conf_model != results.model).any()
        if not has_folder_name:
            renamed = renamed[:-1]
        for base_model in renamed:
            selected = (runs.model == model) & (runs.base_model == base_model)
            suffix = f" {short_hash(base_model)}"
            for column in ("model", "model_label"):
                runs.loc[selected, column] += suffix
    return runs


def mark_left_out(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with two columns. `left_out` is why a run is in no cell ("": it is in one):

    - failed, stopped, trial: it is no result.
    - protocol: another variant of its row follows a newer protocol.
    - settings: another variant is nearer to its recipe.
    - seed: another run of the same settings has that seed.

    Variants are runs of the same row, model and task, measured in the same way, that
    have other settings (another `cell`, the hash of these); they never share a cell of a
    table. The nearest to its recipe is the one of the newest protocol, then with the
    fewest deviations, then by a method's recipe and not by a study's, then with the most
    runs.

    `is_nearest` is whether a run is in the nearest cell of all ways in which its row was
    measured on the task. That cell stands beside the paper's."""
    columns = [*CELL_KEY, "cell", "protocol", "deviations", "recipe", "seed", "id"]
    results = runs.loc[runs.kind == "result", columns]
    if results.empty:  # the joins below fail in pandas for empty columns of Arrow's
        return runs.assign(left_out=runs.kind.astype(object), is_nearest=False)
    results["closeness"] = -results.deviations.map(len)  # to the recipe
    results["has_method_recipe"] = results.recipe.map(is_method_recipe)
    variants = results.groupby([*CELL_KEY, "cell"], sort=False)
    results["runs"] = variants.seed.transform("size")
    order = ["protocol", "closeness", "has_method_recipe", "runs", "id"]
    by_closeness = results.sort_values(order)  # the nearest to its recipe comes last
    nearest_of_row = by_closeness.drop_duplicates(ROW_ON_TASK, keep="last")
    nearest_way = nearest_of_row.set_index(ROW_ON_TASK).way.rename("nearest_way")
    nearest_variant = by_closeness.drop_duplicates(CELL_KEY, keep="last")
    nearest_variant = nearest_variant.set_index(CELL_KEY)[["cell", "protocol"]]
    nearest_variant.columns = ["nearest_cell", "newest_protocol"]
    results = results.join(nearest_variant, on=CELL_KEY)
    results = results.join(nearest_way, on=ROW_ON_TASK)
    # of runs of one seed the first counts: the one with the fewest deviations
    results = results.sort_values(
        ["seed", "closeness", "id"], ascending=[True, False, True]
    )
    # the first reason that applies counts
    reasons = {
        "protocol": results.protocol != results.newest_protocol,
        "settings": results.cell != results.nearest_cell,
        "seed": results.duplicated([*CELL_KEY, "cell", "seed"]),
    }
    left_out = runs.kind.astype(object)
    left_out[results.index] = np.select([*reasons.values()], [*reasons], "")
    is_nearest = (left_out == "").astype(bool)
    is_nearest[results.index] &= results.way == results.nearest_way
    return runs.assign(left_out=left_out, is_nearest=is_nearest)


def in_cells(runs: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The runs that are in these cells."""
    return runs[runs.id.isin({*itertools.chain(*cells.ids)})]


# --- what may be compared


def measurement_texts(runs: pd.DataFrame) -> pd.Series:
    """How each run was measured, where the runs of its model and task were measured in
    several ways: "1,000 training rows, last epoch"; "" where there is one way."""
    texts = pd.Series("", runs.index, dtype=object)
    for _, group in runs.groupby(["model", "task"], sort=False):
        keys = group.measurement.map(str)  # mappings have no hash
        measurements = group.measurement[~keys.duplicated()]
        if len(measurements) > 1:
            phrases = pd.DataFrame([*measurements], index=keys[measurements.index])
            texts[group.index] = keys.map(_unequal_phrases(phrases))
    return texts


def _unequal_phrases(phrases: pd.DataFrame) -> pd.Series:
    """A text for each measurement: its phrases on the topics in which they are not all
    equal. The hash of the data, which tells a reader nothing, is in it only if two
    measurements would have the same text otherwise.

    phrases: a row for each measurement, a column for each topic."""
    phrases = phrases.fillna("")
    unequal = phrases.loc[:, phrases.nunique() > 1]
    without_data = unequal.drop(columns="data", errors="ignore")
    needs_data = without_data.empty or without_data.duplicated().any()
    shown_phrases = unequal if needs_data else without_data
    return shown_phrases.apply(lambda texts: ", ".join(filter(None, texts)), axis=1)


def assign_table_columns(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with `table_column`, the key of the column in which a table shows each
    cell.

    The key is the cell's `column`, such as sst2. Most rows of a task were measured in
    the same way. A cell that was measured in another way gets another key, which says
    how: "sst2, 1,000 training rows"."""
    ways = cells.measurement_text
    if cells.empty:
        return cells.assign(table_column=cells.column)
    usual_ways = ways.groupby([cells.model, cells.task]).transform(
        lambda texts: texts.mode()[0]
    )
    keys = cells.column.where(ways == usual_ways, cells.column + ", " + ways)
    return cells.assign(table_column=keys)


def tasks_by_way(frame: pd.DataFrame, column: str = "task") -> pd.Series:
    """The task of each cell and, where the task was measured in several ways, how: "sst2,
    1,000 training rows". frame: cells, or runs with `measurement_text`. column: which name
    of the task, "task" or "task_label"."""
    suffix = ", " + frame.measurement_text
    return frame[column] + suffix.where(frame.measurement_text != "", "")


#: What two costs must share to be compared, besides the task.
COST_CONDITIONS = ["train_rows", "dev_rows", "precision", "dtype", "device"]
#: Columns of `cells` that depend on these conditions.
COST_COLUMNS = [name for name, fact in FACTS.items() if fact.is_cost]


def rows_sharing(cells: pd.DataFrame, columns: list[str]) -> set[str]:
    """The rows of one table whose numbers over several tasks may stand in one column of
    it: the largest group of rows that have the same tasks and, on each of them, the same
    values of `columns`. The group is empty if no two of several rows agree. A row with
    an unknown value agrees with no other."""
    rows_with_unknown = cells.row[cells[columns].isna().any(axis=1)]
    comparable = cells[~cells.row.isin(rows_with_unknown)]
    conditions_by_row = defaultdict[str, set[Any]](set)
    lines = comparable[["row", "task", *columns]].itertuples(index=False, name=None)
    for row, *task_and_values in lines:
        conditions_by_row[str(row)].add(tuple(task_and_values))
    # frozen sets can be counted
    frozen_by_row = {
        row: frozenset(conditions) for row, conditions in conditions_by_row.items()
    }
    if not frozen_by_row:
        return set()
    usual, row_count = Counter(frozen_by_row.values()).most_common(1)[0]
    if row_count == 1 and cells.row.nunique() > 1:
        return set()
    return {row for row, conditions in frozen_by_row.items() if conditions == usual}


def comparable_costs(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of one table, with costs only for the rows that share tasks, data sizes,
    precision, dtype and device with the most other rows (`rows_sharing`). The costs of
    other rows become NaN."""
    comparable = cells.row.isin(rows_sharing(cells, ["conditions"]))
    return cells.assign(**cells[COST_COLUMNS].where(comparable))


# --- cells


#: Columns of `runs` of which a cell has the value of its first run, and those of which
#: it has the median.
FIRST_RUN_COLUMNS = [name for name, fact in FACTS.items() if fact.per_cell == "first"]
MEDIAN_COLUMNS = [name for name, fact in FACTS.items() if fact.per_cell == "median"]
#: The columns with the dev metric, one for each way of selecting an epoch.
SELECTIONS = ["best", "last", "crossfit", "half"]
#: Columns that `with_reported_scores` adds and cells keep.
REPORTED_COLUMNS = ["name", "lower_is_better", "digits"]
#: A function from runs to several numbers of each: a frame with a line for each number,
#: whose index says of which run it is.
MakesNumbers = Callable[[pd.DataFrame], pd.DataFrame]


def cells(
    runs: pd.DataFrame, value: str | MakesNumbers = "value", seeds: int | None = None
) -> pd.DataFrame:
    """The cells of some runs, a row each, sorted by CELL_KEY: the statistics of a column of
    `runs` over the seeds. This is the long frame that every table is made from. Diverged
    runs and those that predict one class count. A run without a number makes the
    statistics NaN.

    value: the column (value, best, last, crossfit, a score); or a function that makes
    several numbers of each run. Its frame has the columns `number`, `column` and
    `variant`, and each column and variant of a row is a cell. seeds: how many a complete
    cell has; by default those of the task's protocol, or of the preset that ran it.

    Columns:

    - CELL_KEY, and `column` and `variant` where there are several numbers (variant: "", or
      which of several, such as the judge of a score);
      FIRST_RUN_COLUMNS, MEDIAN_COLUMNS, is_nearest, and REPORTED_COLUMNS if the runs
      have them.
    - runs, how many there are; n, how many of them have the number; wanted, how many
      seeds a complete cell has; complete, whether n is at least that.
    - values, seeds, ids: tuples by seed. median, mean, spread (sample standard
      deviation). best, last, crossfit, half, optimism: medians.
    - measurement_text: how it was measured; "" where all rows of the task were measured
      in the same way (`measurement_texts`). conditions: what its costs depend on; None
      where seeds differ in it.
    - diverged, a count; one_class, the seeds that predict one class; class_share, its
      share of the rows in words; deviations; presets; origins.
    - Of results that are in no cell, but of the same row and measured in the same way:
      other_settings, how many have other settings; older_protocols, the protocol of
      each one that follows an older one; repeated_ids, of those that repeat a seed."""
    runs = mark_left_out(runs)
    results = runs[runs.kind == "result"]
    members = results[results.left_out == ""]
    members = members.sort_values([*CELL_KEY, "seed"], kind="stable")
    members["measurement_text"] = measurement_texts(members)
    key = CELL_KEY
    if not callable(value):
        members["score"] = members[value]
    else:
        key = [*CELL_KEY, "variant", "column"]
        members = members.join(value(members))  # a line for each number of a run
        # the lines of a cell must stand together (`_tuples_by_group`)
        cell_numbers = members.groupby(key, sort=False).ngroup()
        members = members.iloc[np.argsort(cell_numbers.to_numpy(), kind="stable")]
        members["score"] = members.number
    number_columns = ["score", *SELECTIONS, "optimism", *MEDIAN_COLUMNS]
    # columns of objects have None where a record has no number
    numbers = members[number_columns].apply(pd.to_numeric)
    members[number_columns] = numbers.astype(float)
    frame = _statistics(members, key).reset_index()
    frame = frame.join(_results_left_out(results), on=CELL_KEY)
    for name in ("one_class", "older_protocols", "repeated_ids"):
        # NaN where a cell has none
        frame[name] = [
            values if isinstance(values, tuple) else () for values in frame[name]
        ]
    frame["class_share"] = frame.class_share.astype(object).fillna("")
    frame["other_settings"] = frame.other_settings.fillna(0).astype(int)
    frame["wanted"] = seeds or [*map(_wanted_seeds, frame.task, frame.presets)]
    frame["complete"] = frame.n >= frame.wanted
    return frame


def _statistics(members: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """The columns of `cells` that come from the runs of each cell alone, by cell.

    members: a line for each run and number that is in a cell, with its `score`; those
    of one cell stand together. Two columns are added to it. key: the columns that
    identify a cell."""
    members["diverged"] = members.diverged.astype(bool)
    conditions = members[COST_CONDITIONS].itertuples(index=False)
    members["conditions"] = [", ".join(map(str, values)) for values in conditions]
    groups = members.groupby(key, sort=False)
    sizes = groups.size()
    scores = groups.score
    has_every_score = scores.count() == sizes
    has_every_selection = groups[SELECTIONS].count().eq(sizes, axis=0)
    # A diverged run ended early, so its cost counts only where all runs diverged.
    cost_counts = ~members.diverged | groups.diverged.transform("all")
    with_costs = members.assign(**members[MEDIAN_COLUMNS].where(cost_counts))
    # The run's `one_class` is a text with the share of that class, and otherwise missing.
    predicts_one_class = members.one_class.map(lambda share: isinstance(share, str))
    collapsed_groups = members[predicts_one_class.astype(bool)].groupby(key)
    first_columns = (
        *FIRST_RUN_COLUMNS,
        "is_nearest",
        "measurement_text",
        *REPORTED_COLUMNS,
    )
    statistics = {
        "runs": sizes,
        "n": scores.count(),
        "values": _tuples_by_group(groups, "score"),
        "seeds": _tuples_by_group(groups, "seed"),
        "ids": _tuples_by_group(groups, "id"),
        "median": scores.median().where(has_every_score),
        "mean": scores.mean().where(has_every_score),
        "spread": scores.std().where(has_every_score),
        **groups[SELECTIONS].median().where(has_every_selection),
        "optimism": groups.optimism.median(),
        **with_costs.groupby(key, sort=False)[MEDIAN_COLUMNS].median(),
        "conditions": [*map(_shared_text, _tuples_by_group(groups, "conditions"))],
        "diverged": groups.diverged.sum(),
        "one_class": collapsed_groups.seed.agg(tuple),
        "class_share": collapsed_groups.one_class.first(),
        "presets": [*map(_distinct, _tuples_by_group(groups, "preset"))],
        "origins": [*map(_distinct, _tuples_by_group(groups, "origin"))],
        "deviations": [
            _distinct(itertools.chain(*deviations))
            for deviations in _tuples_by_group(groups, "deviations")
        ],
    }
    firsts = groups.nth(0).set_index(key)  # first() would skip a missing value
    kept_columns = [name for name in first_columns if name in firsts]
    return firsts[kept_columns].assign(**statistics)


def _results_left_out(results: pd.DataFrame) -> pd.DataFrame:
    """What `cells` says of results that are in no cell, a line for each cell that they
    would belong to (CELL_KEY): other_settings, older_protocols and repeated_ids.
    results: with the column left_out (`mark_left_out`)."""

    def by_key(reason: str) -> Any:
        return results[results.left_out == reason].groupby(CELL_KEY)

    columns = {
        "other_settings": by_key("settings").size(),
        "older_protocols": by_key("protocol").protocol.agg(tuple),
        "repeated_ids": by_key("seed").id.agg(tuple),
    }
    return pd.DataFrame(columns)


def _tuples_by_group(groups: Any, column: str) -> list[tuple[Any, ...]]:
    """The values of a column in each group of a pandas groupby. The rows of a group must
    stand together, in the order of the groups: slices are faster than agg(tuple)."""
    ends = [0, *groups.size().cumsum()]
    values = groups.obj[column].tolist()
    return [tuple(values[first:last]) for first, last in itertools.pairwise(ends)]


def _distinct(values: Iterable[object]) -> tuple[object, ...]:
    """The values in their order, each once."""
    return tuple(dict.fromkeys(values))


def _shared_text(texts: Iterable[str]) -> str | None:
    """The text, if all of these are equal; None otherwise."""
    distinct = set(texts)
    return distinct.pop() if len(distinct) == 1 else None


def _wanted_seeds(task: str, presets: Iterable[str | None]) -> int:
    """How many seeds a cell should have: as many as its task's protocol has or, on
    STUDY_TASKS, as the preset that ran it has. presets: of the cell's runs; of several
    the one with the most seeds counts."""
    most_seeds = max(map(_seed_count_of_preset, presets), default=0)
    if task in STUDY_TASKS and most_seeds:
        return most_seeds
    return SEEDS_BY_TASK.get(task, SEEDS)


@cache
def _seed_count_of_preset(preset: str | None) -> int:
    """How many seeds a preset sweeps over; 0 if conf/experiment has no such preset, if the
    preset names no seeds, and for None, which stands for a run without a preset."""
    path = CONF / "experiment" / f"{preset}.yaml"
    content: Any = read_yaml(path) if path.is_file() else {}
    for key in ("hydra", "sweeper", "params"):
        content = content.get(key, {})
    return len(split_seeds(str(content.get("seed", ""))))


# --- the score that tables show


def with_reported_scores(runs: pd.DataFrame, select: str = "paper") -> pd.DataFrame:
    """The runs with the score that their task's table reports, in four columns: `number`;
    its `name`, such as "accuracy, best epoch"; `lower_is_better`; and `digits`, how many
    decimals a table prints.

    The score is that of the last epoch's texts if the cell's texts were scored
    (TEXT_SCORES), and otherwise the metric of the epoch that the table reports. select:
    "paper" for that; or another column of `runs`, such as crossfit, which is then the
    number even where texts were scored."""
    # Frames of failed runs alone have columns of floats.
    metrics = runs.metric.astype(object)
    epochs = runs.reported.astype(object)
    columns = pd.DataFrame({"number": runs["value" if select == "paper" else select]})
    columns["name"] = metrics + ", " + epochs + " epoch"
    columns["digits"] = runs.decimals
    # == also compares a column of objects, in which a failed run has no value
    columns["lower_is_better"] = runs.higher_is_better == False  # noqa: E712
    if select == "paper":
        # A run that diverged before it had texts takes the kind of score that the others
        # of its cell have.
        score_keys = runs.text_score.astype(object)
        score_keys = score_keys.groupby(runs.cell).transform("first")
        for key in set(score_keys.dropna()):
            score = TEXT_SCORES[key]
            columns.loc[score_keys == key, "number"] = runs[key]
            # name, lower_is_better and digits
            columns.loc[score_keys == key, REPORTED_COLUMNS] = (
                f"{score.name}, last epoch",
                not score.higher_is_better,
                score.decimals,
            )
    return runs.assign(**columns)


def reported_cells(
    runs: pd.DataFrame, select: str = "paper", seeds: int | None = None
) -> pd.DataFrame:
    """The cells (`cells`) of the score that each task's table reports.

    select: how the epoch is chosen: paper, crossfit or half. seeds: how many a complete
    cell has (None: as many as its task's protocol)."""
    return cells(with_reported_scores(runs, select), "number", seeds)


def pairs(runs: pd.DataFrame, row: str, other: str = "") -> pd.DataFrame:
    """The runs of one row in pairs with those of another row ("": of every other one): a
    line for each model, task and seed that both have, measured on the same.

    The columns are the scores x (of `row`) and y (of the other row), negative where lower
    is better; x minus y, the `difference`, which is positive where `row` is better; and
    further columns of the first run and, with the suffix _other, of the second. runs:
    with the columns of `with_reported_scores` and `mark_left_out`."""
    scored = runs[(runs.left_out == "") & runs.number.notna()]
    lower_is_better = scored.lower_is_better.astype(bool)
    signed_scores = scored.number.where(~lower_is_better, -scored.number)
    scored = scored.assign(signed=signed_scores)
    shared_columns = ["model", "task", "seed", "measured", "name"]
    side_columns = ["row", "label", "way", "lower_is_better", "digits", "id", "signed"]
    scored = scored[[*shared_columns, *side_columns]]
    left = scored[scored.row == row]
    right = scored[scored.row == other] if other else scored[scored.row != row]
    joined = left.merge(right, on=shared_columns, suffixes=("", "_other"))
    joined = joined.rename(columns={"signed": "x", "signed_other": "y"})
    # Two diverged runs may both be infinite, and inf - inf would be NaN.
    difference = np.where(joined.x == joined.y, 0.0, joined.x - joined.y)
    return joined.assign(difference=difference)
