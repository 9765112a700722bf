"""Pieces of work in interleaved rounds; training beside peft, of models with random
weights: times and memory of steps; and a run on cores that others use, too, by the way
in which OpenMP's threads wait."""

import copy
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import vera
from runs import SPINNING
from runs.command.errors import UserError
from runs.machine.processes import end_with_parent
from runs.training.result import peak_memory
from vera.sites import find_sites

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Row = dict[str, Any]


def interleaved(
    work: Mapping[str, Callable[[], Any]], rounds: int, about: Row, warm_up: int = 1
) -> list[Row]:
    """The seconds of each piece of work, and in each round its ratio to those of the
    first piece. The pieces take turns, so that a slow minute of the machine hits all
    alike; the first `warm_up` rounds do not count. A piece that returns a float has
    measured its own seconds. about: the rest of a row."""
    names, seconds = list(work), dict[str, list[float]]()
    for turn in tqdm(
        range(rounds + warm_up), str(about["part"]), leave=False, disable=None
    ):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            taken = work[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken = taken if isinstance(taken, float) else time.perf_counter() - started
            if turn >= warm_up:
                seconds.setdefault(name, []).append(taken)
    ratios = {
        name: [a / b for a, b in zip(seconds[name], seconds[names[0]], strict=True)]
        for name in names
    }
    return [
        about | {"variant": n, "seconds": seconds[n], "ratios": ratios[n]}
        for n in names
    ]


def markdown(rows: list[Row]) -> str:
    """A table for each part: what a row is about, then the minimum and median of its
    times, and the median, lowest and highest ratio of a round; bytes as they are."""
    tables = []
    for _, of_part in groupby(rows, lambda row: row["part"]):
        lines = [*map(_line, of_part)]
        head = [*dict.fromkeys(name for line in lines for name in line)]
        rule = ["---" if name in ("model", "variant") else "---:" for name in head]
        cells = [
            head,
            rule,
            *([line.get(name, "-") for name in head] for line in lines),
        ]
        tables.append("\n".join("| " + " | ".join(line) + " |" for line in cells))
    return "\n\n".join(tables)


def _line(row: Row) -> dict[str, str]:
    """The cells of a row, by their column."""
    about = {
        name: value
        for name, value in row.items()
        if name not in ("part", "seconds", "ratios")
    }
    line = {
        name: f"{value:,}" if isinstance(value, int) else str(value)
        for name, value in about.items()
    }
    if "seconds" in row:
        seconds, ratios, median = row["seconds"], row["ratios"], statistics.median
        line |= {"least": f"{min(seconds):.3g} s", "median": f"{median(seconds):.3g} s"}
        line |= {
            "ratio": f"{median(ratios):.2f}",
            "of a round": f"{min(ratios):.2f} to {max(ratios):.2f}",
        }
    return line


# --- models


class Shape(NamedTuple):
    """A model: its transformers configuration, VeRA's rank on it, and the tokens of a
    sequence."""

    label: str
    rank: int
    config: dict[str, Any]
    sequence: int = 128


ROBERTA: dict[str, Any] = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
}
ROBERTA |= {
    "type_vocab_size": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
# else of the size of a 7B
LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 256}
SHAPES = (
    Shape("RoBERTa-base", 1024, ROBERTA),
    Shape("RoBERTa-large", 256, ROBERTA | LARGE),
    Shape("a Llama block", 1024, LLAMA, 512),
)


def base_model(shape: Shape) -> nn.Module:
    """A model of a shape with random weights, the same each time, without a head."""
    import transformers

    torch.manual_seed(0)
    auto: Any = transformers.AutoModel
    return auto.from_config(transformers.AutoConfig.for_model(**shape.config)).to(
        DEVICE
    )


def sharing(base: nn.Module) -> nn.Module:
    """A copy with the same weights in memory, frozen: many variants need the memory of
    one."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()
    }
    return copy.deepcopy(base, memo)


def variant(name: str, base: nn.Module, shape: Shape) -> nn.Module:
    """The base model with the trained parameters of a variant: "VeRA" alone or with one
    of its paths, "peft VeRA", "peft LoRA r=8" or "full"."""
    if name == "full":
        return copy.deepcopy(base).requires_grad_(True)
    model = sharing(base)
    if name.startswith("peft"):
        import peft

        kind: Any = peft.VeraConfig if name == "peft VeRA" else peft.LoraConfig
        rank, sites = (
            shape.rank if name == "peft VeRA" else 8,
            [*find_sites(model, ("query", "value"))],
        )
        return peft.get_peft_model(model, kind(r=rank, target_modules=sites))
    path: Any = name.removeprefix("VeRA").strip() or "auto"
    vera.VeRA(rank=shape.rank, path=path).adapt(model)
    return model


def batch_of(shape: Shape, base: nn.Module, tokens: int) -> Tensor:
    """The embeddings of a random batch with this number of tokens in all. Those of a
    block in the middle of a stack need a gradient."""
    sequence = min(shape.sequence, tokens)
    ids = torch.randint(
        3, shape.config["vocab_size"], (tokens // sequence, sequence), device=DEVICE
    )
    embedded: Tensor = base.get_input_embeddings()(ids).detach()  # type: ignore[operator]
    return embedded.requires_grad_(shape.config.get("num_hidden_layers") == 1)


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The mean size of the last hidden states."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
        states: Tensor = model(inputs_embeds=batch)[0]
        return states.float().abs().mean()


def stepper(model: nn.Module) -> Callable[[Tensor], None]:
    """A function that does a whole training step."""
    optimizer = torch.optim.AdamW(
        [p for p in model.train().parameters() if p.requires_grad], lr=1e-4
    )

    def step(batch: Tensor) -> None:
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


# --- steps

#: Each step's time is divided by that of the first one.
METHODS = ("peft LoRA r=8", "VeRA", "peft VeRA")
MORE = ("VeRA factor", "VeRA hybrid", "VeRA materialised", "full")


def training(full: bool) -> list[Row]:
    """Whole training steps of each model, and the peak memory of two of them in a
    process of their own."""
    rows, lengths, rounds = (
        [],
        [512, 1024, 2048, 4096] if full else [512, 1024, 2048],
        5 if full else 3,
    )
    # of fewer tokens, launches alone would be timed
    lengths += [16384, 32768] if DEVICE == "cuda" else []
    shapes = SHAPES if full else SHAPES[:1]
    for shape in shapes:
        base = base_model(shape)
        steps = {
            name: stepper(variant(name, base, shape))
            for name in (*METHODS, *(MORE if full else ()))
        }
        for tokens in lengths:
            batch = batch_of(shape, base, tokens)
            work = {name: partial(step, batch) for name, step in steps.items()}
            rows += interleaved(
                work,
                rounds,
                {"part": "training", "model": shape.label, "tokens": tokens},
            )
        del base, steps, work
        gc.collect()
    for shape in shapes:
        for name in METHODS:
            with multiprocessing.get_context("spawn").Pool(1, end_with_parent) as pool:
                peak = pool.apply(_peak, (name, shape, lengths[1]))
            about = {
                "part": "memory",
                "model": shape.label,
                "tokens": lengths[1],
                "variant": name,
            }
            rows.append(about | {"bytes": peak})
    return rows


def _peak(name: str, shape: Shape, tokens: int) -> int:
    base = base_model(shape)
    step, batch = stepper(variant(name, base, shape)), batch_of(shape, base, tokens)
    for _ in range(2):
        step(batch)
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else peak_memory()


# --- a run beside others

#: How threads wait: GCC's OpenMP turns a loop 300,000 times by default before a thread
#: sleeps.
WAITS = {
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
    "the harness's": SPINNING,
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
#: Other processes that never rest, and of which none outlives this one.
BUSY, LOOP = 2, f"import os\nwhile os.getppid() == {os.getpid()}: pass"


def contention(full: bool) -> list[Row]:
    """Seconds of an epoch of full fine-tuning, MiniLM on reviews, by how threads wait:
    on a machine that is idle otherwise, and beside busy processes."""
    _epoch({}, 0)  # fetches model and data
    work = {
        f"{name}, beside {busy} busy processes": partial(_epoch, waits, busy)
        for busy in (0, BUSY)
        for name, waits in WAITS.items()
    }
    return interleaved(work, 3 if full else 1, {"part": "contention"}, warm_up=0)


def _epoch(waits: dict[str, str], busy: int) -> float:
    """The seconds that a run says it took to train and to evaluate."""
    command = [
        sys.executable,
        "-m",
        "runs",
        "task=reviews",
        "model=minilm",
        "method=full",
        "keep=none",
    ]
    command += ["tracking=off", "train.epochs=1", "table=false"]
    waiting = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    env = {
        name: value for name, value in os.environ.items() if name not in waiting
    } | waits
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for _ in range(busy):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", LOOP]))
            stack.callback(other.kill)
        command.append(f"output={folder}")
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(
                f"the run that is timed failed: {done.stderr.strip().splitlines()[-1:]}"
            )
        (record,) = Path(folder).glob("records/*.json")
        cost = json.loads(record.read_text())["cost"]
    return float(cost["train_seconds"] + cost["evaluate_seconds"])
