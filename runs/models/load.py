"""Loads a model with its tokenizer or image preprocessing, or builds it without weights.
It also says how much memory a model takes, whatever the batch is."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.command.errors import UserError
from runs.record.configuration import Configuration, ModelConfig
from runs.record.text import megabytes
from tasks import DataError
from tasks.images import preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

#: What model.dtype may be, by torch's names.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
#: The class of transformers that loads a model, by modality.
AUTO_CLASSES = {
    "text": "AutoModelForSequenceClassification",
    "text generation": "AutoModelForCausalLM",
    "image": "AutoModelForImageClassification",
}


def load(
    folder: Path,
    num_labels: int,
    problem: str,
    settings: Mapping[str, Any] | None = None,
    modality: str = "text",
    nf4_compute_dtype: "torch.dtype | None" = None,
    device: "torch.device | None" = None,
    dtype: str = "fp32",
) -> tuple[Any, Any]:
    """A model, and its tokenizer or image preprocessing. The model has a new head,
    initialised from torch's seed, or is a language model with its own head.

    Args:
        folder: The folder of the model.
        num_labels: How many outputs the new head has; 0 for a language model.
        problem: transformers' problem_type of the new head.
        settings: Settings of the model's configuration, in the place of the pretrained
            ones.
        modality: "image" for an image model, whose preprocessing is returned in the
            place of a tokenizer.
        nf4_compute_dtype: The dtype that linear layers in 4 bit compute in (NF4 with
            double quantisation, as in QLoRA); None for no quantisation.
        device: Where a quantised model is loaded.
        dtype: A key of DTYPES, for all weights that are not quantised.

    Raises:
        UserError: Where weights are damaged or missing; transformers would initialise
            missing ones at random.
    """
    import transformers

    from vera.sites import head_parameters

    # transformers would warn that the head is new, which is intended
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    class_name = AUTO_CLASSES["text generation"]
    config_settings = dict(settings or {})
    arguments: dict[str, Any] = {"dtype": DTYPES[dtype], "use_safetensors": True}
    if num_labels:
        class_name = AUTO_CLASSES[modality]
        head = {"num_labels": num_labels, "problem_type": problem}
        config_settings = head | config_settings
        # the pretrained head may have another number of outputs
        arguments["ignore_mismatched_sizes"] = True
    if nf4_compute_dtype is not None:
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=nf4_compute_dtype,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
        )
        # directly on the device, since the weights in full precision may not fit
        if device is not None and device.type == "cuda":
            arguments["device_map"] = {"": device.index or 0}
    try:
        arguments["config"] = _read_config(folder, config_settings)
        auto_class = getattr(transformers, class_name)
        model, info = auto_class.from_pretrained(
            folder, **arguments, local_files_only=True, output_loading_info=True
        )
        if modality == "image":
            inputs: Any = preprocessing(folder)
        else:
            inputs = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True
            )
    except (DataError, UserError):
        raise
    except Exception as error:  # transformers raises many types for a damaged file
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        remedy = "Get the folder again"
        if settings:
            remedy = "Leave model.settings out, or get the folder again"
        raise UserError(f"{folder}: cannot be loaded ({reason}). {remedy}") from None
    if nf4_compute_dtype is not None:
        _set_dequantised_dtype(model, nf4_compute_dtype)
    not_loaded = set(info["missing_keys"])
    # each is a name, the shape in the file and the shape in the model
    not_loaded |= {name for name, *_ in info["mismatched_keys"]}
    # a pretrained head of the same size is loaded, but each run starts from a new one
    if modality == "image":
        _renew_head(model, folder, not_loaded)
    head_names = set(head_parameters(model)) if num_labels else set()
    missing = sorted(not_loaded - head_names)
    if missing:
        raise UserError(
            f"{folder}: the weights lack {missing[0]} ({len(missing)} in all). Another "
            "architecture?"
        )
    return model, inputs


def _set_dequantised_dtype(model: "nn.Module", dtype: "torch.dtype") -> None:
    """Makes the backward pass dequantise 4-bit weights directly to the compute dtype.
    By default they would be dequantised to float32 and then cast: the same bits, three
    times the memory traffic."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            state.dtype = dtype


def _read_config(folder: Path, settings: Mapping[str, Any]) -> Any:
    """A folder's configuration with these settings in the place of its own. A setting
    that is a mapping replaces the keys that it has. Raises UserError for an unknown
    setting."""
    from transformers import AutoConfig

    pretrained = AutoConfig.from_pretrained(folder, local_files_only=True)
    merged = dict(settings)
    for key, value in settings.items():
        if not hasattr(pretrained, key):
            raise UserError(
                f"model.settings.{key}: the configuration of {folder} has no such setting"
            )
        pretrained_value = getattr(pretrained, key)
        if isinstance(value, dict) and isinstance(pretrained_value, dict):
            merged[key] = pretrained_value | value
    config: Any = AutoConfig.from_pretrained(folder, **merged, local_files_only=True)
    # the file of a timm model has num_classes in model_args too, and transformers would
    # pass it to timm twice
    if config.model_type == "timm_wrapper":
        model_args = dict(config.model_args or {})
        model_args.pop("num_classes", None)
        config.model_args = model_args
    return config


def _renew_head(model: "PreTrainedModel", folder: Path, not_loaded: set[str]) -> None:
    """Initialises the parameters of an image model's head that were loaded, which
    happens where the pretrained head has as many classes: every run starts from a head
    of its own seed.

    Args:
        model: The model.
        folder: Its folder, for messages.
        not_loaded: The parameters that are new already.

    Raises:
        UserError: For a model that could not be trained, saved or evaluated correctly
            here.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    from vera.sites import head_parameters

    kind = type(model).__name__
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError(
            f"{folder}: a {kind} with batch norm, whose running statistics nothing here "
            "keeps"
        )
    names = head_parameters(model)
    if not names:
        raise UserError(
            f"{folder}: the head of a {kind} is not known here (vera/sites.py, "
            "head_prefixes)"
        )
    loaded_names = [name for name in names if name not in not_loaded]
    module_paths = [name.rpartition(".")[0] for name in loaded_names]
    for path in dict.fromkeys(module_paths):
        module = model.get_submodule(path)
        for parameter in module.parameters(recurse=False):
            # where this is true, transformers keeps the loaded values
            parameter._is_hf_initialized = False
        model._init_weights(module)


def skeleton(
    model: ModelConfig, num_labels: int, folder: str | Path | None = None
) -> Any:
    """The model that a configuration names, with a new head but without weights, on the
    meta device, for counting parameters.

    Args:
        model: Its configuration.
        num_labels: How many outputs its head has.
        folder: Where config.json is read; None for the architecture in conf/model.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    settings = {**(model.get("settings") or {}), "num_labels": num_labels}
    auto_class = getattr(transformers, AUTO_CLASSES[model["modality"]])
    with torch.device("meta"):
        if folder:
            config = _read_config(Path(folder), settings)
        else:
            architecture = model["architecture"] or {}
            config = transformers.AutoConfig.for_model(**architecture, **settings)
        return auto_class.from_config(config)


# --- how much memory a model takes, and whether it fits


#: Bytes of a 4-bit value with its share of the quantised block scales (QLoRA, Dettmers
#: et al. 2023).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
#: Bytes of a value, by model.dtype.
BYTES_BY_DTYPE = {"fp32": 4, "bf16": 2, "fp16": 2}
#: The precisions of two bytes.
HALF_PRECISIONS = ("bf16", "fp16")


def check_memory(folder: Path, config: Configuration, device: "torch.device") -> None:
    """Raises UserError for a model that cannot fit into the device's free memory. It is
    called before the model is loaded.

    Args:
        folder: The model's folder.
        config: The run's configuration.
        device: Where the model is loaded.
    """
    from safetensors import SafetensorError, safe_open

    weight_count = 0
    for path in folder.glob("model*.safetensors"):
        # A damaged file gets its message when it is loaded
        with (
            contextlib.suppress(SafetensorError, OSError),
            safe_open(path, "np") as file,
        ):
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                weight_count += math.prod(file.get_slice(name).get_shape())
    content, bytes_of_value = memory_of_weights(config)
    needed_bytes = weight_count * bytes_of_value
    free_bytes = free_memory(device)
    if needed_bytes <= free_bytes:
        return
    label = config["model"]["label"]
    choices = [*_smaller_weights(config), "a smaller model"]
    raise UserError(
        f"{label}: its {content} take {megabytes(needed_bytes)}, and {megabytes(free_bytes)} are "
        f"free on {device.type}. Choose {', '.join(choices)}, or another device "
        "(device=)"
    )


def _smaller_weights(config: Configuration) -> list[str]:
    """The overrides with which a run's base weights would take less memory; none where
    they are small already or nothing smaller works."""
    model = config["model"]
    if model["modality"] != "text generation" or model.get("quantise"):
        return []
    overrides = []
    if dtype_of(config) == "fp32":
        overrides.append("model.dtype=bf16")
    if config["method"]["kind"] != "full":
        overrides.append("model.quantise=nf4")
    return overrides


def dtype_of(config: Configuration) -> str:
    """The dtype of the base weights (model.dtype)."""
    # older records lack the key
    return str(config["model"].get("dtype") or "fp32")


def memory_of_weights(config: Configuration) -> tuple[str, float]:
    """What of a model is held in memory whatever the batch is.

    Returns:
        A description of it for a message, and its bytes for each weight of the model.
        Full fine-tuning also holds a gradient and two moments for each; activations are
        not counted.
    """
    bytes_of_value = bytes_of_weight(config)
    if config["method"]["kind"] == "full":
        return "weights, gradients and AdamW's moments", 4 * bytes_of_value
    return "weights alone", bytes_of_value


def bytes_of_weight(config: Configuration) -> float:
    """The bytes of a base weight."""
    if config["model"].get("quantise"):
        return NF4_BYTES
    return BYTES_BY_DTYPE[dtype_of(config)]


def computing_precision(config: Configuration) -> str:
    """The precision that most products are computed in: that of the base weights if they
    have two bytes, else train.precision."""
    dtype = dtype_of(config)
    if dtype in HALF_PRECISIONS:
        return dtype
    # older records lack the key
    return str(config["train"].get("precision", "fp32"))


def free_memory(device: "torch.device") -> float:
    """Bytes that are free on a device."""
    import psutil
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    return float(psutil.virtual_memory().available)
