"""Outputs and gradients beside float64 on the CPU, of every architecture, tiny; on a
CPU of two alone."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from support import METHODS
from tiny import ARCHITECTURES, answer, shake, tiny
from torch import Tensor, nn

import vera
from gpu_check import DEVICE, cases
from runs.config import expand
from runs.training.determinism import set_flags

pytestmark = [pytest.mark.parity, pytest.mark.slow]

#: How far a precision may be off, relative to the whole.
LIMITS = {"fp32": 1e-4, "bf16": 6e-2}


def of_vera(path: str, weights: str, architecture: str) -> vera.Method:
    return vera.VeRA(rank=40, path=path, weights=weights)


#: And the ways in which VeRA is computed: its path, and whether merged weights are kept
#: for the gradient.
WAYS = METHODS | {
    f"VeRA, {path} {weights}": partial(of_vera, path, weights)
    for path in ("factor", "hybrid", "materialised")
    for weights in ("keep", "recompute")
}


@pytest.fixture(autouse=True)
def lax():
    """fp32 without TF32; determinism costs methods of peft."""
    (own,) = expand(["model=roberta_base", "task=rte", "method=vera", "seed=0"])
    set_flags(own, torch.device(DEVICE))
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize(
    ("architecture", "method"),
    cases([*product(ARCHITECTURES, WAYS)], product(("RoBERTa", "ViT of timm"), WAYS)),
)
def test_output_and_gradients_beside_float64(architecture, method, found):
    distance = distances(architecture, WAYS[method](architecture), DEVICE)
    words = ", ".join(
        f"{precision} {off:.1e} off" for precision, off in (distance or {}).items()
    )
    found(words or "the pair is refused", off=distance)
    for precision, far in (distance or {}).items():  # nor what is no number
        assert far < LIMITS[precision], f"{precision}: {far:.1e} off"


def distances(
    architecture: str, method: vera.Method, device: str
) -> dict[str, float] | None:
    """By precision, how far the output or a gradient is off, at most; None for a pair
    that is refused."""
    model = tiny(architecture)
    try:
        method.adapt(model)
    except vera.AdapterError:
        return None
    method.before_training(model, 10)
    # Of peft's, RandLoRA's scales start near zero: moved as far as ours, they saturate
    # attention.
    shake(model, 0.01 if method.kind == "peft" else 0.05)
    exact = results(copy.deepcopy(model).double(), "cpu", None)
    found = {}
    for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        here = results(copy.deepcopy(model).to(device), device, dtype)
        found[precision] = max(
            off(got, want) for got, want in zip(here, exact, strict=True)
        )
    return found


def results(model: nn.Module, device: str, dtype: torch.dtype | None) -> list[Tensor]:
    """The output, and the gradients of what trains, one tensor for each kind (b, d, a
    bias: a large gradient does not hide small ones), on the CPU in float64."""
    move: Callable = lambda module, given, named: (  # noqa: E731
        tuple(x.to(device) for x in given),
        {name: x.to(device) for name, x in named.items()},
    )
    hook = model.register_forward_pre_hook(move, with_kwargs=True)
    with torch.autocast(
        device, dtype=dtype or torch.bfloat16, enabled=dtype is not None
    ):
        output = answer(model)
    hook.remove()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trained:
        (
            output if output.dtype == torch.float64 else output.float()
        ).square().mean().backward()
    missing = [name for name, p in trained.items() if p.grad is None]
    assert not missing, f"{len(missing)} of {len(trained)} parameters got no gradient"
    groups: dict[str, list[Tensor]] = {}
    for name, p in trained.items():
        groups.setdefault(name.rpartition(".")[2], []).append(
            p.grad.cpu().double().flatten()
        )
    return [
        output.detach().cpu().double(),
        *(torch.cat(group) for group in groups.values()),
    ]


def off(got: Tensor, want: Tensor) -> float:
    """Relative to the whole; NaN counts as infinitely far."""
    distance = float((got - want).norm() / want.norm().clamp(min=1e-12))
    return distance if distance == distance else float("inf")


def test_a_gradient_that_is_off_or_is_none_would_be_seen():
    ones = torch.ones(4, dtype=torch.float64)
    assert off(ones, ones) == 0
    assert off(ones * (1 + 1e-3), ones) == pytest.approx(1e-3)
    assert off(ones * torch.nan, ones) == float("inf")
    good = distances("BERT", of_vera("materialised", "keep", "BERT"), "cpu")
    assert good["fp32"] < 1e-5 < good["bf16"] < LIMITS["bf16"]
