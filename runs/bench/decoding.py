"""Beam search for E2E, beside transformers' own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from runs.bench.models import DEVICE, Row
from runs.bench.training import interleaved
from tasks.beam import Search, beam_search
from tasks.e2e import transformers_search

GPT2: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}


DECODERS = {"GPT-2 small": GPT2, "GPT-2 medium": GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16}}


def decoding(full: bool) -> list[Row]:
    """MRs of 20 to 50 tokens, 10 beams, no end token: every search goes to the last step, whatever the
    weights are."""
    import transformers

    rows, steps = [], 64 if full else 32
    count = 8 if full else 4
    for label, shape in DECODERS.items():
        if label != next(iter(DECODERS)) and not full:
            continue
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**shape)
        model = transformers.AutoModelForCausalLM.from_config(config).to(DEVICE).eval()  # type: ignore[no-untyped-call]
        prompts = [
            torch.randint(3, shape["vocab_size"], (n,)).tolist()
            for n in torch.randint(20, 50, (count,)).tolist()
        ]
        how = {"beams": 10, "length_penalty": [0.9], "no_repeat_ngram": 4, "max_new_tokens": steps}
        none = shape["vocab_size"]  # an end token that is never written
        search = Search(10, (0.9,), 4, steps, (none,))
        work: dict[str, Callable[[], Any]] = {
            "model.generate": partial(transformers_search, model, prompts, how, (none,)),
            "this project's search": partial(beam_search, model, prompts, search),
            "this project's search, an MR at a time": partial(one_by_one, model, prompts, search),
        }
        interleaved(work, 1, "warming up")
        seconds = interleaved(work, 3, f"{label}, decoding")
        rows += [
            {
                "part": "decoding",
                "model": label,
                "items": count,
                "steps": steps,
                "variant": name,
                "seconds": s,
            }
            for name, s in seconds.items()
        ]
    return rows


def one_by_one(model: nn.Module, prompts: list[list[int]], search: Search) -> None:
    """Decodes each prompt in a batch of its own."""
    for prompt in prompts:
        beam_search(model, [prompt], search)
