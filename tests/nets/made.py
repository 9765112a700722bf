"""A ledger made by hand: five runs or fewer beside each number that the paper prints,
so that every verdict occurs."""

import re
from typing import Any

from ledgers import COUNTS, record

from analysis.paper import DECIMALS, FROM_MNLI, printed_numbers
from nets.golden import short_hash
from runs.record.ledger import Ledger

#: Ours less the paper's and our spread, in units of the table; seeds; a diverged one;
#: trained numbers more.
CASES = (
    (0.05, 0.2, 5, False, 0),  # reproduced, inside
    (0.4, 2.5, 5, False, 0),  # consistent, wide
    (-6.0, 0.3, 5, False, 0),  # not reproduced, outside
    (0.1, 0.4, 3, False, 0),  # incomplete
    (0.1, 0.4, 5, False, 99_999_999),  # other size
    (0.0, 0.0, 0, False, 0),  # not run
    (0.3, 0.6, 5, True, 0),
    (-0.2, 0.7, 6, False, 0),
)
PATTERN = (-1.0, 0.5, 0.0, -0.5, 1.0, 0.25)


def size(number: Any) -> int:
    """The trained parameters of the paper's row."""
    # tables 6 and 7 have the size of table 2's LARGE
    text = number.size.partition(" ")[0] or "0.061M"
    for of in COUNTS:
        if (of["model"], of["printed"]) == (
            number.model,
            text,
        ) and number.row.startswith(of["method"]):
            return int(of["count"])
    digits, unit = re.fullmatch(r"([\d.]+)([KM]?)", text).groups()
    return round(float(digits) * {"": 1, "K": 1e3, "M": 1e6}[unit])


def made_ledger() -> Ledger:
    """Each cell of tables 2 to 7 and 13 by the next case; what one cell is, is so for
    its next task, too, so that rows of one kind are there. And rows that the paper does
    not have."""
    cells = dict[tuple[str, ...], list[Any]]()
    for n in printed_numbers().itertuples():
        if n.task and n.table != "table12":
            row = (
                f"{n.row}_mnli"
                if n.table == "table2" and n.task in FROM_MNLI.get((n.model, n.row), ())
                else n.row
            )
            ours = "table2" if n.table in ("table6", "table7") else n.table
            cells.setdefault((ours, n.model, row, n.task), []).append(n)
    records = []
    for count, ((table, model, row, task), printed) in enumerate(cells.items()):
        case = CASES[(count // 3 + len(row)) % len(CASES)]
        records += [
            _run(table, model, row, task, printed, case, seed)
            for seed in range(case[2])
        ]
    records += [
        record("mine", "rte", seed, 0.7 + seed / 100, model="roberta_base")
        for seed in range(5)
    ]
    records += [
        record("vera", "rte", seed, 0.7 + seed / 90, model="minilm")
        for seed in range(2)
    ]
    return Ledger({r["id"]: r for r in records}, {r["id"]: "ours" for r in records})


def _run(table, model, row, task, printed, case, seed):
    gap, spread, seeds, diverged, more = case
    scale = 100.0 if table in ("table2", "table5") else 1.0
    diverges = diverged and seed == seeds - 1
    value = (printed[0].value + gap + spread * PATTERN[seed]) / scale
    made = record(
        row,
        task,
        seed,
        value,
        value - 0.002,
        model=model,
        status="diverged" if diverges else "done",
    )
    made["id"] = short_hash([table, made["id"]])
    made["parameters"]["adapter"] = size(printed[0]) + more
    made["config"]["task"]["family"] = {"table3": "e2e", "table5": "images"}.get(
        table, "glue"
    )
    made["cost"] |= {
        "train_seconds": 10.0 + seed,
        "peak_memory_bytes": (seed + 1) * 10**8,
    }
    if table == "table5":  # the last epoch is reported
        made["result"] |= {"reported": "last", "last": value}
        made["result"]["protocols"]["paper"] |= {"last": value}
    if table == "table3":
        part = {1: 1.0, 2: 0.1}  # NIST and CIDEr have two decimals
        ours = {
            n.column: n.value
            + (gap + spread * PATTERN[seed]) * part[DECIMALS[n.column]]
            for n in printed
        }
        entries = [
            {"which": which, "epoch": e, "variant": "0.9", **ours}
            for which, e in (("last", 3.0), ("best", 2.0))
        ]
        made["texts"] = (
            None if diverges else {"split": "test", "items": 630, "scores": entries}
        )
    if table in ("table4", "table13"):
        bench, rows = (
            ("mt_bench", None) if table == "table4" else ("vicuna_bench", 10_000)
        )
        made["config"]["task"] |= {"family": "instruct", "train_rows": rows}
        made["config"]["method"]["rank"] = 64
        mean = printed[0].value + 0.1 * gap + 0.1 * spread * PATTERN[seed]
        how = {
            "answer_tokens": 1024,
            "top_p": 1.0,
            "top_k": 50,
            "batch": 8,
            "without_room": 0,
        }
        judged = {
            "bench": bench,
            "judge": "gpt-4-0613",
            "mean": mean,
            "low": mean - 0.5,
            "high": mean + 0.5,
        }
        judged |= {
            "n": 160,
            "n_valid": 159,
            "turns": {"1": mean + 0.25, "2": mean - 0.25},
            "answering": how,
        }
        made["judged"] = [] if diverges else [judged]
    return made
