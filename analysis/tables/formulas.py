"""Tables without runs. Two are by formula: table 1 has trained parameters and their
memory, and "claims" what the paper's text says beside its tables (a million users'
adapters, parameters beside d_90, latency). Tables 8 to 11 have the recipes of
conf/recipe beside those that the paper prints."""

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from analysis.others import names_by_key
from analysis.paper import GLUE, IMAGES, METHOD_NAMES, paper, printed_file, recipes
from analysis.paper_comparison import rounds_to
from analysis.render import Entry, Table
from runs.record.files import read_yaml
from runs.record.ledger import CONF, in_conf

#: How many matrices are adapted (query and key of each block), and their width.
SHAPES = {"roberta-base": (24, 768), "roberta-large": (48, 1024), "gpt-3": (192, 12288)}
MODELS = {
    "roberta-base": "RoBERTa-base",
    "roberta-large": "RoBERTa-large",
    "gpt-3": "GPT-3",
}
#: The command that measures the claims which no formula gives.
COMMAND = "make bench-serving"


def parameter_counts(model: str, rank: int) -> dict[str, int]:
    """Counts of parameters by formula: those that LoRA trains ("lora": 2 d r for each
    adapted matrix of width d at rank r) and that VeRA trains ("vera": d + r each), and
    the elements of VeRA's shared A and B ("frozen": 2 d r in all), which are drawn from
    a seed."""
    matrices, width = SHAPES[model]
    frozen = 2 * width * rank
    return {
        "lora": matrices * frozen,
        "vera": matrices * (width + rank),
        "frozen": frozen,
    }


def binary_size(size: float) -> str:
    """A number of bytes, at least 1024, as text in powers of 1024: 1.5 MB."""
    units = {"TB": 2**40, "GB": 2**30, "MB": 2**20, "KB": 2**10}
    unit, scale = next((unit, scale) for unit, scale in units.items() if size >= scale)
    return f"{size / scale:.1f} {unit}"


def table1() -> list[Table]:
    """Trained parameters and bytes of LoRA and VeRA on query and key, by formula and as
    printed."""
    header = ["model", "rank"]
    for name in ("LoRA", "LoRA bytes", "VeRA", "VeRA bytes"):
        header += [name, "printed"]
    rows = [_memory_row(*printed) for printed in paper()["table1"]["rows"]]
    title = "Table 1: trained parameters and their memory, by formula"
    return [Table(title, [*header, "status"], rows, paper()["notes"]["table1"])]


def _memory_row(model: str, rank: int, *printed: str) -> list[Entry]:
    """A row of table 1. * marks a printed number that does not follow from the formula.
    printed: the texts of LoRA's count and bytes, and of VeRA's count and bytes."""
    exact = parameter_counts(model, rank)
    lora_texts = printed[:2]
    vera_texts = printed[2:]
    row: list[Entry] = [MODELS[model], str(rank)]
    row += _count_and_bytes(exact["lora"], *lora_texts)
    row += _count_and_bytes(exact["vera"], *vera_texts)
    status = list[str]()
    if _wrong_texts(exact["lora"], *lora_texts):
        status.append("LoRA differs")
    if wrong_texts := _wrong_texts(exact["vera"], *vera_texts):
        wrong_with_frozen = _wrong_texts(exact["vera"] + exact["frozen"], *vera_texts)
        # each text that is wrong for the vectors alone is right with the frozen A and B
        counts_frozen = wrong_texts.isdisjoint(wrong_with_frozen)
        status.append("VeRA with A and B" if counts_frozen else "VeRA differs")
    return [*row, ", ".join(status) or "as printed"]


def _count_and_bytes(count: int, printed_count: str, printed_bytes: str) -> list[Entry]:
    """Four entries: a count of parameters and their bytes in float32, each followed by
    what the paper prints, with * if that does not follow from the count."""
    wrong_texts = _wrong_texts(count, printed_count, printed_bytes)
    if printed_count in wrong_texts:
        printed_count += "*"
    if printed_bytes in wrong_texts:
        printed_bytes += "*"
    return [f"{count:,}", printed_count, binary_size(4 * count), printed_bytes]


def _wrong_texts(count: int, printed_count: str, printed_bytes: str) -> set[str]:
    """Which of the printed texts do not follow from a count of parameters, 4 bytes
    each."""
    sizes = {printed_count: count, printed_bytes: 4 * count}
    return {text for text, size in sizes.items() if not rounds_to(text, size)}


# --- claims


def size_claims_table() -> list[Table]:
    """The claims of the paper's text, each with its number and ours: the memory of an
    adapter of GPT-3, and of a million; exact counts beside d_90. Files and latency are
    not computed: COMMAND measures and prints them."""
    latency = printed_file("claims.yaml")["latency"]
    rows: list[list[Entry]] = [
        *_memory_claims(),
        ["an adapter's file", "-", COMMAND, "not measured"],
        *_count_claims(),
    ]
    for path, printed in latency.items():
        claim = f"RoBERTa-base, VeRA {path}: time"
        rows.append([claim, printed, COMMAND, "not measured"])
    header = ["claim", "paper", "here", "status"]
    return [Table("Claims of the text", header, rows, paper()["notes"]["claims"])]


def _memory_claims() -> Iterator[list[Entry]]:
    """The rows on the memory of one adapter of GPT-3, and of a million."""
    claims = printed_file("claims.yaml")["memory"]
    exact = parameter_counts(claims["model"], claims["rank"])
    users = f"{claims['users']:,} users"
    counts = {"an adapter": 1, users: claims["users"]}
    printed = {"an adapter": claims["adapter"], users: claims["all"]}
    for row, name in (("lora", "LoRA"), ("vera", "VeRA")):
        for subject, count in counts.items():
            size = 4 * exact[row] * count
            # the paper's text has this memory for LoRA alone
            text = printed[subject] if row == "lora" else "-"
            claim = f"GPT-3, {name} r={claims['rank']}: {subject}"
            yield [claim, text, binary_size(size), _claim_status(text, size)]


def _count_claims() -> Iterator[list[Entry]]:
    """The rows that compare the parameters of RoBERTa-base's methods with d_90, the fewest
    parameters that reach 90% of full fine-tuning. The first row is d_90 itself, and then
    the largest method comes first. Each has the claim, the paper's number, ours, and a
    status."""
    d_90 = printed_file("claims.yaml")["d_90"]
    yield ["RoBERTa-base, d_90", str(d_90["value"]), "-", "quoted"]
    counts = [
        entry
        for entry in in_conf("counts.yaml")
        if entry["model"] == d_90["model"] and entry["method"] != "full"
    ]
    for entry in sorted(counts, key=lambda entry: -entry["count"]):
        row, count = entry["method"], entry["count"]
        # a row of a size has the name of its method: adapter_drop_900k of adapter_drop
        name = METHOD_NAMES.get(row) or METHOD_NAMES[row.rpartition("_")[0]]
        if rank := entry["settings"].get("rank"):
            name += f" r={rank}"
        claim = f"RoBERTa-base, {name}: parameters"
        ratio = f"{count:,} = {count / d_90['value']:.0f} x d_90"
        yield [claim, entry["printed"], ratio, _claim_status(entry["printed"], count)]


def _claim_status(printed: str, value: float) -> str:
    """The status of a claim, the last entry of its row: whether the printed number follows
    from ours. printed: "-" where the paper prints none."""
    if printed == "-":
        return "not printed"
    return "as printed" if rounds_to(printed, value) else "DIFFERS"


# --- recipes

#: The columns of a table of recipes: by the column's name the model, row and task of the
#: recipe in it.
Columns = dict[str, tuple[str, str, str]]


@cache
def _recipe_file(row: str, model: str) -> dict[str, Any]:
    """The recipe of a row for a model (conf/recipe)."""
    return _read_with_defaults(CONF / "recipe" / row / f"{model}.yaml")


def _read_with_defaults(path: Path) -> dict[str, Any]:
    """The content of a file of conf/, merged with the files that its defaults list names
    as Hydra does it: a later one overrides an earlier one. Groups are merged one level
    deep."""
    content: dict[str, Any] = read_yaml(path)
    entries = content.pop("defaults", ["_self_"])
    # "_self_" is the place of the file itself, by default after all others
    if "_self_" not in entries:
        entries = [*entries, "_self_"]
    merged = dict[str, Any]()
    for entry in entries:
        part = content
        if entry != "_self_":
            # /recipe/lora/gpt2_medium@_here_: what follows the @ is the same for all
            name = entry.partition("@")[0].strip("/")
            part = _read_with_defaults(CONF / f"{name}.yaml")
        for key, value in part.items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                value = {**merged[key], **value}
            merged[key] = value
    return merged


def _columns_by_title(table: dict[str, Any]) -> dict[str, Columns]:
    """The columns of each table that a table of the paper is split into, by what follows
    "Table 8" in the title. table: the paper's table in printed/recipes.yaml, which says
    what each title names ("about"), and whether a column is a model, a row or a task
    ("columns")."""
    models = names_by_key(table["models"])
    rows = names_by_key(table["rows"])
    tasks = names_by_key(table["tasks"])
    columns_by_title = dict[str, Columns]()
    for model, row, task in itertools.product(models, rows, tasks):
        names = {"model": models[model], "row": rows[row], "task": tasks[task]}
        title = table["about"].format(**names)
        column_name = names[table["columns"]]
        columns_by_title.setdefault(title, {})[column_name] = (model, row, task)
    return columns_by_title


def _printed(group: str, model: str, row: str, task: str, key: str) -> Any:
    """The value that the paper prints of a key (such as lr) in a recipe; None where it
    prints none. group: of printed/recipes.yaml, which nests some settings by model and
    then by row, some the other way round, and some by row alone."""
    settings = recipes()[group]
    name = model.replace("_", "-")  # as the file spells it
    by_row = settings[row].get(name, settings[row]) if row in settings else {}
    by_model = settings.get(name, {}).get(row, {})
    values = {"accumulation": 1, **settings["common"], **(by_model or by_row)}
    if key == "effective_batch" and "batch" in values:
        return values["batch"] * values["accumulation"]
    value = values.get(key)
    if isinstance(value, list):  # a value for each task
        tasks = [*(GLUE if group == "glue" else IMAGES)]
        return value[tasks.index(task)]
    return value


def _own_value(model: str, row: str, task: str, key: str) -> Any:
    """The value of a key in our recipe, for the task or for all; a number where it can
    be one, because YAML 1.1 reads 4e-3 as a text."""
    file = _recipe_file(row, model)
    by_task = (file.get("by_task") or {}).get(key, {})
    value = by_task.get(task, file.get(key))
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def recipe_tables(number: int) -> list[Table]:
    """Table 8 (VeRA on GLUE), 9 (instruction tuning), 10 (E2E) or 11 (images): a line
    for each hyperparameter, whose last column says whether the paper prints the same.
    Rank and rates have lines if the paper prints them."""
    settings = recipes()["tables"][number]
    tables = list[Table]()
    for about, columns in _columns_by_title(settings).items():
        rows = list[list[Entry]]()
        for key, label in settings["keys"].items():
            if row := _recipe_row(settings["of"], key, [*columns.values()]):
                rows.append([label, *row])
        title = f"Table {number}{about}, from conf/recipe"
        header = ["hyperparameter", *columns, "paper"]
        notes = [settings["note"], *_own_choices([*columns.values()])]
        tables.append(Table(title, header, rows, notes))
    return tables


def _recipe_row(
    group: str, key: str, columns: list[tuple[str, str, str]]
) -> list[Entry]:
    """Our values of a key, a column each, and whether the paper prints the same; empty
    for a rank or a rate that it prints for no column, because these rows may have none
    (full fine-tuning has no rank). columns: model, row and task of each."""
    own_values = [_own_value(*column, key) for column in columns]
    printed_values = [_printed(group, *column, key) for column in columns]
    pairs = [
        (own, printed)
        for own, printed in zip(own_values, printed_values, strict=True)
        if printed is not None
    ]
    if not pairs and key in ("rank", "lr", "lr_head"):
        return []
    status = "as printed" if pairs else "not printed"
    if any(own != printed for own, printed in pairs):
        status = f"DIFFERS: {', '.join(str(printed) for _, printed in pairs)}"
    return [*map(_value_text, own_values), status]


def _value_text(value: object) -> str:
    """A value as a table of recipes writes it; "-" for None."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _own_choices(columns: list[tuple[str, str, str]]) -> list[str]:
    """Notes on the values of these recipes that this project chose, each once. columns:
    model, row and task of each."""
    notes = dict[str, None]()
    for model, row, _ in columns:
        for key, reason in (_recipe_file(row, model).get("chosen") or {}).items():
            notes[f"this project's choice: {key}: {reason}"] = None
    return [*notes]
