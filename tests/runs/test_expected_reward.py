"""Training by the expected reward, which needs no samples."""

import pytest
import torch
from running import begin, refused, replace_words, train_here

from runs.config import expand
from runs.run.definition import epoch_batches
from runs.run.identity import run_id
from runs.training.expected_reward import expected_advantages
from runs.training.policy_gradient import group_advantages

pytestmark = pytest.mark.parity

#: Of the tiny model's words, some of which an untrained one writes often enough.
FUNCTIONS = """
def vowels(prompt, completion, answer):
    return float(sum(letter in "aeiou" for letter in completion))
"""


@pytest.fixture
def words(sums_words, tmp_path, monkeypatch):
    """A run by reward whose answers are one token."""
    (tmp_path / "letters_of.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return [
        *replace_words(
            sums_words, task="sums_digit", **{"task.dev_rows": 20, "task.test_rows": 20}
        ),
        "train.objective=reward",
        "reward.function=letters_of.vowels",
    ]


def gradient_of(training, step):
    """The gradient of a step on the first batch, in one vector."""
    size = training.settings["effective_batch"]
    rows = epoch_batches(training.lengths, size, 0, 0, training.task.block)[0]
    items = training.objective.begin(rows, step)
    training.optimizer.zero_grad()
    training.objective.loss(training.raw_model, items).backward()
    return torch.cat([p.grad.flatten() for p in training.parameters.values()])


def test_its_gradient_is_the_mean_of_the_sampled_ones(words):
    """Along its own direction and random ones, within four standard errors. A group's
    mean is over its own samples too, which makes the sampled one smaller by a known
    factor."""
    samples = 1024
    expected = gradient_of(
        begin([*words, "reward.scale=none", "reward.expected=true"]), 0
    )
    sampling = begin([*words, "reward.scale=none", f"reward.samples={samples}"])
    factor = samples / (samples - 1)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(20, len(expected), generator=generator)
    directions = torch.cat([expected[None], directions])
    directions /= directions.norm(dim=1, keepdim=True)
    projections = []
    for step in range(60):
        projections.append(directions @ (factor * gradient_of(sampling, step)))
    found = torch.stack(projections)
    errors = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - directions @ expected).abs() < 4 * errors).all()
    assert errors[0] < expected.norm() / 8


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_the_limit_of_many_samples(scale):
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.rand(3, 7, generator=generator, dtype=torch.float64)
    probabilities /= probabilities.sum(1, keepdim=True)
    rewards = torch.rand(3, 7, generator=generator, dtype=torch.float64)
    count = 400_000
    tokens = torch.multinomial(probabilities, count, True, generator=generator)
    sampled = group_advantages(rewards.gather(1, tokens), scale)
    expected = expected_advantages(probabilities, rewards, scale).gather(1, tokens)
    assert torch.allclose(sampled, expected, atol=0.02)
    total = (probabilities * expected_advantages(probabilities, rewards, scale)).sum(1)
    assert torch.allclose(total, torch.zeros_like(total), atol=1e-12)


def test_micro_batches_change_rounding_alone(words):
    words = [*words, "reward.expected=true", "reward.scale=batch"]
    whole = begin([*words, "train.clip=null"])
    parts = begin([*words, "train.clip=null", "micro_batch=3"])
    size = whole.settings["effective_batch"]
    rows = epoch_batches(whole.lengths, size, 0, 0, whole.task.block)[0]
    for training in (whole, parts):
        training.step(rows)
    for first, second in zip(
        whole.parameters.values(), parts.parameters.values(), strict=True
    ):
        assert torch.allclose(first, second, atol=1e-5)
    assert whole.objective.metrics == pytest.approx(parts.objective.metrics, rel=1e-5)


def test_the_reward_grows_and_the_record_says_how_it_was_trained(words):
    words = [word for word in words if not word.startswith("method.")]
    changes = ["method=full", "train.epochs=4", "train.lr=2e-2", "task.decode=none"]
    record = train_here([*words, *changes, "reward.expected=true"])
    assert record["cell"]["row"].endswith("_by_expected_reward")
    assert record["label"]["row"].endswith(" by expected reward")
    rewards = record["curve"]["reward"]
    assert rewards[-1] > rewards[0] + 0.1
    assert set(record["curve"]["frac_reward_zero_std"]) == {0.0}
    assert record["reach"]["effect"] > 0


def test_it_is_in_ids_alone_where_it_is_used(words):
    (sampled,) = expand(words)
    (plain,) = expand([*words, "reward.expected=false"])
    (expected,) = expand([*words, "reward.expected=true"])
    assert run_id(plain) == run_id(sampled) != run_id(expected)
    assert "expected" not in plain.config["reward"]


@pytest.mark.parametrize(
    "change",
    [
        "reward.max_new_tokens=2",
        "reward.permuted=true",
        "reward.kl=0.1",
        "reward.samples_every=1",
    ],
)
def test_what_needs_samples_is_refused(words, change):
    with refused("reward.expected=true", change.partition("=")[0]):
        expand([*words, "reward.expected=true", change])
