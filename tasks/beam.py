"""The beam search behind LoRA's and VeRA's E2E numbers (microsoft/LoRA, examples/NLG),
batched, with a cache.

It differs from transformers' search in three ways:

- No n-gram of the generated tokens may repeat (the prompt's do not count). A banned
  token's logit is removed before the softmax, so that the rest is renormalised.
- Each step keeps the best `beams` of all beams x vocabulary candidates. A beam that
  ends with an end token scores sum log p / length ** penalty (the generated length,
  with the end token), is kept if it is the best so far, and is dropped without a
  replacement in that step.
- After the last step the remaining beams compete under the same score.

The penalty only chooses among the texts that the search finds, so one search serves
several penalties. The search of a prompt stops when none of its beams can win any more.
This changes no result: log p only falls, so a beam's score is at most its sum so far /
longest length ** penalty."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from tasks.generation import merged_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Token ids by prompt, then by penalty (each penalty chooses a text), then by position.
TextsByPrompt = list[list[list[int]]]


@dataclass(frozen=True)
class BeamSearch:
    """The settings of a search. beams: how many beams each step keeps for a prompt.
    penalties: exponents of the length, not negative. no_repeat_ngram: the length of the
    n-grams that may not repeat; 0 allows repeats. max_new_tokens: how many steps there
    are. ends: the tokens that end a text."""

    beams: int
    penalties: tuple[float, ...]
    no_repeat_ngram: int
    max_new_tokens: int
    ends: tuple[int, ...]

    def length_powers(self, length: int, device: torch.device) -> Tensor:
        """length ** penalty for each penalty, (penalties,): what the sum of log p of a text
        of this length is divided by."""
        powers = [float(length) ** penalty for penalty in self.penalties]
        return torch.tensor(powers, device=device)


@torch.no_grad()
def beam_search(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], search: BeamSearch
) -> TextsByPrompt:
    """The best continuation of each prompt under each penalty: token ids with the end
    token, if the text has one.

    model: a causal language model of transformers, in evaluation mode. All prompts are
    searched at once."""
    steps = search.max_new_tokens
    decoder = _Decoder(model, prompts)
    ends = torch.tensor(search.ends, device=decoder.device)
    beams = _Beams.after_first_step(decoder, search.beams)
    best = _BestTexts(len(prompts), search, decoder.device)
    for length in range(1, steps):
        ended = torch.isin(beams.tokens, ends)
        best.update(beams, ended)
        # An ended beam is dropped: what would extend it scores -inf
        beams.scores = beams.scores.masked_fill(ended, -torch.inf)
        # Only here does a step wait for the device
        can_win = best.can_win(beams).tolist()
        if not any(can_win):
            return best.texts()
        if not all(can_win):
            indices = [i for i, prompt_can_win in enumerate(can_win) if prompt_can_win]
            beams.keep(indices, decoder)
        beams.extend(decoder, length, search.no_repeat_ngram)
    # After the last step all beams compete, ended or not
    best.update(beams, torch.ones_like(beams.tokens, dtype=torch.bool))
    return best.texts()


class _Decoder:
    """The model with its cache. A batch has one row for each prompt at first, and after
    `read_prompts` one row for each beam of each prompt that is still searched."""

    def __init__(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]]
    ) -> None:
        from transformers import DynamicCache

        self.model = model
        self.device = next(model.parameters()).device
        self.cache = DynamicCache(config=model.config)
        self.prompt_ids, self.mask = left_padded(prompts, self.device)
        # Positions count from a prompt's first token; padding gets any valid one
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        # "past_key_values" is transformers' older name
        names = signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"

    def read_prompts(self, beams: int) -> Tensor:
        """The logits after each prompt (prompts, vocabulary). Afterwards each prompt has a
        row for each beam."""
        logits = self._last_logits(self.prompt_ids)
        self.cache.batch_repeat_interleave(beams)
        self.mask = self.mask.repeat_interleave(beams, 0)
        self.positions = self.positions[:, -1:].repeat_interleave(beams, 0)
        return logits

    def read(self, tokens: Tensor) -> Tensor:
        """The logits after a token of each row (rows, vocabulary). tokens: (rows,)."""
        self.mask = pad(self.mask, (0, 1), value=1)
        self.positions = self.positions + 1
        return self._last_logits(tokens.unsqueeze(1))

    def _last_logits(self, ids: Tensor) -> Tensor:
        """The logits after the last of these tokens, (rows, vocabulary). ids: (rows,
        tokens); those before them are in the cache."""
        cache: dict[str, Any] = {self._cache_name: self.cache}
        outputs = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            use_cache=True,
            logits_to_keep=1,
            **cache,
        )
        logits: Tensor = outputs.logits
        return logits[:, -1].float()

    def keep_rows(self, rows: Tensor) -> None:
        """Keeps these rows and forgets all others."""
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
        self.positions = self.positions[rows]


@dataclass
class _Beams:
    """The beams of the prompts that are still searched.

    prompts: the index of each among all prompts, (prompts,). scores: the sum of log p of
    each beam, (prompts, beams); -inf for one that has ended. history: the generated tokens
    of each beam, (prompts, beams, tokens so far)."""

    prompts: Tensor
    scores: Tensor
    history: Tensor

    @classmethod
    def after_first_step(cls, decoder: _Decoder, beams: int) -> "_Beams":
        """The beams of one token: the best tokens after each prompt."""
        logits = decoder.read_prompts(beams)
        prompts = len(logits)
        best = logits.log_softmax(-1).topk(min(beams, logits.shape[-1]))
        # A vocabulary may have fewer tokens than there are beams: the others score -inf
        missing = beams - best.values.shape[1]
        return cls(
            torch.arange(prompts, device=decoder.device),
            pad(best.values, (0, missing), value=-torch.inf),
            pad(best.indices, (0, missing)).unsqueeze(-1),
        )

    @property
    def tokens(self) -> Tensor:
        """The last token of each beam (prompts, beams)."""
        return self.history[..., -1]

    def keep(self, indices: list[int], decoder: _Decoder) -> None:
        """Keeps the prompts at these places of `self.prompts` and forgets all others, also
        in the decoder, which has a row for each beam of each prompt."""
        beams = self.scores.shape[1]
        places = torch.tensor(indices, device=decoder.device)
        first_rows = beams * places.unsqueeze(1)
        rows = first_rows + torch.arange(beams, device=decoder.device)
        self.prompts = self.prompts[places]
        self.scores = self.scores[places]
        self.history = self.history[places]
        decoder.keep_rows(rows.flatten())

    def extend(self, decoder: _Decoder, length: int, no_repeat_ngram: int) -> None:
        """Replaces the beams by the best ones that are one token longer, also in the
        decoder's cache. length: how many tokens the present beams have."""
        rows = self.history.flatten(0, 1)
        logits = decoder.read(rows[:, -1])
        ban_repeats(logits, rows, no_repeat_ngram)
        self.scores, parents, tokens = _best_successors(logits, self.scores)
        parent_tokens = parents.unsqueeze(-1).expand(-1, -1, length)
        history = self.history.gather(1, parent_tokens)
        self.history = torch.cat([history, tokens.unsqueeze(-1)], -1)
        prompts, beams = self.scores.shape
        first_rows = beams * torch.arange(prompts, device=decoder.device).unsqueeze(1)
        decoder.cache.reorder_cache((parents + first_rows).flatten())


def _best_successors(logits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best beams that are one token longer: their scores, the index of the beam that
    each of them extends, and its new token.

    logits: (prompts x beams, vocabulary); scores and all results: (prompts, beams)."""
    prompts, beams = scores.shape
    # The best of a prompt are among the best of its beams
    per_beam = logits.log_softmax(-1).topk(min(beams, logits.shape[-1]))
    sums = scores.flatten().unsqueeze(1) + per_beam.values
    best = sums.view(prompts, -1).topk(beams)
    tokens = per_beam.indices.view(prompts, -1).gather(1, best.indices)
    parents = best.indices // per_beam.values.shape[1]
    return best.values, parents, tokens


class _BestTexts:
    """The best text that was found so far for each prompt and penalty.

    scores, lengths: of the texts, (prompts, penalties); the score is -inf while there is no
    text. tokens: (prompts, penalties, max_new_tokens), of which the first `lengths` count.
    longest_powers: what the score of the longest possible text is divided by, its length
    to the power of each penalty, (penalties,)."""

    def __init__(self, prompts: int, search: BeamSearch, device: torch.device) -> None:
        self.search = search
        self.longest_powers = search.length_powers(search.max_new_tokens, device)
        shape = prompts, len(search.penalties)
        self.scores = torch.full(shape, -torch.inf, device=device)
        self.lengths = torch.zeros(shape, dtype=torch.long, device=device)
        shape_of_tokens = *shape, search.max_new_tokens
        self.tokens = torch.zeros(shape_of_tokens, dtype=torch.long, device=device)

    def can_win(self, beams: _Beams) -> Tensor:
        """Which of the beams' prompts have a beam that can still win under any penalty,
        (prompts,): see the module for the bound."""
        bounds = beams.scores.max(1).values.unsqueeze(1) / self.longest_powers
        return (bounds > self.scores[beams.prompts]).any(1)

    def update(self, beams: _Beams, ended: Tensor) -> None:
        """Takes the best of each prompt's ended beams, for each penalty under which it is
        better than the best text so far. ended: which beams have ended, (prompts, beams)."""
        prompts = beams.prompts
        length = beams.history.shape[-1]
        # The best ended beam of each prompt: its score and index, (prompts,), and its text,
        # (prompts, 1, tokens)
        score, beam = beams.scores.masked_fill(~ended, -torch.inf).max(1)
        text = beams.history.gather(1, beam[:, None, None].expand(-1, 1, length))
        powers = self.search.length_powers(length, score.device)
        # From here on (prompts, penalties): all have this length, so under every penalty
        # the same beam is the best
        normalised = score.unsqueeze(1) / powers
        scores = self.scores[prompts]
        better = normalised > scores
        self.scores[prompts] = torch.where(better, normalised, scores)
        self.lengths[prompts] = torch.where(better, length, self.lengths[prompts])
        tokens = self.tokens[prompts]
        start = tokens[..., :length]
        tokens[..., :length] = torch.where(better.unsqueeze(-1), text, start)
        self.tokens[prompts] = tokens

    def texts(self) -> TextsByPrompt:
        """The tokens of each prompt's texts, by penalty."""
        texts_by_prompt = []
        all_lengths = self.lengths.tolist()
        for padded, lengths in zip(self.tokens.tolist(), all_lengths, strict=True):
            texts = [
                tokens[:length] for tokens, length in zip(padded, lengths, strict=True)
            ]
            texts_by_prompt.append(texts)
        return texts_by_prompt


def left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The prompts' token ids, padded on the left, and the mask of what is no padding; both
    (prompts, tokens of the longest)."""
    longest = max(len(prompt) for prompt in prompts)
    ids, mask = [], []
    for prompt in prompts:
        padding = [0] * (longest - len(prompt))
        ids.append([*padding, *prompt])
        mask.append([*padding, *[1] * len(prompt)])
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def ban_repeats(logits: Tensor, history: Tensor, size: int) -> None:
    """Bans the tokens that would repeat an n-gram of their row: sets their logits to -inf,
    in place.

    Args:
        logits: of the next token, (rows, vocabulary).
        history: the tokens so far, (rows, tokens).
        size: the n of the n-grams; 0 bans nothing."""
    if not 0 < size <= history.shape[1]:
        return
    grams = history.unfold(1, size, 1)  # (rows, windows, size)
    # The end of a row repeats the beginning of these n-grams: their last token is banned
    last = history[:, history.shape[1] - size + 1 :]
    repeats = (grams[..., :-1] == last.unsqueeze(1)).all(-1)
    tokens = grams[..., -1]
    # A token may end several n-grams, of which only some are repeated. Each of them writes
    # its logit below, so all have to write the same.
    same_token = tokens.unsqueeze(2) == tokens.unsqueeze(1)
    banned = (same_token & repeats.unsqueeze(1)).any(-1)
    logits.scatter_(1, tokens, logits.gather(1, tokens).masked_fill(banned, -torch.inf))


def transformers_search(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], search: BeamSearch
) -> TextsByPrompt:
    """transformers' own beam search. It bans the prompt's n-grams too, and replaces
    beams that have ended."""
    ids, mask = left_padded(prompts, next(model.parameters()).device)
    texts_by_penalty = []
    for penalty in search.penalties:
        with _configured(model, search, penalty):
            output = model.generate(input_ids=ids, attention_mask=mask)
        texts_by_penalty.append(output[:, ids.shape[1] :].tolist())
    return [list(texts) for texts in zip(*texts_by_penalty, strict=True)]


def transformers_settings(
    model: "PreTrainedModel", prompt: Sequence[int], search: BeamSearch
) -> dict[str, Any]:
    """The settings that `transformers_search` really uses for the first length penalty,
    after the library's own merge (see tasks/generation.py)."""
    with _configured(model, search, search.penalties[0]):
        return merged_settings(model, prompt)


@contextlib.contextmanager
def _configured(
    model: "PreTrainedModel", search: BeamSearch, penalty: float
) -> Iterator[None]:
    """In the with block the model has a generation configuration for this search. Its own
    must not change results, since the file that it is from is no part of a run's id."""
    from transformers import GenerationConfig

    own_config = model.generation_config
    model.generation_config = GenerationConfig(
        num_beams=search.beams,
        length_penalty=penalty,
        no_repeat_ngram_size=search.no_repeat_ngram,
        max_new_tokens=search.max_new_tokens,
        eos_token_id=list(search.ends),
        pad_token_id=0,  # any: it only follows end tokens, where texts are cut
        do_sample=False,
    )
    try:
        yield
    finally:
        model.generation_config = own_config
