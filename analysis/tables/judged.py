"""Tables 4 and 13: instruction tuning, judged by MT-Bench or Vicuna-bench; a line for each judge of a row."""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from analysis.frame import in_cells
from analysis.paper import BENCHES, LLAMAS
from analysis.render import NONE, Cell, Entry, Number, number
from analysis.tables.build import Own, Spec, View

#: How FastChat makes answers: with transformers' default top_k, and none is cut short for want of positions.
FASTCHAT = {"answer_tokens": 1024, "top_p": 1.0, "top_k": 50, "without_room": 0}
#: Rows of Alpaca-cleaned that table 13 trains on; table 4 takes all.
TABLE_13_ROWS = 10000


def is_gpt_4(judge: Any) -> bool:
    """The paper's judge, or a snapshot of it; gpt-4o and its like are other models."""
    return bool(re.fullmatch(r"gpt-4(-32k)?(-\d{4})?", str(judge)))


def judgements(bench: str, runs: pd.DataFrame, judge: str = "") -> Iterator[tuple[Any, dict[str, Any]]]:
    """The runs with each judgement of a bench, by one judge or by all."""
    for run in runs.itertuples():
        for of in run.judged if isinstance(run.judged, list) else []:
            if of["bench"] == bench and judge in ("", of["judge"]):
                yield run, of


def belongs(name: str, bench: str, runs: pd.DataFrame) -> "pd.Series[bool]":
    """Table 13 has 10,000 rows of Alpaca-cleaned, table 4 all; other models are in table 13 with their rows,
    once a run is judged on its bench."""
    instruct = runs.family == "instruct"
    of_13 = instruct & runs.model.isin(LLAMAS) & (runs.asked_train_rows == TABLE_13_ROWS)
    if name == "table4":
        return instruct & ~of_13
    judged = instruct & runs.index.isin([run.Index for run, _ in judgements(bench, runs)])
    return of_13 | judged | (instruct & runs.model.isin({*runs[judged].model} - {*LLAMAS}))


def judged_cells(bench: str, spec: Spec, view: View) -> pd.DataFrame:
    """The cells, once for each judge with its scores and the runs that it has judged; once, without scores,
    where none has."""
    made, lines = view.cells(spec.seeds), list[dict[str, Any]]()
    runs = view.runs.set_index("id", drop=False)
    for cell in made.to_dict("records"):
        label = cell["label"] if cell["task"] == "alpaca" else f"{cell['label']} on {cell['task_label']}"
        cell |= {"label": label, "column": "score", "wanted": max(cell["wanted"], cell["runs"])}
        by_judge = defaultdict[str, dict[str, Any]](dict)
        for run, of in judgements(bench, runs.loc[[*cell["ids"]]]):
            by_judge[of["judge"]][run.id] = of["mean"]
        for judge, scores in (by_judge or {NONE: {}}).items():
            values = [math.nan if score is None else float(score) for score in scores.values()]
            had = [value for value in values if value == value]
            about: dict[str, Any] = {"variant": judge, "judged": (*scores,), "values": (*values,)}
            about |= {"n": len(had) if scores else cell["n"], "complete": len(values) >= cell["wanted"]}
            about |= {"spread": statistics.stdev(had) if len(had) > 1 else math.nan}
            lines.append(cell | about)
    return pd.DataFrame(lines) if lines else made


def score(cell: Cell, middle: str, decimals: int, verdict: str) -> Entry:
    """A judge's median score, of the runs that it has judged."""
    of = number(cell, middle, decimals, verdict, known=True)
    return replace(of, n=len(cell.judged), ids=cell.judged) if isinstance(of, Number) else of


def interval(bench: str, own: Own, runs: pd.DataFrame) -> Entry:
    """The judge's interval over questions, of one run."""
    (of, *more) = [of for _, of in judgements(bench, runs, own["score"].variant)] or [{"low": None}]
    return NONE if more or of["low"] is None else f"{of['low']:.2f} to {of['high']:.2f}"


def by_turn(bench: str, own: Own, runs: pd.DataFrame) -> Entry:
    """The median score of each turn."""
    of = [of["turns"] for _, of in judgements(bench, runs, own["score"].variant)]
    turns = [[one[turn] for one in of if one[turn] is not None] for turn in (of[0] if of else ())]
    return " / ".join(f"{statistics.median(turn):.2f}" if turn else NONE for turn in turns) or NONE


def valid(bench: str, own: Own, runs: pd.DataFrame) -> Entry:
    """How many judgements have a score."""
    of = [of for _, of in judgements(bench, runs, own["score"].variant)]
    return f"{sum(one['n_valid'] for one in of)} of {sum(one['n'] for one in of)}" if of else NONE


def notes(bench: str, model: str, runs: pd.DataFrame, made: pd.DataFrame) -> list[str]:
    """How answers were made where that is not FastChat's way, and prompts in other words than Alpaca's, with
    the labels of the rows."""
    runs, labels = in_cells(runs, made), defaultdict[str, dict[str, None]](dict)
    # Records from before prompts were among the deviations
    prompts = runs.deviations.map(lambda of: any(word.startswith("prompts ") for word in of)).astype(bool)
    for run in runs[~runs.cell.isin(runs[prompts].cell) & ~runs.template.astype(bool)].itertuples():
        labels["prompts in this project's own words, not Alpaca's"][run.label] = None
    for run, of in judgements(bench, runs):
        for key, usual in FASTCHAT.items():
            if (value := of["answering"][key]) != usual:
                labels[f"{key} {value} instead of FastChat's {usual}"][run.label] = None
    return [f"{word} ({', '.join(of)})" for word, of in labels.items()]


def how(bench: str, spec: Spec, view: View, made: pd.DataFrame) -> str:
    """What the scores are, who gave them, and what is not judged."""
    runs = in_cells(view.runs, made)
    judged = [*judgements(bench, runs)]
    words = "The judge's scores from 1 to 10; 95% by resampling questions."
    if not all(is_gpt_4(of["judge"]) for _, of in judged):
        words += " A judge that is no GPT-4 has a scale of its own: no difference to the paper's is shown."
    if len(runs) > len({run.id for run, _ in judged}):
        words += " not judged: python -m runs.answer ID, then python -m runs.judge ID."
    return words


def status(bench: str, view: View, first: Cell, usual: str) -> str:
    """Of a row that nobody has judged: so."""
    if first.variant != NONE:
        return usual.removesuffix(f", {first.diverged} diverged")
    return "diverged" if first.diverged else f"{view.whose}, not judged by {BENCHES[bench]}"


def judged(name: str, bench: str, models: dict[str, str]) -> Spec:
    """The spec of a table."""
    number, of = f"Table {name[5:]}", BENCHES[bench]
    return Spec(
        name,
        partial(belongs, name, bench),
        f"{number}, {{}}: {of}",
        f"{number}'s protocol on {{}}, a model that the paper does not use: {of}",
        models,
        {"score": "score"},
        cells=partial(judged_cells, bench),
        seeds=1,
        decimals={"score": 2},
        entry=score,
        more={
            "95%": partial(interval, bench),
            "by turn": partial(by_turn, bench),
            "valid": partial(valid, bench),
            "judge": lambda own, runs: "" if own["score"].variant == NONE else own["score"].variant,
        },
        status=partial(status, bench),
        first=("none", "lora", "vera", "vera_r256"),
        quoted={"judge": "GPT-4"},
        compared=is_gpt_4,
        how=partial(how, bench),
        notes=partial(notes, bench),
        tasks={"alpaca": "Alpaca"},
        others=name == "table4",
        forgets=True,
    )


JUDGED = {
    "table4": (judged("table4", "mt_bench", LLAMAS),),
    "table13": (judged("table13", "vicuna_bench", {"llama_7b": LLAMAS["llama_7b"]}),),
}
