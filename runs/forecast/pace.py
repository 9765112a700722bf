"""The time and the disk space that the runs of a plan still take: by finished runs, by a
probe, or by the FLOP a second of a card."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from runs.command.advice import require_known
from runs.forecast.probe import (
    SECONDS,
    STEPS,
    Rate,
    device_names,
    probed_rate,
    rate_file,
)
from runs.forecast.work import Outline, outline
from runs.models.load import computing_precision
from runs.record.folder import RecordFolder
from runs.record.ledger import in_conf
from runs.record.schema import Record
from runs.record.steps import StepPlan
from runs.record.text import duration, megabytes, plural, rounded
from runs.run.definition import UNLIKE_OTHERS, Run
from runs.run.methods import count_weights, skeleton_arguments

#: What a forecast says of the time of decoding that is in it.
DECODING = (
    "decoding: of the longest texts, bytes of weights over another such rate, "
    "without the host's time"
)
#: A rate is the median over so many finished runs of other cells.
RATED_RUNS = 3
#: And these took steps of at least this share of the run's FLOPs: a smaller step is
#: mostly overhead.
LEAST_SHARE = 1 / 20
#: Their model has at most so many times the weights of the run's, and at least that
#: share of them: the products of a small model use a smaller part of a processor.
SIZE_FACTOR = 4
#: They took at least as many steps as a probe: of fewer, the first takes most of the
#: time.
LEAST_STEPS = STEPS
#: A forecast looks at so many of the newest records for the pace of this machine.
PACE_RECORDS = 300

#: What runs share that differ in their seeds alone.
Variant = tuple[str, ...]


def variant_of(run: Run) -> Variant:
    """The variant of a run."""
    return (run.row, run.model, run.task, *run.overrides)


# --- FLOP a second


def rate_of(run: Run, done: Sequence[Record], card: str | None = None) -> Rate | None:
    """A run's FLOP a second: as conf/cards.yaml assumes it of a card. Without one this
    machine's: as a probe has measured it for the row, or as finished runs of other
    cells in the same precision had it. None where nothing says it. Raises UserError for
    a card that the file lacks.

    Args:
        done: Finished runs, the oldest first."""
    precision = computing_precision(run.config)
    if card:
        cards = in_conf("cards.yaml")
        rate = cards[require_known("card", card, cards)][precision]
        return Rate(rate, "a rate that conf/cards.yaml assumes: nobody measured it")
    probed = probed_rate(run)
    if probed:
        return probed
    weights = _weights_of(run)
    least_flops = LEAST_SHARE * outline(run).step_flops
    rates = list[float]()
    names = device_names(run)
    for record in reversed(done):
        if len(rates) < RATED_RUNS and record["device"]["name"] in names:
            rate = _rate_of_finished(record, precision, weights, least_flops)
            if rate:
                rates.append(rate)
    if not rates:
        return None
    runs = plural(len(rates), "finished run")
    return Rate(float(np.median(rates)), f"the rate of {runs} of other cells")


def _rate_of_finished(
    record: Record, precision: str, weights: int | None, least_flops: float
) -> float:
    """The FLOP a second of a finished run; 0 where they are not known, or it does not
    tell of others, as where its model has another size than these weights, or its steps
    take less than `least_flops`."""
    config = record["config"]
    cost = record["cost"]
    # A record may be from before a setting, or of a run that took no time
    with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
        if config["method"]["kind"] in UNLIKE_OTHERS or record["steps"] < LEAST_STEPS:
            return 0.0
        if computing_precision(config) != precision:
            return 0.0
        content = _content_of_finished(record)
        if not _are_of_like_size(weights, _weights_of_finished(content)):
            return 0.0
        work = _outline_of_finished(content)
        seconds = cost["train_seconds"] + cost["evaluate_seconds"]
        if work.step_flops >= least_flops:
            return float(work.flops / seconds)
    return 0.0


def _are_of_like_size(weights: int | None, finished: int | None) -> bool:
    """Whether the rate of a model with so many weights tells of another; not where one
    number is unknown."""
    if not weights or not finished:
        return False
    return 1 / SIZE_FACTOR <= weights / finished <= SIZE_FACTOR


def _weights_of(run: Run) -> int | None:
    """The weights of a run's model; None where its architecture is not known."""
    return count_weights(run) if skeleton_arguments(run) else None


def _content_of_finished(record: Record) -> str:
    """The row, model, task and configuration of a finished run, whatever its seeds, as
    JSON."""
    cell = record["cell"]
    any_seed = record["config"] | {"seed": 0, "data_seed": 0}
    return json.dumps([cell["row"], cell["model"], cell["task"], any_seed])


def _run_of_finished(content: str) -> Run:
    row, model, task, config = json.loads(content)
    return Run(row, model, task, 0, "", None, config)


@cache
def _outline_of_finished(content: str) -> Outline:
    """The outline of finished runs of this `_content_of_finished`. A plan asks for it
    once for each of its variants."""
    return outline(_run_of_finished(content))


@cache
def _weights_of_finished(content: str) -> int | None:
    """`_weights_of` finished runs, likewise; None for a model that has gone."""
    return _weights_of(_run_of_finished(content))


# --- runs that are left


@dataclass(frozen=True)
class Planned:
    """A run and its state (STATES in runs/plan.py). reason: of the state, in one line. progress: of one
    that has begun, the last event of its training (runs/training/loop.py), and its
    host."""

    run: Run
    state: str
    reason: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)


class Work(NamedTuple):
    """An amount of work."""

    steps: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    sampled: float = 0.0


@dataclass
class _Variants:
    """The variants of the runs that are left: a run of each, its finished runs, and of
    those without any the amount of work of a run, and this machine's rate."""

    runs: dict[Variant, Run]
    finished: dict[Variant, list[Record]]
    outlines: dict[Variant, Outline]
    rates: dict[Variant, Rate | None]


@dataclass
class _Total:
    """What runs take together. work: of those without a finished run like them.
    of_finished_cells: how many have one. seconds: of each run whose time is known.
    sources: where times are from."""

    work: list[Work] = field(default_factory=list)
    of_finished_cells: int = 0
    seconds: list[float] = field(default_factory=list)
    disk_bytes: float = 0.0
    sources: list[str] = field(default_factory=list)

    def add_source(self, source: str) -> None:
        """Names a source once."""
        if source not in self.sources:
            self.sources.append(source)


def estimate(
    left: Sequence[Planned],
    records: RecordFolder,
    card: str | None = None,
    after_probe: bool = False,
) -> str:
    """What these runs still take, in a line or more: by their own progress, from
    finished runs of their cells, or else FLOPs over a rate.

    Args:
        card: Of conf/cards.yaml, whose hours are wanted.
        after_probe: Whether a probe has just measured what it could."""
    recent = [] if card else records.newest(PACE_RECORDS)
    done = [record for record in reversed(recent) if record["status"] == "done"]
    variants = _variants_of(left, done, card)
    total = _Total()
    for planned in left:
        seconds = _add_run(planned, variants, total, card)
        if seconds is not None:
            total.seconds.append(seconds)
    lines = _lines_of_work(total, variants)
    lines += _lines_of_gaps(variants, card, after_probe)
    if total.seconds:
        lines.append(_line_of_time(total, variants, left, card))
    return "\n".join(lines)


def _variants_of(
    left: Sequence[Planned], done: Sequence[Record], card: str | None
) -> _Variants:
    runs = {variant_of(planned.run): planned.run for planned in left}
    finished = {variant: _finished_like(run, done) for variant, run in runs.items()}
    unknown = [variant for variant in runs if not finished[variant]]
    bar = tqdm(unknown, "counting FLOPs", leave=False, disable=None, delay=2)
    outlines = {variant: outline(runs[variant]) for variant in bar}
    rates = dict[Variant, Rate | None]()
    for variant, work in outlines.items():
        if work.flops:
            rates[variant] = rate_of(runs[variant], done, card)
    return _Variants(runs, finished, outlines, rates)


def _add_run(
    planned: Planned, variants: _Variants, total: _Total, card: str | None
) -> float | None:
    """Adds a run's disk space, or its work. Returns the seconds that it still takes,
    where they are known."""
    variant = variant_of(planned.run)
    seconds = None if card else planned.progress.get("seconds_left")
    finished = variants.finished[variant]
    if finished:
        total.of_finished_cells += 1
        total.disk_bytes += _bytes_kept(finished)
        return _as_finished(planned, finished) if seconds is None else seconds
    outline_of_run = variants.outlines[variant]
    if not outline_of_run.basis:
        return seconds
    work = _work_left(planned, outline_of_run)
    total.work.append(work)
    rate = variants.rates.get(variant)
    if seconds is not None or rate is None:
        return seconds
    total.add_source(f"FLOPs at {rate.source}")
    seconds = work.flops / rate.flops
    if card and outline_of_run.reads:
        total.add_source(DECODING)
        memory = in_conf("cards.yaml")[card]["memory"]
        seconds += outline_of_run.prompts / rate.flops
        seconds += outline_of_run.reads / memory
    return seconds


def _work_left(planned: Planned, outline_of_run: Outline) -> Work:
    done = planned.progress.get("step", 0) / max(outline_of_run.steps, 1)
    share = 1 - min(done, 1.0)
    return Work(
        share * outline_of_run.steps,
        share * outline_of_run.tokens,
        share * outline_of_run.flops,
        share * outline_of_run.sampled,
    )


def _bytes_kept(finished: Sequence[Record]) -> float:
    """What a run of a cell leaves on the disk: its adapter, and its head in float32."""
    sizes = [
        record["cost"]["adapter_bytes"] + 4 * record["parameters"]["head"]
        for record in finished
    ]
    return float(np.median(sizes))


def _lines_of_work(total: _Total, variants: _Variants) -> list[str]:
    """Steps, tokens and FLOPs, and how they are known."""
    if not total.work:
        return []
    work = Work(*np.sum(total.work, axis=0))  # field by field
    parts = [f"{work.steps:,.0f} steps"]
    if work.tokens:
        parts.append(f"{rounded(work.tokens)} tokens")
    if work.sampled:
        parts.append(f"at most {rounded(work.sampled)} sampled tokens")
    if work.flops:
        parts.append(f"{work.flops:.1e} FLOP".replace("e+", "e"))
    bases = list[str]()
    for outline_of_run in variants.outlines.values():
        if outline_of_run.basis:
            bases += outline_of_run.basis.split("; ")
    runs = plural(len(total.work), "run")
    lines = [
        f"forecast for {runs}: {', '.join(parts)}",
        f"  ({'; '.join(dict.fromkeys(bases))})",
    ]
    if total.of_finished_cells:
        runs = plural(total.of_finished_cells, "more run")
        lines.append(f"  and {runs}, timed by finished runs of the same cell")
    return lines


def _lines_of_gaps(
    variants: _Variants, card: str | None, after_probe: bool
) -> list[str]:
    """What is not known."""
    lines = list[str]()
    uncounted = [
        variants.runs[variant].row
        for variant, work in variants.outlines.items()
        if not work.flops
    ]
    if uncounted:
        rows = ", ".join(dict.fromkeys(uncounted))
        lines.append(
            f"FLOPs are not known of {rows}: its rows or lengths are not, or torch "
            "cannot count them"
        )
    unrated = {
        rate_file(variants.runs[variant])
        for variant, rate in variants.rates.items()
        if not rate
    }
    if unrated:
        advice = f"probe=true: about {SECONDS}s each"
        if after_probe:
            advice = "the probe left them out. card=H100 needs neither model nor data"
        rows = plural(len(unrated), "row")
        lines.append(f"no estimate of time: no rate of {rows} ({advice})")
    for variant in variants.rates:
        decodes = variants.runs[variant].config["task"].get("decode", "none") != "none"
        if decodes and not (card and variants.outlines[variant].reads):
            lines.append("the time of decoding is not in it: a finished run shows it")
            break
    return lines


def _line_of_time(
    total: _Total, variants: _Variants, left: Sequence[Planned], card: str | None
) -> str:
    device = card or device_names(left[0].run)[0]
    line = f"est. {duration(sum(total.seconds))} left on one {device}"
    if len(total.seconds) < len(left):
        line += f" for {len(total.seconds)} of the {len(left)} runs left"
    ids = set[str]()
    for finished in variants.finished.values():
        ids.update(record["id"] for record in finished)
    sources = [*total.sources]
    if ids:
        sources.insert(0, f"from {plural(len(ids), 'finished run')}")
    if sources:
        line += f" ({'; '.join(sources)})"
    if total.disk_bytes:
        line += f", {megabytes(total.disk_bytes)} on disk"
    return line


#: Settings of a task that decide the amount of work.
AMOUNTS = (
    "train_rows",
    "dev_rows",
    "holdout",
    "shots",
    "image_size",
    "items",
    "decode",
    "beams",
)


def _finished_like(run: Run, done: Sequence[Record]) -> list[Record]:
    """Finished runs of the same cell, with the same amount of work: those that trained
    to the end or, where none did, those that train.max_steps stopped. Of a few steps
    the first one takes most of the time."""
    task = run.config["task"]
    alike = list[Record]()
    weights: int | None = None
    for record in done:
        cell = record["cell"]
        config = record["config"]
        if (cell["row"], cell["model"], cell["task"]) != (
            run.row,
            run.model,
            task["name"],
        ):
            continue
        if config.get("reward") != run.config.get("reward"):
            continue
        # Models of several folders have one name: encoder
        weights = weights or _weights_of(run)
        weights_of_finished = _weights_of_finished(_content_of_finished(record))
        if weights and weights_of_finished and weights != weights_of_finished:
            continue
        if all(config["task"].get(key) == task.get(key) for key in AMOUNTS):
            alike.append(record)
    to_the_end = [r for r in alike if r["config"]["train"].get("max_steps") is None]
    return to_the_end or alike


def _as_finished(planned: Planned, finished: Sequence[Record]) -> float:
    """The seconds that a run has left if its steps are as fast as those of its cell's
    finished runs."""
    train = planned.run.config["train"]
    trains = planned.run.method["kind"] != "none"
    times = list[float]()
    for record in finished:
        cost = record["cost"]
        steps = StepPlan.of_run(train, record["data"]["train_rows"], trains).total_steps
        steps_left = max(steps - planned.progress.get("step", 0), 0)
        share = steps_left / record["steps"] if record["steps"] else 1.0
        seconds = cost["train_seconds"] + cost["evaluate_seconds"]
        times.append(share * seconds + cost.get("decode_seconds", 0.0))
    return float(np.median(times))
