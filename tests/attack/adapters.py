"""Adapter files and folders of peft from strangers, at random and by hand."""

import contextlib
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from tiny import shake, tiny_model

import vera
from attack.cases import Case, Home, WrongError

sys.path.append(str(Path(__file__).parents[1] / "vera"))
from test_hostile import ODD, at_random, build, by_hand

MODEL = tiny_model()
BASE = vera.base_weights.base_names(MODEL)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def cases(home: Home) -> Iterator[Case]:
    dice, number = home.dice("adapters"), 60 if home.short else 300
    model, method = tiny_model(), vera.VeRA(rank=4)
    method.adapt(model)
    place = home.place()
    vera.save(model, method, place / "adapter")
    vera.save_head(model, place / "head")
    good = split((place / "adapter").read_bytes())
    yield _file(home, "a sound file", "as saved", build(*good), vera.load, "taken")
    for name, content in by_hand(good):
        yield _file(home, "files made by hand", name, content, vera.load)
    for i in range(number):
        how = [vera.load, add_to_many][i % 3 == 2]
        yield _file(
            home, "files with one thing changed at random", f"{i}", at_random(good, dice), how, "either"
        )
    for i in range(number // 3):
        text = build(*good)
        for _ in range(dice.randrange(2, 5)):
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
                text = at_random(split(text), dice)  # where the last change left a table to change again
        yield _file(home, "files with several things changed at random", f"{i}", text, vera.load, "either")
    head = (place / "head").read_bytes()
    for i in range(number // 6):
        spot = dice.randrange(len(head))
        wrong = head[:spot] + dice.randbytes(dice.randrange(1, 40)) + head[spot + dice.randrange(40) :]
        yield _file(home, "heads with bytes changed at random", f"{i}", wrong, vera.load_head, "either")
    yield from peft_folders(home)


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The table and the data of a file."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def add_to_many(model: Any, path: Path) -> None:
    vera.Adapters(model).add("x", path)


def _file(
    home: Home,
    kind: str,
    name: str,
    content: bytes,
    load: Callable[[Any, Path], Any],
    expected: str = "refused",
) -> Case:
    path = home.file("adapter.safetensors", content)
    return Case(kind, name, lambda: attempt(load, path), expected, folder=path.parent, seconds=8)


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
        if after.keys() != before.keys() or not all(
            torch.equal(after[name], value) for name, value in before.items()
        ):
            raise WrongError("the model was changed, and then the file refused") from None
        raise
    after = base_of(model)
    if any(
        after[name] != value for name, value in base.items() if name in after and load is not vera.load_head
    ):
        raise WrongError("the file was loaded, and the base weights are others")


def base_of(model: Any) -> dict[str, str]:
    """The fingerprint of the base weights as they are now, whatever is installed on them."""
    adapted = vera.methods.adapted.adaptation(model)
    if adapted is None or adapted.method.kind in ("full", "bitfit"):  # which train them
        return {}
    adapted.method.unmerge(model)
    return vera.base_weights.base_fingerprint(model, BASE)


# --- peft's folders


KEYS = [
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "bias",
    "init_lora_weights",
    "layer_replication",
    "rank_pattern",
]
KEYS += [
    "task_type",
    "base_model_name_or_path",
    "auto_mapping",
    "projection_prng_key",
    "d_initial",
    "vera_dropout",
]
BOMB = "((([a-z0-9_.])+)+)+!"
VALUES = [
    *ODD,
    BOMB,
    {BOMB: 8},
    "OLoRA",
    "pissa",
    "eva",
    "all",
    [[0, 2]] * 10**5,
    "LORA",
    "VERA",
    "http://127.0.0.1:9/",
    2**64,
]


def peft_folders(home: Home) -> Iterator[Case]:
    """Folders of peft's LoRA and VeRA: its configuration, names, shapes and values changed."""
    dice, sources = home.dice("peft"), []
    for config in (
        peft.LoraConfig(r=4, target_modules=["query", "value"]),
        peft.VeraConfig(r=4, target_modules=["query"]),
    ):
        theirs = peft.get_peft_model(tiny_model(), config)
        shake(theirs)
        sources.append(home.place())
        theirs.save_pretrained(sources[-1])
    loaded = [
        (json.loads((f / CONFIG).read_text()), load_file(f / WEIGHTS), (f / WEIGHTS).read_bytes())
        for f in sources
    ]
    for i, (config, tensors, _) in enumerate(loaded):
        yield _folder(home, "sound folders of peft", f"{i}", config, tensors, "taken")
    every = [(kind, key, value) for kind in range(2) for key in KEYS for value in VALUES]
    for kind, key, value in dice.sample(every, 60 if home.short else 300):
        config, tensors, _ = loaded[kind]
        name = f"{config['peft_type']} with {key}={value!r:.60}"
        yield _folder(
            home, "configurations of peft, one value changed", name, config | {key: value}, tensors, "either"
        )
    for i in range(30 if home.short else 120):
        config, tensors, raw = loaded[i % 2]
        tensors, name, how = dict(tensors), dice.choice(list(tensors)), dice.randrange(6)
        if how == 0:
            tensors[dice.choice(["", "..", "base_model.model.x.lora_A.weight", "a" * 10**5, name + ".x"])] = (
                tensors.pop(name)
            )
        elif how == 1:
            tensors[name] = torch.full(dice.choice([(), (1,), (4, 4), (10**6,), (0, 32)]), 1.0)
        elif how == 2:
            tensors[name] = tensors[name] * dice.choice([float("nan"), float("inf"), 1e38])
        elif how == 3:
            tensors[name] = tensors[name].to(
                dice.choice([torch.int64, torch.float64, torch.bool, torch.float8_e4m3fn])
            )
        elif how == 4:
            del tensors[name]
        else:
            spot = dice.randrange(len(raw))
            raw = raw[:spot] + dice.randbytes(8) + raw[spot + dice.randrange(16) :]
        content = raw if how == 5 else tensors
        yield _folder(home, "tensors of peft changed at random", f"{i}, way {how}", config, content, "either")
    for text in ("[" * 200_000, "", "[]", "NaN", '"x"', '{"peft_type": "LORA"}', "\ud800"):
        yield _folder(home, "configurations of peft that are none", text[:20], text, loaded[0][1])
    yield from _edited(home)
    yield from _in_the_way(home)


def _edited(home: Home) -> Iterator[Case]:
    """This project's own exports, a value of adapter_config.json changed: refused where peft obeys it."""
    for method, others in (
        (vera.LoRA(rank=4), ["lora_alpha", "use_rslora"]),
        (vera.VeRA(rank=4), ["d_initial"]),
    ):
        model, source = tiny_model(), home.place()
        method.adapt(model)
        vera.export_peft(model, source)
        config, raw = json.loads((source / CONFIG).read_text()), (source / WEIGHTS).read_bytes()
        yield _folder(home, "sound folders of peft", f"own {method.kind}", config, raw, "taken")
        keys = ["peft_type", "r", "target_modules", "bias", "rank_pattern", "layers_to_transform", *others]
        every = [(key, value) for key in keys for value in VALUES]
        for key, value in home.some(f"edited {method.kind}", every, 20):
            same = config.get(key) == value or (key not in config and value in (None, [], {}))
            name = f"{method.kind} with {key}={value!r:.60}"
            expected = "taken" if same else "refused"
            yield _folder(home, "own exports, one value edited", name, config | {key: value}, raw, expected)


def _folder(home: Home, kind: str, name: str, config: Any, tensors: Any, expected: str = "refused") -> Case:
    folder = home.place()
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    if isinstance(tensors, bytes):
        (folder / WEIGHTS).write_bytes(tensors)
    else:
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    return Case(kind, name, lambda: attempt(vera.import_peft, folder), expected, folder=folder, seconds=8)


def _in_the_way(home: Home) -> Iterator[Case]:
    """Pickles with code in them, where weights are expected."""

    class Evil:
        def __reduce__(self) -> Any:
            return exec, (home.code,)

    for name, load in (("adapter_model.bin", vera.import_peft), ("adapter.safetensors", vera.load)):
        folder = home.place()
        torch.save({"x": Evil()}, folder / name)
        (folder / CONFIG).write_text('{"peft_type": "LORA", "r": 4}')
        path = folder if load is vera.import_peft else folder / name
        yield Case(
            "pickles in the place of weights",
            name,
            lambda load=load, path=path: attempt(load, path),
            folder=folder,
        )
