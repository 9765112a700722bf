"""What configurations of peft have a place here, and what they are where they leave it open."""

import difflib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from torch import nn

from vera.errors import AdapterError
from vera.methods.settings import LARGEST
from vera.sites import BLOCKS, NORMS, WHOLE, find_norms, find_sites, is_feed_forward_out, is_transposed

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
#: runs/config/files.py reads it, too.
SITES: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("peft_sites.json").read_text(encoding="utf-8")
)


def rewrites_base(init: Any) -> bool:
    """Whether peft's init_lora_weights changes base weights. peft takes olora in any case of its letters; so
    does this all."""
    return str(init).lower().startswith(REWRITES_BASE)


def check_values(owner: str, config: dict[str, Any]) -> None:
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


def config_class_of(name: str) -> Any:
    """The configuration class of peft. Raises AdapterError, with a hint, for a name that it lacks."""
    import peft

    found = getattr(peft, name, None)
    if not (inspect.isclass(found) and issubclass(found, peft.PeftConfig) and found is not peft.PeftConfig):
        base = (peft.PeftConfig, peft.PromptLearningConfig)
        known = [
            n for n, c in vars(peft).items() if inspect.isclass(c) and issubclass(c, base) and c not in base
        ]
        close = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {close[0]}?" if close else f"It has: {', '.join(sorted(known))}"
        raise AdapterError(f"peft {peft.__version__} has no method {name!r}. {hint}")
    if issubclass(found, peft.PromptLearningConfig):
        raise AdapterError(f"peft's {name} changes the input, not the model: not supported")
    return found


def _check_settings(name: str, config: dict[str, Any], known: Any) -> None:
    """Raises AdapterError for a setting that has no place here."""
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise AdapterError(f"peft's {name} has no setting {unknown[0]!r}. It has: {', '.join(known)}")
    for key in OUTSIDE.keys() & config.keys():
        if config[key] not in (None, False):
            raise AdapterError(f"peft's {name}: {key}: {OUTSIDE[key]}")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"peft's {name}: bias={config['bias']} trains base weights: not supported")
    if rewrites_base(config.get("init_lora_weights")):
        raise AdapterError(
            f"peft's {name}: {config['init_lora_weights']} rewrites base weights: not supported"
        )
    # No reference to files or other adapters: this may come from an adapter file
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("rank_pattern", "alpha_pattern"):
            raise AdapterError(f"peft's {name}: {key} is a configuration of its own: not supported")


def complete(name: str, config: dict[str, Any], sites: tuple[str, ...], model: nn.Module) -> dict[str, Any]:
    """A configuration, and what it leaves open. Raises AdapterError where it has no place here."""
    known = config_class_of(name).__dataclass_fields__
    _check_settings(name, config, known)
    words = dict(config)
    if "target_modules" in known and "target_modules" not in words:
        words["target_modules"] = _targets(name, sites, model)
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
    return words


def _targets(name: str, sites: tuple[str, ...], model: nn.Module) -> list[str]:
    if not sites:
        raise AdapterError(f"peft's {name} needs to be told what it trains: name target_modules in config")
    try:
        norms = find_norms(model) if NORMS in sites else []
        linear = tuple(site for site in sites if site != NORMS)
        found = find_sites(model, linear) if linear else {}
    except AdapterError as error:
        if list(sites) != SITES.get(name, SITES["others"]):
            raise
        own = f"peft's {name} adapts {', '.join(sites)}"
        raise AdapterError(f"{own}: {error}. Name others: sites, or target_modules in config") from None
    for path, blocks in found.items():
        if WHOLE not in blocks:
            whole = ",".join([path.rpartition(".")[2], *(site for site in sites if site not in BLOCKS)])
            raise AdapterError(
                f"peft adapts {path} as a whole, not its {' and '.join(blocks)}: name it, sites=[{whole}]"
            )
    return [*found, *norms]
