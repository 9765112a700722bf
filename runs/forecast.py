"""What the runs of a plan still take: steps, tokens, FLOPs, time and disk. torch is
imported where FLOPs are counted for the first time (runs/methods.py), and by
`probe`."""

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import tasks
from runs import gpus, methods, models
from runs.command import one_of
from runs.errors import UserError
from runs.models.load import NF4_BYTES
from runs.record import (
    Record,
    describe,
    duration,
    hash_of,
    in_conf,
    megabytes,
    plural,
)
from runs.record.folder import RecordFolder
from runs.record.ledger import write_atomically
from runs.record.steps import Plan
from runs.reward_functions import completion_limit
from runs.run import UNLIKE_OTHERS, Run, epoch_batches
from tasks.base import block, prompts_at_once
from tasks.exact import ExactTask
from tasks.fetch import cache_folder

#: Shares of the rows, sorted by length, at which conf/rows.yaml has the length. The
#: longest row of a batch decides how much is computed, so the grid is finer at its end.
GRID = (
    0,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.975,
    0.99,
    0.995,
    0.999,
    1,
)
EVENLY = (np.arange(2000) + 0.5) / 2000  # those of a sample of the rows
#: What a forecast says of the time of decoding that is in it.
DECODING = "decoding: of the longest texts, bytes of weights over another such rate, without the host's time"
#: The most steps and seconds of a probe, for each row of a model.
STEPS, SECONDS = 20, 20


# --- rows of data and their lengths


@dataclass(frozen=True)
class Lengths:
    """The rows of a split, and of a sample of them the tokens; () where no length is
    known. predicted: how many of a row's tokens a language model is trained to predict,
    on average."""

    rows: int
    tokens: Any = ()
    predicted: float = 0.0

    @property
    def mean(self) -> float:
        """The tokens of a row, on average."""
        return float(np.mean(self.tokens))

    def cut(self, longest: float) -> "Lengths":
        """These lengths where rows are cut to so many tokens. The end of a row is cut,
        which is predicted."""
        cut = Lengths(self.rows, np.minimum(self.tokens, longest))
        return replace(cut, predicted=max(self.predicted - (self.mean - cut.mean), 0.0))

    def padded(self, batch: int, block: int = 1) -> float:
        """A row's tokens on average, padded to the longest of its batch, in a run's
        `epoch_batches`."""
        batches = epoch_batches(self.tokens, batch, 0, 0, block)
        return sum(
            len(rows) * max(self.tokens[row] for row in rows) for rows in batches
        ) / len(self.tokens)


@cache
def known_data(settings: str) -> tuple[Lengths, Lengths, str] | None:
    """The rows for training and for evaluation of a run with these settings of its task
    (JSON), and in words how both are known; None where they are not. Local files are
    counted; of the hub's data these are the published numbers (conf/rows.yaml), of
    which a run may leave some out."""
    task: dict[str, Any] = json.loads(settings)
    published, data = in_conf("rows.yaml").get(task["name"]), None
    if task.get("data_dir") or task.get("train_file") or not published:
        # of bad data: the run itself raises it
        with contextlib.suppress(UserError, tasks.DataError):
            data = _counted(task) if tasks.source(task).files else None
    if not published:
        return data
    data = data or (*_published(task, published), "rows as published (conf/rows.yaml)")
    if not (tokens := published.get("tokens")):
        return data
    lengths = published.get("lengths", "lengths as published, in GPT-2's tokens")
    words = [data[2].partition(";")[0], lengths, published.get("note")]
    parts = [tokens["train"], tokens["train" if task.get("holdout") else "dev"]]
    train, dev = (
        Lengths(
            of.rows, np.interp(EVENLY, GRID, part["at"]), part.get("predicted", 0.0)
        )
        for of, part in zip(data[:2], parts, strict=True)
    )
    return train, dev, "; ".join(filter(None, words))


def _published(
    task: Mapping[str, Any], entry: Mapping[str, Any]
) -> tuple[Lengths, Lengths]:
    """From an entry of conf/rows.yaml and the task's settings."""
    (train, dev), share, shots = (
        entry["rows"].values(),
        task.get("holdout"),
        task.get("shots"),
    )
    train = min(train, task.get("first_rows") or train)
    # images: `shots` of each class, or all; evaluated on the test set or on the rest
    if "classes" in entry:
        train, rest = (entry["classes"] * shots if shots else train), train
        dev = dev or rest - train
        dev = min(task.get("dev_rows") or dev, dev)
    else:
        # Without a dev set its rows are held out, and a row whose prompt fills
        # max_length is left out
        held = 0 if dev else task["dev_rows"]
        dev = task.get("dev_rows") or dev
        train = min(task.get("train_rows") or train - held, train - held)
    if share:  # of each class, which rounds
        dev = max(
            math.ceil(share * (shots or train)) * (entry["classes"] if shots else 1), 2
        )
        train -= dev
    return Lengths(train), Lengths(dev)


def _counted(task: Mapping[str, Any]) -> tuple[Lengths, Lengths, str]:
    """By reading the files; of texts the lengths, too. Raises UserError or DataError
    for bad data."""
    loaded: Any = tasks.load(
        {**task, "decode": "none"} if task["family"] == "e2e" else task
    )
    if task["family"] == "images":
        rows = {"train": len(loaded.set.train), "dev": len(loaded.set.test or ())}
        return (
            *_published(task, {"rows": rows, "classes": loaded.num_labels}),
            "rows counted",
        )
    # whose rows are prompts and responses
    found, exact = list[Lengths](), isinstance(loaded, ExactTask)
    for rows in (loaded.splits["train"], loaded.splits["dev"]):
        texts = rows if isinstance(rows, tasks.Rows) else None
        pairs = (
            [*zip(texts.texts, texts.pairs or [""] * len(rows), strict=True)]
            if texts
            else []
        )
        pairs = rows if exact else pairs
        tokens = [(len(one) + len(other)) / 4 + 3 for one, other in pairs]
        predicted = (
            float(np.mean([len(of) / 4 + 1 for _, of in pairs])) if exact else 0.0
        )
        found.append(Lengths(len(rows), tokens, predicted))
    return found[0], found[1], "rows counted; lengths assumed, four characters a token"


@cache
def known_texts(settings: str) -> int:
    """How many texts a run with these settings of its task (JSON) decodes with an
    adapter: the published items (conf/rows.yaml) or those of its files; 0 where that is
    not known."""
    task: dict[str, Any] = json.loads(settings)
    if task.get("decode", "none") == "none":
        return 0
    if published := in_conf("rows.yaml").get(task["name"], {}).get("items"):
        most = task.get("items") or task.get("test_rows") or math.inf
        return sum(
            int(min(published[of], most))
            for of in task.get("tests") or [task["decode"]]
        )
    # of bad data: the run itself raises it
    with contextlib.suppress(UserError, tasks.DataError):
        return (
            len(getattr(tasks.load(task), "items", ()))
            if tasks.source(task).files
            else 0
        )
    return 0


# --- one run


@dataclass(frozen=True)
class Outline:
    """What a run will take, from its first step on; 0 for what is not known."""

    steps: int = 0  # of the optimizer
    basis: str = ""  # how the numbers of rows and their lengths are known
    tokens: float = 0.0  # of training, without padding; of images the patches
    flops: float = 0.0  # of training and evaluation, padding included
    step_flops: float = 0.0
    # Of decoding: FLOPs of the prompts, and the bytes of weights that a GPU reads for
    # the new tokens
    prompts: float = 0.0
    reads: float = 0.0
    # Of training by reward: the tokens that it samples at most
    sampled: float = 0.0


def outline(run: Run) -> Outline:
    """What a run will take; nothing is known, nor a basis, where its number of rows is
    not."""
    config, task = run.config, run.config["task"]
    if (data := known_data(json.dumps(task))) is None:
        return Outline()
    train, dev, basis = _as_read(run, data[0]), _as_read(run, data[1]), data[2]
    plan = Plan.of(config["train"], train.rows, run.method["kind"] != "none")
    if not (len(train.tokens) and len(dev.tokens)):
        return Outline(plan.total_steps, basis)
    whole = min(plan.batch, train.rows)
    rows, evaluated = (
        min(config["micro_batch"] or whole, whole),
        min(config["eval_batch"], dev.rows),
    )
    batches = block(task)  # that are sorted by length together
    length = round(
        train.padded(rows, batches * math.ceil(plan.batch / rows) if batches > 1 else 1)
    )
    epochs, rest = divmod(plan.total_steps, plan.steps_per_epoch)
    trained = epochs * train.rows + min(rest * plan.batch, train.rows)
    predicted = train.mean if task.get("train_on_inputs") else train.predicted
    counted = methods.flops(
        run, rows, length, math.ceil(length * predicted / train.mean)
    )
    forward, training = (each / rows for each in counted or (0.0, 0.0))
    # which repeats the forward pass
    training += forward if config.get("gradient_checkpointing") else 0.0
    # An evaluation's FLOPs are taken to grow with the tokens alone; where nothing
    # trains there is one
    of_dev = dev.padded(evaluated, math.ceil(dev.rows / evaluated)) / length * forward
    evaluations = sum(map(plan.evaluates, range(plan.epochs))) or 1
    work, sampled = training, 0.0
    if "reward" in config and counted:
        work, sampled = _work_by_reward(run, rows, train.mean - train.predicted)
    flops = trained * work + evaluations * dev.rows * of_dev
    made = Outline(
        plan.total_steps,
        basis,
        trained * train.mean,
        flops,
        whole * work,
        sampled=trained * sampled,
    )
    # the last epoch's, and the best one's
    texts = (1 + (evaluations > 1)) * known_texts(json.dumps(task))
    if not (texts and counted):
        return made
    # Every token of a batch reads each weight once, in float32 or in 4 bit. For a half
    # precision it is cast before each product, which writes and reads two bytes more
    in_4_bit, batch = (
        config["model"]["quantise"],
        prompts_at_once(config["eval_batch"], task["beams"], True),
    )
    cast = 4 if in_4_bit or config["train"]["precision"] in ("bf16", "fp16") else 0
    read = methods.weights(run) * ((NF4_BYTES if in_4_bit else 4) + cast)
    reads = math.ceil(texts / batch) * task["max_new_tokens"] * read
    return replace(made, prompts=texts * of_dev, reads=reads)


def _work_by_reward(run: Run, rows: int, prompt: float) -> tuple[float, float]:
    """The FLOPs of a prompt in training by reward, and the tokens that are sampled for
    it, at most.

    Args:
        rows: of a micro-batch.
        prompt: tokens of a prompt, on average."""
    samples = run.config["reward"]["samples"]
    limit = completion_limit(run.config)
    tokens = samples * limit
    # The last token of a completion is not read again, and all samples of one token
    # share the prompt's pass.
    length = max(1.0, prompt + limit - 1)
    counted = methods.flops(run, rows, math.ceil(length), limit)
    forward, training = (each / rows for each in counted or (0.0, 0.0))
    sampling = forward * (prompt + samples * (limit - 1)) / length
    passes = 1 if limit == 1 else samples
    return passes * training + sampling, tokens


def _as_read(run: Run, lengths: Lengths) -> Lengths:
    """The lengths of a split's rows as the model reads them: cut to its longest, or the
    patches of images."""
    get, longest = (
        models.architecture_of(run.config["model"]).get,
        run.config["train"]["max_length"],
    )
    if run.config["task"]["modality"] == "image":
        side = run.config["task"].get("image_size") or models.image_side(
            get("model_type"), get("image_size")
        )
        patches = (side // get("patch_size", side)) ** 2 + 1
        return Lengths(lengths.rows, [patches])
    longest = min(
        longest, get("max_position_embeddings") or get("n_positions") or longest
    )
    return lengths.cut(longest) if len(lengths.tokens) else lengths


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
    precision = run.config["train"]["precision"]
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
            if alike and config["train"]["precision"] == precision and len(had) < 3:
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
