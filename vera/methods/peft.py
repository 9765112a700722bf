"""Any method of huggingface/peft, by the name of its configuration class.

AdaLoRA trains as in peft's own loops: ranks are allocated after each step, on a
schedule over the run's steps, and a penalty keeps the factors orthogonal."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vera.base_weights import base_fingerprint, base_names
from vera.errors import AdapterError, first_line
from vera.methods.adalora import off_orthogonal
from vera.methods.adapted import frozen_extra, plain_names
from vera.methods.contract import Method
from vera.methods.merging import try_merges
from vera.methods.peft_install import digest, install, installed
from vera.methods.peft_settings import SITES, check_values, complete, config_class_of

#: What AdaLoRA's allocator of ranks gathers, by the names of parameters.
GATHERED = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass(frozen=True)
class Peft(Method, kind="peft"):
    """Installs a tuner of peft in place.

    config_class: such as LoraConfig, IA3Config, VBLoRAConfig. config: its settings,
    such as {"use_dora": True}. sites: they become target_modules, unless config names
    its own or the class has none; "norms" is every LayerNorm and RMSNorm outside the
    head. Empty, they are the class's own (SITES).

    Tensors that a class draws again from its configuration, bit for bit and with any
    seed of torch, are not in the adapter file; the first `adapt` installs the method
    twice to learn which.

    Methods that change the input rather than the model (prompt and prefix tuning), or
    that need a forward pass of their own, are refused."""

    hint: ClassVar[str] = (
        "Drawn by another version of peft, processor, precision or torch? Install that one"
    )

    config_class: str
    config: dict[str, Any] = field(default_factory=dict)
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(
            self,
            "sites",
            self.sites or tuple(SITES.get(self.config_class, SITES["others"])),
        )
        check_values(f"peft's {self.config_class}", self.config)

    def install(self, model: nn.Module) -> None:
        owner = f"peft's {self.config_class}"
        config_class = config_class_of(self.config_class)
        config = complete(self.config_class, self.config, self.sites, model)
        model._peft = install(owner, model, config_class, config, self.settings())  # type: ignore[assignment]

    def remove(self, model: nn.Module) -> None:
        """Takes the tuner out. Then raises AdapterError where peft has changed the base
        weights (such as OSF): they do not come back."""
        self.unmerge(model)
        of = installed(model)
        # a merge that stays
        final = any(getattr(m, "merged_adapters", None) for m in model.modules())
        unchanged = final or base_fingerprint(model, base_names(model)) == of.base
        of.wrapper.base_model.unload()
        del model._peft
        if not unchanged:
            raise AdapterError(
                f"peft's {self.config_class} has changed the base weights: load them afresh"
            )

    def count(self, model: nn.Module) -> int:
        """The size of what trains: peft has no formula."""
        return sum(p.numel() for p in self.adapter_parameters(model).values())

    # --- files and inference

    def saved(self, model: nn.Module) -> dict[str, Tensor]:
        """All that peft added, with its frozen parts."""
        return {**self.adapter_parameters(model), **frozen_extra(model)}

    def redrawn(self, model: nn.Module) -> frozenset[str]:
        """Frozen parts that a second installation drew again (peft_install), unchanged
        since.

        Empty where they are a fiftieth of what trains, or less: a file that holds them
        also loads onto a base model in half precision, where peft draws some in that
        precision."""
        plain, hashes = plain_names(model), installed(model).stored
        parts = {
            plain[n]: t for n, t in frozen_extra(model).items() if plain[n] in hashes
        }
        trained = sum(p.nbytes for p in self.adapter_parameters(model).values())
        if 50 * sum(t.nbytes for t in parts.values()) <= trained:
            return frozenset()
        return frozenset(
            name for name, tensor in parts.items() if digest(tensor) == hashes[name]
        )

    def fixed(
        self, model: nn.Module, left_out: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """The version of peft, and a fingerprint of all tensors that it drew and the
        file does not hold."""
        import peft

        of = installed(model)
        hashes = {name: of.stored.get(name) for name in left_out} | of.hidden
        if not hashes:
            return {}
        digest_of_all = hashlib.sha256(
            json.dumps(hashes, sort_keys=True).encode()
        ).hexdigest()
        return {"peft": peft.__version__, "fingerprint": digest_of_all[:32]}

    def merge_targets(self, model: nn.Module) -> Iterable[tuple[nn.Module, bool]]:
        layers = self._layers(model)
        return (
            (m.base_layer, not getattr(m, "disable_adapters", False)) for m in layers
        )

    @staticmethod
    def _layers(model: nn.Module) -> list[Any]:
        """The layers that peft merges, but TrainableTokens': it changes rows that a
        tied layer has, too."""
        layers = [
            m
            for m in model.modules()
            if hasattr(m._modules.get("base_layer"), "weight")
        ]
        return [m for m in layers if type(m).__name__ != "TrainableTokensLayer"]

    def fold(self, model: nn.Module) -> None:
        try_merges(f"peft's {self.config_class}", self._layers(model))
        kept: dict[str, Tensor] = model._adaptation.unmerged  # type: ignore[assignment, union-attr]
        kept |= {
            n: p.detach().clone()
            for n, p in model.named_parameters()
            if ".base_layer." in n
        }
        try:
            with torch.no_grad():
                installed(model).wrapper.base_model.merge_adapter()
        except Exception as error:  # perhaps half way
            raise AdapterError(
                f"peft's {self.config_class} cannot be merged: {first_line(error)}"
            ) from None

    def unfold(self, model: nn.Module) -> None:
        merged: list[Any] = [
            m for m in model.modules() if getattr(m, "merged_adapters", None)
        ]
        try:
            _ = merged and installed(model).wrapper.base_model.unmerge_adapter()
        except NotImplementedError:
            # such as OSF's: its merge changes no more than the weights kept here
            for module in merged:
                module.merged_adapters.clear()
        except Exception as error:
            raise AdapterError(
                f"peft cannot unmerge {self.config_class}: {first_line(error)}"
            ) from None

    def disable(self, model: nn.Module, disabled: bool) -> None:
        if disabled:
            self.unmerge(model)
        tuner = installed(model).wrapper.base_model
        (tuner.disable_adapter_layers if disabled else tuner.enable_adapter_layers)()

    # --- AdaLoRA's training; without an allocator, nothing here changes anything

    def before_training(self, model: nn.Module, total_steps: int) -> None:
        if allocator := installed(model).allocator:
            config = allocator.peft_config
            if config.tinit >= total_steps - config.tfinal:
                raise AdapterError(
                    f"AdaLoRA: tinit and tfinal leave none of {total_steps} steps: lower them"
                )
            allocator.set_total_step(total_steps)

    def penalty(self, model: nn.Module) -> Tensor | None:
        if not (allocator := installed(model).allocator):
            return None
        named = model.named_parameters()
        factors = [
            p if "lora_A" in n else p.T
            for n, p in named
            if "lora_A" in n or "lora_B" in n
        ]
        return off_orthogonal(factors) * float(allocator.peft_config.orth_reg_weight)

    def after_step(self, model: nn.Module, step: int) -> None:
        tuner = installed(model).wrapper.base_model
        if hasattr(tuner, "update_and_allocate"):
            tuner.update_and_allocate(step - 1)  # peft counts from 0

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        if not (allocator := installed(model).allocator):
            return {}
        masks = (allocator.peft_config.rank_pattern or {}).items()
        state = {f"rank_pattern/{name}": torch.tensor(mask) for name, mask in masks}
        return state | {
            f"{part}/{n}": t
            for part in GATHERED
            for n, t in getattr(allocator, part).items()
        }

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        allocator, parameters = (
            installed(model).allocator,
            dict(model.named_parameters()),
        )
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            if part == "rank_pattern":
                masks = allocator.peft_config.rank_pattern or {}
                allocator.peft_config.rank_pattern = masks | {name: tensor.tolist()}
            else:
                getattr(allocator, part)[name] = tensor.to(parameters[name].device)
