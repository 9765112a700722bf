"""The beam search behind LoRA's and VeRA's E2E numbers (microsoft/LoRA, examples/NLG),
batched, with a cache.

It is not transformers' search:
- no n-gram of the generated tokens may repeat (the prompt's do not count). A banned token's logit is removed
  before the softmax, so that the rest is renormalised;
- each step keeps the best `beams` of all beams x vocabulary candidates. A beam that ends with an end token
  scores sum log p / length ** penalty (the generated length, with the end token), is kept if it is the best
  so far, and is dropped without a replacement in that step;
- after the last step the remaining beams compete under the same score.

The penalty only chooses among the texts that the search finds, so one search serves
several penalties. The search of a prompt stops when none of its beams can win any more.
This changes no result: log p only falls, so a beam's score is at most its sum so far /
longest length ** penalty."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from tasks.generation import merged_settings


@dataclass(frozen=True)
class Search:
    """beams: candidates kept in each step. penalties: exponents of the length, not
    negative. no_repeat_ngram: 0 allows repeats. max_new_tokens: steps. ends: the tokens
    that end a text."""

    beams: int
    penalties: tuple[float, ...]
    no_repeat_ngram: int
    max_new_tokens: int
    ends: tuple[int, ...]


@torch.no_grad()
def beam_search(
    model: Any, prompts: Sequence[Sequence[int]], search: Search
) -> list[list[list[int]]]:
    """The best continuation of each prompt by each penalty: token ids, the end token
    included.

    model: a causal language model of transformers, in evaluation mode. All prompts are
    searched at once."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    beams, steps = search.beams, search.max_new_tokens
    ends = torch.tensor(search.ends, device=device)
    ids, mask = left_padded(prompts, device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    # Transformers' older name
    name = (
        "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    )
    call: dict[str, Any] = {name: cache, "use_cache": True, "logits_to_keep": 1}
    logits = _last_logits(model, ids, mask, positions, call)

    powers = torch.tensor([float(steps) ** p for p in search.penalties], device=device)
    best = _Best(len(prompts), search, device)
    # From here on all tensors hold only the prompts that are still searched, `beams`
    # rows each
    alive = torch.arange(len(prompts), device=device)
    # the first step has one beam
    first = logits.log_softmax(-1).topk(min(beams, logits.shape[-1]))
    empty = beams - first.values.shape[1]
    scores = torch.nn.functional.pad(first.values, (0, empty), value=-torch.inf)
    tokens = torch.nn.functional.pad(first.indices, (0, empty))
    history = tokens.unsqueeze(-1)  # (prompts, beams, tokens so far)
    cache.batch_repeat_interleave(beams)
    mask, positions = (
        mask.repeat_interleave(beams, 0),
        positions[:, -1:].repeat_interleave(beams, 0),
    )
    for length in range(1, steps + 1):
        over = length == steps
        ended = (
            torch.ones_like(tokens, dtype=torch.bool)
            if over
            else torch.isin(tokens, ends)
        )
        best.update(alive, scores, history, ended)
        if over:
            break
        scores = scores.masked_fill(ended, -torch.inf)
        hopeful = scores.max(1).values.unsqueeze(1) / powers
        # The one time in a step that the device is waited for
        going = (hopeful > best.scores[alive]).any(1).tolist()
        if not any(going):
            break
        if not all(going):
            left = torch.tensor(
                [i for i, goes in enumerate(going) if goes], device=device
            )
            rows = (
                left.unsqueeze(1) * beams + torch.arange(beams, device=device)
            ).flatten()
            alive, scores, history = alive[left], scores[left], history[left]
            cache.batch_select_indices(rows)
            mask, positions = mask[rows], positions[rows]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = positions + 1
        flat = history.flatten(0, 1)
        logits = _last_logits(model, flat[:, -1:], mask, positions, call)
        ban_repeats(logits, flat, search.no_repeat_ngram)
        scores, parents, tokens = _best_successors(logits, scores)
        before = history.gather(1, parents.unsqueeze(-1).expand(-1, -1, length))
        history = torch.cat([before, tokens.unsqueeze(-1)], -1)
        first_rows = beams * torch.arange(len(alive), device=device).unsqueeze(1)
        cache.reorder_cache((parents + first_rows).flatten())
    return best.texts()


def left_padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both (prompts, tokens of the longest)."""
    longest = max(map(len, prompts))
    ids = torch.tensor(
        [[0] * (longest - len(p)) + list(p) for p in prompts], device=device
    )
    return ids, torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device
    )


def _last_logits(
    model: Any, ids: Tensor, mask: Tensor, positions: Tensor, call: dict[str, Any]
) -> Tensor:
    """The logits after each row's last token (rows, vocabulary)."""
    logits: Tensor = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, **call
    ).logits
    return logits[:, -1].float()


def _best_successors(logits: Tensor, scores: Tensor) -> tuple[Tensor, Any, Tensor]:
    """The best beams that are one token longer: their scores, the beams that they
    extend, and the tokens. logits: (prompts x beams, vocabulary); scores and all
    results: (prompts, beams)."""
    prompts, beams = scores.shape
    # The best of a prompt are among the best of its beams
    each = logits.log_softmax(-1).topk(min(beams, logits.shape[-1]))
    best = (scores.flatten().unsqueeze(1) + each.values).view(prompts, -1).topk(beams)
    tokens = each.indices.view(prompts, -1).gather(1, best.indices)
    return best.values, best.indices // each.values.shape[1], tokens


class _Best:
    """The best text of each prompt by each penalty: its score (prompts, penalties) and
    its tokens, padded."""

    def __init__(self, prompts: int, search: Search, device: torch.device) -> None:
        self.penalties = search.penalties
        shape = prompts, len(search.penalties)
        self.scores = torch.full(shape, -torch.inf, device=device)
        self.lengths = torch.zeros(shape, dtype=torch.long, device=device)
        self.tokens = torch.zeros(
            *shape, search.max_new_tokens, dtype=torch.long, device=device
        )

    def update(
        self, alive: Tensor, scores: Tensor, history: Tensor, ended: Tensor
    ) -> None:
        """Takes the better ones among the beams that have ended: their sums of log p
        and `ended` (prompts, beams), their tokens (prompts, beams, length). alive:
        which prompts these are."""
        length = history.shape[-1]
        score, beam = scores.masked_fill(~ended, -torch.inf).max(1)
        text = history.gather(1, beam[:, None, None].expand(-1, 1, length))
        powers = torch.tensor(
            [float(length) ** p for p in self.penalties], device=scores.device
        )
        normalised = score.unsqueeze(1) / powers
        better = normalised > self.scores[alive]
        self.scores[alive] = torch.where(better, normalised, self.scores[alive])
        self.lengths[alive] = torch.where(better, length, self.lengths[alive])
        tokens = self.tokens[alive]
        tokens[..., :length] = torch.where(
            better.unsqueeze(-1), text, tokens[..., :length]
        )
        self.tokens[alive] = tokens

    def texts(self) -> list[list[list[int]]]:
        """The tokens of each prompt's texts, by penalty."""
        pairs = zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        return [
            [t[:n] for t, n in zip(tokens, lengths, strict=True)]
            for tokens, lengths in pairs
        ]


def ban_repeats(logits: Tensor, history: Tensor, size: int) -> None:
    """Bans (-inf in logits, (rows, vocabulary)) tokens that repeat an n-gram of history
    (rows, tokens)."""
    if not 0 < size <= history.shape[1]:
        return
    grams = history.unfold(1, size, 1)  # (rows, windows, size)
    last = history[:, history.shape[1] - size + 1 :]
    repeats = (grams[..., :-1] == last.unsqueeze(1)).all(-1)
    tokens = grams[..., -1]
    # A token may end several n-grams: all that write its logit have to write the same.
    banned = ((tokens.unsqueeze(2) == tokens.unsqueeze(1)) & repeats.unsqueeze(1)).any(
        -1
    )
    logits.scatter_(1, tokens, logits.gather(1, tokens).masked_fill(banned, -torch.inf))


def transformers_search(
    model: Any, prompts: Sequence[Sequence[int]], search: Search
) -> list[list[list[int]]]:
    """transformers' own beam search. It bans the prompt's n-grams too, and replaces
    beams that have ended."""
    ids, mask = left_padded(prompts, next(model.parameters()).device)
    by_penalty = []
    for penalty in search.penalties:
        with _configured(model, search, penalty):
            output = model.generate(input_ids=ids, attention_mask=mask)
        by_penalty.append(output[:, ids.shape[1] :].tolist())
    return [list(texts) for texts in zip(*by_penalty, strict=True)]


def transformers_settings(
    model: Any, prompt: Sequence[int], search: Search
) -> dict[str, Any]:
    """What `transformers_search` really uses, after the library's own merge; with the
    first length penalty."""
    with _configured(model, search, search.penalties[0]):
        return merged_settings(model, prompt)


@contextlib.contextmanager
def _configured(model: Any, search: Search, penalty: float) -> Iterator[None]:
    """The model with a configuration for this search in place of its own, whose file is
    no part of a run's id."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        num_beams=search.beams,
        length_penalty=penalty,
        no_repeat_ngram_size=search.no_repeat_ngram,
        max_new_tokens=search.max_new_tokens,
        eos_token_id=list(search.ends),
        pad_token_id=0,
        do_sample=False,
    )
    try:
        yield
    finally:
        model.generation_config = own
