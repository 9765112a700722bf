"""Sampling and the policy gradient of training by reward."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from runs.training.policy import policy_rows, token_tensors
from runs.training.policy_gradient import (
    completion_weights,
    group_advantages,
    k3_divergence,
    policy_loss,
)
from runs.training.sampling import (
    GREEDY,
    CompletionKey,
    draw_tokens,
    sample_completions,
    uniform_numbers,
)

pytestmark = pytest.mark.properties

END = 1
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def numbers_for(prompts, samples, tokens, seed=3, step=2):
    return np.array(
        [
            [
                uniform_numbers(CompletionKey(seed, step, prompt, sample), tokens)
                for sample in range(samples)
            ]
            for prompt in range(len(prompts))
        ]
    )


# --- random numbers


def test_a_number_depends_on_its_place_alone():
    whole = uniform_numbers(CompletionKey(seed=3, step=2, prompt=7, sample=1), 9)
    assert np.array_equal(whole[:4], uniform_numbers(CompletionKey(3, 2, 7, 1), 4))
    for other in ((4, 2, 7, 1), (3, 3, 7, 1), (3, 2, 8, 1), (3, 2, 7, 2)):
        assert not np.intersect1d(whole, uniform_numbers(CompletionKey(*other), 9)).size


def test_draws_have_the_probabilities_of_the_softmax_at_the_temperature():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    uniform = torch.from_numpy((np.arange(100_000) + 0.5) / 100_000)[None]
    tokens = draw_tokens(logits, uniform, temperature=0.5)
    shares = torch.bincount(tokens[0], minlength=4) / 100_000
    assert torch.allclose(shares, (logits / 0.5).softmax(-1)[0], atol=1e-5)


def test_nan_draws_the_most_probable_token():
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    greedy = torch.full((2, 1), GREEDY, dtype=torch.float64)
    assert draw_tokens(logits, greedy, 1.0).tolist() == [[2], [0]]


@given(st.floats(0, 1, exclude_max=True))
def test_every_number_draws_a_token(number):
    uniform = torch.tensor([[number]], dtype=torch.float64)
    token = int(draw_tokens(torch.tensor([[0.0, 0.0, 0.0]]), uniform, 1.0))
    assert 0 <= token <= 2


# --- completions


def test_a_completion_is_the_same_with_other_prompts_and_alone(llama):
    numbers = numbers_for(PROMPTS, samples=3, tokens=8)
    together = sample_completions(llama, PROMPTS, numbers, 0.8, [END])
    for prompt, row, completions in zip(PROMPTS, numbers, together, strict=True):
        assert sample_completions(llama, [prompt], row[None], 0.8, [END]) == [
            completions
        ]


def test_completions_follow_the_model_token_by_token(llama):
    """Without a cache and without padding, the same numbers draw the same tokens."""
    numbers = numbers_for(PROMPTS, samples=2, tokens=6)
    sampled = sample_completions(llama, PROMPTS, numbers, 1.3, [END])
    for prompt, row, completions in zip(PROMPTS, numbers, sampled, strict=True):
        for uniform, completion in zip(row, completions, strict=True):
            ids = list(prompt)
            for number, token in zip(uniform, completion, strict=False):
                logits = llama(torch.tensor([ids])).logits[:, -1].detach()
                drawn = draw_tokens(logits, torch.tensor([[number]]), 1.3)
                assert int(drawn) == token
                ids.append(token)
            assert END not in completion[:-1]
            assert completion[-1] == END or len(completion) == 6


def test_greedy_and_sampled_completions_share_a_call(llama):
    numbers = numbers_for(PROMPTS, samples=2, tokens=5)
    numbers[:, 0] = GREEDY
    for prompt, completions in zip(
        PROMPTS, sample_completions(llama, PROMPTS, numbers, 1.0, [END]), strict=True
    ):
        whole = llama.generate(
            torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=END
        )
        assert completions[0] == whole[0, len(prompt) :].tolist()


def test_rounding_changes_few_tokens(llama):
    """Another micro-batch changes the weights by rounding errors. At most 1 in 100,000
    tokens may change."""
    model = copy.deepcopy(llama)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn_like(parameter).sign())
    prompts = torch.randint(2, 32, (500, 6))
    before = llama(prompts).logits.detach().flatten(0, 1)
    after = model(prompts).logits.detach().flatten(0, 1)
    assert not torch.equal(before, after)
    uniform = torch.rand(len(before), 100, dtype=torch.float64)
    changed = draw_tokens(before, uniform, 1.0) != draw_tokens(after, uniform, 1.0)
    assert changed.float().mean() <= 1e-5


# --- the policy gradient


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    differences = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(group_advantages(rewards, "none"), differences)
    by_group = group_advantages(rewards, "group")
    assert torch.allclose(by_group[0], differences[0] / (0.5 + 1e-4))
    assert torch.equal(by_group[1], torch.zeros(4))
    by_batch = group_advantages(rewards, "batch")
    assert torch.allclose(by_batch, differences / (rewards.std() + 1e-4))


def test_weights_by_hand():
    lengths = torch.tensor([1.0, 3.0])
    assert completion_weights(lengths, "grpo", 5).tolist() == pytest.approx(
        [1 / 2, 1 / 6]
    )
    assert completion_weights(lengths, "dapo", 5).tolist() == pytest.approx([1 / 4] * 2)
    assert completion_weights(lengths, "dr_grpo", 5).tolist() == pytest.approx(
        [1 / 10] * 2
    )


def test_k3_is_zero_for_the_same_model_and_positive_otherwise():
    log_p = torch.tensor([-1.0, -2.0])
    assert k3_divergence(log_p, log_p).tolist() == [0, 0]
    by_hand = np.exp(0.5) - 0.5 - 1
    assert float(k3_divergence(log_p, log_p + 0.5)[0]) == pytest.approx(by_hand)


def test_the_divergence_pulls_towards_the_reference():
    log_p = torch.tensor([-1.0], requires_grad=True)
    nothing = torch.zeros(1)
    loss = policy_loss(log_p, nothing, torch.ones(1), 0.5, torch.tensor([-0.5]))
    loss.backward()
    assert float(log_p.grad) == pytest.approx(0.5 * (1 - np.exp(0.5)), rel=1e-6)


def test_answers_of_one_token_share_a_row():
    rows = policy_rows([5, 6], [[7], [8], [7]], [1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
    assert [row.ids for row in rows] == [[5, 6]]
    assert rows[0].tokens == [7, 8, 7]
    assert rows[0].positions == [1, 1, 1]


@pytest.mark.parametrize("completions", [[[7], [8], [1]], [[7, 9, 1], [8, 1], [3]]])
def test_log_probabilities_are_those_of_the_whole_text(llama, completions):
    rows = []
    for prompt in PROMPTS:
        rows += policy_rows(prompt, completions, [0.0] * 3, [1.0] * 3)
    tokens = token_tensors(llama, rows, temperature=0.7)
    expected = []
    for prompt in PROMPTS:
        for completion in completions:
            logits = llama(torch.tensor([prompt + completion])).logits[0] / 0.7
            predicted = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            expected.append(predicted[torch.arange(len(completion)), completion])
    assert torch.allclose(tokens.log_p, torch.cat(expected), atol=1e-5)


def test_micro_batches_add_up_to_the_gradient_of_the_whole(llama):
    completions = [[7, 9, 1], [8, 1], [3]]
    rows = []
    for prompt in PROMPTS:
        rows += policy_rows(prompt, completions, [1.0, -0.5, -0.5], [0.1, 0.2, 0.3])

    def gradient(size):
        model = copy.deepcopy(llama)
        for start in range(0, len(rows), size):
            tokens = token_tensors(model, rows[start : start + size], 1.0)
            policy_loss(tokens.log_p, tokens.advantages, tokens.weights).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = gradient(len(rows))
    assert (gradient(2) - whole).norm() <= 1e-5 * whole.norm()
