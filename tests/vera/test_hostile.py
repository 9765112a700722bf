"""Adapter files from strangers: each is refused in one line, in little time and memory, and the model is as
it was."""

import hashlib
import json
import os
import re
import resource
import select
import signal
import struct
import time
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


def build(table, data, length=None) -> bytes:
    """A file whose checksum is right, whatever it holds."""
    text = table if isinstance(table, bytes) else json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    found = re.search(rb'"sha256":"([0-9a-f]{64})"', content)
    if not found:
        return content
    blank = content[: found.start(1)] + b"0" * 64 + content[found.end(1) :]
    return content[: found.start(1)] + hashlib.sha256(blank).hexdigest().encode() + content[found.end(1) :]


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
    yield "600,000 tensors", build(table | {f"t{i}": tensor for i in range(600_000)}, data)
    yield "as many tensors as a header holds", build(table | {f"t{i}": tensor for i in range(100_000)}, data)
    yield "a large header", build(table | {"z": "a" * LARGEST_HEADER}, data)
    yield "a deep header", build(changed(table) | {"z": None}, data)
    yield "a large shape", build(table | {"big": tensor | {"shape": [2**62, 0]}}, data)
    yield "a long shape", build(table | {"big": tensor | {"shape": [10**4000] * 1000}}, data)
    yield "a shape of words", build(table | {"big": tensor | {"shape": [["x"], 10**15]}}, data)
    yield "data beyond the tensors", build(table, data + bytes(2**26))
    yield "a name of 1 MB", build(table | {"a" * 2**20: tensor}, data)
    method = json.loads(table["__metadata__"]["header"])["method"]
    for words in (
        *({"d_init": value} for value in (10**30, 1e300)),
        *({"rank": value} for value in (10**30, 10**9, 2048)),
        *({"sites": value} for value in (["query"] * 10**5, ["q" * 10**6], "query")),
        *({"dropout": 10**30}, {"vectors": ["b"] * 10**5}),
        *({"projection_seed": 10**30}, {"kind": ["vera"] * 10**5}, {"kind": "__init__"}, {"self": 1}),
    ):
        yield f"method {words}"[:60], build(changed(table, method=method | words), data)
    yield "lora", build(changed(table, method={"kind": "lora", "rank": 10**9, "alpha": 10**30}), data)
    yield "bottleneck", build(changed(table, method={"kind": "adapter", "bottleneck": 10**9}), data)
    for name, config in PEFT:
        settings = {"kind": "peft", "config_class": name, "config": config, "sites": ["query"]}
        yield f"{name} {config}"[:90], build(changed(table, method=settings, fixed={}), data)


# --- what happens

pytestmark = [pytest.mark.properties, pytest.mark.usefixtures("process")]
#: Of the processor, within which a file is refused. A slow machine takes 2 seconds for the worst of them; a
#: hang has no end.
SECONDS, MEGABYTES = 8.0, 500


def attempt(content, path, load=vera.load, patience=60):
    """How a process of its own takes a file: what it raised, seconds of the processor, and MB that it grew
    by."""
    path.write_bytes(content)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # killed by the system where it hangs in C, computes or allocates without end
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))
        result = "HARNESS"
        try:
            model = tiny_model()
            before = {name: p.clone() for name, p in model.state_dict().items()}
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20
            start = time.process_time()
            try:
                load(model, path)
                result = "loaded"
            except vera.AdapterError as error:
                result = f"refused: {error}"
            except BaseException as error:
                result = f"{type(error).__name__}: {error}"
            seconds = time.process_time() - start
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - resident
            after = model.state_dict()
            same = after.keys() == before.keys() and all(torch.equal(after[n], p) for n, p in before.items())
            if not same and result != "loaded":
                result = f"the model changed; {result}"
            os.write(write, json.dumps([result[:4000], seconds, grown]).encode())
        finally:
            os._exit(0)
    os.close(write)
    ready = select.select([read], [], [], patience)[0]
    told = os.read(read, 2**16) if ready else b""
    os.close(read)
    if not told:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return json.loads(told) if told else ["it hangs, or was killed", patience, 0]


def refusal(name, told):
    """What is wrong with a refusal; None where nothing is."""
    result, seconds, grown = told
    line = result.startswith("refused: ") and "\n" not in result and len(result) < 1100
    return None if line and seconds < SECONDS and grown < MEGABYTES else f"{name}: {told}"[:600]


def test_no_file_made_by_hand_hangs_exhausts_or_changes_anything(good, tmp_path):
    assert attempt(build(*good), tmp_path / "adapter")[0] == "loaded"
    tiny = tiny_model()
    vera.Peft("LoraConfig").adapt(tiny)  # peft is imported before the clock runs
    problems = [refusal(name, attempt(content, tmp_path / "adapter")) for name, content in by_hand(good)]
    assert [p for p in problems if p] == []


def test_many_adapters_and_heads_are_compared_before_they_are_read(good, tmp_path):
    """A file of 256 MB, by its length (it takes no place on the disk): refused with none of it in memory."""
    table, data = good
    size = 2**28 - len(data)
    big = table | {
        "big": {"dtype": "F32", "shape": [size // 4], "data_offsets": [len(data), len(data) + size]}
    }
    head = changed(big, format="vera-bench head 2")

    def sparse(table):
        """Zeros behind a small file; hashed without them in memory."""
        content = build(table, data)
        place = re.search(rb'"sha256":"([0-9a-f]{64})"', content)
        digest = hashlib.sha256(content[: place.start(1)] + b"0" * 64 + content[place.end(1) :])
        for _ in range(size // 2**20):
            digest.update(bytes(2**20))
        digest.update(bytes(size % 2**20))
        return content[: place.start(1)] + digest.hexdigest().encode() + content[place.end(1) :]

    def longer(load):
        def grown(model, path):
            os.truncate(path, path.stat().st_size + size)
            load(model, path)

        return grown

    for content, load in (
        (sparse(big), vera.load),
        (sparse(big), lambda model, path: vera.Adapters(model).add("x", path)),
        (sparse(head), vera.load_head),
    ):
        result, _, grown = attempt(content, tmp_path / "adapter", longer(load))
        assert "Same base model" in result
        assert grown < 100
