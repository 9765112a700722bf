"""Training beside peft, of models with random weights: times and memory of steps; and a run on cores that
others use, too, where the way in which OpenMP's threads wait decides how much it suffers."""

import copy
import gc
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vera
from benchmarks.timing import Row, interleaved
from runs import SPINNING
from runs.errors import UserError
from runs.fork_server import end_with_parent
from runs.training.result import peak_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Shape:
    """A model: its transformers configuration, VeRA's rank on it, where peft adapts it (vera finds the same
    layers by itself), and the tokens of a sequence."""

    label: str
    rank: int
    config: dict[str, Any]
    targets: tuple[str, ...] = ("query", "value")
    sequence: int = 128


ROBERTA: dict[str, Any] = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514}
ROBERTA |= {"type_vocab_size": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 256}  # else of the size of a 7B
SHAPES = (
    Shape("RoBERTa-base", 1024, ROBERTA),
    Shape("RoBERTa-large", 256, ROBERTA | LARGE),
    Shape("a Llama block", 1024, LLAMA, ("q_proj", "v_proj"), 512),
)


def base_model(shape: Shape) -> nn.Module:
    """A model of a shape with random weights, the same each time, without a head."""
    import transformers

    torch.manual_seed(0)
    auto: Any = transformers.AutoModel
    return auto.from_config(transformers.AutoConfig.for_model(**shape.config)).to(DEVICE)


def sharing(base: nn.Module) -> nn.Module:
    """A copy with the same weights in memory, frozen: many variants need the memory of one."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()}
    return copy.deepcopy(base, memo)


def variant(name: str, base: nn.Module, shape: Shape) -> nn.Module:
    """The base model with the trained parameters of a variant: "VeRA" alone or with one of its paths, "peft
    VeRA", "peft LoRA r=8" or "full"."""
    if name == "full":
        return copy.deepcopy(base).requires_grad_(True)
    model = sharing(base)
    if name.startswith("peft"):
        import peft

        kind: Any = peft.VeraConfig if name == "peft VeRA" else peft.LoraConfig
        rank = shape.rank if name == "peft VeRA" else 8
        return peft.get_peft_model(model, kind(r=rank, target_modules=[*shape.targets]))
    path: Any = name.removeprefix("VeRA").strip() or "auto"
    vera.VeRA(rank=shape.rank, path=path).adapt(model)
    return model


def batch_of(shape: Shape, base: nn.Module, tokens: int) -> Tensor:
    """The embeddings of a random batch with this number of tokens in all. Those of a block in the middle of a
    stack need a gradient."""
    sequence = min(shape.sequence, tokens)
    ids = torch.randint(3, shape.config["vocab_size"], (tokens // sequence, sequence), device=DEVICE)
    embedded: Tensor = base.get_input_embeddings()(ids).detach()  # type: ignore[operator]
    return embedded.requires_grad_(shape.config.get("num_hidden_layers") == 1)


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """The mean size of the last hidden states."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
        states: Tensor = model(inputs_embeds=batch)[0]
        return states.float().abs().mean()


def stepper(model: nn.Module) -> Callable[[Tensor], None]:
    """A function that does a whole training step."""
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-4)

    def step(batch: Tensor) -> None:
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


# --- steps

#: What each step's time is divided by.
REFERENCE = "peft LoRA r=8"
METHODS = ("VeRA", REFERENCE, "peft VeRA")
MORE = ("VeRA factor", "VeRA hybrid", "VeRA materialised", "full")


def training(full: bool) -> list[Row]:
    """Whole training steps of each model, and the peak memory of two of them in a process of their own."""
    rows, lengths, rounds = [], [512, 1024, 2048, 4096] if full else [512, 1024, 2048], 5 if full else 3
    if DEVICE == "cuda":  # of fewer tokens, launches alone would be timed
        lengths += [16384, 32768]
    shapes = SHAPES if full else SHAPES[:1]
    for shape in shapes:
        base = base_model(shape)
        steps = {name: stepper(variant(name, base, shape)) for name in (*METHODS, *(MORE if full else ()))}
        for tokens in lengths:
            batch = batch_of(shape, base, tokens)
            work = {name: partial(step, batch) for name, step in steps.items()}
            about = {"part": "training", "model": shape.label, "tokens": tokens}
            rows += interleaved(work, rounds, about, REFERENCE)
        del base, steps, work
        gc.collect()
    for shape in shapes:
        for name in METHODS:
            with multiprocessing.get_context("spawn").Pool(1, end_with_parent) as pool:
                peak = pool.apply(_peak, (name, shape, lengths[1]))
            about = {"part": "memory", "model": shape.label, "tokens": lengths[1]}
            rows.append(about | {"variant": name, "bytes": peak})
    return rows


def _peak(name: str, shape: Shape, tokens: int) -> int:
    base = base_model(shape)
    step, batch = stepper(variant(name, base, shape)), batch_of(shape, base, tokens)
    for _ in range(2):
        step(batch)
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else peak_memory()


# --- a run beside others

#: How threads wait: GCC's OpenMP turns a loop 300,000 times by default before a thread sleeps.
WAITS = {
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
    "the harness's": SPINNING,
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
#: Other processes that never rest, and of which none outlives this one.
BUSY, LOOP = 2, f"import os\nwhile os.getppid() == {os.getpid()}: pass"


def contention(full: bool) -> list[Row]:
    """Seconds of an epoch of full fine-tuning, MiniLM on reviews, by how threads wait: on a machine that is
    idle otherwise, and beside busy processes."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = itertools.count()  # each run has its own: a finished one would not be done again
        _epoch(folder, seeds, {}, 0)  # fetches model and data
        work = {
            f"{name}, beside {busy} busy processes": partial(_epoch, folder, seeds, waits, busy)
            for busy in (0, BUSY)
            for name, waits in WAITS.items()
        }
        return interleaved(work, 3 if full else 1, {"part": "contention"}, warm_up=0)


def _epoch(folder: str, seeds: Iterator[int], waits: dict[str, str], busy: int) -> float:
    """The seconds that a run says it took to train and to evaluate."""
    command = [sys.executable, "-m", "runs", "task=reviews", "model=minilm", "method=full", "keep=none"]
    command += ["tracking=off", "train.epochs=1", f"seed={next(seeds)}", f"output={folder}", "table=false"]
    waiting = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    env = {name: value for name, value in os.environ.items() if name not in waiting} | waits
    with ExitStack() as others:
        for _ in range(busy):
            other = others.enter_context(subprocess.Popen([sys.executable, "-c", LOOP]))
            others.callback(other.kill)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the run that is timed failed: {done.stderr.strip().splitlines()[-1:]}")
    latest = max(Path(folder).glob("records/*.json"), key=lambda path: path.stat().st_mtime)
    cost = json.loads(latest.read_text())["cost"]
    return float(cost["train_seconds"] + cost["evaluate_seconds"])
