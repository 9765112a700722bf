"""The adapter file: the trained vectors, and what shows whether they fit a model.

safetensors, never pickle. The header's metadata holds the method's settings; for VeRA
the projections' scheme, seed, widest shapes and fingerprint (A and B themselves are not
stored); a fingerprint of the base weights; and a SHA-256 of the whole file, so that no
changed byte loads. Tensors that a method of peft draws again from its configuration are
not stored either: the header holds their fingerprint and the version of peft."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vera.base_weights import base_fingerprint, base_names, same_base, without_weights
from vera.checked_file import (
    CheckedFile,
    check_finite,
    check_shapes,
    read_file,
    write_file,
)
from vera.errors import AdapterError
from vera.methods import Method, disable, frozen_extra, make_method, unload
from vera.methods.adapted import adaptation, plain_names, refuse_many, taken_back
from vera.sites import head_parameters, is_linear, size

FORMAT = "vera-bench adapter 2"
HEAD_FORMAT = "vera-bench head 2"
#: Allocations of torch whose sizes are single numbers, not a list.
COUNTED = ("arange", "eye", "linspace", "randperm", "tril_indices", "triu_indices")


def save(
    model: nn.Module, method: Method, path: str | Path, dtype: torch.dtype | None = None
) -> int:
    """Writes the adapter of an adapted model (without the head). Returns the file's
    size in bytes.

    dtype: torch.float16 or bfloat16 halves the file and rounds the vectors; None keeps
    them as they are (float32). Raises AdapterError for a model that carries another
    method or none, and for values that are not finite, or beyond float16's range."""
    adapted = adaptation(model)
    if adapted is None or adapted.method != method:
        own = (
            f"{adapted.method.kind} with {adapted.method.settings()}"
            if adapted
            else "no adapter"
        )
        raise AdapterError(
            f"this model carries {own}, not {method.kind} with {method.settings()}: not saved"
        )
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise AdapterError(
            f"dtype must be torch.float16, torch.bfloat16 or None, got {dtype!r}"
        )
    with taken_back(model, adapted):
        left_out = method.redrawn(model)
        tensors = {
            n: t.detach()
            for n, t in file_tensors(model, method).items()
            if n not in left_out
        }
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(
                dtype=dtype if tensor.is_floating_point() else None
            )
            if not torch.isfinite(tensors[name]).all():
                raise AdapterError(
                    f"{name} holds values that {tensors[name].dtype} cannot hold: not saved"
                )
        header = {"format": FORMAT, "method": method.settings()}
        header |= {
            "fixed": method.fixed(model, left_out),
            "base": base_fingerprint(model),
        }
        of = type(method)
        # for a reader who has not imported it
        if not of.__module__.startswith("vera."):
            header["class"] = f"{of.__module__}.{of.__qualname__}"
        return write_file(path, tensors, header)


def save_head(
    model: nn.Module,
    path: str | Path,
    classes: Sequence[str] | None = None,
    scaling: tuple[float, float] | None = None,
) -> int:
    """Writes the head of a classifier, with the names of its classes, or of a
    regression. Returns the file's size in bytes. scaling: mean and spread of the
    labels, where the output is (label - mean) / spread."""
    header: dict[str, Any] = {"format": HEAD_FORMAT} | (
        {"classes": list(classes)} if classes else {}
    )
    header |= {"scaling": list(scaling)} if scaling else {}
    return write_file(
        path, {name: p.detach() for name, p in head_parameters(model).items()}, header
    )


def read_classes(path: str | Path) -> list[str] | None:
    """The names of a head's classes, in the order of its outputs; None where the file
    has none. Raises AdapterError where the file is damaged, or its classes do not fit
    the head."""
    file = read_file(path, HEAD_FORMAT)
    classes = file.header.get("classes")
    names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    outputs = {shape[0] for shape in file.shapes.values() if shape}
    if classes is not None and not (names and len(classes) in outputs):
        raise AdapterError(
            f"{path}: its classes are no names of outputs, of which it has {outputs}"
        )
    return classes


def read_method(path: str | Path) -> Method:
    """The method that an adapter file was trained with."""
    return method_of(read_file(path, FORMAT))


def load(model: nn.Module, path: str | Path, allow_other_base: bool = False) -> Method:
    """Puts the adapter of a file into a model, in place of the one that it carries now,
    if any.

    Raises AdapterError in one line, with the model unchanged, where the file is damaged
    or does not fit: other sites or shapes, projections with another fingerprint, values
    that are not finite, or other base weights (unless allow_other_base: an adapter is
    worth little on weights that it was not trained on)."""
    refuse_many(model)
    file = read_file(path, FORMAT)
    method, adapted = method_of(file), adaptation(model)
    trial = try_adapter(file, method, model)
    tensors = read_fitting(file, method, trial, None if allow_other_base else model)
    left_out = file_tensors(trial, method).keys() - tensors.keys()
    if (
        adapted is None
        or adapted.method != method
        or not left_out <= method.redrawn(model)
    ):
        unload(model)
        method.adapt(model)
    else:
        method.unmerge(model)
    disable(model, False)
    fill(file_tensors(model, method), tensors)
    return method


def check_start(
    start: Method, method: Method, name: str | Path, free: tuple[str, ...] = ()
) -> None:
    """Raises AdapterError, which names the first difference, unless a method can start
    from another's values: the same settings, but for dropout and what is free."""
    one, other = start.settings(), method.settings()
    for key in (
        "kind",
        *sorted((one.keys() | other.keys()) - {"kind", "dropout", *free}),
    ):
        if one.get(key) != other.get(key):
            both = f"its {key} is {one.get(key)}, here it is {other.get(key)}"
            raise AdapterError(f"{name}: {both}: not the same method")


def start_from(
    model: nn.Module, path: str | Path, allow_other_base: bool = False
) -> None:
    """Fills the adapter of a freshly adapted model with a file's values, as a start for
    training.

    Raises AdapterError, with the model unchanged, unless the file fits: see
    `check_start` and `load`."""
    refuse_many(model)
    adapted = adaptation(model)
    if adapted is None:
        raise AdapterError("only an adapted model can start from another adapter")
    file, method = read_file(path, FORMAT), adapted.method
    check_start(method_of(file), method, path)
    tensors = read_fitting(file, method, model, None if allow_other_base else model)
    method.unmerge(model)
    fill(file_tensors(model, method), tensors)


def load_head(model: nn.Module, path: str | Path, scaled: bool = False) -> None:
    """Fills in a head written by `save_head`. The output of a regression on scaled
    labels becomes the label itself, or stays as it was trained (scaled). Raises
    AdapterError where the head does not fit."""
    needed = head_parameters(model)
    fill(needed, read_head(path, needed, scaled))


def read_head(
    path: str | Path, needed: Mapping[str, Tensor], scaled: bool = False
) -> dict[str, Tensor]:
    """The tensors of a head, for `load_head`."""
    file = read_file(path, HEAD_FORMAT)
    tensors, scaling = file.tensors(needed), file.header.get("scaling")
    if scaling is not None and not scaled:
        try:
            mean, spread = map(float, scaling)
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            unscale(output_of(tensors), mean, spread)
            check_finite(file.path, needed, tensors)
        except (TypeError, ValueError, OverflowError) as error:
            raise AdapterError(
                f"{path}: its scaling is no mean and spread ({error})"
            ) from None
    return tensors


def output_layer(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (1, width) and bias (1,) of a regression's output. Raises AdapterError
    where it has no bias."""
    return output_of(head_parameters(model))


def output_of(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The same among a head's tensors."""
    of = {
        tensor.dim(): tensor for tensor in tensors.values() if tensor.shape[:1] == (1,)
    }
    if of.keys() != {1, 2}:
        raise AdapterError(
            "scale_labels: the output layer has no bias, which would take the labels' mean"
        )
    return of[2], of[1]


@torch.no_grad()
def unscale(layer: tuple[Tensor, Tensor], mean: float, spread: float) -> None:
    """Makes an output layer that answers (label - mean) / spread answer the label, in
    place."""
    weight, bias = layer
    weight.mul_(spread)
    bias.mul_(spread).add_(mean)


def method_of(file: CheckedFile) -> Method:
    """The method that a file's header describes. Raises AdapterError where it describes
    none, or one of a class that nobody has imported."""
    try:
        return make_method(**file.header["method"])
    except (AdapterError, KeyError, TypeError) as error:
        own = file.header.get("class")
        hint = f" (import {own} first)" if isinstance(own, str) else ""
        why = (
            str(error)
            if isinstance(error, AdapterError)
            else f"its header describes no method: {error}"
        )
        raise AdapterError(f"{file.path}{hint}: {why}") from None


def file_tensors(model: nn.Module, method: Method) -> dict[str, Tensor]:
    """The tensors of an adapted model that belong into its file, by the file's
    names."""
    plain = plain_names(model)
    return {plain[name]: tensor for name, tensor in method.saved(model).items()}


def _needed(file: CheckedFile, method: Method, adapted: nn.Module) -> dict[str, Tensor]:
    """Those of them that a file must hold: what peft draws again may be missing."""
    plain = plain_names(adapted)
    drawn = (
        {plain[name] for name in frozen_extra(adapted)}
        if method.kind == "peft"
        else set()
    )
    every = file_tensors(adapted, method)
    return {
        name: t for name, t in every.items() if name in file.shapes or name not in drawn
    }


def read_fitting(
    file: CheckedFile, method: Method, adapted: nn.Module, base: nn.Module | None
) -> dict[str, Tensor]:
    """The tensors of a file. Raises AdapterError unless they fit an adapted model, and
    were trained on the base weights of `base` (None: on any)."""
    needed = _needed(file, method, adapted)
    theirs = file.header.get("fixed")
    ours = method.fixed(
        adapted, frozenset(file_tensors(adapted, method).keys() - needed.keys())
    )
    if theirs != ours:
        theirs = theirs if isinstance(theirs, dict) else {}
        different = [
            key
            for key in sorted(theirs.keys() | ours.keys())
            if theirs.get(key) != ours.get(key)
        ]
        differ = ", ".join(
            f"{k} {str(theirs.get(k))[:16]}, here {str(ours.get(k))[:16]}"
            for k in different
        )
        raise AdapterError(
            f"{file.path}: relies on what is not the same here ({differ}). {method.hint}"
        )
    tensors = file.tensors(needed)
    if base is not None and not same_base(
        file.header.get("base"), base_fingerprint(base, base_names(adapted))
    ):
        raise AdapterError(
            f"{file.path}: trained on other base weights (load: allow_other_base=True)"
        )
    return tensors


def try_adapter(file: CheckedFile, method: Method, model: nn.Module) -> nn.Module:
    """A copy of the model, adapted by the file's method; without weights where the
    method needs none.

    Raises AdapterError where the method cannot be installed, takes more than a
    `Budget`, or does not have the file's names and shapes. No tensor has been read, and
    memory is taken only once they fit."""
    adapted = adaptation(model)
    peft = method.kind == "peft"
    with_weights = peft or method.reads_weights
    copied = with_weights or (adapted is not None and adapted.method.kind == "peft")
    trial = copy.deepcopy(model) if copied else without_weights(model)
    unload(trial)
    blank = without_weights(trial)
    budget = Budget(blank)
    try:
        with budget, torch.device("meta"):
            method.adapt(blank)
    except AdapterError:
        if budget.spent or not peft:
            raise
        # A few classes of peft read values and cannot be tried without weights: a
        # budget alone limits them.
    else:
        check_shapes(file.path, _needed(file, method, blank), file.shapes)
        if not with_weights:
            return blank
    with Budget(trial):
        method.adapt(trial)
    check_shapes(file.path, _needed(file, method, trial), file.shapes)
    return trial


def fill(needed: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copies a file's values into a model's own tensors of these names."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            needed[name].copy_(tensor)


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A limit on what installing a method may compute and allocate, for settings from a
    stranger's file: one tensor may be as large as the model or 256 MB; all together,
    sixteen times the model and 256 MB more. torch's operations are limited too: an
    endless loop contains some.

    Every class of peft needs less than a fifth of this at its defaults. Sizes are
    checked before torch allocates. Beyond the limits, raises AdapterError and sets
    `spent`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        size_of_model = sum(p.nbytes for p in model.parameters())
        self.largest, self.bytes = max(2**28, size_of_model), 2**28 + 16 * size_of_model
        self.operations = 2_000 + sum(
            200 + 12 * size(m)[1] for m in model.modules() if is_linear(m)
        )
        self.spent = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations -= 1
        allocates = not (func.is_view or func._schema.is_mutable)
        if self.operations < 0:
            self._refuse("computes more than any adapter of this model would")
        if (
            allocates
            and 4 * _elements(func, (*args, *(kwargs or {}).values())) > self.largest
        ):
            self._refuse("makes a tensor that is larger than the model")
        result = func(*args, **(kwargs or {}))
        if allocates:
            tensors = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            sizes = [t.nbytes for t in tensors if t.layout == torch.strided]
            self.bytes -= sum(sizes)
            if self.bytes < 0 or max(sizes, default=0) > self.largest:
                self._refuse("needs more memory than any adapter of this model would")
        return result

    def _refuse(self, what: str) -> None:
        self.spent = True
        raise AdapterError(f"installing it {what}: check its rank and counts")


def _elements(func: Any, arguments: tuple[Any, ...]) -> int:
    """The number of elements that a call's arguments name; 0 where its size follows
    from its tensors."""
    name = func._schema.name.partition("::")[2]
    if name in COUNTED:
        counts = [
            abs(a)
            for a in arguments
            if isinstance(a, (int, float)) and not isinstance(a, bool)
        ]
        if name not in ("eye", "tril_indices", "triu_indices"):
            return int(max(counts, default=0))
        # An eye of one number is a square
        return int(
            math.prod(counts) ** (2 if name == "eye" and len(counts) == 1 else 1)
        )
    lists = [a for a in arguments if isinstance(a, (list, tuple)) and a]
    return max(
        (abs(math.prod(a)) for a in lists if all(isinstance(n, int) for n in a)),
        default=0,
    )
