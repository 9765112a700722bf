"""The paper's findings, tried on our records: a mapping for each finding, model and task, with its numbers
and its word. printed/findings.yaml has those that compare rows of a table; the others compare ranks (figure
2), and read measures (figures 3, 5 and 6)."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.papers import errors, measured, values
from analysis.frame import KEY, chosen, reported
from analysis.inference import FIRM_PAIRS, MARGIN, mean_of
from analysis.paper import GLUE, printed_file, recipes
from runs.record import Record

#: The findings that compare rows of some tables: see the file's head.
RULES: Any = printed_file("findings.yaml")
#: Those of the paper's tables, and "text", which is in none: a user's own, see `tries`.
PAPERS, TABLES = ("glue", "images"), ("glue", "images", "text")
#: Whether a finding agrees, in a word.
WORDS = {True: "agrees", False: "does not agree", None: "undecided"}
#: A run has collapsed, too, if it has less than so much of its row's median.
COLLAPSED = 2 / 3
#: The larger class of GLUE's dev sets: the accuracy of one answer for every row, in percent. The metric of
#: the others is a correlation, of which chance gives 0.
CHANCE = {"sst2": 50.9, "mrpc": 68.4, "qnli": 50.5, "rte": 52.7, "cola": 0.0, "stsb": 0.0}
#: LoRA's rows by how alpha follows the rank; the recipe's own rank is of both.
CONVENTIONS = {
    "a constant alpha": r"lora(_r\d+)?",
    "alpha proportional to the rank": r"lora(_r\d+_proportional)?",
}
HIGH_RANK = ("of like counts of parameters, VeRA of a high rank is above LoRA", "figure 2", "ranks")
#: Findings of figure 3: what each says, and the parts of d that it compares, the larger one first.
MAGNITUDES = {
    ("d changes more in query than in value", "figure 3", "query"): [("query", "value")],
    ("d changes more in later layers", "figure 3", "layers"): [("late", "early"), ("last", "first")],
}
SIMILAR = ("LoRA's and VeRA's changes resemble each other more than random ones", "figure 5", "similarity")
FITS = ("VeRA and LoRA fit random matrices equally well at equal counts", "figure 6", "fit")
#: A mean squared error below which a fit of N(0, 1) is exact.
FITTED = 1e-3
Finding = dict[str, Any]
#: The defaults of a finding.
PLAIN: Finding = {"compared": (), "names": (), "counts": (), "unit": "seed", "paper": {}, "chance": math.nan}
PLAIN |= {"numbers": {}, "paper_epochs": {}, "model": "", "task": "", "model_label": "", "task_label": ""}


def findings(
    runs: pd.DataFrame, measures: Iterable[Record] = (), tables: Sequence[str] = PAPERS
) -> list[Finding]:
    """Every finding of the paper that the runs and measures can be compared with. tables: those whose tasks
    count, beside table 3's.

    finding, source, kind: what it says, where, and what decides it, `compared` (near, shared, above, ranks)
    or `numbers` (query, layers, similarity, fit). sides: the runs behind it, by row; counts, of seeds or of
    what `unit` says; ids; epochs. holds: in each run, or in each pair. agrees: by the epoch that the table
    reports; verdict: however the epoch is chosen (`crossfit`: the same finding by cross-fitted epochs), None
    (undecided) also where the two say different things. firm: it rests on enough pairs or runs. chance: the
    metric of chance where no row is above it. paper: its numbers of both rows by model."""
    of_table, measures = runs.family.where(~runs.task.isin(GLUE), "glue"), [*measures]
    texts = (of_table == "e2e") & runs.get("bleu", pd.Series(math.nan, runs.index)).notna()
    kept = chosen(runs.assign(of_table=of_table)[of_table.isin(tables) | texts])
    kept = kept[kept.left_out == ""].sort_values(["model", "task", "seed"], kind="stable")
    by_halves = kept[(kept.of_table != "e2e") & (kept.reported == "best")]
    key = itemgetter("finding", "model", "task")
    crossfit = {key(one): one for one in _of_rows(collapsed(reported(by_halves, "crossfit")))}
    found = [*_of_rows(collapsed(reported(kept))), *_of_measures(runs, measures), *_of_fits(measures)]
    return [_decided(one, crossfit.get(key(one))) for one in found]


def tries(studies: Mapping[Path, pd.DataFrame], measures: Mapping[Path, Sequence[Record]]) -> list[Finding]:
    """Every try of a finding, with its `studies`: those of all runs together, and by study and number of
    epochs those on runs that none of these has, of other settings of a row, of which a cell shows one, and
    of tasks that are in no table of the paper."""
    every = {one["id"]: one for of_study in measures.values() for one in of_study}
    found = findings(pd.concat(studies.values(), ignore_index=True).drop_duplicates("id"), every.values())
    known = {(one["finding"], run) for one in found for run in one["ids"]}
    for folder, runs in studies.items():
        for _, of_epochs in runs.groupby("epochs"):
            of = findings(of_epochs, measures[folder], TABLES)
            found += [one for one in of if {(one["finding"], run) for run in one["ids"]} - known]
    names = {run: folder.name for folder, runs in [*studies.items()][::-1] for run in runs.id}
    names |= {one["id"]: folder.name for folder, of_study in measures.items() for one in of_study}
    return [
        one | {"studies": sorted({names[side["ids"][-1]] for side in one["sides"] if side["ids"]})}
        for one in found
    ]


# --- what a finding has


def _finding(about: Sequence[str], sides: Sequence[Finding], holds: Iterable[bool], **more: Any) -> Finding:
    """A finding; more: of PLAIN, agrees and pairs. `_decided` adds the words."""
    made = PLAIN | dict(zip(("finding", "source", "kind"), about, strict=True)) | more
    made |= {"sides": tuple(sides), "holds": tuple(holds), "firm": made["pairs"] >= FIRM_PAIRS}
    made["epochs"] = tuple(sorted({epochs for of in sides for epochs in of["epochs"]}))
    return made | {"ids": tuple(dict.fromkeys(run for of in sides for run in of["ids"]))}


def _decided(made: Finding, crossfit: Finding | None) -> Finding:
    agrees = made["agrees"]
    verdict = agrees if crossfit is None or crossfit["agrees"] is agrees else None
    words = {"verdict": verdict, "word": WORDS[verdict], "reported": WORDS[agrees], "crossfit": crossfit}
    return made | words | {"crossfit_word": WORDS[crossfit["agrees"]] if crossfit else ""}


def side(runs: pd.DataFrame) -> dict[str, Any]:
    """Of the runs of one row (`frame.reported`): their ids by seed, the median and the mean of the number
    that their table reports, their epochs, and in how many of `several` (runs of more than one epoch) the
    best one is the last."""
    runs = runs.sort_values(["seed", "id"])
    several = runs[runs.evaluations > 1]
    made = {"label": runs.label.iloc[0], "parameters": int(runs.parameters.iloc[0]), "ids": tuple(runs.id)}
    made |= {"median": float(runs.number.median()), "mean": float(runs.number.mean())}
    made |= {"several": len(several), "best_is_last": int((several.best_epoch == several.last_epoch).sum())}
    return made | {"epochs": tuple(sorted(set(runs.epochs)))}


def _all_agree(words: Iterable[bool | None]) -> bool | None:
    """Whether a finding of several comparisons agrees: where each does."""
    words = {*words}
    return False if False in words else None if None in words else True


def _word(sign: Any) -> bool | None:
    """Of a mean's sign, or of whether it is near."""
    return {1: True, -1: False}.get(int(sign))


def paper_epochs(family: str, task: str) -> dict[str, int]:
    """How long the paper trains VeRA on a task, by the size of its model where that matters."""
    if task not in GLUE:
        return {"": recipes()[family]["common"]["epochs"]} if family in ("e2e", "images") else {}
    models = {"BASE": "roberta-base", "LARGE": "roberta-large"}
    epochs = recipes()["glue"]["vera"]
    return {size: epochs[model]["epochs"][tuple(GLUE).index(task)] for size, model in models.items()}


# --- rows side by side


def collapsed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with `collapsed`: diverged, one class for every row, or far below its row's median."""
    ratio = runs.number / runs.groupby(KEY).number.transform("median")
    far = (1 / ratio).where(runs.less, ratio) < COLLAPSED
    return runs.assign(collapsed=far | runs.diverged.astype(bool) | runs.one_class.notna())


def _of_rows(runs: pd.DataFrame) -> list[Finding]:
    """The findings that compare rows, in the order of RULES. runs: of cells, with their numbers."""
    found: list[tuple[int, Finding]] = []
    for _, of in runs.groupby(["model", "task"]):
        of = of.assign(block=list(zip(of.seed, of.measured, strict=True)))
        rows, table = {str(row): part for row, part in of.groupby("row")}, of.of_table.iloc[0]
        for place, rule in enumerate(RULES):
            if table in rule.get("tables", TABLES) and (sides := _over_same_seeds(rows, *rule["rows"])):
                # Against several rows it holds and agrees where it does against each
                near = rule["kind"] != "above"
                compared = [compare(sides[0], other, near) for other in sides[1:]]
                least = map(min, zip(*(one["differences"] for one in compared), strict=True))
                holds = [abs(points) <= MARGIN + 1e-9 if near else points > 0 for points in least]
                more = {"names": tuple(rule["rows"].values()), "paper": rule.get("paper", {})}
                more["agrees"] = _all_agree(one["agrees"] for one in compared)
                about = [rule[key] for key in ("finding", "source", "kind")]
                found.append((place, _of_compared(about, sides, compared, holds, **more)))
        if table != "e2e":
            found += ((len(RULES), one) for one in _ranks(rows))
    return [one for _, one in sorted(found, key=lambda of: of[0])]


def _over_same_seeds(rows: Mapping[str, pd.DataFrame], *names: str) -> list[pd.DataFrame]:
    """The runs of each of these rows, if there are all, with a number in each run. They keep the seeds that
    all have, measured on the same: medians of other seeds could contradict the pairs."""
    if not all(name in rows and rows[name].number.notna().all() for name in names):
        return []
    blocks = frozenset.intersection(*(frozenset(rows[name].block) for name in names))
    kept = [rows[name][rows[name].block.isin(blocks)] for name in names]
    # A BLEU and a perplexity cannot be compared
    return kept if len({name for of in kept for name in of["name"]}) == 1 else []


def compare(x: pd.DataFrame, y: pd.DataFrame, near: bool = False) -> dict[str, Any]:
    """X against Y in pairs of runs of one seed, such that more is better: both sides, the differences by
    seed, which of them have a collapsed run, their mean, and the answer of the rule. near: by the margin,
    else by 0."""
    sign, same = -1 if x.less.iloc[0] else 1, x.number.to_numpy() == y.number.to_numpy()
    with np.errstate(invalid="ignore"):  # of two infinite numbers
        differences = np.where(same, 0.0, sign * (x.number.to_numpy() - y.number.to_numpy()))
    mean, broken = mean_of(differences), x.collapsed.to_numpy() | y.collapsed.to_numpy()
    made = {"x": side(x), "y": side(y), "seeds": tuple(x.seed), "differences": differences.tolist()}
    agrees = _word(mean.near() if near else mean.sign())
    return made | {"collapsed": broken.tolist(), "mean": mean, "agrees": agrees}


def _of_compared(
    about: Sequence[str],
    rows: Sequence[pd.DataFrame],
    compared: Sequence[dict[str, Any] | None],
    holds: Iterable[bool],
    **more: Any,
) -> Finding:
    """A finding on rows that were compared by pairs: undecided where no row's median is two standard errors
    of the dev set above what chance gives, since then none has learned anything that could be compared."""
    first = rows[0].iloc[0]
    chance = CHANCE.get(first.task, math.nan)
    above = chance + 2 * math.sqrt((chance * (100 - chance) or 100.0**2) / first.dev_rows)
    if all(of.number.median() <= above for of in rows):  # never of a task without a chance
        more |= {"chance": chance, "agrees": None}
        holds = ()
    more |= {key: first[key] for key in ("model", "task", "model_label", "task_label")}
    more |= {"compared": tuple(compared), "counts": tuple(sorted({len(of) for of in rows}))}
    more |= {"paper_epochs": paper_epochs(first.of_table, first.task)}
    pairs = min(len(of["differences"]) for of in compared if of)
    return _finding(about, [*map(side, rows)], holds, pairs=pairs, **more)


def _ranks(rows: Mapping[str, pd.DataFrame]) -> Iterator[Finding]:
    """VeRA of the highest rank that has run, against LoRA of the rank with the nearest count of parameters,
    of several ranks and within a factor of two. Once for each convention of LoRA's alpha; the finding agrees
    only where it does by both. rows: of one model and task."""
    whole = {row: float(of.parameters.iloc[0]) for row, of in rows.items() if of.number.notna().all()}
    sizes = pd.Series(whole, pd.Index([*whole], dtype=str), dtype=float)
    vera = sizes[sizes.index.str.fullmatch(r"vera(_r\d+)?")]
    if len(vera) < 2:  # one rank alone is no comparison of ranks
        return
    shown, compared = dict[str, pd.DataFrame](), list[dict[str, Any] | None]()
    for pattern in CONVENTIONS.values():
        ratio = sizes[sizes.index.str.fullmatch(pattern)] / vera.max()
        near = str(np.log(ratio).abs().idxmin()) if len(ratio) > 1 else ""
        far = not near or not 0.5 <= ratio[near] <= 2
        both = [] if far else _over_same_seeds(rows, str(vera.idxmax()), near)
        compared.append(compare(*both) if both else None)
        shown |= {str(row.label.iloc[0]): row for row in both}
    if shown:
        words = [of["agrees"] if of else None for of in compared]
        holds = [difference > 0 for of in compared if of for difference in of["differences"]]
        more = {"agrees": words[0] if words[0] is words[1] else None, "names": tuple(CONVENTIONS)}
        yield _of_compared(HIGH_RANK, [*shown.values()], compared, holds, **more)


# --- measures


def _of_measures(runs: pd.DataFrame, measures: Sequence[Record]) -> Iterator[Finding]:
    """The findings of figure 3, run by run (the figure shows the median of the runs), and of figure 5, pair
    of runs by pair, over the query matrices. One holds of a run (or a pair) where each of its readings is
    above 0, and agrees where each of them says so over the runs."""
    for group in measured(runs, measures, "magnitude"):
        d = values(group.measures, "d").dropna()
        later = d.layer >= d.layer.drop_duplicates().median()
        parts = {"query": d.site == "query", "value": d.site == "value", "early": ~later, "late": later}
        parts |= {"first": d.layer == d.layer.min(), "last": d.layer == d.layer.max()}
        means = pd.DataFrame({name: d[part].groupby("number").d.mean() for name, part in parts.items()})
        means = means.reindex(range(len(group.measures)))  # one without a finite value is none to leave out
        if len(means) and means[["query", "value"]].notna().all(axis=None):
            for about, compared in MAGNITUDES.items():
                apart = pd.DataFrame({more: means[more] - means[less] for more, less in compared})
                yield _of_readings(about, runs, group.measures, apart, means.median().to_dict(), "run")
    for group in measured(runs, measures, "similarity"):
        cosines = values(group.measures, "lora_vera", "lora_random", "vera_random").query("site == 'query'")
        # A pair without a query matrix, or with a change that is zero, has no cosine
        means = cosines.groupby("number")[["lora_vera", "lora_random"]].mean().dropna()
        if len(means):
            numbers = means.median().to_dict() | {"band": null_band(cosines)}
            apart = (means.lora_vera - means.lora_random).to_frame()
            yield _of_readings(SIMILAR, runs, group.measures, apart, numbers, "pair")


def _of_readings(
    about: Sequence[str],
    runs: pd.DataFrame,
    measures: Sequence[Record],
    readings: pd.DataFrame,
    numbers: Mapping[str, float],
    unit: str,
) -> Finding:
    ids = list(dict.fromkeys(run["id"] for measure in measures for run in measure["of"]))
    of = reported(runs[runs.id.isin(ids)]).sort_values("id", key=lambda column: column.map(ids.index))
    sides = [side(row) for _, row in of.groupby("conf_row", sort=False)]
    more = {key: of.iloc[0][key] for key in ("model", "task", "model_label", "task_label")}
    more |= {"counts": (len(readings),), "unit": unit, "numbers": numbers, "pairs": len(readings)}
    more |= {"agrees": _all_agree(_word(mean_of(readings[name]).sign()) for name in readings)}
    more["paper_epochs"] = paper_epochs(of.family.iloc[0], more["task"])
    return _finding(about, sides, (readings > 0).all(axis=1).tolist(), **more)


def null_band(cosines: pd.DataFrame) -> float:
    """Half the width of the band that holds 95% of the means over layers where one side is a random matrix:
    1.96 standard errors, from the spread of every such cosine (`values`). NaN for fewer than two."""
    random = cosines[["lora_random", "vera_random"]]
    layers = random.groupby(cosines.number).count().max(axis=None)
    return (
        float(1.96 * math.sqrt((random.stack() ** 2).mean() / layers))
        if random.count().sum() > 1
        else math.nan
    )


def _of_fits(measures: Sequence[Record]) -> Iterator[Finding]:
    """Figure 6, count by count. The finding is of every count: one that differs refutes it."""
    found = errors(measures)
    by_count = found[found.n > 0].drop_duplicates(["kind", "parameters"], keep="last")
    both = by_count.pivot(index="parameters", columns="kind", values="mean")
    both = both.reindex(columns=["vera", "lora"]).dropna()
    if len(both):
        equal = (both.vera - both.lora).abs() <= (0.1 * both.lora).clip(lower=FITTED)
        of: Finding = {"label": "both", "median": math.nan, "mean": math.nan, "ids": found.runs.iloc[0]}
        of |= {"best_is_last": 0, "several": 0, "epochs": ()}
        lower = int(((both.vera < both.lora) & ~equal).sum())
        more = {"numbers": {"lower": lower}, "agrees": bool(equal.all()), "pairs": len(of["ids"]), "unit": ""}
        yield _finding(FITS, [of], equal.tolist(), model_label="10 x 10 matrices", **more)
