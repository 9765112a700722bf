"""The beam search behind the E2E numbers of LoRA and VeRA (microsoft/LoRA, examples/NLG), batched and with a
cache.

It is not transformers' search:
- no n-gram of the generated tokens may repeat (the prompt's do not count). A banned token's logit is removed
  before the softmax, so that the rest is renormalised;
- each step keeps the best `beams` of all beams x vocabulary candidates. A beam that ends with an end token
  scores sum log p / length ** penalty (the generated length, with the end token), is kept if it is the best
  so far, and is dropped without a replacement in that step;
- after the last step the remaining beams compete under the same score.

The penalty only chooses among the texts that the search finds, so one search serves several penalties. The
search of a prompt stops when none of its beams can win any more. This changes no result: log p only falls, so
a beam's score is at most its sum so far / longest length ** penalty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Search:
    """beams: candidates kept in each step. penalties: exponents of the length, not negative. no_repeat_ngram:
    0 allows repeats. max_new_tokens: steps. ends: the tokens that end a text."""

    beams: int
    penalties: tuple[float, ...]
    no_repeat_ngram: int
    max_new_tokens: int
    ends: tuple[int, ...]


@torch.no_grad()
def beam_search(model: Any, prompts: Sequence[Sequence[int]], search: Search) -> list[list[list[int]]]:
    """The best continuation of each prompt by each penalty: token ids, the end token included.

    model: a causal language model of transformers, in evaluation mode. All prompts are searched at once.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    beams, steps = search.beams, search.max_new_tokens
    ends = torch.tensor(search.ends, device=device)
    ids, mask = left_padded(prompts, device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    # Transformers' older name
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    call: dict[str, Any] = {name: cache, "use_cache": True, "logits_to_keep": 1}
    logits = _last_logits(model, ids, mask, positions, call)

    best: list[list[list[int]]] = [[[] for _ in search.penalties] for _ in prompts]
    best_score = torch.full((len(prompts), len(search.penalties)), -torch.inf, device=device)
    # From here on all tensors hold only the prompts that are still searched, `beams` rows each
    alive = list(range(len(prompts)))
    first = logits.log_softmax(-1).topk(min(beams, logits.shape[-1]))  # the first step has one beam
    empty = beams - first.values.shape[1]
    scores = torch.nn.functional.pad(first.values, (0, empty), value=-torch.inf)
    tokens = torch.nn.functional.pad(first.indices, (0, empty))
    history = tokens.unsqueeze(-1)  # (prompts, beams, tokens so far)
    cache.batch_repeat_interleave(beams)
    mask, positions = mask.repeat_interleave(beams, 0), positions[:, -1:].repeat_interleave(beams, 0)
    longest_powers = torch.tensor([float(steps) ** p for p in search.penalties], device=device)
    for length in range(1, steps + 1):
        over = length == steps
        ended = torch.ones_like(tokens, dtype=torch.bool) if over else torch.isin(tokens, ends)
        _keep_best(best, best_score, alive, scores, history, ended, search.penalties)
        scores = scores.masked_fill(ended, -torch.inf)
        hopeful = scores.max(1).values.unsqueeze(1) / longest_powers
        going = (hopeful > best_score[alive]).any(1)
        if over or not going.any():
            break
        if not going.all():
            scores, history = scores[going], history[going]
            rows = going.nonzero()[:, 0].repeat_interleave(beams) * beams + torch.arange(
                beams, device=device
            ).repeat(int(going.sum()))
            cache.batch_select_indices(rows)
            mask, positions = mask[rows], positions[rows]
            alive = [prompt for prompt, goes in zip(alive, going.tolist(), strict=True) if goes]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions + 1
        flat = history.flatten(0, 1)
        logits = _last_logits(model, flat[:, -1:], mask, positions, call)
        ban_repeats(logits, flat, search.no_repeat_ngram)
        scores, parents, tokens = _best_successors(logits, scores)
        history = torch.cat(
            [history.gather(1, parents.unsqueeze(-1).expand(-1, -1, length)), tokens.unsqueeze(-1)], -1
        )
        cache.reorder_cache(
            (parents + beams * torch.arange(len(alive), device=device).unsqueeze(1)).flatten()
        )
    return best


def left_padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both (prompts, tokens of the longest)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    return ids, torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)


def _last_logits(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, call: dict[str, Any]) -> Tensor:
    """The logits after each row's last token (rows, vocabulary)."""
    logits: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions, **call).logits
    return logits[:, -1].float()


def _best_successors(logits: Tensor, scores: Tensor) -> tuple[Tensor, Any, Tensor]:
    """The best beams that are one token longer: their scores, the beams that they extend, and the tokens.
    logits: (prompts x beams, vocabulary); scores and all results: (prompts, beams)."""
    prompts, beams = scores.shape
    # The best of a prompt are among the best of its beams
    each = logits.log_softmax(-1).topk(min(beams, logits.shape[-1]))
    best = (scores.flatten().unsqueeze(1) + each.values).view(prompts, -1).topk(beams)
    tokens = each.indices.view(prompts, -1).gather(1, best.indices)
    return best.values, best.indices // each.values.shape[1], tokens


def _keep_best(
    best: list[list[list[int]]],
    best_score: Tensor,
    alive: list[int],
    scores: Tensor,
    history: Tensor,
    ended: Tensor,
    penalties: Sequence[float],
) -> None:
    """Updates `best` and `best_score`, for each prompt and penalty, from the beams that have ended (prompts,
    beams)."""
    if not ended.any():
        return
    length = history.shape[-1]
    score, beam = scores.masked_fill(~ended, -torch.inf).max(1)
    for row, prompt in enumerate(alive):
        for which, penalty in enumerate(penalties):
            normalised = score[row] / length**penalty
            if normalised > best_score[prompt, which]:
                best_score[prompt, which] = normalised
                best[prompt][which] = history[row, beam[row]].tolist()


def ban_repeats(logits: Tensor, history: Tensor, size: int) -> None:
    """Sets the logits (rows, vocabulary) of each token that would repeat an n-gram of history (rows, tokens)
    to -inf, in place."""
    if not 0 < size <= history.shape[1]:
        return
    grams = history.unfold(1, size, 1)  # (rows, windows, size)
    last = history[:, history.shape[1] - size + 1 :]
    rows, windows = (grams[..., :-1] == last.unsqueeze(1)).all(-1).nonzero(as_tuple=True)
    logits[rows, grams[rows, windows, -1]] = -torch.inf
