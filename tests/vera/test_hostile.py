"""Adapter files from strangers: each is refused in one line, in little time and memory, and the model is as
it was."""

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import struct
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

import vera
from vera.checked_file import LARGEST_HEADER

# --- files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The header table and the data of a file that loads."""
    path = tmp_path_factory.mktemp("good") / "adapter"
    model, method = tiny_model(), vera.VeRA(rank=4)
    method.adapt(model)
    vera.save(model, method, path)
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def build(table, data, zeros=0) -> bytes:
    """A file whose checksum is right, whatever it holds; also with zeros behind it, which take no memory."""
    text = table if isinstance(table, bytes) else json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = struct.pack("<Q", len(text)) + text + data
    found = re.search(rb'"sha256":"([0-9a-f]{64})"', content)
    if not found:
        return content
    start, end = content[: found.start(1)], content[found.end(1) :]
    digest = hashlib.sha256(start + b"0" * 64 + end)
    for at in range(0, zeros, 2**20):
        digest.update(bytes(min(2**20, zeros - at)))
    return start + digest.hexdigest().encode() + end


def changed(table, **words):
    """A copy of a header table, in whose own header some words are others."""
    table = json.loads(json.dumps(table))
    header = json.loads(table["__metadata__"]["header"]) | words
    table["__metadata__"] = {"header": json.dumps(header), "sha256": "0" * 64}
    return table


BOMB = "((([a-z0-9_.])+)+)+!"
LORA = [
    *({key: BOMB} for key in ("target_modules", "exclude_modules")),
    *({key: {BOMB: 8}} for key in ("rank_pattern", "alpha_pattern")),
    *({"layer_replication": value} for value in ([[0, 2]] * 10**5, [[0, 2]], [[0, 10**7]])),
    *({"r": 10**9}, {"r": 10**6}, {"lora_alpha": 10**30}, {"lora_dropout": float("nan")}),
    *({"trainable_token_indices": [0, 10**9]}, {"megatron_config": [1]}, {"init_lora_weights": "OLoRA"}),
    *({"modules_to_save": ["bert"]}, {"target_modules": ["query"] * 10**5}, {"target_modules": "a" * 10**6}),
    {"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": BOMB},
    {"base_model_name_or_path": "http://127.0.0.1:9/", "revision": "x"},
]
PEFT = [
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


def by_hand(good):
    table, data = good
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    for what, more in {
        "600,000 tensors": {f"t{i}": tensor for i in range(600_000)},
        "as many tensors as a header holds": {f"t{i}": tensor for i in range(100_000)},
        "a large header": {"z": "a" * LARGEST_HEADER},
        "a large shape": {"big": tensor | {"shape": [2**62, 0]}},
        "a long shape": {"big": tensor | {"shape": [10**4000] * 1000}},
        "a shape of words": {"big": tensor | {"shape": [["x"], 10**15]}},
        "a name of 1 MB": {"a" * 2**20: tensor},
    }.items():
        yield what, build(table | more, data)
    yield "data beyond the tensors", build(table, data + bytes(2**26))
    method = json.loads(table["__metadata__"]["header"])["method"]
    for words in (
        *({"rank": 10**9}, {"rank": 2048}, {"sites": ["query"] * 10**5}, {"sites": ["q" * 10**6]}),
        *({"vectors": ["b"] * 10**5}, {"kind": ["vera"] * 10**5}, {"kind": "__init__"}, {"self": 1}),
    ):
        yield f"method {words}"[:60], build(changed(table, method=method | words), data)
    for of in ({"kind": "lora", "rank": 10**9, "alpha": 10**30}, {"kind": "adapter", "bottleneck": 10**9}):
        yield of["kind"], build(changed(table, method=of), data)
    for name, config in PEFT:
        settings = {"kind": "peft", "config_class": name, "config": config, "sites": ["query"]}
        yield f"{name} {config}"[:90], build(changed(table, method=settings, fixed={}), data)


# --- what happens

pytestmark = [pytest.mark.properties, pytest.mark.slow]
#: Of the processor, within which a file is refused; a slow machine takes 2 seconds for the worst of them. How
#: much memory this process may take for it.
SECONDS, MEGABYTES = 8.0, 500


@contextlib.contextmanager
def limited():
    """No 2 GB more than now, and no minute: a file that exhausts or hangs fails its test."""

    def late(*_):
        raise TimeoutError

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**31, hard))
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(path, load=vera.load, megabytes=MEGABYTES):
    """The one line of a file that is refused in time and memory, with the model as it was."""
    model, start = tiny_model(), resource.getrusage(resource.RUSAGE_SELF)
    with limited(), pytest.raises(vera.AdapterError) as error:
        load(model, path)
    end = resource.getrusage(resource.RUSAGE_SELF)
    assert end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime < SECONDS
    assert end.ru_maxrss - start.ru_maxrss < 1024 * megabytes
    before, after = tiny_model().state_dict(), model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], p) for name, p in before.items())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_file_made_by_hand_hangs_exhausts_or_changes_anything(good, tmp_path):
    path, model = tmp_path / "adapter", tiny_model()
    path.write_bytes(build(*good))
    vera.load(model, path)
    vera.Peft("LoraConfig").adapt(tiny_model())  # peft is imported before the clock runs
    for name, content in by_hand(good):
        path.write_bytes(content)
        del content
        assert len(refused(path)) < 1100, name


def test_many_adapters_and_heads_are_compared_before_they_are_read(good, tmp_path):
    """A file of 256 MB, by its length (it takes no place on the disk): refused with none of it in memory."""
    table, data = good
    size = 2**28 - len(data)
    hole = {"dtype": "F32", "shape": [size // 4], "data_offsets": [len(data), len(data) + size]}
    big = table | {"big": hole}
    for made, load in (
        (big, vera.load),
        (big, lambda model, path: vera.Adapters(model).add("x", path)),
        (changed(big, format="vera-bench head 2"), vera.load_head),
    ):
        content = build(made, data, zeros=size)
        (tmp_path / "adapter").write_bytes(content)
        os.truncate(tmp_path / "adapter", len(content) + size)
        assert "Same base model" in refused(tmp_path / "adapter", load, 100)
