"""Tables 4, 12 and 13: instruction tuning, by its judges and by what it costs."""

import re
import statistics
from collections import defaultdict
from typing import Any

import pandas as pd

from analysis import beside
from analysis.frame import by_row
from analysis.notes import by_label, notes
from analysis.paper import BENCHES, LLAMAS
from analysis.render import NONE, Cell, Entry, Number, Table, count, of_runs
from analysis.tables.view import View, gap, in_order, printed

#: Rows of Alpaca-cleaned that table 13 trains on; table 4 takes all.
TABLE_13_ROWS = 10000
BENCH = {"table4": "mt_bench", "table13": "vicuna_bench"}
MODELS = {"table4": tuple(LLAMAS), "table13": ("llama_7b",)}
HEADER = ["method", "source", "params", "score", "95%", "by turn", "valid", "judge", "status"]


def instructed(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of table 4 or 13. Table 13 has 10,000 rows of Alpaca-cleaned; other models with their rows,
    once a run is judged on its bench."""
    runs = runs[runs.family == "instruct"]
    of_13 = runs.model.isin(LLAMAS) & (runs.asked_train_rows == TABLE_13_ROWS)
    if name == "table4":
        return runs[~of_13]
    judged = runs.judged.map(lambda of: any(j["bench"] == BENCH[name] for j in of or [])).astype(bool)
    return runs[of_13 | judged | runs.model.isin(set(runs[judged].model) - set(LLAMAS))]


def judged_table(name: str, view: View) -> list[Table]:
    """MT-Bench or Vicuna-bench: a table for each of the paper's models, and for each other model that has
    runs."""
    runs = instructed(name, view.runs)
    view = view.of(view.runs.index.isin(runs.index))
    cells = view.cells(1)
    paper = beside.paper()[lambda of: of.table == name]
    models = dict.fromkeys([*MODELS[name], *sorted(set(cells.model))])
    return [
        _of_model(name, view, model, cells[cells.model == model], paper[paper.model == model])
        for model in models
    ]


def judged_cells(name: str, runs: pd.DataFrame, seeds: int = 1) -> pd.DataFrame:
    """The cells of the scores that a GPT-4 gave, the paper's judge or a snapshot of it, as `beside` takes
    them."""
    runs = instructed(name, runs)
    scores = [
        [j["mean"] for j in of or [] if j["bench"] == BENCH[name] and is_gpt_4(j["judge"])]
        for of in runs.judged
    ]
    view = View(runs.assign(score=[of[0] if of and of[0] is not None else float("nan") for of in scores]))
    made = view.cells(seeds, "score")
    return made.assign(column="score")


def is_gpt_4(judge: str) -> bool:
    """The paper's judge, or a snapshot of it; gpt-4o and its like are other models."""
    return bool(re.fullmatch(r"gpt-4(-32k)?(-\d{4})?", judge))


def _of_model(name: str, view: View, model: str, cells: pd.DataFrame, paper: pd.DataFrame) -> Table:
    bench, ours, lines, used = BENCH[name], by_row(cells), list[list[Entry]](), set[str]()
    for score in paper.itertuples():
        lines.append([score.method, "paper", score.size, printed(score, 2), "", "", "", "GPT-4", "quoted"])
        used.add(score.row)
        for cell in ours.get(score.row, {}).values():
            lines += _judged_rows(name, view, cell, None if score.quoted else score)
    for row in in_order(sorted(set(ours) - used), ("none", "lora", "vera", "vera_r256")):
        lines += [line for cell in ours[row].values() for line in _judged_rows(name, view, cell)]
    number = f"Table {name[5:]}"
    title = (
        f"{number}, {LLAMAS[model]}"
        if model in LLAMAS
        else f"{number}'s protocol on {model}, a model that the paper does not use"
    )
    runs = view.runs[view.runs.model == model]
    shown = runs[runs.id.isin({i for ids in cells.ids for i in ids})] if len(cells) else runs[:0]
    found = notes(
        runs,
        cells,
        by_label(_answering(shown, bench)),
        "The judge's scores from 1 to 10; 95% by resampling questions.",
    )
    judges = {j["judge"] for of in shown.judged for j in of or [] if j["bench"] == bench}
    if not all(map(is_gpt_4, judges)):
        found.append(
            "A judge that is no GPT-4 has a scale of its own: no difference to the paper's is shown."
        )
    if len(shown) > sum(any(j["bench"] == bench for j in of or []) for of in shown.judged):
        found.append("not judged: python -m runs.answer ID, then python -m runs.judge ID.")
    tasks = {"alpaca": "Alpaca"} | cells.set_index("task").task_label.to_dict()
    return Table(f"{title}: {BENCHES[bench]}{view.title}", HEADER, lines, found, model, tasks)


def _judged_rows(name: str, view: View, cell: Cell, score: Any = None) -> list[list[Entry]]:
    """A line for each judge, with the difference to the paper's score where that judge is a GPT-4, too."""
    bench, whose = BENCH[name], view.whose
    label = cell.label if cell.task == "alpaca" else f"{cell.label} on {cell.task_label}"
    head: list[Entry] = [label, whose, count(cell)]
    by_judge: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for run in view.runs[view.runs.id.isin(cell.ids)].itertuples():
        for judgement in (j for j in run.judged or [] if j["bench"] == bench):
            by_judge[judgement["judge"]].append((run.id, judgement))
    if not by_judge:
        return [
            [
                *head,
                *[NONE] * 4,
                "",
                "diverged" if cell.diverged else f"{whose}, not judged by {BENCHES[bench]}",
            ]
        ]
    lines = []
    for judge, judged in by_judge.items():
        judgements, ids = [j for _, j in judged], tuple(dict.fromkeys(run for run, _ in judged))
        scores = [j["mean"] for j in judgements if j["mean"] is not None]
        wanted = max(cell.wanted, cell.runs)
        complete = len(judgements) >= wanted
        deviation = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        middle = statistics.median(scores) if scores else float("nan")
        entry = Number(middle, deviation, len(judgements), wanted, 2, ids=ids) if scores else NONE
        interval = NONE
        if len(judgements) == 1 and judgements[0]["low"] is not None:
            interval = f"{judgements[0]['low']:.2f} to {judgements[0]['high']:.2f}"
        turns = [
            [j["turns"][turn] for j in judgements if j["turns"][turn] is not None]
            for turn in judgements[0]["turns"]
        ]
        by_turn = " / ".join(f"{statistics.median(turn):.2f}" if turn else NONE for turn in turns)
        valid = f"{sum(j['n_valid'] for j in judgements)} of {sum(j['n'] for j in judgements)}"
        status, difference = whose if complete else f"{whose}, incomplete", list[Entry]()
        if score is not None and scores and complete and is_gpt_4(judge):
            status, difference = _beside(name, view, cell, status)
        lines.append([*head, entry, interval, by_turn, valid, judge, status])
        if difference:
            lines.append(["", "difference", "", *difference, "", "", "", "", ""])
        head = ["", whose, ""]
    return lines


def _beside(name: str, view: View, cell: Cell, status: str) -> tuple[str, list[Entry]]:
    """The status of a judged row, and its difference to the paper's score."""
    cells = judged_cells(name, view.runs[view.runs.id.isin(cell.ids)])
    rows = beside.beside(name, cells)
    (row,) = rows[rows.ran].itertuples()
    if not row.same_size:
        return f"{view.whose}, another size: not compared", []
    return beside.status(rows[rows.ran]) or status, [gap(row, 2)]


def _answering(runs: pd.DataFrame, bench: str) -> dict[str, list[str]]:
    """How answers were made where that is not FastChat's way, and prompts in other words than Alpaca's,
    with the labels of the rows."""
    labels: dict[str, list[str]] = defaultdict(list)
    # Records from before prompts were among the deviations
    prompts = runs.deviations.map(lambda of: any(word.startswith("prompts ") for word in of)).astype(bool)
    told = set(runs[prompts].cell)
    for run in runs.itertuples():
        if not run.template and run.cell not in told:
            labels["prompts in this project's own words, not Alpaca's"].append(run.label)
        for how in (j["answering"] for j in run.judged or [] if j["bench"] == bench):
            if how["answer_tokens"] != 1024:
                labels[f"answers of at most {how['answer_tokens']} tokens, not 1024"].append(run.label)
            if (how["top_p"], how["top_k"]) != (1, 50):
                usual = "FastChat's are drawn from the 50 likeliest, transformers' default"
                labels[f"sampled from {_sampled(how)}; {usual}"].append(run.label)
            if how["without_room"]:
                labels[f"{how['without_room']} answers cut short or empty for want of positions"].append(
                    run.label
                )
    return labels


def _sampled(how: dict[str, Any]) -> str:
    """What tokens were drawn from, in words: the likeliest so many, and of these the share."""
    likeliest = "all tokens" if how["top_k"] is None else f"the {how['top_k']} likeliest tokens"
    return likeliest + (f" (top_p {how['top_p']:g})" if how["top_p"] != 1 else "")


def table12(view: View) -> list[Table]:
    """Time and memory of instruction tuning, LoRA and VeRA of rank 64."""
    of_rank = (view.runs.family == "instruct") & view.runs["rank"].map(lambda rank: rank == 64)
    view = view.of(of_rank)
    cells = view.cells(1)
    cells = cells[cells.row.isin(["lora", "vera_r64"])]
    models = dict.fromkeys(["llama_7b", *sorted(set(cells.model))])
    return [_cost_table(view, model, cells[cells.model == model]) for model in models]


def _cost_table(view: View, model: str, cells: pd.DataFrame) -> Table:
    is_papers, lines = model == "llama_7b", list[list[Entry]]()
    paper = beside.paper()[lambda of: of.table == "table12"]
    for row, group in paper.groupby("row", sort=False):
        if is_papers:
            minutes, memory = (
                printed(one, digits) for one, digits in zip(group.itertuples(), (1, 2), strict=True)
            )
            head = [f"{group.method.iloc[0]} r=64", "paper", ""]
            lines.append([*head, minutes, "", "", memory, "", "quoted"])
        for cell in cells[cells.row == row].itertuples():
            entries = [
                of_runs(value / unit, cell.ids, decimals=digits)
                for value, unit, digits in (
                    *((cell.train_seconds, 60, 1), (cell.train_seconds, max(cell.steps, 1), 2)),
                    *((cell.tokens_per_second, 1, 0), (cell.peak_memory_bytes, 1e9, 2)),
                )
            ]
            lines.append([cell.label, view.whose, count(cell), *entries, cell.device, view.whose])
    title = f"Table 12, {LLAMAS[model]}" if is_papers else f"Table 12's protocol on {model}"
    header = ["method", "source", "params", "minutes", "s/step", "tok/s", "GB", "device", "status"]
    runs = view.runs[view.runs.model == model]
    found = notes(
        runs, cells, how="minutes: of training alone, the median over seeds. GB: on a CPU the process's."
    )
    tasks = {"alpaca": "Alpaca"} | cells.set_index("task").task_label.to_dict()
    shows = ("train_seconds", "peak_memory_bytes")
    return Table(f"{title}: time and memory, rank 64{view.title}", header, lines, found, model, tasks, shows)
