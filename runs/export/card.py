"""The model card of a run's adapter, written from its record: what it is, how well it does, how it was
made."""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Number:
    """A metric of the run and of its cell. own: of the adapter that is exported. values: of each seed that
    has it, by seed. text: a number as tables print it."""

    name: str
    own: float
    values: dict[int, float]
    text: Callable[[float], str] = "{:.2f}".format

    @property
    def median(self) -> float:
        return median(self.values.values())

    @property
    def ends(self) -> list[float]:
        """Of the interval of the median; none of a single seed."""
        return [*(median_interval([*self.values.values()]) or [])]

    @property
    def title(self) -> str:
        """As the model-index names it, which has no field for seeds and an interval."""
        seeds, ends = len(self.values), " to ".join(f"{end:g}" for end in self.ends)
        interval = f"median of {seeds} seeds ({interval_name([seeds])}: {ends})" if ends else "one seed"
        return f"{self.name}, {interval}"


def seeds_of(record: Record, records: Iterable[Record]) -> dict[int, Record]:
    """A run and the others of its cell, one for each seed."""
    cell = cell_id(record), record["cell"]["row"]
    same = [r for r in records if r["status"] in FINISHED and (cell_id(r), r["cell"]["row"]) == cell]
    return one_each(r for r in same if r["id"] != record["id"]) | {record["cell"]["seed"]: record}


def numbers(record: Record, seeds: Mapping[int, Record]) -> list[Number]:
    """The numbers of a run beside those of the other seeds of its cell (`seeds_of`): its metric, and the
    scores of its texts. Without those that a seed lacks, or that are infinite."""
    metric, own = Metric.of_record(record), record["cell"]["seed"]
    values = {seed: seed_value(r) for seed, r in seeds.items()}
    columns = [Number(metric.name, kept_result(record, best=False), values, metric.text)]
    for key in TEXT_SCORES:
        scores = {seed: text_score(r, key) for seed, r in seeds.items()}
        known = {seed: score for seed, score in scores.items() if score is not None}
        columns += [Number(key, known[own], known)] if own in known else []
    return [c for c in columns if all(map(math.isfinite, c.values.values()))]


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
        "interval": interval_name(len(number.values) for number in own),
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
