"""How what a run trains with is made: task, model and method, optimizer, rates, and batches."""

import math
import os
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

# Read once, when CUDA starts: cuBLAS deterministic
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import tasks
import vera
from runs import models
from runs.config import Run
from runs.errors import UserError
from runs.identity import start_file
from runs.methods import make_method
from runs.rates import patterns_of


def make_accelerator(run: Run) -> Accelerator:
    """Device, precision and data parallel, as the run has them. Raises UserError for a device that is not
    here."""
    device, precision = run.config["device"], run.config["train"]["precision"]
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: torch sees no CUDA device here. device=auto takes what there is")
    # Accelerate keeps its settings for the whole process; the next run here may want another precision.
    AcceleratorState._reset_state()
    # AdapterDrop leaves other adapters without a gradient in each batch.
    unused = DistributedDataParallelKwargs(find_unused_parameters=bool(run.method.get("drop_per_batch")))
    return Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=device == "cpu",
        kwargs_handlers=[unused],
    )


def build(run: Run, device: torch.device, start: bool = True) -> tuple[tasks.Task, Any, vera.Method]:
    """A run's task, its adapted model (on the CPU, but for one in 4 bit) and its method.

    Seeds everything before: the head's and LoRA's initial values come from the seed (transformers 11965).
    start: fill the adapter from the run or file that init_from names. device: where a 4-bit model is loaded.
    """
    config = run.config
    method = make_method(run.method)
    task = tasks.load(config["task"])
    folder, modality = models.fetch(config["model"]), config["model"]["modality"]
    models.check_memory(folder, config, device)
    seed_everything(config["seed"])
    compute = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config["train"]["precision"], torch.float32)
    quantise = compute if config["model"].get("quantise") else None
    model, tokenizer = models.load(
        folder, task.num_labels, task.problem, config["model"].get("settings"), modality, quantise, device
    )
    if modality == "image":
        task.prepare(tokenizer, 0)
    else:
        # RoBERTa's positions begin after its padding index.
        padding = 2 * ("roberta" in model.config.model_type)
        positions = getattr(model.config, "max_position_embeddings", 512) - padding
        length = min(config["train"]["max_length"], positions, tokenizer.model_max_length)
        task.prepare(tokenizer, length, positions)
    method.adapt(model)
    if start and config["init_from"]:
        vera.start_from(model, start_file(run))
    return task, model, method


def seed_everything(seed: int) -> None:
    """Python's, numpy's and torch's generators, and deterministic kernels where torch has them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # use_deterministic_algorithms does the same, and imports the compiler: 2 s
    torch.set_deterministic_debug_mode("warn")
    # A debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def checkpoint_gradients(model: nn.Module) -> None:
    """Has the model compute activations anew in the backward pass. Raises UserError where it cannot."""
    # The second name: before transformers 5.24
    enable: Any = getattr(model, "activation_checkpointing_enable", None)
    try:
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})  # type: ignore[operator]
    except (ValueError, AttributeError):
        raise UserError(
            f"gradient_checkpointing=true: a {type(model).__name__} cannot do that, set it to false"
        ) from None


def optimizer_groups(method: vera.Method, model: nn.Module, train: dict[str, Any]) -> list[dict[str, Any]]:
    """Named groups "adapter" and "head" with their learning rates; what train.lr_by names apart, and biases
    and LayerNorms, without weight decay (unless train.decay_all)."""
    norms = {
        id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)
    }
    named, rates = method.parameter_groups(model), train.get("lr_by") or {}
    pattern_of = patterns_of([name for parameters in named.values() for name in parameters], rates)
    groups = []
    for name, parameters in named.items():
        free = set[str]()
        if not train["decay_all"]:
            free = {n for n, p in parameters.items() if n.endswith("bias") or id(p) in norms}
        for pattern in (None, *rates):
            rate = train["lr_head" if name == "head" else "lr"] if pattern is None else rates[pattern]
            own = {n: p for n, p in parameters.items() if pattern_of.get(n) == pattern}
            title = name if pattern is None else f"{name} {pattern}"
            for suffix, decay, members in (
                ("", train["weight_decay"], [p for n, p in own.items() if n not in free]),
                (" (no decay)", 0.0, [p for n, p in own.items() if n in free]),
            ):
                if members:
                    groups.append(
                        {"name": title + suffix, "lr": rate, "weight_decay": decay, "params": members}
                    )
    return groups


def make_optimizer(groups: list[dict[str, Any]], train: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW over these groups; over an empty one where nothing trains (method=none)."""
    nothing = {"name": "nothing", "lr": 0.0, "weight_decay": 0.0, "params": [nn.Parameter(torch.zeros(0))]}
    return torch.optim.AdamW(groups or [nothing], betas=(0.9, 0.999), eps=train["adam_eps"])


def make_schedule(optimizer: torch.optim.Optimizer, train: dict[str, Any], total: int) -> LambdaLR:
    """The rates by step: a warm-up, and the recipe's schedule to the end."""
    warmup = train["warmup_steps"]
    warmup = math.ceil(train["warmup_ratio"] * total) if warmup is None else warmup
    return LambdaLR(optimizer, partial(rate_factor, kind=train["schedule"], warmup=warmup, total=total))


def rate_factor(step: int, kind: str, warmup: int, total: int) -> float:
    """What the learning rates are multiplied by: from 0 to 1 over the warm-up, then linear or cosine to 0, or
    constant.

    transformers' own (get_scheduler), to the bit; its import takes four seconds, since peft and bitsandbytes
    come along."""
    if step < warmup:
        return step / warmup
    span = max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * ((step - warmup) / span)))
    return {"linear": max(0.0, (total - step) / span), "cosine": cosine, "constant": 1.0}[kind]


def epoch_batches(
    lengths: Sequence[int], size: int, seed: int, epoch: int, block: int = 8
) -> list[list[int]]:
    """The rows of each effective batch of an epoch: a pure function, so that a resumed run sees the same
    batches.

    block: within so many batches rows are sorted by length (see tasks.Task); which rows meet still changes
    from epoch to epoch.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(len(lengths)).tolist()
    batches = []
    for start in range(0, len(order), size * block):
        part = order[start : start + size * block]
        if block > 1:
            part.sort(key=lambda row: lengths[row])
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[i] for i in generator.permutation(len(batches))]
