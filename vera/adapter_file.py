"""The adapter file: the trained vectors, and beside them what is needed to know that they fit.

safetensors, never pickle. The header's metadata holds the method's settings; for VeRA the projections'
scheme, seed, widest shapes and fingerprint (A and B themselves are not stored); a fingerprint of the base
weights; and a SHA-256 of the whole file, so that no changed byte loads. What a method of peft draws again
from its configuration is left out, too: the header holds its fingerprint and the version of peft that drew
it."""

import contextlib
import copy
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vera.base_weights import base_fingerprint, base_names, same_base, without_weights
from vera.budget import Budget
from vera.checked_file import check_shapes, check_tensors, read_checked, read_file, read_header, write_file
from vera.errors import AdapterError
from vera.methods import Method, make_method
from vera.methods.adapted import adaptation, disable, frozen_extra, plain_names, refuse_many, unload
from vera.sites import head_parameters

FORMAT = "vera-bench adapter 2"
HEAD_FORMAT = "vera-bench head 2"


def save(model: nn.Module, method: Method, path: str | Path, dtype: torch.dtype | None = None) -> int:
    """Writes the adapter of an adapted model (without the head). Returns the file's size in bytes.

    dtype: torch.float16 or bfloat16 halves the file and rounds the vectors; None keeps them as they are
    (float32). Raises AdapterError for a model that carries another method or none, and for values that are
    not finite, or beyond float16's range."""
    adapted = adaptation(model)
    if adapted is None or adapted.method != method:
        carried = f"{adapted.method.kind} with {adapted.method.settings()}" if adapted else "no adapter"
        raise AdapterError(
            f"this model carries {carried}, not {method.kind} with {method.settings()}: not saved"
        )
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise AdapterError(f"dtype must be torch.float16, torch.bfloat16 or None, got {dtype!r}")
    left_out = method.redrawn(model)
    tensors = {
        name: tensor.detach() for name, tensor in _wanted(model, method).items() if name not in left_out
    }
    for name, tensor in tensors.items():
        if dtype is not None and tensor.is_floating_point():
            tensors[name] = tensor.to(dtype)
        if not torch.isfinite(tensors[name]).all():
            what = (
                "holds values that are not finite"
                if not torch.isfinite(tensor).all()
                else f"is beyond the range of {dtype}"
            )
            raise AdapterError(f"{name} {what}: not saved")
    fixed = method.fixed(model, left_out)
    header = {"format": FORMAT, "method": method.settings(), "fixed": fixed, "base": base_fingerprint(model)}
    return write_file(path, tensors, header)


def save_head(model: nn.Module, path: str | Path, classes: Sequence[str] | None = None) -> int:
    """Writes the classification head, with the names of its classes. Returns the file's size in bytes."""
    header = {"format": HEAD_FORMAT} | ({"classes": list(classes)} if classes else {})
    return write_file(path, {name: p.detach() for name, p in head_parameters(model).items()}, header)


def read_classes(path: str | Path) -> list[str] | None:
    """The names of a head's classes, in the order of its outputs; None where the file has none. Raises
    AdapterError where it is damaged, or they are no names."""
    header, shapes = read_header(path, HEAD_FORMAT)
    classes = header.get("classes")
    outputs = {shape[0] for shape in shapes.values() if shape}
    if classes is None:
        return None
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise AdapterError(f"{path}: its classes are no list of names")
    if len(classes) not in outputs:
        raise AdapterError(f"{path}: {len(classes)} names of classes, which no layer of the head has")
    return list(classes)


def read_method(path: str | Path) -> Method:
    """The method that an adapter file was trained with."""
    return method_of(path, read_header(path, FORMAT)[0])


def load(model: nn.Module, path: str | Path, allow_other_base: bool = False) -> Method:
    """Makes the model the one that was saved, whatever adapter it carries now; a base model is adapted first.

    Raises AdapterError in one line, with the model unchanged, where the file is damaged or does not fit:
    other sites or shapes, projections with another fingerprint, values that are not finite, or other base
    weights (unless allow_other_base: an adapter is worth little on weights that it was not trained on)."""
    refuse_many(model)
    header, shapes = read_header(path, FORMAT)
    method = method_of(path, header)
    adapted = adaptation(model)
    trial = try_adapter(path, method, shapes, model)
    tensors = read_file(path, FORMAT)[1]
    left_out = _check_adapter(path, header, tensors, method, trial, base=None if allow_other_base else model)
    if adapted is None or adapted.method != method or not left_out <= method.redrawn(model):
        unload(model)
        method.adapt(model)
    else:
        method.unmerge(model)
    disable(model, False)
    _fill(_wanted(model, method), tensors)
    return method


def check_start(start: Method, method: Method, name: str | Path) -> None:
    """Raises AdapterError unless a method can start from another's values: the same settings, but for
    dropout."""
    theirs, ours = start.settings(), method.settings()
    for key in ("kind", *sorted({*theirs, *ours} - {"kind", "dropout"})):
        if theirs.get(key) != ours.get(key):
            raise AdapterError(
                f"{name}: its {key} is {theirs.get(key)}, here it is {ours.get(key)}: no start for this"
                " method"
            )


def start_from(model: nn.Module, path: str | Path, allow_other_base: bool = False) -> None:
    """Fills the adapter of a freshly adapted model with a file's values, as a start for training.

    Raises AdapterError, with the model unchanged, unless the file fits: see `check_start` and `load`.
    """
    refuse_many(model)
    adapted = adaptation(model)
    if adapted is None:
        raise AdapterError("only an adapted model can start from another adapter")
    header, shapes = read_header(path, FORMAT)
    check_start(method_of(path, header), adapted.method, path)
    _check_shapes(path, shapes, adapted.method, model)
    tensors = read_file(path, FORMAT)[1]
    _check_adapter(path, header, tensors, adapted.method, model, base=None if allow_other_base else model)
    adapted.method.unmerge(model)
    _fill(_wanted(model, adapted.method), tensors)


def load_head(model: nn.Module, path: str | Path) -> None:
    """Fills in a head written by `save_head`. Raises AdapterError where it does not fit."""
    wanted: dict[str, Tensor] = dict(head_parameters(model))
    _fill(wanted, read_checked(path, HEAD_FORMAT, wanted, "Same number of labels?"))


def method_of(path: str | Path, header: dict[str, Any]) -> Method:
    """The method that a header describes. Raises AdapterError for one that describes none."""
    try:
        return make_method(**header["method"])
    except (KeyError, TypeError) as error:
        raise AdapterError(
            f"{path}: its header describes no method ({error}). Not written by this project?"
        ) from None


def _wanted(model: nn.Module, method: Method) -> dict[str, Tensor]:
    """What an adapted model keeps in its file, by the file's names."""
    plain = plain_names(model)
    return {plain[name]: tensor for name, tensor in method.saved(model).items()}


def _check_adapter(
    path: str | Path,
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    method: Method,
    adapted: nn.Module,
    base: nn.Module | None,
) -> frozenset[str]:
    """Raises AdapterError unless a file fits an adapted model, and the base weights of `base` are those it
    was trained on.

    Returns the names of the tensors that the file leaves to the method to make again.
    """
    wanted = _wanted(adapted, method)
    left_out = method.redrawn(adapted) - tensors.keys()
    theirs, ours = header.get("fixed"), method.fixed(adapted, left_out)
    if theirs != ours:
        raise AdapterError(_mismatch(Path(path), theirs, ours, method.hint))
    check_tensors(path, {name: tensor for name, tensor in wanted.items() if name not in left_out}, tensors)
    if base is not None and not same_base(header.get("base"), base_fingerprint(base, base_names(adapted))):
        raise AdapterError(
            f"{path}: trained on other base weights than this model's; allow_other_base=True loads it all the"
            " same"
        )
    return left_out


def try_adapter(
    path: str | Path, method: Method, shapes: dict[str, list[int]], model: nn.Module
) -> nn.Module:
    """A copy of the model, adapted as the file says, without weights where the method computes nothing from
    them.

    Raises AdapterError where the method cannot be installed, takes more than a `Budget`, or a file of these
    shapes would not fit it: nothing but names and shapes is looked at, and no memory taken before they fit.
    """
    adapted = adaptation(model)
    peft = method.kind == "peft"
    trial = (
        copy.deepcopy(model)
        if peft or method.reads_weights or (adapted and adapted.method.kind == "peft")
        else without_weights(model)
    )
    unload(trial)
    blank = without_weights(trial)
    budget = Budget(blank)
    try:
        with budget, torch.device("meta"):
            method.adapt(blank)
    except AdapterError:
        if budget.spent or not peft:
            raise
        # A few classes of peft look at values. The budget alone holds them.
    else:
        _check_shapes(path, shapes, method, blank)
        if not (peft or method.reads_weights):
            return blank
    with Budget(trial) if peft else contextlib.nullcontext():
        method.adapt(trial)
    _check_shapes(path, shapes, method, trial)
    return trial


def _check_shapes(path: str | Path, shapes: dict[str, list[int]], method: Method, adapted: nn.Module) -> None:
    """Raises AdapterError unless a file's names and shapes are an adapted model's; it may lack what peft
    draws again."""
    plain, wanted = plain_names(adapted), _wanted(adapted, method)
    drawn = {plain[name] for name in frozen_extra(adapted)} if method.kind == "peft" else set()
    check_shapes(path, {name: t for name, t in wanted.items() if name in shapes or name not in drawn}, shapes)


def _fill(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)


def _mismatch(path: Path, theirs: Any, ours: dict[str, Any], hint: str) -> str:
    wanted = theirs if isinstance(theirs, dict) else {}
    if "peft" in {*wanted, *ours}:
        here, drew = importlib.metadata.version("peft"), wanted.get("peft")
        why = (
            f"Install peft=={drew}"
            if drew != here
            else "Another processor, precision or torch, or other base weights?"
        )
        return (
            f"{path.name} leaves out what peft {drew} drew from the configuration, and peft {here} draws it"
            f" otherwise. {why}"
        )
    if "fingerprint" not in {*wanted, *ours}:  # of a method that relies on something else than projections
        keys = sorted(key for key in {*wanted, *ours} if wanted.get(key) != ours.get(key))
        differ = ", ".join(f"{key} {wanted.get(key)!r}, here {ours.get(key)!r}" for key in keys)
        return f"{path.name} relies on what this model does not have ({differ}). {hint}"
    if wanted.get("scheme") != ours.get("scheme"):
        return (
            f"{path.name} needs projections of scheme {wanted.get('scheme')!r}, this version makes"
            f" {ours.get('scheme')!r}"
        )
    return (
        f"{path.name} was trained with projections {str(wanted.get('fingerprint'))[:8]} (seed"
        f" {wanted.get('seed')}, largest {wanted.get('outputs')}x{wanted.get('inputs')}), this model makes"
        f" {str(ours.get('fingerprint'))[:8]} (seed {ours.get('seed')}, largest"
        f" {ours.get('outputs')}x{ours.get('inputs')}). Same base model and sites?"
    )
