"""The file of a classifier's or a regression's head, beside its adapter's file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vera.checked_file import check_finite, read_file, write_file
from vera.errors import AdapterError
from vera.sites import head_parameters

HEAD_FORMAT = "vera-bench head 2"


def save_head(
    model: nn.Module,
    path: str | Path,
    classes: Sequence[str] | None = None,
    scaling: tuple[float, float] | None = None,
) -> int:
    """Writes the head of a model.

    Args:
        model: A model with a head.
        path: The file.
        classes: The names of a classifier's classes, in the order of its outputs.
        scaling: Mean and spread of a regression's labels, where the output is (label -
            mean) / spread.

    Returns:
        The file's size in bytes.
    """
    header: dict[str, object] = {"format": HEAD_FORMAT}
    if classes:
        header["classes"] = list(classes)
    if scaling:
        header["scaling"] = list(scaling)
    tensors = {name: p.detach() for name, p in head_parameters(model).items()}
    return write_file(path, tensors, header)


def load_head(model: nn.Module, path: str | Path, scaled: bool = False) -> None:
    """Fills in a head that `save_head` wrote.

    Args:
        model: A model with a head of the same shape.
        path: The file.
        scaled: Whether the output of a regression on scaled labels stays as it was
            trained. By default it becomes the label itself.

    Raises:
        AdapterError: The file is damaged, or the head does not fit. The model is then
            unchanged.
    """
    needed = head_parameters(model)
    fill(needed, read_head(path, needed, scaled))


def read_head(
    path: str | Path, needed: Mapping[str, Tensor], scaled: bool = False
) -> dict[str, Tensor]:
    """Reads the tensors of a head, for `load_head`.

    Args:
        path: A file that `save_head` wrote.
        needed: The parameters of the model's head, by name.
        scaled: As for `load_head`.

    Returns:
        The file's tensors, by the same names.

    Raises:
        AdapterError: The file is damaged, or the head does not fit.
    """
    file = read_file(path, HEAD_FORMAT)
    tensors = file.tensors(needed)
    scaling = file.header.get("scaling")
    if scaling is None or scaled:
        return tensors
    try:
        mean, spread = map(float, scaling)
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        unscale(_output_of(tensors), mean, spread)
        check_finite(file.path, needed, tensors)
    except (TypeError, ValueError, OverflowError) as error:
        raise AdapterError(
            f"{path}: its scaling is no mean and spread ({error})"
        ) from None
    return tensors


def read_classes(path: str | Path) -> list[str] | None:
    """The names of a head's classes.

    Args:
        path: The file.

    Returns:
        The names in the order of the head's outputs; None where the file has none.

    Raises:
        AdapterError: The file is damaged, or its classes do not fit the head.
    """
    file = read_file(path, HEAD_FORMAT)
    classes = file.header.get("classes")
    if classes is None:
        return None
    # The number of outputs is the first dimension of some tensor
    first_dimensions = {shape[0] for shape in file.shapes.values() if shape}
    are_names = isinstance(classes, list) and all(
        isinstance(name, str) for name in classes
    )
    if not (are_names and len(classes) in first_dimensions):
        raise AdapterError(
            f"{path}: its classes are no names of outputs, of which it has"
            f" {first_dimensions}"
        )
    return classes


def output_layer(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The output layer of a regression.

    Args:
        model: A model with a head of one output.

    Returns:
        Its weight (1, width) and its bias (1,).

    Raises:
        AdapterError: It has no bias.
    """
    return _output_of(head_parameters(model))


def _output_of(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The weight (1, width) and the bias (1,) of the layer with a single output, among
    a head's tensors. Raises AdapterError where it has no bias."""
    by_dimensions = {}
    for tensor in tensors.values():
        if tensor.shape[:1] == (1,):
            by_dimensions[tensor.dim()] = tensor
    if by_dimensions.keys() != {1, 2}:
        raise AdapterError(
            "scale_labels: the output layer has no bias, which would take the labels' mean"
        )
    return by_dimensions[2], by_dimensions[1]


@torch.no_grad()
def unscale(layer: tuple[Tensor, Tensor], mean: float, spread: float) -> None:
    """Makes an output layer that answers (label - mean) / spread answer the label.

    Args:
        layer: Its weight and bias, as `output_layer` returns them. They are changed in
            place.
        mean: The labels' mean.
        spread: The labels' spread.
    """
    weight, bias = layer
    weight.mul_(spread)
    bias.mul_(spread).add_(mean)


@torch.no_grad()
def fill(destinations: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copies a file's tensors into a model's own tensors of the same names. A model's
    tensor that the file does not have keeps its values."""
    for name, tensor in tensors.items():
        destinations[name].copy_(tensor)
