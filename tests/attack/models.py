"""Model folders from strangers: configurations, weights, indices, tokenizers and code that lie in them."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tiny import save_tiny, save_vit

from attack.cases import Case, Home
from runs import models
from runs.identity import model_content

INDEX = "model.safetensors.index.json"
BOMB = "((([a-z0-9_.])+)+)+!"
EITHER, REFUSED = "either", "refused"


def cases(home: Home) -> Iterator[Case]:
    sound = {"text": save_tiny(home.place() / "model", "bert"), "image": save_vit(home.place() / "model")}
    for modality, folder in sound.items():
        yield _case(home, "sound folders", modality, folder, lambda place: None, "taken", modality)
    for name, change, expected in by_hand(home):
        yield _case(home, "folders made by hand", name, sound["text"], change, expected)
    for name, values in IMAGES.items():
        change = _json("preprocessor_config.json", values)
        yield _case(home, "how images are prepared", name, sound["image"], change, EITHER, "image")
    dice = home.dice("models")
    for i in range(25 if home.short else 150):
        modality = dice.choice(list(sound))
        files = sorted(path.name for path in sound[modality].iterdir() if path.is_file())
        name, how = dice.choice(files), dice.randrange(3)
        content = (sound[modality] / name).read_bytes()
        change = (
            _json(name, {dice.choice(list(json.loads(content))): dice.choice(VALUES)})
            if name.endswith(".json")
            else None
        )
        if how or change is None:
            spot = dice.randrange(len(content))
            wrong = (
                content[:spot] + dice.randbytes(dice.randrange(1, 9)) + content[spot + dice.randrange(9) :]
            )
            change = _file(name, wrong if how == 1 else content[:spot])
        yield _case(
            home,
            "folders with one file changed at random",
            f"{i}, {name}",
            sound[modality],
            change,
            EITHER,
            modality,
        )


def _case(
    home: Home,
    kind: str,
    name: str,
    sound: Path,
    change: Callable[[Path], object],
    expected: str,
    modality: str = "text",
) -> Case:
    folder = home.place()
    place = Path(shutil.copytree(sound, folder / "model"))
    change(place)
    about = {
        "name": "mine",
        "label": "mine",
        "modality": modality,
        "path": str(place),
        "package": None,
        "sha256": None,
    }
    about |= {"architecture": None}

    def act() -> None:
        found = models.fetch(about)
        model_content(about)
        models.load(found, 2, "single_label_classification", modality=modality)

    return Case(kind, name, act, expected, folder=folder, seconds=15, megabytes=600)


def _json(name: str, values: dict[str, Any]) -> Callable[[Path], object]:
    """Changes what a JSON file says."""

    def change(place: Path) -> None:
        path = place / name
        old = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps((old if isinstance(old, dict) else {}) | values))

    return change


def _file(name: str, content: bytes | str) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda place: (place / name).write_bytes(raw)


def _code(home: Home, **config: Any) -> Callable[[Path], object]:
    """Code beside the weights, and a configuration that names it."""

    def change(place: Path) -> None:
        for name in (
            "evil.py",
            "modeling_evil.py",
            "tokenization_evil.py",
            "setup.py",
            "__init__.py",
            "conftest.py",
        ):
            (place / name).write_text(f"{home.code}\nclass Evil: pass\n")
        _json("config.json", config.get("model", {}))(place)
        _json("tokenizer_config.json", config.get("tokenizer", {}))(place)

    return change


def _pickle(home: Home, name: str, keep: bool, index: str | None = None) -> Callable[[Path], object]:
    class Evil:
        def __reduce__(self) -> Any:
            return exec, (home.code,)

    def change(place: Path) -> None:
        torch.save({"x": Evil()}, place / name)
        if not keep:
            (place / "model.safetensors").unlink()
        if index is not None:
            (place / INDEX).write_text(index)

    return change


def _odd(name: str, how: Callable[[Path], object]) -> Callable[[Path], object]:
    """A file in whose place something else lies."""

    def change(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        how(place / name)

    return change


def by_hand(home: Home) -> Iterator[tuple[str, Callable[[Path], object], str]]:
    auto = {
        "AutoConfig": "evil.Evil",
        "AutoModelForSequenceClassification": "evil.Evil",
        "AutoModel": "evil.Evil",
    }
    hub = {key: f"evil/evil--{value}" for key, value in auto.items()}
    yield "auto_map", _code(home, model={"auto_map": auto, "trust_remote_code": True}), EITHER
    yield (
        "auto_map of an unknown model_type",
        _code(home, model={"auto_map": auto, "model_type": "evil"}),
        REFUSED,
    )
    yield "auto_map to the hub", _code(home, model={"auto_map": hub, "model_type": "evil"}), REFUSED
    tokenizer = {
        "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
        "tokenizer_class": "Evil",
        "trust_remote_code": True,
    }
    yield "a tokenizer's code", _code(home, tokenizer=tokenizer), EITHER
    yield (
        "custom_generate",
        _code(home, model={"custom_generate": "evil.py", "custom_pipelines": {"x": {"impl": "evil.E"}}}),
        EITHER,
    )
    yield "a pickle beside the weights", _pickle(home, "pytorch_model.bin", True), EITHER
    yield "a pickle in the weights' place", _pickle(home, "pytorch_model.bin", False), REFUSED
    yield "a pickle named model.safetensors", _pickle(home, "model.safetensors", True), REFUSED
    for name in (
        "pytorch_model.bin",
        "../../../etc/passwd",
        "../model.safetensors",
        "/etc/passwd",
        "model-2.safetensors",
        "",
    ):
        index = json.dumps({"metadata": {}, "weight_map": {"a": name}})
        yield f"an index that names {name!r}", _pickle(home, "pytorch_model.bin", False, index), REFUSED
        yield f"an index that names {name!r}, beside weights", _file(INDEX, index), REFUSED
    for text in (
        "[]",
        "[" * 200_000,
        "",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
    ):
        yield f"an index {text[:25]!r}", _file(INDEX, text), REFUSED
    for kernel in ("evil/evil", "evil/evil@main:f", "flash_attention_2", "paged|sdpa", {"": "evil/evil"}):
        for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
            yield f"{key}={kernel!r}", _json("config.json", {key: kernel}), REFUSED
    for key in ("num_hidden_layers", "n_layer", "num_layers", "depth"):
        for value in (10**6, 10**30, 1e308):
            yield f"{key}={value:g}", _json("config.json", {key: value}), REFUSED
    for key in (
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
        "num_attention_heads",
    ):
        for value in (10**9, -1, 0, "x", None, 1.5, [1]):
            yield f"{key}={value!r}", _json("config.json", {key: value}), EITHER
    for text in (
        "[" * 200_000,
        "[]",
        "",
        "null",
        '"x"',
        "NaN",
        '{"a": ' * 5000,
        "{}",
        b"\xff\xfe",
        b"\0" * 100,
    ):
        yield f"config.json {text[:12]!r}", _file("config.json", text), REFUSED
    deep = json.dumps({"x": None}).replace("null", "[" * 30 + "]" * 30)
    yield "config.json, deep inside", _file("config.json", deep), REFUSED
    yield "transformers_weights", _json("config.json", {"transformers_weights": "adapter.bin"}), REFUSED
    for key, value in (
        ("pretrained_cfg", {"file": "/etc/passwd"}),
        ("checkpoint_path", "/etc/passwd"),
        ("cache_dir", "/"),
    ):
        yield f"model_args.{key}", _json("config.json", {"model_args": {key: value}}), REFUSED
    yield "architecture of the hub", _json("config.json", {"architecture": "hf-hub:evil/vit"}), REFUSED
    for key in (
        "quantization_config",
        "dtype",
        "torch_dtype",
        "problem_type",
        "hidden_act",
        "id2label",
        "pruned_heads",
    ):
        for value in ({"quant_method": "evil"}, "evil.Evil", "os.system", 7):
            yield f"{key}={value!r}", _json("config.json", {key: value}), EITHER
    yield "adapter_config.json beside it", _file("adapter_config.json", "{}"), REFUSED
    yield "a directory named adapter_config.json", _odd("adapter_config.json", Path.mkdir), REFUSED
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    weights = {
        "a header of 2^40": struct.pack("<Q", 2**40) + b"{}",
        "a shape of 2^40": struct.pack("<Q", len(header)) + header,
        "empty": b"",
        "a deep header": struct.pack("<Q", 100_000) + b"[" * 100_000,
    }
    for name, content in weights.items():
        yield f"weights: {name}", _file("model.safetensors", content), REFUSED
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        yield f"{name} is a folder", _odd(name, Path.mkdir), EITHER if name == "tokenizer.json" else REFUSED
        yield f"{name} is a link to itself", _odd(name, lambda path: path.symlink_to(path)), EITHER
        yield f"{name} is a pipe", _odd(name, os.mkfifo), EITHER if name == "tokenizer.json" else REFUSED
    for what in ({"pattern": {"Regex": BOMB}}, {"pattern": {"Regex": "(" * 5000}}, {"pattern": 7}):
        splitter = {"type": "Split", "behavior": "Isolated", "invert": False} | what
        yield (
            f"a tokenizer's expression {str(what)[:30]}",
            _json("tokenizer.json", {"pre_tokenizer": splitter}),
            EITHER,
        )
    for text in (
        "{}",
        "[]",
        "",
        "[" * 100_000,
        '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
    ):
        yield f"tokenizer.json {text[:25]!r}", _file("tokenizer.json", text), EITHER
        yield f"tokenizer_config.json {text[:25]!r}", _file("tokenizer_config.json", text), EITHER
        yield f"special_tokens_map.json {text[:25]!r}", _file("special_tokens_map.json", text), EITHER


VALUES = [
    None,
    -1,
    0,
    10**9,
    10**30,
    1e308,
    True,
    "x",
    "",
    [],
    {},
    [[]],
    "../../x",
    float("nan"),
    {"a": 1},
    "os.system",
    BOMB,
]
IMAGES: dict[str, dict[str, Any]] = {
    "an unknown kind": {"image_processor_type": "Evil"},
    "auto_map": {"auto_map": {"AutoImageProcessor": "evil.Evil"}},
    "size of 10^9": {"size": {"height": 10**9, "width": 10**9}},
    "size of 0": {"size": {"height": 0, "width": 0}},
    "size negative": {"size": {"height": -1, "width": -1}},
    "size a text": {"size": "x"},
    "size null": {"size": None},
    "size without width": {"size": {"height": 16}},
    "mean NaN": {"image_mean": [float("nan")] * 3},
    "mean of one": {"image_mean": [0.5]},
    "mean of texts": {"image_mean": ["a", "b", "c"]},
    "std 0": {"image_std": [0.0, 0.0, 0.0]},
    "resample 99": {"resample": 99},
    "resample a text": {"resample": "x"},
    "rescale factor a text": {"rescale_factor": "x"},
}
