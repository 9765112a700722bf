"""Where the values of a VeRA or LoRA adapter stand in peft's tensors, on the way out
and on the way in."""

import hashlib
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods import Method
from vera.methods.layers import AdaptedLinear
from vera.methods.lora import LoRA, LoRAChange
from vera.methods.vera import VeRA, VeRAChange
from vera.peft_format.folder import PREFIX, Config
from vera.sites import WHOLE, is_transposed, layer_widths

#: The names of VeRA's A and B in peft's files: one pair for all layers.
PAIR_A = "base_model.vera_A"
PAIR_B = "base_model.vera_B"
PAIR = {PAIR_A, PAIR_B}
#: The key by which peft lets VeRA adapters share one pair.
PROJECTION_KEY = "projection_prng_key"
ALL_ROWS = slice(None)


@dataclass(frozen=True)
class Setting:
    """A setting of ours. ours: its name here. peft: its name in peft's configuration.
    default: what peft takes where a configuration lacks it."""

    ours: str
    peft: str
    default: float | None


#: The settings of each type of adapter. r and lora_alpha count all slices of a fused
#: layer.
SETTINGS = {
    "LORA": (
        Setting("rank", "r", None),
        Setting("alpha", "lora_alpha", 8),
        Setting("dropout", "lora_dropout", 0.0),
    ),
    "VERA": (
        Setting("rank", "r", None),
        Setting("d_init", "d_initial", 0.1),
        Setting("dropout", "vera_dropout", 0.0),
    ),
}


@dataclass(frozen=True)
class Piece:
    """One of our tensors, and its place in a tensor of peft's."""

    place: slice | tuple[slice, slice]
    value: Tensor


@dataclass(frozen=True)
class PeftTensor:
    """A tensor of peft's: it has these pieces of ours, and zeros elsewhere."""

    shape: tuple[int, ...]
    pieces: list[Piece]

    def assemble(self) -> Tensor:
        """The tensor with our values at their places."""
        tensor = self.pieces[0].value.new_zeros(self.shape)
        for piece in self.pieces:
            tensor[piece.place] = piece.value
        return tensor

    @torch.no_grad()
    def fill_from(self, tensor: Tensor) -> None:
        """Copies the values of a tensor of peft's into our parameters. The zeros and
        ones that peft alone needs are no parameters."""
        for piece in self.pieces:
            if isinstance(piece.value, nn.Parameter):
                piece.value.copy_(tensor[piece.place])


@dataclass(frozen=True)
class PeftLayout:
    """How peft describes an adapter of ours, without the head.

    config: the adapter's configuration, without VeRA's PROJECTION_KEY, which depends on
    values. tensors: by peft's names. paths: of the adapted layers. slice_count: how many
    slices of each layer are adapted; more than one only in fused layers."""

    config: Config
    tensors: dict[str, PeftTensor]
    paths: list[str]
    slice_count: int


def layout_of(model: nn.Module, method: Method) -> PeftLayout:
    """Describes a model that VeRA or LoRA has adapted, as peft has it.

    Args:
        model: The adapted model, which may be on the meta device.
        method: The method on it.

    Returns:
        The configuration, and where our values stand in peft's tensors.

    Raises:
        AdapterError: peft, which has one rank and one pair for all layers, has no place
            for the adapter.
    """
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, AdaptedLinear)
    }
    counts = {len(layer.changes) for layer in layers.values()}
    if len(counts) != 1:
        raise AdapterError(
            "peft has one rank for all sites: slices of fused layers and whole ones differ"
        )
    slice_count = counts.pop()
    config = _config(method, slice_count)
    config["target_modules"] = sorted(layers)
    config["fan_in_fan_out"] = any(
        is_transposed(layer.base) for layer in layers.values()
    )
    tensors: dict[str, PeftTensor] = {}
    if isinstance(method, VeRA):
        tensors |= _shared_pair(list(layers.values()), method)
    for path, layer in layers.items():
        if isinstance(method, VeRA):
            tensors |= _vera_tensors(PREFIX + path, layer, method.rank)
        else:
            tensors |= _lora_tensors(PREFIX + path, layer, cast(LoRA, method).rank)
    return PeftLayout(config, tensors, sorted(layers), slice_count)


def projection_key(
    method: VeRA, slice_count: int, vera_a: Tensor, vera_b: Tensor
) -> int:
    """The key under which peft may share this pair with other adapters.

    Where peft draws the very pair from its key (init="peft"), it is that key. Any other
    pair has a hash of its content: peft refuses to load adapters of another key beside
    it, and would otherwise replace their pair without a word.

    Args:
        method: The adapter's settings.
        slice_count: How many slices of each layer are adapted.
        vera_a: A as peft has it, (rank, inputs).
        vera_b: B as peft has it, (outputs, rank).

    Returns:
        A number in [0, 2^64) for init="peft", else one of 63 bits.
    """
    if method.init == "peft" and slice_count == 1:
        return method.projection_seed
    digest = hashlib.sha256()
    for matrix in (vera_a, vera_b):
        values = matrix.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{list(matrix.shape)}".encode())
        digest.update(values.astype("<f4").data)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def _config(method: Method, slice_count: int) -> Config:
    """The configuration that follows from a method's settings."""
    kind = method.kind.upper()
    config: Config = {"peft_type": kind, "bias": "none"}
    for setting in SETTINGS[kind]:
        value = getattr(method, setting.ours)
        if setting.peft in ("r", "lora_alpha"):
            value = slice_count * value
        config[setting.peft] = value
    if kind == "VERA":
        config["save_projection"] = True
    return config


def _rank_slices(layer: AdaptedLinear, rank: int) -> list[slice]:
    """The ranks of peft's layer that each adapted slice takes, one after the other."""
    return [slice(i * rank, (i + 1) * rank) for i in range(len(layer.changes))]


def _lora_tensors(name: str, layer: AdaptedLinear, rank: int) -> dict[str, PeftTensor]:
    """peft's A and B of a layer, by their names. name: peft's, of the layer. rank: of each
    adapted slice."""
    inputs, outputs = layer_widths(layer.base)
    ranks = _rank_slices(layer, rank)
    pieces_a, pieces_b = [], []
    for (slice_name, module), columns in zip(layer.changes.items(), ranks, strict=True):
        change = cast(LoRAChange, module)
        rows = layer.output_slices[slice_name]
        pieces_a.append(Piece(columns, change.A))  # the columns of B are the rows of A
        pieces_b.append(Piece((rows, columns), change.B))
    return {
        f"{name}.lora_A.weight": PeftTensor((ranks[-1].stop, inputs), pieces_a),
        f"{name}.lora_B.weight": PeftTensor((outputs, ranks[-1].stop), pieces_b),
    }


def _vera_tensors(name: str, layer: AdaptedLinear, rank: int) -> dict[str, PeftTensor]:
    """peft's b and d of a layer, by their names. name: peft's, of the layer. rank: of each
    adapted slice."""
    _, outputs = layer_widths(layer.base)
    ranks = _rank_slices(layer, rank)
    pieces_b, pieces_d = [], []
    for (slice_name, module), entries in zip(layer.changes.items(), ranks, strict=True):
        change = cast(VeRAChange, module)
        ones = change.A.new_ones(())  # peft writes a vector that is left out as ones
        values_of_b = ones if change.b is None else change.b
        values_of_d = ones if change.d is None else change.d
        pieces_b.append(Piece(layer.output_slices[slice_name], values_of_b))
        pieces_d.append(Piece(entries, values_of_d))
    return {
        f"{name}.vera_lambda_b": PeftTensor((outputs,), pieces_b),
        f"{name}.vera_lambda_d": PeftTensor((ranks[-1].stop,), pieces_d),
    }


def _shared_pair(layers: list[AdaptedLinear], method: VeRA) -> dict[str, PeftTensor]:
    """VeRA's A and B as peft has them, one pair for all layers, by their names. Raises
    AdapterError where the layers cannot share one.

    peft's rank counts all adapted slices of a layer: each slice has as many rows of its A,
    and columns of its B, as our rank. In a fused layer our one A therefore stands below
    itself for each slice."""
    if method.projections != "shared":
        raise AdapterError(
            f"peft has one pair A and B: projections={method.projections} does not fit"
        )
    first_layer = layers[0]
    ranks = _rank_slices(first_layer, method.rank)
    changes = cast(list[VeRAChange], list(first_layer.changes.values()))
    pair = changes[0].pair
    pieces_a = [Piece(rows, pair.A) for rows in ranks]
    if all(WHOLE in layer.changes for layer in layers):  # no fused layers
        outputs = len(pair.B)
        pieces_b = [Piece(ALL_ROWS, pair.B)]
    else:
        shapes = {
            (layer_widths(layer.base), str(layer.output_slices)) for layer in layers
        }
        # Our B stands at the rows of each slice, which must be the same for all layers
        if len(shapes) > 1:
            raise AdapterError(
                "fused layers of several shapes do not fit peft's one pair A and B"
            )
        _, outputs = layer_widths(first_layer.base)
        pieces_b = []
        for slice_name, change, columns in zip(
            first_layer.changes, changes, ranks, strict=True
        ):
            rows = first_layer.output_slices[slice_name]
            pieces_b.append(Piece((rows, columns), change.B))
    peft_rank = ranks[-1].stop
    return {
        PAIR_A: PeftTensor((peft_rank, pair.A.shape[1]), pieces_a),
        PAIR_B: PeftTensor((outputs, peft_rank), pieces_b),
    }
