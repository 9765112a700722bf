"""DyLoRA: LoRA of which each training step trains the first b ranks, with b drawn for
the step, so that the trained pair can be cut to any rank (Valipour et al. 2023, arXiv
2210.07558):

    h = W0 x + (alpha / b) B[:, :b] A[:b] x,   b uniform on 1 .. r

`frozen` is the paper's cheaper mode: a step gives a gradient to row b of A and column b
of B alone. The published code scales A and B by sqrt(r / b) each and the product by
alpha / r, which is the same."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.methods.contract import Method
from vera.methods.layers import layer_changes
from vera.methods.lora import LoRAChange, wrap_sites
from vera.projections import unit_uniform

#: The name under which a checkpoint holds the seed of the draws and the present step.
DRAW = "dylora.draw"


def draw_rank(seed: int, step: int, rank: int) -> int:
    """How many ranks a step trains, from 1 to `rank`. It depends on the arguments
    alone."""
    uniform = float(unit_uniform(seed, step, 1, 1)[0, 0])  # on (-1, 1)
    return 1 + int((uniform + 1) / 2 * rank)


class DyLoRAChange(LoRAChange):
    """A LoRA pair of which a training step uses the first ranks, as many as
    `drawn_rank` says."""

    def __init__(
        self, base: Any, inputs: int, outputs: int, method: Any, seed: int
    ) -> None:
        super().__init__(base, inputs, outputs, method)
        self.alpha = method.alpha
        self.frozen = method.frozen
        self.drawn_rank = method.rank
        #: What `drawn_rank` follows from. At step 0 nothing has been drawn yet.
        self.seed = seed
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        rank = self.drawn_rank if self.training else len(self.A)
        leading_a, leading_b = self.A[:rank], self.B[:, :rank]
        if self.training and self.frozen:
            # No gradient but to the last of these ranks
            leading_a = torch.cat([leading_a[:-1].detach(), leading_a[-1:]])
            detached_b = leading_b[:, :-1].detach()
            leading_b = torch.cat([detached_b, leading_b[:, -1:]], dim=1)
        down = F.linear(self.dropout(x), leading_a)
        return self.alpha / rank * F.linear(down, leading_b)


@dataclass(frozen=True)
class DyLoRA(Method, kind="dylora"):
    """Trains a low-rank pair for each adapted matrix, of which every leading part is an
    adapter of its own.

    rank: the largest. alpha: the change is scaled by alpha / b at b ranks. frozen: a
    step gives a gradient to its last rank alone. dropout: on the input of the adapter.
    The draws are a function of the step and of a seed that torch's generator gives when
    the model is adapted; a checkpoint holds both."""

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    alpha: float = 8.0
    dropout: float = 0.0
    frozen: bool = False

    freeze_a: ClassVar[bool] = False  # no setting here, but LoRAChange reads it

    def install(self, model: nn.Module) -> None:
        seed = int(torch.randint(2**31, (), device="cpu"))
        wrap_sites(model, self, partial(DyLoRAChange, seed=seed), rank=self.rank)

    def count(self, model: nn.Module) -> int:
        """Sum of rank * (in + out) over the adapted matrices."""
        return sum(
            self.rank * (change.inputs + change.outputs)
            for change in layer_changes(model)
        )

    def before_training(self, model: nn.Module, total_steps: int) -> None:
        _draw_ranks(model, next(layer_changes(model)).seed, step=1)

    def after_step(self, model: nn.Module, step: int) -> None:
        _draw_ranks(model, next(layer_changes(model)).seed, step + 1)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        first = next(layer_changes(model))
        return {DRAW: torch.tensor([first.seed, first.step])}

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        seed, step = state[DRAW].tolist()
        _draw_ranks(model, seed, step)


def _draw_ranks(model: nn.Module, seed: int, step: int) -> None:
    """Draws for each change the rank that a step trains."""
    for change in layer_changes(model):
        change.seed = seed
        change.step = step
        change.drawn_rank = draw_rank(seed, step, len(change.A))
