"""Which dtype a run trains in, beside base weights in half precision (model.dtype)."""

from collections.abc import Iterable

import torch
from torch import nn

from runs import models
from runs.command.errors import UserError
from runs.record.configuration import Configuration
from vera.methods.adapted import trained_in_place
from vera.sites import is_linear


def train_in_float32(model: nn.Module) -> None:
    """Makes what trains float32 where it was loaded in half precision: the head, and
    values that a method trains in place, such as biases. Small steps would round away
    there. What a method adds is float32 already."""
    for module in model.modules():
        parameters = [*module.parameters(recurse=False)]
        if not is_linear(module) and any(p.requires_grad for p in parameters):
            # a norm computes in one dtype
            _make_float32(parameters)
        _make_float32(p for p in parameters if p.requires_grad)


def _make_float32(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.is_floating_point():
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            parameter.data = parameter.data.to(dtype)


def check_dtypes(model: nn.Module, config: Configuration) -> None:
    """Raises UserError where base weights in half precision would meet values of their
    own layer in float32: only autocast computes with both."""
    dtype = models.dtype_of(config)
    method = config["method"]
    if dtype in ("fp32", config["train"]["precision"]) or method["kind"] == "full":
        return
    mixed = trained_in_place(model)
    if mixed:
        raise UserError(
            f"model.dtype={dtype}: {method['label']} trains values of the model itself "
            f"({mixed[0]}), in float32 beside such weights. That takes autocast: "
            f"train.precision={dtype}"
        )
