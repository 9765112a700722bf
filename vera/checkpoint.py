"""The adapter file: the trained vectors, and beside them what is needed to know that they fit.

safetensors, never pickle. The header's metadata holds the method's settings; for VeRA the projections' scheme, seed,
widest shapes and fingerprint (A and B themselves are not stored); a fingerprint of the base weights; and a SHA-256 of
the whole file, so that no changed byte loads. What a method of peft draws again from its configuration is left out, too:
the header holds its fingerprint and the version of peft that drew it.
"""

import copy
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods import Method, make_method
from vera.methods.base import AdaptedLinear, adaptation, disable, plain_names, refuse_many, unload
from vera.sites import head_parameters, is_linear

FORMAT = "vera-bench adapter 2"
HEAD_FORMAT = "vera-bench head 2"
#: A larger header is no adapter's, and is not parsed.
LARGEST_HEADER = 64 * 2**20
_CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def save(model: nn.Module, method: Method, path: str | Path, dtype: torch.dtype | None = None) -> int:
    """Writes the adapter of an adapted model (without the head). Returns the file's size in bytes.

    dtype: torch.float16 or bfloat16 halves the file and rounds the vectors; None keeps them as they are (float32).
    Raises AdapterError for a model that carries another method or none, and for values that are not finite, or beyond
    float16's range.
    """
    adapted = adaptation(model)
    if adapted is None or adapted.method != method:
        carried = f"{adapted.method.kind} with {adapted.method.settings()}" if adapted else "no adapter"
        raise AdapterError(f"this model carries {carried}, not {method.kind} with {method.settings()}: not saved")
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise AdapterError(f"dtype must be torch.float16, torch.bfloat16 or None, got {dtype!r}")
    left_out = method.redrawn(model)
    tensors = {name: tensor.detach() for name, tensor in _saved(model, method).items() if name not in left_out}
    for name, tensor in tensors.items():
        if dtype is not None and tensor.is_floating_point():
            tensors[name] = tensor.to(dtype)
        if not torch.isfinite(tensors[name]).all():
            what = "holds values that are not finite" if not torch.isfinite(tensor).all() else f"is beyond the range of {dtype}"
            raise AdapterError(f"{name} {what}: not saved")
    fixed = method.fixed(model, left_out)
    header = {"format": FORMAT, "method": method.settings(), "fixed": fixed, "base": base_fingerprint(model)}
    return _write(path, tensors, header)


def save_head(model: nn.Module, path: str | Path) -> int:
    """Writes the classification head. Returns the file's size in bytes."""
    return _write(path, {name: p.detach() for name, p in head_parameters(model).items()}, {"format": HEAD_FORMAT})


def read_method(path: str | Path) -> Method:
    """The method that an adapter file was trained with."""
    return method_of(path, read_file(path, FORMAT)[0])


def load(model: nn.Module, path: str | Path, allow_other_base: bool = False) -> Method:
    """Makes the model the one that was saved, whatever adapter it carries now; a base model is adapted first.

    Raises AdapterError in one line, with the model unchanged, where the file is damaged or does not fit: other sites or
    shapes, projections with another fingerprint, values that are not finite, or other base weights (unless
    allow_other_base: an adapter is worth little on weights that it was not trained on).
    """
    refuse_many(model)
    header, tensors = read_file(path, FORMAT)
    method = method_of(path, header)
    # All is tried first on a copy; one without weights does, except for peft, which computes with them.
    adapted = adaptation(model)
    peft = method.kind == "peft" or (adapted is not None and adapted.method.kind == "peft")
    trial = copy.deepcopy(model) if peft else without_weights(model)
    unload(trial)
    method.adapt(trial)
    left_out = _check_adapter(path, header, tensors, trial, base=None if allow_other_base else model)
    if adapted is None or adapted.method != method or not left_out <= method.redrawn(model):
        unload(model)
        method.adapt(model)
    else:
        method.unmerge(model)
    disable(model, False)
    _fill(_wanted(model), tensors)
    return method


def check_start(start: Method, method: Method, name: str | Path) -> None:
    """Raises AdapterError unless a method can start from another's values: the same settings, but for dropout."""
    theirs, ours = start.settings(), method.settings()
    for key in ("kind", *sorted({*theirs, *ours} - {"kind", "dropout"})):
        if theirs.get(key) != ours.get(key):
            raise AdapterError(f"{name}: its {key} is {theirs.get(key)}, here it is {ours.get(key)}: no start for this method")


def start_from(model: nn.Module, path: str | Path, allow_other_base: bool = False) -> None:
    """Fills the adapter of a freshly adapted model with a file's values, as a start for training.

    Raises AdapterError, with the model unchanged, unless the file fits: see `check_start` and `load`.
    """
    refuse_many(model)
    adapted = adaptation(model)
    if adapted is None:
        raise AdapterError("only an adapted model can start from another adapter")
    header, tensors = read_file(path, FORMAT)
    check_start(method_of(path, header), adapted.method, path)
    _check_adapter(path, header, tensors, model, base=None if allow_other_base else model)
    adapted.method.unmerge(model)
    _fill(_wanted(model), tensors)


def load_head(model: nn.Module, path: str | Path) -> None:
    """Fills in a head written by `save_head`. Raises AdapterError where it does not fit."""
    wanted: dict[str, Tensor] = dict(head_parameters(model))
    tensors = read_file(path, HEAD_FORMAT)[1]
    check_tensors(path, wanted, tensors, "Same number of labels?")
    _fill(wanted, tensors)


# --- the base model


def base_names(model: nn.Module) -> set[str]:
    """The names of the base weights that a method leaves alone: neither head nor trained in place."""
    adapted = adaptation(model)
    if adapted is None:
        return {name for name, _ in model.named_parameters()} - head_parameters(model).keys()
    plain = plain_names(model)
    return set(adapted.base_names) - adapted.head - {plain[name] for name in adapted.trained}


def base_fingerprint(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, str]:
    """Hashes of the base weights: 16 hex digits each, empty where no weight is left alone (full fine-tuning).

    names: of the weights, in the base model's words; None: those that the method on the model leaves alone.
    Of the values rounded to bfloat16 and to float16: a copy of the same weights in half precision is the same base.
    "unquantised": of the weights that are no linear layer's, in bfloat16, for comparing with a 4-bit copy; the other two
    are absent there.
    """
    if names is None and hasattr(model, "_peft_base"):  # as it was before peft, which moves base weights for some methods
        return dict(cast(dict[str, str], model._peft_base))
    wanted = sorted(base_names(model) if names is None else names)
    if not wanted:
        return {}
    merged: dict[int, Any] = {
        id(m.base.weight): m._unmerged_weight for m in model.modules() if isinstance(m, AdaptedLinear) and m.merged
    }
    parameters = dict(model.named_parameters())
    merged |= {id(parameters[name]): kept for name, kept in cast(dict, getattr(model, "_peft_unmerged", {})).items()}
    plain = plain_names(model)
    found = {plain[name]: p for name, p in parameters.items()}
    tensors = {name: merged.get(id(found[name]), found[name]) for name in wanted if name in found}
    key = [(name, *_stamp(t)) for name, t in tensors.items() if t is not None]
    kept = getattr(model, "_base_fingerprint", None)
    if kept and kept[0] == key:  # hashing takes 1.4 s for RoBERTa-base, and runs save often
        return dict(kept[1])
    linear = {id(p) for m in model.modules() if is_linear(m) for p in m.parameters(recurse=False)}
    whole = all(t is not None and t.is_floating_point() for t in tensors.values())
    digests = {"bfloat16": hashlib.sha256(), "float16": hashlib.sha256()} if whole else {}
    digests["unquantised"] = hashlib.sha256()
    for name, tensor in tensors.items():
        if tensor is None or not tensor.is_floating_point():
            continue
        for kind, digest in digests.items():
            if kind == "unquantised" and id(found[name]) in linear:
                continue
            dtype = torch.float16 if kind == "float16" else torch.bfloat16
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", dtype).reshape(-1).view(torch.uint8).numpy().data)
    result = {kind: digest.hexdigest()[:16] for kind, digest in digests.items()}
    model._base_fingerprint = (key, result)  # type: ignore[assignment]
    return dict(result)


def _stamp(tensor: Tensor) -> tuple[int, int, float]:
    """What tells cheaply that a tensor has changed: its place, torch's count of changes, and a sample of its values."""
    version = 0 if tensor.is_inference() else tensor._version
    flat = tensor.detach().flatten()
    sample = flat[:: max(1, len(flat) // 64)]
    return tensor.data_ptr(), version, float(sample.double().sum()) if not tensor.is_meta else 0.0


def same_base(theirs: Any, ours: dict[str, str]) -> bool:
    if not isinstance(theirs, dict):
        return False
    kinds: list[str] = [kind for kind in ("bfloat16", "float16") if kind in theirs and kind in ours] or ["unquantised"]
    return theirs == ours or any(theirs.get(kind) == ours.get(kind) for kind in kinds)


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device: every shape, no value, no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_meta(parameter), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = _meta(buffer)
    for module in model.modules():
        if isinstance(module, AdaptedLinear) and module._unmerged_weight is not None:
            memo[id(module._unmerged_weight)] = None
    return copy.deepcopy(model, memo)


def _meta(tensor: Tensor) -> Tensor:
    # A packed 4-bit weight counts as the float32 matrix that it stands for.
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


# --- files


def share(path: Path) -> None:
    """Gives a new file the rights that any other would have: safetensors writes for the owner alone, and a shared folder is for
    others, too."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _write(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> int:
    """Writes a file with a checksum over all of it, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        metadata = {"header": json.dumps(header), "sha256": "0" * 64}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
        # safetensors writes the metadata in any order; equal adapters are to be equal files.
        ours, other = (json.dumps(dict(pairs), separators=(",", ":")).encode() for pairs in permutations(metadata.items()))
        content = partial.read_bytes().replace(other, ours, 1)
        # The checksum is that of the file with zeros in its own place.
        place = next(m for m in _CHECKSUM.finditer(content) if m[1] == b"0" * 64)
        with open(partial, "r+b") as file:
            file.write(content[: place.start(1)] + hashlib.sha256(content).hexdigest().encode() + content[place.end(1) :])
            file.flush()
            os.fsync(file.fileno())  # or a machine that loses power may keep the new name and not the bytes
        share(partial)
        os.replace(partial, path)
    except SafetensorError as error:
        raise system_error(path, error) from None
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def system_error(path: Path, error: SafetensorError) -> OSError:
    """The operating system's error, with its number, that safetensors wraps in one of its own: a full disk is known by it."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else OSError(f"{path}: {error}")


def read_file(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of an undamaged file. Raises AdapterError in one line for any other."""
    if not Path(path).is_file():
        what = "a folder, not an adapter file (vera.import_peft reads peft's)" if Path(path).is_dir() else "no such file"
        raise AdapterError(f"{path}: {what}")
    content = Path(path).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    found = _CHECKSUM.search(content, 8, min(end, LARGEST_HEADER))
    if len(content) < 8 or end > min(len(content), LARGEST_HEADER) or not found:
        other = Path(path).name == "adapter_model.safetensors"
        hint = "An adapter of peft's? vera.import_peft reads its folder" if other else "Get the file again"
        raise AdapterError(f"{path}: damaged, or not a file of the format {kind!r}. {hint}")
    blank = content[: found.start(1)] + b"0" * 64 + content[found.end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != found[1]:
        raise AdapterError(f"{path}: damaged (its checksum differs). Get the file again")
    try:
        header = json.loads(json.loads(content[8:end])["__metadata__"]["header"])
        tensors = read_tensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdapterError(f"{path}: damaged, or not a safetensors file ({words}). Get the file again") from None
    if not isinstance(header, dict) or header.get("format") != kind:
        raise AdapterError(f"{path}: not a file of the format {kind!r}")
    return header, tensors


def method_of(path: str | Path, header: dict[str, Any]) -> Method:
    try:
        return make_method(**header["method"])
    except (KeyError, TypeError) as error:
        raise AdapterError(f"{path}: its header describes no method ({error}). Not written by this project?") from None


def _wanted(model: nn.Module) -> dict[str, Tensor]:
    """What an adapted model keeps in its file, by the file's names."""
    adapted = adaptation(model)
    assert adapted is not None
    return _saved(model, adapted.method)


def _saved(model: nn.Module, method: Method) -> dict[str, Tensor]:
    plain = plain_names(model)
    return {plain[name]: tensor for name, tensor in method.saved(model).items()}


def _check_adapter(
    path: str | Path, header: dict[str, Any], tensors: dict[str, Tensor], adapted: nn.Module, base: nn.Module | None
) -> frozenset[str]:
    """Raises AdapterError unless a file fits an adapted model, and the base weights of `base` are those it was trained on.

    Returns the names of the tensors that the file leaves to the method to make again.
    """
    adaptation_ = adaptation(adapted)
    assert adaptation_ is not None
    wanted = _wanted(adapted)
    left_out = adaptation_.method.redrawn(adapted) - tensors.keys()
    theirs, ours = header.get("fixed"), adaptation_.method.fixed(adapted, left_out)
    if theirs != ours:
        raise AdapterError(_mismatch(Path(path), theirs, ours))
    check_tensors(path, {name: tensor for name, tensor in wanted.items() if name not in left_out}, tensors)
    if base is not None and not same_base(header.get("base"), base_fingerprint(base, base_names(adapted))):
        raise AdapterError(
            f"{path}: trained on other base weights than this model's; allow_other_base=True loads it all the same"
        )
    return left_out


def check_tensors(
    path: str | Path, wanted: dict[str, Tensor], tensors: dict[str, Tensor], hint: str = "Same base model and rank?"
) -> None:
    """Raises AdapterError unless the tensors of a file are just those that a model needs."""
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this model lacks"
        raise AdapterError(f"{path}: {what} ({len(missing)} missing, {len(extra)} unknown). Same base model and sites?")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)} in the file, {list(wanted[name].shape)} in the model"
            raise AdapterError(f"{path}: {name} is {shapes}. {hint}")
        if not fits(tensor, wanted[name]):
            raise AdapterError(f"{path}: {name} holds values that are not finite numbers")


def fits(tensor: Tensor, wanted: Tensor) -> bool:
    """Whether a file's values are finite numbers, as numbers of the wanted kind."""
    if not wanted.is_floating_point():
        return tensor.dtype == wanted.dtype
    half_or_more = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return tensor.dtype in half_or_more and bool(torch.isfinite(tensor.to(wanted.dtype)).all())


def _fill(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)


def _mismatch(path: Path, theirs: Any, ours: dict[str, Any]) -> str:
    wanted = theirs if isinstance(theirs, dict) else {}
    if "peft" in {*wanted, *ours}:
        here, drew = importlib.metadata.version("peft"), wanted.get("peft")
        why = f"Install peft=={drew}" if drew != here else "Another processor, precision or torch, or other base weights?"
        return f"{path.name} leaves out what peft {drew} drew from the configuration, and peft {here} draws it otherwise. {why}"
    if wanted.get("scheme") != ours.get("scheme"):
        return f"{path.name} needs projections of scheme {wanted.get('scheme')!r}, this version makes {ours.get('scheme')!r}"
    return (
        f"{path.name} was trained with projections {str(wanted.get('fingerprint'))[:8]} (seed {wanted.get('seed')}, "
        f"largest {wanted.get('outputs')}x{wanted.get('inputs')}), this model makes {str(ours.get('fingerprint'))[:8]} "
        f"(seed {ours.get('seed')}, largest {ours.get('outputs')}x{ours.get('inputs')}). Same base model and sites?"
    )
