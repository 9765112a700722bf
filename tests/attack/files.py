"""Files from strangers, by hand and changed at random: adapters, model folders, data sets, texts, images."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pandas
import peft
import tiny
import torch
from attack import adapters
from attack.adapters import build, split
from attack.cases import HOSTILE, Case, Home, WrongError
from bench import answer_row, jsonl, write_mt_bench
from PIL import Image

import vera
from runs import models
from runs.config import expand
from runs.identity import model_content
from tasks import mt_bench
from tasks.e2e_metrics import read_hypotheses
from tasks.images.pixels import BadImageError, preprocessing

TARGETS, MODEL = HOSTILE["targets"], tiny.tiny_model()
BASE = vera.base_weights.base_names(MODEL)
#: What stands in a file's place and is none.
NO_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "nothing": lambda path: None,
}


def cases(home: Home) -> Iterator[Case]:
    at = home.folder("sound")
    write_sound(at, home.code)
    words = {name: target.get("task", "task=rte model=encoder").split() for name, target in TARGETS.items()}
    configs = {name: expand([*of, "model.path=/x"])[0].config["task"] for name, of in words.items()}

    def case(name: str, kind: str, what: str, content: Any, expected: str, file: str = "") -> Case:
        target, file = TARGETS[name], file or TARGETS[name]["files"][0]

        def make(folder: Path) -> None:
            here = Path(shutil.copytree(at / name, folder / "here"))
            if callable(content):
                (here / file).unlink(missing_ok=True)
                content(here / file)
            elif content is not None:
                (here / file).write_bytes(content)

        act = lambda folder: read(target, configs[name], at, folder / "here")  # noqa: E731
        limits = {"known": (BadImageError, UnicodeDecodeError)} | target.get("limits", {})
        return Case(f"{target['kind']}, {kind}", f"{name}, {file}: {what}", act, make, expected, **limits)

    for name, target in TARGETS.items():
        dice = home.dice(name)
        yield case(name, "sound", "as it is", None, "taken")
        for number, file in enumerate(target["files"]):
            sound, needed = (at / name / file).read_bytes(), number < target.get("needed", 1)
            for draw in range(target.get("draws", 30)):
                changed = at_random(sound, Path(file).suffix, dice)
                yield case(name, "changed at random", f"{draw}", changed, "either", file)
            for what in NO_FILES if "stream" not in target else ():
                yield case(name, "no file", what, NO_FILES[what], "refused" if needed else "either", file)
    yield from (case(*by) for by in by_hand(home, at))


def by_hand(home: Home, at: Path) -> Iterator[tuple[str, str, str, Any, str, str]]:
    """The files of hostile.yaml and adapters.py, and pickles in the place of weights."""
    for entry in HOSTILE["files"]:
        name, file, times = entry["of"], entry["file"], entry.get("times", 1)
        sound = (at / name / file).read_bytes() if (at / name / file).is_file() else b"{}"
        sets = [entry["set"]] if "set" in entry else []
        sets += [{key: value} for key, value in product(entry.get("keys", []), entry.get("values", []))]
        texts = [(values, json.dumps(json.loads(sound) | values)) for values in sets]
        texts += [(text, text * times) for text in entry.get("texts", [])]
        texts += [(text, sound.decode() + text * times) for text in entry.get("adds", [])]
        for what, text in texts:
            content = text
            if isinstance(text, str):
                content = text.replace("{shell}", home.shell).encode(entry.get("encoding", "utf-8"))
            yield name, "by hand", f"{what!r:.60}", content, entry.get("expect", "refused"), file
    evil = type("Evil", (), {"__reduce__": lambda self: (exec, (home.code,))})
    for name, number in (("adapter", 0), ("head", 0), ("peft's LoRA", 1), ("text model", 1)):
        pickled = lambda path: torch.save({"x": evil()}, path)  # noqa: E731
        yield name, "by hand", "a pickle", pickled, "refused", TARGETS[name]["files"][number]
    sound, head = ((at / name / f"{name}.safetensors").read_bytes() for name in ("adapter", "head"))
    for name, what, content in adapters.by_hand(sound, head):
        yield name, "by hand", f"{what:.60}", content, "refused", TARGETS[name]["files"][0]


def at_random(content: bytes, ending: str, dice: random.Random) -> bytes:
    """Sound content with one value of its JSON, or some of its bytes, changed."""
    if ending == ".json" and dice.random() < 0.6:
        return value_changed(json.loads(content), dice)
    if ending == ".safetensors" and dice.random() < 0.6:
        table, data = split(content)
        return build(value_changed(table, dice), data)  # with the checksum of what it holds
    spot, other = sorted(dice.sample(range(len(content)), 2))
    odd = dice.choice([*(text.encode() for text in HOSTILE["odd_bytes"]), b"\xff", dice.randbytes(9)])
    ways = [content[:spot] + odd + content[spot + dice.randrange(9) :]] * 3
    ways += [content[:spot] + content[other:], content[:spot], content[:other] + content[spot:]]
    return dice.choice(ways)


def value_changed(whole: Any, dice: random.Random) -> bytes:
    """JSON with one value of it odd or missing, at any depth, or under another name."""
    node, key = None, None
    while node is None or (isinstance(node[key], dict | list) and node[key] and dice.random() < 0.7):
        node = whole if node is None else node[key]
        key = dice.choice(range(len(node)) if isinstance(node, list) else list(node))
    if isinstance(node[key], str) and node[key].startswith('{"'):  # an adapter's header
        node[key] = value_changed(json.loads(node[key]), dice).decode()
    elif dice.random() < 0.2:
        del node[key]
    elif dice.random() < 0.2 and isinstance(node, dict):
        node[dice.choice(["", "..", "a" * 10**5, "base_model.model.x.lora_A.weight"])] = node.pop(key)
    else:
        node[key] = dice.choice(HOSTILE["values"])
    return json.dumps(whole, separators=(",", ":")).encode()


def write_sound(at: Path, code: str) -> None:
    """Sound files of each target in a folder of its name; beside a model lies code that nobody is to run."""
    for name, target in TARGETS.items():
        (at / name).mkdir()
        if "sound" in target:
            (at / name / target["files"][0]).write_text(target["sound"])
        if "writer" in target:
            getattr(tiny, target["writer"])(at / name, *target.get("of", []))
        if "form" in target:
            Image.effect_noise((40, 30), 80).convert("RGB").save(at / name / "image.png", target["form"])
    table = pandas.read_csv(at / "classes as CSV" / "train.csv")
    table.to_parquet(at / "classes as parquet" / "train.parquet")
    for module, name in product(("evil", "tokenization_evil", "__init__"), ("text model", "image model")):
        (at / name / f"{module}.py").write_text(f"{code}\nclass Evil: pass\n")
    write_mt_bench(at / "MT-Bench")
    jsonl(at / "MT-Bench" / "answers.jsonl", [answer_row(n, ["a", "b"]) for n in (81, 101, 111, 151)])
    model, method = tiny.tiny_model(), vera.VeRA(rank=4)
    method.adapt(model)
    vera.save_head(model, at / "head" / "head.safetensors")
    for name in ("adapter", "one of many adapters"):
        vera.save(model, method, at / name / "adapter.safetensors")
    for name, of in (("LoRA", peft.LoraConfig), ("VeRA", peft.VeraConfig)):
        theirs = peft.get_peft_model(tiny.tiny_model(), of(r=4, target_modules=["query"]))
        tiny.shake(theirs)
        theirs.save_pretrained(at / f"peft's {name}")


def read(target: dict[str, Any], config: dict[str, Any], at: Path, here: Path) -> None:
    """Reads the folder of a target, as the project's commands do."""
    path, kind, load = here / target["files"][0], target["kind"], resolve_name(target["read"])
    if kind == "images":
        found = preprocessing(at / "image model").read(path)
        if isinstance(found, BadImageError):
            raise found
        assert found.shape == (3, 16, 16)
    elif kind == "model folders":
        about = {"name": "mine", "label": "mine", "modality": target["modality"], "path": str(here)}
        about |= {"package": None, "sha256": None, "architecture": None}
        model_content(about)
        models.load(load(about), 2, "single_label_classification", modality=target["modality"])
    elif kind == "MT-Bench":
        questions = load(here, "mt_bench")
        _, answers = mt_bench.read_answers(here / "answers.jsonl", questions)
        mt_bench.prompts(here, "mt_bench", questions, answers)
    elif "task" in target:
        place = {"train_file": str(path)} if kind == "tables of texts" else {"data_dir": str(here)}
        data = load(config | place)
        if kind == "image folders":
            data.prepare(preprocessing(at / "image model"))
    elif "adapters" in kind:
        attempt(load, here if kind == "adapters of peft" else path)
    else:
        load(path)


def add(model: Any, path: Path) -> None:
    vera.Adapters(model).add("x", path)


def hypotheses(path: Path) -> None:
    read_hypotheses(path, 3)


def attempt(load: Callable[[Any, Path], Any], path: Path) -> None:
    """Loads; and says where the base weights are others than before, or anything of a model whose file was
    refused."""
    model = MODEL  # this process has its own copy of it
    before = {name: value.clone() for name, value in model.state_dict().items()}
    base = vera.base_weights.base_fingerprint(model)
    try:
        load(model, path)
    except BaseException:
        after = model.state_dict()
        if after.keys() != before.keys() or any(not torch.equal(after[n], x) for n, x in before.items()):
            raise WrongError("the model was changed, and then the file refused") from None
        raise
    adapted = vera.methods.adapted.adaptation(model)
    if load is vera.load_head or adapted is None or adapted.method.kind in ("full", "bitfit"):
        return  # which train base weights
    adapted.method.unmerge(model)
    after = vera.base_weights.base_fingerprint(model, BASE)
    if any(after[name] != value for name, value in base.items() if name in after):
        raise WrongError("the file was loaded, and the base weights are others")
