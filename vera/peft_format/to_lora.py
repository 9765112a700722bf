"""Writes an adapter as a LoRA, for servers that serve nothing else.

VeRA is a LoRA already: b * (B (d * (A x))) = (diag(b) B) (diag(d) A) x. Other methods of
peft, and VeRA at a smaller rank, are approximated by singular values."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.adapted import adaptation, unmerged_for_block
from vera.methods.layers import AdaptedLinear
from vera.methods.lora import LoRA
from vera.methods.peft_install import installed
from vera.methods.vera import VeRA, VeRAChange
from vera.peft_format.exporting import exported_method, plain_config
from vera.peft_format.folder import PREFIX, Config, write_folder
from vera.sites import is_transposed, layer_widths

#: Why adapters of a type in peft's configuration are not converted.
NO_CONVERSION = {
    "LORA": "this adapter is a LoRA already: export_peft writes it without loss",
    "MISS": "peft converts MiSS to a LoRA of another rank than the one asked for",
}


@dataclass(frozen=True)
class LayerConversion:
    """What became of one layer's change of its weight. rank: of its LoRA. error: the
    Frobenius norm of the difference between the change and the LoRA. change: the
    Frobenius norm of the change."""

    rank: int
    error: float
    change: float


@dataclass(frozen=True)
class Conversion:
    """What became of an adapter, by the paths of its layers."""

    layers: dict[str, LayerConversion]

    @property
    def rank(self) -> int:
        """The largest rank of a layer, which is what a server must allow."""
        return max(layer.rank for layer in self.layers.values())

    @property
    def change(self) -> float:
        """The Frobenius norm of all changes together."""
        return math.hypot(*(layer.change for layer in self.layers.values()))

    @property
    def error(self) -> float:
        """The Frobenius norm of what all LoRAs together lack."""
        return math.hypot(*(layer.error for layer in self.layers.values()))


@dataclass(frozen=True)
class Factors:
    """One layer's change as a product.

    lora_a: (rank, inputs). lora_b: (outputs, rank)."""

    lora_a: Tensor
    lora_b: Tensor

    @property
    def rank(self) -> int:
        """The number of rows of lora_a."""
        return len(self.lora_a)

    def product(self) -> Tensor:
        """The change of the weight, (outputs, inputs)."""
        return self.lora_b @ self.lora_a

    def padded(self, rank: int) -> "Factors":
        """The same change at a larger rank, with zeros."""
        missing = rank - self.rank
        lora_a = F.pad(self.lora_a, (0, 0, 0, missing))  # rows below
        lora_b = F.pad(self.lora_b, (0, missing))  # columns at the right
        return Factors(lora_a, lora_b)


@torch.no_grad()
def export_lora(
    model: nn.Module,
    folder: str | Path,
    rank: int | float | None = None,
    base: str | None = None,
    revision: str | None = None,
) -> Conversion:
    """Writes an adapted model's adapter, as a LoRA, and its head in peft's format.

    Args:
        model: A model that VeRA or a method of peft has adapted. It stays as it is.
        folder: Where adapter_config.json and adapter_model.safetensors go.
        rank: None writes VeRA without loss, at one rank for all layers: that of the
            widest change, padded with zeros elsewhere. A whole number is the rank of
            every layer. A number up to 1 is the share of each layer's squared singular
            values that is kept, and gives each layer a rank of its own. At a given rank
            the result is the best approximation, by singular values.
        base: As for `export_peft`.
        revision: As for `export_peft`.

    Returns:
        The rank of each layer, and how much of its change is lost.

    Raises:
        AdapterError: The adapter is a LoRA already, cannot be converted, or needs a
            rank. Nothing is written then.
    """
    method = exported_method(model)
    if isinstance(method, LoRA):
        raise AdapterError(NO_CONVERSION["LORA"])
    if isinstance(method, VeRA):
        converted = _convert_vera(model, rank)
    elif rank is None:
        raise AdapterError(
            "rank: only VeRA is a LoRA without loss, and this adapter needs a rank"
        )
    else:
        converted = _convert_by_peft(model, rank)
    write_folder(model, folder, converted.config, converted.tensors, base, revision)
    return Conversion(converted.layers)


@dataclass(frozen=True)
class _Converted:
    """A LoRA as peft has it, and what the conversion lost."""

    config: Config
    tensors: dict[str, Tensor]
    layers: dict[str, LayerConversion]


# --- VeRA


def exact_factors(layer: AdaptedLinear) -> Factors:
    """The change of a layer that VeRA has adapted, in float64 and without loss.

    Args:
        layer: A layer with one change, or with several slices of a fused layer. Each
            slice has a part of the ranks.

    Returns:
        Its factors. Their rank is the smallest of VeRA's, the inputs and the outputs.
    """
    inputs, outputs = layer_widths(layer.base)
    blocks_of_a, blocks_of_b = [], []
    for slice_name, module in layer.changes.items():
        change = cast(VeRAChange, module)
        scaled_a = change.A.double()
        if change.d is not None:
            scaled_a = change.d.double()[:, None] * scaled_a
        scaled_b = change.B.double()
        if change.b is not None:
            scaled_b = change.b.double()[:, None] * scaled_b
        all_outputs = scaled_b.new_zeros(outputs, scaled_b.shape[1])
        all_outputs[layer.output_slices[slice_name]] = scaled_b
        blocks_of_a.append(scaled_a)
        blocks_of_b.append(all_outputs)
    factors = Factors(torch.cat(blocks_of_a), torch.cat(blocks_of_b, dim=1))
    if factors.rank <= min(inputs, outputs):
        return factors
    # The rank of a matrix is at most the number of its rows or columns
    change_of_weight = factors.product()
    if inputs <= outputs:
        return Factors(torch.eye(inputs).to(change_of_weight), change_of_weight)
    return Factors(change_of_weight, torch.eye(outputs).to(change_of_weight))


def truncate(factors: Factors, rank: int | float, path: str) -> Factors:
    """The best approximation of a change at a rank.

    Args:
        factors: The change.
        rank: The rank, or the share of the squared singular values to keep.
        path: The layer's, for the error message.

    Raises:
        AdapterError: The change has fewer rows or columns than the rank.
    """
    u, values, vh = torch.linalg.svd(factors.product(), full_matrices=False)
    if isinstance(rank, float):
        # The smallest rank whose leading singular values have this share
        shares = values.square().cumsum(0) / values.square().sum()
        rank = min(1 + int((shares < rank).sum()), len(values))
    if rank > len(values):
        raise AdapterError(
            f"rank {rank} is above that of {path}, {len(u)} x {vh.shape[1]}: name a smaller one"
        )
    return Factors(vh[:rank], u[:, :rank] * values[:rank])


def _convert_vera(model: nn.Module, rank: int | float | None) -> _Converted:
    """VeRA as a LoRA; without loss if rank is None. rank: a count, or a share of the
    squared singular values, as in `export_lora`."""
    _check_rank(rank)
    adapted = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, AdaptedLinear)
    }
    exact = {path: exact_factors(layer) for path, layer in adapted.items()}
    largest_rank = max(factors.rank for factors in exact.values())
    tensors: dict[str, Tensor] = {}
    layers: dict[str, LayerConversion] = {}
    for path, factors in exact.items():
        lora = factors.padded(largest_rank)  # without loss: one rank for all layers
        if rank is not None:
            lora = truncate(factors, rank, path)
        dtype = next(adapted[path].changes.parameters()).dtype
        stored = Factors(lora.lora_a.to(dtype), lora.lora_b.to(dtype))
        tensors[f"{PREFIX}{path}.lora_A.weight"] = stored.lora_a
        tensors[f"{PREFIX}{path}.lora_B.weight"] = stored.lora_b
        layers[path] = _measure_conversion(factors.product(), stored)
    transposed = any(is_transposed(layer.base) for layer in adapted.values())
    return _Converted(_lora_config(layers, rank, transposed), tensors, layers)


def _check_rank(rank: int | float | None) -> None:
    """Raises AdapterError for a rank that is neither a count nor a share."""
    is_count = isinstance(rank, int) and rank >= 1
    is_share = isinstance(rank, float) and 0 < rank <= 1
    if rank is not None and not (is_count or is_share):
        raise AdapterError(f"rank {rank}: a whole number from 1 on, or a share up to 1")


def _measure_conversion(change: Tensor, lora: Factors) -> LayerConversion:
    """Measures in float64 what a LoRA lacks of a change of the weight, (outputs,
    inputs)."""
    in_float64 = Factors(lora.lora_a.double(), lora.lora_b.double())
    error = float((change - in_float64.product()).norm())
    return LayerConversion(lora.rank, error, float(change.norm()))


def _lora_config(
    layers: Mapping[str, LayerConversion], rank: int | float | None, transposed: bool
) -> Config:
    """peft's configuration of a LoRA whose scale, lora_alpha / r, is 1 in every layer.
    rank: as in `export_lora`; a float gave each layer a rank of its own."""
    ranks = {path: layer.rank for path, layer in layers.items()}
    by_layer = isinstance(rank, float)
    # With a rank for each layer, the common one holds for no layer: any number does
    common_rank = 1 if by_layer else max(ranks.values())
    return {
        "peft_type": "LORA",
        "r": common_rank,
        "lora_alpha": common_rank,
        "rank_pattern": ranks if by_layer else {},
        "alpha_pattern": ranks if by_layer else {},
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(layers),
        "fan_in_fan_out": transposed,
    }


# --- methods of peft


def _convert_by_peft(model: nn.Module, rank: int | float) -> _Converted:
    """An adapter of one of peft's own methods as a LoRA, by peft's conversion."""
    from peft.tuners.lora.conversion import convert_to_lora
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = adaptation(model)
    assert adapted is not None
    wrapper = installed(model).wrapper
    settings = wrapper.peft_config["default"].to_dict()
    if settings.get("use_dora"):
        raise AdapterError(
            "a LoRA cannot hold DoRA's magnitudes: export_peft writes it as it is"
        )
    kind = str(plain_config(settings)["peft_type"])
    if kind in NO_CONVERSION:
        raise AdapterError(NO_CONVERSION[kind])
    layers: dict[str, LayerConversion] = {}
    try:
        with (
            unmerged_for_block(model, adapted),
            # peft warns of a base model that it cannot look up
            warnings.catch_warnings(action="ignore"),
        ):
            config, tensors = convert_to_lora(wrapper, rank=rank)
            for name, module in wrapper.named_modules():
                if isinstance(module, BaseTunerLayer):
                    change = module.get_delta_weight("default").double()
                    # (outputs, inputs), as the product of the factors is
                    if is_transposed(module.get_base_layer()):
                        change = change.T
                    lora_a = tensors[f"{name}.lora_A.weight"]
                    lora_b = tensors[f"{name}.lora_B.weight"]
                    path = name.removeprefix(PREFIX)
                    layers[path] = _measure_conversion(change, Factors(lora_a, lora_b))
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise AdapterError(
            f"peft converts this adapter to no LoRA of rank {rank}: {error}"
        ) from None
    transposed = any(is_transposed(m) for m in model.modules())
    lora_config = plain_config(config.to_dict()) | {"fan_in_fan_out": transposed}
    return _Converted(lora_config, tensors, layers)
