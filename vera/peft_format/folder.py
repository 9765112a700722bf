"""A folder in peft's format: adapter_config.json and adapter_model.safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vera.errors import AdapterError, first_line
from vera.sites import head_parameters, head_prefixes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
#: peft wraps the base model in two modules, whose names begin every tensor's name.
PREFIX = "base_model.model."
#: The key of this project's own settings in the metadata of the weights' file.
METADATA = "vera_bench"
#: peft's task types, by the end of the model class's name.
TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}

#: The content of an adapter_config.json, or settings of a method.
Config = dict[str, object]


@dataclass(frozen=True)
class PeftFolder:
    """What a folder holds. config: of adapter_config.json. tensors: by peft's names.
    settings: of our method, from the weights' metadata; None where somebody else wrote
    the folder, or where the method is one of peft's."""

    path: Path
    config: Config
    tensors: dict[str, Tensor]
    settings: Config | None


def read_folder(path: Path) -> PeftFolder:
    """Reads a folder, which may be a stranger's.

    Raises:
        AdapterError: A file is missing, damaged or may not be read.
    """
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise AdapterError(
                f"{path}: no {name}. Save a pickled one as safetensors first"
            )
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        # Raises PermissionError, where safetensors would say that there is no such file.
        open(path / WEIGHTS, "rb").close()
        with safe_open(path / WEIGHTS, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        settings = json.loads(metadata[METADATA]) if METADATA in metadata else None
        if not isinstance(config, dict) or not isinstance(settings, dict | None):
            raise ValueError("not a mapping")
    except PermissionError as error:
        raise AdapterError(
            f"{error.filename}: permission denied. Its owner can let you read it"
        ) from None
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise AdapterError(
            f"{path}: damaged ({first_line(error)}). Get the adapter again"
        ) from None
    if settings and settings.get("kind") == "peft":
        settings = None  # A method of peft's own: peft's configuration describes it.
    return PeftFolder(path, config, tensors, settings)


def write_folder(
    model: nn.Module,
    path: str | Path,
    config: Config,
    tensors: Mapping[str, Tensor],
    base: str | None,
    revision: str | None,
    settings: Mapping[str, object] | None = None,
) -> None:
    """Writes an adapter and the model's head.

    Args:
        model: The model that the adapter belongs to.
        path: The folder. It is made where it does not exist.
        config: The adapter's configuration, without the keys that depend on the model.
        tensors: The adapter's tensors, by peft's names.
        base: The base model's name on the hub, or None for the name that the model was
            loaded by.
        revision: The base model's revision on the hub.
        settings: The settings of this project's method, kept in the weights' metadata.
    """
    config = config | _keys_of_model(model)
    config["base_model_name_or_path"] = base or _base_name(model)
    config["revision"] = revision
    stored = dict(tensors)
    for name, parameter in head_parameters(model).items():
        stored[PREFIX + name] = parameter
    for name, tensor in stored.items():
        stored[name] = tensor.detach().clone().contiguous()
    metadata = {"format": "pt"}
    if settings:
        metadata[METADATA] = json.dumps(settings)
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / WEIGHTS).write_bytes(save(stored, metadata))
    text = json.dumps(config, indent=2, sort_keys=True)
    (path / CONFIG).write_text(text + "\n", encoding="utf-8")


def head_modules(model: nn.Module) -> list[str]:
    """The paths of the modules that make up the head and have parameters: peft's
    modules_to_save."""
    names = tuple(head_parameters(model))
    modules = []
    for prefix in head_prefixes(model):
        if any(name.startswith(prefix) for name in names):
            modules.append(prefix.removesuffix("."))
    return modules


def _keys_of_model(model: nn.Module) -> Config:
    """The keys of adapter_config.json by which peft and its AutoPeftModel load the base
    model and the head."""
    model_class = type(model)
    task_type = None
    for ending, candidate in TASK_TYPES.items():
        if model_class.__name__.endswith(ending):
            task_type = candidate
    auto_mapping = None
    if task_type is None and model_class.__module__.startswith("transformers."):
        # Without a task type, AutoPeftModel makes the base model by this.
        auto_mapping = {
            "base_model_class": model_class.__name__,
            "parent_library": model_class.__module__,
        }
    return {
        "task_type": task_type,
        "auto_mapping": auto_mapping,
        "modules_to_save": head_modules(model) or None,
        "inference_mode": True,
    }


def _base_name(model: nn.Module) -> str | None:
    """The name that a model was loaded by. Of a local folder only the last part, so
    that no path of this machine is published."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", None) or "")
    if not name:
        return None
    path = Path(name)
    if path.is_absolute() or name.count("/") > 1 or path.exists():
        return path.resolve().name or None
    return name
