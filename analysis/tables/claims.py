"""What the paper's text says beside its tables: the memory of a million users' adapters, parameters beside
d_90, and latency."""

import statistics
from typing import Any

from analysis.beside import exact_counts, follows
from analysis.paper import NAMES, claims
from analysis.render import Entry, Table
from analysis.tables.counts import binary, memory
from runs.record.text import plural

#: What measures the rows that no formula gives.
COMMAND = "make bench-serving"
BASE = "base model"
#: Variants of the benchmark, with what the paper says of each.
VARIANTS = {"merged": "VeRA, one adapter, merged", "not merged": "VeRA, one adapter, not merged"}


def claims_table(serving: dict[str, Any] | None = None) -> list[Table]:
    """The text's claims, each with the paper's number and ours. Needs no record; files and latency come from
    the benchmark of serving, where this machine has done it."""
    bench: dict[str, Any] = serving or {"rows": []}
    rows = [*_memory(), *_files(bench), *_counts(), *_latency(bench)]
    measured = f"bench-serving: {_origin(bench)}" if serving else f"{COMMAND} measures files and time."
    notes = [
        "By formula: LoRA 2 d r, VeRA d + r for each of GPT-3's 192 matrices, float32; A and B of VeRA come"
        " from a seed. KB, MB, GB, TB: powers of 1024.",
        "d_90: the fewest parameters that reach 90% of full fine-tuning, as the paper quotes it from"
        " Aghajanyan et al. 2021. Counts are without the classification head, which trains in full.",
        "Latency: the paper says that a merged adapter adds none. time: beside the base model's.",
        measured,
    ]
    return [Table("Claims of the text", ["claim", "paper", "here", "status"], rows, notes)]


def _row(*entries: Entry) -> list[Entry]:
    return [*entries]


def _memory() -> list[list[Entry]]:
    """An adapter of GPT-3, and those of a million users."""
    printed = claims()["memory"]
    exact, users = memory(printed["model"], printed["rank"]), printed["users"]
    lora, vera = (f"GPT-3, {name} r={printed['rank']}" for name in ("LoRA", "VeRA"))
    return [
        _formula(f"{lora}: an adapter", printed["adapter"], 4 * exact["lora"]),
        _formula(f"{lora}: {users:,} users", printed["all"], 4 * exact["lora"] * users),
        _formula(f"{vera}: an adapter", "-", 4 * exact["vera"]),
        _formula(f"{vera}: {users:,} users", "-", 4 * exact["vera"] * users),
    ]


def _formula(claim: str, printed: str, size: int) -> list[Entry]:
    status = "not printed" if printed == "-" else "as printed" if follows(printed, size) else "DIFFERS"
    return _row(claim, printed, binary(size), status)


def _files(bench: dict[str, Any]) -> list[list[Entry]]:
    """The files that this project writes, and a million of them."""
    users, rows = claims()["memory"]["users"], []
    for row in (row for row in bench["rows"] if row["part"] == "adapter file"):
        name = f"{row['model']}, {row['variant']}"
        held = f"{row['bytes']:,} bytes ({row['parameters']:,} parameters)"
        rows += [_row(f"{name}: an adapter's file", "-", held, "written")]
        rows += [_row(f"{name}: {users:,} files", "-", binary(row["bytes"] * users), "written")]
    return rows or [_row("an adapter's file", "-", COMMAND, "not measured")]


def _counts() -> list[list[Entry]]:
    """The exact counts of a model's rows, the largest first, beside d_90."""
    d_90, rows = claims()["d_90"], []
    entries = [of for of in exact_counts() if of["model"] == d_90["model"] and of["method"] != "full"]
    for of in sorted(entries, key=lambda of: -of["count"]):
        row, printed, rank = of["method"], of["printed"], of["settings"].get("rank")
        name = NAMES.get(row) or NAMES[row.rpartition("_")[0]]  # adapter_drop_900k
        name += f" r={rank}" if rank else ""
        times = f"{of['count']:,} = {of['count'] / d_90['value']:.0f} x d_90"
        status = "as printed" if follows(printed, of["count"]) else "DIFFERS"
        rows.append(_row(f"RoBERTa-base, {name}: parameters", printed, times, status))
    return [_row("RoBERTa-base, d_90", str(d_90["value"]), "-", "quoted"), *rows]


def _latency(bench: dict[str, Any]) -> list[list[Entry]]:
    """The time of a batch with one adapter, merged and not, over the base model's."""
    seconds = {
        (row["variant"], row["resident"], row["tokens"]): statistics.median(row["seconds"])
        for row in bench["rows"]
        if row["part"] == "serving"
    }
    rows = []
    for way, variant in VARIANTS.items():
        printed = claims()["latency"].get(way, "-")
        for (name, resident, tokens), taken in seconds.items():
            if name == variant and (base := seconds.get((BASE, resident, tokens))):
                times = f"{taken / base:.2f} x ({taken * 1e3:,.0f} ms)"
                claim = f"RoBERTa-base, VeRA {way}: time at {tokens} tokens"
                rows.append(_row(claim, printed, times, "measured"))
        if not any(name == variant for name, _, _ in seconds):
            rows.append(_row(f"RoBERTa-base, VeRA {way}: time", printed, COMMAND, "not measured"))
    return rows


def _origin(bench: dict[str, Any]) -> str:
    """Where the benchmark ran."""
    threads = plural(bench["threads"], "thread")
    return f"{bench['machine']['name']}, {threads}, {bench['date']}; 64 requests in a batch."
