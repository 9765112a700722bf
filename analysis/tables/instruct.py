"""Tables 4, 12 and 13: instruction tuning, by its judges and by what it costs."""

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from analysis import beside, compare
from analysis.beside import MARGIN_OF_JUDGES, Beside, status
from analysis.cells import Cell, Key, cells
from analysis.paper import BENCHES, LLAMAS, Printed, printed_rows
from analysis.table import Table, TableCell, make_row, texts
from runs.record import Ledger, Record

#: Rows of Alpaca-cleaned that table 13 trains on; table 4 takes all.
TABLE_13_ROWS = 10000


def table4(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """MT-Bench: a table for each of the paper's models, and one for each other model that has records."""
    found = cells([r for r in instructed(ledger) if not of_table_13(r)], seeds or 1, select)
    return _judged_tables(
        "Table 4", "mt_bench", found, {model: printed_rows("table4", model) for model in LLAMAS}
    )


def table13(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Vicuna-bench after 10,000 rows of Alpaca-cleaned; other models with their rows, once a run is
    judged."""
    judged = [r for r in instructed(ledger) if any(j["bench"] == "vicuna_bench" for j in r.get("judged", []))]
    others = {r["cell"]["model"] for r in judged} - set(LLAMAS)
    records = [r for r in instructed(ledger) if of_table_13(r) or r in judged or r["cell"]["model"] in others]
    found = cells(records, seeds or 1, select)
    return _judged_tables("Table 13", "vicuna_bench", found, {"llama_7b": printed_rows("table13")})


def instructed(ledger: Ledger) -> list[Record]:
    """The records of instruction tuning."""
    return [r for r in ledger if r["config"]["task"].get("family") == "instruct"]


def of_table_13(record: Record) -> bool:
    """Whether it was trained on table 13's part of the rows."""
    return record["cell"]["model"] in LLAMAS and record["config"]["task"].get("train_rows") == TABLE_13_ROWS


def _judged_tables(
    name: str, bench: str, found: dict[Key, Cell], printed: dict[str, list[tuple[Printed, ...]]]
) -> list[Table]:
    order = [*("none", "lora", "vera", "vera_r256"), *sorted(key[1] for key in found)]
    tables = []
    for model in dict.fromkeys([*printed, *sorted(key[0] for key in found)]):
        rows: list[list[TableCell]] = []
        for (score,) in printed.get(model, []):
            rows.append(compare.paper_row((score,), compare.printed_text(score, 2), "", "", "", "GPT-4"))
            for cell in _of(found, model, score.row):
                rows += _judged_rows(cell, bench, None if score.quoted else score)
        told = {score.row for (score,) in printed.get(model, [])}
        others = [cell for row in dict.fromkeys(order) if row not in told for cell in _of(found, model, row)]
        rows += [line for cell in others for line in _judged_rows(cell, bench)]
        label = LLAMAS.get(model)
        title = f"{name}, {label}" if label else compare.other_model(name, model)
        mine = compare.of_model(found, model)
        tables.append(_judged_table(f"{title}: {BENCHES[bench]}", rows, model, mine, bench))
    return tables


def _of(found: dict[Key, Cell], model: str, row: str) -> list[Cell]:
    """A row's cells, of each task (a user's own instructions are another)."""
    return [cell for key, cell in sorted(found.items()) if key[:2] == (model, row)]


def _judged_rows(cell: Cell, bench: str, printed: Printed | None = None) -> list[list[TableCell]]:
    """A line for each judge, with the difference to the paper's score where that judge is a GPT-4 too."""
    task = cell.records[0]["cell"]["task"]
    head: list[str | TableCell] = [
        cell.label if task == "alpaca" else f"{cell.label} on {task}",
        "ours",
        compare.size_of(cell),
    ]
    judges = dict.fromkeys(
        j["judge"] for r in cell.records for j in r.get("judged", []) if j["bench"] == bench
    )
    if not judges:
        state = "diverged" if cell.diverged else f"ours, not judged by {BENCHES[bench]}"
        return [make_row(*head, *["-"] * 4, "", state)]
    lines = []
    for judge in judges:
        found = [
            j for r in cell.records for j in r.get("judged", []) if (j["bench"], j["judge"]) == (bench, judge)
        ]
        scores = [j["mean"] for j in found if j["mean"] is not None]
        wanted = max(cell.wanted, cell.seeds)
        share = f" ({len(found)}/{wanted})" if len(found) < wanted else ""
        if len(scores) > 1:
            share = f" +-{statistics.stdev(scores):.2f}{share}"
        single = found[0] if len(found) == 1 else None
        interval = (
            f"{single['low']:.2f} to {single['high']:.2f}" if single and single["low"] is not None else "-"
        )
        turns = [[j["turns"][t] for j in found if j["turns"][t] is not None] for t in found[0]["turns"]]
        valid = f"{sum(j['n_valid'] for j in found)} of {sum(j['n'] for j in found)}"
        judged = [
            r
            for r in cell.records
            if any((j["bench"], j["judge"]) == (bench, judge) for j in r.get("judged", []))
        ]
        score = f"{statistics.median(scores):.2f}{share}" if scores else "-"
        by_turn = " / ".join(f"{statistics.median(turn):.2f}" if turn else "-" for turn in turns)
        word = "ours" if not share.endswith(")") else "ours, incomplete"
        of = tuple(record["id"] for record in judged)
        numbers = [TableCell(text, of if text != "-" else ()) for text in (score, interval, by_turn, valid)]
        lines.append(make_row(*head, *numbers, judge, word))
        if printed is not None and scores and is_gpt_4(judge) and word == "ours":
            one = judged_beside(cell, printed, scores)
            lines[-1][-1] = TableCell(status([one]))
            if one.same_size:
                lines.append(compare.difference_row(TableCell(one.gap(), of), "", "", "", ""))
        head = ["", "ours", ""]
    return lines


def judged_beside(cell: Cell, printed: Printed, scores: Sequence[float]) -> Beside:
    """A judge's means of a cell's seeds beside the paper's score."""
    return compare.beside_paper(cell, printed, values=scores, margin=MARGIN_OF_JUDGES, decimals=2)


def is_gpt_4(judge: str) -> bool:
    """The paper's judge, or a snapshot of it; gpt-4o and its like are other models."""
    return bool(re.fullmatch(r"gpt-4(-32k)?(-\d{4})?", judge))


def _ways(mine: dict[Key, Cell], bench: str) -> list[str]:
    """How answers were made, where that is not FastChat's way, and prompts in other words than Alpaca's."""
    words: dict[str, list[str]] = defaultdict(list)
    for cell in mine.values():
        own = [r for r in cell.records if not r["config"]["task"].get("template")]
        # From before it was noted
        if any(not any(word.startswith("prompts ") for word in r["deviations"]) for r in own):
            words["prompts in this project's own words, not Alpaca's"].append(cell.label)
        for j in (j for r in cell.records for j in r.get("judged", []) if j["bench"] == bench):
            how = j["answering"]
            said = {
                f"answers of at most {how['answer_tokens']} tokens, not 1024": how["answer_tokens"] != 1024,
                f"sampled from {_sampled(how)}; FastChat's are drawn from the 50 likeliest,"
                " transformers' default": ((how["top_p"], how["top_k"]) != (1, 50)),
                f"{how['without_room']} answers cut short or empty for want of positions": (
                    how["without_room"] > 0
                ),
            }
            for word in (word for word, holds in said.items() if holds):
                words[word] += [cell.label] if cell.label not in words[word] else []
    return [f"deviation: {word} ({', '.join(labels)})" for word, labels in words.items()]


def _sampled(how: dict[str, Any]) -> str:
    """What tokens were drawn from, in words: the likeliest so many, and of these the share."""
    likeliest = "all tokens" if how["top_k"] is None else f"the {how['top_k']} likeliest tokens"
    return likeliest + (f" (top_p {how['top_p']:g})" if how["top_p"] != 1 else "")


def _judged_table(
    title: str, rows: list[list[TableCell]], model: str, mine: dict[Key, Cell], bench: str
) -> Table:
    notes = [
        "The judge's scores from 1 to 10, pooled over questions, turns and passes; 95% by resampling"
        " questions."
    ]
    said = texts(rows)
    if any(row[1] == "ours" and row[7] for row in said):
        notes.append(
            "valid: replies of the judge that hold a score. Others are counted here and enter no mean."
        )
    if any(row[1] == "ours" and row[7] and not is_gpt_4(row[7]) for row in said):
        notes.append(
            "A judge that is no GPT-4 has a scale of its own: no difference to the paper's is shown."
        )
    if any("not judged" in row[-1] for row in said):
        notes.append("not judged: python -m runs.answer ID, then python -m runs.judge ID.")
    if any("quoted" in row[-1] for row in said):
        notes.append(compare.QUOTED_NOTE)
    if any(row[0] == "none" and row[1] == "paper" for row in said):
        notes.append(
            "none: the paper's 2.61 is that of Zheng et al. 2023 (arXiv 2306.05685), who asked with another"
            " prompt and not in 4 bit: no difference is shown."
        )
    notes += beside.notes(said)
    header = ["method", "source", "params", "score", "95%", "by turn", "valid", "judge", "status"]
    return Table(
        title,
        header,
        rows,
        [*notes, *compare.about(mine), *_ways(mine, bench)],
        model,
        _instructions(mine),
        (),
    )


def _instructions(mine: dict[Key, Cell]) -> dict[str, str]:
    """The tasks of a table of instruction tuning: Alpaca, and a user's own."""
    return {"alpaca": "Alpaca"} | {
        r["cell"]["task"]: r["label"]["task"] for cell in mine.values() for r in cell.records
    }


def table12(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Time and memory of instruction tuning, LoRA and VeRA of rank 64."""
    ranked = [r for r in instructed(ledger) if r["config"]["method"].get("rank") == 64]
    found = cells(ranked, seeds or 1, select)
    tables = []
    for model in dict.fromkeys(["llama_7b", *sorted(key[0] for key in found)]):
        rows: list[list[TableCell]] = []
        for minutes, memory in printed_rows("table12"):
            if model == "llama_7b":
                theirs = (f"{minutes.value:.1f}", "", "", f"{memory.value:.2f}", "")
                rows.append(make_row(f"{minutes.method} r=64", "paper", "", *theirs, "quoted"))
            for cell in _of(found, model, minutes.row):
                first, pace = cell.records[0], f"{cell.cost('tokens_per_second'):,.0f}"
                seconds, steps = cell.cost("train_seconds"), first["steps"]
                size = f"{cell.cost('peak_memory_bytes') / 1e9:.2f}"
                times = [f"{seconds / 60:.1f}", f"{seconds / max(steps, 1):.2f}", pace]
                numbers = [compare.of_cells(text, cell) for text in (*times, size)]
                rows.append(
                    make_row(
                        cell.label, "ours", compare.size_of(cell), *numbers, first["device"]["name"], "ours"
                    )
                )
        if not rows:
            continue
        mine = {k: c for k, c in found.items() if k[0] == model and k[1] in ("lora", "vera_r64")}
        notes = [
            "minutes: of training alone, the median over seeds. GB: the device's largest memory, on a CPU the"
            " process's."
        ]
        title = (
            f"Table 12, {LLAMAS['llama_7b']}" if model == "llama_7b" else f"Table 12's protocol on {model}"
        )
        header = ["method", "source", "params", "minutes", "s/step", "tok/s", "GB", "device", "status"]
        shows = ("train_seconds", "peak_memory_bytes")
        title = f"{title}: time and memory, rank 64"
        tables.append(
            Table(title, header, rows, [*notes, *compare.about(mine)], model, _instructions(mine), shows)
        )
    return tables
