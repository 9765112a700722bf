"""Beam search for E2E, beside transformers' own."""

from functools import partial
from typing import Any

import torch

from benchmarks.models import DEVICE
from benchmarks.timing import Row, interleaved
from tasks.beam import Search, beam_search, transformers_search

GPT2: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
MODELS = {"GPT-2 small": GPT2, "GPT-2 medium": GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16}}


def decoding(full: bool) -> list[Row]:
    """Beam search from prompts of 20 to 50 tokens, with 10 beams, and without an end token, so that every
    search takes all steps."""
    import transformers

    rows, steps, count = [], 64 if full else 32, 8 if full else 4
    for label, shape in MODELS.items() if full else list(MODELS.items())[:1]:
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**shape)
        model = transformers.AutoModelForCausalLM.from_config(config).to(DEVICE).eval()  # type: ignore[no-untyped-call]
        lengths = torch.randint(20, 50, (count,)).tolist()
        prompts = [torch.randint(3, shape["vocab_size"], (n,)).tolist() for n in lengths]
        search = Search(10, (0.9,), 4, steps, ends=(shape["vocab_size"],))  # no token of the vocabulary
        work = {
            "model.generate": partial(transformers_search, model, prompts, search),
            "this project's search": partial(beam_search, model, prompts, search),
        }
        rows += interleaved(work, 3, {"part": "decoding", "model": label, "items": count, "steps": steps})
    return rows
