"""AdaLoRA's training, as in peft's own loops: ranks are allocated after each step, on a schedule over the
run's steps, and a penalty keeps the factors orthogonal."""

from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.allocation import off_orthogonal
from vera.methods.contract import Method


def tuner_of(model: nn.Module) -> Any:
    """The tuner that peft installed in a model."""
    wrapper: Any = model._peft_wrapper
    return wrapper[0].base_model


def _allocator(model: nn.Module) -> Any:
    """The tuner's allocator of ranks; None for every method but AdaLoRA."""
    return getattr(tuner_of(model), "rankallocator", None)


class AllocatesRanks(Method):
    """A method whose tuner may have an allocator of ranks. Without one, nothing here changes anything."""

    def before_training(self, model: nn.Module, total_steps: int) -> None:
        allocator = _allocator(model)
        if allocator is not None:
            config = allocator.peft_config
            if config.tinit >= total_steps - config.tfinal:
                raise AdapterError(f"AdaLoRA: tinit and tfinal leave none of {total_steps} steps: lower them")
            allocator.set_total_step(total_steps)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """AdaLoRA's, times its weight."""
        allocator = _allocator(model)
        if allocator is None:
            return None
        factors = [
            p if "lora_A" in name else p.T
            for name, p in model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]
        return off_orthogonal(factors) * float(allocator.peft_config.orth_reg_weight)

    def after_step(self, model: nn.Module, step: int) -> None:
        tuner = tuner_of(model)
        if hasattr(tuner, "update_and_allocate"):
            tuner.update_and_allocate(step - 1)  # peft counts from 0

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        allocator = _allocator(model)
        if allocator is None:
            return {}
        state = {
            f"{part}/{n}": t
            for part in ("ipt", "exp_avg_ipt", "exp_avg_unc")
            for n, t in getattr(allocator, part).items()
        }
        pattern = allocator.peft_config.rank_pattern or {}
        return state | {f"rank_pattern/{name}": torch.tensor(mask) for name, mask in pattern.items()}

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        allocator = _allocator(model)
        if allocator is None:
            return
        parameters = dict(model.named_parameters())
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            if part == "rank_pattern":
                allocator.peft_config.rank_pattern = (allocator.peft_config.rank_pattern or {}) | {
                    name: tensor.tolist()
                }
            else:
                getattr(allocator, part)[name] = tensor.to(parameters[name].device)
