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
    """A low-rank change of one matrix, or of one slice of a fused one. Subclasses define
    `forward` and `weight`."""

    inputs: int
    outputs: int
    #: With vera.Adapters: by a parameter's name its values for each sample of a batch,
    #: (samples, ...), which stand in for the parameter. None where the change computes
    #: with its own parameters.
    sample_parameters: dict[str, Tensor] | None = None
    #: Whether a batch may have a multiple of those samples, as in beam search: the
    #: values of each sample are then repeated.
    may_repeat = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parameters: float32 or better, unless the adapted model was
        cast since. Raises AdapterError for a change without parameters."""
        parameter = next(self.parameters(), None)
        if parameter is None:
            raise AdapterError(
                f"{type(self).__name__} has no nn.Parameter: make what it trains one"
            )
        return parameter.dtype

    def parameters_of_samples(self, count: int) -> dict[str, Tensor]:
        """`sample_parameters`, the values of each sample's own adapter, for a batch of
        `count` samples. If a layer gets several rows for each sample, such as beams, the
        values are repeated. Raises AdapterError for a count that does not fit them."""
        parameters = self.sample_parameters or {}
        named_samples = max(map(len, parameters.values()), default=1)
        repeats, remainder = divmod(count, named_samples)
        if remainder or (repeats != 1 and not self.may_repeat):
            raise AdapterError(
                f"a layer gets {count} samples, for {named_samples} adapter names"
            )
        if repeats == 1:
            return dict(parameters)
        repeated = {}
        for name, values in parameters.items():
            repeated[name] = values.repeat_interleave(repeats, 0)
        return repeated

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
        AdapterError for a change that has not the shape of its slice of y.

        updates: the change of the output, by the name of its slice."""
        for name, rows in self.output_slices.items():
            expected = (*y.shape[:-1], rows.stop - rows.start)
            self.require_shape(name, updates[name], expected, function="forward")
        if WHOLE in updates:
            return (y + updates[WHOLE]).to(y.dtype)
        pieces = []
        copied = 0  # outputs that are in pieces already
        for name, rows in self.output_slices.items():
            unchanged = y[..., copied : rows.start]
            changed = (y[..., rows] + updates[name]).to(y.dtype)
            pieces += [unchanged, changed]
            copied = rows.stop
        return torch.cat([*pieces, y[..., copied:]], dim=-1)

    def weight(self) -> Tensor:
        """The base weight as (out, in), a view."""
        return base_weight(self.base)

    @torch.no_grad()
    def merge(self) -> None:
        """Folds the changes into the base weight. Method.merge checks first whether that
        is possible."""
        weight = self.weight()  # a view: the base layer's own weight changes with it
        updates = {name: change.weight() for name, change in self.changes.items()}
        for name, rows in self.output_slices.items():
            expected = tuple(weight[rows].shape)
            self.require_shape(name, updates[name], expected, function="weight")
            weight[rows] = weight[rows].to(adapter_dtype(self.base)) + updates[name]
        self.merged = True

    def require_shape(
        self, slice_name: str, value: object, expected: tuple[int, ...], function: str
    ) -> None:
        """Raises AdapterError unless a value has the expected shape.

        Args:
            slice_name: The slice whose change returned the value.
            value: A tensor, or whatever a faulty Change returned instead.
            expected: The shape.
            function: Which function of the Change returned it, for the message.
        """
        shape = getattr(value, "shape", None)
        # In torch.jit.trace sizes are tensors, and a comparison of them would warn
        if torch.jit.is_tracing() or shape == expected:  # type: ignore[no-untyped-call]
            return
        actual = "nothing" if shape is None else f"shape {tuple(shape)}"
        method = f"{type(self.changes[slice_name]).__name__}.{function}"
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
    elif packed and weight.is_meta:  # a copy without values has nothing to unpack
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
        targets: What `find_sites` returns: the slices of each layer, by its path.
        make: Called as `make(path, part, base, inputs, outputs)` for each slice of the
            layer `base` at `path`, whose name is `part`; returns its Change.
    """
    for path, output_slices in targets.items():
        base = model.get_submodule(path)
        inputs, _ = layer_widths(base)
        changes = {}
        for name, rows in output_slices.items():
            changes[name] = make(path, name, base, inputs, rows.stop - rows.start)
        model.set_submodule(path, AdaptedLinear(path, base, changes, output_slices))


def widest_shape(model: nn.Module, targets: dict[str, OutputSlices]) -> tuple[int, int]:
    """The shape that a pair needs, if all adapted slices share it by its leading parts.

    Args:
        model: The model.
        targets: What `find_sites` returns.

    Returns:
        The most inputs and the most outputs of any slice.
    """
    most_inputs = 0
    most_outputs = 0
    for path, output_slices in targets.items():
        inputs, _ = layer_widths(model.get_submodule(path))
        most_inputs = max(most_inputs, inputs)
        for rows in output_slices.values():
            most_outputs = max(most_outputs, rows.stop - rows.start)
    return most_inputs, most_outputs
