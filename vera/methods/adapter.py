"""Bottleneck adapters: Houlsby et al. 2019 (H), Pfeiffer et al. 2021 (P), Lin et al.
2020 (L), and AdapterDrop (Rueckle et al. 2021): small networks between the layers of a
frozen model.

An adapter is up(activation(down(h))), with biases. With x the output of a sub-layer, u
its input on the residual stream and LN the block's own, frozen LayerNorm:

    houlsby   after both sub-layers      LN(u + x + adapter(x))
    pfeiffer  after the feed-forward     LN(u + x + adapter(LN(u + x))), the same LN twice
    lin       after the block, output y  y + adapter(LN'(y)), with a LayerNorm LN' of the adapter's own

In a model that norms before its sub-layers (GPT-2, ViT, Llama) there is no LN after the
sum, and the first two leave it out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.contract import Method, check_rank
from vera.methods.layers import Added, add_child
from vera.methods.lora import Placement, placement_of
from vera.sites import Layout, find_transformer_blocks, is_linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


class Bottleneck(Added):
    """One adapter, (..., width) -> (..., width): a child "adapter" of the module whose
    output it changes.

    Both weights start from N(0, 0.02) and the biases at zero, as in adapter-hub's
    library: the model starts near the base model, not as it."""

    def __init__(
        self, width: int, method: "Adapter", block: int, placement: Placement
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, method.bottleneck, **placement)
        self.up = nn.Linear(method.bottleneck, width, **placement)
        self.norm = None
        if method.placement == "lin":
            self.norm = nn.LayerNorm(width, **placement)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.activation = method.activation
        #: The index of the block that it is in.
        self.block = block
        #: Whether it is left out of the current batch (see drop_per_batch).
        self.dropped = False

    def forward(self, h: Tensor) -> Tensor:
        x = h.to(self.down.weight.dtype)
        if self.norm is not None:
            x = self.norm(x)
        output: Tensor = self.up(ACTIVATIONS[self.activation](self.down(x)))
        return output.to(h.dtype)


def _add_adapter(module: Any, arguments: object, output: Any) -> Any:
    """A forward hook: output + adapter(output). A block returns its output as a tensor, or
    in a tuple that begins with it."""
    adapter = module.adapter
    if adapter.dropped or not adapter.enabled:
        return output
    if isinstance(output, tuple):
        return (output[0] + adapter(output[0]), *output[1:])
    return output + adapter(output)


def _norm_twice(norm: Any, arguments: Any, output: Tensor) -> Tensor:
    """A forward hook of a LayerNorm whose input is u + x: LN(u + x + adapter(LN(u +
    x)))."""
    adapter = norm.adapter
    if adapter.dropped or not adapter.enabled:
        return output
    # Not norm(...), which would call this hook again
    return norm.forward(arguments[0] + adapter(output))


def _draw_dropped_blocks(model: nn.Module, arguments: object) -> None:
    """A forward pre-hook of the whole model: in training, draws how many of the first
    blocks go without an adapter, from none to all but the last. It draws from torch's
    generator on the CPU, so that a resumed run draws the same."""
    adapters = [m for m in model.modules() if isinstance(m, Bottleneck)]
    blocks = 1 + max(adapter.block for adapter in adapters)
    dropped_blocks = int(torch.randint(0, blocks, ())) if model.training else 0
    for adapter in adapters:
        adapter.dropped = adapter.block < dropped_blocks


@dataclass(frozen=True)
class Adapter(Method, kind="adapter"):
    """Trains bottlenecks between the layers; LayerNorms stay frozen.

    placement: see the formulas above. drop_layers: this many first blocks go without an
    adapter. drop_per_batch: in training, a number of first blocks goes without, drawn
    uniformly for each batch (from none to all but the last). share: one adapter for all
    blocks."""

    bottleneck: int
    placement: Literal["houlsby", "pfeiffer", "lin"] = "pfeiffer"
    activation: Literal["relu", "gelu", "silu"] = "relu"
    drop_layers: int = 0
    drop_per_batch: bool = False
    share: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_layers < 0:
            raise AdapterError(
                f"drop_layers cannot be negative, got {self.drop_layers}"
            )
        if self.drop_layers and self.drop_per_batch:
            raise AdapterError(
                "drop_layers and drop_per_batch exclude each other: give one of them"
            )

    def install(self, model: nn.Module) -> None:
        blocks = find_transformer_blocks(model)
        if self.drop_layers >= len(blocks):
            raise AdapterError(
                f"drop_layers={self.drop_layers} leaves none of {len(blocks)} blocks"
            )
        widths = [self._width(block, layout) for block, layout in blocks]
        check_rank("bottleneck", self.bottleneck, max(widths))
        if self.share and len(set(widths)) > 1:
            raise AdapterError("blocks of several widths share no adapter: share=false")
        # With share: the adapters of the first block that has some, by their position
        shared: dict[int, Bottleneck] = {}
        for index in range(self.drop_layers, len(blocks)):
            block, layout = blocks[index]
            linear = next(m for m in block.modules() if is_linear(m))
            for position, (path, hook) in enumerate(self._positions(layout)):
                adapter = Bottleneck(widths[index], self, index, placement_of(linear))
                if self.share:
                    # Each block has a Bottleneck, which knows its block; the parameters are
                    # the same in all
                    shared_adapter = shared.setdefault(position, adapter)
                    adapter.down = shared_adapter.down
                    adapter.up = shared_adapter.up
                    adapter.norm = shared_adapter.norm
                module = block.get_submodule(path)
                add_child(module, "adapter", adapter)
                module.register_forward_hook(hook)
        if self.drop_per_batch:
            model.register_forward_pre_hook(_draw_dropped_blocks)

    def _positions(self, layout: Layout) -> list[tuple[str, Callable[..., object]]]:
        """The paths in a block of the modules whose outputs change, each with the hook
        that changes it. "" is the block itself."""
        if self.placement == "houlsby":
            return [
                (layout.attention, _add_adapter),
                (layout.feed_forward, _add_adapter),
            ]
        if self.placement == "pfeiffer" and layout.norm:
            return [(layout.norm, _norm_twice)]
        return [("", _add_adapter)]

    @staticmethod
    def _width(block: nn.Module, layout: Layout) -> int:
        """The width of a block's residual stream: that of its last LayerNorm, or of the
        first norm that is its own child."""
        candidates = list(block.children())
        if layout.norm:
            candidates = [block.get_submodule(layout.norm)]
        for module in candidates:
            weight = getattr(module, "weight", None)
            is_norm = "norm" in type(module).__name__.lower()
            if is_norm and isinstance(weight, Tensor):
                return weight.numel()
        raise AdapterError(
            f"the width of a {type(block).__name__} is not known: no place for adapters"
        )

    def count(self, model: nn.Module) -> int:
        """Sum over the adapters of 2 * width * bottleneck + bottleneck + width, and of
        2 * width more for a LayerNorm of its own."""
        widths = [
            self._width(block, layout)
            for block, layout in find_transformer_blocks(model)
        ]
        widths = widths[:1] if self.share else widths[self.drop_layers :]
        total = 0
        for width in widths:
            total += (2 * width + 1) * self.bottleneck + width
            if self.placement == "lin":
                total += 2 * width
        return 2 * total if self.placement == "houlsby" else total

    def merge(self, model: nn.Module) -> None:
        raise AdapterError(
            "a bottleneck adapter is not linear: it cannot be merged into the weights"
        )
