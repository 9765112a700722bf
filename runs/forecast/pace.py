"""The time and the disk space that the runs of a plan still take, estimated from
finished runs, from a probe, or from the FLOP a second of a card."""

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
from runs.run.definition import METHODS_OF_SHORT_RUNS, Run
from runs.run.methods import count_weights, skeleton_arguments

#: How a forecast says that it contains the time of decoding.
DECODING_SOURCE = (
    "decoding: of the longest texts, bytes of weights over another such rate, "
    "without the host's time"
)
#: Where no run of a cell has finished, its rate is the median over this many finished
#: runs of other cells that are similar enough, by the next three constants.
RATED_RUNS = 3
#: A similar run's step takes at least this share of the FLOPs of a step of the cell. A
#: smaller step is mostly overhead.
LEAST_SHARE = 1 / 20
#: A similar run's model has at most this many times the weights of the cell's model, and
#: at least this fraction (1/4) of them. A small model's products use less of a processor.
SIZE_FACTOR = 4
#: A similar run took at least as many steps as a probe. In a shorter run the first step
#: takes most of the time.
LEAST_STEPS = STEPS
#: How many of the newest records are searched for finished runs.
PACE_RECORDS = 300

#: Identifies runs that differ in their seeds alone: a plan needs one estimate for them.
Variant = tuple[str, ...]


def variant_of(run: Run) -> Variant:
    """What a run shares with the runs of its other seeds."""
    return (run.row, run.model, run.task, *run.overrides)


# --- FLOP a second


def rate_of(
    run: Run, finished_runs: Sequence[Record], card: str | None = None
) -> Rate | None:
    """The FLOP a second at which a run trains: with a card as conf/cards.yaml assumes
    it; on this machine as a probe has measured it for the run's row, or else as the
    newest similar runs of other cells had it. None where none of these is known. Raises
    UserError for a card that the file lacks.

    Args:
        finished_runs: The oldest first.
        card: A name in conf/cards.yaml; None for this machine."""
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
    for record in reversed(finished_runs):
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
    """The FLOP a second of a finished run; 0 where it is not known, or says nothing
    about the run to be rated: because of the method, another precision, a model of
    another size, few steps, or steps of fewer FLOPs.

    Args:
        precision: What the run to be rated computes in.
        weights: Those of its model; None where they are not known.
        least_flops: What a step has to take, LEAST_SHARE of the run's own steps."""
    config = record["config"]
    cost = record["cost"]
    # an old record may lack a setting, and a run may have taken no time
    with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
        if (
            config["method"]["kind"] in METHODS_OF_SHORT_RUNS
            or record["steps"] < LEAST_STEPS
        ):
            return 0.0
        if computing_precision(config) != precision:
            return 0.0
        content = _content_of_finished(record)
        if not _are_of_like_size(weights, _weights_of_finished(content)):
            return 0.0
        outline_of_run = _outline_of_finished(content)
        seconds = cost["train_seconds"] + cost["evaluate_seconds"]
        if outline_of_run.step_flops >= least_flops:
            return float(outline_of_run.flops / seconds)
    return 0.0


def _are_of_like_size(weights: int | None, other_weights: int | None) -> bool:
    """Whether two models are near enough in size (SIZE_FACTOR) to have similar rates;
    False where one number of weights is unknown."""
    if not weights or not other_weights:
        return False
    return 1 / SIZE_FACTOR <= weights / other_weights <= SIZE_FACTOR


def _weights_of(run: Run) -> int | None:
    """The weights of a run's model; None where its architecture is not known."""
    return count_weights(run) if skeleton_arguments(run) else None


def _content_of_finished(record: Record) -> str:
    """The row, model, task and configuration of a finished run, with 0 for its seeds, as
    JSON, which the caches below take."""
    cell = record["cell"]
    without_seeds = record["config"] | {"seed": 0, "data_seed": 0}
    return json.dumps([cell["row"], cell["model"], cell["task"], without_seeds])


def _run_of_finished(content: str) -> Run:
    """A run with this `_content_of_finished`."""
    row, model, task, config = json.loads(content)
    return Run(row, model, task, 0, "", None, config)


@cache
def _outline_of_finished(content: str) -> Outline:
    """The outline of a finished run. Cached, since a plan asks for it once a variant.
    content: `_content_of_finished`."""
    return outline(_run_of_finished(content))


@cache
def _weights_of_finished(content: str) -> int | None:
    """The weights of a finished run's model; None where its architecture is no longer
    known. content: `_content_of_finished`."""
    return _weights_of(_run_of_finished(content))


# --- runs that are left


@dataclass(frozen=True)
class Planned:
    """A run and its state (STATES in runs/plan.py).

    Attributes:
        reason: Why it has this state, in one line.
        progress: Of a run that has begun: the last event of its training
            (runs/training/loop.py), and its host.
    """

    run: Run
    state: str
    reason: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)


class Work(NamedTuple):
    """An amount of work. sampled_tokens: in training by reward, at most."""

    steps: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    sampled_tokens: float = 0.0


@dataclass
class _Variants:
    """What is known of each variant among the runs that are left.

    Attributes:
        runs: One run of it.
        finished: The finished runs like it (`_finished_like`).
        outlines: What one run takes, for the variants without finished runs.
        rates: Its FLOP a second, for those of them whose FLOPs are known; None where no
            rate is known.
    """

    runs: dict[Variant, Run]
    finished: dict[Variant, list[Record]]
    outlines: dict[Variant, Outline]
    rates: dict[Variant, Rate | None]


@dataclass
class _Total:
    """What the runs that are left take together.

    Attributes:
        work: Of each run without a finished run like it.
        runs_like_finished: How many runs have a finished run like them.
        seconds: Of each run whose time is known.
        disk_bytes: Of all runs with finished runs like them.
        sources: What the times are estimated from.
    """

    work: list[Work] = field(default_factory=list)
    runs_like_finished: int = 0
    seconds: list[float] = field(default_factory=list)
    disk_bytes: float = 0.0
    sources: list[str] = field(default_factory=list)

    def add_source(self, source: str) -> None:
        """Adds a source, unless it is there."""
        if source not in self.sources:
            self.sources.append(source)


def estimate(
    runs_left: Sequence[Planned],
    records: RecordFolder,
    card: str | None = None,
    after_probe: bool = False,
) -> str:
    """Lines with the time and the disk space that these runs still take, and their
    FLOPs. A run's time is the one that its own progress gives; otherwise that of
    finished runs of its cell; otherwise its FLOPs divided by a rate.

    Args:
        card: A name in conf/cards.yaml, to estimate the hours on that card and not on
            this machine.
        after_probe: Whether a probe has just measured all rates that it can measure."""
    finished_runs = list[Record]()
    if not card:
        for record in reversed(records.newest(PACE_RECORDS)):
            if record["status"] == "done":
                finished_runs.append(record)
    variants = _variants_of(runs_left, finished_runs, card)
    total = _Total()
    for planned in runs_left:
        seconds = _add_run(planned, variants, total, card)
        if seconds is not None:
            total.seconds.append(seconds)
    lines = _lines_of_work(total, variants)
    lines += _lines_of_gaps(variants, card, after_probe)
    if total.seconds:
        lines.append(_line_of_time(total, variants, runs_left, card))
    return "\n".join(lines)


def _variants_of(
    runs_left: Sequence[Planned], finished_runs: Sequence[Record], card: str | None
) -> _Variants:
    """What is known of the variants of the runs that are left, from finished runs of
    this machine, the oldest first. card: as in `rate_of`."""
    runs = {variant_of(planned.run): planned.run for planned in runs_left}
    finished = dict[Variant, list[Record]]()
    for variant, run in runs.items():
        finished[variant] = _finished_like(run, finished_runs)
    unfinished = [variant for variant in runs if not finished[variant]]
    bar = tqdm(unfinished, "counting FLOPs", leave=False, disable=None, delay=2)
    outlines = {variant: outline(runs[variant]) for variant in bar}
    rates = dict[Variant, Rate | None]()
    for variant, outline_of_run in outlines.items():
        if outline_of_run.flops:
            rates[variant] = rate_of(runs[variant], finished_runs, card)
    return _Variants(runs, finished, outlines, rates)


def _add_run(
    planned: Planned, variants: _Variants, total: _Total, card: str | None
) -> float | None:
    """Adds to the total a run's disk space where runs like it have finished, else its
    work. Returns the seconds that it still takes, where they are known."""
    variant = variant_of(planned.run)
    # a run's own progress tells of the machine that does it, not of the card
    seconds = None if card else planned.progress.get("seconds_left")
    finished = variants.finished[variant]
    if finished:
        total.runs_like_finished += 1
        total.disk_bytes += _bytes_kept(finished)
        if seconds is None:
            seconds = _seconds_by_finished(planned, finished)
        return seconds
    outline_of_run = variants.outlines[variant]
    if not outline_of_run.source:  # the number of its rows is not known
        return seconds
    work = _work_left(planned, outline_of_run)
    total.work.append(work)
    rate = variants.rates.get(variant)
    if seconds is not None or rate is None:
        return seconds
    total.add_source(f"FLOPs at {rate.source}")
    seconds = work.flops / rate.flops
    if card and outline_of_run.decoding_bytes:  # work.flops leaves decoding out
        total.add_source(DECODING_SOURCE)
        bytes_a_second = in_conf("cards.yaml")[card]["memory"]
        seconds += outline_of_run.prompt_flops / rate.flops
        seconds += outline_of_run.decoding_bytes / bytes_a_second
    return seconds


def _work_left(planned: Planned, outline_of_run: Outline) -> Work:
    """The part of a run's work that it has not done yet, by its last known step."""
    share_done = planned.progress.get("step", 0) / max(outline_of_run.steps, 1)
    share_left = 1 - min(share_done, 1.0)
    return Work(
        share_left * outline_of_run.steps,
        share_left * outline_of_run.tokens,
        share_left * outline_of_run.flops,
        share_left * outline_of_run.sampled_tokens,
    )


def _bytes_kept(finished: Sequence[Record]) -> float:
    """The bytes that a run leaves on the disk, by finished runs like it: its adapter,
    and its head in float32."""
    sizes = [
        record["cost"]["adapter_bytes"] + 4 * record["parameters"]["head"]
        for record in finished
    ]
    return float(np.median(sizes))


def _lines_of_work(total: _Total, variants: _Variants) -> list[str]:
    """The lines of a forecast with steps, tokens and FLOPs, and where their numbers come
    from; none where every run has finished runs like it."""
    if not total.work:
        return []
    work = Work(*np.sum(total.work, axis=0))  # each field over all runs
    parts = [f"{work.steps:,.0f} steps"]
    if work.tokens:
        parts.append(f"{rounded(work.tokens)} tokens")
    if work.sampled_tokens:
        parts.append(f"at most {rounded(work.sampled_tokens)} sampled tokens")
    if work.flops:
        parts.append(f"{work.flops:.1e} FLOP".replace("e+", "e"))
    sources = list[str]()
    for outline_of_run in variants.outlines.values():
        if outline_of_run.source:
            sources += outline_of_run.source.split("; ")
    runs = plural(len(total.work), "run")
    lines = [
        f"forecast for {runs}: {', '.join(parts)}",
        f"  ({'; '.join(dict.fromkeys(sources))})",
    ]
    if total.runs_like_finished:
        runs = plural(total.runs_like_finished, "more run")
        lines.append(f"  and {runs}, timed by finished runs of the same cell")
    return lines


def _lines_of_gaps(
    variants: _Variants, card: str | None, after_probe: bool
) -> list[str]:
    """The lines of a forecast that say what it could not estimate, of the variants
    without finished runs: `outlines` and `rates` hold no others."""
    lines = list[str]()
    uncounted_rows = [
        variants.runs[variant].row
        for variant, outline_of_run in variants.outlines.items()
        if not outline_of_run.flops
    ]
    if uncounted_rows:
        rows = ", ".join(dict.fromkeys(uncounted_rows))
        lines.append(
            f"FLOPs are not known of {rows}: its rows or lengths are not, or torch "
            "cannot count them"
        )
    # a probe measures each file's rate once
    unrated_files = {
        rate_file(variants.runs[variant])
        for variant, rate in variants.rates.items()
        if not rate
    }
    if unrated_files:
        advice = f"probe=true: about {SECONDS}s each"
        if after_probe:
            advice = "the probe left them out. card=H100 needs neither model nor data"
        rows = plural(len(unrated_files), "row")
        lines.append(f"no estimate of time: no rate of {rows} ({advice})")
    for variant in variants.rates:
        decodes = variants.runs[variant].config["task"].get("decode", "none") != "none"
        # it takes a rate of memory, which only conf/cards.yaml has
        is_counted = card and variants.outlines[variant].decoding_bytes
        if decodes and not is_counted:
            lines.append("the time of decoding is not in it: a finished run shows it")
            break
    return lines


def _line_of_time(
    total: _Total, variants: _Variants, runs_left: Sequence[Planned], card: str | None
) -> str:
    """The line of a forecast with the time, what it is estimated from, and the disk
    space."""
    device = card or device_names(runs_left[0].run)[0]
    line = f"est. {duration(sum(total.seconds))} left on one {device}"
    if len(total.seconds) < len(runs_left):
        line += f" for {len(total.seconds)} of the {len(runs_left)} runs left"
    ids = set[str]()
    for finished in variants.finished.values():
        ids.update(record["id"] for record in finished)
    sources = [*total.sources]
    if ids:
        sources.insert(0, f"at the pace of {plural(len(ids), 'finished run')}")
    if sources:
        line += f" ({'; '.join(sources)})"
    if total.disk_bytes:
        line += f", {megabytes(total.disk_bytes)} on disk"
    return line


#: Settings of a task that decide the amount of work.
AMOUNT_SETTINGS = (
    "train_rows",
    "dev_rows",
    "holdout",
    "shots",
    "image_size",
    "items",
    "decode",
    "beams",
)


def _finished_like(run: Run, finished_runs: Sequence[Record]) -> list[Record]:
    """The finished runs of the same cell with the same amount of work: those that
    trained to the end or, where none did, those that train.max_steps stopped after a few
    steps, of which the first one takes most of the time."""
    candidates = [record for record in finished_runs if _has_same_work(record, run)]
    if not candidates:  # then the weights need not be counted
        return []
    weights = _weights_of(run)
    similar_runs = list[Record]()
    complete_runs = list[Record]()
    for record in candidates:
        # models of several folders may have one name, "encoder"
        weights_of_finished = _weights_of_finished(_content_of_finished(record))
        if weights and weights_of_finished and weights != weights_of_finished:
            continue
        similar_runs.append(record)
        if record["config"]["train"].get("max_steps") is None:
            complete_runs.append(record)
    return complete_runs or similar_runs


def _has_same_work(record: Record, run: Run) -> bool:
    """Whether a finished run has a run's cell, rewards and AMOUNT_SETTINGS."""
    task = run.config["task"]
    cell = record["cell"]
    cell_of_finished = (cell["row"], cell["model"], cell["task"])
    if cell_of_finished != (run.row, run.model, task["name"]):
        return False
    if record["config"].get("reward") != run.config.get("reward"):
        return False
    task_of_finished = record["config"]["task"]
    return all(task_of_finished.get(key) == task.get(key) for key in AMOUNT_SETTINGS)


def _seconds_by_finished(planned: Planned, finished: Sequence[Record]) -> float:
    """The seconds that a run has left if its steps are as fast as those of its cell's
    finished runs."""
    train = planned.run.config["train"]
    trains = planned.run.method["kind"] != "none"
    times = list[float]()
    for record in finished:
        cost = record["cost"]
        steps = StepPlan.of_run(train, record["data"]["train_rows"], trains).total_steps
        steps_left = max(steps - planned.progress.get("step", 0), 0)
        # without steps nothing trains, and all of its evaluation is left
        share = steps_left / record["steps"] if record["steps"] else 1.0
        seconds = cost["train_seconds"] + cost["evaluate_seconds"]
        times.append(share * seconds + cost.get("decode_seconds", 0.0))
    return float(np.median(times))
