"""Many adapters in one batch."""

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vera
from benchmarks.models import DEVICE, SHAPES, base_model, sharing, variant
from benchmarks.timing import Row, interleaved
from vera.methods.layers import changes

#: Numbers of adapters in memory, of which a batch uses 64. The last one only with full=true.
RESIDENT = (64, 1000, 10_000)


def serving(full: bool) -> list[Row]:
    """Short requests in a batch of 64, each for another adapter, beside the base model."""
    shape, count = SHAPES[0], RESIDENT[0]
    base = base_model(shape).eval()
    one, method = sharing(base), vera.VeRA(rank=shape.rank)
    method.adapt(one)
    with torch.no_grad():
        for vector in (vector for change in changes(one) for vector in change.parameters()):
            vector.normal_(0, 0.1)
    merged = copy.deepcopy(one)  # with weights of its own, for the others share theirs
    method.merge(merged)
    lora, with_lora = vera.LoRA(rank=8), sharing(base)
    lora.adapt(with_lora)
    many = sharing(base)
    adapters, names = vera.Adapters(many), [str(i) for i in range(count)]
    peft_vera, peft_lora = (of_peft(name, base, names) for name in ("peft VeRA", "peft LoRA r=8"))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "a"
        rows = [adapter_file(shape.label, f"LoRA r={lora.rank}", with_lora, lora, path)]
        rows += [adapter_file(shape.label, f"VeRA r={method.rank}", one, method, path)]
        for resident in RESIDENT if full else RESIDENT[:2]:
            for i in range(len(adapters), resident):
                adapters.add(str(i), path)
            for length in (16, 32, 64) if full else (32,):
                ids = torch.randint(3, shape.config["vocab_size"], (count, length), device=DEVICE)
                work = {
                    "base model": partial(base, ids),
                    f"VeRA, {count} of {resident:,} adapters": partial(many, ids, adapter_names=names),
                }
                if resident == count:
                    work |= {
                        "VeRA, one adapter, merged": partial(merged, ids),
                        "VeRA, one adapter, not merged": partial(one, ids),
                        f"peft LoRA r=8, mixed batch of {count}": partial(
                            peft_lora, ids, adapter_names=names
                        ),
                        f"peft VeRA, batch split over {count}": partial(split, peft_vera, ids),
                    }
                rows += interleaved(work, 5, {"part": "serving", "tokens": length, "resident": resident})
        size = sum(vector.untyped_storage().nbytes() for vector in adapters.vectors.values())
        return [
            *rows,
            {"part": "resident", "variant": f"{len(adapters):,} adapters in memory", "bytes": size},
        ]


def of_peft(name: str, base: nn.Module, adapters: list[str]) -> Any:
    """peft's model with more adapters like its own, of these names."""
    model: Any = variant(name, base, SHAPES[0])
    for adapter in adapters:
        model.add_adapter(adapter, model.peft_config["default"])
    return model.eval()


def split(model: Any, ids: Tensor) -> None:
    """A forward pass for each adapter, which is what peft offers for VeRA."""
    for i in range(len(ids)):
        model.set_adapter(str(i))
        model(ids[i : i + 1])


def adapter_file(label: str, variant: str, model: nn.Module, method: vera.Method, path: Path) -> Row:
    """Writes an adapter's file: its bytes, and how many parameters it is of."""
    size, count = vera.save(model, method, path), method.count(model)
    return {"part": "adapter file", "model": label, "variant": variant, "bytes": size, "parameters": count}
