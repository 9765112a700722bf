"""Training by the expected reward of answers of one token: what training by reward
estimates from samples, computed as a sum over the vocabulary.

It is the limit for many samples, without their noise. The next token's
probabilities weigh the rewards of all tokens; advantages have the same definitions as
with samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import vera
from runs.training.batches import batches_of
from runs.training.context import Context
from runs.training.policy import log_probabilities_at
from runs.training.policy_gradient import STD_FLOOR, Scale, token_entropies
from runs.training.reward import ENTROPY, TOKENS, RewardObjective, switch_off_dropout


@dataclass(frozen=True)
class ExpectedRow:
    """A prompt's token ids, and the advantage of each token as its answer
    (vocabulary,)."""

    prompt: list[int]
    advantages: Tensor


class ExpectedReward(RewardObjective):
    """The objective of training by expected reward; see Objective for its methods."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        #: The text of each token of the vocabulary, as a completion of one token; empty
        #: until the first step.
        self.texts: list[str] = []

    def begin(self, rows: list[int], step: int) -> Sequence[ExpectedRow]:
        self.token_sums.zero_()
        switch_off_dropout(self.context.raw_model)
        return self._expected_rows(rows, self.settings["scale"])

    def share(
        self, micro_batch: Sequence[ExpectedRow], items: Sequence[ExpectedRow]
    ) -> float:
        return len(micro_batch) / len(items)

    def loss(self, model: Any, micro_batch: Sequence[ExpectedRow]) -> Tensor:
        """The mean over the prompts of minus the expected advantage. Its value is 0,
        since a prompt's advantages are differences from its mean reward. Its gradient,
        through the probabilities alone, is that of minus the expected reward (with
        reward.scale=none)."""
        log_p = self._log_probabilities(model, [row.prompt for row in micro_batch])
        advantages = torch.stack([row.advantages for row in micro_batch])
        self.token_sums[TOKENS] += len(micro_batch)
        self.token_sums[ENTROPY] += token_entropies(log_p.detach()).double().sum().cpu()
        return -(log_p.exp() * advantages).sum(-1).mean()

    def add_gradient(self, rows: list[int]) -> None:
        """See Objective. Advantages are not scaled, whatever reward.scale is: they give
        the gradient of the mean reward itself."""
        model = self.context.raw_model
        switch_off_dropout(model)
        items = self._expected_rows(rows, scale="none")
        size = self.context.config["micro_batch"] or len(items)
        for micro_batch in batches_of(items, size):
            loss = self.loss(model, micro_batch) * self.share(micro_batch, items)
            torch.autograd.backward(loss)

    # --- rewards and advantages of all tokens

    def _expected_rows(self, rows: list[int], scale: Scale) -> list[ExpectedRow]:
        """A step's prompts with the advantages of their tokens, in the order of `rows`.
        Each process computes all of them, and fills the step's metrics. scale: see
        `group_advantages`."""
        prompts = [self.exercises[row].prompt_ids for row in rows]
        size = self.context.config["micro_batch"] or len(prompts)
        batch_probabilities = []
        with (
            torch.no_grad(),
            vera.unchanged(self.context.raw_model),
            self.context.accelerator.autocast(),
        ):
            for batch in batches_of(prompts, size):
                self.context.stop.check()
                log_p = self._log_probabilities(self.context.raw_model, batch)
                batch_probabilities.append(log_p.exp())
        probabilities = torch.cat(batch_probabilities)
        scores = self._scores(rows, probabilities)
        rewards = self._rewards(scores)
        self._measure_expectation(probabilities, rewards, scores)
        advantages = expected_advantages(probabilities, rewards, scale)
        return [
            ExpectedRow(prompt, row_advantages)
            for prompt, row_advantages in zip(prompts, advantages, strict=True)
        ]

    def _log_probabilities(self, model: Any, prompts: Sequence[list[int]]) -> Tensor:
        """The log-probabilities of the token after each prompt (prompts, vocabulary)."""
        last_positions = [(row, len(ids) - 1) for row, ids in enumerate(prompts)]
        return log_probabilities_at(
            model, prompts, last_positions, self.settings["temperature"]
        )

    def _scores(self, rows: list[int], probabilities: Tensor) -> Tensor:
        """The score that each function gives each token as the answer (prompts,
        vocabulary, functions)."""
        vocabulary = probabilities.shape[1]
        if not self.texts:
            self.texts = [self.task.text([token]) for token in range(vocabulary)]
        scores = []
        for row in rows:
            exercise = self.exercises[row]
            for text in self.texts:
                for function in self.functions:
                    scores.append(function.score(exercise, text))
        shape = (len(rows), vocabulary, len(self.functions))
        return probabilities.new_tensor(scores).view(shape)

    def _rewards(self, scores: Tensor) -> Tensor:
        """The reward of each token as the answer (prompts, vocabulary): the weighted sum of
        its scores or, if it ends no completion and reward.truncated is set, that
        penalty."""
        weights = scores.new_tensor([function.weight for function in self.functions])
        rewards = scores @ weights
        penalty = self.settings["truncated"]
        if penalty is not None:
            is_truncated = torch.ones_like(rewards[0], dtype=torch.bool)
            is_truncated[[*self.task.ends]] = False
            rewards = rewards.masked_fill(is_truncated, penalty)
        return rewards

    def _measure_expectation(
        self, probabilities: Tensor, rewards: Tensor, scores: Tensor
    ) -> None:
        """Fills the step's metrics, under TRL's names, with the expectations of what it
        measures on samples. All completions here have one token: one that is no end
        token counts as truncated."""
        end_probabilities = probabilities[:, [*self.task.ends]].sum(1)
        means = (probabilities * rewards).sum(1)
        variances = (probabilities * rewards.square()).sum(1) - means.square()
        # over all answers to all prompts: the variance within prompts and between them
        total_variance = variances.mean() + means.var(correction=0)
        rewards_agree = torch.isclose(
            variances, torch.zeros_like(variances), atol=1e-12
        )
        self.metrics = {
            "reward": float(means.mean()),
            "reward_std": float(total_variance.clamp(min=0).sqrt()),
            "frac_reward_zero_std": float(rewards_agree.float().mean()),
            "completions/mean_length": 1.0,
            "completions/clipped_ratio": 1 - float(end_probabilities.mean()),
        }
        # where every prompt's rewards are equal, all advantages are 0
        self.has_signal = self.metrics["frac_reward_zero_std"] < 1
        if len(self.functions) > 1:
            for index, function in enumerate(self.functions):
                score = (probabilities * scores[:, :, index]).sum(1).mean()
                self.metrics[f"rewards/{function.name}/mean"] = float(score)


def expected_advantages(probabilities: Tensor, rewards: Tensor, scale: Scale) -> Tensor:
    """The advantage of each token over the expectation of its prompt: the
    limit of `group_advantages` for many samples.

    Args:
        probabilities: of each token as the answer (prompts, vocabulary).
        rewards: of each token (prompts, vocabulary).
        scale: see `group_advantages`.

    Returns:
        (prompts, vocabulary)."""
    means = (probabilities * rewards).sum(1, keepdim=True)
    advantages = rewards - means
    if scale == "none":
        return advantages
    variances = (probabilities * advantages.square()).sum(1, keepdim=True)
    if scale == "batch":
        variances = variances.mean() + means.var(correction=0)
    return advantages / (variances.sqrt() + STD_FLOOR)
