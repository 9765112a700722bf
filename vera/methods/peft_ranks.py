"""AdaLoRA's training, as in peft's own loops: ranks are allocated after each step, on a schedule over the
run's steps, and a penalty keeps the factors orthogonal."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.adalora import off_orthogonal
from vera.methods.contract import Method

#: What an allocator gathers, by the names of parameters.
GATHERED = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass
class Installed:
    """What a model that peft has adapted remembers. A plain attribute: the wrapper, which holds the model, is
    no child of it."""

    wrapper: Any  # a peft.PeftModel, whose base_model is the tuner
    base: dict[str, str]  # the fingerprint of the base weights
    stored: dict[str, str]  # hashes of what peft draws again (peft_drawn.drawn)
    hidden: dict[str, str]
    unmerged: dict[str, Tensor] = field(default_factory=dict)  # weights before a merge
    final: bool = False  # a merge that stays


def installed(model: nn.Module) -> Installed:
    """What peft has installed in a model."""
    return model._peft  # type: ignore[return-value]


def _allocator(model: nn.Module) -> Any:
    """The tuner's allocator of ranks; None for every method but AdaLoRA."""
    return getattr(installed(model).wrapper.base_model, "rankallocator", None)


class AllocatesRanks(Method):
    """A method whose tuner may have an allocator of ranks. Without one, nothing here changes anything."""

    def before_training(self, model: nn.Module, total_steps: int) -> None:
        if allocator := _allocator(model):
            config = allocator.peft_config
            if config.tinit >= total_steps - config.tfinal:
                raise AdapterError(f"AdaLoRA: tinit and tfinal leave none of {total_steps} steps: lower them")
            allocator.set_total_step(total_steps)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """AdaLoRA's, times its weight."""
        if not (allocator := _allocator(model)):
            return None
        named = model.named_parameters()
        factors = [p if "lora_A" in n else p.T for n, p in named if "lora_A" in n or "lora_B" in n]
        return off_orthogonal(factors) * float(allocator.peft_config.orth_reg_weight)

    def after_step(self, model: nn.Module, step: int) -> None:
        tuner = installed(model).wrapper.base_model
        if hasattr(tuner, "update_and_allocate"):
            tuner.update_and_allocate(step - 1)  # peft counts from 0

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        if not (allocator := _allocator(model)):
            return {}
        masks = (allocator.peft_config.rank_pattern or {}).items()
        state = {f"rank_pattern/{name}": torch.tensor(mask) for name, mask in masks}
        return state | {f"{part}/{n}": t for part in GATHERED for n, t in getattr(allocator, part).items()}

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        allocator, parameters = _allocator(model), dict(model.named_parameters())
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            if part == "rank_pattern":
                masks = allocator.peft_config.rank_pattern or {}
                allocator.peft_config.rank_pattern = masks | {name: tensor.tolist()}
            else:
                getattr(allocator, part)[name] = tensor.to(parameters[name].device)
