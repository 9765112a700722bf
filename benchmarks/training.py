"""Times pieces of work in interleaved rounds, for all benchmarks. Two of them are here:
training steps of models with random weights, beside peft; and a run on cores that other
processes use, too, by the way in which OpenMP's threads wait."""

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
#: A row of a benchmark's table: its values by the names of the columns.
Row = dict[str, Any]


def time_in_turns(
    work: Mapping[str, Callable[[], Any]], rounds: int, about: Row, warm_up: int = 1
) -> list[Row]:
    """Times pieces of work. They take turns, so that a slow minute of the machine hits all
    alike.

    Args:
        work: the pieces by name. One that returns a float has measured its own seconds.
        rounds: how often each piece is timed.
        about: what each row says beside its variant and times.
        warm_up: how many further rounds come first, which do not count.

    Returns a row for each piece: its name (variant), its seconds in each round, and their
    ratios to the first piece's seconds in that round."""
    names = list(work)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    title = str(about["part"])
    for turn in tqdm(range(rounds + warm_up), title, leave=False, disable=None):
        # Each round begins with another piece
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            piece_seconds = _seconds(work[name])
            if turn >= warm_up:
                seconds[name].append(piece_seconds)
    rows = []
    for name in names:
        ratios = []
        for piece_seconds, first_seconds in zip(
            seconds[name], seconds[names[0]], strict=True
        ):
            ratios.append(piece_seconds / first_seconds)
        row = about | {"variant": name, "seconds": seconds[name], "ratios": ratios}
        rows.append(row)
    return rows


def _seconds(piece: Callable[[], Any]) -> float:
    """The seconds of a piece of work, or what it returns if that is a float."""
    started = time.perf_counter()
    result = piece()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if isinstance(result, float):
        return result
    return time.perf_counter() - started


def markdown(rows: list[Row]) -> str:
    """The rows as Markdown tables, one for each part. Columns are in the order in which
    rows first have them."""
    tables = []
    for _, rows_of_part in groupby(rows, lambda row: row["part"]):
        texts_of_rows = [_cells(row) for row in rows_of_part]
        columns: dict[str, None] = {}  # a dictionary, since a set has no order
        for texts in texts_of_rows:
            columns |= dict.fromkeys(texts)
        rule = ["---" if name in ("model", "variant") else "---:" for name in columns]
        lines = [list(columns), rule]
        for texts in texts_of_rows:
            lines.append([texts.get(name, "-") for name in columns])
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(tables)


def _cells(row: Row) -> dict[str, str]:
    """The texts of a row by the names of the columns: its values as they are, but of its
    seconds the least and the median, and of its ratios the median and the range. The
    part is no column, since each part has a table of its own."""
    texts = {}
    for name, value in row.items():
        if name not in ("part", "seconds", "ratios"):
            texts[name] = f"{value:,}" if isinstance(value, int) else str(value)
    if "seconds" in row:
        seconds, ratios = row["seconds"], row["ratios"]
        texts["least"] = f"{min(seconds):.3g} s"
        texts["median"] = f"{statistics.median(seconds):.3g} s"
        texts["ratio"] = f"{statistics.median(ratios):.2f}"
        texts["of a round"] = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return texts


# --- models


class Shape(NamedTuple):
    """A model that is measured. label: its name in tables. rank: VeRA's. config: its
    transformers configuration. sequence: the tokens of each sequence of a batch."""

    label: str
    rank: int
    config: dict[str, Any]
    sequence: int = 128


ROBERTA: dict[str, Any] = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
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
# One block of the size of those in Llama's 7B
LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 256}
#: The models; only the first is measured without full=true.
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


def share_weights(base: nn.Module) -> nn.Module:
    """A frozen copy of a model whose weights are the same tensors in memory, so that many
    variants take no more memory than one."""
    # deepcopy takes these for copies that it has already made
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()
    }
    return copy.deepcopy(base, memo)


def variant(name: str, base: nn.Module, shape: Shape) -> nn.Module:
    """A copy of the base model with the trained parameters of a variant. name: one of
    METHODS or MORE_METHODS; "VeRA" may be followed by its path, the way in which it
    computes ("VeRA factor")."""
    if name == "full":
        return copy.deepcopy(base).requires_grad_(True)
    model = share_weights(base)
    if name.startswith("peft"):
        import peft

        config_class: Any = peft.LoraConfig
        rank = 8
        if name == "peft VeRA":
            config_class = peft.VeraConfig
            rank = shape.rank
        paths = list(find_sites(model, ("query", "value")))
        return peft.get_peft_model(model, config_class(r=rank, target_modules=paths))
    path: Any = name.removeprefix("VeRA").strip() or "auto"
    vera.VeRA(rank=shape.rank, path=path).adapt(model)
    return model


def batch_of(shape: Shape, base: nn.Module, tokens: int) -> Tensor:
    """The embeddings of a random batch with this number of tokens in all, (sequences,
    tokens, width). A model of one layer stands for a block in the middle of a stack: its
    input needs a gradient, too."""
    sequence = min(shape.sequence, tokens)
    ids = torch.randint(
        3, shape.config["vocab_size"], (tokens // sequence, sequence), device=DEVICE
    )
    embedded: Tensor = base.get_input_embeddings()(ids).detach()  # type: ignore[operator]
    return embedded.requires_grad_(shape.config.get("num_hidden_layers") == 1)


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss for timing: the mean absolute value of the last hidden states. batch: the
    embeddings from `batch_of`."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
        states: Tensor = model(inputs_embeds=batch)[0]
        return states.float().abs().mean()


def stepper(model: nn.Module) -> Callable[[Tensor], None]:
    """A function that does a whole training step of a model on a batch."""
    optimizer = torch.optim.AdamW(
        [p for p in model.train().parameters() if p.requires_grad], lr=1e-4
    )

    def step(batch: Tensor) -> None:
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


# --- steps

#: The variants that are timed; the time of each is divided by that of the first one.
METHODS = ("peft LoRA r=8", "VeRA", "peft VeRA")
#: Further ones, with full=true.
MORE_METHODS = ("VeRA factor", "VeRA hybrid", "VeRA materialised", "full")


def training(full: bool) -> list[Row]:
    """Times whole training steps of each model and variant, and measures the peak memory of
    two steps in a process of their own. full: with all models, variants and lengths."""
    rows = []
    names = list(METHODS)
    shapes = list(SHAPES[:1])
    lengths = [512, 1024, 2048]
    rounds = 3
    if full:
        names += MORE_METHODS
        shapes = list(SHAPES)
        lengths.append(4096)
        rounds = 5
    if DEVICE == "cuda":
        # With fewer tokens, launching the kernels is most of the time
        lengths += [16384, 32768]
    for shape in shapes:
        base = base_model(shape)
        steps = {name: stepper(variant(name, base, shape)) for name in names}
        for tokens in lengths:
            batch = batch_of(shape, base, tokens)
            work = {name: partial(step, batch) for name, step in steps.items()}
            about = {"part": "training", "model": shape.label, "tokens": tokens}
            rows += time_in_turns(work, rounds, about)
        del base, steps, work
        gc.collect()
    for shape in shapes:
        for name in METHODS:
            with multiprocessing.get_context("spawn").Pool(1, end_with_parent) as pool:
                peak = pool.apply(_peak_of_steps, (name, shape, lengths[1]))
            about = {
                "part": "memory",
                "model": shape.label,
                "tokens": lengths[1],
                "variant": name,
            }
            rows.append(about | {"bytes": peak})
    return rows


def _peak_of_steps(name: str, shape: Shape, tokens: int) -> int:
    """The peak memory, in bytes, of a process that does two steps of a variant."""
    base = base_model(shape)
    step = stepper(variant(name, base, shape))
    batch = batch_of(shape, base, tokens)
    for _ in range(2):
        step(batch)
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else peak_memory()


# --- a run beside others

#: The environment variables of each way of waiting, by its name. By default a thread of
#: GCC's OpenMP turns a loop 300,000 times before it sleeps.
WAITS = {
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
    "the harness's": SPINNING,
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
#: How many other processes keep the cores busy.
BUSY = 2
#: The Python code that each of them runs. It ends with this process.
BUSY_LOOP = f"import os\nwhile os.getppid() == {os.getpid()}: pass"


def contention(full: bool) -> list[Row]:
    """Times an epoch of full fine-tuning, MiniLM on reviews, for each way in which threads
    wait: on a machine that is idle otherwise, and beside busy processes. full: three times
    instead of once."""
    _epoch(waits={}, busy=0)  # fetches model and data
    work = {}
    for busy in (0, BUSY):
        for name, waits in WAITS.items():
            title = f"{name}, beside {busy} busy processes"
            work[title] = partial(_epoch, waits=waits, busy=busy)
    rounds = 3 if full else 1
    return time_in_turns(work, rounds, {"part": "contention"}, warm_up=0)


def _epoch(waits: dict[str, str], busy: int) -> float:
    """Does a run of one epoch. Returns the seconds that it took to train and to evaluate,
    from its record. waits: a value of WAITS. busy: how many busy processes are beside
    it."""
    command = [sys.executable, "-m", "runs", "task=reviews", "model=minilm"]
    command += ["method=full", "train.epochs=1"]
    command += ["keep=none", "tracking=off", "table=false"]
    environment = dict(os.environ)
    # the user's own choice of how threads wait
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        environment.pop(name, None)
    environment |= waits
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for _ in range(busy):
            process = subprocess.Popen([sys.executable, "-c", BUSY_LOOP])
            stack.enter_context(process)
            stack.callback(process.kill)
        command.append(f"output={folder}")
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            last_line = ended.stderr.strip().splitlines()[-1:]
            raise UserError(f"the run that is timed failed: {last_line}")
        (record,) = Path(folder).glob("records/*.json")
        cost = json.loads(record.read_text())["cost"]
    return float(cost["train_seconds"] + cost["evaluate_seconds"])
