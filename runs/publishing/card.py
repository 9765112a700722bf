"""The model card of an adapter, from its record: what it is, how well it does, and how
it was made. card.md is its template."""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from runs import models
from runs.evaluate import kept_score
from runs.record.cell import (
    ReportedMetric,
    cell_id,
    row_label,
    score_of_record,
    text_score,
)
from runs.record.intervals import interval_name, median_interval
from runs.record.ledger import Ledger
from runs.record.redaction import without_paths
from runs.record.schema import FINISHED, TEXT_SCORES, Record
from runs.record.templates import template_environment
from runs.record.text import one_line
from runs.run.definition import overrides_of
from runs.run.provenance import is_committed


@dataclass(frozen=True)
class CardOptions:
    """What a card says in addition to its record.

    Attributes:
        name: what the adapter is to be called.
        origin: its base model on the hub, where that is known.
        licence: as the hub abbreviates it, where one is known.
        loading: the arguments of from_pretrained that load its base model as the run had
            it.
        conversion_note: what a conversion to LoRA lost, in words; the numbers are then
            those of the adapters before.
    """

    name: str
    origin: models.Origin | None = None
    licence: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    conversion_note: str = ""


@dataclass(frozen=True)
class CardScore:
    """A score of a run, with the scores of its cell's other seeds.

    Attributes:
        name: of the metric, or of the score of the run's texts.
        median: over the seeds.
        seeds: how many there are.
        title: the name in the model-index, with the number of seeds and the interval,
            for which it has no fields.
        cells: its row of the card's table: this run's score, the median, the interval,
            the number of seeds.
    """

    name: str
    median: float
    seeds: int
    title: str
    cells: list[str]


def runs_by_seed(record: Record, records: Iterable[Record]) -> dict[int, Record]:
    """The finished runs of a run's cell, one for each seed, by their seeds; for its own
    seed the run itself. Of several runs of another seed it is the one with the fewest
    deviations, and of these the one whose id sorts first."""
    # a cell's id leaves the row's name out, and two rows may train alike
    cell = cell_id(record), record["cell"]["row"]
    runs_of_cell = []
    for other_record in records:
        other_cell = cell_id(other_record), other_record["cell"]["row"]
        if other_record["status"] in FINISHED and other_cell == cell:
            runs_of_cell.append(other_record)
    # the best one of a seed last: it replaces the others in the dict below
    runs_of_cell.sort(key=lambda run: (len(run["deviations"]), run["id"]), reverse=True)
    runs_of_cell.append(record)
    return {run["cell"]["seed"]: run for run in runs_of_cell}


def card_scores(record: Record, cell_runs: Mapping[int, Record]) -> list[CardScore]:
    """The metric of a run and the scores of its texts; without those that this run
    lacks, or that are not finite.

    Args:
        cell_runs: the runs of its cell (`runs_by_seed`).
    """
    scores = []
    for name in (ReportedMetric.of_record(record).name, *TEXT_SCORES):
        score = _card_score(name, record, cell_runs)
        if score is not None:
            scores.append(score)
    return scores


def _card_score(
    name: str, record: Record, cell_runs: Mapping[int, Record]
) -> CardScore | None:
    """The score of this name; None where the run lacks it, or where that of one of the
    cell's runs is not finite."""
    is_text_score = name in TEXT_SCORES
    scores = dict[int, float]()
    for seed, run in cell_runs.items():
        score = text_score(run, name) if is_text_score else score_of_record(run)
        if score is not None:
            scores[seed] = score
    own_seed = record["cell"]["seed"]
    if own_seed not in scores or not all(map(math.isfinite, scores.values())):
        return None
    format_score: Callable[[float], str] = "{:.2f}".format
    own_score = scores[own_seed]
    if not is_text_score:
        format_score = ReportedMetric.of_record(record).text
        # of the epoch whose adapter is published (of two kept ones the last epoch's),
        # where tables may report another one
        own_score = kept_score(record, best=False)
    count = len(scores)
    median_score = median(scores.values())
    ends = median_interval([*scores.values()])
    title = f"{name}, one seed"
    interval = "-"
    if ends:  # there are two seeds or more
        interval = " to ".join(map(format_score, ends))
        plain_interval = " to ".join(f"{end:g}" for end in ends)
        title = (
            f"{name}, median of {count} seeds "
            f"({interval_name([count])}: {plain_interval})"
        )
    cells = [format_score(own_score), format_score(median_score), interval, str(count)]
    return CardScore(name, median_score, count, title, cells)


def model_card(record: Record, ledger: Ledger, options: CardOptions) -> str:
    """The card of an adapter, by the template card.md.

    Args:
        ledger: all records, among them the other seeds of its cell; the card says who
            ran them.
    """
    record = without_paths(record)
    config = record["config"]
    cell_runs = runs_by_seed(record, ledger)
    scores = card_scores(record, cell_runs)
    values: dict[str, object] = {
        "record": record,
        "config": config,
        "origin": options.origin,
        "licence": options.licence,
        "converted": options.conversion_note,
    }
    values |= {
        "name": options.name,
        "quoted": repr(options.name),
        "method": row_label(config),
        "settings": _method_settings(config["method"]),
    }
    values |= {
        "metric": ReportedMetric.of_record(record),
        "numbers": scores,
        "interval": interval_name(score.seeds for score in scores),
        "origins": [ledger.origin.get(run["id"], "ours") for run in cell_runs.values()],
    }
    arguments = [repr(options.name)]
    arguments += [f"{key}={value!r}" for key, value in options.loading.items()]
    values |= {
        "loads": ", ".join(arguments),
        "committed": is_committed(record),
        "command": shlex.join(overrides_of(record)),
    }
    templates = template_environment(Path(__file__).parent).overlay(
        finalize=_escaped, undefined=jinja2.ChainableUndefined, lstrip_blocks=False
    )
    return templates.get_template("card.md").render(values)


def _method_settings(method: Mapping[str, Any]) -> str:
    """The method's most important settings, in words."""
    parts = []
    for key in ("rank", "alpha", "sites", "projection_seed"):
        value = method.get(key)
        if value is not None:
            parts.append(f"{key} {json.dumps(value)}")
    return ", ".join(parts)


def _escaped(value: object) -> object:
    """A value as one line without HTML, so that no text of a record forges a heading.
    What a template marks as safe stays as it is."""
    # jinja's Markup, which its filter `safe` returns
    if hasattr(value, "__html__"):
        return value
    return one_line(str(value)).replace("<", "&lt;")
