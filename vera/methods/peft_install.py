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

from vera.base_weights import base_fingerprint, hash_weights
from vera.errors import AdapterError, first_line
from vera.methods.adapted import plain_names
from vera.sites import head_parameters, head_prefixes

#: The names of the frozen tensors that a second installation drew again bit for bit, by
#: the method's settings, the base weights, their dtype and their device (as JSON).
_REPRODUCED: dict[str, frozenset[str]] = {}


@dataclass(frozen=True)
class Installed:
    """What a model that peft has adapted remembers, in a plain attribute: the wrapper,
    which holds the model, must not become its child.

    Attributes:
        wrapper: A peft.PeftModel, whose base_model is the tuner.
        base: The fingerprint of the base weights.
        stored: Hashes of frozen tensors that a file could hold, but that a second
            installation draws again, by the file's names.
        hidden: Hashes of frozen tensors that no file can hold, since they are no
            parameters or buffers of the model. They are drawn again, too.
    """

    wrapper: Any
    base: dict[str, str]
    stored: dict[str, str]
    hidden: dict[str, str]

    @property
    def allocator(self) -> Any:
        """The tuner's allocator of ranks; None for every method but AdaLoRA."""
        return getattr(self.wrapper.base_model, "rankallocator", None)


def installed(model: nn.Module) -> Installed:
    """What `install` has put into a model."""
    return model._peft  # type: ignore[return-value]


def install(
    owner: str,
    model: nn.Module,
    config_class: Any,
    config: dict[str, Any],
    settings: dict[str, Any],
) -> Installed:
    """Puts a tuner of peft into a model, in place.

    Args:
        owner: What error messages call the method.
        model: A frozen base model.
        config_class: A configuration class of peft.
        config: Its settings, complete for this model.
        settings: The settings of our method. With equal settings and base weights it
            is found out only once what a second installation draws again.

    Returns:
        The tuner, with the hashes of what need not be in a file.

    Raises:
        AdapterError: peft refuses the model, changes base weights, leaves nothing to
            train, or draws differently each time a tensor that no file can hold.
    """
    # On the meta device there are no values to compare or to hash
    is_blank = any(p.is_meta for p in model.parameters())
    # Before installing: some methods move a part of the base weights into the adapter
    base = {} if is_blank else base_fingerprint(model)
    base_tensors = [*model.named_parameters(), *model.named_buffers()]
    base_names = {name for name, _ in base_tensors}
    weight_names = base_names - head_parameters(model).keys()
    first_weight = next(model.parameters(), torch.empty(0))
    dtype, device = str(first_weight.dtype), str(first_weight.device)
    key = json.dumps([settings, base, dtype, device])
    unadapted = None
    if not is_blank and key not in _REPRODUCED:
        # For a second installation, before the first one changes the modules
        unadapted = _copy_with_same_weights(model)
    wrapper = _wrap(owner, model, config_class, config)
    if not is_blank:
        weights = _parameters_by_plain_name(model, weight_names)
        if hash_weights(model, weights) != base:
            raise AdapterError(
                f"{owner} rewrites base weights with these settings: not supported"
            )
    _check_trained(owner, model)
    if is_blank:
        return Installed(wrapper, base, {}, {})
    # Frozen tensors that peft draws when it is installed, such as A and B of its VeRA
    drawn = _hash_frozen(model, wrapper, base_names)
    if unadapted is not None:
        reproduced: frozenset[str] = frozenset()
        if drawn.stored or drawn.hidden:
            # Some methods change the weights of the layers that they adapt
            _copy_layers(unadapted, _adapted_paths(model))
            reproduced = _names_drawn_again(
                unadapted, config_class, config, base_names, drawn
            )
        _REPRODUCED[key] = reproduced
    not_reproduced = drawn.hidden.keys() - _REPRODUCED[key]
    if not_reproduced:
        name = min(not_reproduced)  # any of them: the message names one
        raise AdapterError(
            f"{owner} draws {name} anew each time, and no file holds it: fix its seed"
        )
    stored = {
        name: drawn.stored[name] for name in drawn.stored.keys() & _REPRODUCED[key]
    }
    return Installed(wrapper, base, stored, drawn.hidden)


def _copy_with_same_weights(model: nn.Module) -> nn.Module:
    """A copy of a model's modules that shares its parameters and buffers."""
    # deepcopy's memo: for the id of an object, what stands in for its copy
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, tensors)


def _wrap(
    owner: str, model: nn.Module, config_class: Any, config: dict[str, Any]
) -> nn.Module:
    """Puts peft's tuner into the model, and returns the peft.PeftModel around it."""
    import peft

    try:
        with _one_thread():
            wrapper: nn.Module = peft.get_peft_model(model, config_class(**config))
    except Exception as error:
        raise AdapterError(
            f"{owner} on a {type(model).__name__}: {first_line(error)}"
        ) from None
    return wrapper


def _check_trained(owner: str, model: nn.Module) -> None:
    """Raises AdapterError where nothing trains beside the head."""
    head = head_prefixes(model)
    for name, parameter in model.named_parameters():
        trains = parameter.requires_grad and parameter.numel()
        if trains and not name.startswith(head):
            return
    raise AdapterError(f"{owner} leaves nothing to train in a {type(model).__name__}")


def _parameters_by_plain_name(model: nn.Module, names: set[str]) -> dict[str, Tensor]:
    """The parameters with these names in the base model, by these names."""
    plain = plain_names(model)
    parameters: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if plain[name] in names:
            parameters[plain[name]] = parameter
    return parameters


def _adapted_paths(model: nn.Module) -> list[str]:
    """The paths of the layers that peft has put a layer of its own around."""
    paths = []
    for path, module in model.named_modules():
        if "base_layer" in module._modules:
            paths.append(path)
    return paths


def _copy_layers(model: nn.Module, paths: list[str]) -> None:
    """Puts copies in the place of the layers with these paths: they no longer share their
    weights with another model."""
    for path in paths:
        model.set_submodule(path, copy.deepcopy(model.get_submodule(path)))


def _names_drawn_again(
    base_model: nn.Module,
    config_class: Any,
    config: dict[str, Any],
    base_names: set[str],
    drawn: "Frozen",
) -> frozenset[str]:
    """The names of the frozen tensors that a second installation, with another seed of
    torch, draws again bit for bit.

    base_model: a copy without an adapter; it is adapted here. base_names: of its own
    tensors. drawn: what the first installation drew."""
    import peft

    first = next(base_model.parameters(), torch.empty(0))
    devices = [first.device] if first.is_cuda else []
    with torch.random.fork_rng(devices), _one_thread():
        torch.manual_seed(torch.initial_seed() ^ 0x5EED)
        wrapper = peft.get_peft_model(base_model, config_class(**config))
    drawn_again = _hash_frozen(wrapper.base_model.model, wrapper, base_names)
    hashes = drawn.stored | drawn.hidden
    hashes_again = drawn_again.stored | drawn_again.hidden
    return frozenset(name for name, _ in hashes.items() & hashes_again.items())


@dataclass(frozen=True)
class Frozen:
    """Hashes of what peft added to a model and does not train.

    stored: of parameters and buffers of the model, by the file's names. hidden: of
    tensors that peft keeps beside the model, or as plain attributes of its layers."""

    stored: dict[str, str]
    hidden: dict[str, str]


def _hash_frozen(model: nn.Module, wrapper: nn.Module, base_names: set[str]) -> Frozen:
    """Hashes what peft added to a model and does not train.

    wrapper: peft's, around the model; it may keep further tensors. base_names: of the
    base model's own tensors."""
    plain = plain_names(model)
    model_tensors = dict([*model.named_parameters(), *model.named_buffers()])
    stored = {}
    for name, tensor in model_tensors.items():
        if plain[name] not in base_names and not tensor.requires_grad:
            stored[plain[name]] = hash_tensor(tensor)
    model_ids = {id(tensor) for tensor in model_tensors.values()}
    tensors = [
        *wrapper.named_parameters(),
        *wrapper.named_buffers(),
        *_plain_tensors(wrapper),
    ]
    hidden = {}
    for name, tensor in tensors:
        if id(tensor) not in model_ids and not tensor.requires_grad:
            hidden[name] = hash_tensor(tensor)
    return Frozen(stored, hidden)


def _plain_tensors(wrapper: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that peft's layers have as plain attributes, or in a dict that is one, each
    with a name that tells where it is."""
    for path, module in wrapper.named_modules():
        if not type(module).__module__.startswith("peft."):
            continue
        for name, value in vars(module).items():
            if name.startswith("_"):  # torch's own attributes
                continue
            values = value if isinstance(value, dict) else {"": value}
            for key, tensor in values.items():
                if isinstance(tensor, Tensor):
                    yield f"{path}.{name}.{key}", tensor


def hash_tensor(tensor: Tensor) -> str:
    """A hash of dtype, shape and every bit."""
    dense = tensor.detach()
    if dense.layout != torch.strided:
        dense = dense.to_dense()
    hasher = hashlib.sha256(f"{dense.dtype} {list(dense.shape)}".encode())
    values = dense.cpu().contiguous().reshape(-1).view(torch.uint8)
    hasher.update(values.numpy().data)
    return hasher.hexdigest()[:32]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Makes torch compute with one thread in the block: the last bits of an SVD depend on
    the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
