"""A finding of the paper beside our runs, as a mapping: which runs, which numbers, and whether they agree."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.inference import FIRM_PAIRS
from analysis.paper import GLUE, recipes

#: Whether a finding agrees, in a word.
WORDS = {True: "agrees", False: "does not agree", None: "undecided"}
Finding = dict[str, Any]
ABOUT = ("finding", "source", "kind", "model", "task", "model_label", "task_label")
#: The defaults of a finding.
PLAIN: Finding = {"compared": (), "names": (), "sides": (), "counts": (), "unit": "seed", "paper": {}}
PLAIN |= {"chance": math.nan, "numbers": {}, "paper_epochs": {}}


def side(runs: pd.DataFrame) -> dict[str, Any]:
    """Of the runs of one row (`frame.reported`): their ids by seed, the median and the mean of the number
    that their table reports, their epochs, and in how many of `several` (runs of more than one epoch) the
    best one is the last."""
    runs = runs.sort_values(["seed", "id"])
    several = runs[runs.evaluations > 1]
    made = {"label": runs.label.iloc[0], "parameters": int(runs.parameters.iloc[0]), "ids": tuple(runs.id)}
    made |= {
        "median": float(runs.number.median()),
        "mean": float(runs.number.mean()),
        "several": len(several),
    }
    made["best_is_last"] = int((several.best_epoch == several.last_epoch).sum())
    return made | {"epochs": tuple(sorted(set(runs.epochs)))}


def finding(
    about: Sequence[str], holds: Iterable[bool], agrees: bool | None, pairs: int, **more: Any
) -> Finding:
    """A finding. about: ABOUT; its kind says what decides it: `compared` (near, shared, above, ranks) or
    `numbers` (query, layers, similarity, fit). holds: in each run, or in each pair. agrees: by the epoch
    that the table reports. more: of PLAIN: sides, the runs behind it; counts, of seeds or of what `unit`
    says; chance, the metric of chance where no row is above it; paper, its numbers of both rows by model.

    It gets: firm, whether it rests on enough pairs or runs; ids; epochs; and what `decided` adds."""
    made = PLAIN | more | dict(zip(ABOUT, about, strict=True))
    made["epochs"] = tuple(sorted({epochs for of in made["sides"] for epochs in of.get("epochs", ())}))
    made["ids"] = tuple(dict.fromkeys(run for of in made["sides"] for run in of["ids"]))
    made |= {"holds": tuple(holds), "agrees": agrees, "pairs": pairs, "firm": pairs >= FIRM_PAIRS}
    return decided(made)


def decided(made: Finding, crossfit: Finding | None = None) -> Finding:
    """With the same finding by cross-fitted epochs, where there is one, and the verdict: whether our runs
    agree however the epoch is chosen, None (undecided) also where the two say different things."""
    agrees = made["agrees"]
    verdict = agrees if crossfit is None or crossfit["agrees"] is agrees else None
    words = {"verdict": verdict, "word": WORDS[verdict], "reported": WORDS[agrees]}
    words["crossfit_word"] = WORDS[crossfit["agrees"]] if crossfit else ""
    return made | words | {"crossfit": crossfit}


def paper_epochs(family: str, task: str) -> dict[str, int]:
    """How long the paper trains VeRA on a task, by the size of its model where that matters."""
    if task not in GLUE:
        return {"": recipes()[family]["common"]["epochs"]} if family in ("e2e", "images") else {}
    models = {"BASE": "roberta-base", "LARGE": "roberta-large"}
    epochs = recipes()["glue"]["vera"]
    return {size: epochs[model]["epochs"][tuple(GLUE).index(task)] for size, model in models.items()}
