"""Records as two pandas frames: `runs` has a row for each run, and `cells` one for each
cell (model, row, task, and the way in which it was measured) over its seeds.

Every value is a number or a name; tables make text of them. A metric's columns (value,
best, last, crossfit, half, optimism, median, mean, spread) are in the unit that tables
print: points for fractions. The names of other columns say their unit, such as seconds
and bytes. NaN means that a run has no such number."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.facts import FACTS, HASH_DIGITS, of_method
from analysis.rows import RowMaker, RunRow
from runs.record.files import read_yaml
from runs.record.ledger import CONF, Ledger, read_ledger
from runs.record.override import split_seeds
from runs.record.schema import TEXT_SCORES

#: The place of a cell in a table, and what identifies it: a row may have been measured
#: in several ways on a task, such as on 1,000 training rows and on 5,000.
KEY = ["model", "row", "task"]
CELL_KEY = [*KEY, "way"]
#: Seeds of a complete cell: as many as the paper's medians are over, unless a task's
#: protocol has others.
SEEDS = 5
PROTOCOLS = {
    "alpaca": 1,
    "commonsense": 1,
    "e2e": 3,
    "gsm8k": 1,
    "reviews": 3,
    "sums": 1,
}
#: Tasks of studies that have more seeds than the protocol: there the preset says it.
OF_STUDIES = ("alpaca", "commonsense", "gsm8k", "reviews", "sums")

# --- runs


def runs(ledger: Ledger | str | None = None) -> pd.DataFrame:
    """Every run of a ledger, with a column for each of FACTS and these: origin ("ours",
    or the study that has published it), settings (what defines its result), left_out,
    why it is in no cell ("": it is in one), and is_nearest (see `mark_left_out`).

    ledger: records, or the folder of them; by default those of outputs/. The published
    ones come with a folder."""
    if not isinstance(ledger, Ledger):
        ledger = read_ledger(ledger or "outputs", make_row=RowMaker())
    make_row = RowMaker()
    rows = [entry if isinstance(entry, RunRow) else make_row(entry) for entry in ledger]
    # For so few rows Python's strings are faster than Arrow's.
    with pd.option_context("mode.string_storage", "python"):
        frame = pd.DataFrame(rows, columns=RunRow._fields)
        origins = [ledger.origin.get(row.id, "ours") for row in rows]
        frame["origin"] = pd.Series(origins, frame.index, dtype=frame.id.dtype)
        return mark_left_out(name_base_models(frame))


def name_base_models(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a model name for each base model. Where two base models share a
    name, that of most runs keeps it, unless two folders have it; the others get a hash
    of their weights."""
    contents = runs.groupby("model").base_model.nunique()
    for model in contents.index[contents > 1]:
        results = runs[(runs.model == model) & runs.base_model.notna()]
        counts = results.base_model.value_counts(sort=False).sort_values(kind="stable")
        is_generic = (results.conf_model != results.model).any()
        renamed = counts.index if is_generic else counts.index[:-1]
        for content in renamed:
            selected = (runs.model == model) & (runs.base_model == content)
            suffix = f" {content.rpartition(':')[2][:HASH_DIGITS]}"
            for column in ("model", "model_label"):
                runs.loc[selected, column] += suffix
    return runs


def mark_left_out(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with left_out, why a run is in no cell:

    - failed, stopped, trial: it is no result.
    - protocol: another variant of its row follows a newer protocol.
    - settings: another variant is nearer to its recipe: of the newest protocol, with
      the fewest deviations, by a method's recipe and not by a study's, and then with
      the most runs.
    - seed: another run of the same settings has that seed.

    Variants are of the same row, model and task, measured in the same way. Runs with
    different settings are never in one cell. is_nearest: whether a run's cell is the
    nearest of all ways in which its row was measured; that one stands beside the
    paper's."""
    columns = [*CELL_KEY, "cell", "protocol", "deviations", "recipe", "seed", "id"]
    results = runs.loc[runs.kind == "result", columns]
    if results.empty:  # pandas joins no empty strings of Arrow's
        return runs.assign(left_out=runs.kind.astype(object), is_nearest=False)
    results["closeness"] = -results.deviations.map(len)
    results["of_method"] = results.recipe.map(of_method)
    variants = results.groupby([*CELL_KEY, "cell"], sort=False)
    results["runs"] = variants.seed.transform("size")
    order = ["protocol", "closeness", "of_method", "runs", "id"]
    by_closeness = results.sort_values(order)
    nearest_of_row = by_closeness.drop_duplicates(KEY, keep="last").set_index(KEY)
    nearest = by_closeness.drop_duplicates(CELL_KEY, keep="last")
    nearest = nearest.set_index(CELL_KEY)[["cell", "protocol"]]
    nearest.columns = ["nearest_cell", "newest_protocol"]
    results = results.join(nearest, on=CELL_KEY)
    results = results.join(nearest_of_row.way.rename("nearest_way"), on=KEY)
    results = results.sort_values(
        ["seed", "closeness", "id"], ascending=[True, False, True]
    )
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


# --- variants of a row


def every_variant(runs: pd.DataFrame, paper: bool) -> pd.DataFrame:
    """The runs with every variant of a row as a row of its own, whose label says what
    sets it apart: "VeRA r=256, lr 0.001". Variants are results of the same row, model
    and task, measured in the same way, with other settings or another start. paper: the
    nearest variant keeps the row's name, so that it stands beside the paper's row."""
    runs = mark_left_out(runs)
    labels, rows = runs.label.copy(), runs.row.copy()
    results = runs.loc[
        runs.kind == "result", [*CELL_KEY, "cell", "label", "settings", "left_out"]
    ]
    variants = results.groupby(CELL_KEY).cell.transform("nunique")
    for _, group in results[variants > 1].groupby(CELL_KEY, sort=False):
        settings = group.drop_duplicates("cell").set_index("cell").settings
        for cell, text in distinctions(settings.to_dict()).items():
            variant = group[group.cell == cell]
            labels[variant.index] = _variant_label(variant.label.iloc[0], text)
            is_nearest = variant.left_out.isin(["", "seed"]).any()
            if not (paper and is_nearest):
                rows[variant.index] = variant.row + f" {text}"
    return mark_left_out(runs.assign(label=labels, row=rows))


def _variant_label(label: str, text: str) -> str:
    """A row's label with those of its settings that it does not say already."""
    parts = label.replace(",", " ").split()
    missing = [
        setting
        for setting in text.split(", ")
        if setting.replace("rank ", "r=") not in parts
    ]
    return ", ".join([label, *missing])


def distinctions(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """For several mappings, by their names: the keys and values in which they are not
    all equal, as text."""
    keys = sorted({key for mapping in facts.values() for key in mapping})
    unequal = [
        key
        for key in keys
        if len({str(mapping.get(key)) for mapping in facts.values()}) > 1
    ]
    return {
        name: ", ".join(f"{key} {_value_text(mapping.get(key))}" for key in unequal)
        for name, mapping in facts.items()
    }


def _value_text(value: object) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- what may be compared


def measurement_texts(runs: pd.DataFrame) -> pd.Series:
    """How each run was measured, where runs of its model and task were not all measured
    on the same: "1,000 training rows, last epoch"; "" where they were."""
    texts = pd.Series("", runs.index, dtype=object)
    for _, group in runs.groupby(["model", "task"], sort=False):
        keys = group.measurement.map(str)
        measurements = group.measurement[~keys.duplicated()]
        if len(measurements) > 1:
            phrases = pd.DataFrame([*measurements], index=keys[measurements.index])
            texts[group.index] = keys.map(_unequal_phrases(phrases))
    return texts


def _unequal_phrases(phrases: pd.DataFrame) -> pd.Series:
    """The phrases in which measurements are not all equal. The hash of the data stands
    only where nothing else distinguishes two."""
    phrases = phrases.fillna("")
    unequal = phrases.loc[:, phrases.nunique() > 1]
    described = unequal.drop(columns="data", errors="ignore")
    if described.duplicated().any() or described.empty:
        described = unequal
    return described.apply(lambda texts: ", ".join(filter(None, texts)), axis=1)


def place_in_columns(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with `place`, the column of a table that each stands in: its own
    `column` or, where rows were measured in different ways, one for each of them. The
    way of most rows keeps the column's name."""
    ways = cells.measured_apart
    if cells.empty:
        return cells.assign(place=cells.column)
    usual = ways.groupby([cells.model, cells.task]).transform(lambda way: way.mode()[0])
    places = cells.column.where(ways == usual, cells.column + ", " + ways)
    return cells.assign(place=places)


def tasks_by_way(frame: pd.DataFrame, column: str = "task") -> pd.Series:
    """The task of each row of a frame with how it was measured, where rows of the task
    were measured in several ways: "sst2, 1,000 training rows". column: "task", or
    "task_label" for its label."""
    suffix = ", " + frame.measured_apart
    return frame[column] + suffix.where(frame.measured_apart != "", "")


#: What two costs must share to be compared, besides the task.
COST_CONDITIONS = ["train_rows", "dev_rows", "precision", "dtype", "device"]
#: Columns of `cells` that depend on them.
COSTS = [name for name, fact in FACTS.items() if fact.is_cost]


def rows_sharing(cells: pd.DataFrame, columns: list[str]) -> set[str]:
    """The rows of one table whose numbers over several tasks may stand in one column:
    those with the same tasks and values of these columns as most other rows have. If no
    two of several rows share them, none. A row with an unknown value shares nothing."""
    unknown = cells.row[cells[columns].isna().any(axis=1)]
    comparable = cells[~cells.row.isin(unknown)]
    values_of_row = defaultdict[str, set[Any]](set)
    for row, *values in zip(
        *(comparable[name] for name in ("row", "task", *columns)), strict=True
    ):
        values_of_row[str(row)].add(tuple(values))
    shared = {row: frozenset(values) for row, values in values_of_row.items()}
    if not shared:
        return set()
    usual, count = Counter(shared.values()).most_common(1)[0]
    if count == 1 and cells.row.nunique() > 1:
        return set()
    return {row for row, values in shared.items() if values == usual}


def comparable_costs(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of one table, with costs only for the rows that share tasks, data
    sizes, precision, dtype and device with most others: NaN elsewhere."""
    comparable = cells.row.isin(rows_sharing(cells, ["conditions"]))
    return cells.assign(**cells[COSTS].where(comparable))


# --- cells


#: Columns of `runs` that a cell has once, and those of which it has the median.
FIRSTS = [name for name, fact in FACTS.items() if fact.per_cell == "first"]
MEDIANS = [name for name, fact in FACTS.items() if fact.per_cell == "median"]
SELECTIONS = ["best", "last", "crossfit", "half"]
#: Columns of `reported` that its cells keep.
OF_REPORTED = ["name", "lower_is_better", "digits"]
#: Makes several numbers of each run of cells: a frame by the runs' index.
Numbers = Callable[[pd.DataFrame], pd.DataFrame]


def cells(
    runs: pd.DataFrame, value: str | Numbers = "value", seeds: int | None = None
) -> pd.DataFrame:
    """The cells of some runs, a row each, sorted by CELL_KEY: the statistics of a column of
    `runs` over the seeds. This is the long frame that every table is made from.

    value: the column (value, best, last, crossfit, a score); or makes several numbers
    of each run, with `number`, `column` and `variant`: then each of these is a cell.
    seeds: how many a complete cell has; by default those of the task's protocol, or of
    the preset that ran it. Diverged runs and those that predict one class count; a run
    without a number makes the statistics NaN.

    Columns:

    - CELL_KEY, and `column` and `variant` where there are several numbers; FIRSTS,
      MEDIANS, is_nearest, and those of `reported`.
    - runs; n, how many have the number; wanted, complete.
    - values, seeds, ids: tuples by seed. median, mean, spread (sample standard
      deviation). best, last, crossfit, half, optimism: medians.
    - measured_apart: how it was measured, where rows of the task were not all measured
      on the same (`measurement_texts`). conditions: what its costs depend on; None
      where seeds differ in it.
    - diverged, a count; one_class, the seeds that predict one class; class_share, its
      share of the rows in words; deviations; presets; origins.
    - left_out, how many results of the row that were measured in the same way have
      other settings; older, their older protocols; again, the ids of results that
      repeat a seed."""
    runs = mark_left_out(runs)
    results = runs[runs.kind == "result"]
    members = results[results.left_out == ""]
    members = members.sort_values([*CELL_KEY, "seed"], kind="stable")
    members["measured_apart"] = measurement_texts(members)
    key = CELL_KEY
    if callable(value):
        key = [*CELL_KEY, "variant", "column"]
        members, value = members.join(value(members)), "number"
        order = members.groupby(key, sort=False).ngroup()
        members = members.iloc[np.argsort(order.to_numpy(), kind="stable")]
    members["score"] = members[value]
    numbers = list(dict.fromkeys(["score", *SELECTIONS, "optimism", *MEDIANS]))
    members[numbers] = members[numbers].apply(pd.to_numeric).astype(float)
    frame = _statistics(members, key).reset_index()
    frame = frame.join(_left_out(results), on=CELL_KEY)
    for name in ("one_class", "older", "again"):
        frame[name] = [ids if isinstance(ids, tuple) else () for ids in frame[name]]
    frame["class_share"] = frame.class_share.astype(object).fillna("")
    frame["left_out"] = frame.left_out.fillna(0).astype(int)
    wanted_seeds = [*map(_wanted_seeds, frame.task, frame.presets)]
    frame["wanted"] = seeds or wanted_seeds
    frame["complete"] = frame.n >= frame.wanted
    return frame


def _statistics(members: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """The columns of `cells` that come from the runs of each cell alone. members:
    those runs; the rows of a cell stand together."""
    members["diverged"] = members.diverged.astype(bool)
    conditions = members[COST_CONDITIONS].itertuples(index=False)
    members["conditions"] = [", ".join(map(str, values)) for values in conditions]
    groups = members.groupby(key, sort=False)
    count, scores = groups.score.count(), groups.score
    has_all = count == groups.size()
    have_selected = groups[SELECTIONS].count().eq(groups.size(), axis=0)
    costs_count = ~members.diverged | groups.diverged.transform("all")
    finished = members.assign(**members[MEDIANS].where(costs_count))
    one_class = members[
        members.one_class.map(lambda share: isinstance(share, str)).astype(bool)
    ]
    single = one_class.groupby(key)
    columns = (*FIRSTS, "is_nearest", "measured_apart", *OF_REPORTED)
    firsts = [name for name in columns if name in members]
    statistics = {
        "runs": groups.size(),
        "n": count,
        "values": _tuples(groups, "score"),
        "seeds": _tuples(groups, "seed"),
        "ids": _tuples(groups, "id"),
        "median": scores.median().where(has_all),
        "mean": scores.mean().where(has_all),
        "spread": scores.std().where(has_all),
        **groups[SELECTIONS].median().where(have_selected),
        "optimism": groups.optimism.median(),
        **finished.groupby(key, sort=False)[MEDIANS].median(),
        "conditions": [*map(_common, _tuples(groups, "conditions"))],
        "diverged": groups.diverged.sum(),
        "one_class": single.seed.agg(tuple),
        "class_share": single.one_class.first(),
        "presets": [*map(_distinct, _tuples(groups, "preset"))],
        "origins": [*map(_distinct, _tuples(groups, "origin"))],
        "deviations": [
            _distinct(itertools.chain(*deviations))
            for deviations in _tuples(groups, "deviations")
        ],
    }
    return groups.nth(0).set_index(key)[firsts].assign(**statistics)


def _left_out(results: pd.DataFrame) -> pd.DataFrame:
    """Of the results that are in no cell: left_out, older and again of `cells`."""
    different = results[results.left_out.isin(["settings", "protocol"])]
    older = results[results.left_out == "protocol"].groupby(CELL_KEY).protocol
    repeated = results[results.left_out == "seed"].groupby(CELL_KEY).id
    columns = {
        "left_out": different.groupby(CELL_KEY).size(),
        "older": older.agg(lambda protocols: (*sorted({*protocols}),)),
        "again": repeated.agg(tuple),
    }
    return pd.DataFrame(columns)


def _tuples(groups: Any, column: str) -> list[tuple[Any, ...]]:
    """A column by group; the rows of a group stand together."""
    ends = [0, *groups.size().cumsum()]
    values = groups.obj[column].tolist()
    return [tuple(values[first:last]) for first, last in itertools.pairwise(ends)]


def _distinct(values: Iterable[object]) -> tuple[object, ...]:
    return tuple(dict.fromkeys(values))


def _common(texts: Iterable[str]) -> str | None:
    """The text that all have; None where they differ."""
    distinct = set(texts)
    return distinct.pop() if len(distinct) == 1 else None


def _wanted_seeds(task: str, presets: Iterable[str | None]) -> int:
    """How many seeds a cell should have: those of its protocol or, of a study, of the
    preset that ran it."""
    of_presets = max(map(_seeds_of_preset, presets), default=0)
    if task in OF_STUDIES and of_presets:
        return of_presets
    return PROTOCOLS.get(task, SEEDS)


@cache
def _seeds_of_preset(preset: str | None) -> int:
    """How many seeds a preset has; 0 where it is none, or says nothing of them."""
    path = CONF / "experiment" / f"{preset}.yaml"
    node: Any = read_yaml(path) if path.is_file() else {}
    for key in ("hydra", "sweeper", "params"):
        node = node.get(key, {})
    return len(split_seeds(str(node.get("seed", ""))))


# --- the score that tables show


def reported(runs: pd.DataFrame, select: str = "paper") -> pd.DataFrame:
    """The runs with the score that their task's table reports: `number`, its `name`
    ("accuracy, best epoch"), `lower_is_better` and its `digits`. It is the score of the
    last epoch's texts where a cell's texts were scored (TEXT_SCORES), and otherwise the
    metric of the epoch that the table reports, or of cross-fitted ones (select)."""
    # Frames of failed runs alone have columns of floats.
    metrics, epochs = runs.metric.astype(object), runs.reported.astype(object)
    frame = pd.DataFrame({"number": runs["value" if select == "paper" else select]})
    frame["name"] = metrics + ", " + epochs + " epoch"
    frame["digits"] = runs.decimals
    frame["lower_is_better"] = runs.higher_is_better == False  # noqa: E712, objects
    if select == "paper":
        scores = runs.text_score.astype(object).groupby(runs.cell).transform("first")
        for key in set(scores.dropna()):
            score = TEXT_SCORES[key]
            frame.loc[scores == key, "number"] = runs[key]
            frame.loc[scores == key, OF_REPORTED] = (
                f"{score.name}, last epoch",
                not score.higher_is_better,
                score.decimals,
            )
    return runs.assign(**frame)


def reported_cells(
    runs: pd.DataFrame, select: str = "paper", seeds: int | None = None
) -> pd.DataFrame:
    """The cells of the score that each task's table reports (`reported`)."""
    return cells(reported(runs, select), "number", seeds)


def pairs(runs: pd.DataFrame, row: str, other: str = "") -> pd.DataFrame:
    """The runs of a row beside those of another ("": of every other), a line for each
    model, task and seed that both have, measured on the same: x of `row` and y of the
    other, such that more is better, with the ids of both. runs: of `reported`, in
    cells."""
    scored = runs[(runs.left_out == "") & runs.number.notna()]
    signed = scored.number.where(~scored.lower_is_better.astype(bool), -scored.number)
    scored = scored.assign(signed=signed)
    shared = ["model", "task", "seed", "measured", "name"]
    own_columns = ["row", "label", "way", "lower_is_better", "digits", "id", "signed"]
    scored = scored[[*shared, *own_columns]]
    left = scored[scored.row == row]
    right = scored[scored.row == other] if other else scored[scored.row != row]
    joined = left.merge(right, on=shared, suffixes=("", "_other"))
    joined = joined.rename(columns={"signed": "x", "signed_other": "y"})
    # Two diverged runs may both be infinite.
    difference = np.where(joined.x == joined.y, 0.0, joined.x - joined.y)
    return joined.assign(difference=difference)
