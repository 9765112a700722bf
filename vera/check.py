"""Whether a method does what training, files and exports rely on, found by doing it."""

import copy
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vera.adapter_file import load, save
from vera.errors import AdapterError
from vera.head_file import load_head, save_head
from vera.methods import Method, disable, make_method, unload
from vera.methods.adapted import adaptation
from vera.methods.layers import adapted_layers
from vera.methods.merging import NEAR
from vera.sites import head_parameters

#: How far a merged model of peft's may answer from the adapted one, relative to what
#: the adapter changes: some classes compute in float32 over float64, too.
NEAR_FOR_PEFT = 1e-3


@torch.no_grad()
def check(
    method: Method,
    model: nn.Module,
    inputs: Mapping[str, Any] | Tensor | None = None,
    start: float = 1e-3,
) -> bool:
    """Tries a method on copies of a base model.

    It must start as the model, train what `count` says, give gradients to all of it and
    to nothing else, and survive copying, saving and loading, switching off, merging
    (forward against weight), unmerging, unloading, and bfloat16.

    Args:
        method: The method.
        model: A base model, small and unquantised. It stays as it is.
        inputs: What the model is called with: keyword arguments or a tensor. By default
            token ids.
        start: How far from the model the method may begin, relative to the largest
            output.

    Returns:
        Whether the method merges. One without a Change need not.

    Raises:
        AdapterError: Something of this does not hold, or the model does not fit.
    """
    if inputs is None and getattr(model, "main_input_name", "") != "input_ids":
        raise AdapterError(f"inputs: what is a {type(model).__name__} called with?")
    default_inputs: Any = getattr(model, "dummy_inputs", None)
    trial = _Trial(method, default_inputs if inputs is None else inputs)
    trial.require(
        make_method(**method.settings()) == method, "its settings do not make it again"
    )
    base = copy.deepcopy(model).double().eval()
    adapted = copy.deepcopy(base)
    method.adapt(adapted)
    method.before_training(adapted, 10)
    trial.starts_as(base, adapted, start)
    trial.counts(adapted)
    trial.moves(adapted)
    trial.gradients(adapted)
    trial.files(adapted, base)
    adaptation_of_trial = adaptation(adapted)
    assert adaptation_of_trial is not None
    names = trial.parameters_of(adapted).keys()
    adds = not names <= adaptation_of_trial.base_names
    merges = adds and trial.merges(adapted, base)
    trial.half(copy.deepcopy(model).bfloat16().eval(), adds)
    return merges


class _Trial:
    """A method on trial. Each function tries one thing and raises AdapterError where it
    does not hold."""

    def __init__(self, method: Method, inputs: Mapping[str, Any] | Tensor) -> None:
        self.method = method
        self.parameters_of = method.adapter_parameters
        #: Keyword arguments; a tensor alone has no name.
        self.inputs: Mapping[str, Any] = {"": inputs}
        if not isinstance(inputs, Tensor):
            self.inputs = inputs
        self.generator = torch.Generator().manual_seed(0)

    def require(self, holds: object, complaint: str) -> None:
        if not holds:
            raise AdapterError(f"method {self.method.kind}: {complaint}")

    def answer(self, model: nn.Module) -> Tensor:
        """What the model answers to the inputs, in its own dtype."""
        floats = (p.dtype for p in model.parameters() if p.is_floating_point())
        dtype = next(floats)
        inputs = {}
        for name, value in self.inputs.items():
            inputs[name] = value.to(dtype) if value.is_floating_point() else value
        output = model(inputs[""]) if "" in inputs else model(**inputs)
        if isinstance(output, Tensor):
            return output
        logits: Tensor = output["logits" if "logits" in output else 0]
        return logits

    def distance(self, model: nn.Module, expected: Tensor) -> float:
        """How far the model's answer is from another one, at most."""
        return float((self.answer(model) - expected).abs().max())

    def starts_as(self, base: nn.Module, adapted: nn.Module, tolerance: float) -> None:
        """The adapted model answers as the base, up to `tolerance` times the largest
        output."""
        expected = self.answer(base)
        distance = self.distance(adapted, expected)
        largest = float(expected.abs().max())
        self.require(
            distance <= tolerance * largest,
            f"it starts {distance:.2g} off, where outputs reach {largest:.2g}",
        )

    def counts(self, model: nn.Module) -> None:
        trained = sum(p.numel() for p in self.parameters_of(model).values())
        counted = self.method.count(model)
        self.require(
            counted == trained,
            f"count() says {counted:,}, and {trained:,} values train",
        )

    def moves(self, model: nn.Module) -> None:
        """Moves all that trains away from where it starts, which is zero for many."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=self.generator)
                parameter.add_(noise.to(parameter), alpha=0.3)

    def gradients(self, model: nn.Module) -> None:
        """A step reaches all that the method trains, and moves nothing else."""
        trained = self.parameters_of(model)
        before = {name: p.clone() for name, p in model.named_parameters()}
        with torch.enable_grad():
            if any(p.requires_grad for p in model.parameters()):
                loss = self.answer(model).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in trained.items():
            self.require(
                parameter.grad is not None and parameter.grad.any(),
                f"no gradient reaches {name}",
            )
        self.method.after_step(model, 1)
        model.zero_grad()
        for name, parameter in model.named_parameters():
            self.require(
                name in trained or torch.equal(parameter, before[name]),
                f"a step moves {name}, which is frozen",
            )

    def files(self, model: nn.Module, base: nn.Module) -> None:
        """A copy has values of its own, and so has a model that adapter and head were
        loaded onto."""
        expected = self.answer(model)
        loaded = copy.deepcopy(base)
        self.moves(copy.deepcopy(model))
        self.require(
            not self.distance(model, expected), "a copy shares values with the model"
        )
        with tempfile.TemporaryDirectory() as folder:
            save(model, self.method, f"{folder}/adapter")
            load(loaded, f"{folder}/adapter")
            if head_parameters(model):
                save_head(model, f"{folder}/head")
                load_head(loaded, f"{folder}/head")
        self.require(
            not self.distance(loaded, expected),
            "saved and loaded, it answers otherwise",
        )

    def merges(self, model: nn.Module, base: nn.Module) -> bool:
        """Off, on, merged, unmerged and unloaded, by what the model answers. Returns
        whether it merges."""
        base.load_state_dict({**base.state_dict(), **head_parameters(model)})
        adapted = self.answer(model)
        plain = self.answer(base)
        effect = float((adapted - plain).abs().max())
        self.require(effect, "with every value moved, it answers as the base model")
        disable(model)
        self.require(
            not self.distance(model, plain), "switched off, it is not the base model"
        )
        disable(model, False)
        merged = self._merges_to(model, adapted, effect)
        self.method.unmerge(model)
        self.require(not self.distance(model, adapted), "unmerged, it is another model")
        unload(model)
        is_plain = not self.distance(model, plain)
        self.require(
            is_plain and _trainable(model) == _trainable(base),
            "unloaded, something of it is left",
        )
        self.method.adapt(model)
        return merged

    def _merges_to(self, model: nn.Module, expected: Tensor, effect: float) -> bool:
        """Merges a model, which must answer as before. Returns whether it can."""
        try:
            self.method.merge(model)
        except AdapterError:
            if any(adapted_layers(model)):  # A Change has a weight
                raise
            return False
        distance = self.distance(model, expected)
        tolerance = NEAR_FOR_PEFT if self.method.kind == "peft" else NEAR
        self.require(
            distance <= tolerance * effect,
            f"merged, it answers otherwise ({distance:.2g} of {effect:.2g})",
        )
        return True

    def half(self, model: nn.Module, adds: bool) -> None:
        """What the method adds to a model in bfloat16 is float32."""
        self.method.adapt(model)
        self.moves(model)
        # peft's classes have dtypes of their own
        if adds and self.method.kind != "peft":
            for name, parameter in self.parameters_of(model).items():
                self.require(
                    parameter.dtype == torch.float32,
                    f"{name} is not float32 over a model in bfloat16",
                )
        output = self.answer(model)
        self.require(
            output.dtype == torch.bfloat16 and output.isfinite().all(),
            f"over a model in bfloat16 it gives {output.dtype}, or no number",
        )


def _trainable(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}
