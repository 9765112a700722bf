"""Any method of huggingface/peft, by the name of its configuration class."""

import copy
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vera.base_weights import base_fingerprint, base_names, fingerprint
from vera.errors import AdapterError, first_line
from vera.methods.adapted import frozen_extra, plain_names
from vera.methods.merging import check_layers, check_mergeable
from vera.methods.peft_drawn import digest, drawn, one_thread
from vera.methods.peft_quantised import check_quantised, is_quantised
from vera.methods.peft_ranks import AllocatesRanks, Installed, installed
from vera.methods.peft_settings import SITES, check_values, complete, config_class_of
from vera.sites import head_parameters, head_prefixes


@dataclass(frozen=True)
class Peft(AllocatesRanks, kind="peft"):
    """Installs a tuner of peft in place.

    config_class: such as LoraConfig, IA3Config, VBLoRAConfig. config: its settings, such as {"use_dora":
    True}. sites: they become target_modules, unless config names its own or the class has none; "norms" is
    every LayerNorm and RMSNorm outside the head. Empty, they are the class's own (SITES).

    Tensors that a class draws again from its configuration, bit for bit and with any seed of torch, are not
    in the adapter file; the first `adapt` installs the method twice to learn which.

    AdaLoRA's schedule follows the run's number of steps: see peft_ranks. Methods that change the input rather
    than the model (prompt and prefix tuning), or that need a forward pass of their own, are refused."""

    hint: ClassVar[str] = "Drawn by another version of peft, processor, precision or torch? Install that one"

    config_class: str
    config: dict[str, Any] = field(default_factory=dict)
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sites", self.sites or tuple(SITES.get(self.config_class, SITES["others"])))
        try:
            json.dumps(self.config)
        except (TypeError, ValueError, RecursionError) as error:
            raise AdapterError(f"config must be plain values, as in JSON ({error})") from None
        check_values(f"peft's {self.config_class}", self.config)

    def install(self, model: nn.Module) -> None:
        import peft

        owner = f"peft's {self.config_class}"
        config_class = config_class_of(self.config_class)
        config = complete(self.config_class, self.config, self.sites, model)
        blank, quantised = any(p.is_meta for p in model.parameters()), is_quantised(model)
        # Before installing: some methods move a part of the base weights into the adapter
        base = {} if blank else base_fingerprint(model)
        names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
        weights = names - head_parameters(model).keys()
        # A copy that shares the weights, for a second installation
        clean = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
        # Some named initialisations write into the base weights in place
        named = not blank and any("init" in key and isinstance(value, str) for key, value in config.items())
        before = [(p.data, p.detach().clone()) for p in model.parameters()] if named else []
        try:
            with one_thread():
                wrapper = peft.get_peft_model(model, config_class(**config))
        except Exception as error:
            on = "over the quantised weights of" if quantised else "on"
            raise AdapterError(f"{owner} {on} a {type(model).__name__}: {first_line(error)}") from None
        plain = plain_names(model)
        now = {plain[name]: p for name, p in model.named_parameters() if plain[name] in weights}
        if not blank and fingerprint(model, now) != base:
            for data, value in before:  # Method.adapt puts back what was not written in place
                data.copy_(value)
            raise AdapterError(f"{owner} rewrites base weights with these settings: not supported")
        head = head_prefixes(model)
        if not any(
            p.requires_grad and p.numel() for n, p in model.named_parameters() if not n.startswith(head)
        ):
            raise AdapterError(f"{owner} leaves nothing to train in a {type(model).__name__}")
        if quantised:
            check_quantised(owner, model)

        def again() -> Any:
            """Installs the same on the copy, with adapted layers of its own."""
            for path in [path for path, m in model.named_modules() if "base_layer" in m._modules]:
                clean.set_submodule(path, copy.deepcopy(clean.get_submodule(path)))
            return peft.get_peft_model(clean, config_class(**config))

        frozen = ({}, {}) if blank else drawn(owner, [self.settings(), base], model, wrapper, names, again)
        model._peft = Installed(wrapper, base, *frozen)  # type: ignore[assignment]

    def remove(self, model: nn.Module) -> None:
        """Takes the tuner out. Then raises AdapterError where peft has changed the base weights (such as
        OSF): they do not come back."""
        self.unmerge(model)
        of = installed(model)
        unchanged = of.final or base_fingerprint(model, base_names(model)) == of.base
        of.wrapper.base_model.unload()
        del model._peft
        if not unchanged:
            raise AdapterError(f"peft's {self.config_class} has changed the base weights: load them afresh")

    def count(self, model: nn.Module) -> int:
        """The size of what trains: peft has no formula."""
        return sum(p.numel() for p in self.adapter_parameters(model).values())

    # --- files and inference

    def saved(self, model: nn.Module) -> dict[str, Tensor]:
        """All that peft added, with its frozen parts."""
        return {**self.adapter_parameters(model), **frozen_extra(model)}

    def redrawn(self, model: nn.Module) -> frozenset[str]:
        """Frozen parts that a second installation drew again, and that have not changed since.

        Empty where they are a fiftieth of what trains, or less: a file that holds them also loads onto a base
        model in half precision, where peft draws some in that precision."""
        plain, hashes = plain_names(model), installed(model).stored
        parts = {plain[n]: t for n, t in frozen_extra(model).items() if plain[n] in hashes}
        trained = sum(p.nbytes for p in self.adapter_parameters(model).values())
        if 50 * sum(t.nbytes for t in parts.values()) <= trained:
            return frozenset()
        return frozenset(name for name, tensor in parts.items() if digest(tensor) == hashes[name])

    def fixed(self, model: nn.Module, left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The version of peft, and a fingerprint of all tensors that it drew and the file does not hold."""
        import peft

        of = installed(model)
        hashes = {name: of.stored.get(name) for name in left_out} | of.hidden
        if not hashes:
            return {}
        digest_of_all = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
        return {"peft": peft.__version__, "fingerprint": digest_of_all[:32]}

    def merge(self, model: nn.Module) -> None:
        of = installed(model)
        if of.unmerged:
            return
        # TrainableTokens changes rows that a tied layer has, too, merged or not
        layers: list[Any] = [
            m
            for m in model.modules()
            if hasattr(m._modules.get("base_layer"), "weight") and type(m).__name__ != "TrainableTokensLayer"
        ]
        check_mergeable(model, ((m.base_layer, not getattr(m, "disable_adapters", False)) for m in layers))
        check_layers(self.config_class, layers)
        of.unmerged = {n: p.detach().clone() for n, p in model.named_parameters() if ".base_layer." in n}
        try:
            with torch.no_grad():
                of.wrapper.base_model.merge_adapter()
        except Exception as error:  # perhaps half way
            self.unmerge(model)
            raise AdapterError(f"peft cannot merge {self.config_class}: {first_line(error)}") from None

    def unmerge(self, model: nn.Module) -> None:
        of = installed(model)
        if not of.unmerged:
            return
        try:
            of.wrapper.base_model.unmerge_adapter()
        except NotImplementedError:  # such as OSF's: its merge changes no more than the weights kept here
            for module in model.modules():
                if hasattr(module, "merged_adapters"):
                    module.merged_adapters.clear()  # type: ignore[operator, union-attr]
        except Exception as error:
            raise AdapterError(f"peft cannot unmerge {self.config_class}: {first_line(error)}") from None
        with torch.no_grad():  # peft subtracts what it added, which is off by a rounding
            for name, weight in of.unmerged.items():
                model.get_parameter(name).copy_(weight)
        of.unmerged = {}

    def unmerged(self, model: nn.Module) -> dict[int, Tensor]:
        return {id(model.get_parameter(name)): old for name, old in installed(model).unmerged.items()}

    def forget_unmerged(self, model: nn.Module) -> None:
        installed(model).unmerged, installed(model).final = {}, True

    def disable(self, model: nn.Module, disabled: bool) -> None:
        if disabled:
            self.unmerge(model)
        tuner = installed(model).wrapper.base_model
        (tuner.disable_adapter_layers if disabled else tuner.enable_adapter_layers)()
