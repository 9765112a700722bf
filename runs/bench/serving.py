"""Many adapters in one batch."""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vera
from runs.bench.models import DEVICE, SHAPES, Row, base_model, sharing
from runs.bench.training import timed
from vera.methods.layers import changes

#: Numbers of adapters in memory, of which a batch uses 64. The last one only with full=true.
RESIDENT = (64, 1000, 10_000)


def split(model: Any, ids: Tensor) -> None:
    """A forward pass for each adapter, which is what peft offers for VeRA."""
    for i in range(len(ids)):
        model.set_adapter(str(i))
        model(ids[i : i + 1])


def _file(label: str, variant: str, model: nn.Module, method: vera.Method, path: Path) -> Row:
    """Writes an adapter's file: its bytes, and how many parameters it is of."""
    size, count = vera.save(model, method, path), method.count(model)
    return {"part": "adapter file", "model": label, "variant": variant, "bytes": size, "parameters": count}


def _lora_file(base: nn.Module, label: str, path: Path) -> Row:
    """That of LoRA at table 2's rank."""
    method, model = vera.LoRA(rank=8), sharing(base)
    method.adapt(model)
    return _file(label, f"LoRA r={method.rank}", model, method, path)


def serving(full: bool) -> list[Row]:
    """Short requests in a batch of 64, each for another adapter, beside the base model."""
    import peft

    shape, rows = SHAPES[0], []
    base, count = base_model(shape).eval(), RESIDENT[0]
    one, method = sharing(base), vera.VeRA(rank=shape.rank)
    method.adapt(one)
    with torch.no_grad():
        for change in changes(one):
            for vector in change.parameters():
                vector.normal_(0, 0.1)
    merged = copy.deepcopy(one)  # with weights of its own, for the others share theirs
    method.merge(merged)
    many = sharing(base)
    adapters = vera.Adapters(many)
    # Without a task type: peft's mixed batch fails with RoBERTa's head
    targets: Any = {"target_modules": ["query", "value"]}
    configs = {"VeRA": peft.VeraConfig(r=shape.rank, **targets), "LoRA": peft.LoraConfig(r=8, **targets)}
    of_peft: dict[str, Any] = {}
    for name, config in configs.items():
        of_peft[name] = peft.get_peft_model(sharing(base), config, "0")
        for i in range(1, count):
            of_peft[name].add_adapter(str(i), config)
        of_peft[name].eval()
    names = [str(i) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        rows += [
            _file(shape.label, f"VeRA r={method.rank}", one, method, path),
            _lora_file(base, shape.label, Path(folder) / "lora"),
        ]
        for name in names:
            adapters.add(name, path)
        lengths = (16, 32, 64) if full else (32,)
        for resident in RESIDENT if full else RESIDENT[:2]:
            for i in range(len(adapters), resident):
                adapters.add(str(i), path)
            for length in lengths:
                ids = torch.randint(3, shape.config["vocab_size"], (count, length), device=DEVICE)
                work: dict[str, Callable[[], Any]] = {
                    "base model": partial(base, ids),
                    f"VeRA, {count} of {resident:,} adapters": partial(many, ids, adapter_names=names),
                }
                if resident == count:
                    mixed = partial(of_peft["LoRA"], ids, adapter_names=names)
                    work |= {
                        "VeRA, one adapter, merged": partial(merged, ids),
                        "VeRA, one adapter, not merged": partial(one, ids),
                        f"peft LoRA r=8, mixed batch of {count}": mixed,
                        f"peft VeRA, batch split over {count}": partial(split, of_peft["VeRA"], ids),
                    }
                about = {"part": "serving", "tokens": length, "resident": resident}
                with torch.no_grad():
                    rows += timed(work, 5, f"{resident} adapters, {length} tokens", about)
        size = sum(vector.untyped_storage().nbytes() for vector in adapters.vectors.values())
        rows.append({"part": "resident", "variant": f"{len(adapters):,} adapters in memory", "bytes": size})
    return rows
