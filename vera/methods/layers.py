"""The layer that low-rank methods share, and how layers and hooks get into a model and
out of it."""

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.sites import WHOLE, OutputSlices, is_transposed, layer_widths


class Change(nn.Module):
    """A low-rank change of one matrix, or of one slice of a fused one. Subclasses:
    `forward` and `weight`."""

    inputs: int
    outputs: int
    #: The parameters of each sample of a batch, (samples, ...), in place of its own
    #: (vera.Adapters).
    rows: dict[str, Tensor] | None = None
    #: Whether a batch may be a multiple of the rows (beams): each row is then repeated.
    repeats = False

    @property
    def dtype(self) -> torch.dtype:
        """That of its parameters: float32 or better, unless the adapted model was cast
        since. Raises AdapterError where there are none."""
        parameter = next(self.parameters(), None)
        if parameter is None:
            raise AdapterError(
                f"{type(self).__name__} has no nn.Parameter: what is to be trained is one"
            )
        return parameter.dtype

    def of_samples(self, count: int) -> dict[str, Tensor]:
        """The rows of so many samples. Raises AdapterError where they are of another
        number."""
        rows = self.rows or {}
        names = max(map(len, rows.values()), default=1)
        times, rest = divmod(count, names)
        if rest or (times != 1 and not self.repeats):
            raise AdapterError(
                f"a layer gets {count} samples, for {names} adapter names"
            )
        if times == 1:
            return dict(rows)
        return {n: tensor.repeat_interleave(times, 0) for n, tensor in rows.items()}

    def forward(self, x: Tensor) -> Tensor:
        """The change of the output for x, (..., inputs) -> (..., outputs)."""
        raise NotImplementedError

    def weight(self) -> Tensor:
        """The change of the weight, (outputs, inputs)."""
        raise NotImplementedError


class Added(nn.Module):
    """A module that a method added to the model, and that can be switched off, or
    folded into the weights."""

    enabled = True
    merged = False


class AdaptedLinear(Added):
    """A frozen linear layer `base`, and a low-rank change of each adapted slice of its
    outputs.

    Shapes: x (..., in), output (..., out). The dtype of the output is the base layer's;
    the change is computed in float32 or better, so that small updates do not round away
    over half-precision weights. Outputs outside the slices (the keys of a fused
    projection) stay the base layer's."""

    def __init__(
        self,
        path: str,
        base: nn.Module,
        changes: dict[str, Change],
        output_slices: OutputSlices,
    ) -> None:
        super().__init__()
        #: The base layer's place in the base model, for error messages.
        self.path = path
        self.base: Any = base
        self.changes: Any = nn.ModuleDict(changes)
        self.output_slices = output_slices
        #: Computes this layer together with others that read the same input
        #: (kernels.Group).
        self.group: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.merged or not self.enabled:
            return self.base(x)
        if self.group is not None:
            return self.group.output(self, x)
        y = self.base(x)
        first_change = next(iter(self.changes.values()))
        x = x.to(first_change.dtype)
        return self.add(y, {name: change(x) for name, change in self.changes.items()})

    def add(self, y: Tensor, updates: dict[str, Tensor]) -> Tensor:
        """The base layer's output y, with the change of each slice added. Raises
        AdapterError for a change of another shape than its slice of y."""
        for name, rows in self.output_slices.items():
            expected = (*y.shape[:-1], rows.stop - rows.start)
            self.require(name, "forward", updates[name], expected)
        if WHOLE in updates:
            return (y + updates[WHOLE]).to(y.dtype)
        pieces = []
        end = 0
        for name, rows in self.output_slices.items():
            changed = (y[..., rows] + updates[name]).to(y.dtype)
            pieces += [y[..., end : rows.start], changed]
            end = rows.stop
        return torch.cat([*pieces, y[..., end:]], dim=-1)

    def weight(self) -> Tensor:
        """The base weight as (out, in), a view."""
        return base_weight(self.base)

    @torch.no_grad()
    def merge(self) -> None:
        """Folds the changes into the base weight; Method.merge checks first whether
        that can be."""
        weight = self.weight()
        updates = {name: change.weight() for name, change in self.changes.items()}
        for name, rows in self.output_slices.items():
            self.require(name, "weight", updates[name], tuple(weight[rows].shape))
            weight[rows] = weight[rows].to(adapter_dtype(self.base)) + updates[name]
        self.merged = True

    def require(
        self, name: str, function: str, value: object, expected: tuple[int, ...]
    ) -> None:
        """Raises AdapterError, which names the class and the layer, where a function of
        a slice's change returns a value of another shape."""
        shape = getattr(value, "shape", None)
        if torch.jit.is_tracing() or shape == expected:  # type: ignore[no-untyped-call]
            return
        actual = "nothing" if shape is None else f"shape {tuple(shape)}"
        method = f"{type(self.changes[name]).__name__}.{function}"
        raise AdapterError(
            f"{method} of {self.path} returns {actual}, where {expected} is needed"
        )


def base_weight(base: nn.Module, rows: slice = slice(None)) -> Tensor:
    """The weight of a linear layer, or of one slice of its outputs, as (outputs,
    inputs).

    Args:
        base: torch's linear layer, its 4-bit form, or transformers' Conv1D.
        rows: The slice, of all outputs by default.

    Returns:
        A view; the unpacked values where bitsandbytes packed them in 4 bit.

    Raises:
        AdapterError: The weight is packed in another way.
    """
    weight: Any = base.weight
    inputs, outputs = layer_widths(base)
    packed = weight.numel() != inputs * outputs
    state = getattr(weight, "quant_state", None)
    if packed and state is not None:
        from bitsandbytes.functional import dequantize_4bit

        state = copy(state)
        state.dtype = torch.float32  # whatever dtype the layer itself computes in
        weight = dequantize_4bit(weight.data, state)
    elif packed and weight.is_meta:  # in a copy without values
        weight = weight.new_empty(outputs, inputs)
    elif packed or not weight.is_floating_point():
        raise AdapterError(f"the weights of a {type(base).__name__} cannot be unpacked")
    return cast(Tensor, weight.T if is_transposed(base) else weight)[rows]


def adapter_dtype(base: Any) -> torch.dtype:
    """The dtype of what a method adds to a layer: float32, or float64 over float64."""
    return torch.float64 if base.weight.dtype == torch.float64 else torch.float32


def adapted_layers(model: nn.Module) -> Iterator[AdaptedLinear]:
    """The adapted layers of a model, in its order."""
    return (m for m in model.modules() if isinstance(m, AdaptedLinear))


def layer_changes(model: nn.Module) -> Iterator[Any]:
    """The Change of each adapted matrix of a model, in its order."""
    return (
        change for layer in adapted_layers(model) for change in layer.changes.values()
    )


def add_child(module: nn.Module, name: str, child: nn.Module) -> None:
    """Adds a child. Raises AdapterError where the module has something of that name."""
    if hasattr(module, name):
        raise AdapterError(
            f"a {type(module).__name__} of this model has {name!r} of its own: rename that"
        )
    module.add_module(name, child)


def wrap(
    model: nn.Module, targets: dict[str, OutputSlices], make: Callable[..., Change]
) -> None:
    """Puts an AdaptedLinear in the place of each target.

    Args:
        model: The model.
        targets: What `find_sites` returns.
        make: Called as `make(path, part, base, inputs, outputs)`; returns the Change
            of one slice, whose name is part.
    """
    for path, output_slices in targets.items():
        base = model.get_submodule(path)
        inputs, _ = layer_widths(base)
        parts = {}
        for name, rows in output_slices.items():
            parts[name] = make(path, name, base, inputs, rows.stop - rows.start)
        model.set_submodule(path, AdaptedLinear(path, base, parts, output_slices))


def widest(model: nn.Module, targets: dict[str, OutputSlices]) -> tuple[int, int]:
    """The shape of a pair that all adapted slices share, each by its leading slice.

    Args:
        model: The model.
        targets: What `find_sites` returns.

    Returns:
        The most inputs and the most outputs of a slice.
    """
    slices = [rows for of_layer in targets.values() for rows in of_layer.values()]
    inputs = max(layer_widths(model.get_submodule(path))[0] for path in targets)
    return inputs, max(rows.stop - rows.start for rows in slices)
