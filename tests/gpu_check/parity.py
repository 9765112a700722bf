"""Outputs and gradients on the device beside float64 on the CPU, for tiny models of every architecture."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from support import METHODS
from tiny import ARCHITECTURES, answer, shake, tiny
from torch import Tensor, nn

import vera
from gpu_check.report import Report

#: Ways in which VeRA is computed: its path, and whether merged weights are kept for the gradient.
WAYS = (
    ("factor", "auto"),
    *((path, weights) for path in ("hybrid", "materialised") for weights in ("keep", "recompute")),
)
#: How far a precision may be off, relative to the whole.
LIMITS = {"fp32": 1e-4, "bf16": 6e-2}
Make = Callable[[str], vera.Method]


def run(report: Report, home: Path) -> None:
    # As fp32 has it in a run (runs/training/flags.py); torch's default is TF32 in convolutions.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    methods: dict[str, Make] = {f"VeRA, {' '.join(way)}": of_vera(*way) for way in WAYS} | METHODS
    worst = dict.fromkeys(LIMITS, (0.0, "nothing"))
    count, refused = 0, 0
    for architecture in ARCHITECTURES:
        for name, make in methods.items():
            pair = f"{name} on {architecture}"
            with report.guarded(pair):
                off = distances(architecture, make(architecture), report.device)
                if off is None:
                    refused += 1
                    continue
                count += 1
                for precision, distance in off.items():
                    worst[precision] = max(worst[precision], (distance, pair))
                    if not distance < LIMITS[precision]:  # nor what is no number
                        report.check(f"{precision}: {pair}", False, f"off by {distance:.1e}")
    for precision, limit in LIMITS.items():
        distance, pair = worst[precision]
        report.check(
            f"{precision}: output and gradients of {count} pairs beside float64",
            distance < limit and count > 0,
            f"at most {distance:.1e} off ({pair}), limit {limit:g}; {refused} pairs are refused",
            worst=distance,
        )


def of_vera(path: str, weights: str) -> Make:
    return lambda architecture: vera.VeRA(rank=40, path=path, weights=weights)


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
    """The output, and the gradients of what trains as one tensor, on the CPU in float64."""
    hook = model.register_forward_pre_hook(
        lambda module, given, named: (
            tuple(x.to(device) for x in given),
            {name: x.to(device) for name, x in named.items()},
        ),
        with_kwargs=True,
    )
    with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        output = answer(model)
    hook.remove()
    gradients = []
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained:
        output.to(
            torch.float64 if output.dtype == torch.float64 else torch.float32
        ).square().mean().backward()
        missing = [p for p in trained if p.grad is None]
        if missing:
            raise AssertionError(f"{len(missing)} of {len(trained)} parameters got no gradient")
        # By the name of what a parameter is (b, d, a bias): one large gradient does not hide the small ones.
        groups: dict[str, list[Tensor]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                groups.setdefault(name.rpartition(".")[2], []).append(p.grad.cpu().double().flatten())
        gradients = [torch.cat(group) for group in groups.values()]
    return [output.detach().cpu().double(), *gradients]


def off(got: Tensor, want: Tensor) -> float:
    """Relative to the whole; NaN counts as infinitely far."""
    distance = float((got - want).norm() / want.norm().clamp(min=1e-12))
    return distance if distance == distance else float("inf")
