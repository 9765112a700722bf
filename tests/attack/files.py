"""Files from strangers, by hand and changed at random: adapters, model folders, data
sets, texts, images."""

import hashlib
import json
import os
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pandas
import peft
import tiny
import torch
from attack.cases import CODE, HOSTILE, SHELL, Case
from bench import answer_row, jsonl, write_mt_bench
from PIL import Image
from support import write_adapter

import vera
from runs import models
from runs.config import expand
from runs.run.identity import model_content
from tasks import mt_bench
from tasks.e2e_metrics import read_hypotheses
from tasks.images.pixels import BadImageError, preprocessing
from vera.checked_file import LARGEST_HEADER

TARGETS, MODEL = HOSTILE["targets"], tiny.tiny_model()
BASE = vera.base_weights.untouched_base_names(MODEL)
#: What stands in a file's place and is none.
NO_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "nothing": lambda path: None,
}


def cases(home: Path, share: float = 1) -> Iterator[Case]:
    write_sound(at := home / "sound")
    words = {
        name: target.get("task", "task=rte model=encoder").split()
        for name, target in TARGETS.items()
    }
    configs = {
        name: expand([*of, "model.path=/x"])[0].config["task"]
        for name, of in words.items()
    }

    def case(
        name: str, kind: str, what: str, content: Any, expected: str, file: str = ""
    ) -> Case:
        target, file = TARGETS[name], file or TARGETS[name]["files"][0]

        def make(folder: Path) -> None:
            here = Path(shutil.copytree(at / name, folder / "here"))
            if callable(content):
                (here / file).unlink(missing_ok=True)
                content(here / file)
            elif content is not None:
                (here / file).write_bytes(content)

        act = lambda folder: read(target, configs[name], at, folder / "here")  # noqa: E731
        limits = {"known": (BadImageError, UnicodeDecodeError)} | target.get(
            "limits", {}
        )
        return Case(
            f"{target['kind']}, {kind}",
            f"{name}, {file}: {what}",
            act,
            make,
            expected,
            **limits,
        )

    for name, target in TARGETS.items():
        yield case(name, "sound", "as it is", None, "taken")
        for number, file in enumerate(target["files"]):
            sound, needed = (
                (at / name / file).read_bytes(),
                number < target.get("needed", 1),
            )
            for draw in range(round(target.get("draws", 30) * share)):
                changed = at_random(sound, Path(file).suffix)
                yield case(
                    name, "changed at random", f"{draw}", changed, "either", file
                )
            for what in NO_FILES if "stream" not in target else ():
                yield case(
                    name,
                    "no file",
                    what,
                    NO_FILES[what],
                    "refused" if needed else "either",
                    file,
                )
    yield from (case(*by) for by in by_hand(at))


def by_hand(at: Path) -> Iterator[tuple[str, str, str, Any, str, str]]:
    """The files of hostile.yaml, adapters, and pickles in the place of weights."""
    for entry in HOSTILE["files"]:
        name, file, times = entry["of"], entry["file"], entry.get("times", 1)
        sound = (
            (at / name / file).read_bytes() if (at / name / file).is_file() else b"{}"
        )
        sets = [entry["set"]] if "set" in entry else []
        sets += [
            {key: value}
            for key, value in product(entry.get("keys", []), entry.get("values", []))
        ]
        texts = [(values, json.dumps(json.loads(sound) | values)) for values in sets]
        texts += [(text, text * times) for text in entry.get("texts", [])]
        texts += [
            (text, sound.decode() + text * times) for text in entry.get("adds", [])
        ]
        for what, text in texts:
            content = text
            if isinstance(text, str):
                content = text.replace("{shell}", SHELL).encode(
                    entry.get("encoding", "utf-8")
                )
            yield (
                name,
                "by hand",
                f"{what!r:.60}",
                content,
                entry.get("expect", "refused"),
                file,
            )
    evil = type("Evil", (), {"__reduce__": lambda self: (exec, (CODE,))})
    for name, number in (
        ("adapter", 0),
        ("head", 0),
        ("peft's LoRA", 1),
        ("text model", 1),
    ):
        pickled = lambda path: torch.save({"x": evil()}, path)  # noqa: E731
        yield (
            name,
            "by hand",
            "a pickle",
            pickled,
            "refused",
            TARGETS[name]["files"][number],
        )
    sound, head = (
        (at / name / f"{name}.safetensors").read_bytes() for name in ("adapter", "head")
    )
    for name, what, content in adapters(sound, head):
        yield (
            name,
            "by hand",
            f"{what:.60}",
            content,
            "refused",
            TARGETS[name]["files"][0],
        )


def adapters(sound: bytes, head: bytes) -> Iterator[tuple[str, str, Any]]:
    """The target, what is odd, and the content, or what writes it. sound, head: files
    of an adapter and a head."""
    table, data = split(sound)
    header = json.loads(table["__metadata__"]["header"])
    tensor: dict[str, Any] = {
        "dtype": "F32",
        "shape": [0],
        "data_offsets": [len(data), len(data)],
    }

    def of(method: dict[str, Any]) -> bytes:
        changed = (
            header
            | {"method": method}
            | ({"fixed": {}} if method["kind"] == "peft" else {})
        )
        return build(
            table
            | {"__metadata__": {"header": json.dumps(changed), "sha256": "0" * 64}},
            data,
        )

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
    for settings in map(repeated, HOSTILE["methods"]):
        method = (
            settings
            if settings.get("kind") in ("lora", "adapter")
            else header["method"] | settings
        )
        yield "adapter", f"method {settings}", of(method)
    for name, configs in (HOSTILE["classes_of_peft"] | {"x" * 10**5: [{}]}).items():
        for config in map(repeated, configs):
            method = {
                "kind": "peft",
                "config_class": name,
                "config": config,
                "sites": ["query"],
            }
            yield "adapter", f"{name} {config}", of(method)
    for name, content in (
        ("adapter", sound),
        ("one of many adapters", sound),
        ("head", head),
    ):
        table, data = split(content)
        size = 2**29 - len(data)
        hole = {
            "dtype": "F32",
            "shape": [size // 4],
            "data_offsets": [len(data), len(data) + size],
        }

        made = build(table | {"big": hole}, data, size)
        yield name, "a tensor of half a gigabyte", partial(write_sparse, made, size)


def write_sparse(content: bytes, zeros: int, path: Path) -> None:
    path.write_bytes(content)
    os.truncate(path, len(content) + zeros)


def repeated(value: Any) -> Any:
    """A value of hostile.yaml with what it says to be repeated."""
    if isinstance(value, list):
        return [*map(repeated, value)]
    if isinstance(value, dict) and "times" in value:
        return value["of"] * value["times"]
    return (
        {key: repeated(of) for key, of in value.items()}
        if isinstance(value, dict)
        else value
    )


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header table and the data of a safetensors file."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def build(table: Any, data: bytes, zeros: int = 0) -> bytes:
    """A file whose checksum is right, whatever it holds; also with zeros behind it,
    which take no memory."""
    text = to_json(table)
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


def at_random(content: bytes, ending: str) -> bytes:
    """Sound content with one value of its JSON, or some of its bytes, changed."""
    if ending == ".json" and random.random() < 0.6:
        return to_json(value_changed(json.loads(content)))
    if ending == ".safetensors" and random.random() < 0.6:
        table, data = split(content)
        return build(value_changed(table), data)  # with the checksum of what it holds
    spot, other = sorted(random.sample(range(len(content)), 2))
    odd = random.choice(
        [
            *(text.encode() for text in HOSTILE["odd_bytes"]),
            b"\xff",
            random.randbytes(9),
        ]
    )
    ways = [content[:spot] + odd + content[spot + random.randrange(9) :]] * 3
    ways += [
        content[:spot] + content[other:],
        content[:spot],
        content[:other] + content[spot:],
    ]
    return random.choice(ways)


def to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def value_changed(whole: Any) -> Any:
    """JSON with one value of it odd or missing, at any depth, or under another name."""
    node, key = None, None
    while node is None or (
        isinstance(node[key], dict | list) and node[key] and random.random() < 0.7
    ):
        node = whole if node is None else node[key]
        key = random.choice(range(len(node)) if isinstance(node, list) else list(node))
    if isinstance(node[key], str) and node[key].startswith('{"'):  # an adapter's header
        node[key] = to_json(value_changed(json.loads(node[key]))).decode()
    elif random.random() < 0.2:
        del node[key]
    elif random.random() < 0.2 and isinstance(node, dict):
        node[
            random.choice(["", "..", "a" * 10**5, "base_model.model.x.lora_A.weight"])
        ] = node.pop(key)
    else:
        node[key] = random.choice(HOSTILE["values"])
    return whole


def write_sound(at: Path) -> None:
    """Sound files of each target in a folder of its name; beside a model lies code that
    nobody is to run."""
    for name, target in TARGETS.items():
        (at / name).mkdir(parents=True)
        if "sound" in target:
            (at / name / target["files"][0]).write_text(target["sound"])
        if "writer" in target:
            getattr(tiny, target["writer"])(at / name, *target.get("of", []))
        if "form" in target:
            Image.effect_noise((40, 30), 80).convert("RGB").save(
                at / name / "image.png", target["form"]
            )
    of_csv, of_parquet = (at / f"classes as {form}" for form in ("CSV", "parquet"))
    pandas.read_csv(of_csv / "train.csv").to_parquet(of_parquet / "train.parquet")
    for module, name in product(
        ("evil", "tokenization_evil", "__init__"), ("text model", "image model")
    ):
        (at / name / f"{module}.py").write_text(f"{CODE}\nclass Evil: pass\n")
    write_mt_bench(at / "MT-Bench")
    jsonl(
        at / "MT-Bench" / "answers.jsonl",
        [answer_row(n, ["a", "b"]) for n in (81, 101, 111, 151)],
    )
    for name in ("adapter", "one of many adapters", "head"):
        write_adapter(MODEL, vera.VeRA(rank=4), at / name)
    for name, of in (("LoRA", peft.LoraConfig), ("VeRA", peft.VeraConfig)):
        theirs = peft.get_peft_model(
            tiny.tiny_model(), of(r=4, target_modules=["query"])
        )
        tiny.shake(theirs)
        theirs.save_pretrained(at / f"peft's {name}")


def read(target: dict[str, Any], config: dict[str, Any], at: Path, here: Path) -> None:
    """Reads the folder of a target, as the project's commands do."""
    path, kind, load = (
        here / target["files"][0],
        target["kind"],
        resolve_name(target["read"]),
    )
    if kind == "images":
        found = preprocessing(at / "image model").read(path)
        if isinstance(found, BadImageError):
            raise found
        assert found.shape == (3, 16, 16)
    elif kind == "model folders":
        about = {
            "name": "mine",
            "label": "mine",
            "modality": target["modality"],
            "path": str(here),
        }
        about |= {"package": None, "sha256": None, "architecture": None}
        model_content(about)
        models.load(
            load(about), 2, "single_label_classification", modality=target["modality"]
        )
    elif kind == "MT-Bench":
        questions = load(here, "mt_bench")
        _, answers = mt_bench.read_answers(here / "answers.jsonl", questions)
        mt_bench.prompts(here, "mt_bench", questions, answers)
    elif "task" in target:
        place = (
            {"train_file": str(path)}
            if kind == "tables of texts"
            else {"data_dir": str(here)}
        )
        data = load(config | place)
        if kind == "image folders":
            data.prepare(preprocessing(at / "image model"))
    elif "adapters" in kind:
        attempt(load, here if kind == "adapters of peft" else path)
    else:
        load(path, 3) if load is read_hypotheses else load(path)


def attempt(load: Callable[[Any, Path], Any], path: Path) -> None:
    """Loads onto the copy of MODEL that a case has; its base weights stay, and of a
    model whose file is refused everything."""
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    base = vera.base_weights.base_fingerprint(MODEL)
    try:
        load(MODEL).add("x", path) if load is vera.Adapters else load(MODEL, path)
    except BaseException:
        after = MODEL.state_dict()
        same = after.keys() == before.keys() and all(
            torch.equal(after[n], x) for n, x in before.items()
        )
        assert same, "the model was changed, and then the file refused"
        raise
    adapted = vera.methods.adapted.adaptation(MODEL)
    if (
        load is vera.load_head
        or adapted is None
        or adapted.method.kind in ("full", "bitfit")
    ):
        return  # which train base weights
    adapted.method.unmerge(MODEL)
    after = vera.base_weights.base_fingerprint(MODEL, BASE)
    assert not {*after.items()} - {*base.items()}, (
        "the file was loaded, and the base weights are others"
    )
