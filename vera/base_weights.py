"""The base weights of a model, adapted or not: which they are, and their
fingerprint."""

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vera.sites import head_parameters, is_linear


def base_names(model: nn.Module) -> set[str]:
    """The names of the base weights that a method leaves alone: neither head nor
    trained in place."""
    # A methods.adapted.Adaptation, whose files import this
    adapted: Any = getattr(model, "_adaptation", None)
    if adapted is None:
        return {name for name, _ in model.named_parameters()} - head_parameters(
            model
        ).keys()
    return set(adapted.left_alone(model))


def base_fingerprint(
    model: nn.Module, names: Iterable[str] | None = None
) -> dict[str, str]:
    """Hashes of the base weights, 16 hex digits each; empty where the method trains all
    (full fine-tuning).

    "bfloat16" and "float16" are of the values rounded to these: a copy of the weights
    in half precision is the same base. "unquantised" is of the weights outside of
    linear layers, in bfloat16: a 4-bit copy, which has this hash alone, is compared by
    it. names: of the weights, as the base model has them; None: those that the method
    on the model leaves alone."""
    adapted: Any = getattr(model, "_adaptation", None)
    parameters = (
        adapted.base_parameters(model) if adapted else dict(model.named_parameters())
    )
    names = base_names(model) if names is None else names
    return fingerprint(
        model, {name: parameters[name] for name in names if name in parameters}
    )


def fingerprint(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The hashes of `base_fingerprint`, of these parameters of the model as they are
    without a merge."""
    if not weights:
        return {}
    adapted: Any = getattr(model, "_adaptation", None)
    unmerged = (
        {id(model.get_parameter(n)): t for n, t in adapted.unmerged.items()}
        if adapted
        else {}
    )
    tensors = {name: unmerged.get(id(p), p) for name, p in sorted(weights.items())}
    # Hashing takes 1.4 s for RoBERTa-base, and runs save often. What shows cheaply
    # whether a tensor has changed: its address, torch's count of changes (an inference
    # tensor has none), a sample of its values.
    key = [
        (
            name,
            t.data_ptr(),
            None if t.is_inference() else t._version,
            None if t.is_meta else sample(t),
        )
        for name, t in tensors.items()
    ]
    kept = getattr(model, "_base_fingerprint", None)
    if kept and kept[0] == key:
        return dict(kept[1])
    linear = {
        id(p)
        for m in model.modules()
        if is_linear(m)
        for p in m.parameters(recurse=False)
    }
    unpacked = {name: t for name, t in tensors.items() if t.is_floating_point()}
    half = (
        {"bfloat16": torch.bfloat16, "float16": torch.float16}
        if len(unpacked) == len(tensors)
        else {}
    )
    digests = {kind: hashlib.sha256() for kind in (*half, "unquantised")}
    for name, tensor in unpacked.items():
        for kind, digest in digests.items():
            if kind == "unquantised" and id(weights[name]) in linear:
                continue
            values = tensor.detach().to("cpu", half.get(kind, torch.bfloat16))
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    result = {kind: digest.hexdigest()[:16] for kind, digest in digests.items()}
    model._base_fingerprint = (key, result)  # type: ignore[assignment]
    return dict(result)


def sample(tensor: Tensor) -> float:
    """The sum of some 64 of the values."""
    flat = tensor.detach().reshape(-1)
    # Apple's GPUs have no float64
    return float(flat[:: max(1, len(flat) // 64)].cpu().double().sum())


def same_base(theirs: Any, ours: dict[str, str]) -> bool:
    """Whether a file's fingerprint (theirs, of any type) and a model's are of the same
    weights. One equal hash in half precision is enough: the other may differ in what
    was rounded away."""
    if not isinstance(theirs, dict):
        return False
    half = {"bfloat16", "float16"} & theirs.keys() & ours.keys()
    return theirs == ours or any(
        theirs.get(kind) == ours.get(kind) for kind in half or {"unquantised"}
    )


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device: all shapes, no values, no memory."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        # A packed 4-bit weight stands for a float32 matrix
        dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
        blank = torch.empty(tensor.shape, dtype=dtype, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = (
            nn.Parameter(blank, requires_grad=False) if is_parameter else blank
        )
    if adapted := getattr(model, "_adaptation", None):
        memo[id(adapted.unmerged)] = {}
    return copy.deepcopy(model, memo)
