"""The model card of a run's adapter, written from its record: what it is, how well it does, how it was
made."""

import json
import math
import shlex
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runs.errors import UserError
from runs.evaluate import kept_result, overrides_of
from runs.models import Origin
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
    values: of each seed that has it, by seed."""

    name: str
    own: float | None
    values: dict[int, float]

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
    columns = [Number(record["result"]["metric"], kept_result(record, best=False), values)]
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
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=data or task["name"],
            dataset_name=record["label"]["task"],
            dataset_config=task["name"] if task.get("family") == "glue" else None,
            dataset_split=_split(record, number),
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
    """The card (huggingface_hub.ModelCard) of an adapter that is to be called `name`. ledger: with the other
    seeds of its cell, of which the card says who ran them. loads: the settings that load its base model as
    the run had it. converted: what a conversion to LoRA lost, in words; the numbers of the seeds are then of
    the adapters before it, and none of this one's."""
    from huggingface_hub import ModelCard

    record = without_paths(record)
    seeds = seeds_of(record, ledger)
    own = numbers(record, seeds)
    base = origin.name if origin else "a local model"
    seed, kind = f" (seed {record['cell']['seed']})", record["config"]["method"]["kind"]
    what = f"{row_label(record['config'])} on {record['label']['task']}"
    what = f"a LoRA converted from {what}" if converted else what
    parts = [
        f"# {name.rpartition('/')[2]}",
        _safe(f"An adapter of {base} in peft's format: {what}, trained with vera-bench."),
        _safe(f"Note on the base model: {origin.note}.") if origin and origin.note else "",
        converted,
        "## Results",
        _results(record, own, f"before conversion{seed}" if converted else f"this adapter{seed}"),
        _whose(seeds, ledger),
        "## Use",
        _use(record, name, loads),
        "## How it was made",
        _making(record, origin, licence),
    ]
    shown, tags = ([], ["lora", kind]) if converted else (own, [kind])
    header = metadata(record, name, origin, licence, shown, tags).to_yaml()
    return ModelCard(f"---\n{header}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n")


def _safe(text: str) -> str:
    """A label or another text of a record as Markdown: one line, which begins no HTML."""
    return one_line(text).replace("<", "&lt;")


def _split(record: Record, number: Number) -> str | None:
    """The split on the hub that a number is of, where it is known."""
    if number.name in TEXT_SCORES:
        return str(record["texts"]["split"])
    return "validation" if record["config"]["task"].get("family") == "glue" else None


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


def _results(record: Record, own: list[Number], title: str) -> str:
    """A table of the numbers as tables print them, and what they are of. title: of the run's own column."""
    metric, name = Metric.of_record(record), interval_name(len(number.values) for number in own)
    few = name.startswith("range")
    lines = [
        f"| | {title} | median | {name if few else f'{name} interval'} | seeds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for number in own:
        text = metric.text if number.name == metric.name else "{:.2f}".format
        ends = " to ".join(map(text, number.interval)) if number.interval else "-"
        mine = "-" if number.own is None else text(number.own)
        name, median = _safe(number.name), text(number.median)
        lines.append(f"| {name} | {mine} | {median} | {ends} | {len(number.values)} |")
    data, reported = record["data"], record["result"]["reported"]
    rows = f"{data['train_rows']:,} training rows, {data['dev_rows']:,} dev rows."
    scale = f" {_safe(metric.name)} x {metric.scale:g}." if metric.scale != 1 else ""
    texts = " Scores of texts are those of the last epoch." if len(own) > 1 else ""
    table = "\n".join(lines) if own else "A seed ended without a number."
    ends = "range that of the same numbers" if few else "interval a bootstrap of it"
    of = f"The median is over each seed's {reported} epoch on dev, the {ends}."
    return f"{table}\n\n{rows} {of}{scale}{texts}"


def _whose(seeds: Mapping[int, Record], ledger: Ledger) -> str:
    """A sentence on the seeds that are not of this machine, but of the project's published records."""
    published = [run["id"] for run in seeds.values() if ledger.origin.get(run["id"], "ours") != "ours"]
    if not published:
        return ""
    studies = ", ".join(sorted({f"runs/records/{ledger.origin[run]}" for run in published}))
    are = "is a run" if len(published) == 1 else "are runs"
    return f"{len(published)} of the {len(seeds)} seeds {are} that vera-bench has published in {studies}."


def _use(record: Record, name: str, loads: Mapping[str, Any]) -> str:
    _, auto, reader = KINDS[record["config"]["model"]["modality"]]
    given = "".join(f", {key}={value!r}" for key, value in loads.items())
    four_bit = record["config"]["model"].get("quantise")
    note = "\n\nIt was trained over base weights in 4 bit (NF4, double quantisation)." if four_bit else ""
    return (
        f"```python\nfrom peft import {auto}\nfrom transformers import {reader}\n\n"
        f"model = {auto}.from_pretrained({name!r}{given}).eval()\n"
        f"{'processor' if 'Image' in reader else 'tokenizer'} = {reader}.from_pretrained({name!r})\n```{note}"
    )


def _making(record: Record, origin: Origin | None, licence: str | None) -> str:
    """The parameters, settings, command and code of the run, its deviations and the licence."""
    count, config, code = record["parameters"], record["config"], record["code"]
    total = f"; the model has {count['total']:,}" if count.get("total") else ""
    method = {key: config["method"].get(key) for key in ("rank", "alpha", "sites", "projection_seed")}
    settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in method.items() if value is not None)
    rate = config["train"].get("lr_head")
    head = f" (head {rate:g})" if count["head"] and rate is not None else ""
    dirty = "" if is_committed(record) else " with code that is not in it"
    recipe = record["recipe"].get("source")
    model = f"{origin.name} at {origin.revision}" if origin and origin.revision else ""
    data, commit = _data(record)
    where = f" at {commit}" if commit else ", a local copy"
    as_base = ", as the base model" if origin and origin.licence == licence else ""
    facts = [
        f"Trained parameters: {count['adapter']:,} in the adapter, {count['head']:,} in the head{total}.",
        f"Method: {row_label(config)}" + (f" ({settings})." if settings else "."),
        f"Base model: {model}." if model else "",
        f"Data: {data}, {config['task']['name']}{where}." if data else "",
        f"Training: {record['steps']:,} steps of {record['effective_batch']} rows, seed {config['seed']},"
        f" learning rate {config['train']['lr']:g}{head}.",
        f"Recipe: {recipe}." if recipe else "",
        f"Code: vera-bench at commit {code['commit']}{dirty}." if code["commit"] else "",
        f"Run: {record['id']} on {record['device']['name']}; {_versions(record)}.",
        *(f"Deviation: {deviation}." for deviation in record["deviations"]),
        f"Licence: {licence}{as_base}." if licence else "",
    ]
    return "\n".join(f"- {_safe(fact)}" for fact in facts if fact) + _command(record)


def _command(record: Record) -> str:
    """The command that makes the run; nothing where no words do any more, or files of its own are gone."""
    try:
        return f"\n\n```sh\npython -m runs {shlex.join(overrides_of(record))}\n```"
    except UserError:
        return ""


def _versions(record: Record) -> str:
    versions = {key: record["versions"].get(key) for key in ("torch", "transformers", "peft")}
    return ", ".join(f"{key} {value}" for key, value in versions.items() if value)
