"""The model card of a run's adapter, written from its record: what it is, how well it does, how it was
made."""

import json
import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from runs.evaluate import kept_result
from runs.models import Origin
from runs.overrides import overrides_of
from runs.record import (
    FINISHED,
    INTERVAL_SEEDS,
    LEVEL,
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
    """A metric of the run and of its cell. own: of the adapter that is exported; None where it is not known.
    values: of each seed that has it, by seed. form: a number as tables print it."""

    name: str
    own: float | None
    values: dict[int, float]
    form: Callable[[float], str] = "{:.2f}".format

    @property
    def median(self) -> float:
        return statistics.median(self.values.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """`between`; None for a single seed."""
        return median_interval(list(self.values.values()))

    @property
    def between(self) -> str:
        """What the ends are of."""
        return "their range" if 1 < len(self.values) < INTERVAL_SEEDS else f"{LEVEL:.0%} interval"

    def text(self, value: float | None) -> str:
        """A value as a table prints it."""
        return "-" if value is None else self.form(value)


def seeds_of(record: Record, records: Iterable[Record]) -> dict[int, Record]:
    """A run and the others of its cell, one for each seed."""
    cell = cell_id(record), record["cell"]["row"]
    same = [r for r in records if r["status"] in FINISHED and (cell_id(r), r["cell"]["row"]) == cell]
    seeds = {r["cell"]["seed"]: r for r in one_each([r for r in same if r["id"] != record["id"]])[0]}
    return seeds | {record["cell"]["seed"]: record}


def numbers(record: Record, seeds: Mapping[int, Record]) -> list[Number]:
    """The numbers of a run beside those of the other seeds of its cell (`seeds_of`): its metric, and the
    scores of its texts. Without those that a seed lacks, or that are infinite."""
    values = {seed: seed_value(r) for seed, r in seeds.items()}
    metric = Metric.of_record(record)
    columns = [Number(metric.name, kept_result(record, best=False), values, metric.text)]
    for key in TEXT_SCORES:
        scores = {seed: text_score(r, key) for seed, r in seeds.items()}
        known = {seed: score for seed, score in scores.items() if score is not None}
        if known:
            columns.append(Number(key, scores[record["cell"]["seed"]], known))
    return [c for c in columns if all(map(math.isfinite, c.values.values()))]


def metadata(
    record: Record, name: str, origin: Origin | None, licence: str | None, own: list[Number], tags: list[str]
) -> Any:
    """The card's metadata (huggingface_hub.ModelCardData). own: the numbers of its model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    task, kind = record["config"]["task"], KINDS[record["config"]["model"]["modality"]][0]
    data, commit = _data(record)
    # On the hub, where it is known
    split = "validation" if task.get("family") == "glue" else None
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=data or task["name"],
            dataset_name=record["label"]["task"],
            dataset_config=task["name"] if task.get("family") == "glue" else None,
            dataset_split=record["texts"]["split"] if number.name in TEXT_SCORES else split,
            dataset_revision=commit,
            metric_type=METRICS.get(number.name, number.name),
            metric_name=_metric_name(number),
            metric_value=round(number.median, 6),
            metric_args={"seeds": sorted(number.values), number.between.split()[-1]: _ends(number)},
        )
        for number in own
    ]
    return ModelCardData(
        model_name=name.rpartition("/")[2],
        base_model=origin.name if origin else None,
        base_model_relation="adapter" if origin else None,
        library_name="peft",
        pipeline_tag=kind,
        license=licence,
        datasets=[data] if data else None,
        tags=[*tags, "vera-bench"],
        eval_results=results or None,
    )


def card(
    record: Record,
    ledger: Ledger,
    name: str,
    origin: Origin | None,
    licence: str | None,
    loads: Mapping[str, Any],
    converted: str = "",
) -> Any:
    """The card (huggingface_hub.ModelCard) of an adapter to be called `name`, by the template card.md.
    ledger: with the other seeds of its cell, of which the card says who ran them. loads: the settings that
    load its base model as the run had it. converted: what a conversion to LoRA lost, in words; the numbers of
    the seeds are then of the adapters before it, and none of this one's."""
    from huggingface_hub import ModelCard

    record = without_paths(record)
    seeds, config = seeds_of(record, ledger), record["config"]
    own, (data, commit) = numbers(record, seeds), _data(record)
    _, auto, reader = KINDS[config["model"]["modality"]]
    shown, tags = ([], ["lora"]) if converted else (own, [])
    method = {key: config["method"].get(key) for key in ("rank", "alpha", "sites", "projection_seed")}
    versions = {key: record["versions"].get(key) for key in ("torch", "transformers", "peft")}
    gaps = {
        "header": metadata(record, name, origin, licence, shown, [*tags, config["method"]["kind"]]).to_yaml(),
        "title": name.rpartition("/")[2],
        "method": row_label(config),
        "settings": ", ".join(f"{key} {json.dumps(of)}" for key, of in method.items() if of is not None),
        "metric": Metric.of_record(record),
        "numbers": own,
        "interval": interval_name(len(number.values) for number in own),
        "origins": [ledger.origin.get(run["id"], "ours") for run in seeds.values()],
        "loads": ", ".join([repr(name), *(f"{key}={value!r}" for key, value in loads.items())]),
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items() if value),
        "committed": is_committed(record),
        "command": shlex.join(overrides_of(record)),
    }
    more = {"origin": origin, "licence": licence, "converted": converted, "auto": auto, "reader": reader}
    gaps |= more | {"record": record, "config": config, "data": data, "commit": commit, "name": repr(name)}
    return ModelCard(_template().render(gaps))


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


def _metric_name(number: Number) -> str:
    """As "accuracy, median of 5 seeds, 95% interval 0.84 to 0.86", and below 5 seeds "their range": the
    model-index has no field for it."""
    seeds, ends = len(number.values), _ends(number)
    if ends is None:
        return f"{number.name}, one seed"
    return f"{number.name}, median of {seeds} seeds, {number.between} {ends[0]:g} to {ends[1]:g}"


def _ends(number: Number) -> list[float] | None:
    return [round(end, 6) for end in number.interval] if number.interval else None


def _data(record: Record) -> tuple[str | None, str | None]:
    """The data set's name on the hub, and the commit that was read; of a local copy no commit."""
    hub, (name, _, commit) = record["config"]["task"].get("hub"), record["data"]["content"].partition("@")
    return hub, commit.partition(" ")[0] or None if hub == name else None
