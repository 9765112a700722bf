"""Tables without runs: by formula table 1, trained parameters and their memory, and
claims, what the paper's text says beside its tables (a million users' adapters,
parameters beside d_90, latency); and tables 8 to 11, the recipes of conf/recipe beside
those that the paper prints."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from analysis.beside import follows
from analysis.others import named
from analysis.paper import GLUE, IMAGES, NAMES, paper, printed_file, recipes
from analysis.render import Entry, Table
from runs.record import CONF, in_conf

#: Adapted matrices (query and key of each block) and their width.
SHAPES = {"roberta-base": (24, 768), "roberta-large": (48, 1024), "gpt-3": (192, 12288)}
MODELS = {
    "roberta-base": "RoBERTa-base",
    "roberta-large": "RoBERTa-large",
    "gpt-3": "GPT-3",
}
#: What measures the claims that no formula gives.
COMMAND = "make bench-serving"


def memory(model: str, rank: int) -> dict[str, int]:
    """Table 1's numbers by formula: the trained parameters of LoRA (2 d r for each
    adapted matrix) and of VeRA (d + r), and the frozen elements of VeRA's shared A and
    B (2 d r in all), which a seed brings back."""
    matrices, width = SHAPES[model]
    lora, vera = matrices * 2 * width * rank, matrices * (width + rank)
    return {"lora": lora, "vera": vera, "frozen": 2 * width * rank}


def binary(size: float) -> str:
    """Bytes in powers of 1024."""
    units = {"TB": 2**40, "GB": 2**30, "MB": 2**20, "KB": 2**10}
    unit, scale = next((unit, scale) for unit, scale in units.items() if size >= scale)
    return f"{size / scale:.1f} {unit}"


def table1() -> list[Table]:
    """Trained parameters and bytes of LoRA and VeRA on query and key, by formula and as
    printed."""
    header = [
        "model",
        "rank",
        "LoRA",
        "printed",
        "LoRA bytes",
        "printed",
        "VeRA",
        "printed",
        "VeRA bytes",
    ]
    rows = list[list[Entry]]()
    for model, rank, *printed in paper()["table1"]["rows"]:
        exact = memory(model, rank)
        values = [exact["lora"], 4 * exact["lora"], exact["vera"], 4 * exact["vera"]]
        wrong = [
            not follows(text, value)
            for text, value in zip(printed, values, strict=True)
        ]
        whole, words = (
            exact["vera"] + exact["frozen"],
            ["LoRA differs"] * any(wrong[:2]),
        )
        if any(wrong[2:]):
            follow = [
                follows(printed[i], size)
                for i, size in ((2, whole), (3, 4 * whole))
                if wrong[i]
            ]
            words.append("VeRA with A and B" if all(follow) else "VeRA differs")
        entries: list[Entry] = [MODELS[model], str(rank)]
        for i, value in enumerate(values):
            entries += [
                binary(value) if i % 2 else f"{value:,}",
                printed[i] + "*" * wrong[i],
            ]
        rows.append([*entries, ", ".join(words) or "as printed"])
    title = "Table 1: trained parameters and their memory, by formula"
    return [
        Table(title, [*header, "printed", "status"], rows, paper()["notes"]["table1"])
    ]


# --- claims


def claims_table() -> list[Table]:
    """The text's claims, each with the paper's number and ours: an adapter of GPT-3,
    and those of a million users; exact counts beside d_90. Files and latency are
    measured by COMMAND, which prints them."""
    of, d_90 = (printed_file("claims.yaml")[part] for part in ("memory", "d_90"))
    rows, exact, users = (
        list[list[Entry]](),
        memory(of["model"], of["rank"]),
        f"{of['users']:,}",
    )
    for row, name, *printed in (
        ("lora", "LoRA", of["adapter"], of["all"]),
        ("vera", "VeRA", "-", "-"),
    ):
        counts = {"an adapter": 1, f"{users} users": of["users"]}
        for (what, count), text in zip(counts.items(), printed, strict=True):
            size = 4 * exact[row] * count
            claim = f"GPT-3, {name} r={of['rank']}: {what}"
            rows.append([claim, text, binary(size), _status(text, size)])
    rows.append(["an adapter's file", "-", COMMAND, "not measured"])
    rows.append(["RoBERTa-base, d_90", str(d_90["value"]), "-", "quoted"])
    of_model = (one for one in in_conf("counts.yaml") if one["model"] == d_90["model"])
    for one in sorted(
        (one for one in of_model if one["method"] != "full"),
        key=lambda one: -one["count"],
    ):
        row, text, rank = one["method"], one["printed"], one["settings"].get("rank")
        name = NAMES.get(row) or NAMES[row.rpartition("_")[0]]  # adapter_drop_900k
        times = f"{one['count']:,} = {one['count'] / d_90['value']:.0f} x d_90"
        claim = f"RoBERTa-base, {name}{f' r={rank}' if rank else ''}: parameters"
        rows.append([claim, text, times, _status(text, one["count"])])
    for way, printed in printed_file("claims.yaml")["latency"].items():
        rows.append(
            [f"RoBERTa-base, VeRA {way}: time", printed, COMMAND, "not measured"]
        )
    header = ["claim", "paper", "here", "status"]
    return [Table("Claims of the text", header, rows, paper()["notes"]["claims"])]


def _status(printed: str, value: float) -> str:
    return (
        "not printed"
        if printed == "-"
        else "as printed"
        if follows(printed, value)
        else "DIFFERS"
    )


# --- recipes

#: The columns of a table: model, row and task by name.
Columns = dict[str, tuple[str, str, str]]


@cache
def _recipe_file(row: str, model: str) -> dict[str, Any]:
    return _read(CONF / "recipe" / row / f"{model}.yaml")


def _read(path: Path) -> dict[str, Any]:
    """A file with those that its defaults list names, as Hydra merges them: what comes
    later counts."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    entries, merged = content.pop("defaults", ["_self_"]), dict[str, Any]()
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        other = CONF / f"{entry.partition('@')[0].strip('/')}.yaml"
        for key, value in (content if entry == "_self_" else _read(other)).items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **value} if both else value
    return merged


def _parts(of: dict[str, Any]) -> dict[str, Columns]:
    """The tables of a number, by what each is about, and their columns."""
    found, axes = (
        dict[str, Columns](),
        {key: named(of[f"{key}s"]) for key in ("model", "row", "task")},
    )
    for each in itertools.product(axes["model"], axes["row"], axes["task"]):
        names = {key: axes[key][one] for key, one in zip(axes, each, strict=True)}
        found.setdefault(of["about"].format(**names), {})[names[of["columns"]]] = each
    return found


def _printed(group: str, model: str, row: str, task: str, key: str) -> Any:
    """What the paper prints of a key; None where it prints nothing."""
    of, name = recipes()[group], model.replace("_", "-")
    of_row = of[name][row] if name in of else of[row].get(name, of[row])
    values = {"accumulation": 1, **of["common"], **of_row}
    if key == "effective_batch" and "batch" in values:
        return values["batch"] * values["accumulation"]
    value = values.get(key)
    return (
        value[[*(GLUE if group == "glue" else IMAGES)].index(task)]
        if isinstance(value, list)
        else value
    )


def _ours(model: str, row: str, task: str, key: str) -> Any:
    """A value of a recipe, of the task or at the file's top; a number where it can be
    one: YAML 1.1 reads 4e-3 as a text."""
    file = _recipe_file(row, model)
    of = (file.get("by_task") or {}).get(key, {}).get(task, file.get(key))
    try:
        return float(of) if isinstance(of, str) else of
    except ValueError:
        return of


def recipe_tables(number: int) -> list[Table]:
    """Table 8 (VeRA on GLUE), 9 (instruction tuning), 10 (E2E) or 11 (images): a line
    for each key, of which the last column says whether the paper prints the same. Rank
    and rates are there if the paper prints them."""
    of_table, tables = recipes()["tables"][number], list[Table]()
    group, keys = of_table["of"], of_table["keys"]
    for about, columns in _parts(of_table).items():
        rows = list[list[Entry]]()
        for key in keys:
            both = [
                (_ours(*of, key), _printed(group, *of, key)) for of in columns.values()
            ]
            printed = [(a, b) for a, b in both if b is not None]
            if not printed and key in ("rank", "lr", "lr_head"):
                continue
            status = "as printed" if printed else "not printed"
            if any(a != b for a, b in printed):
                status = f"DIFFERS: {', '.join(str(b) for _, b in printed)}"
            ours = [
                "-" if a is None else f"{a:g}" if isinstance(a, int | float) else str(a)
                for a, _ in both
            ]
            rows.append([keys[key], *ours, status])
        files = [_recipe_file(row, model) for model, row, _ in columns.values()]
        reasons = [
            reason for file in files for reason in (file.get("chosen") or {}).items()
        ]
        chosen = dict.fromkeys(
            f"this project's choice: {key}: {why}" for key, why in reasons
        )
        title, header = (
            f"Table {number}{about}, from conf/recipe",
            ["hyperparameter", *columns, "paper"],
        )
        tables.append(Table(title, header, rows, [of_table["note"], *chosen]))
    return tables
