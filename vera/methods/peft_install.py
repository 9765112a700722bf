"""How a tuner of peft is installed, and which frozen tensors it draws again from a
configuration, bit for bit and with any seed of torch."""

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vera.base_weights import base_fingerprint, fingerprint
from vera.errors import AdapterError, first_line
from vera.methods.adapted import plain_names
from vera.sites import head_parameters, head_prefixes

#: By method and base weights, the names of the frozen tensors that a second
#: installation drew again.
_REDRAWN: dict[str, frozenset[str]] = {}


@dataclass(frozen=True)
class Installed:
    """What a model that peft has adapted remembers. A plain attribute: the wrapper,
    which holds the model, is no child of it. Of frozen tensors that come back with the
    configuration, it has the hashes."""

    wrapper: Any  # a peft.PeftModel, whose base_model is the tuner
    base: dict[str, str]  # the fingerprint of the base weights
    stored: dict[str, str]  # of those that a file could hold, by its names
    # of those that it could not: they are no parameters or buffers of the model
    hidden: dict[str, str]

    @property
    def allocator(self) -> Any:
        """The tuner's allocator of ranks; None for every method but AdaLoRA."""
        return getattr(self.wrapper.base_model, "rankallocator", None)


def installed(model: nn.Module) -> Installed:
    """What peft has installed in a model."""
    return model._peft  # type: ignore[return-value]


def install(
    owner: str,
    model: nn.Module,
    config_class: Any,
    config: dict[str, Any],
    settings: dict[str, Any],
) -> Installed:
    """Puts a tuner of peft into a model, in place. owner: for refusals. settings:
    identify the method.

    Raises AdapterError where peft refuses it, changes base weights, leaves nothing to
    train, or draws a tensor that no file could hold otherwise each time."""
    import peft

    blank = any(p.is_meta for p in model.parameters())
    # Before installing: some methods move a part of the base weights into the adapter
    base = {} if blank else base_fingerprint(model)
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    weights = names - head_parameters(model).keys()
    first = next(model.parameters(), torch.empty(0))
    key = json.dumps([settings, base, str(first.dtype), str(first.device)])
    # New on these weights: a copy that shares them, for a second installation
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    clean = None if blank or key in _REDRAWN else copy.deepcopy(model, shared)
    try:
        with _one_thread():
            wrapper = peft.get_peft_model(model, config_class(**config))
    except Exception as error:
        raise AdapterError(
            f"{owner} on a {type(model).__name__}: {first_line(error)}"
        ) from None
    plain, head = plain_names(model), head_prefixes(model)
    now = {
        plain[name]: p for name, p in model.named_parameters() if plain[name] in weights
    }
    trained = [n for n, p in model.named_parameters() if p.requires_grad and p.numel()]
    if not blank and fingerprint(model, now) != base:
        raise AdapterError(
            f"{owner} rewrites base weights with these settings: not supported"
        )
    if all(name.startswith(head) for name in trained):
        raise AdapterError(
            f"{owner} leaves nothing to train in a {type(model).__name__}"
        )
    if blank:
        return Installed(wrapper, base, {}, {})
    stored, hidden = _frozen(model, wrapper, names)
    if clean is not None and not (stored or hidden):
        _REDRAWN[key] = frozenset()
    elif clean is not None:
        for path in [
            path for path, m in model.named_modules() if "base_layer" in m._modules
        ]:
            # layers of its own
            clean.set_submodule(path, copy.deepcopy(clean.get_submodule(path)))
        with (
            torch.random.fork_rng([first.device] if first.is_cuda else []),
            _one_thread(),
        ):
            torch.manual_seed(torch.initial_seed() ^ 0x5EED)
            second = peft.get_peft_model(clean, config_class(**config))
        theirs, beside = _frozen(second.base_model.model, second, names)
        same = (stored | hidden).items() & (theirs | beside).items()
        _REDRAWN[key] = frozenset(name for name, _ in same)
    for name in hidden.keys() - _REDRAWN[key]:
        raise AdapterError(
            f"{owner} draws {name} anew each time, and no file holds it: fix its seed"
        )
    return Installed(
        wrapper, base, {n: stored[n] for n in stored.keys() & _REDRAWN[key]}, hidden
    )


def _frozen(
    model: nn.Module, wrapper: nn.Module, names: set[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes of what peft added to a model and does not train: of parameters and
    buffers of the model, by the file's names, and of tensors that it keeps beside the
    model, or as plain attributes of its layers. names: the base model's own."""
    plain = plain_names(model)
    own = dict([*model.named_parameters(), *model.named_buffers()])
    inside = {id(t) for t in own.values()}
    found = [*wrapper.named_parameters(), *wrapper.named_buffers()]
    for path, module in wrapper.named_modules():
        if type(module).__module__.startswith("peft."):
            for name, value in vars(module).items():
                if not name.startswith("_"):  # torch's own attributes
                    parts = value.items() if isinstance(value, dict) else [("", value)]
                    found += [
                        (f"{path}.{name}.{key}", t)
                        for key, t in parts
                        if isinstance(t, Tensor)
                    ]
    stored = {
        plain[n]: digest(t)
        for n, t in own.items()
        if plain[n] not in names and not t.requires_grad
    }
    return stored, {
        n: digest(t) for n, t in found if id(t) not in inside and not t.requires_grad
    }


def digest(tensor: Tensor) -> str:
    """Of dtype, shape and every bit."""
    dense = (
        tensor.detach().to_dense()
        if tensor.layout != torch.strided
        else tensor.detach()
    )
    hasher = hashlib.sha256(f"{dense.dtype} {list(dense.shape)}".encode())
    hasher.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()[:32]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Computes with one thread: an SVD of the base weights has other last bits with
    another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
