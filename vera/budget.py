"""A limit on what installing a method may compute and allocate, for settings that come from a stranger's
file."""

import math
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vera.errors import AdapterError
from vera.sites import is_linear, size

#: Allocations of torch whose sizes are numbers of their own, not a list.
COUNTED = ("arange", "eye", "linspace", "randperm", "tril_indices", "triu_indices")


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, each tensor may be as large as the model or 256 MB, all together sixteen times the model and
    256 MB more, and the operations are counted: torch's, since a loop that runs away has some in it.

    Every class of peft needs less than a fifth of this at its defaults. Sizes are looked at before torch
    allocates. Raises AdapterError beyond that, and `spent` is then true."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        held = sum(p.nbytes for p in model.parameters())
        self.largest, self.bytes = max(2**28, held), 2**28 + 16 * held
        self.operations = 2_000 + sum(200 + 12 * size(m)[1] for m in model.modules() if is_linear(m))
        self.spent = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations -= 1
        makes = not (func.is_view or func._schema.is_mutable)
        if self.operations < 0:
            self._refuse("computes more than any adapter of this model would")
        if makes and 4 * _elements(func, (*args, *(kwargs or {}).values())) > self.largest:
            self._refuse("makes a tensor that is larger than the model")
        result = func(*args, **(kwargs or {}))
        if makes:
            made = [
                t.nbytes
                for t in tree_leaves(result)
                if isinstance(t, torch.Tensor) and t.layout == torch.strided
            ]
            self.bytes -= sum(made)
            if self.bytes < 0 or max(made, default=0) > self.largest:
                self._refuse("needs more memory than any adapter of this model would")
        return result

    def _refuse(self, what: str) -> None:
        self.spent = True
        raise AdapterError(f"installing it {what}: check its rank and counts")


def _elements(func: Any, arguments: tuple[Any, ...]) -> int:
    """How many numbers a call asks for in so many words; 0 where its size follows from its tensors."""
    name = func._schema.name.partition("::")[2]
    if name in COUNTED:
        counts = [abs(a) for a in arguments if isinstance(a, (int, float)) and not isinstance(a, bool)]
        # of n rows and n columns, where the number of columns is left out
        square = name == "eye" and len(counts) == 1
        flat = name not in ("eye", "tril_indices", "triu_indices")
        return int(max(counts, default=0) if flat else math.prod(counts) ** (2 if square else 1))
    sizes = [
        a for a in arguments if isinstance(a, (list, tuple)) and a and all(isinstance(n, int) for n in a)
    ]
    return max((abs(math.prod(a)) for a in sizes), default=0)
