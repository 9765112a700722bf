"""Answers: many adapters in one batch; and beam search for E2E, beside transformers'
own."""

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vera
from benchmarks.training import (
    DEVICE,
    SHAPES,
    Row,
    base_model,
    interleaved,
    sharing,
    variant,
)
from tasks.beam import BeamSearch, beam_search, transformers_search
from vera.methods.layers import layer_changes

#: Numbers of adapters in memory, of which a batch uses 64. The last one only with
#: full=true.
RESIDENT = (64, 1000, 10_000)


def serving(full: bool) -> list[Row]:
    """Short requests in a batch of 64, each for another adapter, beside the base
    model."""
    shape, count = SHAPES[0], RESIDENT[0]
    base = base_model(shape).eval()
    one, method = sharing(base), vera.VeRA(rank=shape.rank)
    method.adapt(one)
    with torch.no_grad():
        for vector in (
            vector for change in layer_changes(one) for vector in change.parameters()
        ):
            vector.normal_(0, 0.1)
    merged = copy.deepcopy(one)  # with weights of its own, for the others share theirs
    method.merge(merged)
    lora, with_lora = vera.LoRA(rank=8), sharing(base)
    lora.adapt(with_lora)
    many = sharing(base)
    adapters, names = vera.Adapters(many), [str(i) for i in range(count)]
    peft_vera, peft_lora = (
        of_peft(name, base, names) for name in ("peft VeRA", "peft LoRA r=8")
    )
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "a"
        rows: list[Row] = []
        saved: list[tuple[str, nn.Module, vera.Method]] = [
            (f"LoRA r={lora.rank}", with_lora, lora)
        ]
        for label, model, by in [*saved, (f"VeRA r={method.rank}", one, method)]:
            about: Row = {
                "part": "adapter file",
                "model": shape.label,
                "variant": label,
            }
            rows.append(
                about
                | {"bytes": vera.save(model, by, path), "parameters": by.count(model)}
            )
        for resident in RESIDENT if full else RESIDENT[:2]:
            for i in range(len(adapters), resident):
                adapters.add(str(i), path)
            for length in (16, 32, 64) if full else (32,):
                ids = torch.randint(
                    3, shape.config["vocab_size"], (count, length), device=DEVICE
                )
                work = {
                    "base model": partial(base, ids),
                    f"VeRA, {count} of {resident:,} adapters": partial(
                        many, ids, adapter_names=names
                    ),
                }
                if resident == count:
                    mixed = partial(peft_lora, ids, adapter_names=names)
                    work |= {
                        "VeRA, one adapter, merged": partial(merged, ids),
                        "VeRA, one adapter, not merged": partial(one, ids),
                        f"peft LoRA r=8, mixed batch of {count}": mixed,
                        f"peft VeRA, batch split over {count}": partial(
                            split, peft_vera, ids
                        ),
                    }
                rows += interleaved(
                    work, 5, {"part": "serving", "tokens": length, "resident": resident}
                )
        size = sum(
            vector.untyped_storage().nbytes() for vector in adapters.vectors.values()
        )
        there = f"{len(adapters):,} adapters in memory"
        return [*rows, {"part": "resident", "variant": there, "bytes": size}]


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


# --- beam search

GPT2: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
MODELS = {
    "GPT-2 small": GPT2,
    "GPT-2 medium": GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16},
}


def decoding(full: bool) -> list[Row]:
    """Beam search from prompts of 20 to 50 tokens, with 10 beams, and without an end
    token, so that every search takes all steps."""
    import transformers

    rows, steps, count = [], 64 if full else 32, 8 if full else 4
    for label, shape in MODELS.items() if full else list(MODELS.items())[:1]:
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**shape)
        model = transformers.AutoModelForCausalLM.from_config(config).to(DEVICE).eval()
        lengths = torch.randint(20, 50, (count,)).tolist()
        prompts = [
            torch.randint(3, shape["vocab_size"], (n,)).tolist() for n in lengths
        ]
        # no token of the vocabulary
        search = BeamSearch(10, (0.9,), 4, steps, ends=(shape["vocab_size"],))
        work = {
            "model.generate": partial(transformers_search, model, prompts, search),
            "this project's search": partial(beam_search, model, prompts, search),
        }
        rows += interleaved(
            work,
            3,
            {"part": "decoding", "model": label, "items": count, "steps": steps},
        )
    return rows
