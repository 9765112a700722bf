"""Many adapters at once: one frozen base model, and a batch in which every sample names
its adapter.

All share the base weights, and VeRA's A and B: an adapter is its b and d alone, or
LoRA's matrices. A batch is computed by the factors of each sample, at a cost that does
not depend on how many are resident."""

from collections.abc import Iterator, Sequence
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
    refuse_many,
    refuse_names,
    remove_hooks,
)
from vera.methods.layers import changes
from vera.methods.lora import LoRA
from vera.methods.vera import VeRA
from vera.sites import backbone_prefix, head_parameters, head_prefixes

Names = Sequence[str | None]
#: Arguments whose first dimension is the batch's, looked at first.
INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "x")


class Adapters:
    """The adapters that are resident on a base model. A call without names is the base
    model's.

    adapters = Adapters(model) adapters.add("alice", "alice.safetensors",
    head="alice_head.safetensors") adapters.add("bob", "bob.safetensors") model(**batch,
    adapter_names=["alice", "bob", None]) # one name a sample; None: the base model
    with adapters.use(["alice", "bob"]):
        model.generate(**batch)

    Their method (VeRA or LoRA) and settings must be equal, since they are computed
    together; dropout and the start of d may differ. The model takes one call at a time.
    The first `add` adapts it; `unload` undoes it."""

    def __init__(self, model: nn.Module) -> None:
        """Raises AdapterError where the model carries an adapter."""
        refuse_many(model)
        if adaptation(model):
            raise AdapterError(
                "this model carries an adapter: its base model takes many (vera.unload)"
            )
        self.model = model
        self.method: Method | None = None
        self.vectors: dict[str, Tensor] = {}
        self.heads: dict[str, dict[str, Tensor]] = {}
        # names of the classes, where an adapter's head has them
        self.classes: dict[str, list[str]] = {}
        # of the adapted model, by the file's names
        self._parameters: dict[str, Tensor] = {}
        self._used: list[str | None] | None = None  # by `use`
        # what the layers are set to; None: the base model
        self._active: list[str | None] | None = None
        self._head_called = False  # whether the head was called in this call
        self._hooks: set[int] = set()

    # --- the resident adapters

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.vectors)

    def add(self, name: str, path: str | Path, head: str | Path | None = None) -> None:
        """Makes an adapter file resident; `head` is the file of a head of its own.

        Raises AdapterError, with nothing changed, where the name is taken, a file is
        damaged or does not fit the model, or the adapter's settings differ from those
        of the adapters here."""
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
        try:
            adapter_file.check_start(method, self.method, path, free=("d_init",))
            tensors = adapter_file.read_fitting(
                file, self.method, self.model, self.model
            )
            needed = head_parameters(self.model)
            heads = head_file.read_head(head, needed) if head else None
            classes = head_file.read_classes(head) if head else None
        except BaseException:
            if not self.vectors:
                self.unload()
            raise
        self.vectors[name] = torch.cat(
            [tensors[n].flatten().to(p) for n, p in self._parameters.items()]
        )
        if heads:
            self.heads[name] = {n: tensor.to(needed[n]) for n, tensor in heads.items()}
        if classes:
            self.classes[name] = classes

    def remove(self, name: str) -> None:
        """Raises AdapterError for an unknown name."""
        self._check_names([name])
        if len(self) == 1:  # the next one may have another rank
            self.unload()
        for resident in (self.vectors, self.heads, self.classes):
            resident.pop(name, None)

    def unload(self) -> None:
        """Forgets every adapter; the model is the plain base model again."""
        for resident in (self.vectors, self.heads, self.classes):
            resident.clear()
        if self.method is None:
            return
        self.method, self._active = None, None
        self.model.__dict__.pop("_adapters")
        remove_hooks(self.model, self._hooks)
        unload(self.model)

    # --- a call

    @contextmanager
    def use(self, names: Names) -> Iterator[None]:
        """In this context, the model and each part of it compute samples of these
        adapters: for `generate`, and for encoders.

        A batch that is a multiple of the names (beams) repeats each name. Raises
        AdapterError for an unknown name."""
        names, before = self._check_names(names), self._used
        if not names:
            raise AdapterError("no adapter names: each sample needs one")
        self._used = names
        self._set(names)
        try:
            yield
        finally:
            self._used = before
            self._set(before)

    def _set(self, names: list[str | None] | None) -> None:
        """Gives every layer the factors of each sample; None makes the model the base
        model. Names of `use` are repeated where a batch is a multiple of them."""
        if names is self._active:
            return
        own: dict[int, Tensor] = {}  # (samples, *shape) by the parameter's id
        if names is not None and any(name is not None for name in names):
            zero = torch.zeros_like(next(iter(self.vectors.values())))
            # the model may have been moved or cast since
            like = next(iter(self._parameters.values()))
            rows = torch.stack(
                [zero if name is None else self.vectors[name] for name in names]
            ).to(like)
            parameters = self._parameters.values()
            parts = torch.split(rows, [p.numel() for p in parameters], dim=1)
            own = {
                id(p): part.view(-1, *p.shape)
                for p, part in zip(parameters, parts, strict=True)
            }
        for change in changes(self.model):
            change.repeats = names is self._used
            change.rows = (
                {n: own[id(p)] for n, p in change.named_parameters()} if own else None
            )
        disable(self.model, not own)
        self._active = names

    def _begin(
        self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        """The model's forward pre-hook: sets the factors of each sample, and takes
        `adapter_names` away."""
        keywords, self._head_called = dict(keywords), False
        if (names := keywords.pop("adapter_names", None)) is not None:
            names = self._check_names(names)
            tensors = [
                *(keywords.get(key) for key in INPUTS),
                *arguments,
                *keywords.values(),
            ]
            samples = next(
                (len(t) for t in tensors if isinstance(t, Tensor) and t.dim()), 0
            )
            if samples != len(names):
                raise AdapterError(
                    f"{len(names)} adapter names for {samples} samples: each sample needs one"
                )
        self._set(self._used if names is None else names)
        return arguments, keywords

    def _end(self, model: nn.Module, arguments: Any, result: Any) -> None:
        """The model's forward hook: ends the effect of a call's own names."""
        active = self._active or []
        self._set(self._used)
        if (
            result is not None
            and not self._head_called
            and self.heads.keys() & set(active)
        ):
            raise AdapterError("an adapter's own head was never called by this model")

    def _own_heads(
        self, prefix: str, module: nn.Module, arguments: tuple[Any, ...], output: Any
    ) -> Any:
        """The forward hook of a head, which has this prefix: replaces outputs of
        adapters with their own."""
        self._head_called, names = True, self._active or []
        own = self.heads.keys() & set(names)
        if not own:
            return output
        if (
            not isinstance(output, Tensor)
            or not len(output)
            or len(output) % len(names)
        ):
            raise AdapterError(
                "this model's head gives no answer for each sample: none can have its own"
            )
        names = [name for name in names for _ in range(len(output) // len(names))]
        output = output.clone()
        hooks, module._forward_hooks = (
            module._forward_hooks,
            type(module._forward_hooks)(),
        )
        try:
            for name in own:
                tensors = self.heads[name].items()
                head = {
                    n.removeprefix(prefix): t.to(output)
                    for n, t in tensors
                    if n.startswith(prefix)
                }
                rows = [i for i, other in enumerate(names) if other == name]
                output[rows] = functional_call(module, head, arguments)[rows]
        finally:
            module._forward_hooks = hooks
        return output

    # --- inside

    def _adapt(self, method: Method) -> None:
        """Makes the model one that holds adapters of this method."""
        method.adapt(self.model)
        before = hook_keys(self.model)
        self.model.requires_grad_(False)
        self.model.register_forward_pre_hook(
            self._begin, with_kwargs=True, prepend=True
        )
        self.model.register_forward_hook(self._end, always_call=True)
        for prefix in head_prefixes(self.model):
            if (head := dict(self.model.named_modules()).get(prefix[:-1])) is not None:
                head.register_forward_hook(partial(self._own_heads, prefix))
        self.method, self._parameters = (
            method,
            adapter_file.file_tensors(self.model, method),
        )
        if backbone := backbone_prefix(self.model):
            self.model.get_submodule(backbone).register_forward_pre_hook(
                refuse_names, with_kwargs=True
            )
        self._hooks = hook_keys(self.model) - before
        self.model.__dict__["_adapters"] = self
        disable(self.model)

    def _check_names(self, names: Names) -> list[str | None]:
        """These names as a list. Raises AdapterError for an unknown one."""
        names = list(names)
        for name in names:
            if name is not None and (
                not isinstance(name, str) or name not in self.vectors
            ):
                raise AdapterError(f"no adapter {name!r} among the {len(self)} here")
        return names
