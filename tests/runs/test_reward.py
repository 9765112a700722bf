"""Runs that are trained by reward."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from running import (
    begin,
    call_here,
    comparable,
    refused,
    replace_words,
    straight_and_resumed,
    train_here,
)

from runs.config import expand
from runs.record.schema import CURVE_COLUMNS
from runs.run.definition import epoch_batches
from runs.run.identity import run_id
from runs.run.reward_functions import prompts_of_block, rows_of_step
from runs.sweep import display
from runs.tracking.content import epoch_points
from runs.training.effect import Moments, effect_note, estimate_effect
from runs.training.loop import Training
from runs.training.policy import token_tensors
from runs.training.policy_gradient import group_advantages
from runs.training.reach import reach_of
from runs.training.result import deviations
from runs.training.reward import permuted_rewards
from runs.training.train import train
from tasks.exact import FILLER_TOKENS

pytestmark = pytest.mark.determinism

#: Own reward functions, in a module that tests write.
FUNCTIONS = """
def even(prompt, completion, answer):
    return float(len(completion) % 2)

def longer(prompt, completion, answer):
    return len(completion)

def raises(prompt, completion, answer):
    raise ValueError("a mistake of mine")

def says(prompt, completion, answer):
    return "right"
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """The module, on the path."""
    path = tmp_path / "functions"
    path.mkdir()
    (path / "my_rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(path))
    yield path / "my_rewards.py"
    import sys

    sys.modules.pop("my_rewards", None)


@pytest.fixture
def reward_words(sums_words, functions):
    """A run by reward on whole sums, rewarded for the length of a completion, at which
    an untrained model has a signal."""
    words = [
        word
        for word in sums_words
        if not word.startswith(("task.train_rows", "train.max_steps"))
    ]
    return [
        *words,
        "task.train_rows=24",
        "train.objective=reward",
        "train.effective_batch=6",
        "train.lr=1e-2",
        "reward.samples=4",
        "reward.function=my_rewards.even",
    ]


@pytest.fixture
def digit_words(reward_words):
    """A run by reward whose answers are one token."""
    words = replace_words(reward_words, task="sums_digit")
    return [*words, "task.test_rows=20", "task.dev_rows=20"]


# --- a step


def test_the_reward_grows(reward_words):
    words = replace_words(reward_words, **{"reward.function": "my_rewards.longer"})
    words = [word for word in words if not word.startswith("method.")]
    record = train_here([*words, "method=full", "train.epochs=6", "train.lr=3e-3"])
    rewards = record["curve"]["reward"]
    assert rewards[-1] > rewards[0] + 1


def test_a_step_follows_the_gradient_of_what_was_sampled(reward_words):
    """Against plain torch: the mean over completions of the mean over tokens."""
    training = begin([*reward_words, "reward.loss=grpo", "train.clip=null"])
    batch = epoch_batches(training.lengths, 6, 0, 0, training.task.block)[0]
    policy = training.objective.begin(batch, 0)
    groups = training.objective._sample(batch, 0)
    rewards = training.objective._rewards(groups)
    advantages = group_advantages(rewards, "group").flatten()
    model = training.raw_model
    losses = []
    completions = [ids for group in groups for ids in group.completions]
    prompts = [
        training.objective.exercises[group.row].prompt_ids
        for group in groups
        for _ in group.completions
    ]
    for prompt, ids, advantage in zip(prompts, completions, advantages, strict=True):
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        log_p = logits.log_softmax(-1)[torch.arange(len(ids)), ids]
        losses.append(-advantage * log_p.mean())
    torch.stack(losses).mean().backward()
    expected = [p.grad.clone() for p in training.parameters.values()]
    training.optimizer.zero_grad()
    training.objective.loss(model, policy).backward()
    for gradient, parameter in zip(expected, training.parameters.values(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-6)


def test_permuted_rewards_are_a_step_s_rewards_in_other_places(reward_words):
    """The groups keep their completions, and the curve shows what these have earned."""
    plain = begin(reward_words)
    permuted = begin([*reward_words, "reward.permuted=true"])
    batch = epoch_batches(plain.lengths, 6, 0, 0, plain.task.block)[0]
    advantages = []
    for training in (plain, permuted):
        rows = training.objective.begin(batch, 0)
        advantages.append([row.advantages[0] for row in rows])
    assert advantages[0] != advantages[1]
    assert plain.objective.metrics == permuted.objective.metrics
    rewards = torch.arange(24.0).view(6, 4)
    shuffled = permuted_rewards(rewards, 0, 3)
    assert not torch.equal(shuffled, rewards)
    assert torch.equal(shuffled.flatten().sort().values, rewards.flatten())
    assert torch.equal(shuffled, permuted_rewards(rewards, 0, 3))
    assert not torch.equal(shuffled, permuted_rewards(rewards, 0, 4))


def test_answers_of_one_token_are_sampled_by_prompts_and_longer_ones_by_completions(
    reward_words, digit_words
):
    (whole,) = expand([*reward_words, "reward.samples=64"])
    (digit,) = expand([*digit_words, "reward.samples=64"])
    assert prompts_of_block(whole.config) == 2
    assert prompts_of_block(digit.config) == 128


def test_dropout_is_off(reward_words):
    training = begin([*reward_words, "method.dropout=0.5"])
    batch = epoch_batches(training.lengths, 6, 0, 0, training.task.block)[0]
    rows = training.objective.begin(batch, 0)
    losses = [float(training.objective.loss(training.model, rows)) for _ in range(2)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["whole", "digit"])
def test_micro_batches_change_rounding_alone(kind, request):
    words = request.getfixturevalue(f"{'reward' if kind == 'whole' else 'digit'}_words")
    records = [
        train_here([*replace_words(words, output=f"{folder}"), f"micro_batch={size}"])
        for folder, size in (
            (request.getfixturevalue("tmp_path") / "whole", "null"),
            (request.getfixturevalue("tmp_path") / "parts", 2),
        )
    ]
    for column in ("reward", "completions/mean_length", "frac_reward_zero_std"):
        assert records[0]["curve"][column] == records[1]["curve"][column]
    assert np.allclose(*(record["curve"]["dev_loss"] for record in records), rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [["reward.samples_every=1"], ["reward.kl=0.1", "train.evaluate_steps=3"]]
)
def test_a_resumed_run_is_the_same(reward_words, tmp_path, changes):
    straight, resumed = straight_and_resumed(
        [*reward_words, *changes], tmp_path, "step", 3
    )
    assert comparable(straight) == comparable(resumed)


def test_the_divergence_is_measured_from_the_start(reward_words):
    words = [word for word in reward_words if not word.startswith("method.")]
    changes = ["method=full", "reward.kl=0.1", "train.warmup_ratio=0"]
    training = begin([*words, *changes])
    batches = epoch_batches(training.lengths, 6, 0, 0, training.task.block)
    training.step(batches[0])
    assert training.state.metrics["kl"] == 0
    training.step(batches[1])
    assert training.state.metrics["kl"] > 0


@pytest.mark.parametrize("path", ["factor", "materialised"])
def test_the_reference_is_the_model_at_the_start(reward_words, path):
    """Whether or not the micro-batches of a step share a merged weight."""
    words = [*reward_words, "reward.kl=0.1", f"method.path={path}", "micro_batch=2"]
    training = begin([*words, "train.lr=10", "train.warmup_ratio=0"])
    started = begin(words)
    batches = epoch_batches(training.lengths, 6, 0, 0, training.task.block)
    training.step(batches[0])
    before = {n: p.detach().clone() for n, p in training.parameters.items()}
    rows = training.objective.begin(batches[1], 1)
    for name, parameter in training.parameters.items():
        assert torch.equal(parameter, before[name])
    expected = token_tensors(started.raw_model.eval(), rows, 1.0).log_p
    reference = torch.tensor([value for row in rows for value in row.reference])
    assert torch.allclose(reference, expected, atol=1e-5)
    current = token_tensors(training.raw_model, rows, 1.0).log_p
    assert not torch.allclose(reference, current, atol=1e-3)
    training.step(batches[1])
    assert any(
        not torch.equal(parameter, before[name])
        for name, parameter in training.parameters.items()
    )


# --- what a run can change


def test_the_effect_is_the_rates_sum_times_what_the_first_batches_agree_on(
    reward_words,
):
    words = [*reward_words, "train.epochs=1", "train.warmup_ratio=0"]
    training = begin([*words, "train.schedule=constant"])
    objective, groups = training.objective, training.optimizer.param_groups
    effect = estimate_effect(training, objective, groups, 4)
    gradients = []
    for rows in epoch_batches(training.lengths, 6, 0, 0, training.task.block):
        training.optimizer.zero_grad()
        objective.add_gradient(rows)
        parts = [
            torch.zeros_like(p) if p.grad is None else p.grad
            for p in training.parameters.values()
        ]
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    products = sum(a * b for a, b in itertools.combinations(gradients, 2)) / 6
    root = (sum(gradient**2 for gradient in gradients) / 4).sqrt()
    slope = float((products / root).nan_to_num().sum())
    assert slope > 0
    assert effect["effect"] == pytest.approx(100 * 4 * 1e-2 * slope, rel=1e-2)
    assert effect["unit"] == "points of mean reward"
    assert effect["constant"] == pytest.approx(0.04)


def test_what_batches_disagree_on_has_no_effect():
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(20_000))
    size = {}
    for mean in (0.0, 0.1, 10.0):
        moments = Moments([parameter])
        for _ in range(4):
            noise = torch.randn(20_000, generator=generator)
            parameter.grad = mean + noise
            moments.add()
        size[mean] = moments.slope() / 20_000
    # Of a mean m and deviation 1, Adam's average step is m / sqrt(m**2 + 1)
    assert size[0.0] == pytest.approx(0, abs=0.02)
    assert size[0.1] == pytest.approx(0.01, abs=0.02)
    assert size[10.0] == pytest.approx(10, rel=0.02)


def test_of_one_batch_the_effect_is_the_sum_of_its_gradient():
    parameter = torch.nn.Parameter(torch.zeros(3))
    moments = Moments([parameter, torch.nn.Parameter(torch.zeros(2))])
    parameter.grad = torch.tensor([1.0, -2.0, 0.0])
    moments.add()
    assert moments.slope() == pytest.approx(3)


def test_an_estimate_changes_nothing_that_follows(reward_words, tmp_path, monkeypatch):
    with_it = train_here(replace_words(reward_words, output=tmp_path / "with"))
    monkeypatch.setattr(Training, "_estimate_reach", lambda training: None)
    without = train_here(replace_words(reward_words, output=tmp_path / "without"))
    assert with_it["reach"]["effect"] > 0
    assert with_it["curve"] == without["curve"]
    assert with_it["predictions"] == without["predictions"]


def test_a_run_that_can_change_nothing_warns(reward_words, capsys):
    record = train_here([*reward_words, "train.lr=1e-9"])
    assert record["reach"]["effect"] < 0.01
    assert "points of mean reward at most" in capsys.readouterr().out


def test_vera_at_perls_rate_is_warned_about_and_at_a_working_one_is_not(sums_words):
    """PeRL's are 1,024 steps at a constant 1e-5 (conf/recipe/perl). By likelihood, of
    which a tiny model has a clear gradient; docs/reward.md has SmolLM2's by reward."""
    words = [word for word in sums_words if not word.startswith("method")]
    words += ["method=vera", "method.rank=32", "method.sites=[query,value]"]
    words += ["train.schedule=constant", "train.warmup_ratio=0"]
    notes = []
    for rate in ("1e-5", "1"):
        training = begin(replace_words(words, **{"train.lr": rate}))
        groups = training.optimizer.param_groups
        reach = estimate_effect(training, training.objective, groups, 1024)
        assert reach["effect"] > 0
        notes.append(effect_note(reach))
    assert "nats at most" in notes[0]
    assert notes[1] is None


def test_adams_bound_holds_for_any_gradient():
    """And nearly so for the worst one: small gradients, then larger and larger ones."""
    steps, beta2 = 200, 0.999
    reach = reach_of([1.0] * steps, beta2)
    assert reach.constant == steps
    assert reach.adam == pytest.approx(2.15 * steps, rel=0.01)
    for growth in (1.0, 1.01, 1.05, 1.3):
        parameter = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        optimizer = torch.optim.Adam([parameter], lr=1.0, betas=(0.9, beta2), eps=0.0)
        for step in range(steps):
            parameter.grad = torch.tensor(growth**step, dtype=torch.float64)
            optimizer.step()
        assert abs(float(parameter)) <= reach.adam * (1 + 1e-9)


# --- rewards


def test_functions_are_weighted_and_truncated_completions_have_their_own_reward(
    reward_words,
):
    both = "{my_rewards.longer: 0.5, my_rewards.even: -2}"
    words = replace_words(reward_words, **{"reward.function": both})
    training = begin([*words, "reward.truncated=-7"])
    groups = training.objective._sample([0, 1, 2], 0)
    rewards = training.objective._rewards(groups)
    ends = training.task.ends
    for group, of_group in zip(groups, rewards.tolist(), strict=True):
        for ids, text, reward in zip(
            group.completions, group.texts, of_group, strict=True
        ):
            expected = 0.5 * len(text) - 2 * (len(text) % 2)
            assert reward == (expected if ids[-1] in ends else -7)


def test_the_metrics_have_trls_names(reward_words):
    words = replace_words(
        reward_words,
        **{"reward.function": "{my_rewards.longer: 1, my_rewards.even: 1}"},
    )
    training = begin([*words, "reward.kl=0.1"])
    training.step([0, 1, 2])
    assert {*training.state.metrics} == {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "completions/mean_length",
        "completions/clipped_ratio",
        "rewards/my_rewards.longer/mean",
        "rewards/my_rewards.even/mean",
        "entropy",
        "kl",
    }


def test_a_run_without_a_signal_warns(reward_words, capsys):
    words = replace_words(reward_words, **{"reward.function": "exact_match"})
    train_here([*words, "train.epochs=1"])
    assert "no prompt had completions of different rewards" in capsys.readouterr().out


# --- evaluation


def test_dev_rows_are_answered(digit_words):
    """By hand: greedily, by the logits after the prompt."""
    training = begin(replace_words(digit_words, **{"reward.function": "exact_match"}))
    task = training.task
    right = training.evaluate()[1]
    for row, exercise in enumerate(task.exercises("dev")):
        logits = training.raw_model(torch.tensor([exercise.prompt_ids])).logits[0, -1]
        text = task.text([int(logits.argmax())])
        assert bool(right[row, 0]) == task.is_right(exercise, text)
    assert task.score(right, None) == right[:, 0].mean()


def test_a_run_by_likelihood_on_the_same_task_has_the_same_score(digit_words):
    words = replace_words(digit_words, **{"train.objective": "likelihood"})
    record = train_here(words)
    assert record["result"]["metric"] == "exact_match"
    assert "sampled_exact_match" in record["curve"]
    assert "reward" not in record["curve"]
    assert "reward" not in record["config"]
    assert "objective" not in record["config"]["train"]


def test_a_run_by_demonstrations_learns_tokens_that_its_score_ignores(digit_words):
    words = replace_words(digit_words, **{"train.objective": "demonstrations"})
    training = begin(words)
    answers = begin(replace_words(digit_words, **{"train.objective": "likelihood"}))
    longer = [length + FILLER_TOKENS for length in answers.lengths]
    assert [*training.lengths] == longer
    assert [*training.task.lengths("dev")] == [*answers.task.lengths("dev")]
    record = train_here(words)
    assert record["cell"]["row"].endswith("_by_demonstrations")
    assert record["label"]["row"].endswith(" by demonstrations")
    assert record["result"]["metric"] == "exact_match"
    assert "reward" not in record["config"]


def test_a_record_has_the_curve_of_the_reward(digit_words):
    record = train_here(
        replace_words(digit_words, **{"reward.function": "exact_match"})
    )
    curve = record["curve"]
    assert record["result"]["metric"] == "exact_match"
    for column in ("reward", "entropy", "frac_reward_zero_std", "sampled_exact_match"):
        assert len(curve[column]) == len(curve["epoch"])
        assert all(math.isfinite(value) for value in curve[column])
    assert record["config"]["reward"]["samples"] == 4


def test_pass_at_k_counts_rows_with_one_right_sample(digit_words):
    """It has the first sample of a run that samples one answer, and its id."""
    words = replace_words(digit_words, **{"reward.function": "exact_match"})
    one, several = begin(words), begin([*words, "task.pass_at=8"])
    assert one.run_id == several.run_id
    right = several.evaluate()[1]
    assert right.shape == (20, 9)
    assert np.array_equal(one.evaluate()[1], right[:, :2])
    several.evaluate_and_keep()
    assert several.state.curve["pass@8"] == [right[:, 1:].any(1).mean()]


def test_less_memory_halves_the_completions_at_once(reward_words, digit_words):
    """Of answers of one token, the prompts: their completions share a row."""
    for words, rows in ((reward_words, 6 * 4), (digit_words, 6)):
        (run,) = expand(words)
        assert rows_of_step(run.config) == rows


# --- warm starts


def test_a_start_that_saw_a_test_problem_is_rejected(digit_words):
    """The start's training rows are the last ones of the problems, or reach into the
    test problems of a run with more of them."""
    likelihood = replace_words(digit_words, **{"train.objective": "likelihood"})
    start = train_here([*likelihood, "keep=last"])["id"]
    begin([*digit_words, f"init_from={start}"])
    with refused(f"init_from={start}", "was trained on", "test problems"):
        begin([*digit_words, "task.test_rows=200", f"init_from={start}"])


def test_progress_says_what_a_step_has_measured(digit_words):
    training = begin(digit_words)
    events = []
    training.report = events.append
    training._one_step([0, 1, 2])
    (event,) = [event for event in events if "step" in event]
    shown = display.event_words(event)
    assert "  reward 0." in shown or "  reward 1." in shown
    assert "% with a signal, 1.0 tokens, entropy " in shown


def test_wandb_gets_trls_names():
    columns = (*CURVE_COLUMNS, "reward", "sampled_exact_match", "pass@8")
    curve = {key: [1.0] for key in columns}
    (point,) = epoch_points(curve, "exact_match", "cell")
    dev_scores = {"dev/exact_match", "dev/sampled_exact_match", "dev/pass@8"}
    assert {"train/reward", *dev_scores} < {*point}


def test_a_search_chooses_by_exact_match_on_held_out_rows(digit_words):
    """Whole groups of the same terms are held out."""
    left = ("train.lr=", "task.dev_rows", "task.test_rows", "task.train_rows")
    search = [word for word in digit_words if not word.startswith(left)]
    search += ["train.lr=1e-3,1e-2", "task.train_rows=200", "launcher=serial"]
    search += ["train.max_steps=2"]
    printed = call_here("runs.tune", *search, check=0).stdout
    assert "exact_match on " in printed
    assert "held-out training rows" in printed
    assert "train.objective=reward" in printed


def test_samples_are_written(reward_words):
    training = begin([*reward_words, "reward.samples_every=2", "train.epochs=1"])
    train(training)
    path = next(training.folder.parent.parent.rglob("samples.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1] * 8 + [3] * 8
    assert {*lines[0]} == {"step", "prompt", "completion", "answer", "reward"}


# --- identity


def id_of(words):
    (run,) = expand(words)
    return run_id(run)


def test_settings_of_the_reward_tell_runs_apart_by_reward_alone(reward_words):
    other = [*reward_words, "reward.scale=none"]
    assert id_of(reward_words) != id_of(other)
    assert id_of(reward_words) != id_of(
        replace_words(reward_words, **{"reward.samples": "5"})
    )
    shown = [*reward_words, "reward.samples_every=3"]
    assert id_of(reward_words) == id_of(shown)
    likelihood = replace_words(reward_words, **{"train.objective": "likelihood"})
    assert id_of(likelihood) == id_of([*likelihood, "reward.scale=none"])
    assert id_of(likelihood) != id_of(reward_words)


def test_a_run_by_reward_is_a_row_of_its_own(reward_words):
    (run,) = expand([*reward_words, "reward.samples_every=3"])
    assert run.row.endswith("_by_reward")
    assert run.config["method"]["label"].endswith(" by reward")
    (permuted,) = expand([*reward_words, "reward.permuted=true"])
    assert permuted.row == run.row.replace("_by_reward", "_by_permuted_reward")
    assert id_of([*reward_words, "reward.permuted=false"]) == id_of(reward_words)
    assert run_id(permuted) != id_of(reward_words)
    words = deviations(permuted, [])
    assert not any("permuted" in word for word in words)
    assert not any("samples_every" in word or "objective" in word for word in words)
    assert any("reward.samples=4 given" in word for word in words)


def test_the_source_of_an_own_function_is_part_of_the_id(reward_words, functions):
    before = id_of(reward_words)
    functions.write_text(FUNCTIONS + "\n# changed\n")
    assert id_of(reward_words) != before


# --- bad input


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("reward.samples=1", ["reward.samples=1"]),
        ("reward.temperature=0", ["reward.temperature=0"]),
        ("reward.function=nobody.has_it", ["reward.function=nobody.has_it"]),
        ("reward.loss=ppo", ["reward.loss=ppo", "dapo"]),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_is_loaded(
    word, named, reward_words
):
    key, _, value = word.partition("=")
    words = replace_words(reward_words, **{key: value})
    words = words if word in words else [*words, word]
    with refused(*named):
        id_of(words)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("raises", ["my_rewards.raises", "ValueError: a mistake of mine"]),
        ("says", ["my_rewards.says", "'right'", "a number"]),
        ("missing", ["my_rewards.missing", "missing"]),
    ],
)
def test_a_function_that_fails_is_refused_before_the_first_step(
    name, named, reward_words
):
    words = replace_words(reward_words, **{"reward.function": f"my_rewards.{name}"})
    with refused(*named):
        begin(words)


def test_a_task_without_exact_answers_is_refused(e2e_words):
    for objective in ("reward", "demonstrations"):
        with refused(f"train.objective={objective}", "exact answers", "maths"):
            expand([*e2e_words, f"train.objective={objective}"])
