"""The adapter file: the trained vectors, and beside them what is needed to know that they fit.

safetensors, never pickle. The header's metadata holds the method's settings and, for VeRA, the projections' scheme,
seed, scale shapes and fingerprint. A and B themselves are not stored.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods import Method, make_method
from vera.methods.base import AdaptedLinear
from vera.sites import head_parameters

FORMAT = "vera-bench adapter 1"
HEAD_FORMAT = "vera-bench head 1"


def save(model: nn.Module, method: Method, path: str | Path) -> int:
    """Writes the adapter of an adapted model (without the head). Returns the file's size in bytes."""
    tensors = {_file_name(name): p for name, p in method.adapter_parameters(model).items()}
    return _write(path, tensors, {"format": FORMAT, "method": method.config(), "fixed": method.fixed(model)})


def save_head(model: nn.Module, path: str | Path) -> int:
    """Writes the classification head. Returns the file's size in bytes."""
    return _write(path, head_parameters(model), {"format": HEAD_FORMAT})


def read_method(path: str | Path) -> Method:
    """The method that an adapter file was trained with."""
    metadata, _ = _read(path, FORMAT)
    try:
        return make_method(**metadata["method"])
    except (KeyError, TypeError) as error:
        raise AdapterError(f"{path}: its header describes no method ({error}). Not written by this project?") from None


def load(model: nn.Module, path: str | Path) -> Method:
    """Adapts a base model as the file says (unless it is adapted so already) and fills in the trained values.

    Raises AdapterError in one line where the file is damaged, or does not fit this model.
    """
    method = read_method(path)
    if not any(isinstance(m, AdaptedLinear) for m in model.modules()):
        method.adapt(model)
    metadata, tensors = _read(path, FORMAT)
    theirs, ours = metadata.get("fixed"), method.fixed(model)
    if theirs != ours:
        raise AdapterError(_mismatch(Path(path), theirs, ours))
    _fill(path, {_file_name(name): p for name, p in method.adapter_parameters(model).items()}, tensors)
    return method


def load_head(model: nn.Module, path: str | Path) -> None:
    """Fills in a head written by `save_head`. Raises AdapterError where it does not fit."""
    _fill(path, head_parameters(model), _read(path, HEAD_FORMAT)[1])


def _file_name(name: str) -> str:
    return name.replace(".base.", ".")  # a name in the base model's own words


def _write(path: str | Path, tensors: dict[str, Any], metadata: dict[str, Any]) -> int:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, partial, {"header": json.dumps(metadata)})
        os.replace(partial, path)
    except SafetensorError as error:  # safetensors wraps the operating system's error in its own
        raise OSError(f"{path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def _read(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not Path(path).is_file():
        raise AdapterError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("header", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, ValueError, OSError) as error:
        raise AdapterError(f"{path}: damaged or not a safetensors file ({error}). Get the file again") from None
    if not isinstance(header, dict) or header.get("format") != kind:
        raise AdapterError(f"{path}: not a file of the format {kind!r}")
    return header, tensors


def _fill(path: str | Path, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Copies tensors into parameters only after all of them have been found to fit: never half a load."""
    missing, extra = sorted(set(parameters) - set(tensors)), sorted(set(tensors) - set(parameters))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this model lacks"
        raise AdapterError(f"{path}: {what} ({len(missing)} missing, {len(extra)} unknown). Same base model and sites?")
    for name, tensor in tensors.items():
        if tensor.shape != parameters[name].shape:
            shapes = f"{list(tensor.shape)} in the file, {list(parameters[name].shape)} in the model"
            raise AdapterError(f"{path}: {name} is {shapes}. Same base model and rank?")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise AdapterError(f"{path}: {name} holds values that are not finite numbers")
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def _mismatch(path: Path, theirs: Any, ours: dict[str, Any]) -> str:
    if isinstance(theirs, dict) and theirs.get("scheme") != ours.get("scheme"):
        return f"{path.name} needs projections of scheme {theirs.get('scheme')!r}, this version makes {ours.get('scheme')!r}"
    wanted = theirs if isinstance(theirs, dict) else {}
    return (
        f"{path.name} was trained with projections {str(wanted.get('fingerprint'))[:8]} (seed {wanted.get('seed')}, "
        f"largest {wanted.get('outputs')}x{wanted.get('inputs')}), this model makes {str(ours.get('fingerprint'))[:8]} "
        f"(seed {ours.get('seed')}, largest {ours.get('outputs')}x{ours.get('inputs')}). Same base model and sites?"
    )
