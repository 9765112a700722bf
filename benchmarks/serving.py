"""How fast models answer: many adapters in one batch, beside the base model and peft; and
beam search for E2E, beside transformers' own."""

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
    Shape,
    base_model,
    share_weights,
    time_in_turns,
    variant,
)
from tasks.beam import BeamSearch, beam_search, transformers_search
from vera.methods.layers import layer_changes

#: How many adapters are in memory. The first number is also how many requests a batch has.
#: The last number is measured only with full=true.
RESIDENT = (64, 1000, 10_000)
ROUNDS = 5


def serving(full: bool) -> list[Row]:
    """Times batches of short requests, each for another adapter, beside the base model.
    full: with more adapters in memory, and more lengths."""
    shape, count = SHAPES[0], RESIDENT[0]
    base = base_model(shape).eval()
    method = vera.VeRA(rank=shape.rank)
    with_vera = share_weights(base)
    method.adapt(with_vera)
    # as after training: a new adapter has b = 0, and changes nothing
    with torch.no_grad():
        for change in layer_changes(with_vera):  # the adapter of each weight matrix
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
        rows = [
            save_adapter(with_lora, lora, shape, Path(folder) / "lora"),
            save_adapter(with_vera, method, shape, path),
        ]
        for resident in RESIDENT if full else RESIDENT[:2]:
            # one file serves for all: time does not depend on what is in it
            for i in range(len(adapters), resident):
                adapters.add(str(i), path)
            for length in (16, 32, 64) if full else (32,):
                # from 3 on, since the first ids are special tokens
                ids = torch.randint(
                    3, shape.config["vocab_size"], (count, length), device=DEVICE
                )
                many = partial(with_many, ids, adapter_names=names)
                work = {
                    "base model": partial(base, ids),
                    f"VeRA, {count} of {resident:,} adapters": many,
                }
                if resident == count:  # these do not depend on `resident`
                    mixed = partial(peft_lora, ids, adapter_names=names)
                    one_by_one = partial(answer_one_by_one, peft_vera, ids)
                    work |= {
                        "VeRA, one adapter, merged": partial(merged, ids),
                        "VeRA, one adapter, not merged": partial(with_vera, ids),
                        f"peft LoRA r=8, mixed batch of {count}": mixed,
                        f"peft VeRA, batch split over {count}": one_by_one,
                    }
                about = {"part": "serving", "tokens": length, "resident": resident}
                rows += time_in_turns(work, ROUNDS, about)
        size = sum(
            vector.untyped_storage().nbytes() for vector in adapters.vectors.values()
        )
        label = f"{len(adapters):,} adapters in memory"
        return [*rows, {"part": "resident", "variant": label, "bytes": size}]


def save_adapter(
    model: nn.Module, method: vera.LoRA | vera.VeRA, shape: Shape, path: Path
) -> Row:
    """Saves a model's adapter. Returns the row of its file: bytes and parameters."""
    return {
        "part": "adapter file",
        "model": shape.label,
        "variant": f"{type(method).__name__} r={method.rank}",
        "bytes": vera.save(model, method, path),
        "parameters": method.count(model),
    }


def peft_model_with(name: str, base: nn.Module, adapters: list[str]) -> Any:
    """A variant of peft's with further adapters of these names, all with the settings of
    its first one."""
    model: Any = variant(name, base, SHAPES[0])
    for adapter in adapters:
        model.add_adapter(adapter, model.peft_config["default"])
    return model.eval()


def answer_one_by_one(model: Any, ids: Tensor) -> None:
    """Does a forward pass for each row of a batch, row i with adapter i: for VeRA peft has
    no batches of several adapters."""
    for i in range(len(ids)):
        model.set_adapter(str(i))
        model(ids[i : i + 1])


# --- beam search

GPT2: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
#: The transformers configuration of each model. Only the first is measured without
#: full=true.
MODELS = {
    "GPT-2 small": GPT2,
    "GPT-2 medium": GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16},
}


def decoding(full: bool) -> list[Row]:
    """Times beam searches with 10 beams from prompts of 20 to 49 tokens. No end token can
    come, so that every search takes all steps. full: both models, and longer searches."""
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
        # the decoding of E2E's table
        search = BeamSearch(
            beams=10,
            penalties=(0.9,),
            no_repeat_ngram=4,
            max_new_tokens=steps,
            ends=ends,
        )
        work = {
            "model.generate": partial(transformers_search, model, prompts, search),
            "this project's search": partial(beam_search, model, prompts, search),
        }
        about = {"part": "decoding", "model": label, "items": count, "steps": steps}
        rows += time_in_turns(work, rounds=3, about=about)
    return rows
