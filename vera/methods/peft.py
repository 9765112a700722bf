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

from vera.base_weights import base_fingerprint, untouched_base_names
from vera.errors import AdapterError, first_line
from vera.methods.adalora import distance_from_orthogonal
from vera.methods.adapted import adaptation, frozen_extra, plain_names
from vera.methods.contract import Method
from vera.methods.merging import try_merges
from vera.methods.peft_install import hash_tensor, install, installed
from vera.methods.peft_settings import (
    DEFAULT_SITES,
    check_values,
    complete_config,
    config_class_of,
)

#: The attributes in which AdaLoRA's allocator of ranks gathers its statistics: each holds
#: a tensor for each parameter, by its name.
ALLOCATOR_STATISTICS = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass(frozen=True)
class Peft(Method, kind="peft"):
    """Installs a tuner of peft in place.

    config_class: such as LoraConfig, IA3Config, VBLoRAConfig. config: its settings,
    such as {"use_dora": True}. sites: they become target_modules, unless config names
    its own or the class has none; "norms" is every LayerNorm and RMSNorm outside the
    head. Empty, they are the class's own (DEFAULT_SITES).

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
        default_sites = tuple(
            DEFAULT_SITES.get(self.config_class, DEFAULT_SITES["others"])
        )
        object.__setattr__(self, "sites", self.sites or default_sites)
        check_values(f"peft's {self.config_class}", self.config)

    def install(self, model: nn.Module) -> None:
        owner = f"peft's {self.config_class}"
        config_class = config_class_of(self.config_class)
        config = complete_config(self.config_class, self.config, self.sites, model)
        model._peft = install(owner, model, config_class, config, self.settings())  # type: ignore[assignment]

    def remove(self, model: nn.Module) -> None:
        """Takes the tuner out. Then raises AdapterError where peft has changed the base
        weights, as its OSF does: they do not come back."""
        self.unmerge(model)
        tuner = installed(model)
        # `unload(merge=True)` leaves nothing to unmerge: the weights are meant to differ
        is_merged_for_good = any(
            getattr(module, "merged_adapters", None) for module in model.modules()
        )
        weights = base_fingerprint(model, untouched_base_names(model))
        unchanged = is_merged_for_good or weights == tuner.base
        tuner.wrapper.base_model.unload()
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

        Empty where they are at most a fiftieth of what trains. A file can as well hold
        such small ones, and then also loads onto a base model in half precision, where
        peft would draw some in that precision."""
        plain = plain_names(model)
        hashes = installed(model).stored
        tensors = {}
        for name, tensor in frozen_extra(model).items():
            if plain[name] in hashes:
                tensors[plain[name]] = tensor
        trained_bytes = sum(p.nbytes for p in self.adapter_parameters(model).values())
        if 50 * sum(t.nbytes for t in tensors.values()) <= trained_bytes:
            return frozenset()
        return frozenset(
            name for name, t in tensors.items() if hash_tensor(t) == hashes[name]
        )

    def fixed(
        self, model: nn.Module, left_out: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """The version of peft, and a fingerprint of all tensors that it drew and the
        file does not hold."""
        import peft

        tuner = installed(model)
        hashes = {name: tuner.stored.get(name) for name in left_out} | tuner.hidden
        if not hashes:
            return {}
        content = json.dumps(hashes, sort_keys=True).encode()
        fingerprint = hashlib.sha256(content).hexdigest()[:32]
        return {"peft": peft.__version__, "fingerprint": fingerprint}

    def merge_targets(self, model: nn.Module) -> Iterable[tuple[nn.Module, bool]]:
        for layer in self._layers(model):
            yield layer.base_layer, not getattr(layer, "disable_adapters", False)

    @staticmethod
    def _layers(model: nn.Module) -> list[Any]:
        """The layers that peft merges. TrainableTokens' is left out: it changes rows of a
        weight that a tied layer has, too."""
        layers = []
        for module in model.modules():
            has_base = hasattr(module._modules.get("base_layer"), "weight")
            if has_base and type(module).__name__ != "TrainableTokensLayer":
                layers.append(module)
        return layers

    def fold(self, model: nn.Module) -> None:
        try_merges(f"peft's {self.config_class}", self._layers(model))
        adapted = adaptation(model)
        assert adapted is not None
        # All parameters of a base layer may change; `merge` has stored those of the
        # layers that `_layers` names
        for name, parameter in model.named_parameters():
            if ".base_layer." in name:
                adapted.weights_before_merge[name] = parameter.detach().clone()
        try:
            with torch.no_grad():
                installed(model).wrapper.base_model.merge_adapter()
        except Exception as error:  # perhaps half way
            raise AdapterError(
                f"peft's {self.config_class} cannot be merged: {first_line(error)}"
            ) from None

    def unfold(self, model: nn.Module) -> None:
        merged: list[Any] = []
        for module in model.modules():
            if getattr(module, "merged_adapters", None):
                merged.append(module)
        if not merged:
            return
        try:
            installed(model).wrapper.base_model.unmerge_adapter()
        except NotImplementedError:
            # Such as OSF's: its merge changes no more than the weights stored here
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
        if disabled:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()

    # --- AdaLoRA's training; without an allocator, nothing here changes anything

    def before_training(self, model: nn.Module, total_steps: int) -> None:
        allocator = installed(model).allocator
        if allocator:
            config = allocator.peft_config
            if config.tinit >= total_steps - config.tfinal:
                raise AdapterError(
                    f"AdaLoRA: tinit and tfinal leave none of {total_steps} steps: lower them"
                )
            allocator.set_total_step(total_steps)

    def penalty(self, model: nn.Module) -> Tensor | None:
        allocator = installed(model).allocator
        if not allocator:
            return None
        factors: list[Tensor] = []
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                factors.append(parameter)
            elif "lora_B" in name:
                factors.append(parameter.T)
        weight = float(allocator.peft_config.orth_reg_weight)
        return distance_from_orthogonal(factors) * weight

    def after_step(self, model: nn.Module, step: int) -> None:
        tuner = installed(model).wrapper.base_model
        if hasattr(tuner, "update_and_allocate"):
            tuner.update_and_allocate(step - 1)  # peft counts from 0

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        allocator = installed(model).allocator
        if not allocator:
            return {}
        state = {}
        # The triplets of each matrix that are not pruned, by the matrix's name
        masks = allocator.peft_config.rank_pattern or {}
        for name, mask in masks.items():
            state[f"rank_pattern/{name}"] = torch.tensor(mask)
        for statistic in ALLOCATOR_STATISTICS:
            for name, tensor in getattr(allocator, statistic).items():
                state[f"{statistic}/{name}"] = tensor
        return state

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        allocator = installed(model).allocator
        parameters = dict(model.named_parameters())
        for key, tensor in state.items():
            statistic, _, name = key.partition("/")
            if statistic == "rank_pattern":
                masks = allocator.peft_config.rank_pattern or {}
                allocator.peft_config.rank_pattern = masks | {name: tensor.tolist()}
            else:
                device = parameters[name].device
                getattr(allocator, statistic)[name] = tensor.to(device)
