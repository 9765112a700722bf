"""The beam search: held to a plain one, and to what tells it from transformers' own."""

import math

import pytest
import torch
from tiers import pair_up
from tiny import tiny
from transformers import GenerationConfig

from tasks.beam import (
    BeamSearch,
    ban_repeats,
    beam_search,
    transformers_search,
    transformers_settings,
)
from tasks.generation import merged_settings

pytestmark = pytest.mark.parity


def sharp(architecture, scale=6):
    """A tiny model with opinions: its logits differ by more than rounding."""
    model = tiny(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model


def log_probabilities(logits, written, ngram):
    """After the ban of repeated n-grams, renormalised: a plain list for the next
    token."""
    for i in range(len(written) - ngram + 1 if ngram else 0):
        if written[i : i + ngram - 1] == written[len(written) - ngram + 1 :]:
            logits[written[i + ngram - 1]] = -math.inf
    return logits.log_softmax(-1).tolist()


def plain(model, prompt, search):
    """The search as its description says it, one prompt and one token at a time, with
    no cache."""
    best = [(-math.inf, [])] * len(search.penalties)
    live = [(0.0, [])]
    for length in range(1, search.max_new_tokens + 1):
        with torch.no_grad():
            logits = (
                model(torch.tensor([[*prompt, *written] for _, written in live]))
                .logits[:, -1]
                .double()
            )
        candidates = [
            (score + p, [*written, token])
            for of, (score, written) in zip(logits, live, strict=True)
            for token, p in enumerate(
                log_probabilities(of, written, search.no_repeat_ngram)
            )
            if p > -math.inf
        ]
        candidates = sorted(candidates, key=lambda c: -c[0])[: search.beams]
        live = []
        for score, written in candidates:
            if written[-1] in search.ends or length == search.max_new_tokens:
                for i, penalty in enumerate(search.penalties):
                    if score / length**penalty > best[i][0]:
                        best[i] = (score / length**penalty, written)
            else:
                live.append((score, written))
        if not live:
            break
    return [written for _, written in best]


def prompts_of(count, longest=9):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(3, 40, (n,), generator=generator).tolist() for n in lengths]


SEARCHES = {
    "5 beams": BeamSearch(5, (0.9, 0.8), 3, 14, (2, 7, 9)),
    "more beams than words": BeamSearch(50, (0.9,), 2, 3, (2, 3, 7, 9, 11)),
    "greedy": BeamSearch(1, (1.0,), 2, 10, (2, 5, 11, 3)),
    "extreme penalties": BeamSearch(4, (0.0, 2.0), 0, 9, (2, 5)),
    "no token twice": BeamSearch(3, (0.9,), 1, 6, (11,)),
}


@pytest.mark.parametrize(
    ("name", "architecture"), pair_up(SEARCHES, ["GPT-2", "Llama"])
)
def test_it_is_the_plain_search(name, architecture):
    search = SEARCHES[name]
    model, prompts = sharp(architecture), prompts_of(8)
    found = beam_search(model, prompts, search)
    assert found == [plain(model, prompt, search) for prompt in prompts]
    lengths = {len(text) for texts in found for text in texts}
    # ends were met on the way, and not by all at once
    assert len(lengths) > 1 or search.beams == 3


def test_a_batch_changes_nothing():
    """And no beams are computed of a prompt whose search is over."""
    model, prompts, search = (
        sharp("GPT-2"),
        prompts_of(10),
        BeamSearch(6, (0.9, 0.8), 3, 16, (2, 7)),
    )
    rows = []
    model.register_forward_pre_hook(
        lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    together = beam_search(model, prompts, search)
    assert rows[1] == 6 * len(prompts) > rows[-1]
    assert together == [beam_search(model, [prompt], search)[0] for prompt in prompts]
    assert together[::-1] == beam_search(model, prompts[::-1], search)


def test_the_ban_is_on_generated_ngrams_alone():
    """transformers bans the prompt's too, which makes an MR's own words unsayable."""
    history = torch.tensor([[5, 6, 7, 5, 6], [1, 2, 3, 4, 5]])
    logits = torch.zeros(2, 10)
    ban_repeats(logits, history, 3)
    assert logits[0, 7] == -torch.inf
    assert torch.isfinite(logits).sum() == 19
    logits = torch.zeros(2, 10)
    ban_repeats(logits, history, 2)
    assert [row.isinf().nonzero()[:, 0].tolist() for row in logits] == [[7], []]
    for size in (0, 6):
        logits = torch.zeros(2, 10)
        ban_repeats(logits, history, size)
        assert not logits.any()


def test_transformers_search_reads_no_configuration_of_the_models_own():
    """generation_config.json is no part of a run's id."""
    model, prompts = sharp("GPT-2"), [[5, 6, 7, 8]]
    search = BeamSearch(2, (0.9,), 0, 6, (2,))
    before = transformers_search(model, prompts, search)
    model.generation_config.repetition_penalty = 3.0
    own = model.generation_config
    assert transformers_search(model, prompts, search) == before
    assert model.generation_config is own


def test_the_settings_that_are_recorded_are_those_after_the_librarys_merge():
    """A configuration that does not say do_sample samples, if the model's own says so
    (transformers 5); ours never does."""
    model, prompt = sharp("GPT-2"), [5, 6, 7, 8]
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.6
    merged = merged_settings(model, prompt, GenerationConfig(max_new_tokens=5))
    assert (merged["do_sample"], merged["temperature"]) == (True, 0.6)
    assert merged["max_length"] == len(prompt) + 5
    ours = transformers_settings(model, prompt, BeamSearch(2, (0.9,), 0, 6, (2,)))
    assert (ours["do_sample"], ours["num_beams"]) == (False, 2)
    assert "temperature" not in ours
    assert model.generation_config.temperature == 0.6
