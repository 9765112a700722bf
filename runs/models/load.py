"""Loads a model with its tokenizer or image preprocessing, or builds it without
weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.command.errors import UserError
from runs.models.settings import ModelSettings
from tasks import DataError
from tasks.images import preprocessing

if TYPE_CHECKING:
    import torch

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
    given: dict[str, Any] = {"dtype": DTYPES[dtype], "use_safetensors": True}
    given |= {"ignore_mismatched_sizes": True} if num_labels else {}
    if quantise is not None:
        how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        nf4 = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=quantise, **how
        )
        given["quantization_config"] = nf4
        # Loads on the device at once: weights in full precision may not fit
        if device is not None and device.type == "cuda":
            given["device_map"] = {"": device.index or 0}
    kind = modality if num_labels else "text generation"
    try:
        head = {"num_labels": num_labels, "problem_type": problem} if num_labels else {}
        given["config"] = _config(folder, head | dict(settings or {}))
        cls = getattr(transformers, AUTO[kind])
        model, info = cls.from_pretrained(
            folder, **given, local_files_only=True, output_loading_info=True
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
        why = " ".join(str(error).split())[:300] or type(error).__name__
        mend = (
            "Leave model.settings out, or get the folder again"
            if settings
            else "Get the folder again"
        )
        raise UserError(f"{folder}: cannot be loaded ({why}). {mend}") from None
    for module in model.modules() if quantise else ():
        # The backward pass dequantises weights straight to the dtype that is computed
        # in. Loaded as float32, they would be dequantised to that and then cast: the
        # same bits, three times the memory traffic
        if (
            state := getattr(getattr(module, "weight", None), "quant_state", None)
        ) is not None:
            state.dtype = quantise
    unfilled = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if modality == "image":
        _renew_head(model, folder, unfilled)
    if lacking := sorted(unfilled - set(head_parameters(model) if num_labels else ())):
        more = f"the weights lack {lacking[0]} ({len(lacking)} in all). Another architecture?"
        raise UserError(f"{folder}: {more}")
    return model, inputs


def _config(folder: Path, settings: Mapping[str, Any]) -> Any:
    """A folder's configuration with these settings; mappings are merged. UserError for
    an unknown one."""
    from transformers import AutoConfig

    pretrained, own = (
        AutoConfig.from_pretrained(folder, local_files_only=True),
        dict(settings),
    )
    for key, value in settings.items():
        if not hasattr(pretrained, key):
            raise UserError(
                f"model.settings.{key}: the configuration of {folder} has no such setting"
            )
        if isinstance(value, dict) and isinstance(getattr(pretrained, key), dict):
            own[key] = getattr(pretrained, key) | value
    config: Any = AutoConfig.from_pretrained(folder, **own, local_files_only=True)
    # timm's file has the number of classes here as well, and transformers would pass it
    # twice
    if config.model_type == "timm_wrapper":
        config.model_args = {
            k: v for k, v in (config.model_args or {}).items() if k != "num_classes"
        }
    return config


def _renew_head(model: Any, folder: Path, unfilled: set[str]) -> None:
    """Initialises the head of an image model again where it was loaded, because its
    number of classes is the same: every run starts from a head of its own seed. Raises
    UserError for a model that could not be trained, saved or evaluated correctly
    here."""
    from torch.nn.modules.batchnorm import _BatchNorm

    from vera.sites import head_parameters

    kind, names = type(model).__name__, head_parameters(model)
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        why = f"a {kind} with batch norm, whose running statistics nothing here keeps"
        raise UserError(f"{folder}: {why}")
    if not names:
        raise UserError(
            f"{folder}: the head of a {kind} is not known here (vera/sites.py, head_prefixes)"
        )
    for path in dict.fromkeys(
        name.rpartition(".")[0] for name in names if name not in unfilled
    ):
        module = model.get_submodule(path)
        for parameter in module.parameters(recurse=False):
            # else transformers does not initialise loaded values
            parameter._is_hf_initialized = False
        model._init_weights(module)


def skeleton(model: ModelSettings, num_labels: int, folder: Path | None = None) -> Any:
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
            config = _config(folder, settings)
        else:
            architecture = model["architecture"] or {}
            config = transformers.AutoConfig.for_model(**architecture, **settings)
        return auto_class.from_config(config)
