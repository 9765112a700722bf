"""Builds the parts of a run: task, model and method, optimizer, learning rates, and batches."""

import math
import os
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import tasks
import vera
from runs import models
from runs.errors import UserError
from runs.gpus import check_usable
from runs.identity import start_file
from runs.methods import make_method
from runs.rates import patterns_of
from runs.run import Run
from runs.training.flags import set_flags


def make_accelerator(run: Run) -> Accelerator:
    """Device, precision and data parallel of a run. Raises UserError for a device that is not available."""
    device, precision = run.config["device"], run.config["train"]["precision"]
    on_gpu = check_usable(device)
    if precision == "tf32" and not on_gpu:
        raise UserError("train.precision=tf32: only a GPU computes so. Here it would be fp32")
    on_cpu = device == "cpu" or not (on_gpu or torch.backends.mps.is_available())
    if precision == "fp16" and on_cpu:
        raise UserError("train.precision=fp16: a CPU computes fp32 all the same. bf16 is for both")
    # Accelerate's settings hold for the whole process; a run before may have had others.
    AcceleratorState._reset_state(reset_partial_state="LOCAL_RANK" not in os.environ)
    # AdapterDrop leaves other adapters without a gradient in each batch.
    # What is frozen, A and B included, is the same on every process: nothing of it has to travel.
    parallel = DistributedDataParallelKwargs(
        find_unused_parameters=bool(run.method.get("drop_per_batch")), broadcast_buffers=False
    )
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "tf32": "no"}.get(precision, precision),
        cpu=device == "cpu",
        # Or a variable of the environment would divide every loss
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[parallel],
    )
    set_flags(run, accelerator.device)
    return accelerator


def build(run: Run, device: torch.device, start: bool = True) -> tuple[tasks.Task, Any, vera.Method]:
    """A run's task, its adapted model (on the CPU, or in 4 bit on `device`) and its method.

    Seeds all generators first: the initial values of the head and of LoRA come from the seed (transformers
    issue 11965). start: fill the adapter from the run or file that init_from names. Without it, for the files
    of a finished run, another seed draws the values, so that what the files lack does not come back.
    """
    config = run.config
    method = make_method(run.method)
    task = tasks.load(config["task"])
    folder, modality = models.fetch(config["model"]), config["model"]["modality"]
    models.check_memory(folder, config, device)
    # Where nothing trains, no file holds the head
    seed_everything(config["seed"] + (not start and method.kind != "none"))
    compute = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config["train"]["precision"], torch.float32)
    quantise = compute if config["model"].get("quantise") else None
    model, tokenizer = models.load(
        folder, task.num_labels, task.problem, config["model"].get("settings"), modality, quantise, device
    )
    if modality == "image":
        task.prepare(tokenizer, 0)
    else:
        positions = getattr(model.config, "max_position_embeddings", 512) - _first_position(model)
        length = min(config["train"]["max_length"], positions, tokenizer.model_max_length)
        task.prepare(tokenizer, length, positions)
    method.adapt(model)
    if start and config["init_from"]:
        vera.start_from(model, start_file(run))
    return task, model, method


def _first_position(model: Any) -> int:
    """Where a model's positions begin: RoBERTa's, MPNet's and CamemBERT's after the padding index."""
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    padding = getattr(tables[0], "padding_idx", None) if tables else None
    return 0 if padding is None else padding + 1


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_process(seed: int, step: int, process: int) -> None:
    """Seeds torch's generators in one of several processes, for a step."""
    (state,) = np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)
    torch.manual_seed(int(state >> 1))


def checkpoint_gradients(model: nn.Module) -> None:
    """Makes the model recompute activations in the backward pass. Raises UserError where it cannot."""
    # Before transformers 5.24 it has the second name
    enable: Any = getattr(model, "activation_checkpointing_enable", None)
    try:
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})  # type: ignore[operator]
    except (ValueError, AttributeError):
        raise UserError(
            f"gradient_checkpointing=true: a {type(model).__name__} cannot do that, set it to false"
        ) from None


def optimizer_groups(method: vera.Method, model: nn.Module, train: dict[str, Any]) -> list[dict[str, Any]]:
    """The optimizer's groups "adapter" and "head" with their learning rates. Parameters that train.lr_by or
    train.decay_by names, and biases and LayerNorms (no weight decay, unless train.decay_all or decay_by says
    so), are groups of their own."""
    norms = {
        id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)
    }
    rates, decays = train.get("lr_by") or {}, train.get("decay_by") or {}
    named = method.parameter_groups(model)
    names = [name for parameters in named.values() for name in parameters]
    pattern_of, decay_by = patterns_of(names, rates), patterns_of(names, decays, "decay_by")
    groups = []
    for name, parameters in named.items():
        decay_of = dict[str, float]()
        if not train["decay_all"]:
            decay_of = {n: 0.0 for n, p in parameters.items() if n.endswith("bias") or id(p) in norms}
        decay_of |= {n: decays[decay_by[n]] for n in parameters if n in decay_by}
        for pattern in (None, *rates):
            rate = train["lr_head" if name == "head" else "lr"] if pattern is None else rates[pattern]
            own = {n: p for n, p in parameters.items() if pattern_of.get(n) == pattern}
            title = name if pattern is None else f"{name} {pattern}"
            for decay in dict.fromkeys((None, *decay_of.values())):
                members = [p for n, p in own.items() if decay_of.get(n) == decay]
                suffix = f" (decay {decay:g})" if decay else "" if decay is None else " (no decay)"
                value = train["weight_decay"] if decay is None else decay
                if members:
                    groups.append(
                        {"name": title + suffix, "lr": rate, "weight_decay": value, "params": members}
                    )
    return groups


def make_optimizer(
    groups: list[dict[str, Any]], train: dict[str, Any], device: torch.device
) -> torch.optim.Optimizer:
    """AdamW on these groups, whose parameters are on the device; on an empty one where nothing trains
    (method=none)."""
    nothing = {"name": "nothing", "lr": 0.0, "weight_decay": 0.0, "params": [nn.Parameter(torch.zeros(0))]}
    # A kernel for many tensors, instead of several for each. In fp16 it would skip a step by itself, unseen
    # by accelerate, and a method's after_step would take gradients that overflowed
    fused = bool(groups) and device.type == "cuda" and train["precision"] != "fp16"
    return torch.optim.AdamW(
        groups or [nothing], betas=(0.9, train["adam_beta2"]), eps=train["adam_eps"], fused=fused or None
    )


#: After so many steps without a gradient a method is refused. A few may be without: of a token that is not in
#: the batch, under a head that starts at 0.
WITHOUT_GRADIENT = 20


def reaches(method: vera.Method, model: nn.Module, step: int, total: int) -> bool:
    """Whether the last backward pass gave a gradient to anything that a method adds or unfreezes; True where
    that is nothing. Raises AdapterError where it has had none for too long: its run would be the head's
    alone."""
    trained = method.adapter_parameters(model)
    if not trained or any(p.grad is not None and bool(p.grad.any()) for p in trained.values()):
        return True
    if step + 1 >= min(WITHOUT_GRADIENT, total):
        raise vera.AdapterError(
            f"no gradient has reached what {type(method).__name__} trains (such as {next(iter(trained))})."
            " It has to be used in forward, and of a product not all factors may start at 0"
        )
    return False


def make_schedule(optimizer: torch.optim.Optimizer, train: dict[str, Any], total: int) -> LambdaLR:
    """The learning rates by step: a warm-up, then the recipe's schedule. total: all steps."""
    warmup = train["warmup_steps"]
    warmup = math.ceil(train["warmup_ratio"] * total) if warmup is None else warmup
    return LambdaLR(optimizer, partial(rate_factor, kind=train["schedule"], warmup=warmup, total=total))


def set_rates(scheduler: LambdaLR, step: int) -> None:
    """Puts a schedule that was made at step 0, and its optimizer's learning rates, to a later step."""
    scheduler.last_epoch = step
    for group, rate, factor in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = rate * factor(step)


def rate_factor(step: int, kind: str, warmup: int, total: int) -> float:
    """The factor of the learning rates at a step: from 0 to 1 over the warm-up, then linear or cosine to 0,
    or constant.

    The same to the bit as transformers' get_scheduler, whose import takes four seconds (it brings in peft and
    bitsandbytes)."""
    if step < warmup:
        return step / warmup
    span = max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * ((step - warmup) / span)))
    return {"linear": max(0.0, (total - step) / span), "cosine": cosine, "constant": 1.0}[kind]


def epoch_batches(
    lengths: Sequence[int], size: int, seed: int, epoch: int, block: int = 8
) -> list[list[int]]:
    """The rows of each effective batch of an epoch. A pure function: a resumed run has the same batches.

    block: so many batches at a time, rows are sorted by length (see tasks.Task); which rows share a batch
    still changes from epoch to epoch.
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


def dev_halves(rows: int) -> tuple[Any, Any]:
    """The dev rows of the halves A and B for cross-fitted selection: the same for every run and seed."""
    order = np.random.Generator(np.random.Philox(key=[0, rows])).permutation(rows)
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


#: A method that trains a larger share of the model is no small adapter, and its record says so.
LARGE_SHARE = 0.05


def count(model: nn.Module) -> int:
    """A model's parameters; in 4 bit, a byte holds two."""
    return sum(p.numel() * (1 if p.is_floating_point() else 2) for p in model.parameters())


def large_share(method: vera.Method, model: nn.Module) -> list[str]:
    """A sentence where a method other than full fine-tuning trains much of the model (without its head)."""
    trained = sum(p.numel() for p in method.adapter_parameters(model).values())
    share = trained / count(model)
    if method.kind == "full" or share <= LARGE_SHARE:
        return []
    return [f"trains {100 * share:.1f}% of the model's parameters ({trained:,}), as no small adapter does"]
