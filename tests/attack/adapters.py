"""Adapter files made by hand: their checksum is right, whatever they hold."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vera.checked_file import LARGEST_HEADER

BOMB = "((([a-z0-9_.])+)+)+!"
#: Settings of methods in a header.
METHODS: list[dict[str, Any]] = [
    *({"rank": 10**9}, {"rank": 2048}, {"sites": ["query"] * 10**5}, {"sites": ["q" * 10**6]}),
    *({"vectors": ["b"] * 10**5}, {"kind": ["vera"] * 10**5}, {"kind": "__init__"}, {"self": 1}),
    *({"kind": "lora", "rank": 10**9, "alpha": 10**30}, {"kind": "adapter", "bottleneck": 10**9}),
]
LORA: list[dict[str, Any]] = [
    *({key: BOMB} for key in ("target_modules", "exclude_modules")),
    *({key: {BOMB: 8}} for key in ("rank_pattern", "alpha_pattern")),
    *({"layer_replication": value} for value in ([[0, 2]] * 10**5, [[0, 2]], [[0, 10**7]])),
    *({"r": 10**9}, {"r": 10**6}, {"lora_alpha": 10**30}, {"lora_dropout": float("nan")}),
    *({"trainable_token_indices": [0, 10**9]}, {"megatron_config": [1]}, {"init_lora_weights": "OLoRA"}),
    *({"modules_to_save": ["bert"]}, {"target_modules": ["query"] * 10**5}, {"target_modules": "a" * 10**6}),
    {"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": BOMB},
    {"base_model_name_or_path": "http://127.0.0.1:9/", "revision": "x"},
]
#: Classes of peft in a header, with their settings.
PEFT: list[tuple[str, dict[str, Any]]] = [
    *(("LoraConfig", config) for config in LORA),
    *(("IA3Config", {"feedforward_modules": BOMB}), ("OSFConfig", {"rank_pattern": {BOMB: 2}})),
    *((name, {"r": 10**8}) for name in ("LoHaConfig", "LoKrConfig", "HRAConfig", "VeraConfig")),
    *(("VBLoRAConfig", {"num_vectors": 10**8}), ("FourierFTConfig", {"n_frequency": 10**12})),
    ("AdaLoraConfig", {"init_r": 10**8}),
    ("UniLoraConfig", {"r": 10**7}),  # one that looks at values: installed on a copy with weights
    ("LilyConfig", {"num_B": 10**6}),  # loops of Python's, with some of torch's inside
    ("PeanutConfig", {"depth": 10**6}),
    ("PsoftConfig", {"psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 10**9}),
    ("BOFTConfig", {"boft_n_butterfly_factor": 10**3}),
    *((name, {}) for name in ("os.system", "PeftModel", "x" * 10**5)),
]


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header table and the data of a safetensors file."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def build(table: Any, data: bytes, zeros: int = 0) -> bytes:
    """A file whose checksum is right, whatever it holds; also with zeros behind it, which take no memory."""
    text = table if isinstance(table, bytes) else json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = struct.pack("<Q", len(text)) + text + data
    found = re.search(rb'"sha256":"([0-9a-f]{64})"', content)
    if not found:
        return content
    start, end = content[: found.start(1)], content[found.end(1) :]
    digest = hashlib.sha256(start + b"0" * 64 + end)
    for _ in range(0, zeros, 2**20):
        digest.update(bytes(2**20))
    return start + digest.hexdigest().encode() + end


def by_hand(sound: bytes, head: bytes) -> Iterator[tuple[str, str, Any]]:
    """The target, what is odd, and the content, or what writes it. sound, head: files of an adapter and a
    head."""
    table, data = split(sound)
    header = json.loads(table["__metadata__"]["header"])
    tensor: dict[str, Any] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}

    def of(method: dict[str, Any]) -> bytes:
        changed = header | {"method": method} | ({"fixed": {}} if method["kind"] == "peft" else {})
        return build(table | {"__metadata__": {"header": json.dumps(changed), "sha256": "0" * 64}}, data)

    for what, more in {
        "600,000 tensors": {f"t{i}": tensor for i in range(600_000)},
        "as many tensors as a header holds": {f"t{i}": tensor for i in range(100_000)},
        "a large header": {"z": "a" * LARGEST_HEADER},
        "a large shape": {"big": tensor | {"shape": [2**62, 0]}},
        "a long shape": {"big": tensor | {"shape": [10**4000] * 1000}},
        "a shape of words": {"big": tensor | {"shape": [["x"], 10**15]}},
        "a name of 1 MB": {"a" * 2**20: tensor},
    }.items():
        yield "adapter", what, build(table | more, data)
    yield "adapter", "data beyond the tensors", build(table, data + bytes(2**26))
    for settings in METHODS:
        method = settings if settings.get("kind") in ("lora", "adapter") else header["method"] | settings
        yield "adapter", f"method {settings}", of(method)
    for name, config in PEFT:
        method = {"kind": "peft", "config_class": name, "config": config, "sites": ["query"]}
        yield "adapter", f"{name} {config}", of(method)
    for name, content in (("adapter", sound), ("one of many adapters", sound), ("head", head)):
        table, data = split(content)
        size = 2**30 - len(data)
        hole = {"dtype": "F32", "shape": [size // 4], "data_offsets": [len(data), len(data) + size]}

        def sparse(
            path: Path, made: bytes = build(table | {"big": hole}, data, size), size: int = size
        ) -> None:
            path.write_bytes(made)
            os.truncate(path, len(made) + size)

        yield name, "a tensor of a gigabyte", sparse
