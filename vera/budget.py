"""A limit on what installing a method may compute and allocate, since the settings may
come from a stranger's file."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vera.errors import AdapterError
from vera.sites import is_linear, layer_widths

#: What every method may use, however small the model.
FREE_BYTES = 2**28
FREE_OPERATIONS = 2_000
#: How many more operations it may use for each linear layer, and for each output of one.
OPERATIONS_PER_LAYER = 200
OPERATIONS_PER_OUTPUT = 12
#: All tensors together may be this many times as large as the model, and FREE_BYTES more.
MODEL_SIZES = 16
#: The bytes of an element whose dtype is not known yet: as in float32.
BYTES_PER_ELEMENT = 4
#: torch's functions whose arguments name a size by single numbers, not by a list. The
#: largest of them is taken for the number of elements (for arange, its length),
SIZED_BY_NUMBERS = ("arange", "linspace", "randperm")
#: or their product.
SIZED_BY_PRODUCT = ("eye", "tril_indices", "triu_indices")


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which torch refuses to do more than an adapter of a model needs.

    One tensor may be as large as the model or 256 MB. All together may be sixteen times
    as large as the model, and 256 MB more. Operations are limited too: an endless loop
    contains some. Sizes are checked before torch allocates. Every class of peft needs
    less than a fifth of this at its defaults.

    spent: whether a limit was reached; torch's call has then raised AdapterError."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        bytes_of_model = sum(p.nbytes for p in model.parameters())
        self.max_tensor_bytes = max(FREE_BYTES, bytes_of_model)
        self.bytes_left = FREE_BYTES + MODEL_SIZES * bytes_of_model
        self.operations_left = FREE_OPERATIONS
        for module in model.modules():
            if is_linear(module):
                _, outputs = layer_widths(module)
                self.operations_left += OPERATIONS_PER_LAYER
                self.operations_left += OPERATIONS_PER_OUTPUT * outputs
        self.spent = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Carries out an operation of torch's in the context. Raises AdapterError for one
        that would exceed a limit."""
        keywords = kwargs or {}
        self.operations_left -= 1
        if self.operations_left < 0:
            self._refuse("computes more than any adapter of this model would")
        # A view, and a result that is written into an argument, need no new memory
        allocates = not (func.is_view or func._schema.is_mutable)
        if not allocates:
            return func(*args, **keywords)
        elements = _elements(func._schema.name, [*args, *keywords.values()])
        if BYTES_PER_ELEMENT * elements > self.max_tensor_bytes:
            self._refuse("makes a tensor that is larger than the model")
        result = func(*args, **keywords)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.bytes_left -= tensor.nbytes
                if self.bytes_left < 0 or tensor.nbytes > self.max_tensor_bytes:
                    self._refuse(
                        "needs more memory than any adapter of this model would"
                    )
        return result

    def _refuse(self, reason: str) -> None:
        self.spent = True
        raise AdapterError(f"installing it {reason}: check its rank and counts")


def _elements(function: str, arguments: Iterable[object]) -> int:
    """The number of elements that the result of a call may have, by the numbers among its
    arguments; 0 where its size follows from its tensors.

    function: torch's name of it, such as "aten::zeros"."""
    name = function.partition("::")[2]
    if name in SIZED_BY_NUMBERS or name in SIZED_BY_PRODUCT:
        return _elements_by_numbers(name, arguments)
    return max((_elements_of_shape(argument) for argument in arguments), default=0)


def _elements_of_shape(argument: object) -> int:
    """The number of elements of a shape; 0 of another argument."""
    if not isinstance(argument, list | tuple) or not argument:
        return 0
    if not all(isinstance(number, int) for number in argument):
        return 0
    return abs(math.prod(argument))  # a size of -1 is left open: it counts as 1


def _elements_by_numbers(name: str, arguments: Iterable[object]) -> int:
    """As `_elements`, for a function of SIZED_BY_NUMBERS or SIZED_BY_PRODUCT."""
    numbers: list[float] = []
    for argument in arguments:
        if isinstance(argument, int | float) and not isinstance(argument, bool):
            numbers.append(argument)
    if name == "arange":
        return _elements_of_range(numbers)
    sizes = [abs(number) for number in numbers]
    if name not in SIZED_BY_PRODUCT:
        return int(max(sizes, default=0))
    if name == "eye" and len(sizes) == 1:  # a square matrix
        return int(sizes[0] ** 2)
    return int(math.prod(sizes))


def _elements_of_range(numbers: Sequence[float]) -> int:
    """The number of elements of an arange with these numbers: its end alone, or its start,
    its end and perhaps its step. 0 for one that torch refuses."""
    start, step = 0.0, 1.0
    end = numbers[-1] if numbers else 0.0
    if len(numbers) > 1:
        start, end = numbers[:2]
    if len(numbers) > 2:
        step = numbers[2]
    if step == 0 or not math.isfinite((end - start) / step):
        return 0
    return int(abs((end - start) / step))
