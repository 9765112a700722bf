"""The model card of a run's adapter, written from its record: what it is, how well it does, how it was
made."""

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from runs.evaluate import kept_result
from runs.models import Origin
from runs.record import (
    FINISHED,
    Ledger,
    Metric,
    Record,
    cell_id,
    interval_name,
    median_interval,
    one_each,
    row_label,
    seed_value,
    text_score,
    without_paths,
)
from runs.record.text import one_line
from runs.run import overrides_of
from runs.sources import is_committed

#: By modality: the hub's name of the task, and peft's and transformers' classes that load such a model.
KINDS = {
    "text": ("text-classification", "AutoPeftModelForSequenceClassification", "AutoTokenizer"),
    "text generation": ("text-generation", "AutoPeftModelForCausalLM", "AutoTokenizer"),
    "image": ("image-classification", "AutoPeftModel", "AutoImageProcessor"),
}
#: The hub's names of metrics, where they are others.
METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "nist": "nist_mt",
    "rouge_l": "rouge",
}
TEXT_SCORES = ("bleu", "nist", "meteor", "rouge_l", "cider")


def seeds_of(record: Record, records: Iterable[Record]) -> dict[int, Record]:
    """A run and the others of its cell, one for each seed."""
    cell = cell_id(record), record["cell"]["row"]
    same = [r for r in records if r["status"] in FINISHED and (cell_id(r), r["cell"]["row"]) == cell]
    return one_each(r for r in same if r["id"] != record["id"]) | {record["cell"]["seed"]: record}


def numbers(record: Record, seeds: Mapping[int, Record]) -> list[dict[str, Any]]:
    """The metric of a run and the scores of its texts, beside those of its cell's other seeds (`seeds_of`):
    name, median, how many seeds, the title in the model-index (which has no field for seeds and an interval),
    and the cells of the card's table. Without those that this run lacks, or that are not finite."""
    metric, own, found = Metric.of_record(record), record["cell"]["seed"], list[dict[str, Any]]()
    for name in (metric.name, *TEXT_SCORES):
        of_texts = name in TEXT_SCORES
        every = {seed: text_score(r, name) if of_texts else seed_value(r) for seed, r in seeds.items()}
        values = {seed: value for seed, value in every.items() if value is not None}
        if own not in values or not all(map(math.isfinite, values.values())):
            continue
        text = "{:.2f}".format if of_texts else metric.text
        mine = values[own] if of_texts else kept_result(record, best=False)
        middle, ends = median(values.values()), median_interval([*values.values()]) or ()
        interval = f"{interval_name([len(values)])}: {' to '.join(f'{end:g}' for end in ends)}"
        title = f"{name}, {f'median of {len(values)} seeds ({interval})' if ends else 'one seed'}"
        cells = [text(mine), text(middle), " to ".join(map(text, ends)) or "-", str(len(values))]
        found.append({"name": name, "median": middle, "seeds": len(values), "title": title, "cells": cells})
    return found


def card(
    record: Record,
    ledger: Ledger,
    name: str,
    origin: Origin | None,
    licence: str | None,
    loads: Mapping[str, Any],
    converted: str = "",
) -> str:
    """The card of an adapter to be called `name`, by the template card.md. ledger: with the other seeds of
    its cell, of which the card says who ran them. loads: the settings that load its base model as the run had
    it. converted: what a conversion to LoRA lost, in words; the numbers of the seeds are then of the adapters
    before it, and none of this one's."""
    record = without_paths(record)
    seeds, config = seeds_of(record, ledger), record["config"]
    method = {key: config["method"].get(key) for key in ("rank", "alpha", "sites", "projection_seed")}
    # The data set on the hub, and the commit that was read; of a local copy no commit
    data, (read, _, commit) = config["task"].get("hub"), record["data"]["content"].partition("@")
    gaps = {"record": record, "config": config, "origin": origin, "licence": licence, "converted": converted}
    gaps |= dict(zip(("kind", "auto", "reader"), KINDS[config["model"]["modality"]], strict=True))
    gaps |= {
        "name": name,
        "quoted": repr(name),
        "data": data,
        "commit": commit.partition(" ")[0] if data == read else None,
        "method": row_label(config),
        "settings": ", ".join(f"{key} {json.dumps(of)}" for key, of in method.items() if of is not None),
        "metric": Metric.of_record(record),
        "numbers": (own := numbers(record, seeds)),
        "names": METRICS,
        "interval": interval_name(of["seeds"] for of in own),
        "origins": [ledger.origin.get(run["id"], "ours") for run in seeds.values()],
        "loads": ", ".join([repr(name), *(f"{key}={value!r}" for key, value in loads.items())]),
        "committed": is_committed(record),
        "command": shlex.join(overrides_of(record)),
    }
    return _template().render(gaps)


def _template() -> jinja2.Template:
    """card.md. Each gap becomes one line that begins no HTML, so that no label or other text of a record
    forges a heading; what is marked as safe stays as it is."""

    def safe(value: object) -> object:
        return value if hasattr(value, "__html__") else one_line(str(value)).replace("<", "&lt;")

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        finalize=safe,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md")
