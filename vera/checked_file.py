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
#: What stands in the checksum's place while it is computed.
NO_CHECKSUM = "0" * 64
#: The dtypes that values of an adapter may have.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHECKSUM = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def write_file(
    path: str | Path, tensors: dict[str, Tensor], header: Mapping[str, object]
) -> int:
    """Writes a file with a checksum over all of it, whole or not at all.

    Args:
        path: The file. Its folder is made where it does not exist.
        tensors: The tensors by name.
        header: What `CheckedFile.header` gives back: values that JSON has.

    Returns:
        The file's size in bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = _content_without_checksum(tensors, json.dumps(header))
    digest = hashlib.sha256(content).hexdigest().encode()
    start, end = _span_of_checksum(content)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(partial, "wb") as file:
            file.write(content[:start] + digest + content[end:])
            file.flush()
            # A machine that loses power may otherwise keep the name and not the bytes.
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def _content_without_checksum(tensors: dict[str, Tensor], header: str) -> bytes:
    """The bytes of the file with zeros in the checksum's place. The checksum is computed
    over these."""
    metadata = {"header": header, "sha256": NO_CHECKSUM}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = save(contiguous, metadata)
    # safetensors writes metadata in any order. Here it is always the same one, since
    # equal adapters are to be equal files.
    entries = []
    for key, value in metadata.items():
        entries.append(f"{json.dumps(key)}:{json.dumps(value)}".encode())
    first, second = entries
    reversed_order = b"{%b,%b}" % (second, first)
    return content.replace(reversed_order, b"{%b,%b}" % (first, second), 1)


def _span_of_checksum(content: bytes) -> tuple[int, int]:
    """Where the zeros in the checksum's place begin and end, in what
    `_content_without_checksum` returns."""
    for match in _CHECKSUM.finditer(content):
        if match[1] == NO_CHECKSUM.encode():
            return match.span(1)
    raise AssertionError("safetensors wrote no checksum")


@dataclass(frozen=True)
class CheckedFile:
    """An undamaged file, which may be a stranger's, and of any size.

    path: where it is. checksum: of the file as it was checked. header: what `write_file`
    was given. shapes: of its tensors, by name; none of them is in memory yet."""

    path: Path
    checksum: bytes
    header: dict[str, Any]
    shapes: dict[str, list[int]]

    def tensors(self, needed: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Reads the tensors.

        Args:
            needed: Tensors with the names, shapes and dtypes that a model needs; None
                for any.

        Returns:
            The tensors by name, on the CPU.

        Raises:
            AdapterError: The file has other names or shapes (nothing is read then), or
                values that are not finite, or it has changed since it was checked.
        """
        if needed is not None:
            check_shapes(self.path, needed, self.shapes)
        content = self.path.read_bytes()
        with_zeros = content.replace(self.checksum, NO_CHECKSUM.encode(), 1)
        if hashlib.sha256(with_zeros).hexdigest().encode() != self.checksum:
            raise AdapterError(f"{self.path}: changed while it was read. Load it again")
        with _safetensors_errors(self.path):
            tensors = read_tensors(content)
        if needed is not None:
            check_finite(self.path, needed, tensors)
        return tensors


def read_file(path: str | Path, kind: str) -> CheckedFile:
    """Checks a file by its checksum.

    Args:
        path: The file.
        kind: The format that its header must name.

    Returns:
        The file, without its tensors in memory.

    Raises:
        AdapterError: There is no such file, it is damaged, or of another format.
    """
    path = Path(path)
    other_format = (
        f"not a file of the format {kind!r}. Get it again (vera.import_peft reads a"
        " folder of peft's)"
    )
    if path.is_dir():
        raise AdapterError(f"{path}: a folder, {other_format}")
    if not path.is_file():
        raise AdapterError(f"{path}: no such file")
    checksum = _read_checksum(path)
    if checksum is None:
        raise AdapterError(f"{path}: damaged, or {other_format}")
    with _safetensors_errors(path), safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {})["header"])
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if not isinstance(header, dict) or header.get("format") != kind:
        raise AdapterError(f"{path}: {other_format}")
    return CheckedFile(path, checksum, header, shapes)


def _read_checksum(path: Path) -> bytes | None:
    """The checksum that a file's header names, if the content has it; None for a file that
    names none. Raises AdapterError where the content has another one."""
    with open(path, "rb") as content:
        # safetensors begins with the length of its header, in 8 bytes
        beginning = content.read(8)
        header_length = int.from_bytes(beginning, "little")
        beginning += content.read(min(header_length, LARGEST_HEADER))
        match = _CHECKSUM.search(beginning, 8)
        if len(beginning) != 8 + header_length or not match:
            return None
        start, end = match.span(1)
        with_zeros = beginning[:start] + NO_CHECKSUM.encode() + beginning[end:]
        digest = hashlib.sha256(with_zeros)
        # Adds the rest of the file to the same digest, without holding it in memory
        hashlib.file_digest(content, lambda: digest)
    if digest.hexdigest().encode() != match[1]:
        raise AdapterError(
            f"{path}: damaged (its checksum differs). Get the file again"
        )
    return match[1]


@contextlib.contextmanager
def _safetensors_errors(path: Path) -> Iterator[None]:
    """Turns the errors of safetensors, which a file with a right checksum can cause, too,
    into an AdapterError of one line."""
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
        reason = first_line(error)[:200]
        raise AdapterError(
            f"{path}: damaged, or not a safetensors file ({reason}). Get it again"
        ) from None


def check_shapes(
    path: Path, needed: Mapping[str, Tensor], shapes: Mapping[str, list[int]]
) -> None:
    """Compares the names and shapes of a file with those that a model needs.

    Args:
        path: The file, for the error message.
        needed: The model's tensors, by name.
        shapes: The shapes of the file's tensors, by name.

    Raises:
        AdapterError: A name is in one of them alone, or a shape differs.
    """
    missing = sorted(needed.keys() - shapes.keys())
    extra = sorted(shapes.keys() - needed.keys())
    if missing:
        raise AdapterError(f"{path}: lacks {missing[0]}. Same base model and sites?")
    if extra:
        raise AdapterError(
            f"{path}: holds {extra[0]}, which this model lacks. Same base model and sites?"
        )
    for name, shape in shapes.items():
        expected = list(needed[name].shape)
        if shape != expected:
            raise AdapterError(
                f"{path}: {name} is {shape} in the file, {expected} in the model."
                " Same base model, rank and number of labels?"
            )


def check_finite(
    path: Path, needed: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Checks the values of a file.

    Args:
        path: The file, for the error message.
        needed: The model's tensors, by name.
        tensors: The file's, of the same names.

    Raises:
        AdapterError: A value is not finite once it has the dtype that the model needs;
            or a tensor that holds no floating-point numbers in the model has another
            dtype in the file.
    """
    for name, tensor in tensors.items():
        dtype = needed[name].dtype
        fits = tensor.dtype == dtype
        if dtype.is_floating_point:
            is_float = tensor.dtype in FLOATS
            fits = is_float and bool(torch.isfinite(tensor.to(dtype)).all())
        if not fits:
            raise AdapterError(
                f"{path}: {name} holds values that are not finite numbers"
            )
