"""Whether a tuner of peft trains over quantised weights. Many fail there, and one trains nothing."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError, first_line


def is_quantised(model: nn.Module) -> bool:
    """Whether the model has weights that are packed into whole numbers."""
    return any(not p.is_floating_point() for p in model.parameters())


def check_quantised(owner: str, model: nn.Module) -> None:
    """Raises AdapterError where an adapted layer over quantised weights does not run, or gives its adapter no
    gradient. One layer of each shape is tried, on a copy that shares the weights."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    tried = set()
    for path, layer in model.named_modules():
        base: Any = layer._modules.get("base_layer")
        if base is None or not is_quantised(base) or not hasattr(base, "in_features"):
            continue
        shape = type(layer), base.in_features, base.out_features, base.bias is not None
        if shape in tried:
            continue
        tried.add(shape)
        first = next(base.parameters())
        generator = torch.Generator().manual_seed(0)
        # Both of a batch's dimensions: peft adds in place to what may be a view of a matrix
        inputs = torch.randn(2, 3, base.in_features, generator=generator).to(first.device, dtype)
        try:
            gradients = _gradients(layer, inputs.requires_grad_())
        except Exception as error:
            raise AdapterError(_refusal(owner, first_line(error).partition(". ")[0])) from None
        if not any(g is not None and bool(g.any()) for g in gradients):
            raise AdapterError(_refusal(owner, f"no gradient reaches the adapter of {path}"))


def _refusal(owner: str, why: str) -> str:
    return f"{owner} does not train over quantised weights ({why}). Load the base model unquantised"


def _gradients(layer: nn.Module, inputs: Tensor) -> tuple[Tensor | None, ...]:
    """Of the adapter's parameters. Neither the layer nor any of its tensors changes."""
    shared = {id(t): t for t in [*layer.parameters(), *layer.buffers()]}
    trial = copy.deepcopy(layer, dict(shared)).eval()
    trained = [p for p in trial.parameters() if p.requires_grad]
    with torch.enable_grad():
        output = trial(inputs)
        return torch.autograd.grad((output * output.detach()).sum(), trained, allow_unused=True)
