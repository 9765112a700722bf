"""A safetensors file with a header, and a SHA-256 over all of it, so that no changed byte loads."""

import hashlib
import json
import os
import re
import socket
import threading
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as read_tensors
from safetensors.torch import save
from torch import Tensor

from vera.errors import AdapterError, first_line

#: A larger header is no adapter's, and is not parsed.
LARGEST_HEADER = 8 * 2**20
_CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def share(path: Path) -> None:
    """Gives a file of safetensors the rights of any other new file: it lets the owner alone read it, and
    a shared folder is for others, too."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_file(path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> int:
    """Writes a file with a checksum over all of it, whole or not at all. Returns its size in bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"header": json.dumps(header), "sha256": "0" * 64}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    # safetensors writes the metadata in any order; equal adapters are to be equal files.
    ordered, reverse = (
        json.dumps(dict(pairs), separators=(",", ":")).encode() for pairs in permutations(metadata.items())
    )
    content = content.replace(reverse, ordered, 1)
    # The checksum is that of the file with zeros in its place.
    start, end = next(m for m in _CHECKSUM.finditer(content) if m[1] == b"0" * 64).span(1)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(partial, "wb") as file:
            file.write(content[:start] + hashlib.sha256(content).hexdigest().encode() + content[end:])
            file.flush()
            os.fsync(file.fileno())  # or a machine that loses power may keep the new name and not the bytes
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def system_error(path: Path, error: SafetensorError) -> OSError:
    """The operating system's error, with its number, that safetensors wraps in one of its own: a full disk is
    known by it."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(f"{path}: {error}")
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def read_file(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of an undamaged file. Raises AdapterError in one line for any other.

    Takes the memory of the whole file: compare a stranger's file by its `read_header` first.
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


def read_checked(path: str | Path, kind: str, needed: dict[str, Tensor], hint: str) -> dict[str, Tensor]:
    """The tensors of a file that holds just those needed. Raises AdapterError where it does not, before it
    reads them."""
    check_shapes(path, needed, read_header(path, kind)[1], hint)
    tensors = read_file(path, kind)[1]
    check_tensors(path, needed, tensors, hint)
    return tensors


def _read(path: str | Path, kind: str, whole: bool) -> tuple[dict[str, Any], dict[str, list[int]], bytes]:
    """Header, shapes, and the content, unless `whole` is false."""
    path, again = Path(path), "Get the file again"
    if not path.is_file():
        what = (
            "a folder, not an adapter file (vera.import_peft reads peft's)"
            if path.is_dir()
            else "no such file"
        )
        raise AdapterError(f"{path}: {what}")
    if path.name == "adapter_model.safetensors":
        again = "An adapter of peft's? vera.import_peft reads its folder"
    with open(path, "rb") as file:
        head = file.read(8)
        head += file.read(min(int.from_bytes(head, "little"), LARGEST_HEADER))
        checksum = _CHECKSUM.search(head, 8)
        if len(head) != 8 + int.from_bytes(head[:8], "little") or not checksum:
            raise AdapterError(f"{path}: damaged, or not a file of the format {kind!r}. {again}")
        digest = hashlib.sha256(head[: checksum.start(1)] + b"0" * 64 + head[checksum.end(1) :])
        content = [head]
        while chunk := file.read(2**20):
            digest.update(chunk)
            content += [chunk] * whole
    if digest.hexdigest().encode() != checksum[1]:
        raise AdapterError(f"{path}: damaged (its checksum differs). Get the file again")
    try:
        with safe_open(path, "pt") as opened:
            header = json.loads((opened.metadata() or {})["header"])
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _no_tensors(path, error) from None
    if not isinstance(header, dict) or header.get("format") != kind:
        raise AdapterError(f"{path}: not a file of the format {kind!r}")
    return header, shapes, b"".join(content)


def _no_tensors(path: str | Path, error: BaseException) -> AdapterError:
    words = first_line(error)[:200]
    return AdapterError(f"{path}: damaged, or not a safetensors file ({words}). Get the file again")


def check_shapes(
    path: str | Path,
    needed: dict[str, Tensor],
    shapes: dict[str, list[int]],
    hint: str = "Same base model and rank?",
) -> None:
    """Raises AdapterError unless the names and shapes of a file are just those that a model needs."""
    missing, extra = sorted(set(needed) - set(shapes)), sorted(set(shapes) - set(needed))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which this model lacks"
        raise AdapterError(f"{path}: {what}. Same base model and sites?")
    for name, shape in shapes.items():
        if shape != list(needed[name].shape):
            both = f"{shape} in the file, {list(needed[name].shape)} in the model"
            raise AdapterError(f"{path}: {name} is {both}. {hint}")


def check_tensors(
    path: str | Path,
    needed: dict[str, Tensor],
    tensors: dict[str, Tensor],
    hint: str = "Same base model and rank?",
) -> None:
    """Raises AdapterError unless the tensors of a file are just those that a model needs, and finite."""
    check_shapes(path, needed, {name: list(tensor.shape) for name, tensor in tensors.items()}, hint)
    for name, tensor in tensors.items():
        if not fits(tensor, needed[name]):
            raise AdapterError(f"{path}: {name} holds values that are not finite numbers")


def fits(tensor: Tensor, needed: Tensor) -> bool:
    """Whether a file's values are finite numbers, as numbers of the kind needed."""
    if not needed.is_floating_point():
        return tensor.dtype == needed.dtype
    half_or_more = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return tensor.dtype in half_or_more and bool(torch.isfinite(tensor.to(needed.dtype)).all())
