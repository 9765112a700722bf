"""The base weights of a model, adapted or not: which they are, and their fingerprint."""

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, cast

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
    """Hashes of the base weights: 16 hex digits each, empty where no weight is left alone (full fine-tuning).

    names: of the weights, in the base model's words; None: those that the method on the model leaves alone.
    Of the values rounded to bfloat16 and to float16: a copy of the same weights in half precision is the same
    base. "unquantised": of the weights that are no linear layer's, in bfloat16, for comparing with a 4-bit
    copy; the other two are absent there.
    """
    # As it was before peft, which moves base weights for some methods
    if names is None and hasattr(model, "_peft_base"):
        return dict(cast(dict[str, str], model._peft_base))
    adapted = _adaptation(model)
    found = adapted.base_parameters(model) if adapted else dict(model.named_parameters())
    wanted = base_names(model) if names is None else names
    put_aside = adapted.method.unmerged(model) if adapted else {}
    return fingerprint(model, {name: found[name] for name in wanted if name in found}, put_aside)


def fingerprint(
    model: nn.Module, weights: Mapping[str, Tensor], unmerged: Mapping[int, Tensor] | None = None
) -> dict[str, str]:
    """The hashes of `base_fingerprint`, of these parameters of the model.

    unmerged: the values to hash in place of a parameter's, by its id.
    """
    if not weights:
        return {}
    tensors = {name: (unmerged or {}).get(id(p), p) for name, p in sorted(weights.items())}
    key = [(name, *stamp(t)) for name, t in tensors.items()]
    kept = getattr(model, "_base_fingerprint", None)
    if kept and kept[0] == key:  # hashing takes 1.4 s for RoBERTa-base, and runs save often
        return dict(kept[1])
    linear = {id(p) for m in model.modules() if is_linear(m) for p in m.parameters(recurse=False)}
    whole = all(t.is_floating_point() for t in tensors.values())
    digests = {"bfloat16": hashlib.sha256(), "float16": hashlib.sha256()} if whole else {}
    digests["unquantised"] = hashlib.sha256()
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
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
    """A methods.adapted.Adaptation, or None. Those files import this one."""
    return getattr(model, "_adaptation", None)


def stamp(tensor: Tensor) -> tuple[int, int, float]:
    """What tells cheaply that a tensor has changed: its place, torch's count of changes, and a sample of its
    values."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, 0.0 if tensor.is_meta else sample(tensor)


def sample(tensor: Tensor) -> float:
    """The sum of some 64 of the values."""
    flat = tensor.detach().reshape(-1)
    return float(flat[:: max(1, len(flat) // 64)].double().sum())


def same_base(theirs: Any, ours: dict[str, str]) -> bool:
    """Whether two fingerprints are of the same weights: the file's (theirs, whatever it holds) and the
    model's. Half precision is compared with itself where both have it: it says nothing of what was rounded
    away."""
    if not isinstance(theirs, dict):
        return False
    kinds: list[str] = [kind for kind in ("bfloat16", "float16") if kind in theirs and kind in ours] or [
        "unquantised"
    ]
    return theirs == ours or any(theirs.get(kind) == ours.get(kind) for kind in kinds)


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device: every shape, no value, no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_meta(parameter), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = _meta(buffer)
    for module in model.modules():
        if isinstance(put_aside := getattr(module, "_unmerged_weight", None), Tensor):
            memo[id(put_aside)] = None
    return copy.deepcopy(model, memo)


def _meta(tensor: Tensor) -> Tensor:
    # A packed 4-bit weight counts as the float32 matrix that it stands for.
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
    return torch.empty(tensor.shape, dtype=dtype, device="meta")
