"""Many adapters at once: one frozen base model, and a batch in which every sample names
its adapter.

All share the base weights, and VeRA's A and B: an adapter is its b and d alone, or
LoRA's matrices. A batch is computed by the factors of each sample, at a cost that does
not depend on how many are resident."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vera import adapter_file, head_file
from vera.checked_file import read_file
from vera.errors import AdapterError
from vera.methods import Method, disable, unload
from vera.methods.adapted import (
    adaptation,
    hook_keys,
    refuse_adapter_names,
    refuse_many_adapters,
    remove_hooks,
)
from vera.methods.layers import layer_changes
from vera.methods.lora import LoRA
from vera.methods.vera import VeRA
from vera.sites import backbone_prefix, head_parameters, head_prefixes

#: The name of each sample's adapter; None is the base model.
Names = Sequence[str | None]
#: Arguments that count the samples of a call, by their first dimension, before others.
INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "x")


class Adapters:
    """The adapters that are resident on a base model. A call without names is the base
    model's.

        adapters = Adapters(model)
        adapters.add("alice", "alice.safetensors", head="alice_head.safetensors")
        adapters.add("bob", "bob.safetensors")
        # One name for each sample; None is the base model
        model(**batch, adapter_names=["alice", "bob", None])
        with adapters.use(["alice", "bob"]):
            model.generate(**batch)

    All are VeRA's or all are LoRA's, with equal settings, since they are computed
    together; only dropout and the start of d may differ. The model takes one call at a
    time. The first `add` adapts it, and `unload` undoes that.

    Attributes:
        model: The base model.
        method: What it is adapted with; None without adapters.
        vectors: By the adapter's name, all its values in one vector.
        heads: By the adapter's name, the tensors of its own head, if it has one.
        classes: By the adapter's name, the names of the classes of its own head.
    """

    def __init__(self, model: nn.Module) -> None:
        """Holds no adapter yet.

        Args:
            model: The base model. It stays as it is until the first `add`.

        Raises:
            AdapterError: The model carries an adapter.
        """
        refuse_many_adapters(model)
        if adaptation(model):
            raise AdapterError(
                "this model carries an adapter: its base model takes many (vera.unload)"
            )
        self.model = model
        self.method: Method | None = None
        self.vectors: dict[str, Tensor] = {}
        self.heads: dict[str, dict[str, Tensor]] = {}
        self.classes: dict[str, list[str]] = {}
        # The adapted model's parameters, by their names in an adapter file
        self._parameters: dict[str, Tensor] = {}
        # What the innermost `use` has set; None outside of one. Lists of names are
        # compared with it by identity: equal names that a call passes itself do not
        # stand for a multiple of samples, as those of `use` do.
        self._names_of_use: list[str | None] | None = None
        # The list for which the layers compute now; None is the base model
        self._active_names: list[str | None] | None = None
        # Whether the head was called in the present call of the model
        self._head_called = False
        # The keys of the hooks that serve many adapters
        self._hooks: set[int] = set()

    # --- the resident adapters

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.vectors)

    def add(self, name: str, path: str | Path, head: str | Path | None = None) -> None:
        """Makes an adapter resident.

        Args:
            name: Its name in `adapter_names` and `use`.
            path: A file that `vera.save` wrote.
            head: A file that `vera.save_head` wrote, for a head of its own.

        Raises:
            AdapterError: The name is taken, a file is damaged or does not fit the
                model, or the settings differ from those of the adapters here. Nothing
                is changed then.
        """
        if name in self.vectors:
            raise AdapterError(f"there is an adapter {name!r} already: remove it first")
        file = read_file(path, adapter_file.FORMAT)
        method = adapter_file.method_of(file)
        if type(method) not in (VeRA, LoRA):
            raise AdapterError(
                f"{path}: a {method.kind} adapter; VeRA's and LoRA's can be mixed in a batch"
            )
        if self.method is None:
            adapter_file.try_adapter(file, method, self.model)
            self._adapt(method)
        assert self.method is not None
        shared_head = head_parameters(self.model)
        head_tensors = None
        classes = None
        try:
            # All adapters here have the same settings, apart from dropout and from d_init,
            # which does not matter once d has the file's values
            adapter_file.check_start(method, self.method, path, free=("d_init",))
            # Twice the same model: it is adapted, and holds the base weights, too
            tensors = adapter_file.read_fitting(
                file, self.method, self.model, self.model
            )
            if head:
                head_tensors = head_file.read_head(head, shared_head)
                classes = head_file.read_classes(head)
        except BaseException:
            if not self.vectors:  # the model was adapted for this one alone
                self.unload()
            raise
        # One vector in the order of the parameters, by which `_sample_values` splits it
        values = []
        for parameter_name, parameter in self._parameters.items():
            values.append(tensors[parameter_name].flatten().to(parameter))
        self.vectors[name] = torch.cat(values)
        if head_tensors:
            own_head = {}
            for tensor_name, tensor in head_tensors.items():
                own_head[tensor_name] = tensor.to(shared_head[tensor_name])
            self.heads[name] = own_head
        if classes:
            self.classes[name] = classes

    def remove(self, name: str) -> None:
        """Forgets an adapter.

        Args:
            name: A resident adapter's. Any other raises AdapterError.
        """
        self._check_names([name])
        if len(self) == 1:  # with none left, the next one may have another rank
            self.unload()
        self.vectors.pop(name, None)
        self.heads.pop(name, None)
        self.classes.pop(name, None)

    def unload(self) -> None:
        """Forgets every adapter. The model is the plain base model again."""
        self.vectors.clear()
        self.heads.clear()
        self.classes.clear()
        if self.method is None:
            return
        self.method = None
        self._active_names = None
        self.model.__dict__.pop("_adapters")
        remove_hooks(self.model, self._hooks)
        unload(self.model)

    # --- a call

    @contextmanager
    def use(self, names: Names) -> Iterator[None]:
        """In this context, the model and each part of it compute samples of these
        adapters: for `generate`, and for encoders.

        Args:
            names: One for each sample. A batch that is a multiple of them (beams)
                repeats each name.

        Raises:
            AdapterError: A name is unknown.
        """
        checked = self._check_names(names)
        if not checked:
            raise AdapterError("no adapter names: each sample needs one")
        outer_names = self._names_of_use
        self._names_of_use = checked
        self._activate(checked)
        try:
            yield
        finally:
            self._names_of_use = outer_names
            self._activate(outer_names)

    def _activate(self, names: list[str | None] | None) -> None:
        """Gives every layer the values of each sample's adapter.

        names: the adapter of each sample; None makes the model the base model. Only the
        list that `use` has set may stand for a batch of a multiple of its length."""
        # Nothing to do between the calls inside one `use`. Lists are compared by identity,
        # since an equal list that a call passes itself is stricter: it names each sample
        if names is self._active_names:
            return
        values_by_id: dict[int, Tensor] = {}
        if names is not None and any(name is not None for name in names):
            values_by_id = self._sample_values(names)
        for change in layer_changes(self.model):
            change.may_repeat = names is self._names_of_use
            change.sample_parameters = None
            if values_by_id:
                parameters = change.named_parameters()
                change.sample_parameters = {
                    n: values_by_id[id(p)] for n, p in parameters
                }
        disable(self.model, not values_by_id)
        self._active_names = names

    def _sample_values(self, names: list[str | None]) -> dict[int, Tensor]:
        """The values that each parameter has for the samples of these names, (samples,
        *shape), by the parameter's id. Zeros, which change nothing, stand for the base
        model."""
        zeros = torch.zeros_like(next(iter(self.vectors.values())))
        vectors = [zeros if name is None else self.vectors[name] for name in names]
        parameters = list(self._parameters.values())
        # The model may have been moved or cast since
        stacked = torch.stack(vectors).to(parameters[0])
        flat_values = torch.split(stacked, [p.numel() for p in parameters], dim=1)
        values_by_id = {}
        for parameter, values in zip(parameters, flat_values, strict=True):
            values_by_id[id(parameter)] = values.view(-1, *parameter.shape)
        return values_by_id

    def _begin_call(
        self,
        model: nn.Module,
        arguments: tuple[object, ...],
        keywords: dict[str, object],
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """The model's forward pre-hook: activates the adapter of each sample, and takes
        `adapter_names` out of the keywords."""
        keywords = dict(keywords)
        self._head_called = False
        names: Any = keywords.pop("adapter_names", None)
        if names is None:
            self._activate(self._names_of_use)
            return arguments, keywords
        checked = self._check_names(names)
        samples = _count_samples(arguments, keywords)
        if samples != len(checked):
            raise AdapterError(
                f"{len(checked)} adapter names for {samples} samples: each sample needs one"
            )
        self._activate(checked)
        return arguments, keywords

    def _end_call(self, model: nn.Module, arguments: object, result: object) -> None:
        """The model's forward hook: ends the effect of a call's own names."""
        names = self._active_names or []
        self._activate(self._names_of_use)
        needs_own_head = not self.heads.keys().isdisjoint(names)
        # After an error in the call there is no result, and that error is raised
        if result is not None and needs_own_head and not self._head_called:
            raise AdapterError("an adapter's own head was never called by this model")

    def _answer_by_own_heads(
        self,
        prefix: str,
        module: nn.Module,
        arguments: tuple[object, ...],
        output: Tensor,
    ) -> Tensor:
        """The forward hook of the head, or of one of its modules. For samples whose
        adapter has its own head, the output of that head replaces the shared head's.

        prefix: what the names of the module's parameters begin with."""
        self._head_called = True
        names = self._active_names or []
        names_with_head = self.heads.keys() & set(names)
        if not names_with_head:
            return output
        if (
            not isinstance(output, Tensor)
            or not len(output)
            or len(output) % len(names)
        ):
            raise AdapterError(
                "this model's head gives no answer for each sample: none can have its own"
            )
        # A batch may be a multiple of the names (see `use`): those of one name follow one
        # another
        name_of_row: list[str | None] = []
        rows_per_name = len(output) // len(names)
        for name in names:
            name_of_row += [name] * rows_per_name
        output = output.clone()
        with _without_hooks(module):
            for head_name in names_with_head:
                head = _tensors_below(prefix, self.heads[head_name], output)
                rows = [i for i, name in enumerate(name_of_row) if name == head_name]
                output[rows] = functional_call(module, head, arguments)[rows]
        return output

    # --- inside

    def _adapt(self, method: Method) -> None:
        """Adapts the model by this method, with the hooks that choose among adapters, and
        switches the adapter off until a call names some."""
        method.adapt(self.model)
        hooks_of_method = hook_keys(self.model)
        self.model.requires_grad_(False)
        self.model.register_forward_pre_hook(
            self._begin_call, with_kwargs=True, prepend=True
        )
        self.model.register_forward_hook(self._end_call, always_call=True)
        modules = dict(self.model.named_modules())
        for prefix in head_prefixes(self.model):
            head = modules.get(prefix.removesuffix("."))
            if head is not None:
                hook = partial(self._answer_by_own_heads, prefix)
                head.register_forward_hook(hook)
        self.method = method
        self._parameters = adapter_file.file_tensors(self.model, method)
        backbone = backbone_prefix(self.model)
        if backbone:
            module = self.model.get_submodule(backbone)
            module.register_forward_pre_hook(refuse_adapter_names, with_kwargs=True)
        self._hooks = hook_keys(self.model) - hooks_of_method
        self.model.__dict__["_adapters"] = self
        disable(self.model)

    def _check_names(self, names: Names) -> list[str | None]:
        """These names as a list. Raises AdapterError for an unknown one."""
        checked = list(names)
        for name in checked:
            is_resident = isinstance(name, str) and name in self.vectors
            if name is not None and not is_resident:
                raise AdapterError(f"no adapter {name!r} among the {len(self)} here")
        return checked


def _count_samples(
    arguments: tuple[object, ...], keywords: Mapping[str, object]
) -> int:
    """The number of samples of a call: the first dimension of its first tensor, of those
    in INPUTS before any other. 0 for a call without tensors."""
    inputs = [keywords.get(key) for key in INPUTS]
    for value in (*inputs, *arguments, *keywords.values()):
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    return 0


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Takes a module's forward hooks away for the block: one of them may then call the
    module again, without being called by that."""
    hooks = module._forward_hooks
    module._forward_hooks = type(hooks)()
    try:
        yield
    finally:
        module._forward_hooks = hooks


def _tensors_below(
    prefix: str, tensors: Mapping[str, Tensor], reference: Tensor
) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names. They have
    the device and dtype of `reference`."""
    tensors_by_rest = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            tensors_by_rest[name.removeprefix(prefix)] = tensor.to(reference)
    return tensors_by_rest
