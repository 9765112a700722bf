"""Tables without runs: by formula table 1, trained parameters and their memory, and claims, what the paper's
text says beside its tables (a million users' adapters, parameters beside d_90, latency); and tables 8 to 11,
the recipes of conf/recipe beside those that the paper prints."""

import itertools
import statistics
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from analysis.beside import exact_counts, follows
from analysis.paper import GLUE, IMAGES, LLAMAS, NAMES, ROBERTA, VIT, claims, paper, recipes
from analysis.render import Entry, Table
from runs.record import CONF
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
    """The text's claims, each with the paper's number and ours: an adapter of GPT-3, and those of a million
    users; the files that this project writes; exact counts beside d_90; the time of a batch with an adapter
    over the base model's. Files and latency come from the benchmark of serving, where this machine has done
    it."""
    bench: dict[str, Any] = serving or {"rows": []}
    rows, of, d_90 = list[Line](), claims()["memory"], claims()["d_90"]
    exact, printed = memory(of["model"], of["rank"]), {"lora": (of["adapter"], of["all"]), "vera": "--"}
    for row, name in (("lora", "LoRA"), ("vera", "VeRA")):
        counts = {"an adapter": 1, f"{of['users']:,} users": of["users"]}
        for (what, count), text in zip(counts.items(), printed[row], strict=True):
            size = 4 * exact[row] * count
            claim = f"GPT-3, {name} r={of['rank']}: {what}"
            rows.append([claim, text, binary(size), _status(text, size)])
    files = [one for one in bench["rows"] if one["part"] == "adapter file"]
    for one in files:
        name = f"{one['model']}, {one['variant']}"
        size = f"{one['bytes']:,} bytes ({one['parameters']:,} parameters)"
        rows.append([f"{name}: an adapter's file", "-", size, "written"])
        rows.append([f"{name}: {of['users']:,} files", "-", binary(one["bytes"] * of["users"]), "written"])
    if not files:
        rows.append(["an adapter's file", "-", COMMAND, "not measured"])
    rows.append(["RoBERTa-base, d_90", str(d_90["value"]), "-", "quoted"])
    of_model = [one for one in exact_counts() if one["model"] == d_90["model"] and one["method"] != "full"]
    for one in sorted(of_model, key=lambda one: -one["count"]):
        row, text, rank = one["method"], one["printed"], one["settings"].get("rank")
        name = NAMES.get(row) or NAMES[row.rpartition("_")[0]]  # adapter_drop_900k
        times = f"{one['count']:,} = {one['count'] / d_90['value']:.0f} x d_90"
        claim = f"RoBERTa-base, {name}{f' r={rank}' if rank else ''}: parameters"
        rows.append([claim, text, times, _status(text, one["count"])])
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
    header = ["claim", "paper", "here", "status"]
    return [Table("Claims of the text", header, [*rows, *_latency(bench)], notes)]


def _status(printed: str, value: float) -> str:
    return "not printed" if printed == "-" else "as printed" if follows(printed, value) else "DIFFERS"


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


# --- recipes

#: Keys of a recipe as tables call them.
KEYS = {"rank": "rank", "effective_batch": "batch size", "max_length": "tokens", "epochs": "epochs"}
KEYS |= {"lr": "learning rate", "lr_head": "learning rate, head", "schedule": "schedule"}
KEYS |= {"warmup_ratio": "warm-up ratio", "warmup_steps": "warm-up steps", "weight_decay": "weight decay"}
KEYS |= {"label_smoothing": "label smoothing"}
#: The columns of a table: its names, each with row, model and task; and the paper's values by key, a list
#: with one for each column or one for all (None: it prints none).
Columns = Mapping[str, tuple[str, str, str]]
Printed = Mapping[str, Any]


@cache
def _recipe_file(row: str, model: str) -> dict[str, Any]:
    return _read(CONF / "recipe" / row / f"{model}.yaml")


def _read(path: Path) -> dict[str, Any]:
    """A file with those that its defaults list names, as Hydra merges them: what comes later counts."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    entries, merged = content.pop("defaults", ["_self_"]), dict[str, Any]()
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        other = CONF / f"{entry.partition('@')[0].strip('/')}.yaml"
        for key, value in (content if entry == "_self_" else _read(other)).items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **value} if both else value
    return merged


def _parts(number: int) -> Iterator[tuple[str, Columns, Printed, str]]:
    """The tables of a number: what each is about, its columns, what the paper prints, and a note."""
    of = recipes()[{8: "glue", 9: "instruct", 10: "e2e", 11: "images"}[number]]
    common: dict[str, Any] = of["common"]
    if number == 8:
        common = {key: common[key] for key in ("warmup_ratio", "schedule")} | {"weight_decay": None}
        for model, label in ROBERTA.items():
            papers = dict(of["vera"][model.replace("_", "-")])
            papers["effective_batch"] = papers["batch"]
            keys = ("rank", "effective_batch", "max_length", "epochs", "lr", "lr_head")
            columns = {name: ("vera", model, task) for task, name in GLUE.items()}
            yield f"{label}: VeRA on GLUE", columns, {key: papers[key] for key in keys} | common, "AdamW."
    elif number == 9:
        printed = {key: [of[row][key] for row in ("lora", "vera")] for key in ("rank", "lr")}
        printed |= {"effective_batch": common["batch"] * common["accumulation"]}
        printed |= {key: common[key] for key in ("epochs", "warmup_ratio", "schedule")} | {"max_length": None}
        note = f"AdamW. The paper's batch is {common['batch']}, accumulated {common['accumulation']} times."
        for model, label in LLAMAS.items():
            columns = {NAMES[row]: (row, model, "alpaca") for row in ("lora", "vera")}
            yield f"{label}: instruction tuning", columns, printed, note
    elif number == 10:
        columns = {size: ("vera", f"gpt2_{size}", "e2e") for size in ("medium", "large")}
        printed = {key: [of["vera"][f"gpt2-{size}"][key] for size in columns] for key in ("rank", "lr")}
        of_all = ("epochs", "warmup_steps", "schedule", "weight_decay", "label_smoothing")
        printed |= {"effective_batch": common["batch"]} | {key: common[key] for key in of_all}
        yield ": VeRA on E2E with GPT-2", columns, printed, "AdamW."
    else:
        common = {key: common[key] for key in ("epochs", "schedule", "weight_decay")}
        common |= {"effective_batch": None, "warmup_ratio": None}
        for (model, label), row in itertools.product(VIT.items(), ("head", "full", "lora", "vera")):
            papers = of[model.replace("_", "-")][row]
            printed = {key: papers[key] for key in ("rank", "lr", "lr_head") if key in papers} | common
            columns = {name: (row, model, task) for task, name in IMAGES.items()}
            yield f"{label}, {NAMES[row]}: images", columns, printed, "AdamW. 10 training images a class."


def recipe_tables(number: int, _: object = None) -> list[Table]:
    """Table 8 (VeRA on GLUE), 9 (instruction tuning), 10 (E2E) or 11 (images): a line for each key, of which
    the last column says whether the paper prints the same."""
    return [_table(f"Table {number}", *of) for of in _parts(number)]


def _number(of: Any) -> Any:
    """A value of a recipe, a number where it can be one: YAML 1.1 reads 4e-3 as a text."""
    try:
        return float(of) if isinstance(of, str) else of
    except ValueError:
        return of


def _table(number: str, about: str, columns: Columns, printed: Printed, note: str) -> Table:
    files, rows = [_recipe_file(row, model) for row, model, _ in columns.values()], list[list[Entry]]()
    for key, values in printed.items():
        papers = values if isinstance(values, list) else [values] * len(columns)
        ours = [  # by task, or at the file's top
            _number((file.get("by_task") or {}).get(key, {}).get(task, file.get(key)))
            for file, (_, _, task) in zip(files, columns.values(), strict=True)
        ]
        pairs = [(a, b) for a, b in zip(ours, papers, strict=True) if b is not None]
        status = "as printed" if pairs else "not printed"
        if any(a != b for a, b in pairs):
            status = f"DIFFERS: {', '.join(str(b) for _, b in pairs)}"
        words = ["-" if of is None else f"{of:g}" if isinstance(of, int | float) else str(of) for of in ours]
        rows.append([KEYS[key], *words, status])
    reasons = [reason for file in files for reason in (file.get("chosen") or {}).items()]
    chosen = dict.fromkeys(f"this project's choice: {key}: {why}" for key, why in reasons)
    title = f"{number}{about if about[0] == ':' else f', {about}'}, from conf/recipe"
    return Table(title, ["hyperparameter", *columns, "paper"], rows, [note, *chosen])
