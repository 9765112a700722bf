"""Which frozen tensors peft draws again from a configuration, bit for bit and with any seed of torch."""

import contextlib
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.adapted import plain_names

#: By method and base weights, the names of the frozen tensors that a second installation drew again.
_REDRAWN: dict[str, frozenset[str]] = {}


def drawn(
    owner: str, key_of: list[Any], model: nn.Module, wrapper: Any, names: set[str], again: Callable[[], Any]
) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes of the frozen tensors that come back with the configuration: those that a file could hold, by
    its names, and those that it could not, since they are no parameters or buffers of the model.

    names: the base model's. key_of: identifies the method and the base weights. again: installs the same a
    second time, on a copy. Raises AdapterError where a tensor that no file could hold does not come back.
    """
    stored, hidden = _frozen(model, wrapper, names)
    if not (stored or hidden):
        return {}, {}
    first = next(p for _, p in model.named_parameters())
    key = json.dumps([*key_of, str(first.dtype), str(first.device)])
    if key not in _REDRAWN:
        with _other_seed(first.device), one_thread():
            second = again()
        theirs, beside = _frozen(second.base_model.model, second, names)
        same = (stored | hidden).items() & (theirs | beside).items()
        _REDRAWN[key] = frozenset(name for name, _ in same)
    for name in hidden.keys() - _REDRAWN[key]:
        raise AdapterError(f"{owner} draws {name} anew each time, and no file holds it: fix its seed")
    return {name: stored[name] for name in stored.keys() & _REDRAWN[key]}, hidden


def _frozen(model: nn.Module, wrapper: nn.Module, names: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes of what peft added to a model and does not train: of parameters and buffers of the model, by the
    file's names, and of tensors that it keeps beside the model, or as plain attributes of its layers. names:
    the base model's own."""
    plain = plain_names(model)
    own = dict([*model.named_parameters(), *model.named_buffers()])
    inside = {id(t) for t in own.values()}
    found = [*wrapper.named_parameters(), *wrapper.named_buffers()]
    for path, module in wrapper.named_modules():
        if type(module).__module__.startswith("peft."):
            for name, value in vars(module).items():
                if not name.startswith("_"):  # torch's own attributes
                    parts = value.items() if isinstance(value, dict) else [("", value)]
                    found += [(f"{path}.{name}.{key}", t) for key, t in parts if isinstance(t, Tensor)]
    stored = {plain[n]: digest(t) for n, t in own.items() if plain[n] not in names and not t.requires_grad}
    return stored, {n: digest(t) for n, t in found if id(t) not in inside and not t.requires_grad}


def digest(tensor: Tensor) -> str:
    """Of dtype, shape and every bit."""
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    hasher = hashlib.sha256(f"{dense.dtype} {list(dense.shape)}".encode())
    hasher.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()[:32]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread: an SVD of the base weights has other last bits with another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _other_seed(device: torch.device) -> Iterator[None]:
    """Gives torch, numpy and Python another seed, and puts their generators back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(torch.initial_seed() ^ 0x5EED)
        np.random.seed(0x5EED)
        random.seed(0x5EED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
