"""Loads a model with its tokenizer or image preprocessing, or builds it without
weights; and how much memory it takes whatever the batch is."""

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
#: By modality: transformers' class. A text model with num_labels 0 is one of text
#: generation.
AUTO = {
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
    quantise: "torch.dtype | None" = None,
    device: "torch.device | None" = None,
    dtype: str = "fp32",
) -> tuple[Any, Any]:
    """The backbone and its tokenizer: with a new classification head, initialised from
    torch's seed, or for num_labels 0 a language model with its own head.

    settings: settings of the model's configuration that replace the pretrained ones.
    modality: for "image" the second value is the image preprocessing. quantise: the
    compute dtype of linear layers in 4 bit (NF4 with double quantisation, as in QLoRA),
    loaded on `device`; None: no quantisation. dtype: of DTYPES, of all other weights.

    Raises UserError where weights are damaged or missing (transformers would initialise
    them at random)."""
    import transformers

    from vera.sites import head_parameters

    # it reports the head, which is new on purpose
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    class_name = AUTO["text generation"]
    config_settings = dict(settings or {})
    arguments: dict[str, Any] = {"dtype": DTYPES[dtype], "use_safetensors": True}
    if num_labels:
        class_name = AUTO[modality]
        head = {"num_labels": num_labels, "problem_type": problem}
        config_settings = head | config_settings
        arguments["ignore_mismatched_sizes"] = True
    if quantise is not None:
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=quantise,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
        )
        # Loads on the device at once: weights in full precision may not fit
        if device is not None and device.type == "cuda":
            arguments["device_map"] = {"": device.index or 0}
    try:
        arguments["config"] = _config(folder, config_settings)
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
    if quantise:
        _dequantise_to(model, quantise)
    unfilled = set(info["missing_keys"])
    unfilled |= {key for key, *_ in info["mismatched_keys"]}
    if modality == "image":
        _renew_head(model, folder, unfilled)
    head_names = set(head_parameters(model)) if num_labels else set()
    lacking = sorted(unfilled - head_names)
    if lacking:
        raise UserError(
            f"{folder}: the weights lack {lacking[0]} ({len(lacking)} in all). Another "
            "architecture?"
        )
    return model, inputs


def _dequantise_to(model: "nn.Module", dtype: "torch.dtype") -> None:
    """Makes the backward pass dequantise 4-bit weights straight to the dtype that is
    computed in. Loaded as float32, they would be dequantised to that and then cast: the
    same bits, three times the memory traffic."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            state.dtype = dtype


def _config(folder: Path, settings: Mapping[str, Any]) -> Any:
    """A folder's configuration with these settings; mappings are merged. UserError for
    an unknown one."""
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
    # timm's file has the number of classes here as well, and transformers would pass it
    # twice
    if config.model_type == "timm_wrapper":
        arguments = dict(config.model_args or {})
        arguments.pop("num_classes", None)
        config.model_args = arguments
    return config


def _renew_head(model: "PreTrainedModel", folder: Path, unfilled: set[str]) -> None:
    """Initialises the head of an image model again where it was loaded, because its
    number of classes is the same: every run starts from a head of its own seed. Raises
    UserError for a model that could not be trained, saved or evaluated correctly
    here."""
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
    loaded_names = [name for name in names if name not in unfilled]
    paths = [name.rpartition(".")[0] for name in loaded_names]
    for path in dict.fromkeys(paths):
        module = model.get_submodule(path)
        for parameter in module.parameters(recurse=False):
            # else transformers does not initialise loaded values
            parameter._is_hf_initialized = False
        model._init_weights(module)


def skeleton(
    model: ModelConfig, num_labels: int, folder: str | Path | None = None
) -> Any:
    """The model without weights, on the meta device, for counting parameters.

    Args:
        folder: where its configuration is read; None: conf/model's architecture.
    """
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    settings = {**(model.get("settings") or {}), "num_labels": num_labels}
    auto_class = getattr(transformers, AUTO[model["modality"]])
    with torch.device("meta"):
        if folder:
            config = _config(Path(folder), settings)
        else:
            architecture = model["architecture"] or {}
            config = transformers.AutoConfig.for_model(**architecture, **settings)
        return auto_class.from_config(config)


# --- how much memory a model takes, and whether it fits


#: Bytes of a 4-bit value with its share of the quantised block scales (QLoRA, Dettmers
#: et al. 2023).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
#: Bytes of a value, by model.dtype.
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
#: The precisions of two bytes.
HALF = ("bf16", "fp16")


def check_memory(folder: Path, config: Configuration, device: "torch.device") -> None:
    """Raises UserError, before it is loaded, for a model that cannot fit into the
    device's free memory."""
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in folder.glob("model*.safetensors"):
        # A damaged file gets its message when it is loaded
        with (
            contextlib.suppress(SafetensorError, OSError),
            safe_open(path, "np") as file,
        ):
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                count += math.prod(file.get_slice(name).get_shape())
    content, bytes_of_value = memory_of_weights(config)
    needed, free = count * bytes_of_value, free_memory(device)
    if needed <= free:
        return
    label = config["model"]["label"]
    choices = [*_smaller_weights(config), "a smaller model"]
    raise UserError(
        f"{label}: its {content} take {megabytes(needed)}, and {megabytes(free)} are "
        f"free on {device.type}. Choose {', '.join(choices)}, or another device "
        "(device=)"
    )


def _smaller_weights(config: Configuration) -> list[str]:
    """The overrides with which a model's weights take less memory."""
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
    """model.dtype of a configuration, which may be from before there was that key."""
    return str(config["model"].get("dtype") or "fp32")


def memory_of_weights(config: Configuration) -> tuple[str, float]:
    """What of a model is held in memory whatever the batch is, in words, and its bytes
    for each value of the model. Where all is trained there are gradients and two
    moments beside the weights; activations are not counted."""
    bytes_of_value = bytes_of_weight(config)
    if config["method"]["kind"] == "full":
        return "weights, gradients and AdamW's moments", 4 * bytes_of_value
    return "weights alone", bytes_of_value


def bytes_of_weight(config: Configuration) -> float:
    """The bytes of a base weight."""
    if config["model"].get("quantise"):
        return NF4_BYTES
    return BYTES[dtype_of(config)]


def computing_precision(config: Configuration) -> str:
    """The precision of most products: that of base weights of two bytes, which each
    layer computes in; else train.precision."""
    dtype = dtype_of(config)
    if dtype in HALF:
        return dtype
    # records need not have the key
    return str(config["train"].get("precision", "fp32"))


def free_memory(device: "torch.device") -> float:
    """Bytes that are free on a device."""
    import psutil
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    return float(psutil.virtual_memory().available)
