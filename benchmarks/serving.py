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
    share_weights,
    time_in_turns,
    variant,
)
from tasks.beam import BeamSearch, beam_search, transformers_search
from vera.methods.layers import layer_changes

#: How many adapters are in memory. A batch uses the first number of them. The last
#: number is measured only with full=true.
RESIDENT = (64, 1000, 10_000)


def serving(full: bool) -> list[Row]:
    """Short requests in a batch of 64, each for another adapter, beside the base
    model."""
    shape, count = SHAPES[0], RESIDENT[0]
    base = base_model(shape).eval()
    method = vera.VeRA(rank=shape.rank)
    with_vera = share_weights(base)
    method.adapt(with_vera)
    with torch.no_grad():
        for change in layer_changes(with_vera):
            for vector in change.parameters():
                vector.normal_(0, 0.1)
    merged = copy.deepcopy(with_vera)  # has its own weights: the others share theirs
    method.merge(merged)
    lora = vera.LoRA(rank=8)
    with_lora = share_weights(base)
    lora.adapt(with_lora)
    with_many = share_weights(base)
    adapters = vera.Adapters(with_many)
    names = [str(i) for i in range(count)]
    peft_vera = peft_model_with("peft VeRA", base, names)
    peft_lora = peft_model_with("peft LoRA r=8", base, names)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "adapter"
        rows: list[Row] = []
        saved_models: list[tuple[str, nn.Module, vera.Method]] = [
            (f"LoRA r={lora.rank}", with_lora, lora),
            # The last file stays: it is the one that is served
            (f"VeRA r={method.rank}", with_vera, method),
        ]
        for label, model, method_of_model in saved_models:
            row: Row = {"part": "adapter file", "model": shape.label, "variant": label}
            row["bytes"] = vera.save(model, method_of_model, path)
            row["parameters"] = method_of_model.count(model)
            rows.append(row)
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
                        with_many, ids, adapter_names=names
                    ),
                }
                if resident == count:
                    mixed = partial(peft_lora, ids, adapter_names=names)
                    work |= {
                        "VeRA, one adapter, merged": partial(merged, ids),
                        "VeRA, one adapter, not merged": partial(with_vera, ids),
                        f"peft LoRA r=8, mixed batch of {count}": mixed,
                        f"peft VeRA, batch split over {count}": partial(
                            split, peft_vera, ids
                        ),
                    }
                about = {"part": "serving", "tokens": length, "resident": resident}
                rows += time_in_turns(work, 5, about)
        size = sum(
            vector.untyped_storage().nbytes() for vector in adapters.vectors.values()
        )
        label = f"{len(adapters):,} adapters in memory"
        return [*rows, {"part": "resident", "variant": label, "bytes": size}]


def peft_model_with(name: str, base: nn.Module, adapters: list[str]) -> Any:
    """A variant of peft's with further adapters of these names, all with the settings of
    its first one."""
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

    rows = []
    models = list(MODELS.items())
    steps = 64
    count = 8
    if not full:
        models = models[:1]
        steps = 32
        count = 4
    for label, shape in models:
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**shape)
        model = transformers.AutoModelForCausalLM.from_config(config).to(DEVICE).eval()
        lengths = torch.randint(20, 50, (count,)).tolist()
        prompts = [
            torch.randint(3, shape["vocab_size"], (n,)).tolist() for n in lengths
        ]
        # An id beyond the vocabulary, which no search writes
        ends = (shape["vocab_size"],)
        search = BeamSearch(10, (0.9,), 4, steps, ends)
        work = {
            "model.generate": partial(transformers_search, model, prompts, search),
            "this project's search": partial(beam_search, model, prompts, search),
        }
        rows += time_in_turns(
            work,
            3,
            {"part": "decoding", "model": label, "items": count, "steps": steps},
        )
    return rows
