"""The method of a run, the learning rates of single parameters, whether a method fits a
model, and how many FLOPs a pass takes.

A method is one of vera's, or a class of the user's own that a file names:

    kind: my_package.svft.SVFT # in FOLDER/method/svft.yaml, with --config-dir FOLDER

Its module is imported like any other: it is installed, or its folder is on PYTHONPATH.
Only a file can name a class; an override cannot, and vera, which reads adapter files
from anywhere, imports none."""

import contextlib
import importlib
import inspect
import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from runs import models
from runs.command.errors import UserError, is_user_error
from runs.machine.hashes import cached_value, files_sha256
from runs.record.configuration import ModelConfig
from runs.record.ledger import ROOT
from runs.record.text import one_line
from runs.run.definition import Run
from tasks import DataError
from tasks.files import stamp

if TYPE_CHECKING:
    import torch
    from torch import nn

    import vera


def method_of_settings(settings: dict[str, Any]) -> "vera.Method":
    """The method with these settings (Run.method): one of vera's or, where kind has a
    dot, of the user's own class. Raises UserError where that cannot be imported, or is no
    method."""
    import vera

    kind = settings["kind"]
    if "." not in kind:
        return vera.make_method(**settings)
    module, _, name = kind.rpartition(".")
    try:
        method_class = getattr(importlib.import_module(module), name)
    except Exception as error:  # of the module's own code, too
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        raise UserError(
            f"method.kind={kind}: cannot be imported ({reason}). Its package has to be "
            "installed, or the folder that it is in on PYTHONPATH"
        ) from None
    # An inherited kind would not do: it is the kind of the class above
    is_method = inspect.isclass(method_class) and issubclass(method_class, vera.Method)
    if not is_method or "kind" not in vars(method_class):
        raise UserError(
            f"method.kind={kind}: should be a method such as class "
            f'{name}(vera.Method, kind="{name.lower()}")'
        )
    # Importing it has registered the class under its own kind
    return vera.make_method(**settings | {"kind": method_class.kind})


# --- rates and weight decays by patterns of parameters' names (train.lr_by, train.decay_by)


#: An error message lists so many names at most.
MAX_LISTED_NAMES = 12
#: For lr_by and decay_by: the setting of training that a factor in them, such as 16x,
#: multiplies.
MULTIPLIED_SETTINGS = {"lr_by": "lr", "decay_by": "weight_decay"}


def read_rates(
    setting: object, base: float, key: str = "lr_by"
) -> dict[str, float] | None:
    """The value of train.lr_by or train.decay_by, checked, with numbers in place of
    factors.

    Args:
        setting: A mapping of patterns to numbers or to factors such as 16x.
        base: What the factors multiply: train.lr for lr_by.
        key: lr_by or decay_by.

    Returns:
        The numbers by pattern; None for an empty mapping, as if it were not there.

    Raises:
        UserError: For what is no mapping of names to numbers.
    """
    if not setting:
        return None
    if not isinstance(setting, dict):
        raise UserError(
            f"train.{key}={setting}: should be a mapping of names to rates, "
            "such as {B: 1e-2}"
        )
    numbers = dict[str, float]()
    for pattern, rate in setting.items():
        number = rate
        factor = re.fullmatch(r"(\d+(?:\.\d+)?)x", str(rate))
        if factor:
            number = float(factor[1]) * base
        if type(number) not in (int, float) or not 0 <= number < float("inf"):
            raise UserError(
                f"train.{key}.{pattern}={rate}: should be a number that is not "
                f"negative, or such as 16x, 16 times train.{MULTIPLIED_SETTINGS[key]}"
            )
        numbers[str(pattern)] = float(number)  # `1` and `1.0` are one run
    return numbers


def patterns_by_name(
    names: Iterable[str], rates: Mapping[str, float], key: str = "lr_by"
) -> dict[str, str]:
    """The pattern of `rates` that matches each parameter, by the parameter's name.
    Parameters that no pattern matches are left out.

    A pattern is the end of a name, from a dot on, and may have wildcards: B, query*.B,
    classifier.*.

    Args:
        names: The names of the trained parameters.
        rates: The value of lr_by or decay_by, as `read_rates` returns it.
        key: lr_by or decay_by, for messages.

    Raises:
        UserError: For a pattern that no name matches, and for two that match one name.
    """
    names = list(names)
    pattern_of_name = dict[str, str]()
    for pattern in rates:
        matches = [name for name in names if fnmatchcase(f".{name}", f"*.{pattern}")]
        if not matches:
            raise UserError(
                f"train.{key}: no trained parameter's name ends with {pattern!r}. "
                f"There are: {_listed_names(names)}"
            )
        for name in matches:
            if name in pattern_of_name:
                earlier = pattern_of_name[name]
                raise UserError(
                    f"train.{key}: {earlier!r} and {pattern!r} both name {name}"
                )
            pattern_of_name[name] = pattern
    return pattern_of_name


def _listed_names(names: Iterable[str]) -> str:
    """The names of parameters for a message, MAX_LISTED_NAMES at most. Those that differ
    in the number of their layer only are listed once, with a * for it."""
    with_wildcards = [re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names]
    distinct_names = list(dict.fromkeys(with_wildcards))
    text = ", ".join(distinct_names[:MAX_LISTED_NAMES]) or "none"
    if len(distinct_names) > MAX_LISTED_NAMES:
        text += f" and {len(distinct_names) - MAX_LISTED_NAMES} more"
    return text


# --- whether a method fits a model, and FLOPs: on torch's device meta, where tensors have
# shapes and no values. A method that computes on the weights (an SVD, for example) passes
# this check, and may fail in the run


#: Methods that need more of a model than linear layers. What peft's classes need differs;
#: ssf needs a patch embedding that it knows, lora_xs enough rows and columns.
CHECKED_METHODS = ("peft", "ssf", "lora_xs")
#: How many labels a skeleton has, by modality. The task's own number needs its data.
SKELETON_LABELS = {"text": 2, "image": 100, "text generation": 0}
#: Settings that FLOPs are counted with, by method: AdapterDrop counts with every
#: adapter, since it drops some at random.
COUNTED_SETTINGS = {"adapter": {"drop_layers": 0, "drop_per_batch": False}}


class SkeletonArguments(TypedDict):
    """What models.skeleton builds a model from."""

    model: ModelConfig
    num_labels: int
    folder: str | None


def method_problem(run: Run) -> str | None:
    """Why a run's method does not fit its model, in one line; None where it does, or
    where that is not known.

    This checks CHECKED_METHODS, and train.lr_by and decay_by, which name parameters.
    Other methods need linear layers only, and are not checked, since importing torch
    takes seconds."""
    train = run.config["train"]
    rates = {
        "lr_by": train.get("lr_by") or {},
        "decay_by": train.get("decay_by") or {},
    }
    if run.method["kind"] not in CHECKED_METHODS and not any(rates.values()):
        return None
    arguments = skeleton_arguments(run)
    if arguments is None:
        return None
    label = f"{run.row} on {run.config['model']['label']}"
    # As text, because the arguments of a cached function have to be hashable
    return _cached_problem(json.dumps([arguments, run.method, rates, label]))


def skeleton_arguments(run: Run) -> SkeletonArguments | None:
    """What models.skeleton builds a run's model from; None where its architecture is
    not known."""
    model = run.config["model"]
    try:
        folder = models.locate(model)
    except (UserError, DataError):  # the run itself raises it
        return None
    if folder is None and not model["architecture"]:
        return None
    return {
        "model": {
            "name": model["name"],
            "architecture": model["architecture"],
            "settings": model.get("settings"),
            "modality": model["modality"],
        },
        "num_labels": SKELETON_LABELS[model["modality"]],
        "folder": str(folder) if folder else None,
    }


@cache
def _cached_problem(content: str) -> str | None:
    """What `_find_problem` returns. It is kept in the user's cache, so that a later plan
    does not import torch, except for a class of the user's own, whose code may change."""
    arguments, method_settings, _, _ = json.loads(content)
    if "." in method_settings["kind"]:
        return _find_problem(content)
    architecture = _architecture_key(arguments)
    key = [content, *architecture, _hash_of_methods(), *_library_versions()]
    problem: str | None = cached_value("refusals", key, lambda: _find_problem(content))
    return problem


@cache
def _hash_of_methods() -> str:
    """A hash of the source files of vera, whose methods decide which models fit."""
    return files_sha256(*sorted((ROOT / "vera").rglob("*.py")))


@cache
def _library_versions() -> list[str]:
    """The versions of the libraries that decide what a cached value is."""
    return [version(name) for name in ("torch", "transformers", "peft")]


def _find_problem(content: str) -> str | None:
    """The message of the user's mistake that adapting a model without weights raises;
    None if it raises none. See `method_problem`. content: the JSON of SkeletonArguments,
    the method's settings, the values of lr_by and decay_by, and what the message begins
    with: the row and the model."""
    arguments, method_settings, rates, label = json.loads(content)
    try:
        method = method_of_settings(method_settings)
        network = adapt_quietly(models.skeleton(**arguments), method)
        names = list[str]()
        for parameters in method.parameter_groups(network).values():
            names += parameters
        for key, rates_of_key in rates.items():
            patterns_by_name(names, rates_of_key, key)
    except Exception as error:
        # Only a user's mistake counts. Other errors, such as that of an architecture
        # that transformers lacks, are raised again when the model is loaded. An error
        # that names the meta device would not occur on a real one
        if is_user_error(error) and "meta" not in f"{error} {error.__context__}":
            return f"{label}: {error}"
    return None


Network = TypeVar("Network", bound="nn.Module")


def adapt_quietly(network: Network, method: "vera.Method") -> Network:
    """Adapts a network, and returns it. Warnings are dropped: the run itself shows
    them."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        method.adapt(network)
    return network


def count_flops(
    run: Run, rows: int, length: int, predicted: int
) -> tuple[float, float] | None:
    """The FLOPs of a forward pass, and those of a training pass (forward and backward),
    as torch's counter counts them: matrix products, convolutions and attention, which are
    nearly all.

    The count is cached for the user, so that a later plan does not import torch.

    Args:
        run: The run whose model and method are counted.
        rows: Rows of the batch.
        length: Tokens of a row, padding included.
        predicted: For how many tokens at the end of a row a language model computes
            logits; 0 for all of them.

    Returns:
        Both counts; None where torch cannot count them.
    """
    arguments = skeleton_arguments(run)
    # what a method drops at random is counted
    settings = run.method | COUNTED_SETTINGS.get(run.method["kind"], {})
    if run.method["kind"] == "vera" and run.config["model"]["quantise"]:
        # 4-bit weights cannot take a merged adapter
        settings["path"] = "factor"
    size = (rows, length, predicted, run.config["task"].get("image_size"))

    def count() -> tuple[float, float] | None:
        if arguments is None:  # the architecture is not known
            return None
        # the errors of models and methods that need values, which the meta device lacks
        with contextlib.suppress(Exception):
            import torch
            from torch.utils.flop_counter import FlopCounterMode

            network = models.skeleton(**arguments).train()
            adapt_quietly(network, method_of_settings(settings))
            with FlopCounterMode(display=False) as counter:
                logits = run_forward(network, *size)
                forward = counter.get_total_flops()
                if logits.requires_grad:
                    torch.autograd.backward(logits.sum())
            return float(forward), float(counter.get_total_flops())
        return None

    key = [*_architecture_key(arguments), settings, size, *_library_versions()]
    counts = cached_value("flops", key, count)
    if not counts:
        return None
    forward, training = counts  # a list, if it comes from the cache
    return forward, training


def count_weights(run: Run) -> int:
    """How many weights a run's base model has. Call it only if `skeleton_arguments` knows
    the model's architecture. The count is cached for the user."""
    arguments = skeleton_arguments(run)
    assert arguments is not None

    def count() -> int:
        return int(models.skeleton(**arguments).num_parameters())

    key = [*_architecture_key(arguments), version("transformers")]
    return int(cached_value("weights", key, count))


def _architecture_key(arguments: SkeletonArguments | None) -> list[object]:
    """The part of a cache's key that stands for an architecture: the arguments, and the
    size and time of the folder's config.json, since another model may take the place of
    the one in the folder."""
    folder = arguments["folder"] if arguments else None
    return [arguments, stamp(Path(folder, "config.json")) if folder else None]


def run_forward(
    network: Any, rows: int, length: int, predicted: int, image_size: int | None
) -> "torch.Tensor":
    """The logits for random rows, on the network's device. image_size: pixels of an
    image's side, None for the model's own; the others are as for `count_flops`."""
    import torch

    config = network.config
    device = next(network.parameters()).device
    arguments = dict[str, Any]()
    if hasattr(config, "image_size"):
        side = image_size or models.image_side(config.model_type, config.image_size)
        arguments["pixel_values"] = torch.randn(rows, 3, side, side, device=device)
        # a ViT interpolates its positions for another size only if it is told to
        if config.model_type == "vit" and image_size:
            arguments["interpolate_pos_encoding"] = True
    else:
        size = (rows, length)
        # the first few ids are often those of padding and other special tokens
        ids = torch.randint(5, config.vocab_size, size, device=device)
        arguments["input_ids"] = ids
        if predicted:
            arguments["logits_to_keep"] = predicted
    logits: torch.Tensor = network(**arguments).logits
    return logits
