"""A limit on what a method's installation may compute and allocate, for settings from a stranger's file."""

import math
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vera.errors import AdapterError
from vera.sites import is_linear, size

#: Allocations of torch whose sizes are single numbers, not a list.
COUNTED = ("arange", "eye", "linspace", "randperm", "tril_indices", "triu_indices")


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In this context, one tensor may be as large as the model or 256 MB; all together, sixteen times the
    model and 256 MB more. torch's operations are limited too: an endless loop contains some.

    Every class of peft needs less than a fifth of this at its defaults. Sizes are checked before torch
    allocates. Beyond the limits, raises AdapterError and sets `spent`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        size_of_model = sum(p.nbytes for p in model.parameters())
        self.largest, self.bytes = max(2**28, size_of_model), 2**28 + 16 * size_of_model
        self.operations = 2_000 + sum(200 + 12 * size(m)[1] for m in model.modules() if is_linear(m))
        self.spent = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations -= 1
        allocates = not (func.is_view or func._schema.is_mutable)
        if self.operations < 0:
            self._refuse("computes more than any adapter of this model would")
        if allocates and 4 * _elements(func, (*args, *(kwargs or {}).values())) > self.largest:
            self._refuse("makes a tensor that is larger than the model")
        result = func(*args, **(kwargs or {}))
        if allocates:
            tensors = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
            sizes = [t.nbytes for t in tensors if t.layout == torch.strided]
            self.bytes -= sum(sizes)
            if self.bytes < 0 or max(sizes, default=0) > self.largest:
                self._refuse("needs more memory than any adapter of this model would")
        return result

    def _refuse(self, what: str) -> None:
        self.spent = True
        raise AdapterError(f"installing it {what}: check its rank and counts")


def _elements(func: Any, arguments: tuple[Any, ...]) -> int:
    """The number of elements that a call's arguments name; 0 where its size follows from its tensors."""
    name = func._schema.name.partition("::")[2]
    if name in COUNTED:
        counts = [abs(a) for a in arguments if isinstance(a, (int, float)) and not isinstance(a, bool)]
        if name not in ("eye", "tril_indices", "triu_indices"):
            return int(max(counts, default=0))
        # An eye of one number is a square
        return int(math.prod(counts) ** (2 if name == "eye" and len(counts) == 1 else 1))
    sizes = [
        a for a in arguments if isinstance(a, (list, tuple)) and a and all(isinstance(n, int) for n in a)
    ]
    return max((abs(math.prod(a)) for a in sizes), default=0)
