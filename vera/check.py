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
from vera.methods.merging import MERGE_TOLERANCE
from vera.sites import head_parameters

#: How far a merged model of peft's may answer from the adapted one, relative to what
#: the adapter changes. Some classes compute in float32 even over a float64 model.
PEFT_MERGE_TOLERANCE = 1e-3


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
            the token ids in `dummy_inputs`, which transformers' language models have.
        start: How far the outputs of the freshly adapted model may lie from those of
            the base model, relative to the largest output.

    Returns:
        Whether the method can merge. One that computes with a Change
        (vera/methods/layers.py) must, since a Change has a weight; others need not.

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
    # In float64, so that rounding hides no difference
    base = copy.deepcopy(model).double().eval()
    trial.move_biases(base)
    adapted = copy.deepcopy(base)
    method.adapt(adapted)
    total_steps = 10  # for methods with a schedule; none is trained
    method.before_training(adapted, total_steps)
    trial.check_start(base, adapted, start)
    trial.check_count(adapted)
    trial.move_parameters(adapted)
    trial.check_gradients(adapted)
    trial.check_files(adapted, base)
    adaptation_of_trial = adaptation(adapted)
    assert adaptation_of_trial is not None
    names = trial.parameters_of(adapted).keys()
    # A method that trains base weights alone has nothing to merge
    adds_parameters = not names <= adaptation_of_trial.base_names
    can_merge = adds_parameters and trial.check_merging(adapted, base)
    trial.check_bfloat16(copy.deepcopy(model).bfloat16().eval(), adds_parameters)
    return can_merge


class _Trial:
    """A method on trial. Each `check_...` tries one thing and raises AdapterError where it
    does not hold."""

    def __init__(self, method: Method, inputs: Mapping[str, Any] | Tensor) -> None:
        self.method = method
        self.parameters_of = method.adapter_parameters
        #: Keyword arguments. The name "" stands for a tensor that is the only argument.
        self.inputs: Mapping[str, Any] = {"": inputs}
        if not isinstance(inputs, Tensor):
            self.inputs = inputs
        self.generator = torch.Generator().manual_seed(0)

    def require(self, holds: object, complaint: str) -> None:
        """Raises AdapterError with the complaint unless something holds."""
        if not holds:
            raise AdapterError(f"method {self.method.kind}: {complaint}")

    def answer(self, model: nn.Module) -> Tensor:
        """The model's output for the inputs, whose floating-point ones are cast to the
        model's dtype. Of several outputs it is the logits, or the first. Raises
        AdapterError where the forward pass fails."""
        dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
        dtype = next(dtypes)
        inputs = {}
        for name, value in self.inputs.items():
            inputs[name] = value.to(dtype) if value.is_floating_point() else value
        try:
            output = model(inputs[""]) if "" in inputs else model(**inputs)
        except RuntimeError as error:
            # Such as a Change that gives its input to a layer of another dtype.
            message = str(error).partition("\n")[0]
            complaint = f"over a model in {dtype} the forward pass fails: {message}"
            raise AdapterError(f"method {self.method.kind}: {complaint}") from error
        if isinstance(output, Tensor):
            return output
        logits: Tensor = output["logits" if "logits" in output else 0]
        return logits

    def distance(self, model: nn.Module, expected: Tensor) -> float:
        """The largest difference between the model's answer and the expected one."""
        return float((self.answer(model) - expected).abs().max())

    def check_start(
        self, base: nn.Module, adapted: nn.Module, tolerance: float
    ) -> None:
        """The adapted model answers as the base, up to `tolerance` times the largest
        output."""
        expected = self.answer(base)
        distance = self.distance(adapted, expected)
        largest = float(expected.abs().max())
        self.require(
            distance <= tolerance * largest,
            f"before any step its outputs differ from the base model's by {distance:.2g},"
            f" where these reach {largest:.2g} (start= sets how much may differ)",
        )

    def check_count(self, model: nn.Module) -> None:
        """As many values train, without the head, as `count` says."""
        trained = sum(p.numel() for p in self.parameters_of(model).values())
        counted = self.method.count(model)
        self.require(
            counted == trained,
            f"count() says {counted:,}, and {trained:,} values train",
        )

    def move_parameters(self, model: nn.Module) -> None:
        """Moves all that trains away from where it starts, which is zero for many."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=self.generator)
                parameter.add_(noise.to(parameter), alpha=0.3)

    def move_biases(self, model: nn.Module) -> None:
        """Moves the biases away from 0, where a new model has them: there a method that
        changes a bias by mistake would not show."""
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                noise = torch.randn(parameter.shape, generator=self.generator)
                parameter.add_(noise.to(parameter), alpha=0.1)

    def check_gradients(self, model: nn.Module) -> None:
        """A step reaches all that the method trains, and moves nothing else."""
        trained = self.parameters_of(model)
        before = {name: p.clone() for name, p in model.named_parameters()}
        with torch.enable_grad():
            # Method "none" trains nothing, not even a head: no loss has gradients then
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

    def check_files(self, model: nn.Module, base: nn.Module) -> None:
        """Changing a copy leaves the model as it is, and a base model that the saved
        adapter and head are loaded onto answers as the model."""
        expected = self.answer(model)
        loaded = copy.deepcopy(base)
        self.move_parameters(copy.deepcopy(model))
        self.require(
            self.distance(model, expected) == 0, "a copy shares values with the model"
        )
        with tempfile.TemporaryDirectory() as folder:
            save(model, self.method, f"{folder}/adapter")
            load(loaded, f"{folder}/adapter")
            if head_parameters(model):
                save_head(model, f"{folder}/head")
                load_head(loaded, f"{folder}/head")
        self.require(
            self.distance(loaded, expected) == 0,
            "saved and loaded, its outputs are different",
        )

    def check_merging(self, model: nn.Module, base: nn.Module) -> bool:
        """Switched off, on again, merged, unmerged and unloaded, the model answers as it
        should. Returns whether the method can merge."""
        # The base model gets the head, which was moved too: only the method differs
        base.load_state_dict({**base.state_dict(), **head_parameters(model)})
        adapted_answer = self.answer(model)
        base_answer = self.answer(base)
        effect = float((adapted_answer - base_answer).abs().max())
        self.require(
            effect != 0, "with every value moved, it answers as the base model"
        )
        disable(model)
        self.require(
            self.distance(model, base_answer) == 0,
            "switched off, it is not the base model",
        )
        disable(model, False)
        can_merge = self._check_merged(model, adapted_answer, effect)
        self.method.unmerge(model)
        self.require(
            self.distance(model, adapted_answer) == 0, "unmerged, it is another model"
        )
        unload(model)
        is_base = self.distance(model, base_answer) == 0
        self.require(
            is_base and _trainable(model) == _trainable(base),
            "unloaded, something of it is left",
        )
        self.method.adapt(model)  # raises where unloading left something in the way
        return can_merge

    def _check_merged(self, model: nn.Module, expected: Tensor, effect: float) -> bool:
        """A merged model answers as before. Returns whether the method can merge.

        effect: how much the adapter changes the answer, at most."""
        try:
            self.method.merge(model)
        except AdapterError:
            if any(adapted_layers(model)):  # a Change has a weight: it must merge
                raise
            return False
        distance = self.distance(model, expected)
        tolerance = (
            PEFT_MERGE_TOLERANCE if self.method.kind == "peft" else MERGE_TOLERANCE
        )
        self.require(
            distance <= tolerance * effect,
            f"merged, its outputs are different ({distance:.2g} of {effect:.2g})",
        )
        return True

    def check_bfloat16(self, model: nn.Module, adds_parameters: bool) -> None:
        """What the method adds to a model in bfloat16 is float32, and the model's answer
        is finite and in bfloat16."""
        self.method.adapt(model)
        self.move_parameters(model)
        # peft's classes have dtypes of their own
        if adds_parameters and self.method.kind != "peft":
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
    """Whether each parameter is trainable, by its name."""
    return {name: p.requires_grad for name, p in model.named_parameters()}
