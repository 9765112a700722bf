"""A safetensors file with a header, and a SHA-256 over all of it, so that no changed
byte loads."""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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


def write_file(
    path: str | Path, tensors: dict[str, Tensor], header: dict[str, Any]
) -> int:
    """Writes a file with a checksum over all of it, whole or not at all. Returns its
    size in bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"header": json.dumps(header), "sha256": "0" * 64}
    content = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, metadata
    )
    # safetensors writes the metadata in any order; equal adapters are to be equal
    # files.
    one, other = (
        f"{json.dumps(key)}:{json.dumps(value)}".encode()
        for key, value in metadata.items()
    )
    content = content.replace(b"{%b,%b}" % (other, one), b"{%b,%b}" % (one, other), 1)
    # The checksum is that of the file with zeros in its place.
    start, end = next(m for m in _CHECKSUM.finditer(content) if m[1] == b"0" * 64).span(
        1
    )
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(partial, "wb") as file:
            file.write(
                content[:start]
                + hashlib.sha256(content).hexdigest().encode()
                + content[end:]
            )
            file.flush()
            # or a machine that loses power may keep the new name and not the bytes
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


@dataclass(frozen=True)
class CheckedFile:
    """An undamaged file, which may be a stranger's, and of any size: its header, and
    the shapes of its tensors, of which none is in memory yet. checksum: of the file
    that was checked."""

    path: Path
    checksum: bytes
    header: dict[str, Any]
    shapes: dict[str, list[int]]

    def tensors(self, needed: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The tensors. Raises AdapterError, before it reads them, unless they are just
        those needed (None: any), and where they hold other than finite numbers, or the
        file is another one by now."""
        if needed is not None:
            check_shapes(self.path, needed, self.shapes)
        content = self.path.read_bytes()
        digest = (
            hashlib.sha256(content.replace(self.checksum, b"0" * 64, 1))
            .hexdigest()
            .encode()
        )
        if digest != self.checksum:
            raise AdapterError(f"{self.path}: changed while it was read. Load it again")
        with _reading(self.path):
            tensors = read_tensors(content)
        if needed is not None:
            check_finite(self.path, needed, tensors)
        return tensors


def read_file(path: str | Path, kind: str) -> CheckedFile:
    """The file, by its checksum. Raises AdapterError in one line where it is damaged or
    of another format."""
    path = Path(path)
    again = f"not a file of the format {kind!r}. Get it again (vera.import_peft reads a folder of peft's)"
    if not path.is_file():
        raise AdapterError(
            f"{path}: {f'a folder, {again}' if path.is_dir() else 'no such file'}"
        )
    with open(path, "rb") as content:
        head = content.read(8)
        head += content.read(min(int.from_bytes(head, "little"), LARGEST_HEADER))
        checksum = _CHECKSUM.search(head, 8)
        if len(head) != 8 + int.from_bytes(head[:8], "little") or not checksum:
            raise AdapterError(f"{path}: damaged, or {again}")
        digest = hashlib.sha256(
            head[: checksum.start(1)] + b"0" * 64 + head[checksum.end(1) :]
        )
        hashlib.file_digest(content, lambda: digest)
    if digest.hexdigest().encode() != checksum[1]:
        raise AdapterError(
            f"{path}: damaged (its checksum differs). Get the file again"
        )
    with _reading(path), safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {})["header"])
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if not isinstance(header, dict) or header.get("format") != kind:
        raise AdapterError(f"{path}: {again}")
    return CheckedFile(path, checksum[1], header, shapes)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says in one line that a file with the right checksum is none of safetensors'."""
    try:
        yield
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        words = first_line(error)[:200]
        raise AdapterError(
            f"{path}: damaged, or not a safetensors file ({words}). Get it again"
        ) from None


def check_shapes(
    path: Path, needed: Mapping[str, Tensor], shapes: Mapping[str, list[int]]
) -> None:
    """Raises AdapterError unless the names and shapes of a file are just those that a
    model needs."""
    missing, extra = (
        sorted(needed.keys() - shapes.keys()),
        sorted(shapes.keys() - needed.keys()),
    )
    if missing or extra:
        what = (
            f"lacks {missing[0]}"
            if missing
            else f"holds {extra[0]}, which this model lacks"
        )
        raise AdapterError(f"{path}: {what}. Same base model and sites?")
    for name, shape in shapes.items():
        if shape != list(needed[name].shape):
            both = f"{shape} in the file, {list(needed[name].shape)} in the model"
            raise AdapterError(
                f"{path}: {name} is {both}. Same base model, rank and number of labels?"
            )


def check_finite(
    path: Path, needed: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Raises AdapterError unless a file's values are finite numbers, as numbers of the
    kind needed."""
    numbers = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for name, tensor in tensors.items():
        dtype = needed[name].dtype
        fits = tensor.dtype in numbers and bool(torch.isfinite(tensor.to(dtype)).all())
        if not (fits if dtype.is_floating_point else tensor.dtype == dtype):
            raise AdapterError(
                f"{path}: {name} holds values that are not finite numbers"
            )
