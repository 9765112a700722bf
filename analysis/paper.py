"""What the VeRA paper prints (analysis/paper/*.yaml), and what its rows, tasks and models are called here."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

GLUE = {"sst2": "SST-2", "mrpc": "MRPC", "cola": "CoLA", "qnli": "QNLI", "rte": "RTE", "stsb": "STS-B"}
IMAGES = {"cifar100": "CIFAR-100", "food101": "Food-101", "flowers102": "Flowers-102", "resisc45": "RESISC45"}
#: The scores of texts, and their decimals as the paper prints them.
SCORES = {"bleu": ("BLEU", 1), "nist": ("NIST", 2), "meteor": ("METEOR", 1), "rouge_l": ("ROUGE-L", 1), "cider": ("CIDEr", 2)}
BENCHES = {"mt_bench": "MT-Bench", "vicuna_bench": "Vicuna-bench"}
LLAMAS = {"llama_7b": "Llama 7B", "llama_13b": "Llama 13B", "llama2_7b": "Llama 2 7B", "llama2_13b": "Llama 2 13B"}
NAMES = {"full": "full", "bitfit": "BitFit", "lora": "LoRA", "vera": "VeRA", "head": "head", "lora_fa": "LoRA-FA"}
NAMES |= {"adapter_drop": "Adapter D", "adapter_p": "Adapter P", "adapter_h": "Adapter H", "adapter_l": "Adapter L"}
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
SETTINGS: dict[Any, str] = {"vera": "vera", "only_d": "vera_only_d", "only_b": "vera_only_b", "kaiming_uniform": "vera"}
SETTINGS |= {"kaiming_normal": "vera_kaiming_normal", "uniform_0_0.1": "vera_uniform"}
SETTINGS |= {0.1: "vera", 1e-7: "vera_d_init_1e-7", 1.0: "vera_d_init_1", "shared": "vera", "unique": "vera_unique"}
#: Rows that the paper itself took from earlier work and prints no hyperparameters for.
QUOTED = {
    "table2": {"full", "bitfit", "adapter_drop_300k", "adapter_drop_900k", "lora_fa"},
    "table3": {"full", "adapter_l_370k", "adapter_l_880k", "adapter_l_11m", "adapter_l_23m", "adapter_h_11m"},
    "table4": {"none"},
}
QUOTED["table3"] |= {"dylora", "adalora"}


@cache
def paper() -> dict[str, Any]:
    """The numbers that the paper prints."""
    found: dict[str, Any] = yaml.safe_load((Path(__file__).with_suffix("") / "tables.yaml").read_text())
    return found


@cache
def recipes() -> dict[str, Any]:
    """The hyperparameters that the papers print."""
    found: dict[str, Any] = yaml.safe_load((Path(__file__).with_suffix("") / "recipes.yaml").read_text())
    return found


def split(printed: Any) -> tuple[float, float | None]:
    """A printed number, [x, s] or x, and its spread."""
    return (float(printed[0]), float(printed[1])) if isinstance(printed, list) else (float(printed), None)
