"""The time and the disk space that the runs of a plan still take: by finished runs, by a
probe, or by the FLOP a second of a card. torch is imported by `probe`."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from runs.command.parser import one_of
from runs.forecast.work import outline
from runs.machine import gpus
from runs.models.memory import computing_precision
from runs.record.cell import hash_of
from runs.record.folder import RecordFolder
from runs.record.ledger import in_conf, write_atomically
from runs.record.schema import Record
from runs.record.steps import Plan
from runs.record.text import describe, duration, megabytes, plural
from runs.run.definition import UNLIKE_OTHERS, Run, epoch_batches
from tasks.fetch import cache_folder

#: What a forecast says of the time of decoding that is in it.
DECODING = "decoding: of the longest texts, bytes of weights over another such rate, without the host's time"
#: The most steps and seconds of a probe, for each row of a model.
STEPS, SECONDS = 20, 20


# --- FLOP a second


def probe(runs: Iterable[Run]) -> None:
    """Trains some steps of each row of each model, on one of its tasks, and keeps the
    FLOP a second. Rows that were measured here before are left out; a line gives the
    reason for each that cannot be measured."""
    cells = {
        cell_key(run): run for run in runs if run.method["kind"] not in UNLIKE_OTHERS
    }
    known = ((run, outline(run)) for run in cells.values() if not rate_of(run, []))
    rows = {rate_file(run): (run, one.step_flops) for run, one in known if one.flops}
    print(
        f"probe: at most {STEPS} steps and {SECONDS}s for each of {plural(len(rows), 'row')}"
    )
    for number, (file, (run, flops)) in enumerate(rows.items(), 1):
        name = f"probe {number}/{len(rows)}: {run.label}"
        try:
            from runs.training.loop import Training

            with tempfile.TemporaryDirectory() as folder:
                config = run.config | {"output": folder, "init_from": None}
                training = Training(
                    replace(run, config=config, start=None), "probe", lambda event: None
                )
                size, times = config["train"]["effective_batch"], list[float]()
                batches = epoch_batches(
                    training.lengths, size, 0, 0, training.task.block
                )[: STEPS + 1]
                while len(times) < len(batches) and sum(times[1:]) < SECONDS:
                    start = time.perf_counter()
                    float(training.step(batches[len(times)]))  # waits for the device
                    times.append(time.perf_counter() - start)
                training.accelerator.free_memory()
        except Exception as error:
            # of the run's settings, of a model's own code, of a full device
            print(
                f"{name}: left out, a probe needs the run's model and data here ({describe(error)})"
            )
            continue
        times = times[1:] or times  # the first one loads kernels
        rate = len(times) * flops / sum(times)
        # a read-only home costs the forecast, no more
        with contextlib.suppress(OSError):
            write_atomically(file, json.dumps({"flops": rate, "of": run.label}))
        print(
            f"{name}: {plural(len(times), 'step')} in {duration(sum(times))}, {rate / 1e12:,.2f} TFLOP/s"
        )


def devices(run: Run) -> list[str]:
    """The names of the devices of this machine that a run may compute on."""
    return (gpus.cards("Name") if run.config["device"] != "cpu" else []) or [
        gpus.processor()
    ]


def rate_file(run: Run) -> Path:
    """Where a probe keeps the FLOP a second of a run's row: by machine, model,
    precision and row."""
    where = [
        os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    ]
    row = [
        run.config[key]
        for key in ("device", "model", "micro_batch", "gradient_checkpointing")
    ]
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    machine = [devices(run), gpus.processor(), cores, where, version("torch")]
    key = hash_of([machine, row, run.method, run.config["train"]["precision"]])
    return cache_folder() / "rates" / f"{key[:24]}.json"


def rate_of(
    run: Run, done: Sequence[Record], card: str | None = None
) -> tuple[float, str] | None:
    """A run's FLOP a second, and in words where it is from: as conf/cards.yaml assumes
    it of a card. Without one this machine's: as a probe has measured it for the row, or
    as up to three finished runs of other cells in the same precision had it. Raises
    UserError for a card that the file lacks."""
    precision = computing_precision(run.config)
    if card:
        cards = in_conf("cards.yaml")
        rate = cards[one_of("card", card, cards)][precision]
        return rate, "a rate that conf/cards.yaml assumes: nobody measured it"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads(rate_file(run).read_bytes())["flops"]), "a probe's rate"
    had = list[float]()
    for record in (
        record for record in reversed(done) if record["device"]["name"] in devices(run)
    ):
        config, cost, cell = record["config"], record["cost"], record["cell"]
        alike = config["method"]["kind"] not in UNLIKE_OTHERS
        # A record may be from before a setting, or of a run that took no time
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
            if alike and computing_precision(config) == precision and len(had) < 3:
                flops = outline(
                    Run(cell["row"], cell["model"], cell["task"], 0, "", None, config)
                ).flops
                had += (
                    [flops / (cost["train_seconds"] + cost["evaluate_seconds"])]
                    if flops
                    else []
                )
    words = f"the rate of {plural(len(had), 'finished run')} of other cells"
    return (float(np.median(had)), words) if had else None


# --- runs that are left


@dataclass(frozen=True)
class Planned:
    """A run and its state (STATES in runs/plan.py); `why` in one line. progress: of one
    that has begun, the last event of its training (runs/training/loop.py), and its
    host."""

    run: Run
    state: str
    why: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)


#: A forecast looks at so many of the newest records for the pace of this machine.
PACE_RECORDS = 300


def estimate(
    left: Sequence[Planned], records: RecordFolder, card: str | None = None
) -> str:
    """What these runs still take, in a line or more: by their own progress, from
    finished runs of their cells, or else FLOPs over a rate. card: of conf/cards.yaml,
    whose hours are wanted."""
    recent = [] if card else records.newest(PACE_RECORDS)
    done = [record for record in reversed(recent) if record["status"] == "done"]
    cells = {cell_key(one.run): one.run for one in left}
    like = {key: _like(run, done) for key, run in cells.items()}
    bar = tqdm(
        [key for key in cells if not like[key]],
        "counting FLOPs",
        leave=False,
        disable=None,
        delay=2,
    )
    new = {key: outline(cells[key]) for key in bar}
    rates = {
        key: rate_of(cells[key], done, card) for key, each in new.items() if each.flops
    }
    amounts, times, disk, sources = list[Any](), list[float](), 0.0, dict[str, None]()
    for one in left:
        key, seconds = (
            cell_key(one.run),
            None if card else one.progress.get("seconds_left"),
        )
        if like[key]:
            seconds = _as_finished(one, like[key]) if seconds is None else seconds
            kept = [
                of["cost"]["adapter_bytes"] + 4 * of["parameters"]["head"]
                for of in like[key]
            ]
            disk += float(np.median(kept))
        elif (each := new[key]).basis:
            share = 1 - min(one.progress.get("step", 0) / max(each.steps, 1), 1.0)
            amount = [each.steps, each.tokens, each.flops, each.sampled]
            amounts.append(share * np.array(amount))
            if seconds is None and (rate := rates.get(key)):
                seconds, sources[f"FLOPs at {rate[1]}"] = amounts[-1][2] / rate[0], None
                if card and each.reads:
                    seconds += (
                        each.prompts / rate[0]
                        + each.reads / in_conf("cards.yaml")[card]["memory"]
                    )
                    sources[DECODING] = None
        times += [] if seconds is None else [seconds]
    steps, tokens, flops, sampled = np.sum(amounts, 0) if amounts else (0, 0, 0, 0)
    bases = dict.fromkeys(
        word for each in new.values() if each.basis for word in each.basis.split("; ")
    )
    unknown = ", ".join(
        dict.fromkeys(cells[key].row for key, each in new.items() if not each.flops)
    )
    slow = {rate_file(cells[key]) for key, rate in rates.items() if not rate}
    decoding = (
        key
        for key in rates
        if cells[key].config["task"].get("decode", "none") != "none"
    )
    decodes = any(not (card and new[key].reads) for key in decoding)
    ids = {record["id"] for records in like.values() for record in records}
    words = "; ".join(
        [*([f"from {plural(len(ids), 'finished run')}"] if ids else []), *sources]
    )
    part = (
        ""
        if len(times) == len(left)
        else f" for {len(times)} of the {len(left)} runs left"
    )
    lines = {
        f"forecast for {plural(len(amounts), 'run')}: {steps:,.0f} steps"
        + (f", {tokens / 1e6:,.0f}M tokens" if tokens else "")
        + (f", at most {sampled / 1e6:,.2f}M sampled tokens" if sampled else "")
        + (f", {flops:.1e} FLOP".replace("e+", "e") if flops else ""): amounts,
        f"  ({'; '.join(bases)})": amounts,
        f"FLOPs are not known of {unknown}: its rows or lengths are not, or torch cannot count them": unknown,
        f"no estimate of time: no rate of {plural(len(slow), 'row')} (probe=true: {SECONDS}s each)": slow,
        "the time of decoding is not in it: a finished run shows it": decodes,
        f"est. {duration(sum(times))} left on one {card or devices(left[0].run)[0]}{part}"
        f"{words and f' ({words})'}{f', {megabytes(disk)} on disk' if disk else ''}": times,
    }
    return "\n".join(line for line, holds in lines.items() if holds)


def _like(run: Run, done: Sequence[Record]) -> list[Record]:
    """Finished runs of the same cell, with the same settings of the task that decide
    the amount of work."""
    task, cell = run.config["task"], (run.row, run.model, run.config["task"]["name"])
    amounts = (
        "train_rows",
        "dev_rows",
        "holdout",
        "shots",
        "image_size",
        "items",
        "decode",
        "beams",
    )
    return [
        record
        for record in done
        if tuple(record["cell"][key] for key in ("row", "model", "task")) == cell
        and all(record["config"]["task"].get(key) == task.get(key) for key in amounts)
        and record["config"].get("reward") == run.config.get("reward")
    ]


def _as_finished(one: Planned, like: Sequence[Record]) -> float:
    """The seconds that a run has left if its steps are as fast as those of its cell's
    finished runs."""
    times, train, trains = (
        list[float](),
        one.run.config["train"],
        one.run.method["kind"] != "none",
    )
    for record in like:
        cost, rows = record["cost"], record["data"]
        steps = Plan.of(train, rows["train_rows"], trains).total_steps
        left = max(steps - one.progress.get("step", 0), 0)
        share = left / record["steps"] if record["steps"] else 1.0
        seconds = cost["train_seconds"] + cost["evaluate_seconds"]
        times.append(share * seconds + cost.get("decode_seconds", 0.0))
    return float(np.median(times))


def cell_key(run: Run) -> tuple[str, ...]:
    """The key that runs share which differ in their seeds alone."""
    return (run.row, run.model, run.task, *run.overrides)
