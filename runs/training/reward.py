"""Training by reward: a step samples completions of its prompts, scores them, and
follows the gradient of their group-relative advantages.

There is no value model and no replay: each step makes one update on what the current
adapter has sampled."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

import vera
from runs.record.files import write_atomically
from runs.run.reward_functions import (
    check_functions,
    completion_limit,
    load_functions,
    prompts_of_block,
)
from runs.training.batches import batches_of
from runs.training.context import Context, trained_parameters
from runs.training.policy import PolicyRow, policy_rows, token_tensors
from runs.training.policy_gradient import (
    completion_weights,
    group_advantages,
    k3_divergence,
    policy_loss,
)
from runs.training.sampling import (
    CompletionKey,
    sample_completions,
    uniform_numbers,
)
from tasks.exact import ExactTask

#: The note after steps by reward that cannot have taught anything.
NO_SIGNAL = (
    "since the last evaluation no prompt had completions of different rewards, so "
    "nothing was learned. Try a larger reward.samples, or start from a supervised run "
    "(init_from=)"
)
#: Of how many of a step's groups samples.jsonl shows the prompts and completions.
SHOWN_GROUPS = 2
#: In place of a step's number, for completions that are sampled before training.
BEFORE_TRAINING = 2**63 + 1
SAMPLES_FILE = "samples.jsonl"
#: Separates the order of permuted rewards from the numbers behind samples.
PERMUTATION_STREAM = 2
#: Positions in RewardObjective.token_sums: the number of tokens, and the sums of their
#: entropies and divergences from the reference policy.
TOKENS, ENTROPY, DIVERGENCE = range(3)


@dataclass(frozen=True)
class CompletionGroup:
    """A prompt's completions. row: the prompt's index in the training rows. completions:
    the token ids of each. scores: of each completion by each reward function."""

    row: int
    completions: list[list[int]]
    texts: list[str]
    scores: list[list[float]]


class RewardObjective:
    """What training by sampled rewards and training by expected rewards share; see
    Objective for its methods.

    settings: the run's configuration of the reward, config["reward"]. max_length: the
    most tokens of a completion. metrics: what the current step has measured, by the
    metric's name."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.task = cast(ExactTask, context.task)
        self.settings: Mapping[str, Any] = context.config["reward"]
        self.max_length = completion_limit(context.config)
        self.exercises = self.task.exercises("train")
        self.functions = load_functions(self.settings["function"], self.task)
        check_functions(self.functions, self.task)
        self.metrics: dict[str, float] = {}
        self.has_signal = True
        #: Sums over the predicted tokens of a step, by TOKENS, ENTROPY and DIVERGENCE.
        self.token_sums = torch.zeros(3, dtype=torch.float64)

    @property
    def unit(self) -> tuple[str, float]:
        return "points of mean reward", 100.0

    def finish(self) -> dict[str, float]:
        shares = gather_object([self.token_sums.tolist()])
        tokens, entropy, divergence = np.sum(shares, axis=0)  # over all processes
        self.metrics["entropy"] = float(entropy / tokens)
        if self.settings["kl"]:
            self.metrics["kl"] = float(divergence / tokens)
        return self.metrics


class Reward(RewardObjective):
    """The objective of training by reward; see Objective for its methods."""

    def __init__(self, context: Context, folder: Path) -> None:
        super().__init__(context)
        self.folder = folder
        #: The trained values at the start, from which the divergence is measured; empty
        #: without it (reward.kl=0).
        self.reference: dict[str, Tensor] = {}
        if self.settings["kl"]:
            self.reference = {
                name: parameter.detach().clone()
                for name, parameter in trained_parameters(context.raw_model).items()
            }

    # --- a step

    def begin(self, rows: list[int], step: int) -> Sequence[PolicyRow]:
        """See Objective."""
        self.token_sums.zero_()
        switch_off_dropout(self.context.raw_model)
        groups = self._sample(rows, step)
        rewards = self._rewards(groups)
        trained_rewards = rewards
        # a control run, from whose rewards nothing can be learned
        if self.settings["permuted"]:
            seed = self.context.config["seed"]
            trained_rewards = permuted_rewards(rewards, seed, step)
        advantages = group_advantages(trained_rewards, self.settings["scale"])
        lengths = torch.tensor(
            [[len(ids) for ids in group.completions] for group in groups]
        )
        weights = completion_weights(
            lengths.flatten().float(), self.settings["loss"], self.max_length
        ).view(lengths.shape)
        self._measure(groups, rewards, lengths)
        self._write_samples(groups, rewards, step)
        items: list[PolicyRow] = []
        for group, advantages_of_group, weights_of_group in zip(
            groups, advantages.tolist(), weights.tolist(), strict=True
        ):
            prompt = self.exercises[group.row].prompt_ids
            items += policy_rows(
                prompt, group.completions, advantages_of_group, weights_of_group
            )
        if self.settings["kl"]:
            items = self._with_reference(items)
        return items

    def share(
        self, micro_batch: Sequence[PolicyRow], items: Sequence[PolicyRow]
    ) -> float:
        """See Objective. It is 1: the tokens' weights are those of the whole step, so the
        losses of micro-batches add up already."""
        return 1.0

    def loss(self, model: Any, micro_batch: Sequence[PolicyRow]) -> Tensor:
        kl = self.settings["kl"]
        tokens = token_tensors(model, micro_batch, self.settings["temperature"])
        reference_log_p = None
        if kl:
            values = [value for row in micro_batch for value in row.reference]
            reference_log_p = tokens.log_p.new_tensor(values)
        loss = policy_loss(
            tokens.log_p, tokens.advantages, tokens.weights, kl, reference_log_p
        )
        self.token_sums[TOKENS] += len(tokens.log_p)
        self.token_sums[ENTROPY] += tokens.entropies.double().sum().cpu()
        if reference_log_p is not None:
            divergence = k3_divergence(tokens.log_p.detach(), reference_log_p)
            self.token_sums[DIVERGENCE] += divergence.double().sum().cpu()
        return loss

    # --- before the first step

    def add_gradient(self, rows: list[int]) -> None:
        """See Objective. It is the gradient of the mean reward: the mean over
        completions of the advantage times the log-probability, whatever reward.scale
        and reward.loss are."""
        model = self.context.raw_model
        switch_off_dropout(model)
        groups = self._sample(rows, BEFORE_TRAINING)
        rewards = self._rewards(groups)
        samples = rewards.shape[1]
        # A group's mean includes the completion's own reward, which makes its difference
        # from the mean too small by this factor.
        advantages = group_advantages(rewards, scale="none") * samples / (samples - 1)
        weights = [1 / rewards.numel()] * samples
        items: list[PolicyRow] = []
        for group, advantages_of_group in zip(groups, advantages.tolist(), strict=True):
            prompt = self.exercises[group.row].prompt_ids
            items += policy_rows(
                prompt, group.completions, advantages_of_group, weights
            )
        size = self.context.config["micro_batch"] or len(items)
        for micro_batch in batches_of(items, size):
            tokens = token_tensors(model, micro_batch, self.settings["temperature"])
            loss = policy_loss(tokens.log_p, tokens.advantages, tokens.weights)
            torch.autograd.backward(loss)

    # --- sampling and scoring

    @torch.no_grad()
    def _sample(self, rows: list[int], step: int) -> list[CompletionGroup]:
        """Samples and scores completions of these rows' prompts: a group for each, in
        the order of the rows. Processes share the blocks of prompts."""
        accelerator = self.context.accelerator
        blocks = batches_of(rows, prompts_of_block(self.context.config))
        groups = []
        for block in blocks[accelerator.process_index :: accelerator.num_processes]:
            self.context.stop.check()
            prompts = [self.exercises[row].prompt_ids for row in block]
            uniform = np.array([self._uniform_numbers(row, step) for row in block])
            with vera.unchanged(self.context.raw_model), accelerator.autocast():
                completions = sample_completions(
                    self.context.raw_model,
                    prompts,
                    uniform,
                    self.settings["temperature"],
                    self.task.ends,
                )
            groups += [
                self._score(row, row_completions)
                for row, row_completions in zip(block, completions, strict=True)
            ]
        # accelerate joins the processes' lists
        group_by_row = {group.row: group for group in gather_object(groups)}
        return [group_by_row[row] for row in rows]

    def _uniform_numbers(self, row: int, step: int) -> np.ndarray:
        """The random numbers of the completions of a row's prompt (samples, tokens)."""
        seed = self.context.config["seed"]
        return np.array(
            [
                uniform_numbers(CompletionKey(seed, step, row, sample), self.max_length)
                for sample in range(self.settings["samples"])
            ]
        )

    def _score(self, row: int, completions: list[list[int]]) -> CompletionGroup:
        """The group of a row's prompt: its completions with their texts and scores."""
        exercise = self.exercises[row]
        texts = [self.task.text(ids) for ids in completions]
        scores = [
            [function.score(exercise, text) for function in self.functions]
            for text in texts
        ]
        return CompletionGroup(row, completions, texts, scores)

    def _rewards(self, groups: Sequence[CompletionGroup]) -> Tensor:
        """The reward of each completion (prompts, samples): the weighted sum of its
        scores or, if it is truncated and reward.truncated is set, that penalty."""
        scores = torch.tensor([group.scores for group in groups])
        weights = torch.tensor([function.weight for function in self.functions])
        rewards = (scores * weights).sum(-1)
        penalty = self.settings["truncated"]
        if penalty is not None:
            is_truncated = [
                [ids[-1] not in self.task.ends for ids in group.completions]
                for group in groups
            ]
            rewards = rewards.masked_fill(torch.tensor(is_truncated), penalty)
        return rewards

    # --- the reference model

    @torch.no_grad()
    def _with_reference(self, rows: Sequence[PolicyRow]) -> list[PolicyRow]:
        """Adds to this process's rows the log-probabilities of their tokens under the
        model at the start of training; the rows of other processes stay without.

        The start's values take the place of the trained ones meanwhile. That happens
        before the step's micro-batches, which may share a merged weight."""
        accelerator = self.context.accelerator
        trained = trained_parameters(self.context.raw_model)
        current = {name: p.detach().clone() for name, p in trained.items()}
        for name, parameter in trained.items():
            parameter.copy_(self.reference[name])
        complete_rows = list(rows)
        # The loop gives each process these items of a step, too.
        own_indices = range(
            accelerator.process_index, len(rows), accelerator.num_processes
        )
        size = self.context.config["micro_batch"] or len(rows)
        with accelerator.autocast():
            for indices in batches_of(own_indices, size):
                micro_batch = [rows[index] for index in indices]
                tokens = token_tensors(
                    self.context.raw_model, micro_batch, self.settings["temperature"]
                )
                log_p = tokens.log_p.tolist()
                for index, row in zip(indices, micro_batch, strict=True):
                    count = len(row.tokens)
                    complete_rows[index] = replace(row, reference=log_p[:count])
                    log_p = log_p[count:]
        for name, parameter in trained.items():
            parameter.copy_(current[name])
        return complete_rows

    # --- what is shown

    def _measure(
        self, groups: Sequence[CompletionGroup], rewards: Tensor, lengths: Tensor
    ) -> None:
        """Fills the step's metrics, under TRL's names. lengths: of each completion in
        tokens (prompts, samples), as the rewards are."""
        last_tokens = [ids[-1] for group in groups for ids in group.completions]
        is_truncated = [token not in self.task.ends for token in last_tokens]
        rewards_agree = torch.isclose(rewards.std(1), torch.zeros(()))
        self.metrics = {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "frac_reward_zero_std": float(rewards_agree.float().mean()),
            "completions/mean_length": float(lengths.float().mean()),
            "completions/clipped_ratio": sum(is_truncated) / len(is_truncated),
        }
        # Where every prompt's rewards are equal, all advantages are 0. Permuted ones need
        # not be, but without a signal the loop only leaves out a check.
        self.has_signal = self.metrics["frac_reward_zero_std"] < 1
        scores = np.array([group.scores for group in groups])
        if len(self.functions) > 1:
            for index, function in enumerate(self.functions):
                name = f"rewards/{function.name}/mean"
                self.metrics[name] = float(scores[:, :, index].mean())

    def _write_samples(
        self, groups: Sequence[CompletionGroup], rewards: Tensor, step: int
    ) -> None:
        """Adds some of a step's completions to samples.jsonl every
        reward.samples_every steps."""
        interval = self.settings["samples_every"]
        is_main = self.context.accelerator.is_main_process
        if not is_main or not interval or step % interval:
            return
        path = self.folder / SAMPLES_FILE
        lines = []
        if path.exists():
            # A resumed run repeats the steps after its checkpoint: their lines, which
            # count steps from 1, are replaced.
            for line in path.read_text(encoding="utf-8").splitlines():
                if json.loads(line)["step"] <= step:
                    lines.append(line)
        for group, group_rewards in zip(groups[:SHOWN_GROUPS], rewards, strict=False):
            exercise = self.exercises[group.row]
            for text, reward in zip(group.texts, group_rewards.tolist(), strict=True):
                sample = {
                    "step": step + 1,
                    "prompt": exercise.prompt,
                    "completion": text,
                    "answer": exercise.answer,
                    "reward": reward,
                }
                lines.append(json.dumps(sample, ensure_ascii=False))
        write_atomically(path, "".join(f"{line}\n" for line in lines))


def permuted_rewards(rewards: Tensor, seed: int, step: int) -> Tensor:
    """The rewards of a step in a random order, so that they say nothing about the
    completions that get them: a control, from which nothing can be learned. rewards:
    (prompts, samples)."""
    bits = np.random.Philox(key=[seed, step], counter=[0, PERMUTATION_STREAM, 0, 0])
    order = np.random.Generator(bits).permutation(rewards.numel())
    return rewards.flatten()[torch.from_numpy(order)].view_as(rewards)


def switch_off_dropout(model: nn.Module) -> None:
    """Switches dropout off for training by reward. With it the model that samples a
    token and the model whose probability of the token is trained would differ, and the
    gradient would not be that of the sampled tokens' probabilities.

    Layers that recompute their activations in the backward pass (gradient
    checkpointing) stay in training mode, since transformers recomputes in no other; the
    modules inside them, which hold the dropout, do not stay in it."""
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
