"""Tables 4, 12 and 13: instruction tuning, by its judges and by what it costs."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis import beside, compare
from analysis.beside import MARGIN_OF_JUDGES, Beside, status
from analysis.cells import Cell, Key, cells
from analysis.forgetting import with_forgetting
from analysis.paper import BENCHES, LLAMAS, Printed, printed_rows
from analysis.table import Table, TableCell, make_row, texts
from runs.record import Ledger, Record

#: Rows of Alpaca-cleaned that table 13 trains on; table 4 takes all.
TABLE_13_ROWS = 10000


def table4(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """MT-Bench: a table for each of the paper's models, and one for each other model that has records."""
    by_key = cells([r for r in instructed(ledger) if not of_table_13(r)], seeds or 1, select)
    models = compare.models_of(by_key, LLAMAS)
    return [_judged_table("Table 4", "mt_bench", by_key, model) for model in models]


def table13(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Vicuna-bench after 10,000 rows of Alpaca-cleaned; other models with their rows, once a run is
    judged."""
    judged = [r for r in instructed(ledger) if any(j["bench"] == "vicuna_bench" for j in r.get("judged", []))]
    others = {r["cell"]["model"] for r in judged} - set(LLAMAS)
    records = [r for r in instructed(ledger) if of_table_13(r) or r in judged or r["cell"]["model"] in others]
    by_key = cells(records, seeds or 1, select)
    models = compare.models_of(by_key, ["llama_7b"])
    return [_judged_table("Table 13", "vicuna_bench", by_key, model) for model in models]


def instructed(ledger: Ledger) -> list[Record]:
    """The records of instruction tuning."""
    return [r for r in ledger if r["config"]["task"].get("family") == "instruct"]


def of_table_13(record: Record) -> bool:
    """Whether it was trained on table 13's part of the rows."""
    return record["cell"]["model"] in LLAMAS and record["config"]["task"].get("train_rows") == TABLE_13_ROWS


def _judged_table(table: str, bench: str, by_key: Mapping[Key, Cell], model: str) -> Table:
    """Our rows and the paper's, a line for each judge. A row has a cell for each task: a user's own
    instructions are another."""
    printed, by_key = printed_rows(table.lower().replace(" ", ""), model), compare.of_model(by_key, model)
    tasks = sorted({task for _, _, task in by_key})
    ours, rows = compare.by_row(by_key, model, tasks), list[list[TableCell]]()
    for (score,) in printed:
        rows.append(compare.paper_row((score,), compare.printed_text(score, 2), "", "", "", "GPT-4"))
        for cell in ours.get(score.row, {}).values():
            rows += _judged_rows(cell, bench, None if score.quoted else score)
    for name in compare.other_rows(ours, printed, ("none", "lora", "vera", "vera_r256")):
        rows += [line for cell in ours[name].values() for line in _judged_rows(cell, bench)]
    title = f"{table}, {LLAMAS[model]}" if model in LLAMAS else compare.other_model(table, model)
    header = ["method", "source", "params", "score", "95%", "by turn", "valid", "judge", "status"]
    notes = [*_notes(rows), *compare.about(by_key), *_answering_notes(by_key.values(), bench)]
    judged = Table(f"{title}: {BENCHES[bench]}", header, rows, notes, model, _instructions(by_key))
    return with_forgetting(judged, by_key.values())


def _judgements(records: Iterable[Record], bench: str) -> list[tuple[Record, dict[str, Any]]]:
    """What judges said of the answers of these records to a bench, each with its record."""
    return [(r, j) for r in records for j in r.get("judged", []) if j["bench"] == bench]


def _judged_rows(cell: Cell, bench: str, printed: Printed | None = None) -> list[list[TableCell]]:
    """A line for each judge, with the difference to the paper's score where that judge is a GPT-4 too."""
    task = cell.records[0]["cell"]["task"]
    label = cell.label if task == "alpaca" else f"{cell.label} on {task}"
    head: list[str | TableCell] = [label, "ours", compare.size_of(cell)]
    by_judge: dict[str, list[tuple[Record, dict[str, Any]]]] = defaultdict(list)
    for record, judgement in _judgements(cell.records, bench):
        by_judge[judgement["judge"]].append((record, judgement))
    if not by_judge:
        state = "diverged" if cell.diverged else f"ours, not judged by {BENCHES[bench]}"
        return [make_row(*head, *["-"] * 4, "", state)]
    lines = []
    for judge, judged in by_judge.items():
        judgements, ids = [j for _, j in judged], tuple(dict.fromkeys(record["id"] for record, _ in judged))
        scores = [j["mean"] for j in judgements if j["mean"] is not None]
        wanted = max(cell.wanted, cell.seeds)
        complete = len(judgements) >= wanted
        share = "" if complete else f" ({len(judgements)}/{wanted})"
        score = f"{compare.with_spread(scores, 2)}{share}" if scores else "-"
        interval = "-"
        if len(judgements) == 1 and judgements[0]["low"] is not None:
            interval = f"{judgements[0]['low']:.2f} to {judgements[0]['high']:.2f}"
        turns = [
            [j["turns"][turn] for j in judgements if j["turns"][turn] is not None]
            for turn in judgements[0]["turns"]
        ]
        by_turn = " / ".join(f"{statistics.median(turn):.2f}" if turn else "-" for turn in turns)
        valid = f"{sum(j['n_valid'] for j in judgements)} of {sum(j['n'] for j in judgements)}"
        texts_ = (score, interval, by_turn, valid)
        numbers = [TableCell(text, ids if text != "-" else ()) for text in texts_]
        lines.append(make_row(*head, *numbers, judge, "ours" if complete else "ours, incomplete"))
        if printed is not None and scores and complete and is_gpt_4(judge):
            one = judged_beside(cell, printed, scores)
            lines[-1][-1] = TableCell(status([one]))
            if one.same_size:
                lines.append(compare.difference_row(TableCell(one.gap(), ids), "", "", "", ""))
        head = ["", "ours", ""]
    return lines


def judged_beside(cell: Cell, printed: Printed, scores: Sequence[float]) -> Beside:
    """A judge's means of a cell's seeds beside the paper's score."""
    return compare.beside_paper(cell, printed, values=scores, margin=MARGIN_OF_JUDGES, decimals=2)


def is_gpt_4(judge: str) -> bool:
    """The paper's judge, or a snapshot of it; gpt-4o and its like are other models."""
    return bool(re.fullmatch(r"gpt-4(-32k)?(-\d{4})?", judge))


def _answering_notes(ours: Iterable[Cell], bench: str) -> list[str]:
    """Notes on how answers were made where that is not FastChat's way, and on prompts in other words than
    Alpaca's."""
    labels: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in ours:
        own = [r for r in cell.records if not r["config"]["task"].get("template")]
        # Records from before prompts were among the deviations
        if own and not any(word.startswith("prompts ") for r in own for word in r["deviations"]):
            labels["prompts in this project's own words, not Alpaca's"][cell.label] = None
        for _, judgement in _judgements(cell.records, bench):
            how = judgement["answering"]
            if how["answer_tokens"] != 1024:
                labels[f"answers of at most {how['answer_tokens']} tokens, not 1024"][cell.label] = None
            if (how["top_p"], how["top_k"]) != (1, 50):
                usual = "FastChat's are drawn from the 50 likeliest, transformers' default"
                labels[f"sampled from {_sampled(how)}; {usual}"][cell.label] = None
            if how["without_room"]:
                short = f"{how['without_room']} answers cut short or empty for want of positions"
                labels[short][cell.label] = None
    return [f"deviation: {word} ({', '.join(of)})" for word, of in labels.items()]


def _sampled(how: dict[str, Any]) -> str:
    """What tokens were drawn from, in words: the likeliest so many, and of these the share."""
    likeliest = "all tokens" if how["top_k"] is None else f"the {how['top_k']} likeliest tokens"
    return likeliest + (f" (top_p {how['top_p']:g})" if how["top_p"] != 1 else "")


def _notes(rows: Sequence[Sequence[TableCell]]) -> list[str]:
    notes = [
        "The judge's scores from 1 to 10, pooled over questions, turns and passes; 95% by resampling"
        " questions."
    ]
    lines = texts(rows)
    judges = {row[7] for row in lines if row[1] == "ours"} - {""}
    if judges:
        notes.append(
            "valid: replies of the judge that hold a score. Others are counted here and enter no mean."
        )
    if not all(map(is_gpt_4, judges)):
        notes.append(
            "A judge that is no GPT-4 has a scale of its own: no difference to the paper's is shown."
        )
    if any("not judged" in row[-1] for row in lines):
        notes.append("not judged: python -m runs.answer ID, then python -m runs.judge ID.")
    if any("quoted" in row[-1] for row in lines):
        notes.append(compare.QUOTED_NOTE)
    if any(row[0] == "none" and row[1] == "paper" for row in lines):
        notes.append(
            "none: the paper's 2.61 is that of Zheng et al. 2023 (arXiv 2306.05685), who asked with another"
            " prompt and not in 4 bit: no difference is shown."
        )
    return notes + beside.notes(lines)


def _instructions(ours: Mapping[Key, Cell]) -> dict[str, str]:
    """The tasks of a table of instruction tuning: Alpaca, and a user's own."""
    records = [record for cell in ours.values() for record in cell.records]
    return {"alpaca": "Alpaca"} | {r["cell"]["task"]: r["label"]["task"] for r in records}


def table12(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Time and memory of instruction tuning, LoRA and VeRA of rank 64."""
    ranked = [r for r in instructed(ledger) if r["config"]["method"].get("rank") == 64]
    by_key = {k: c for k, c in cells(ranked, seeds or 1, select).items() if k[1] in ("lora", "vera_r64")}
    return [_cost_table(model, by_key) for model in compare.models_of(by_key, ["llama_7b"])]


def _cost_table(model: str, by_key: Mapping[Key, Cell]) -> Table:
    is_papers, by_key = model == "llama_7b", compare.of_model(by_key, model)
    rows: list[list[TableCell]] = []
    for minutes, memory in printed_rows("table12"):
        if is_papers:
            numbers = (f"{minutes.value:.1f}", "", "", f"{memory.value:.2f}", "")
            rows.append(make_row(f"{minutes.method} r=64", "paper", "", *numbers, "quoted"))
        for cell in (cell for key, cell in sorted(by_key.items()) if key[1] == minutes.row):
            seconds, steps = cell.cost("train_seconds"), max(cell.records[0]["steps"], 1)
            pace, peak = cell.cost("tokens_per_second"), cell.cost("peak_memory_bytes")
            texts_ = [
                "-" if number is None else f"{number / unit:{form}}"
                for number, unit, form in (
                    *((seconds, 60, ".1f"), (seconds, steps, ".2f")),
                    *((pace, 1, ",.0f"), (peak, 1e9, ".2f")),
                )
            ]
            cells_ = [compare.size_of(cell), *(compare.of_cells(text, cell) for text in texts_)]
            rows.append(make_row(cell.label, "ours", *cells_, cell.records[0]["device"]["name"], "ours"))
    notes = [
        "minutes: of training alone, the median over seeds. GB: the device's largest memory, on a CPU the"
        " process's."
    ]
    title = f"Table 12, {LLAMAS[model]}" if is_papers else f"Table 12's protocol on {model}"
    header = ["method", "source", "params", "minutes", "s/step", "tok/s", "GB", "device", "status"]
    shows = ("train_seconds", "peak_memory_bytes")
    notes += compare.about(by_key)
    return Table(
        f"{title}: time and memory, rank 64", header, rows, notes, model, _instructions(by_key), shows
    )
