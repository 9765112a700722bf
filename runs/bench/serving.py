"""Many adapters in one batch."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vera
from runs.bench.models import DEVICE, SHAPES, Row, base_model, sharing
from runs.bench.training import interleaved
from vera.methods.layers import changes

#: How many adapters are resident where 64 of them are asked; the last only with full=true.
RESIDENT = (64, 1000, 10_000)


def split(model: Any, ids: Tensor) -> None:
    """peft's way for VeRA: a forward pass for each adapter."""
    for i in range(len(ids)):
        model.set_adapter(str(i))
        model(ids[i : i + 1])


def serving(full: bool) -> list[Row]:
    """Short requests in one batch of 64, each for another adapter, against the base model."""
    import peft

    shape, rows = SHAPES[0], []
    base, count = base_model(shape).eval(), RESIDENT[0]
    one, method = sharing(base), vera.VeRA(rank=shape.rank)
    method.adapt(one)
    with torch.no_grad():
        for change in changes(one):
            for vector in change.parameters():
                vector.normal_(0, 0.1)
    many = sharing(base)
    adapters = vera.Adapters(many)
    # No task type: peft's mixed batch cannot do with RoBERTa's head
    sites: Any = {"target_modules": ["query", "value"]}
    theirs: dict[str, Any] = {}
    for name, config in (
        ("VeRA", peft.VeraConfig(r=shape.rank, **sites)),
        ("LoRA", peft.LoraConfig(r=8, **sites)),
    ):
        theirs[name] = peft.get_peft_model(sharing(base), config, "0")
        for i in range(1, count):
            theirs[name].add_adapter(str(i), config)
        theirs[name].eval()
    names = [str(i) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        vera.save(one, method, path)
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
                    work |= {
                        "VeRA, one adapter, not merged": partial(one, ids),
                        f"peft LoRA r=8, mixed batch of {count}": partial(
                            theirs["LoRA"], ids, adapter_names=names
                        ),
                        f"peft VeRA, batch split over {count}": partial(split, theirs["VeRA"], ids),
                    }
                with torch.no_grad():
                    interleaved(work, 1, "warming up")
                    seconds = interleaved(work, 5, f"{resident} adapters, {length} tokens")
                rows += [
                    {"part": "serving", "tokens": length, "resident": resident, "variant": name, "seconds": s}
                    for name, s in seconds.items()
                ]
        held = sum(vector.untyped_storage().nbytes() for vector in adapters.vectors.values())
        rows.append({"part": "resident", "variant": f"{len(adapters):,} adapters in memory", "bytes": held})
    return rows
