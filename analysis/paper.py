"""What the VeRA paper prints (analysis/printed/*.yaml), and what its rows, tasks and models are called
here."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

#: Tasks in the order of table 2, which printed/tables.yaml has, too.
GLUE = {"sst2": "SST-2", "mrpc": "MRPC", "cola": "CoLA", "qnli": "QNLI", "rte": "RTE", "stsb": "STS-B"}
IMAGES = {"cifar100": "CIFAR-100", "food101": "Food-101", "flowers102": "Flowers-102", "resisc45": "RESISC45"}
#: The scores of texts, and their decimals as the paper prints them.
SCORES = {
    "bleu": ("BLEU", 1),
    "nist": ("NIST", 2),
    "meteor": ("METEOR", 1),
    "rouge_l": ("ROUGE-L", 1),
    "cider": ("CIDEr", 2),
}
BENCHES = {"mt_bench": "MT-Bench", "vicuna_bench": "Vicuna-bench"}
LLAMAS = {
    "llama_7b": "Llama 7B",
    "llama_13b": "Llama 13B",
    "llama2_7b": "Llama 2 7B",
    "llama2_13b": "Llama 2 13B",
}
NAMES = {
    "full": "full",
    "bitfit": "BitFit",
    "lora": "LoRA",
    "vera": "VeRA",
    "head": "head",
    "lora_fa": "LoRA-FA",
}
NAMES |= {
    "adapter_drop": "Adapter D",
    "adapter_p": "Adapter P",
    "adapter_h": "Adapter H",
    "adapter_l": "Adapter L",
}
NAMES |= {"dylora": "DyLoRA", "adalora": "AdaLoRA"}
#: The paper's row, by its name and printed size, where this project's row has another name.
ROWS = {
    ("adapter_drop", "0.3M"): "adapter_drop_300k",
    ("adapter_drop", "0.9M"): "adapter_drop_900k",
    ("adapter_p", "3M"): "adapter_p_3m",
    ("adapter_p", "0.8M"): "adapter_p_800k",
    ("adapter_h", "6M"): "adapter_h_6m",
    ("adapter_h", "0.8M"): "adapter_h_800k",
    ("adapter_l", "0.37M"): "adapter_l_370k",
    ("adapter_l", "11.09M"): "adapter_l_11m",
    ("adapter_h", "11.09M"): "adapter_h_11m",
    ("adapter_l", "0.88M"): "adapter_l_880k",
    ("adapter_l", "23.00M"): "adapter_l_23m",
}
#: Cells of the paper that started from an adapter trained on MNLI: not like for like with a run that did not.
FROM_MNLI = {("roberta_base", "lora"): ("mrpc", "rte", "stsb")}
#: The rows of conf/method that tables 6, 7, 12 and 13 are of.
SETTINGS = {"vera": "vera", "only_d": "vera_only_d", "only_b": "vera_only_b", "kaiming_uniform": "vera"}
SETTINGS |= {"kaiming_normal": "vera_kaiming_normal", "uniform_0_0.1": "vera_uniform"}
SETTINGS |= {
    "0.1": "vera",
    "1e-07": "vera_d_init_1e-7",
    "1.0": "vera_d_init_1",
    "shared": "vera",
    "unique": "vera_unique",
}
AT_RANK = {"table12": {"vera": "vera_r64"}, "table13": {"vera": "vera_r256"}}
#: Rows that the paper itself took from earlier work and prints no hyperparameters for.
QUOTED = {
    "table2": {"full", "bitfit", "adapter_drop_300k", "adapter_drop_900k", "lora_fa"},
    "table3": {"full", "adapter_l_370k", "adapter_l_880k", "adapter_l_11m", "adapter_l_23m", "adapter_h_11m"},
    "table4": {"none"},
}
QUOTED["table3"] |= {"dylora", "adalora"}


@cache
def paper() -> dict[str, Any]:
    """printed/tables.yaml as it is: also what is no number of a trained model (formulas, findings)."""
    found: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "printed" / "tables.yaml").read_text())
    return found


@cache
def recipes() -> dict[str, Any]:
    """The hyperparameters that the papers print."""
    found: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "printed" / "recipes.yaml").read_text())
    return found


@dataclass(frozen=True)
class Printed:
    """A number that the paper prints of a model that was trained, and what it belongs to.

    model, row, task: as in conf/; task is "" for a mean over tasks. part: which of table 6's three. method,
    size: how the paper calls the row, and its trained parameters as printed. column: as in
    printed/tables.yaml. spread: over seeds, as printed. quoted: whether the authors took the row from earlier
    work.
    """

    table: str
    part: str
    model: str
    row: str
    method: str
    size: str
    task: str
    column: str
    value: float
    spread: float | None
    quoted: bool


@cache
def numbers() -> tuple[Printed, ...]:
    """Every number of tables 2 to 7, 12 and 13, in their order."""
    return (
        *_by_model("table2"),
        *_by_model("table3"),
        *_table4(),
        *_by_model("table5"),
        *_ablations(),
        *_table12_and_13(),
    )


def printed_rows(table: str, model: str = "", part: str = "") -> list[tuple[Printed, ...]]:
    """A table's numbers by its rows, in its order; of one model, and of one part of table 6."""
    found = (n for n in numbers() if n.table == table and model in ("", n.model) and part in ("", n.part))
    rows: dict[tuple[str, str, str, str], list[Printed]] = defaultdict(list)
    for number in found:
        rows[number.part, number.model, number.method, number.size].append(number)
    return [tuple(row) for row in rows.values()]


def _by_model(table: str) -> Iterator[Printed]:
    """Tables 2, 3 and 5: a part for each model, a column for each task or score."""
    for name in (key for key in paper()[table] if key != "columns"):
        for method, size, *values in paper()[table][name]:
            row = ROWS.get((method, size), method)
            for column, value in zip(paper()[table]["columns"][2:], values, strict=True):
                task = "e2e" if table == "table3" else "" if column == "avg" else column
                of = (name.replace("-", "_"), row, NAMES[method], str(size), task, column)
                yield Printed(table, "", *of, *_split(value), row in QUOTED.get(table, ()))


def _table4() -> Iterator[Printed]:
    for name, row, size, score in paper()["table4"]["rows"]:
        of = (
            name.replace("-", "_"),
            row,
            "none" if row == "none" else NAMES[row],
            str(size),
            "alpaca",
            "score",
        )
        yield Printed("table4", "", *of, float(score), None, row in QUOTED["table4"])


def _ablations() -> Iterator[Printed]:
    parts = [
        ("table6", part, paper()["table6"][part]) for part in ("scaling_vectors", "matrix_init", "d_init")
    ]
    for table, part, rows in [*parts, ("table7", "", paper()["table7"]["rows"])]:
        for setting, *values in rows:
            for task, value in zip(paper()[table]["columns"][1:], values, strict=True):
                of = ("roberta_large", SETTINGS[str(setting)], str(setting), "", task, task)
                yield Printed(table, part, *of, *_split(value), False)


def _table12_and_13() -> Iterator[Printed]:
    for table in ("table12", "table13"):
        columns = paper()[table]["columns"]
        for cells in paper()[table]["rows"]:
            row = dict(zip(columns, cells, strict=True))
            method = str(row["method"])
            size = f"{row['params']} ({row['bytes']})" if table == "table13" else ""
            of = ("llama_7b", AT_RANK[table].get(method, method), NAMES[method], size, "alpaca")
            for column in (column for column in columns if column not in ("method", "params", "bytes")):
                yield Printed(table, "", *of, column, float(row[column]), None, False)


def _split(printed: Any) -> tuple[float, float | None]:
    """A printed number, [x, s] or x, and its spread."""
    return (float(printed[0]), float(printed[1])) if isinstance(printed, list) else (float(printed), None)
