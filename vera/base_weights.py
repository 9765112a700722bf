"""The base weights of a model, adapted or not: which they are, and their
fingerprint."""

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vera.sites import head_parameters, is_linear


def untouched_base_names(model: nn.Module) -> set[str]:
    """The names of the base weights that the method on a model leaves alone: neither the
    head's nor trained in place. Of a base model, all names but the head's."""
    adapted = _adaptation(model)
    if adapted is not None:
        return set(adapted.untouched_base_names(model))
    names = {name for name, _ in model.named_parameters()}
    return names - head_parameters(model).keys()


def base_fingerprint(
    model: nn.Module, names: Iterable[str] | None = None
) -> dict[str, str]:
    """Hashes of the base weights, as they are without a merge.

    Args:
        model: A base model or an adapted one.
        names: The names of the weights to hash, as in the base model. None takes those
            that the method on the model leaves alone.

    Returns:
        Three hashes of 16 hex digits, by what they are of; empty where the method
        trains all weights (full fine-tuning). "bfloat16" and "float16" are of the
        values rounded to these: a copy in half precision is the same base.
        "unquantised" is of the weights outside of linear layers, in bfloat16. A 4-bit
        copy has that one alone.
    """
    adapted = _adaptation(model)
    parameters = dict(model.named_parameters())
    if adapted is not None:
        parameters = adapted.base_parameters(model)
    if names is None:
        names = untouched_base_names(model)
    weights = {name: parameters[name] for name in names if name in parameters}
    return hash_weights(model, weights)


def hash_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The hashes that `base_fingerprint` describes, of some parameters of a model.

    Hashing takes 1.4 s for RoBERTa-base, and runs save often. The model therefore
    remembers the last hashes, which are returned while the weights seem unchanged.

    weights: parameters of the model, by the names that are hashed with them."""
    if not weights:
        return {}
    tensors = _without_merge(model, weights)
    stamps = [(name, *_change_stamp(tensor)) for name, tensor in tensors.items()]
    stamps_before, hashes_before = getattr(model, "_base_fingerprint", (None, {}))
    if stamps_before == stamps:
        return dict(hashes_before)
    # Quantising a model changes its linear layers only
    ids_in_linear_layers = set()
    for module in model.modules():
        if is_linear(module):
            ids_in_linear_layers |= {id(p) for p in module.parameters(recurse=False)}
    unquantised = {}
    floats = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            floats[name] = tensor
            if id(weights[name]) not in ids_in_linear_layers:
                unquantised[name] = tensor
    hashes = {}
    # A quantised model has packed weights, whose values cannot be rounded to these dtypes
    if len(floats) == len(tensors):
        hashes["bfloat16"] = _hash_tensors(floats, torch.bfloat16)
        hashes["float16"] = _hash_tensors(floats, torch.float16)
    hashes["unquantised"] = _hash_tensors(unquantised, torch.bfloat16)
    model._base_fingerprint = (stamps, hashes)  # type: ignore[assignment]
    return dict(hashes)


def _adaptation(model: nn.Module) -> Any:
    """How the model is adapted; None for a base model. The same as
    methods.adapted.adaptation, which cannot be imported here, since methods import this
    file."""
    return getattr(model, "_adaptation", None)


def _without_merge(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights as they are without a merge, sorted by name."""
    adapted = _adaptation(model)
    # Keyed by id, since `weights` has the base model's names, and the adaptation others
    unmerged_by_id = {}
    if adapted is not None:
        for name, tensor in adapted.weights_before_merge.items():
            unmerged_by_id[id(model.get_parameter(name))] = tensor
    in_order = sorted(weights.items())
    return {name: unmerged_by_id.get(id(p), p) for name, p in in_order}


def _change_stamp(tensor: Tensor) -> tuple[int, int | None, float | None]:
    """What shows cheaply whether a tensor has changed: its address, torch's count of
    changes (an inference tensor has none), and the sum of a sample of its values."""
    version = None if tensor.is_inference() else tensor._version
    values_sum = None if tensor.is_meta else sampled_sum(tensor)
    return tensor.data_ptr(), version, values_sum


def _hash_tensors(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """16 hex digits of names, shapes and rounded values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        values = tensor.detach().to("cpu", dtype).reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()[:16]


def sampled_sum(tensor: Tensor) -> float:
    """The sum of about 64 values, spread evenly over the tensor."""
    flat = tensor.detach().reshape(-1)
    stride = max(1, len(flat) // 64)
    # Apple's GPUs have no float64
    return float(flat[::stride].cpu().double().sum())


def same_base(theirs: object, ours: dict[str, str]) -> bool:
    """Whether two fingerprints are of the same weights.

    Args:
        theirs: A file's, which may be of any type.
        ours: A model's.

    Returns:
        Whether they agree. One equal hash in half precision is enough: the other may
        differ in what was rounded away. Without a hash in half precision on both sides
        (of a 4-bit copy) the hash "unquantised" decides.
    """
    if not isinstance(theirs, dict):
        return False
    if theirs == ours:
        return True
    comparable = {"bfloat16", "float16"} & theirs.keys() & ours.keys()
    if not comparable:
        comparable = {"unquantised"}
    return any(theirs.get(kind) == ours.get(kind) for kind in comparable)


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device: all shapes, no values, no memory."""
    # deepcopy's memo: for the id of an object, what stands in for its copy
    copies: dict[int, object] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        # A packed 4-bit weight stands for a float32 matrix
        dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
        blank = torch.empty(tensor.shape, dtype=dtype, device="meta")
        if isinstance(tensor, nn.Parameter):
            blank = nn.Parameter(blank, requires_grad=False)
        copies[id(tensor)] = blank
    adapted = _adaptation(model)
    if adapted is not None:
        # These would be copied with their values
        copies[id(adapted.weights_before_merge)] = {}
    return copy.deepcopy(model, copies)
