"""The adapter file: the trained vectors, and beside them what is needed to know that they fit.

safetensors, never pickle. The header's metadata holds the method's settings; for VeRA the projections'
scheme, seed, widest shapes and fingerprint (A and B themselves are not stored); a fingerprint of the base
weights; and a SHA-256 of the whole file, so that no changed byte loads. What a method of peft draws again
from its configuration is left out, too: the header holds its fingerprint and the version of peft that drew
it."""

import contextlib
import copy
import hashlib
import importlib.metadata
import json
import math
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

from vera.budget import Budget
from vera.errors import AdapterError
from vera.methods import Method, make_method
from vera.methods.base import (
    AdaptedLinear,
    adaptation,
    disable,
    frozen_extra,
    plain_names,
    refuse_many,
    unload,
)
from vera.sites import head_parameters, is_linear

FORMAT = "vera-bench adapter 2"
HEAD_FORMAT = "vera-bench head 2"
#: A larger header is no adapter's, and is not parsed: parsed JSON takes some twenty times its own size.
LARGEST_HEADER = 8 * 2**20
_CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')


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
        name: tensor.detach() for name, tensor in _saved(model, method).items() if name not in left_out
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
    return _write(path, tensors, header)


def save_head(model: nn.Module, path: str | Path) -> int:
    """Writes the classification head. Returns the file's size in bytes."""
    return _write(
        path, {name: p.detach() for name, p in head_parameters(model).items()}, {"format": HEAD_FORMAT}
    )


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
    _check_shapes(path, shapes, model)
    tensors = read_file(path, FORMAT)[1]
    _check_adapter(path, header, tensors, model, base=None if allow_other_base else model)
    adapted.method.unmerge(model)
    _fill(_wanted(model), tensors)


def load_head(model: nn.Module, path: str | Path) -> None:
    """Fills in a head written by `save_head`. Raises AdapterError where it does not fit."""
    wanted: dict[str, Tensor] = dict(head_parameters(model))
    _fill(wanted, read_checked(path, HEAD_FORMAT, wanted, "Same number of labels?"))


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
    Of the values rounded to bfloat16 and to float16: a copy of the same weights in half precision is the same
    base. "unquantised": of the weights that are no linear layer's, in bfloat16, for comparing with a 4-bit
    copy; the other two are absent there."""
    # As it was before peft, which moves base weights for some methods
    if names is None and hasattr(model, "_peft_base"):
        return dict(cast(dict[str, str], model._peft_base))
    wanted = sorted(base_names(model) if names is None else names)
    if not wanted:
        return {}
    merged: dict[int, Any] = {
        id(m.base.weight): m._unmerged_weight
        for m in model.modules()
        if isinstance(m, AdaptedLinear) and m.merged
    }
    parameters = dict(model.named_parameters())
    merged |= {
        id(parameters[name]): kept for name, kept in cast(dict, getattr(model, "_peft_unmerged", {})).items()
    }
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
    """What tells cheaply that a tensor has changed: its place, torch's count of changes, and a sample of its
    values."""
    version = 0 if tensor.is_inference() else tensor._version
    flat = tensor.detach().flatten()
    sample = flat[:: max(1, len(flat) // 64)]
    return tensor.data_ptr(), version, float(sample.double().sum()) if not tensor.is_meta else 0.0


def same_base(theirs: Any, ours: dict[str, str]) -> bool:
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
        if isinstance(module, AdaptedLinear) and module._unmerged_weight is not None:
            memo[id(module._unmerged_weight)] = None
    return copy.deepcopy(model, memo)


def _meta(tensor: Tensor) -> Tensor:
    # A packed 4-bit weight counts as the float32 matrix that it stands for.
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


# --- files


def share(path: Path) -> None:
    """Gives a new file the rights that any other would have: safetensors writes for the owner alone, and a
    shared folder is for others, too."""
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
        ours, other = (
            json.dumps(dict(pairs), separators=(",", ":")).encode()
            for pairs in permutations(metadata.items())
        )
        content = partial.read_bytes().replace(other, ours, 1)
        # The checksum is that of the file with zeros in its own place.
        place = next(m for m in _CHECKSUM.finditer(content) if m[1] == b"0" * 64)
        with open(partial, "r+b") as file:
            file.write(
                content[: place.start(1)]
                + hashlib.sha256(content).hexdigest().encode()
                + content[place.end(1) :]
            )
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
    """The operating system's error, with its number, that safetensors wraps in one of its own: a full disk is
    known by it."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return (
        OSError(int(number[1]), os.strerror(int(number[1])), str(path))
        if number
        else OSError(f"{path}: {error}")
    )


def read_file(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of an undamaged file. Raises AdapterError in one line for any other.

    Takes the memory of the whole file: a stranger's is compared by its `read_header` first.
    """
    header, _, content = _read(path, kind, whole=True)
    try:
        return header, read_tensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _no_tensors(path, error) from None


def read_header(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Header and the tensors' shapes of an undamaged file, which may be of any size. Raises AdapterError for
    any other."""
    return _read(path, kind, whole=False)[:2]


def read_checked(path: str | Path, kind: str, wanted: dict[str, Tensor], hint: str) -> dict[str, Tensor]:
    """The tensors of a file that holds just those wanted. Raises AdapterError, before they are read, where it
    does not."""
    check_shapes(path, wanted, read_header(path, kind)[1], hint)
    tensors = read_file(path, kind)[1]
    check_tensors(path, wanted, tensors, hint)
    return tensors


def _read(path: str | Path, kind: str, whole: bool) -> tuple[dict[str, Any], dict[str, list[int]], bytes]:
    """Header, shapes, and the content where the whole is wanted."""
    if not Path(path).is_file():
        what = (
            "a folder, not an adapter file (vera.import_peft reads peft's)"
            if Path(path).is_dir()
            else "no such file"
        )
        raise AdapterError(f"{path}: {what}")
    with open(path, "rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(8)
        end = 8 + int.from_bytes(head, "little")
        if len(head) == 8 and LARGEST_HEADER < end <= size:
            raise AdapterError(f"{path}: a header of {end} bytes is no adapter's ({LARGEST_HEADER} at most)")
        if end <= min(size, LARGEST_HEADER):
            head += file.read(end - 8)
        found = _CHECKSUM.search(head, 8)
        if len(head) < end or not found:
            other = Path(path).name == "adapter_model.safetensors"
            hint = (
                "An adapter of peft's? vera.import_peft reads its folder" if other else "Get the file again"
            )
            raise AdapterError(f"{path}: damaged, or not a file of the format {kind!r}. {hint}")
        try:
            table = json.loads(head[8:])
            header = json.loads(table.pop("__metadata__")["header"])
            shapes = {name: entry["shape"] for name, entry in table.items()}
            if any(not isinstance(shape, list) or len(shape) > 8 for shape in shapes.values()):
                raise ValueError("a shape that is none")
            room = 8 * sum(math.prod(shape) for shape in shapes.values())
            problem: Exception | None = (
                None if size - end <= room else ValueError("more bytes than its tensors have")
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            header, shapes, problem = {}, {}, error
        digest = hashlib.sha256(head[: found.start(1)] + b"0" * 64 + head[found.end(1) :])
        content = [head]
        while chunk := file.read(2**20):
            digest.update(chunk)
            if whole and problem is None:
                content.append(chunk)
    if digest.hexdigest().encode() != found[1]:
        raise AdapterError(f"{path}: damaged (its checksum differs). Get the file again")
    if problem is not None:
        raise _no_tensors(path, problem)
    if not isinstance(header, dict) or header.get("format") != kind:
        raise AdapterError(f"{path}: not a file of the format {kind!r}")
    return header, shapes, b"".join(content)


def _no_tensors(path: str | Path, error: BaseException) -> AdapterError:
    words = (str(error).splitlines() or [type(error).__name__])[0]
    return AdapterError(f"{path}: damaged, or not a safetensors file ({words[:200]}). Get the file again")


def method_of(path: str | Path, header: dict[str, Any]) -> Method:
    try:
        return make_method(**header["method"])
    except (KeyError, TypeError) as error:
        raise AdapterError(
            f"{path}: its header describes no method ({error}). Not written by this project?"
        ) from None


def _wanted(model: nn.Module) -> dict[str, Tensor]:
    """What an adapted model keeps in its file, by the file's names."""
    adapted = adaptation(model)
    assert adapted is not None
    return _saved(model, adapted.method)


def _saved(model: nn.Module, method: Method) -> dict[str, Tensor]:
    plain = plain_names(model)
    return {plain[name]: tensor for name, tensor in method.saved(model).items()}


def _check_adapter(
    path: str | Path,
    header: dict[str, Any],
    tensors: dict[str, Tensor],
    adapted: nn.Module,
    base: nn.Module | None,
) -> frozenset[str]:
    """Raises AdapterError unless a file fits an adapted model, and the base weights of `base` are those it
    was trained on.

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
        if peft or (adapted and adapted.method.kind == "peft")
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
        _check_shapes(path, shapes, blank)
        if not peft:
            return blank
    with Budget(trial) if peft else contextlib.nullcontext():
        method.adapt(trial)
    _check_shapes(path, shapes, trial)
    return trial


def _check_shapes(path: str | Path, shapes: dict[str, list[int]], adapted: nn.Module) -> None:
    """Raises AdapterError unless a file's names and shapes are an adapted model's; it may lack what peft
    draws again."""
    adaptation_ = adaptation(adapted)
    assert adaptation_ is not None
    plain, wanted = plain_names(adapted), _wanted(adapted)
    drawn = {plain[name] for name in frozen_extra(adapted)} if adaptation_.method.kind == "peft" else set()
    check_shapes(path, {name: t for name, t in wanted.items() if name in shapes or name not in drawn}, shapes)


def check_shapes(
    path: str | Path,
    wanted: dict[str, Tensor],
    shapes: dict[str, list[int]],
    hint: str = "Same base model and rank?",
) -> None:
    """Raises AdapterError unless the names and shapes of a file are just those that a model needs."""
    missing, extra = sorted(set(wanted) - set(shapes)), sorted(set(shapes) - set(wanted))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this model lacks"
        raise AdapterError(
            f"{path}: {what} ({len(missing)} missing, {len(extra)} unknown). Same base model and sites?"
        )
    for name, shape in shapes.items():
        if shape != list(wanted[name].shape):
            shapes_ = f"{shape} in the file, {list(wanted[name].shape)} in the model"
            raise AdapterError(f"{path}: {name} is {shapes_}. {hint}")


def check_tensors(
    path: str | Path,
    wanted: dict[str, Tensor],
    tensors: dict[str, Tensor],
    hint: str = "Same base model and rank?",
) -> None:
    """Raises AdapterError unless the tensors of a file are just those that a model needs, and finite."""
    check_shapes(path, wanted, {name: list(tensor.shape) for name, tensor in tensors.items()}, hint)
    for name, tensor in tensors.items():
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
        why = (
            f"Install peft=={drew}"
            if drew != here
            else "Another processor, precision or torch, or other base weights?"
        )
        return (
            f"{path.name} leaves out what peft {drew} drew from the configuration, and peft {here} draws it"
            f" otherwise. {why}"
        )
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
