"""The base weights of a model, adapted or not: which they are, and their fingerprint."""

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vera.sites import head_parameters, is_linear


def base_names(model: nn.Module) -> set[str]:
    """The names of the base weights that a method leaves alone: neither head nor trained in place."""
    adapted = _adaptation(model)
    if adapted is None:
        return {name for name, _ in model.named_parameters()} - head_parameters(model).keys()
    return adapted.left_alone(model)


def base_fingerprint(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, str]:
    """Hashes of the base weights, 16 hex digits each; empty where the method trains all (full fine-tuning).

    "bfloat16" and "float16" are of the values rounded to these: a copy of the weights in half precision is
    the same base. "unquantised" is of the weights outside of linear layers, in bfloat16: a 4-bit copy, which
    has this hash alone, is compared by it. names: of the weights, as the base model has them; None: those
    that the method on the model leaves alone.
    """
    # As it was before peft, which moves base weights for some methods
    if names is None and hasattr(model, "_peft_base"):
        base: Any = model._peft_base
        return dict(base)
    adapted = _adaptation(model)
    parameters = adapted.base_parameters(model) if adapted else dict(model.named_parameters())
    names = base_names(model) if names is None else names
    unmerged = adapted.method.unmerged(model) if adapted else {}
    return fingerprint(model, {name: parameters[name] for name in names if name in parameters}, unmerged)


def fingerprint(
    model: nn.Module, weights: Mapping[str, Tensor], unmerged: Mapping[int, Tensor] | None = None
) -> dict[str, str]:
    """The hashes of `base_fingerprint`, of these parameters of the model. unmerged: by the id of a parameter,
    values to hash in the place of its own."""
    if not weights:
        return {}
    tensors = {name: (unmerged or {}).get(id(p), p) for name, p in sorted(weights.items())}
    key = [(name, *stamp(t)) for name, t in tensors.items()]
    kept = getattr(model, "_base_fingerprint", None)
    if kept and kept[0] == key:  # hashing takes 1.4 s for RoBERTa-base, and runs save often
        return dict(kept[1])
    linear = {id(p) for m in model.modules() if is_linear(m) for p in m.parameters(recurse=False)}
    unpacked = {name: t for name, t in tensors.items() if t.is_floating_point()}
    kinds = ["bfloat16", "float16", "unquantised"] if len(unpacked) == len(tensors) else ["unquantised"]
    digests = {kind: hashlib.sha256() for kind in kinds}
    for name, tensor in unpacked.items():
        for kind, digest in digests.items():
            if kind == "unquantised" and id(weights[name]) in linear:
                continue
            dtype = torch.float16 if kind == "float16" else torch.bfloat16
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", dtype).reshape(-1).view(torch.uint8).numpy().data)
    result = {kind: digest.hexdigest()[:16] for kind, digest in digests.items()}
    model._base_fingerprint = (key, result)  # type: ignore[assignment]
    return dict(result)


def _adaptation(model: nn.Module) -> Any:
    """A methods.adapted.Adaptation, or None. Not imported: its files import this one."""
    return getattr(model, "_adaptation", None)


def stamp(tensor: Tensor) -> tuple[int, int, float]:
    """Three numbers that show cheaply whether a tensor has changed: its address, torch's count of changes (an
    inference tensor has none), and a sample of its values."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, 0.0 if tensor.is_meta else sample(tensor)


def sample(tensor: Tensor) -> float:
    """The sum of some 64 of the values."""
    flat = tensor.detach().reshape(-1)
    return float(flat[:: max(1, len(flat) // 64)].cpu().double().sum())  # Apple's GPUs have no float64


def same_base(theirs: Any, ours: dict[str, str]) -> bool:
    """Whether a file's fingerprint (theirs, of any type) and a model's are of the same weights. One equal
    hash in half precision is enough: the other may differ in what was rounded away."""
    if not isinstance(theirs, dict):
        return False
    half = {"bfloat16", "float16"} & theirs.keys() & ours.keys()
    return theirs == ours or any(theirs.get(kind) == ours.get(kind) for kind in half or {"unquantised"})


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device: all shapes, no values, no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_meta(parameter), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = _meta(buffer)
    for module in model.modules():
        if isinstance(unmerged := getattr(module, "unmerged_weight", None), Tensor):
            memo[id(unmerged)] = None
    return copy.deepcopy(model, memo)


def _meta(tensor: Tensor) -> Tensor:
    # A packed 4-bit weight stands for a float32 matrix.
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
    return torch.empty(tensor.shape, dtype=dtype, device="meta")
