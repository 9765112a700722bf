"""Tables 4 and 13: instruction tuning, judged by MT-Bench or Vicuna-bench; a line for each judge of a row."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from analysis.frame import in_cells
from analysis.paper import BENCHES, LLAMAS
from analysis.render import NONE, Cell, Entry, Number, number
from analysis.tables.build import Spec, View

#: How FastChat makes answers: with transformers' default top_k, and none is cut short for want of positions.
FASTCHAT = {"answer_tokens": 1024, "top_p": 1.0, "top_k": 50, "without_room": 0}
#: Rows of Alpaca-cleaned that table 13 trains on; table 4 takes all.
TABLE_13_ROWS = 10000


def is_gpt_4(judge: Any) -> bool:
    """The paper's judge, or a snapshot of it; gpt-4o and its like are other models."""
    return bool(re.fullmatch(r"gpt-4(-32k)?(-\d{4})?", str(judge)))


def judgements(bench: str, runs: pd.DataFrame) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The runs with each judgement of a bench."""
    for run in runs.itertuples():
        for of in run.judged if isinstance(run.judged, list) else []:
            if of["bench"] == bench:
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
    """The cells, once for each judge with the runs that it has judged: their scores, the interval over
    questions of one run, the medians of each turn, and how many judgements have a score. A cell that none has
    judged is there once, without scores."""
    made, lines = view.cells(spec.seeds), list[dict[str, Any]]()
    runs = view.runs.set_index("id", drop=False)
    for cell in made.to_dict("records"):
        label = cell["label"] if cell["task"] == "alpaca" else f"{cell['label']} on {cell['task_label']}"
        cell |= {"label": label, "column": "score", "wanted": max(cell["wanted"], cell["runs"])}
        by_judge = defaultdict[str, dict[str, Any]](dict)
        for run, one in judgements(bench, runs.loc[[*cell["ids"]]]):
            by_judge[one["judge"]][run.id] = one
        for judge, by_run in (by_judge or {NONE: {}}).items():
            of = [*by_run.values()]
            values = pd.Series([one["mean"] for one in of], dtype=float)
            turns = pd.DataFrame([one["turns"] for one in of], dtype=float).median()
            alone = len(of) == 1 and of[0]["low"] is not None
            about: dict[str, Any] = {"variant": judge, "judged": (*by_run,), "values": (*values,)}
            about |= {
                "n": int(values.count()) if of else cell["n"],
                "spread": values.std(),
                "median": values.median(),
            }
            about["complete"] = len(values) >= cell["wanted"]
            about["interval"] = f"{of[0]['low']:.2f} to {of[0]['high']:.2f}" if alone else NONE
            about["turns"] = " / ".join(f"{turn:.2f}" if turn == turn else NONE for turn in turns) or NONE
            valid = f"{sum(one['n_valid'] for one in of)} of {sum(one['n'] for one in of)}"
            about["valid"] = valid if of else NONE
            lines.append(cell | about)
    return pd.DataFrame(lines) if lines else made


def score(cell: Cell, middle: str, decimals: int, verdict: str) -> Entry:
    """A judge's median score, of the runs that it has judged."""
    of = number(cell, middle, decimals, verdict, known=True)
    return replace(of, n=len(cell.judged), ids=cell.judged) if isinstance(of, Number) else of


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
            "95%": lambda own, runs: own["score"].interval,
            "by turn": lambda own, runs: own["score"].turns,
            "valid": lambda own, runs: own["score"].valid,
            "judge": lambda own, runs: own["score"].variant.removeprefix(NONE),
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
