"""The adapter file: the trained vectors, and what shows whether they fit a model.

safetensors, never pickle. The header's metadata holds the method's settings; for VeRA
the projections' scheme, seed, widest shapes and fingerprint (A and B themselves are not
stored); a fingerprint of the base weights; and a SHA-256 of the whole file, so that no
changed byte loads. Tensors that a method of peft draws again from its configuration are
not stored either: the header holds their fingerprint and the version of peft."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vera.base_weights import (
    base_fingerprint,
    same_base,
    untouched_base_names,
    without_weights,
)
from vera.budget import Budget
from vera.checked_file import CheckedFile, check_shapes, read_file, write_file
from vera.errors import AdapterError
from vera.head_file import fill
from vera.methods import Method, disable, frozen_extra, make_method, unload
from vera.methods.adapted import (
    adaptation,
    plain_names,
    refuse_many_adapters,
    unmerged_for_block,
)

FORMAT = "vera-bench adapter 2"
#: What `save` takes for its dtype.
DTYPES = (None, torch.float32, torch.float16, torch.bfloat16)


def save(
    model: nn.Module, method: Method, path: str | Path, dtype: torch.dtype | None = None
) -> int:
    """Writes the adapter of an adapted model, without the head.

    Args:
        model: The adapted model. It stays as it is.
        method: The method that it was adapted with.
        path: The file.
        dtype: torch.float16 or bfloat16 halves the file and rounds the values. None
            keeps them as they are (float32).

    Returns:
        The file's size in bytes.

    Raises:
        AdapterError: The model carries another method or none, or a value is not finite
            or beyond float16's range.
    """
    adapted = adaptation(model)
    if adapted is None or adapted.method != method:
        carried = "no adapter"
        if adapted:
            carried = f"{adapted.method.kind} with {adapted.method.settings()}"
        raise AdapterError(
            f"this model carries {carried}, not {method.kind} with {method.settings()}: not saved"
        )
    if dtype not in DTYPES:
        raise AdapterError(
            f"dtype must be torch.float16, torch.bfloat16 or None, got {dtype!r}"
        )
    with unmerged_for_block(model, adapted):
        left_out = method.redrawn(model)
        tensors = {}
        for name, tensor in file_tensors(model, method).items():
            if name not in left_out:
                tensors[name] = _cast_for_file(name, tensor.detach(), dtype)
        header = {
            "format": FORMAT,
            "method": method.settings(),
            "fixed": method.fixed(model, left_out),
            "base": base_fingerprint(model),
        }
        method_class = type(method)
        if not method_class.__module__.startswith("vera."):
            # For a reader who has not imported it
            header["class"] = f"{method_class.__module__}.{method_class.__qualname__}"
        return write_file(path, tensors, header)


def _cast_for_file(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in the dtype of the file; None keeps the tensor's own. Raises AdapterError,
    which names the tensor, for values that the dtype cannot hold."""
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    if not torch.isfinite(tensor).all():
        raise AdapterError(
            f"{name} holds values that {tensor.dtype} cannot hold: not saved"
        )
    return tensor


def load(model: nn.Module, path: str | Path, allow_other_base: bool = False) -> Method:
    """Puts the adapter of a file into a model, in place of the one that it carries now,
    if any.

    Args:
        model: A base model, or an adapted one.
        path: A file that `save` wrote.
        allow_other_base: Whether the base weights may be others than those that the
            adapter was trained on. It is worth little on them.

    Returns:
        The method of the file, which the model now carries.

    Raises:
        AdapterError: The file is damaged or does not fit: other sites or shapes,
            projections with another fingerprint, values that are not finite, or other
            base weights. The model is then unchanged.
    """
    refuse_many_adapters(model)
    file = read_file(path, FORMAT)
    method = method_of(file)
    trial = try_adapter(file, method, model)
    base = None if allow_other_base else model
    tensors = read_fitting(file, method, trial, base)
    left_out = file_tensors(trial, method).keys() - tensors.keys()
    if _can_be_filled(model, method, left_out):
        # The model carries this method already: only the values are replaced, which is
        # faster than to adapt it anew.
        method.unmerge(model)
    else:
        unload(model)
        method.adapt(model)
    disable(model, disabled=False)
    fill(file_tensors(model, method), tensors)
    return method


def _can_be_filled(model: nn.Module, method: Method, left_out: set[str]) -> bool:
    """Whether a model carries this method already, so that the file's values need only be
    copied into it.

    left_out: the names of the tensors that the file does not hold. The model must still
    have them as the method drew them."""
    adapted = adaptation(model)
    if adapted is None or adapted.method != method:
        return False
    return left_out <= method.redrawn(model)


def read_method(path: str | Path) -> Method:
    """The method that an adapter file was trained with.

    Args:
        path: A file that `save` wrote.

    Raises:
        AdapterError: The file is damaged, or its method is not known here.
    """
    return method_of(read_file(path, FORMAT))


def check_start(
    start: Method, method: Method, name: str | Path, free: tuple[str, ...] = ()
) -> None:
    """Checks that a method can start from another's values.

    Args:
        start: The method that the values are of.
        method: The method that is to start from them.
        name: What the error message calls the values.
        free: Settings that may differ, beside dropout.

    Raises:
        AdapterError: Another setting differs; the first one is named.
    """
    theirs = start.settings()
    ours = method.settings()
    compared_keys = theirs.keys() | ours.keys()
    compared_keys -= {"kind", "dropout", *free}
    for key in ("kind", *sorted(compared_keys)):  # another kind is the first to name
        if theirs.get(key) != ours.get(key):
            raise AdapterError(
                f"{name}: its {key} is {theirs.get(key)}, here it is {ours.get(key)}:"
                " not the same method"
            )


def start_from(
    model: nn.Module, path: str | Path, allow_other_base: bool = False
) -> None:
    """Fills the adapter of a freshly adapted model with a file's values, as a start for
    training.

    Args:
        model: The adapted model.
        path: A file that `save` wrote.
        allow_other_base: As for `load`.

    Raises:
        AdapterError: The file does not fit: see `check_start` and `load`. The model is
            then unchanged.
    """
    refuse_many_adapters(model)
    adapted = adaptation(model)
    if adapted is None:
        raise AdapterError("only an adapted model can start from another adapter")
    file = read_file(path, FORMAT)
    method = adapted.method
    check_start(method_of(file), method, path)
    base = None if allow_other_base else model
    tensors = read_fitting(file, method, model, base)
    method.unmerge(model)
    fill(file_tensors(model, method), tensors)


# --- parts of loading, which vera.Adapters uses, too


def method_of(file: CheckedFile) -> Method:
    """The method that a file's header describes. Raises AdapterError where it describes
    none, or one of a class that nobody has imported."""
    try:
        return make_method(**file.header["method"])
    except (AdapterError, KeyError, TypeError) as error:
        method_class = file.header.get("class")
        hint = ""
        if isinstance(method_class, str):
            hint = f" (import {method_class} first)"
        reason = f"its header describes no method: {error}"
        if isinstance(error, AdapterError):
            reason = str(error)
        raise AdapterError(f"{file.path}{hint}: {reason}") from None


def file_tensors(model: nn.Module, method: Method) -> dict[str, Tensor]:
    """The tensors of an adapted model that its adapter file holds, by their names in the
    file."""
    plain = plain_names(model)
    return {plain[name]: tensor for name, tensor in method.saved(model).items()}


def _needed(file: CheckedFile, method: Method, adapted: nn.Module) -> dict[str, Tensor]:
    """Those of `file_tensors` that are to be read from the file: all, except what a method
    of peft has drawn again in the adapted model and the file does not hold."""
    may_be_missing: set[str] = set()
    if method.kind == "peft":
        plain = plain_names(adapted)
        may_be_missing = {plain[name] for name in frozen_extra(adapted)}
    needed = {}
    for name, tensor in file_tensors(adapted, method).items():
        if name in file.shapes or name not in may_be_missing:
            needed[name] = tensor
    return needed


def read_fitting(
    file: CheckedFile, method: Method, adapted: nn.Module, base: nn.Module | None
) -> dict[str, Tensor]:
    """Reads the tensors of a file for an adapted model.

    Args:
        file: The file.
        method: The method that the model was adapted with.
        adapted: The model, or a copy without weights.
        base: The model whose base weights the file must have been trained on; None for
            any.

    Returns:
        The tensors by the file's names; they are not copied into the model.

    Raises:
        AdapterError: The tensors do not fit, or the base weights are others.
    """
    needed = _needed(file, method, adapted)
    left_out = frozenset(file_tensors(adapted, method).keys() - needed.keys())
    _check_fixed(file, method, method.fixed(adapted, left_out))
    tensors = file.tensors(needed)
    if base is not None:
        fingerprint = base_fingerprint(base, untouched_base_names(adapted))
        if not same_base(file.header.get("base"), fingerprint):
            raise AdapterError(
                f"{file.path}: trained on other base weights (load: allow_other_base=True)"
            )
    return tensors


def _check_fixed(file: CheckedFile, method: Method, ours: dict[str, object]) -> None:
    """Raises AdapterError unless the file relies on the same projections, or whatever
    else `Method.fixed` names. ours: what `Method.fixed` returns for the model here."""
    theirs = file.header.get("fixed")
    if theirs == ours:
        return
    if not isinstance(theirs, dict):
        theirs = {}
    differences = []
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            in_file = str(theirs.get(key))[:16]
            differences.append(f"{key} {in_file}, here {str(ours.get(key))[:16]}")
    raise AdapterError(
        f"{file.path}: relies on what is not the same here ({', '.join(differences)}). {method.hint}"
    )


def try_adapter(file: CheckedFile, method: Method, model: nn.Module) -> nn.Module:
    """Adapts a copy of a model by a file's method, to find out whether that can be done.

    The copy has weights only where the method needs some. No tensor of the file is
    read, and memory is taken only once names and shapes are known to fit.

    Args:
        file: The file.
        method: Its method.
        model: A base model, or an adapted one. It stays as it is.

    Returns:
        The copy.

    Raises:
        AdapterError: The method cannot be installed, takes more than a `Budget`, or
            does not have the file's names and shapes.
    """
    adapted = adaptation(model)
    needs_weights = method.kind == "peft" or method.reads_weights
    # Taking a method of peft out of the copy compares its base weights
    carries_peft_method = adapted is not None and adapted.method.kind == "peft"
    make_copy: Callable[[nn.Module], nn.Module] = without_weights
    if needs_weights or carries_peft_method:
        make_copy = copy.deepcopy
    trial = make_copy(model)
    unload(trial)
    # First without weights, which takes no memory
    blank = without_weights(trial)
    budget = Budget(blank)
    try:
        with budget, torch.device("meta"):
            method.adapt(blank)
    except AdapterError:
        if budget.spent or method.kind != "peft":
            raise
        # A few classes of peft read values and cannot be tried without weights: a
        # budget alone limits them.
    else:
        check_shapes(file.path, _needed(file, method, blank), file.shapes)
        if not needs_weights:
            return blank
    with Budget(trial):
        method.adapt(trial)
    check_shapes(file.path, _needed(file, method, trial), file.shapes)
    return trial
