"""Records as two pandas frames: `runs`, a row a run, and `cells`, a row a cell (model,
row, task) over its seeds.

Every value is a number or a name; tables make words of them. A metric's columns (value,
best, last, crossfit, half, optimism, median, mean, spread) are in the unit that tables
print, points for fractions; seconds and bytes are in their columns' names. NaN: a run
has no such number."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.facts import NAMES, NUMBERS, of_method, settings_of
from runs.record import CONF, TEXT_SCORES, Ledger, read_ledger

#: What a cell is of.
KEY = ["model", "row", "task"]
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


def runs(ledger: Ledger | str | None = None) -> pd.DataFrame:
    """Every run of a ledger, a row each, with NAMES, NUMBERS and these: origin ("ours",
    or the study that has published it), settings (what defines its result), and
    left_out, why it is in no cell ("": it is in one; see `chosen`). Without a ledger:
    the records of outputs/ and the published ones."""
    if not isinstance(ledger, Ledger):
        ledger = read_ledger(ledger or "outputs")
    lines, settings = [], dict[str, dict[str, Any]]()
    for record in ledger:
        line = {name: of(record) for name, (of, _) in NAMES.items()}
        if line["kind"] != "failed":
            line |= {name: of(record) for name, (of, _) in NUMBERS.items()}
            line["settings"] = settings.setdefault(
                line["cell"],
                settings_of(record) if line["cell"] not in settings else {},
            )
        lines.append(line | {"origin": ledger.origin.get(record["id"], "ours")})
    columns = [*NAMES, *NUMBERS, "settings", "origin"]
    # of so few rows faster than Arrow's
    with pd.option_context("mode.string_storage", "python"):
        return chosen(pd.DataFrame(lines, columns=columns))


# --- which runs are in a cell


def chosen(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with left_out, why a run is in no cell: failed, stopped, trial, protocol
    (another variant of its row follows a newer one), settings (another variant is
    nearer to its recipe: of the newest protocol, with the fewest deviations, by a
    method's recipe and not by a study's, and then with the most runs), seed (another
    run of the same settings has that seed). Runs with other settings are never in one
    cell."""
    columns = [*KEY, "cell", "protocol", "deviations", "recipe", "seed", "id"]
    of = runs.loc[runs.kind == "result", columns]
    if of.empty:  # pandas joins no empty strings of Arrow's
        return runs.assign(left_out=runs.kind.astype(object))
    of = of.assign(fewest=-of.deviations.map(len), own=of.recipe.map(of_method))
    of["runs"] = of.groupby([*KEY, "cell"], sort=False).seed.transform("size")
    nearest = of.sort_values(
        ["protocol", "fewest", "own", "runs", "id"]
    ).drop_duplicates(KEY, keep="last")
    nearest = nearest.set_index(KEY)[["cell", "protocol"]]
    of = of.join(nearest.set_axis(["shown", "newest"], axis=1), on=KEY)
    of = of.sort_values(["seed", "fewest", "id"], ascending=[True, False, True])
    again = of.duplicated([*KEY, "cell", "seed"])
    reasons = {
        "protocol": of.protocol != of.newest,
        "settings": of.cell != of.shown,
        "seed": again,
    }
    left_out = runs.kind.astype(object)
    left_out[of.index] = np.select([*reasons.values()], [*reasons], "")
    return runs.assign(left_out=left_out)


# --- variants of a row


def every_variant(runs: pd.DataFrame, paper: bool) -> pd.DataFrame:
    """The runs with every variant of a row as a row of its own, whose label says what
    sets it apart: "VeRA r=256, lr 0.001". Variants are results of the same row, model
    and task with other settings, data or start. paper: the nearest variant keeps the
    row's name, so that it stands beside the paper's row."""
    runs = chosen(runs)
    labels, rows = runs.label.copy(), runs.row.copy()
    results = runs.loc[
        runs.kind == "result", [*KEY, "cell", "label", "settings", "left_out"]
    ]
    several = results[results.groupby(KEY).cell.transform("nunique") > 1]
    for _, group in several.groupby(KEY, sort=False):
        facts = group.drop_duplicates("cell").set_index("cell").settings
        for cell, words in distinctions(facts).items():
            of = group[group.cell == cell]
            known = of.label.iloc[0].replace(",", " ").split()
            apart = [
                word
                for word in words.split(", ")
                if word.replace("rank ", "r=") not in known
            ]
            labels[of.index] = ", ".join([of.label.iloc[0], *apart])
            if not paper or not (of.left_out.isin(["", "seed"])).any():
                rows[of.index] = of.row + f" {words}"
    return chosen(runs.assign(label=labels, row=rows))


def distinctions(facts: Mapping[Any, Mapping[str, Any]] | pd.Series) -> dict[Any, str]:
    """Of several mappings, by their names: the keys and values of each in which they
    are not all alike, in words."""
    facts = dict(facts.items())
    keys = sorted({key for of in facts.values() for key in of})
    unlike = [
        key for key in keys if len({str(of.get(key)) for of in facts.values()}) > 1
    ]

    def word(value: Any) -> str:
        return (
            "null"
            if value is None
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        )

    return {
        name: ", ".join(f"{key} {word(of.get(key))}" for key in unlike)
        for name, of in facts.items()
    }


# --- cells


#: Columns of `runs` that a cell has once, and of these its medians.
SUMMED = [name for name, (_, how) in (NAMES | NUMBERS).items() if how]
MEDIANS = [name for name, (_, how) in (NAMES | NUMBERS).items() if how == "median"]
CHOSEN = ["best", "last", "crossfit", "half"]
OVER_SEEDS = [*CHOSEN, "optimism"]
OF_REPORTED = ["name", "less", "digits"]
#: What makes several numbers of each run of cells: a frame by the runs' index.
Numbers = Callable[[pd.DataFrame], pd.DataFrame]


def cells(
    runs: pd.DataFrame, value: str | Numbers = "value", seeds: int | None = None
) -> pd.DataFrame:
    """The cells of some runs, a row each, sorted by KEY: the statistics of a column of
    `runs` over the seeds.

    value: the column (value, best, last, crossfit, a score); or what makes several
    numbers of each run, with `number`, `column` and `variant`: then each of these is a
    cell. seeds: how many a complete cell has; by default those of the task's protocol,
    or of the preset that ran it. Diverged runs and those of one class count like any
    other; a run without a number makes the statistics NaN.

    Columns: KEY; those of NAMES and NUMBERS that are one or a median, and of
    `reported`; runs, n (those that have the number), wanted, complete; values, seeds
    and ids, tuples by seed; median, mean, spread (sample standard deviation); best,
    last, crossfit, half and optimism, medians; diverged, a count; one_class, the seeds
    that predict one class, and class_share, its share of the rows in words; deviations;
    presets; origins; left_out, how many results of the row have other settings; older,
    their older protocols; again, the ids of results that repeat a seed."""
    runs = chosen(runs)
    results = runs[runs.kind == "result"]
    kept, key = (
        results[results.left_out == ""].sort_values([*KEY, "seed"], kind="stable"),
        KEY,
    )
    if callable(value):
        kept, value, key = kept.join(value(kept)), "number", [*KEY, "variant", "column"]
        places = kept.groupby(key, sort=False).ngroup()
        kept = kept.iloc[np.argsort(places.to_numpy(), kind="stable")]
    kept = kept.assign(value_of=kept[value])
    names = list(dict.fromkeys(["value_of", *OVER_SEEDS, *MEDIANS]))
    kept[names] = kept[names].apply(pd.to_numeric).astype(float)
    kept["diverged"] = kept.diverged.astype(bool)
    by = kept.groupby(key, sort=False)
    done = kept.assign(
        **kept[MEDIANS].where(~kept.diverged | by.diverged.transform("all"))
    )
    alike = kept[
        kept.one_class.map(lambda of: isinstance(of, str)).astype(bool)
    ].groupby(key)
    n, values, each = by.value_of.count(), by.value_of, partial(_each, by)
    whole = n == by.size()
    once = [name for name in SUMMED if name not in MEDIANS] + [
        of for of in OF_REPORTED if of in kept
    ]
    made = by.nth(0).set_index(key)[once]
    made = made.assign(
        runs=by.size(),
        n=n,
        values=each("value_of"),
        seeds=each("seed"),
        ids=each("id"),
        median=values.median().where(whole),
        mean=values.mean().where(whole),
        spread=values.std().where(whole),
        **by[CHOSEN].median().where(by[CHOSEN].count().eq(by.size(), axis=0)),
        optimism=by.optimism.median(),
        **done.groupby(key, sort=False)[MEDIANS].median(),
        diverged=by.diverged.sum(),
        one_class=alike.seed.agg(tuple),
        class_share=alike.one_class.first(),
        presets=[*map(_distinct, each("preset"))],
        origins=[*map(_distinct, each("origin"))],
        deviations=[_distinct(itertools.chain(*of)) for of in each("deviations")],
    )
    made = made.reset_index().join(_aside(results), on=KEY)
    for name in ("one_class", "older", "again"):
        made[name] = [of if isinstance(of, tuple) else () for of in made[name]]
    made["class_share"] = [of if isinstance(of, str) else "" for of in made.class_share]
    made["left_out"] = made.left_out.fillna(0).astype(int)
    wanted = [
        _wanted(task, of) for task, of in zip(made.task, made.presets, strict=True)
    ]
    return made.assign(wanted=seeds or wanted, complete=lambda of: of.n >= of.wanted)


def _aside(results: pd.DataFrame) -> pd.DataFrame:
    """Of the results that are in no cell: left_out, older and again of `cells`."""
    other = results[results.left_out.isin(["settings", "protocol"])].groupby(KEY)
    older = (
        results[results.left_out == "protocol"]
        .groupby(KEY)
        .protocol.agg(lambda of: (*sorted({*of}),))
    )
    again = results[results.left_out == "seed"].groupby(KEY).id.agg(tuple)
    return pd.DataFrame({"left_out": other.size(), "older": older, "again": again})


def _each(by: Any, column: str) -> list[tuple[Any, ...]]:
    """A column by group; the rows of a group stand together."""
    ends, of = [0, *by.size().cumsum()], by.obj[column].tolist()
    return [tuple(of[first:last]) for first, last in itertools.pairwise(ends)]


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _wanted(task: str, presets: Iterable[Any]) -> int:
    """How many seeds a cell should have: those of its protocol or, of a study, of the
    preset that ran it."""
    of_presets = max(map(_seeds, presets), default=0) if task in OF_STUDIES else 0
    return of_presets or PROTOCOLS.get(task, SEEDS)


@cache
def _seeds(preset: str | None) -> int:
    """How many seeds a preset has; 0 where it is none, or says nothing of them."""
    path = CONF / "experiment" / f"{preset}.yaml"
    node: Any = yaml.safe_load(path.read_text()) if path.is_file() else {}
    for key in ("hydra", "sweeper", "params"):
        node = node.get(key, {})
    return len(str(node["seed"]).split(",")) if "seed" in node else 0


def in_cells(runs: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The runs that are in these cells."""
    return runs[runs.id.isin({run for ids in cells.ids for run in ids})]


# --- the number that tables show


def reported(runs: pd.DataFrame, select: str = "paper") -> pd.DataFrame:
    """The runs with `number`, what their task's table reports, its `name` ("accuracy,
    best epoch"), whether less of it is better (`less`) and its `digits`: the score of
    the last epoch's texts where a cell's were scored (TEXT_SCORES), else the metric of
    the epoch that the table reports, or cross-fitted."""
    scores = runs.text_score.astype(object).groupby(runs.cell).transform("first")
    # of failed runs alone: floats
    names, epochs = runs.metric.astype(object), runs.reported.astype(object)
    made = runs[["value" if select == "paper" else select]].set_axis(["number"], axis=1)
    made = made.assign(name=names + ", " + epochs + " epoch", digits=runs.decimals)
    made["less"] = runs.higher_is_better == False  # noqa: E712, an object column
    for key in {*scores.dropna()} if select == "paper" else ():
        of, score = scores == key, TEXT_SCORES[key]
        made.loc[of, "number"] = runs[key]
        made.loc[of, OF_REPORTED] = (
            f"{score.name}, last epoch",
            not score.higher_is_better,
            score.decimals,
        )
    return runs.assign(**made)


def reported_cells(
    runs: pd.DataFrame, select: str = "paper", seeds: int | None = None
) -> pd.DataFrame:
    """The cells of the number that each task's table reports (`reported`), with its
    name, less and digits."""
    return cells(reported(runs, select), "number", seeds)


def pairs(runs: pd.DataFrame, row: str, other: str = "") -> pd.DataFrame:
    """The runs of a row beside those of another ("": of every other), a line for each
    model, task and seed that both have, measured on the same: x of `row` and y of the
    other, such that more is better, with the ids of both. runs: of `reported`, in
    cells."""
    known = runs[(runs.left_out == "") & runs.number.notna()]
    known = known.assign(value=known.number.where(~known.less, -known.number))
    on = ["model", "task", "seed", "measured", "name"]
    known = known[[*on, "row", "label", "less", "digits", "id", "value"]]
    right = known[known.row == other] if other else known[known.row != row]
    both = known[known.row == row].merge(right, on=on, suffixes=("", "_other"))
    both = both.rename(columns={"value": "x", "value_other": "y"})
    # Two diverged runs may both be infinite
    return both.assign(difference=np.where(both.x == both.y, 0.0, both.x - both.y))
