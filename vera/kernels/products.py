"""Products with a frozen matrix, by the quickest kernel that there is.

On a CPU, products of float32 are oneDNN's where torch takes MKL. One switch turns that
off everywhere: `torch.backends.mkldnn.enabled = False`."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

#: Elements of an input from which oneDNN is worth its overhead.
SMALLEST = 2**14


class _FrozenLinear(torch.autograd.Function):
    """x W^T for a frozen W, which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return frozen_linear(output_gradient, weight.T), None


def frozen_linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear for a frozen weight.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs). It gets no gradient where oneDNN computes.

    Returns:
        x W^T, (..., outputs).
    """
    if usable(x, weight):
        return cast(Tensor, _FrozenLinear.apply(x, weight))  # type: ignore[no-untyped-call]
    return F.linear(x, weight)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear without autograd.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs).
        bias: (outputs,).

    Returns:
        x W^T + bias, (..., outputs).
    """
    if usable(x, weight):
        output = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return cast(Tensor, output)
    return F.linear(x, weight, bias)


def usable(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes a product: float32 on a CPU, by the operator that
    torch.compile uses there.

    torch itself takes MKL, which was a quarter slower on an AMD processor. Of a slice
    such as A[:, :inputs], oneDNN has no fast kernel: it took a thousand times as
    long."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() >= SMALLEST
        and (weight.is_contiguous() or weight.T.is_contiguous())
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and not traced()
        and not torch.is_autocast_enabled("cpu")
    )


def traced() -> bool:
    """Whether torch.compile or a transform of torch.func follows along: both need plain
    operations."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
