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
PEFTS = 1e-3


@torch.no_grad()
def check(
    method: Method,
    model: nn.Module,
    inputs: Mapping[str, Any] | Tensor | None = None,
    start: float = 1e-3,
) -> bool:
    """Tries a method on copies of a base model: that it starts as the model; count,
    gradients, copying, saving and loading, switching off, merging (forward against
    weight), unmerging, unloading; bfloat16.

    model: small, unquantised; it stays as it is. inputs: what it is called with,
    keyword arguments or a tensor; by default token ids. start: how far from the model
    it may begin, relative to the largest output. Returns whether the method merges; one
    without a Change need not. Raises AdapterError in one line for what does not hold,
    and for a model that does not fit."""
    if inputs is None and getattr(model, "main_input_name", "") != "input_ids":
        raise AdapterError(f"inputs: what is a {type(model).__name__} called with?")
    trial = _Trial(method, model.dummy_inputs if inputs is None else inputs)
    base = copy.deepcopy(model).double().eval()
    adapted, plain = copy.deepcopy(base), trial.answer(base)
    trial.require(
        make_method(**method.settings()) == method, "its settings do not make it again"
    )
    method.adapt(adapted)
    method.before_training(adapted, 10)
    off, largest = trial.apart(adapted, plain), float(plain.abs().max())
    trial.require(
        off <= start * largest,
        f"it starts {off:.2g} off, where outputs reach {largest:.2g}",
    )
    trained, counted = (
        sum(p.numel() for p in trial.own(adapted).values()),
        method.count(adapted),
    )
    trial.require(
        counted == trained, f"count() says {counted:,}, and {trained:,} values train"
    )
    trial.moves(adapted)
    trial.gradients(adapted)
    trial.files(adapted, base)
    adds = not trial.own(adapted).keys() <= adaptation(adapted).base_names  # type: ignore[union-attr]
    merges = adds and trial.merges(adapted, base)
    trial.half(copy.deepcopy(model).bfloat16().eval(), adds)
    return merges


class _Trial:
    def __init__(self, method: Method, inputs: Any) -> None:
        self.method, self.own = method, method.adapter_parameters
        self.inputs = {"": inputs} if isinstance(inputs, Tensor) else inputs
        self.generator = torch.Generator().manual_seed(0)

    def require(self, holds: Any, what: str) -> None:
        if not holds:
            raise AdapterError(f"method {self.method.kind}: {what}")

    def answer(self, model: nn.Module) -> Tensor:
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        given = {
            n: x.to(dtype) if x.is_floating_point() else x
            for n, x in self.inputs.items()
        }
        output = model(given[""]) if "" in given else model(**given)
        return (
            output
            if isinstance(output, Tensor)
            else output["logits" if "logits" in output else 0]
        )

    def apart(self, model: nn.Module, expected: Tensor) -> float:
        return float((self.answer(model) - expected).abs().max())

    def moves(self, model: nn.Module) -> None:
        """Moves all that trains away from where it starts, which is zero for many."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(
                    torch.randn(parameter.shape, generator=self.generator).to(
                        parameter
                    ),
                    alpha=0.3,
                )

    def gradients(self, model: nn.Module) -> None:
        own, before = (
            self.own(model),
            {n: p.clone() for n, p in model.named_parameters()},
        )
        with torch.enable_grad():
            if any(p.requires_grad for p in model.parameters()):
                self.answer(model).square().mean().backward()  # type: ignore[no-untyped-call]
        for name, parameter in own.items():
            self.require(
                parameter.grad is not None and parameter.grad.any(),
                f"no gradient reaches {name}",
            )
        self.method.after_step(model, 1)
        model.zero_grad()
        moved = [
            n
            for n, p in model.named_parameters()
            if n not in own and not torch.equal(p, before[n])
        ]
        self.require(not moved, f"a step moves {', '.join(moved[:1])}, which is frozen")

    def files(self, model: nn.Module, base: nn.Module) -> None:
        """A copy has values of its own, and so has a model that adapter and head were
        loaded onto."""
        expected, copied, again = (
            self.answer(model),
            copy.deepcopy(model),
            copy.deepcopy(base),
        )
        self.moves(copied)
        self.require(
            not self.apart(model, expected), "a copy shares values with the model"
        )
        with tempfile.TemporaryDirectory() as folder:
            save(model, self.method, f"{folder}/adapter")
            load(again, f"{folder}/adapter")
            if head_parameters(model):
                save_head(model, f"{folder}/head")
                load_head(again, f"{folder}/head")
        self.require(
            not self.apart(again, expected), "saved and loaded, it answers otherwise"
        )

    def merges(self, model: nn.Module, base: nn.Module) -> bool:
        """Off, on, merged, unmerged and unloaded, by what the model answers."""
        base.load_state_dict({**base.state_dict(), **head_parameters(model)})
        adapted, plain, merged = self.answer(model), self.answer(base), False
        effect = float((adapted - plain).abs().max())
        self.require(effect, "with every value moved, it answers as the base model")
        disable(model)
        self.require(
            not self.apart(model, plain), "switched off, it is not the base model"
        )
        disable(model, False)
        try:
            self.method.merge(model)
            off, merged = self.apart(model, adapted), True
            near = PEFTS if self.method.kind == "peft" else NEAR
            self.require(
                off <= near * effect,
                f"merged, it answers otherwise ({off:.2g} of {effect:.2g})",
            )
        except AdapterError:
            if merged or any(adapted_layers(model)):  # a Change has a weight
                raise
        self.method.unmerge(model)
        self.require(not self.apart(model, adapted), "unmerged, it is another model")
        unload(model)
        same = _trains(model) == _trains(base)
        self.require(
            same and not self.apart(model, plain), "unloaded, something of it is left"
        )
        self.method.adapt(model)
        return merged

    def half(self, model: nn.Module, adds: bool) -> None:
        self.method.adapt(model)
        self.moves(model)
        own = (
            self.own(model) if adds and self.method.kind != "peft" else {}
        )  # whose classes have dtypes of theirs
        low = [name for name, p in own.items() if p.dtype != torch.float32]
        self.require(
            not low, f"{', '.join(low[:1])} is not float32 over a model in bfloat16"
        )
        output = self.answer(model)
        finite = output.dtype == torch.bfloat16 and output.isfinite().all()
        self.require(
            finite, f"over a model in bfloat16 it gives {output.dtype}, or no number"
        )


def _trains(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}
