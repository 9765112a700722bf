"""How often a step waits for its device, counted without one.

A tensor on the device `meta` has a shape and no values. Training.step and evaluate run there as they do on a
GPU (ACCELERATE_TORCH_DEVICE=meta), but whatever reads a value has to be answered: each such read is a wait on
a GPU. Devices that are mixed show, too: `meta` may no more meet the CPU than a GPU may.
"""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[1]
ROOMS = tuple(str(ROOT / room) + os.sep for room in ("vera", "tasks", "runs"))
#: Operations that give the host a value, and those that move to it.
VALUES = {"aten._local_scalar_dense.default", "aten.equal.default", "aten.is_nonzero.default"}
COPIES = {"aten._to_copy.default", "aten.copy_.default"}
#: Operations whose result has as many rows as a mask has marks: the host has to know that number.
MARKED = {"aten.nonzero.default", "aten.masked_select.default"}
INDEXED = {"aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default"}
INDEXED |= {"aten._index_put_impl_.default", "aten._unsafe_index_put.default"}


class Watch(TorchDispatchMode):
    """Counts by the line of this project that causes them. reads: of values on `meta`; all are answered by
    zeros. mixes: operations on tensors of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.mixes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func), kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.dim()}  # a number of the host may meet any device
        if len(devices) > 1 and name not in COPIES:
            self.mixes[f"{name} at {line()}"] += 1
        if not any(x.device.type == "meta" for x in tensors):
            return func(*args, **kwargs)
        answered, answer = answer_to(func, name, args, kwargs)
        if answered:
            self.reads[f"{name.split('.')[1]} at {line()}"] += 1
            return answer
        return func(*args, **kwargs)


def answer_to(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    """Whether an operation has to read a value, and zeros in its place."""
    first = args[0]
    if name in VALUES:
        return True, torch.zeros((), dtype=torch.bool if "equal" in name else first.dtype).item()
    if name == "aten._to_copy.default" and str(kwargs.get("device")) == "cpu":
        return True, torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
    if name == "aten.copy_.default" and first.device.type == "cpu":
        return True, first.zero_()
    if name in MARKED:
        shape = (0, first.dim()) if "nonzero" in name else (0,)
        return True, torch.empty(shape, dtype=torch.long if "nonzero" in name else first.dtype, device="meta")
    masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name in INDEXED else []
    if masks and name == "aten.index.Tensor":
        return True, first.new_empty((0, *first.shape[masks[0].dim() :]))
    if masks:
        return True, first if "_." in name or "_impl_" in name else torch.empty_like(first)
    return False, None


def line() -> str:
    """The innermost line of this project on the stack, without its number: that changes."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(ROOMS):
            return f"{Path(path).relative_to(ROOT)} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """device=auto means `meta`, until the end."""
    from accelerate.state import AcceleratorState

    before, enabled = os.environ.get("ACCELERATE_TORCH_DEVICE"), torch.is_autocast_enabled
    autocast = torch.autocast
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "meta"
    # torch has no autocast for `meta`, and fails where it is asked
    torch.is_autocast_enabled = lambda device="cuda": device != "meta" and enabled(device)
    torch.autocast = lambda device, *given, **more: (
        contextlib.nullcontext() if device == "meta" else autocast(device, *given, **more)
    )
    try:
        yield
    finally:
        torch.is_autocast_enabled, torch.autocast = enabled, autocast
        if before is None:
            del os.environ["ACCELERATE_TORCH_DEVICE"]
        else:
            os.environ["ACCELERATE_TORCH_DEVICE"] = before
        AcceleratorState._reset_state(reset_partial_state=True)
