"""Outputs and gradients beside float64 on the CPU, of every architecture, tiny; on a CPU of two alone."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from gpu_check.report import Report
from support import METHODS
from tiny import ARCHITECTURES, answer, shake, tiny
from torch import Tensor, nn

import vera
from runs.config import expand
from runs.training.context import set_flags

#: Ways in which VeRA is computed: its path, and whether merged weights are kept for the gradient.
WAYS = (
    ("factor", "auto"),
    *((path, weights) for path in ("hybrid", "materialised") for weights in ("keep", "recompute")),
)
#: How far a precision may be off, relative to the whole.
LIMITS = {"fp32": 1e-4, "bf16": 6e-2}


def run(report: Report, home: Path) -> None:
    (own,) = expand(["model=roberta_base", "task=rte", "method=vera", "seed=0"])
    set_flags(own, torch.device(report.device))  # fp32 without TF32; determinism costs methods of peft
    torch.use_deterministic_algorithms(False)
    methods = {f"VeRA, {' '.join(way)}": partial(of_vera, *way) for way in WAYS} | METHODS
    found: dict[str, dict[str, float]] = {}
    refused = 0
    for architecture in ARCHITECTURES if report.on_gpu else ("RoBERTa", "ViT of timm"):
        for name, make in methods.items():
            pair = f"{name} on {architecture}"
            with report.guarded(pair):
                distance = distances(architecture, make(architecture), report.device)
                refused += distance is None
                found |= {pair: distance} if distance else {}
    for precision, limit in LIMITS.items():
        worst = sorted(found, key=lambda pair: -found[pair][precision])
        wrong = [pair for pair in worst if not found[pair][precision] < limit]  # nor what is no number
        report.check(
            f"{precision}: output and gradients of {len(found)} pairs beside float64",
            bool(found) and not wrong,
            f"at most {found[worst[0]][precision]:.1e} off ({'; '.join(wrong[:9]) or worst[0]}), limit"
            f" {limit:g}; {refused} pairs are refused",
            worst=found[worst[0]][precision],
        )


def of_vera(path: str, weights: str, architecture: str) -> vera.Method:
    return vera.VeRA(rank=40, path=path, weights=weights)


def distances(architecture: str, method: vera.Method, device: str) -> dict[str, float] | None:
    """By precision, how far the output or a gradient is off, at most; None for a pair that is refused."""
    model = tiny(architecture)
    try:
        method.adapt(model)
    except vera.AdapterError:
        return None
    method.before_training(model, 10)
    # Of peft's, RandLoRA's scales start near zero: moved as far as ours, they saturate attention.
    shake(model, 0.01 if method.kind == "peft" else 0.05)
    exact = results(copy.deepcopy(model).double(), "cpu", None)
    found = {}
    for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        here = results(copy.deepcopy(model).to(device), device, dtype)
        found[precision] = max(off(got, want) for got, want in zip(here, exact, strict=True))
    return found


def results(model: nn.Module, device: str, dtype: torch.dtype | None) -> list[Tensor]:
    """The output, and the gradients of what trains, one tensor for each kind (b, d, a bias: a large gradient
    does not hide small ones), on the CPU in float64."""
    move: Callable = lambda module, given, named: (  # noqa: E731
        tuple(x.to(device) for x in given),
        {name: x.to(device) for name, x in named.items()},
    )
    hook = model.register_forward_pre_hook(move, with_kwargs=True)
    with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        output = answer(model)
    hook.remove()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trained:
        (output if output.dtype == torch.float64 else output.float()).square().mean().backward()
    if missing := [name for name, p in trained.items() if p.grad is None]:
        raise AssertionError(f"{len(missing)} of {len(trained)} parameters got no gradient")
    groups: dict[str, list[Tensor]] = {}
    for name, p in trained.items():
        groups.setdefault(name.rpartition(".")[2], []).append(p.grad.cpu().double().flatten())
    return [output.detach().cpu().double(), *(torch.cat(group) for group in groups.values())]


def off(got: Tensor, want: Tensor) -> float:
    """Relative to the whole; NaN counts as infinitely far."""
    distance = float((got - want).norm() / want.norm().clamp(min=1e-12))
    return distance if distance == distance else float("inf")
