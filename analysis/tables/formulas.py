"""Tables without runs, by formula: table 1, trained parameters and their memory; and claims, what the paper's
text says beside its tables: a million users' adapters, parameters beside d_90, and latency."""

import statistics
from collections.abc import Iterator
from typing import Any

from analysis.beside import exact_counts, follows
from analysis.paper import NAMES, claims, paper
from analysis.render import Entry, Table
from runs.record.text import plural

#: Adapted matrices (query and key of each block) and their width.
SHAPES = {"roberta-base": (24, 768), "roberta-large": (48, 1024), "gpt-3": (192, 12288)}
MODELS = {"roberta-base": "RoBERTa-base", "roberta-large": "RoBERTa-large", "gpt-3": "GPT-3"}
#: What measures the claims that no formula gives.
COMMAND = "make bench-serving"
#: Variants of that benchmark, with what the paper says of each.
VARIANTS = {"merged": "VeRA, one adapter, merged", "not merged": "VeRA, one adapter, not merged"}


def memory(model: str, rank: int) -> dict[str, int]:
    """Table 1's numbers by formula: the trained parameters of LoRA (2 d r for each adapted matrix) and of
    VeRA (d + r), and the frozen elements of VeRA's shared A and B (2 d r in all), which a seed brings
    back."""
    matrices, width = SHAPES[model]
    lora, vera = matrices * 2 * width * rank, matrices * (width + rank)
    return {"lora": lora, "vera": vera, "frozen": 2 * width * rank}


def binary(size: float) -> str:
    """Bytes in powers of 1024."""
    units = {"TB": 2**40, "GB": 2**30, "MB": 2**20, "KB": 2**10}
    unit, scale = next((unit, scale) for unit, scale in units.items() if size >= scale)
    return f"{size / scale:.1f} {unit}"


def table1() -> list[Table]:
    """Trained parameters and bytes of LoRA and VeRA on query and key, by formula and as printed."""
    kinds = ("LoRA", "LoRA bytes", "VeRA", "VeRA bytes")
    header = ["model", "rank", *(name for kind in kinds for name in (kind, "printed")), "status"]
    rows = list[list[Entry]]()
    for model, rank, *printed in paper()["table1"]["rows"]:
        exact = memory(model, rank)
        values = [exact["lora"], 4 * exact["lora"], exact["vera"], 4 * exact["vera"]]
        wrong = [i for i, value in enumerate(values) if not follows(printed[i], value)]
        whole, words = exact["vera"] + exact["frozen"], ["LoRA differs"] * any(i < 2 for i in wrong)
        if of_vera := [i for i in wrong if i > 1]:
            frozen_too = all(follows(printed[i], (whole, 4 * whole)[i - 2]) for i in of_vera)
            words.append("VeRA with A and B" if frozen_too else "VeRA differs")
        shown = [f"{values[0]:,}", binary(values[1]), f"{values[2]:,}", binary(values[3])]
        pairs = [(ours, printed[i] + "*" * (i in wrong)) for i, ours in enumerate(shown)]
        entries = [entry for pair in pairs for entry in pair]
        rows.append([MODELS[model], str(rank), *entries, ", ".join(words) or "as printed"])
    notes = [
        "By formula: LoRA 2 d r, VeRA d + r for each adapted matrix (query and key of every block), float32.",
        "KB, MB, GB: powers of 1024. *: does not follow from the formula, rounded or cut off.",
        "VeRA with A and B: the printed number counts the frozen matrices too, 2 d r elements that a seed"
        " brings back.",
        "RoBERTa-large at rank 16 has 49,920 parameters, and its printed bytes are right; GPT-3's 4608 MB"
        " are 4.5 GB.",
    ]
    return [Table("Table 1: trained parameters and their memory, by formula", header, rows, notes)]


# --- claims

Line = list[Entry]


def claims_table(serving: dict[str, Any] | None = None) -> list[Table]:
    """The text's claims, each with the paper's number and ours. Files and latency come from the benchmark of
    serving, where this machine has done it."""
    bench: dict[str, Any] = serving or {"rows": []}
    rows = [*_memory(), *_files(bench), *_counts(), *_latency(bench)]
    measured = f"{COMMAND} measures files and time."
    if serving:
        where = f"{bench['machine']['name']}, {plural(bench['threads'], 'thread')}, {bench['date']}"
        measured = f"bench-serving: {where}; 64 requests in a batch."
    notes = [
        "By formula: LoRA 2 d r, VeRA d + r for each of GPT-3's 192 matrices, float32; A and B of VeRA come"
        " from a seed. KB, MB, GB, TB: powers of 1024.",
        "d_90: the fewest parameters that reach 90% of full fine-tuning, as the paper quotes it from"
        " Aghajanyan et al. 2021. Counts are without the classification head, which trains in full.",
        "Latency: the paper says that a merged adapter adds none. time: beside the base model's.",
        measured,
    ]
    return [Table("Claims of the text", ["claim", "paper", "here", "status"], rows, notes)]


def _status(printed: str, value: float) -> str:
    return "not printed" if printed == "-" else "as printed" if follows(printed, value) else "DIFFERS"


def _memory() -> Iterator[Line]:
    """An adapter of GPT-3, and those of a million users."""
    of = claims()["memory"]
    exact, printed = memory(of["model"], of["rank"]), {"lora": (of["adapter"], of["all"]), "vera": "--"}
    for row, name in (("lora", "LoRA"), ("vera", "VeRA")):
        counts = {"an adapter": 1, f"{of['users']:,} users": of["users"]}
        for (what, count), text in zip(counts.items(), printed[row], strict=True):
            size = 4 * exact[row] * count
            yield [f"GPT-3, {name} r={of['rank']}: {what}", text, binary(size), _status(text, size)]


def _files(bench: dict[str, Any]) -> list[Line]:
    """The files that this project writes, and a million of them."""
    users, rows = claims()["memory"]["users"], list[Line]()
    for of in (of for of in bench["rows"] if of["part"] == "adapter file"):
        name, size = (
            f"{of['model']}, {of['variant']}",
            f"{of['bytes']:,} bytes ({of['parameters']:,} parameters)",
        )
        rows.append([f"{name}: an adapter's file", "-", size, "written"])
        rows.append([f"{name}: {users:,} files", "-", binary(of["bytes"] * users), "written"])
    return rows or [["an adapter's file", "-", COMMAND, "not measured"]]


def _counts() -> Iterator[Line]:
    """The exact counts of a model's rows, the largest first, beside d_90."""
    d_90 = claims()["d_90"]
    yield ["RoBERTa-base, d_90", str(d_90["value"]), "-", "quoted"]
    entries = [of for of in exact_counts() if of["model"] == d_90["model"] and of["method"] != "full"]
    for of in sorted(entries, key=lambda of: -of["count"]):
        row, printed, rank = of["method"], of["printed"], of["settings"].get("rank")
        name = NAMES.get(row) or NAMES[row.rpartition("_")[0]]  # adapter_drop_900k
        name += f" r={rank}" if rank else ""
        times = f"{of['count']:,} = {of['count'] / d_90['value']:.0f} x d_90"
        yield [f"RoBERTa-base, {name}: parameters", printed, times, _status(printed, of["count"])]


def _latency(bench: dict[str, Any]) -> Iterator[Line]:
    """The time of a batch with one adapter, merged and not, over the base model's."""
    seconds = {
        (of["variant"], of["resident"], of["tokens"]): statistics.median(of["seconds"])
        for of in bench["rows"]
        if of["part"] == "serving"
    }
    for way, variant in VARIANTS.items():
        claim, printed = f"RoBERTa-base, VeRA {way}: time", claims()["latency"].get(way, "-")
        measured = [(key, taken) for key, taken in seconds.items() if key[0] == variant]
        for (_, *where), taken in measured:
            if base := seconds.get(("base model", *where)):
                times = f"{taken / base:.2f} x ({taken * 1e3:,.0f} ms)"
                yield [f"{claim} at {where[1]} tokens", printed, times, "measured"]
        if not measured:
            yield [claim, printed, COMMAND, "not measured"]
