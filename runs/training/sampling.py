"""Sampling completions from a language model, from random numbers that can be computed
again.

The number behind a sampled token depends on seed, step, prompt, sample and the token's
position alone. It stays the same under another micro-batch, on another number of
processes, and after a resume."""

from collections.abc import Sequence
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from runs.training.batches import batches_of
from tasks.beam import left_padded

#: Separates these numbers from other uses of Philox with the same key (the order of
#: rows).
SAMPLING_STREAM = 1
#: In place of a completion's uniform numbers: each token is the most probable one.
GREEDY = float("nan")
#: In place of the step's number where dev rows are answered: the same numbers each time,
#: which are those of no step.
EVALUATION_STEP = 2**63


class CompletionKey(NamedTuple):
    """What the random numbers of a completion are computed from: the run's seed, the
    step's number, the prompt's row in its split, and the sample's number."""

    seed: int
    step: int
    prompt: int
    sample: int


def uniform_numbers(key: CompletionKey, tokens: int) -> np.ndarray:
    """Numbers in [0, 1) for the tokens of one completion (tokens,), by the counter-based
    generator Philox."""
    bits = np.random.Philox(
        key=[key.seed, key.step],
        counter=[0, SAMPLING_STREAM, key.sample, key.prompt],
    )
    return np.random.Generator(bits).random(tokens)


def draw_tokens(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Draws from softmax(logits / temperature) with one number for each draw.

    There is no top-k, no top-p and no penalty. The cumulative sums are in float64: in
    float32 their rounding would exceed the probability of a rare token.

    Args:
        logits: (rows, vocabulary).
        uniform: numbers in [0, 1) (rows, draws); GREEDY takes the most probable token.

    Returns:
        Token ids (rows, draws)."""
    # Apple's GPUs have no float64.
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    probabilities = (logits.to(dtype) / temperature).softmax(-1)
    cumulative = probabilities.cumsum(-1)
    # The last sum may miss 1 by a rounding error, and no draw may lie above it.
    # GREEDY numbers are NaN: they search for 0 here, and get another token below.
    targets = uniform.to(dtype).nan_to_num(0.0) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, targets.contiguous(), right=True)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return torch.where(uniform.isnan(), logits.argmax(-1, keepdim=True), tokens)


@torch.no_grad()
def sample_completions(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniform: np.ndarray,
    temperature: float,
    ends: Sequence[int],
) -> list[list[list[int]]]:
    """Samples completions of each prompt. The samples of a prompt share its forward
    pass.

    Args:
        model: a causal language model of transformers in evaluation mode.
        prompts: token ids of each.
        uniform: a number for each token, as `draw_tokens` takes it (prompts, samples,
            tokens). Its last axis sets the maximal length of a completion.
        temperature: what the logits are divided by.
        ends: the tokens that end a completion, which keeps its end token.

    Returns:
        Token ids by prompt and sample. A completion without an end token is
        truncated."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    samples, max_length = uniform.shape[1:]
    numbers = torch.from_numpy(np.asarray(uniform, dtype=np.float64))
    if device.type == "mps":  # it has no float64
        numbers = numbers.float()
    numbers = numbers.to(device)
    ids, mask = left_padded(prompts, device)
    # A prompt's positions count from 0, behind the padding.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    arguments: dict[str, Any] = {"use_cache": max_length > 1, "logits_to_keep": 1}
    if max_length > 1:
        cache = DynamicCache(config=model.config)
        # transformers 5.24 renamed the argument past_key_values
        takes_cache = "cache" in signature(model.forward).parameters
        arguments["cache" if takes_cache else "past_key_values"] = cache
    outputs = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, **arguments
    )
    tokens = draw_tokens(outputs.logits[:, -1].float(), numbers[:, :, 0], temperature)
    # From here on each sample of each prompt is a row of its own. A row that has ended
    # goes on with the others, and `_until_end` cuts off what follows.
    sampled = [tokens.flatten()]  # the tokens (rows,) at each position
    end_tokens = torch.tensor(ends, device=device)
    has_ended = torch.isin(sampled[0], end_tokens)
    if max_length > 1:
        cache.batch_repeat_interleave(samples)
    mask = mask.repeat_interleave(samples, 0)
    positions = positions[:, -1:].repeat_interleave(samples, 0)
    for index in range(1, max_length):
        if bool(has_ended.all()):
            break
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions + 1
        outputs = model(
            input_ids=sampled[-1].unsqueeze(1),
            attention_mask=mask,
            position_ids=positions,
            **arguments,
        )
        number = numbers[:, :, index].reshape(-1, 1)
        tokens = draw_tokens(outputs.logits[:, -1].float(), number, temperature)
        sampled.append(tokens.flatten())
        has_ended |= torch.isin(sampled[-1], end_tokens)
    rows = torch.stack(sampled, 1).tolist()
    completions = [_until_end(row, ends) for row in rows]
    # Back to the samples of each prompt.
    return [list(batch) for batch in batches_of(completions, samples)]


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to the first end token, which is included."""
    for index, token in enumerate(ids):
        if token in ends:
            return ids[: index + 1]
    return ids
