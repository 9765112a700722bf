"""Any method of huggingface/peft by the name of its configuration class, under the same contract as this
library's own."""

import contextlib
import copy
import difflib
import hashlib
import inspect
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.base import LARGEST, Method, frozen_extra, plain_names, replace
from vera.sites import (
    BLOCKS,
    NORMS,
    WHOLE,
    find_norms,
    find_sites,
    head_parameters,
    head_prefixes,
    is_feed_forward_out,
    is_transposed,
)

#: Settings that have no place here, and why.
OUTSIDE = {
    "task_type": "the head trains with every method here: leave it out",
    "modules_to_save": "the head trains with every method here: leave it out",
    "total_step": "it is the run's own number of steps: leave it out",
    "inference_mode": "leave it out",
    "layer_replication": "it makes another model of the base: not supported",
    "megatron_config": "not supported",
    "use_asa": "it keeps a state that no checkpoint here holds: not supported",
}
#: Initial values that change the base weights too, so that an adapter file would not be the whole of it. See
#: rewrites_base.
REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: Words of a configuration: names of modules and choices. peft takes many of them for regular expressions;
#: without operators there is none that runs for ever.
PLAIN = re.compile(r"[\w./-]{0,300}")
#: A configuration has no more values than this, lists counted out.
MOST_VALUES = 4_096
#: The sites of each class where none are named: those that its paper trains. A file of its own:
#: runs/config.py reads it, too.
SITES: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("peft_sites.json").read_text(encoding="utf-8")
)
#: By method and base weights, which of the frozen tensors a second installation has drawn again.
_REDRAWN: dict[str, frozenset[str]] = {}


@dataclass(frozen=True)
class Peft(Method, kind="peft"):
    """Installs a tuner of peft in place.

    config_class: such as LoraConfig, IA3Config, VBLoRAConfig. config: its settings, such as {"use_dora":
    True}. sites become target_modules, unless config names its own or the class has none; "norms" is every
    LayerNorm and RMSNorm outside the head. Empty, they are the class's own (SITES): query and value where it
    changes or replaces a weight.

    What a class draws again from its configuration, bit for bit and whatever torch's seed, is not in the
    adapter file. Two installations at the first `adapt` tell.

    AdaLoRA's schedule follows the run's number of steps, its budget is allocated after each step, and its
    orthogonality penalty is part of the loss, as in peft's own training loops. Methods that change the input
    rather than the model (prompt and prefix tuning), or that need a forward pass of their own, are refused.
    """

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
        _check_values(f"peft's {self.config_class}", self.config)

    def install(self, model: nn.Module) -> None:
        import peft
        from peft.tuners.tuners_utils import BaseTuner

        from vera.checkpoint import base_fingerprint

        config_class = self._config_class(peft)
        words, known = dict(self.config), config_class.__dataclass_fields__
        unknown = sorted(set(words) - set(known))
        if unknown:
            raise AdapterError(
                f"peft's {self.config_class} has no setting {unknown[0]!r}. It has: {', '.join(known)}"
            )
        for key in OUTSIDE.keys() & words.keys():
            if words[key] not in (None, False):
                raise AdapterError(f"peft's {self.config_class}: {key}: {OUTSIDE[key]}")
        if words.get("bias", "none") != "none":
            raise AdapterError(
                f"peft's {self.config_class}: bias={words['bias']} trains base weights: not supported"
            )
        if rewrites_base(words.get("init_lora_weights")):
            raise AdapterError(
                f"peft's {self.config_class}: {words['init_lora_weights']} rewrites base weights: not"
                " supported"
            )
        # No reference to files or other adapters: this may come from an adapter file
        for key, value in words.items():
            if isinstance(value, dict) and key not in ("rank_pattern", "alpha_pattern"):
                raise AdapterError(
                    f"peft's {self.config_class}: {key} is a configuration of its own: not supported"
                )
        if "target_modules" in known and "target_modules" not in words:
            words["target_modules"] = self._targets(model)
            if "feedforward_modules" in known:  # IA3 scales the inputs of these and the outputs of the rest
                words.setdefault(
                    "feedforward_modules", list(filter(is_feed_forward_out, words["target_modules"]))
                )
        if "feedforward_modules" in known:
            words.setdefault("feedforward_modules", [])
        # Weights stored transposed, as GPT-2's
        if "fan_in_fan_out" in known and isinstance(words.get("target_modules"), list):
            targets = [m for n, m in model.named_modules() if n in words["target_modules"]]
            words.setdefault("fan_in_fan_out", any(map(is_transposed, targets)))
        if "total_step" in known:  # AdaLoRA's schedule; before_training knows the number
            words["total_step"] = 2**31
        blank = any(p.is_meta for p in model.parameters())
        base = (
            {} if blank else base_fingerprint(model)
        )  # before installing: some methods move a part of the base weights into the adapter
        names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
        weights = names - head_parameters(model).keys()
        # Shares the weights
        clean = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
        # peft writes some initial values into the base weights in place.
        named = not blank and any("init" in key and isinstance(value, str) for key, value in words.items())
        kept = [(p.data, p.detach().clone()) for p in model.parameters()] if named else []
        try:
            with _one_thread():
                wrapper = peft.get_peft_model(model, config_class(**words))
        except Exception as error:
            raise AdapterError(
                f"peft's {self.config_class} on a {type(model).__name__}: {_first_line(error)}"
            ) from None
        if not blank and base_fingerprint(model, weights) != base:
            for place, value in kept:  # Method.adapt puts back what stands elsewhere
                place.copy_(value)
            raise AdapterError(
                f"peft's {self.config_class} rewrites base weights with these settings: not supported"
            )
        tuner = wrapper.base_model
        if type(tuner).forward is not BaseTuner.forward and not hasattr(tuner, "rankallocator"):
            raise AdapterError(f"peft's {self.config_class} needs a forward pass of its own: not supported")
        head = tuple(head_prefixes(model))
        if not any(
            p.requires_grad and p.numel()
            for n, p in model.named_parameters()
            if not (head and n.startswith(head))
        ):
            raise AdapterError(
                f"peft's {self.config_class} leaves nothing to train in a {type(model).__name__}"
            )

        def again() -> Any:
            """The same on a copy of the base model, whose adapted layers are its own."""
            for path in [path for path, m in model.named_modules() if "base_layer" in m._modules]:
                replace(clean, path, copy.deepcopy(clean.get_submodule(path)))
            return peft.get_peft_model(clean, config_class(**words))

        drawn = ({}, {}) if blank else self._drawn(model, wrapper, names, base, again)
        model._peft_drawn = drawn  # type: ignore[assignment]
        model._peft_base = base  # type: ignore[assignment]
        # In a tuple, so that the wrapper, which holds the model, is no child of it.
        model._peft_wrapper = (wrapper,)  # type: ignore[assignment]

    def _config_class(self, peft: Any) -> Any:
        found = getattr(peft, self.config_class, None)
        if not (
            inspect.isclass(found) and issubclass(found, peft.PeftConfig) and found is not peft.PeftConfig
        ):
            base = (peft.PeftConfig, peft.PromptLearningConfig)
            known = [
                n
                for n, c in vars(peft).items()
                if inspect.isclass(c) and issubclass(c, base) and c not in base
            ]
            close = difflib.get_close_matches(self.config_class, known, 1)
            hint = f"Did you mean {close[0]}?" if close else f"It has: {', '.join(sorted(known))}"
            raise AdapterError(f"peft {peft.__version__} has no method {self.config_class!r}. {hint}")
        if issubclass(found, peft.PromptLearningConfig):
            raise AdapterError(f"peft's {self.config_class} changes the input, not the model: not supported")
        return found

    def _drawn(
        self, model: nn.Module, wrapper: Any, names: set[str], base: dict[str, str], again: Callable[[], Any]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Hashes of the frozen tensors that come back with the configuration: those that a file could hold,
        by its names, and those that it could not, since they are no parameters or buffers of the model.

        Raises AdapterError where one of the latter does not come back.
        """
        stored, hidden = _frozen(model, wrapper, names)
        if not (stored or hidden):
            return {}, {}
        first = next(t for n, t in model.named_parameters() if n in names)
        key = json.dumps([self.settings(), base, str(first.dtype), str(first.device)])
        ours = {name: _hash(tensor) for name, tensor in {**stored, **hidden}.items()}
        if key not in _REDRAWN:
            with _other_seed(first.device), _one_thread():
                second = again()
            parts = _frozen(second.base_model.model, second, names)
            theirs = {name: _hash(tensor) for part in parts for name, tensor in part.items()}
            _REDRAWN[key] = frozenset(name for name, digest in ours.items() if theirs.get(name) == digest)
        for name in hidden.keys() - _REDRAWN[key]:
            raise AdapterError(
                f"peft's {self.config_class} draws {name} anew each time, and no file holds it: fix its seed"
            )
        return {n: ours[n] for n in stored.keys() & _REDRAWN[key]}, {n: ours[n] for n in hidden}

    def _targets(self, model: nn.Module) -> list[str]:
        if not self.sites:
            raise AdapterError(
                f"peft's {self.config_class} needs to be told what it trains: name target_modules in config"
            )
        try:
            norms = find_norms(model) if NORMS in self.sites else []
            linear = tuple(site for site in self.sites if site != NORMS)
            found = find_sites(model, linear) if linear else {}
        except AdapterError as error:
            if list(self.sites) != SITES.get(self.config_class, SITES["others"]):
                raise
            own = f"peft's {self.config_class} adapts {', '.join(self.sites)}"
            raise AdapterError(f"{own}: {error}. Name others: sites, or target_modules in config") from None
        for path, blocks in found.items():
            if WHOLE not in blocks:
                whole = ",".join(
                    [path.rpartition(".")[2], *(site for site in self.sites if site not in BLOCKS)]
                )
                raise AdapterError(
                    f"peft adapts {path} as a whole, not its {' and '.join(blocks)}: name it, sites=[{whole}]"
                )
        return [*found, *norms]

    def remove(self, model: nn.Module) -> None:
        """Raises AdapterError, after the fact, where peft has changed the base weights (OSF, say): they do
        not come back."""
        from vera.checkpoint import base_fingerprint, base_names

        self.unmerge(model)
        final = hasattr(model, "_peft_final")  # a merge that was meant to stay
        unchanged = final or base_fingerprint(model, base_names(model)) == model._peft_base
        _tuner(model).unload()
        for name in ("_peft_wrapper", "_peft_base", "_peft_drawn", "_peft_final"):
            model.__dict__.pop(name, None)
        if not unchanged:
            raise AdapterError(
                f"peft's {self.config_class} has changed the base weights: load a fresh copy of the base"
                " model"
            )

    def count(self, model: nn.Module) -> int:
        """What trains, counted: peft gives no formula."""
        return sum(p.numel() for p in self.adapter_parameters(model).values())

    # --- training

    def before_training(self, model: nn.Module, total_steps: int) -> None:
        allocator = getattr(_tuner(model), "rankallocator", None)
        if allocator is not None:
            config = allocator.peft_config
            if config.tinit >= total_steps - config.tfinal:
                raise AdapterError(
                    f"AdaLoRA: tinit {config.tinit} and tfinal {config.tfinal} leave none of {total_steps}"
                    " steps"
                )
            allocator.set_total_step(total_steps)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """AdaLoRA's: the mean distance of P^T P and Q Q^T from the identity (Zhang et al. 2023, equation 4),
        weighted."""
        allocator = getattr(_tuner(model), "rankallocator", None)
        if allocator is None:
            return None
        distances = []
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = p @ p.T if "lora_A" in name else p.T @ p
                distances.append(
                    torch.linalg.norm(gram - torch.eye(len(gram), device=p.device, dtype=p.dtype))
                )
        return torch.stack(distances).mean() * float(allocator.peft_config.orth_reg_weight)

    def after_step(self, model: nn.Module, step: int) -> None:
        tuner = _tuner(model)
        if hasattr(tuner, "update_and_allocate"):
            tuner.update_and_allocate(step - 1)  # peft counts from 0

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        allocator = getattr(_tuner(model), "rankallocator", None)
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
        allocator = getattr(_tuner(model), "rankallocator", None)
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

    # --- files and inference

    def saved(self, model: nn.Module) -> dict[str, Tensor]:
        """All that peft added, frozen parts too."""
        return {**self.adapter_parameters(model), **frozen_extra(model)}

    def redrawn(self, model: nn.Module) -> frozenset[str]:
        """Frozen parts that a second installation has drawn again, and that are still as they were drawn.

        None where they are a fiftieth of what trains, or less: a file with them loads onto a base model in
        half precision, too, where some come out in that precision."""
        plain, (drawn, _) = plain_names(model), _drawn_of(model)
        found = {plain[n]: t for n, t in frozen_extra(model).items() if plain[n] in drawn}
        if 50 * sum(t.nbytes for t in found.values()) <= sum(
            p.nbytes for p in self.adapter_parameters(model).values()
        ):
            return frozenset()
        return frozenset(name for name, tensor in found.items() if _hash(tensor) == drawn[name])

    def fixed(self, model: nn.Module, left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The version of peft, and the fingerprint of all that it drew and that the file does not hold."""
        import peft

        drawn, hidden = _drawn_of(model)
        hashes = {name: drawn.get(name) for name in left_out} | hidden
        if not hashes:
            return {}
        digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
        return {"peft": peft.__version__, "fingerprint": digest[:32]}

    def merge(self, model: nn.Module) -> None:
        tuner = _tuner(model)
        if hasattr(model, "_peft_unmerged"):
            return
        kept = {name: p.detach().clone() for name, p in model.named_parameters() if ".base_layer." in name}
        if any(not p.is_floating_point() for p in kept.values()):
            raise AdapterError(
                "a quantised base cannot be merged into: load the adapter onto the unquantised base model"
            )
        try:
            tuner.merge_adapter()
        except Exception as error:
            raise AdapterError(f"peft cannot merge {self.config_class}: {_first_line(error)}") from None
        model._peft_unmerged = kept  # type: ignore[assignment]

    def unmerge(self, model: nn.Module) -> None:
        kept: Any = getattr(model, "_peft_unmerged", None)
        if kept is not None:
            try:
                _tuner(model).unmerge_adapter()
            except Exception as error:
                raise AdapterError(f"peft cannot unmerge {self.config_class}: {_first_line(error)}") from None
            with torch.no_grad():  # peft subtracts what it added, which is off by a rounding
                for name, weight in kept.items():
                    model.get_parameter(name).copy_(weight)
            del model._peft_unmerged

    def forget_unmerged(self, model: nn.Module) -> None:
        del model._peft_unmerged
        model._peft_final = True  # type: ignore[assignment]

    def disable(self, model: nn.Module, disabled: bool) -> None:
        if disabled:
            self.unmerge(model)
        tuner = _tuner(model)
        (tuner.disable_adapter_layers if disabled else tuner.enable_adapter_layers)()


def rewrites_base(init: Any) -> bool:
    """Whether peft's init_lora_weights changes base weights. peft takes olora in any case of its letters; so
    does this all."""
    return str(init).lower().startswith(REWRITES_BASE)


def _check_values(owner: str, config: dict[str, Any]) -> None:
    """Raises AdapterError for a configuration that could keep peft busy for ever: it may come from an adapter
    file.

    Module names, no patterns: a pattern that an adapter was trained with could not be loaded from its file
    again."""
    left = MOST_VALUES
    todo: list[tuple[str, Any]] = list(config.items())
    while todo:
        key, value = todo.pop()
        left -= 1
        if isinstance(value, dict):
            todo += [(key, part) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple):
            todo += [(key, part) for part in value]
        elif isinstance(value, str) and not PLAIN.fullmatch(value):
            what = (
                "takes module names and plain words of at most 300 letters, no patterns (layers_to_transform"
                " chooses layers)"
            )
            raise AdapterError(f"{owner}: {key} {what}: got {value!r}")
        elif isinstance(value, int | float) and not abs(value) < (
            2**63 if "seed" in key or "key" in key else LARGEST
        ):
            raise AdapterError(f"{owner}: {key} must be a finite number, of at most 2^53, got {value!r}")
        if left < len(todo):
            raise AdapterError(f"{owner}: more than {MOST_VALUES} values are no configuration")


def _tuner(model: nn.Module) -> Any:
    wrapper: Any = model._peft_wrapper
    return wrapper[0].base_model


def _drawn_of(model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    drawn: Any = model._peft_drawn
    return drawn


def _frozen(
    model: nn.Module, wrapper: nn.Module, names: set[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What peft added to a model and does not train: parameters and buffers of the model by the file's names,
    and tensors that it keeps beside the model, or as plain attributes of its layers. names: the base model's
    own."""
    plain = plain_names(model)
    own = dict([*model.named_parameters(), *model.named_buffers()])
    stored = {plain[name]: t for name, t in own.items() if plain[name] not in names and not t.requires_grad}
    inside = {id(t) for t in own.values()}
    hidden = {n: t for n, t in [*wrapper.named_parameters(), *wrapper.named_buffers()] if id(t) not in inside}
    for path, module in wrapper.named_modules():
        if not type(module).__module__.startswith("peft."):
            continue
        for name, value in vars(module).items():
            if name.startswith("_"):  # torch's own books
                continue
            parts = value.items() if isinstance(value, dict) else [("", value)]
            hidden |= {
                f"{path}.{name}.{key}": t for key, t in parts if isinstance(t, Tensor) and id(t) not in inside
            }
    return stored, {name: tensor for name, tensor in hidden.items() if not tensor.requires_grad}


def _hash(tensor: Tensor) -> str:
    """Of dtype, shape and every bit."""
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    digest = hashlib.sha256(f"{dense.dtype} {list(dense.shape)}".encode())
    digest.update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """What is computed from the base weights (an SVD, say) has other last bits with another number of
    threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _other_seed(device: torch.device) -> Iterator[None]:
    """Other random numbers than those before, of torch, numpy and Python; afterwards the generators are as
    they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(torch.initial_seed() ^ 0x5EED)
        np.random.seed(0x5EED)
        random.seed(0x5EED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return re.sub(r"\s+", " ", line) or type(error).__name__
