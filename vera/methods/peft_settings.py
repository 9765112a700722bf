"""Which configurations of peft are supported, and how one is completed for a model."""

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vera.errors import AdapterError
from vera.methods.contract import LARGEST_NUMBER
from vera.sites import (
    QKV,
    WHOLE,
    find_norms,
    find_sites,
    is_feed_forward_out,
    is_transposed,
)

#: Settings that are not supported, and why.
UNSUPPORTED_SETTINGS = {
    "task_type": "the head trains with every method here: leave it out",
    "modules_to_save": "the head trains with every method here: leave it out",
    "total_step": "it is the run's own number of steps: leave it out",
    "inference_mode": "leave it out",
    "trainable_token_indices": "tokens train by TrainableTokensConfig: not supported beside another method",
    "layer_replication": "it makes another model of the base: not supported",
    "megatron_config": "not supported",
    "use_asa": "it keeps a state that no checkpoint here holds: not supported",
}
#: Classes that train over quantised weights, tried with the settings of docs/methods.md.
#: Others fail, or train nothing (Uni-LoRA).
TRAINS_OVER_QUANTISED = (
    "AdaLora",
    "Beft",
    "BOFT",
    "FourierFT",
    "Hira",
    "IA3",
    "Lily",
    "LNTuning",
    "Lora",
    "Miss",
    "OFT",
    "Pvera",
    "RandLora",
    "Road",
    "Shira",
    "TrainableTokens",
    "VBLoRA",
    "Vera",
    "WaveFT",
)
#: How the names of those initialisations of LoRA begin that change the base weights, in
#: lower case.
REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: What a string in a configuration may be: names of modules, and choices. peft reads many
#: of them as regular expressions. Without operators, none runs for ever.
PLAIN_WORD = re.compile(r"[\w./-]{0,300}")
#: The most letters of a configuration, as JSON.
MAX_LETTERS = 2**16
#: The most lists and mappings inside one another.
MAX_DEPTH = 16
#: A site of peft's methods alone: every norm outside the head.
NORMS = "norms"
#: The default sites of each class: those that its paper trains. In a file, since
#: runs/config/files.py reads it, too.
DEFAULT_SITES: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("peft_sites.json").read_text(encoding="utf-8")
)


def check_values(owner: str, config: dict[str, Any]) -> None:
    """Refuses a configuration, perhaps from a stranger's file, that could keep peft busy
    for ever. It is refused before training, too, as its adapter's file would be later.

    Args:
        owner: What error messages call the method.
        config: The configuration.

    Raises:
        AdapterError: A value is not one that JSON has, is a pattern, too large, or nested
            too deep; or the configuration rewrites base weights.
    """
    try:
        length = len(json.dumps(config))
    except (TypeError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{owner}: config must be plain values, as in JSON ({error})"
        ) from None
    if length > MAX_LETTERS:
        raise AdapterError(
            f"{owner}: more than {MAX_LETTERS} letters are no configuration"
        )
    init = config.get("init_lora_weights")
    if str(init).lower().startswith(REWRITING_INITS):
        raise AdapterError(
            f"{owner}: init_lora_weights={init} rewrites base weights: not supported"
        )
    for key, value in config.items():
        _check_value(owner, key, value, depth=0)


def _check_value(owner: str, key: str, value: object, depth: int) -> None:
    """Raises AdapterError for a value of a key, or one inside it, that is no plain word,
    too large a number, or nested too deep.

    depth: how many lists and mappings the value is inside of."""
    if isinstance(value, dict | list | tuple):
        if depth == MAX_DEPTH:
            raise AdapterError(
                f"{owner}: {key} holds lists or mappings more than {MAX_DEPTH} deep"
            )
        elements: Iterable[object] = value
        if isinstance(value, dict):
            elements = itertools.chain(*value.items())  # keys and values
        for element in elements:
            _check_value(owner, key, element, depth + 1)
    elif isinstance(value, str) and not PLAIN_WORD.fullmatch(value):
        raise AdapterError(
            f"{owner}: {key} takes plain words of at most 300 letters, got {value!r}"
        )
    elif isinstance(value, int | float):
        # Seeds, and VeRA's projection_prng_key, may have 63 bits
        limit = 2**63 if "seed" in key or "key" in key else LARGEST_NUMBER
        if not abs(value) < limit:
            raise AdapterError(
                f"{owner}: {key} must be a finite number, of at most 2^53, got {value!r}"
            )


def config_class_of(name: str) -> Any:
    """A configuration class of peft.

    Args:
        name: Such as LoraConfig.

    Raises:
        AdapterError: peft lacks the class (the nearest name is given), or it does more
            than change a model's layers.
    """
    import peft
    from peft.tuners.tuners_utils import BaseTuner

    kinds = {}  # by the name of the configuration class
    for kind, known_class in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items():
        kinds[known_class.__name__] = kind
    if name not in kinds:
        raise AdapterError(
            f"peft {peft.__version__} has no method {name!r}. {_nearest(name, list(kinds))}"
        )
    config_class: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kinds[name]]
    if issubclass(config_class, peft.PromptLearningConfig):
        raise AdapterError(
            f"peft's {name} changes the input, not the model: not supported"
        )
    tuner = peft.PEFT_TYPE_TO_TUNER_MAPPING.get(kinds[name])
    # AdaLoRA's own forward pass adds a penalty, which Peft.penalty adds here
    has_own_forward = getattr(tuner, "forward", None) is not BaseTuner.forward
    if has_own_forward and not hasattr(tuner, "update_and_allocate"):
        raise AdapterError(
            f"peft's {name} needs a forward pass of its own: not supported"
        )
    return config_class


def _nearest(name: str, names: list[str]) -> str:
    """A hint, as a sentence, for a name that is not among these."""
    by_lower_case = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower_case, 1)
    if close:
        return f"Did you mean {by_lower_case[close[0]]}?"
    return f"It has: {', '.join(sorted(names))}"


def _check_settings(
    name: str, config: dict[str, Any], known_settings: Mapping[str, object]
) -> None:
    """Raises AdapterError for a setting that peft lacks, or that is not supported.

    name: the configuration class. known_settings: its fields, by name."""
    unknown = sorted(set(config) - set(known_settings))
    if unknown:
        raise AdapterError(
            f"peft's {name} has no setting {unknown[0]!r}. It has: {', '.join(known_settings)}"
        )
    for key in UNSUPPORTED_SETTINGS.keys() & config.keys():
        if config[key] not in (None, False):
            raise AdapterError(f"peft's {name}: {key}: {UNSUPPORTED_SETTINGS[key]}")
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f"peft's {name}: bias={config['bias']} trains base weights: not supported"
        )
    # A configuration inside this one may name files or other adapters, and this one may
    # come from a stranger's file
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("rank_pattern", "alpha_pattern"):
            raise AdapterError(
                f"peft's {name}: {key} is a configuration of its own: not supported"
            )


def complete_config(
    name: str, config: dict[str, Any], sites: tuple[str, ...], model: nn.Module
) -> dict[str, Any]:
    """Completes a configuration with the defaults for a model.

    Args:
        name: The configuration class.
        config: Its settings.
        sites: Where it acts, unless the configuration says so.
        model: The base model.

    Returns:
        All settings that the class needs here.

    Raises:
        AdapterError: The configuration is not supported, or not on this model.
    """
    known_settings = config_class_of(name).__dataclass_fields__
    _check_settings(name, config, known_settings)
    is_packed = any(not p.is_floating_point() for p in model.parameters())
    if is_packed and name.removesuffix("Config") not in TRAINS_OVER_QUANTISED:
        raise AdapterError(
            f"peft's {name} does not train over quantised weights: load the base unquantised"
        )
    completed = dict(config)
    paths = completed.get("target_modules")
    feed_forward: list[str] = []
    if "target_modules" in known_settings and "target_modules" not in completed:
        paths = _target_paths(name, sites, model)
        completed["target_modules"] = _target_modules(paths, model)
        feed_forward = list(filter(is_feed_forward_out, paths))
    # IA3 scales the inputs of these and the outputs of the rest
    if "feedforward_modules" in known_settings:
        completed.setdefault("feedforward_modules", feed_forward)
    # Whether weights are stored transposed, as GPT-2's. A user's own pattern (a text) is
    # not looked up
    if "fan_in_fan_out" in known_settings and isinstance(paths, list):
        targets = [module for path, module in model.named_modules() if path in paths]
        completed.setdefault("fan_in_fan_out", any(map(is_transposed, targets)))
    # AdaLoRA's needs some number of steps here; before_training sets that of the run
    if "total_step" in known_settings:
        completed["total_step"] = 2**31
    if "progressbar" in known_settings:  # FRoD's, while it is installed
        completed.setdefault("progressbar", False)
    return completed


def _target_modules(paths: list[str], model: nn.Module) -> list[str] | str:
    """The target_modules with which peft finds these paths and no others: a list, or a
    pattern where a list would find more.

    In a list, peft takes a name also for the end of a longer path (timm's "norm" for
    "blocks.0.attn.norm"). A pattern has to match the whole path."""
    ends = tuple(f".{path}" for path in paths)
    for path, _ in model.named_modules():
        if path.endswith(ends) and path not in paths:
            return "|".join(map(re.escape, paths))
    return paths


def _target_paths(name: str, sites: tuple[str, ...], model: nn.Module) -> list[str]:
    """The module paths that these sites name."""
    if not sites:
        raise AdapterError(
            f"peft's {name} needs to be told what it trains: name target_modules in config"
        )
    try:
        norms = find_norms(model) if NORMS in sites else []
        linear_sites = tuple(site for site in sites if site != NORMS)
        layers = find_sites(model, linear_sites) if linear_sites else {}
    except AdapterError as error:
        raise AdapterError(
            f"peft's {name} adapts {', '.join(sites)}: {error}."
            " Name others: sites, or target_modules in config"
        ) from None
    for path, output_slices in layers.items():
        if WHOLE not in output_slices:
            other_sites = [site for site in sites if site not in QKV]
            names = [path.rpartition(".")[2], *other_sites]
            raise AdapterError(
                f"peft adapts {path} as a whole: name it, sites=[{','.join(names)}]"
            )
    return [*layers, *norms]
