"""The paper's findings, tried on our records: a mapping for each finding, model and
task, with its numbers and its word; and each finding over its tasks, by several
analyses, with the word on which all of them agree. printed/findings.yaml has them:
those that compare rows of a table or ranks (figure 2), and those that read measures
(figures 3, 5 and 6)."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.papers import PAIRS, errors, measured, shown_fit
from analysis.frame import KEY, mark_left_out, reported
from analysis.inference import FIRM_PAIRS, Mean, mean_of, over_tasks, seeds_to_decide
from analysis.paper import GLUE, printed_file, recipes
from runs.record import Record

Finding = dict[str, Any]
#: See the file's head.
RULES: Any = printed_file("findings.yaml")
#: The tables whose tasks findings are tried on, and "text", which is in none: a user's
#: own, see `tries`.
PAPERS, TABLES = ("glue", "images"), ("glue", "images", "text")
#: Whether a finding agrees, by the sign of a mean or by whether it is near (1, 0, -1),
#: and in a word.
AGREES = {1: True, 0: None, -1: False}
WORDS = {True: "agrees", None: "undecided", False: "does not agree"}
#: A run has collapsed, too, if it has less than so much of its row's median.
COLLAPSED = 2 / 3
#: The larger class of GLUE's dev sets: the accuracy of one answer for every row, in
#: percent. The metric of the others is a correlation, of which chance gives 0.
CHANCE = {
    "sst2": 50.9,
    "mrpc": 68.4,
    "qnli": 50.5,
    "rte": 52.7,
    "cola": 0.0,
    "stsb": 0.0,
}
#: A mean squared error below which a fit of N(0, 1) is exact.
FITTED = 1e-3
#: What decides a finding over several tasks: weighted or not, without collapsed runs or
#: with them.
ANALYSES = {
    "weighted": (True, False),
    "unweighted": (False, False),
    "weighted without collapsed runs": (True, True),
    "unweighted without collapsed runs": (False, True),
}
#: What a finding has of the first of its runs.
ABOUT = ["model", "task", "model_label", "task_label", "family"]


def findings(
    runs: pd.DataFrame, measures: Iterable[Record] = (), tables: Sequence[str] = PAPERS
) -> list[Finding]:
    """Every finding of the paper that the runs and measures can be compared with.
    tables: those whose tasks count, beside table 3's.

    finding, source, kind: what it says, where, and what decides it, `compared` (near,
    shared, above, ranks) or `numbers` (query, layers, similarity, fit). sides: the runs
    behind it, by row; counts, of seeds or of what `unit` says; ids; epochs. agrees: by
    the epoch that the table reports; verdict: however the epoch is chosen (`crossfit`:
    the same finding by cross-fitted epochs), None (undecided) also where the two say
    different things. firm: it rests on enough pairs or runs. chance: the metric of
    chance where no row is above it. paper: its numbers of both rows by model."""
    of_table, measures = runs.family.where(~runs.task.isin(GLUE), "glue"), [*measures]
    texts = (of_table == "e2e") & runs.get(
        "bleu", pd.Series(math.nan, runs.index)
    ).notna()
    kept = mark_left_out(runs.assign(of_table=of_table)[of_table.isin(tables) | texts])
    kept = kept[kept.left_out == ""].sort_values(
        ["model", "task", "seed"], kind="stable"
    )
    by_halves = kept[(kept.of_table != "e2e") & (kept.reported == "best")]
    key = itemgetter("finding", "model", "task")
    crossfit = {
        key(one): one for one in _of_rows(collapsed(reported(by_halves, "crossfit")))
    }
    found = [
        *_of_rows(collapsed(reported(kept))),
        *_of_measures(runs, measures),
        *_of_fits(measures),
    ]
    for one in found:
        other = one["crossfit"] = crossfit.get(key(one))
        one["verdict"] = (
            one["agrees"] if other is None or other["agrees"] is one["agrees"] else None
        )
        one |= {
            "word": WORDS[one["verdict"]],
            "crossfit_word": WORDS[other["agrees"]] if other else "",
        }
    return found


def tries(
    studies: Mapping[Path, pd.DataFrame], measures: Mapping[Path, Sequence[Record]]
) -> list[Finding]:
    """Every try of a finding, with its `studies`: those of all runs together, and by
    study and number of epochs those on runs that none of these has, of other settings
    of a row, of which a cell shows one, and of tasks that are in no table of the
    paper."""
    every = {one["id"]: one for of_study in measures.values() for one in of_study}
    found = findings(
        pd.concat(studies.values(), ignore_index=True).drop_duplicates("id"),
        every.values(),
    )
    known = {(one["finding"], run) for one in found for run in one["ids"]}
    for folder, runs in studies.items():
        for _, of_epochs in runs.groupby("epochs"):
            of = findings(of_epochs, measures[folder], TABLES)
            found += [
                one
                for one in of
                if {(one["finding"], run) for run in one["ids"]} - known
            ]
    names = {
        run: folder.name for folder, runs in [*studies.items()][::-1] for run in runs.id
    }
    names |= {
        one["id"]: folder.name
        for folder, of_study in measures.items()
        for one in of_study
    }
    return [
        one
        | {
            "studies": sorted(
                {names[side["ids"][-1]] for side in one["sides"] if side["ids"]}
            )
        }
        for one in found
    ]


# --- what a finding has


def _finding(
    rule: Finding,
    sides: Sequence[Finding],
    agrees: bool | None,
    pairs: int,
    **more: Any,
) -> Finding:
    """A finding on rows (`side`). pairs: how many pairs or runs decide it. more: what
    is not as usual."""
    made: Finding = {
        "compared": (),
        "counts": (pairs,),
        "unit": "seed",
        "chance": math.nan,
        "numbers": {},
    }
    made |= {key: rule.get(key, {}) for key in ("finding", "source", "kind", "paper")}
    made |= {key: sides[0][key] for key in ABOUT} | {
        "names": (*rule.get("rows", {}).values(),)
    }
    made |= {
        "sides": tuple(sides),
        "agrees": agrees,
        "pairs": pairs,
        "firm": pairs >= FIRM_PAIRS,
    }
    made["paper_epochs"] = paper_epochs(made["family"], made["task"])
    made["epochs"] = tuple(sorted({epochs for of in sides for epochs in of["epochs"]}))
    return (
        made
        | {"ids": tuple(dict.fromkeys(run for of in sides for run in of["ids"]))}
        | more
    )


def side(runs: pd.DataFrame) -> dict[str, Any]:
    """Of the runs of one row (`frame.reported`): their ids by seed, the median and the
    mean of the number that their table reports, their epochs, and in how many of
    `several` (runs of more than one epoch) the best one is the last."""
    runs = runs.sort_values(["seed", "id"])
    several = runs[runs.evaluations > 1]
    made = runs[[*ABOUT, "row", "label", "parameters", "dev_rows"]].iloc[
        0
    ].to_dict() | {"ids": tuple(runs.id)}
    made |= {"median": float(runs.number.median()), "mean": float(runs.number.mean())}
    made |= {
        "several": len(several),
        "best_is_last": int((several.best_epoch == several.last_epoch).sum()),
    }
    return made | {"epochs": tuple(sorted(set(runs.epochs)))}


def _all_agree(words: Iterable[bool | None]) -> bool | None:
    """Whether a finding of several comparisons agrees: where each does."""
    return min(words, key=[False, None, True].index)


def paper_epochs(family: str, task: str) -> dict[str, int]:
    """How long the paper trains VeRA on a task, by the size of its model where that
    matters."""
    if task not in GLUE:
        return (
            {"": recipes()[family]["common"]["epochs"]}
            if family in ("e2e", "images")
            else {}
        )
    epochs, place = recipes()["glue"]["vera"], [*GLUE].index(task)
    return {
        size: epochs[f"roberta-{size.lower()}"]["epochs"][place]
        for size in ("BASE", "LARGE")
    }


# --- rows side by side


def collapsed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with `collapsed`: diverged, one class for every row, or far below its
    row's median."""
    ratio = runs.number / runs.groupby(KEY).number.transform("median")
    far = (1 / ratio).where(runs.lower_is_better, ratio) < COLLAPSED
    return runs.assign(
        collapsed=far | runs.diverged.astype(bool) | runs.one_class.notna()
    )


def _of_rows(runs: pd.DataFrame) -> Iterator[Finding]:
    """The findings that compare rows, in the order of RULES. runs: of cells, with their
    numbers."""
    runs = runs.assign(block=[*zip(runs.seed, runs.measured, strict=True)])
    cells = [
        (of.of_table.iloc[0], dict([*of.groupby("row")]))
        for _, of in runs.groupby(["model", "task"])
    ]
    for rule in (rule for rule in RULES if "rows" in rule):
        near = rule["kind"] in ("near", "shared")
        for table, rows in cells:
            of = (_like_counts if rule["kind"] == "ranks" else _beside)(
                rows, [*rule["rows"]]
            )
            if any(of) and table in rule.get("tables", TABLES):
                yield _of_pairs(
                    rule,
                    [compare(pair[0], pair[1], near) if pair else None for pair in of],
                )


def _of_pairs(rule: Finding, compared: Sequence[Finding | None]) -> Finding:
    """A finding on rows that are compared by pairs of runs: against several rows it
    agrees where it does against each, and on ranks where it does by both conventions.
    It is undecided where no row's median is two standard errors of the dev set above
    what chance gives, since then none has learned anything that could be compared."""
    sides = [
        *{
            of["row"]: of for one in compared if one for of in (one["x"], one["y"])
        }.values()
    ]
    words, chance = [one["agrees"] if one else None for one in compared], math.nan
    agrees = (
        None if rule["kind"] == "ranks" and len({*words}) > 1 else _all_agree(words)
    )
    one_class = CHANCE.get(sides[0]["task"], math.nan)
    error = math.sqrt(
        (one_class * (100 - one_class) or 100.0**2) / sides[0]["dev_rows"]
    )
    # never of a task without a chance
    if all(of["median"] <= one_class + 2 * error for of in sides):
        agrees, chance = None, one_class
    count = min(len(one["differences"]) for one in compared if one)
    counts = tuple(sorted({len(of["ids"]) for of in sides}))
    return _finding(
        rule, sides, agrees, count, compared=(*compared,), counts=counts, chance=chance
    )


Rows = Mapping[str, pd.DataFrame]


def _beside(rows: Rows, names: Sequence[str]) -> list[Sequence[pd.DataFrame]]:
    """The first of these rows with each other one, if there are all, with a number in
    each run. They keep the seeds that all have, measured on the same: medians of other
    seeds could contradict the pairs."""
    if not all(name in rows and rows[name].number.notna().all() for name in names):
        return []
    blocks = frozenset.intersection(*(frozenset(rows[name].block) for name in names))
    first, *others = [rows[name][rows[name].block.isin(blocks)] for name in names]
    # A BLEU and a perplexity cannot be compared
    alike = pd.concat([first, *others])["name"].nunique() == 1
    return [(first, other) for other in others] if alike else []


def _like_counts(rows: Rows, patterns: Sequence[str]) -> list[Sequence[pd.DataFrame]]:
    """VeRA of the highest rank that has run, with LoRA of the rank with the nearest
    count of parameters, of several ranks and within a factor of two; once for each
    convention of LoRA's alpha. rows: of one model and task."""
    whole = {
        row: float(of.parameters.iloc[0])
        for row, of in rows.items()
        if of.number.notna().all()
    }
    sizes = pd.Series(whole, pd.Index([*whole], dtype=str), dtype=float)
    vera, found = (
        sizes[sizes.index.str.fullmatch(r"vera(_r\d+)?")],
        list[Sequence[pd.DataFrame]](),
    )
    # one rank alone is no comparison of ranks
    for pattern in patterns if len(vera) > 1 else ():
        ratio = sizes[sizes.index.str.fullmatch(pattern)] / vera.max()
        near = str(np.log(ratio).abs().idxmin()) if len(ratio) > 1 else ""
        alike = near and 0.5 <= ratio[near] <= 2
        found += (_beside(rows, [str(vera.idxmax()), near]) if alike else []) or [()]
    return found


def compare(x: pd.DataFrame, y: pd.DataFrame, near: bool = False) -> dict[str, Any]:
    """X against Y in pairs of runs of one seed, such that more is better: both sides,
    the differences by seed, which of them have a collapsed run, their mean, and the
    answer of the rule. near: by the margin, else by 0."""
    sign, same = (
        -1 if x.lower_is_better.iloc[0] else 1,
        x.number.to_numpy() == y.number.to_numpy(),
    )
    with np.errstate(invalid="ignore"):  # of two infinite numbers
        differences = np.where(
            same, 0.0, sign * (x.number.to_numpy() - y.number.to_numpy())
        )
    mean, broken = mean_of(differences), x.collapsed.to_numpy() | y.collapsed.to_numpy()
    made = {
        "x": side(x),
        "y": side(y),
        "seeds": tuple(x.seed),
        "differences": differences.tolist(),
    }
    agrees = AGREES[int(mean.near() if near else mean.sign())]
    return made | {"collapsed": broken.tolist(), "mean": mean, "agrees": agrees}


# --- measures


def _of_measures(runs: pd.DataFrame, measures: Sequence[Record]) -> Iterator[Finding]:
    """The findings of figure 3, over runs (the figure shows their median), and of
    figure 5, over pairs of runs and the query matrices: in each run or pair what a rule
    calls `more` should be more."""
    found: list[Any] = [
        ("run", every, _of_parts(every), {})
        for *_, every, _ in measured(runs, measures, "magnitude", "d")
    ]
    for *_, every, _ in measured(runs, measures, "similarity", *PAIRS):
        cosines = every.query("site == 'query'")
        # A pair without a query matrix, or with a change that is zero, has no cosine
        means = cosines.groupby("number")[["lora_vera", "lora_random"]].mean().dropna()
        found.append(("pair", every, means, {"band": null_band(cosines)}))
    for unit, every, means, more in (one for one in found if len(one[2])):
        ids, numbers = (
            [*dict.fromkeys(run for of in every.runs for run in of)],
            means.median().to_dict() | more,
        )
        of = reported(runs[runs.id.isin(ids)]).sort_values(
            "id", key=lambda column: column.map(ids.index)
        )
        sides = [side(row) for _, row in of.groupby("conf_row", sort=False)]
        for rule in (rule for rule in RULES if {*rule.get("more", "-")} <= {*means}):
            apart = [mean_of(means[x] - means[y]) for x, y in rule["more"].items()]
            agrees = _all_agree(AGREES[int(mean.sign())] for mean in apart)
            yield _finding(rule, sides, agrees, len(means), unit=unit, numbers=numbers)


def _of_parts(every: pd.DataFrame) -> pd.DataFrame:
    """The means of d over parts of the layers and sites, by run; none where a run lacks
    query or value."""
    d = every.dropna()
    later = d.layer >= d.layer.drop_duplicates().median()
    parts = {
        "query": d.site == "query",
        "value": d.site == "value",
        "early": ~later,
        "late": later,
    }
    parts |= {"first": d.layer == d.layer.min(), "last": d.layer == d.layer.max()}
    means = pd.DataFrame(
        {name: d[part].groupby("number").d.mean() for name, part in parts.items()}
    )
    # one without a finite value is none to leave out
    means = means.reindex(every.number.unique())
    return means if means[["query", "value"]].notna().all(axis=None) else means[:0]


def null_band(cosines: pd.DataFrame) -> float:
    """Half the width of the band that holds 95% of the means over layers where one side
    is a random matrix: 1.96 standard errors, from the spread of every such cosine
    (`values`). NaN for fewer than two."""
    random = cosines[["lora_random", "vera_random"]]
    layers, values = (
        random.groupby(cosines.number).count().max(axis=None),
        random.stack().dropna(),
    )
    return (
        float(1.96 * math.sqrt((values**2).mean() / layers))
        if len(values) > 1
        else math.nan
    )


def _of_fits(measures: Sequence[Record]) -> Iterator[Finding]:
    """Figure 6, count by count. The finding is of every count: one that differs refutes
    it."""
    for fit in shown_fit(measures):
        found = errors(fit)
        by_count = found[found.n > 0].drop_duplicates(
            ["kind", "parameters"], keep="last"
        )
        both = by_count.pivot(index="parameters", columns="kind", values="mean")
        both = both.reindex(columns=["vera", "lora"]).dropna()
        equal = (both.vera - both.lora).abs() <= (0.1 * both.lora).clip(lower=FITTED)
        of: Finding = dict.fromkeys(ABOUT, "") | {
            "label": "both",
            "epochs": (),
            "ids": (fit["id"],),
        }
        of |= {"model_label": "10 x 10 matrices", "median": math.nan, "mean": math.nan}
        numbers = {
            "equal": int(equal.sum()),
            "lower": int(((both.vera < both.lora) & ~equal).sum()),
        }
        numbers["counts"] = len(both)
        for rule in (rule for rule in RULES if rule["kind"] == "fit" and len(both)):
            yield _finding(
                rule, [of], bool(equal.all()), 1, unit="", numbers=numbers, counts=()
            )


# --- a finding over its tasks


def summaries(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Each finding over all of its tries, a line for each of its comparisons: finding,
    name (of the comparison), kind, tries, paper, tasks (the Mean of each, by model and
    task), analyses (a Mean by name), word, why (where analyses differ), margin (the
    smallest at which all would call it near), seeds (pairs a task to decide at MARGIN).
    A finding that compares no rows has no tasks. Tries at chance are out, and those
    with a diverged perplexity."""
    made = list[dict[str, Any]]()
    for name in dict.fromkeys(one["finding"] for one in found):
        tries = [one for one in found if one["finding"] == name]
        paper = {
            (one["source"], model): of
            for one in tries
            for model, of in one["paper"].items()
        }
        about = {
            "finding": name,
            "kind": tries[0]["kind"],
            "tries": tries,
            "paper": paper,
        }
        names = tries[0]["names"] if len(tries[0]["compared"]) > 1 else ("",)
        for place, comparison in enumerate(names[-len(tries[0]["compared"]) or None :]):
            lines = [
                (f"{one['model_label']}, {one['task_label']}", number, *pair)
                for number, one in enumerate(tries)
                if math.isnan(one["chance"])
                and place < len(one["compared"])
                and (of := one["compared"][place])
                if np.isfinite(of["differences"]).all()
                for pair in zip(
                    of["seeds"], of["differences"], of["collapsed"], strict=True
                )
            ]
            pairs = pd.DataFrame(
                lines, columns=["where", "number", "seed", "difference", "collapsed"]
            )
            decided = _decided(pairs, about["kind"] in ("near", "shared"))
            made.append(about | {"name": comparison} | decided)
    return made


def _decided(pairs: pd.DataFrame, near: bool) -> dict[str, Any]:
    """What the differences of a comparison say, by task (model and task), try and seed.
    Tries of one task are averaged by seed, so that a task counts once however often it
    was tried."""
    if pairs.empty:
        return {
            "tasks": {},
            "analyses": {},
            "word": "",
            "why": "",
            "margin": math.nan,
            "seeds": 0,
        }
    by_seed = pairs.groupby(["where", "seed"], sort=False).agg(
        {"difference": "mean", "collapsed": "any"}
    )
    by_task = by_seed.unstack()
    every, collapsed = (
        by_task.difference.to_numpy(float),
        by_task.collapsed.eq(True).to_numpy(),
    )
    kept, analyses = np.where(collapsed, np.nan, every), dict[str, Mean]()
    for name, (weighted, without) in ANALYSES.items():
        if (collapsed.any() or not without) and (len(every) > 1 or weighted):
            values, flags = (
                (kept, np.zeros_like(collapsed)) if without else (every, collapsed)
            )
            analyses[name] = (
                over_tasks(values, flags, weighted)
                if len(every) > 1
                else mean_of(values[0])
            )
    words = {name: word(mean, near) for name, mean in analyses.items()}
    by_word = {
        of: [name for name in words if words[name] == of]
        for of in dict.fromkeys(words.values())
    }
    # The variance of differences within a try, without collapsed runs
    within = pairs[~pairs.collapsed].groupby(["where", "number"]).difference
    freedom = (within.count() - 1).clip(lower=0)
    variance = (
        (within.var() * freedom).sum() / freedom.sum() if freedom.sum() else math.nan
    )
    return {
        "tasks": {
            where: mean_of(of) for where, of in zip(by_task.index, every, strict=True)
        },
        "analyses": analyses,
        "word": next(iter(by_word)) if len(by_word) == 1 else "depends",
        "why": "; ".join(f"{of}: {', '.join(names)}" for of, names in by_word.items()),
        "margin": max(float(mean.margin()) for mean in analyses.values()),
        "seeds": 0 if math.isnan(variance) else seeds_to_decide(math.sqrt(variance)),
    }


def word(mean: Mean, near: bool) -> str:
    """What a mean difference says: near (within the margin), above, below or
    undecided."""
    if near and mean.near() > 0:
        return "near"
    return {1: "above", -1: "below", 0: "undecided"}[int(mean.sign())]
