"""Training by reward has the gradients of TRL's GRPOTrainer."""

import pytest
import torch
from tiny import save_llama
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from runs.training.policy import policy_rows, token_tensors
from runs.training.policy_gradient import (
    completion_weights,
    group_advantages,
    policy_loss,
)

pytestmark = [pytest.mark.parity, pytest.mark.slow]

MAX_LENGTH = 6
TEMPERATURE = 0.7
CLIP = 0.05
PROMPTS = ["one two", "three four five six", "seven"]
#: By prompt and sample, in tokens of the test's own; END is replaced by the end token.
END = -1
COMPLETIONS = [
    [[5, 9, END], [11, END], [7, 7, 30, 2, 8, END], [40, 3, 12, 6, 1, 9]],  # truncated
    [[END], [21, 22, 23, END], [24, END], [25, 26, END]],
    [[31, 32, END], [33, 34, 35, 36, END], [37, END], [38, END]],
]
#: The second prompt's group has no signal.
REWARDS = [[1.0, 0.0, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]


class CaughtGradients(TrainerCallback):
    """Keeps the clipped gradients of the first step."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters()
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama whose logits are far from uniform."""
    return save_llama(tmp_path_factory.mktemp("llama"), initializer_range=0.3)


@pytest.fixture(scope="module")
def tokenizer(folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder):
    """In float64: rounding would hide a difference of 1e-6."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def completions_with(end):
    return [
        [[end if token == END else token for token in ids] for ids in group]
        for group in COMPLETIONS
    ]


def trl_gradients(folder, tokenizer, output, loss, scale, kl):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    completions = completions_with(tokenizer.eos_token_id)

    def rollout(prompts, trainer):
        """The fixed completions, for TRL's list of repeated prompts."""
        order = [PROMPTS.index(prompt) for prompt in prompts]
        samples = [order[:i].count(prompt) for i, prompt in enumerate(order)]
        ids = [completions[p][s] for p, s in zip(order, samples, strict=True)]
        rewards = [REWARDS[p][s] for p, s in zip(order, samples, strict=True)]
        return {
            "prompt_ids": tokenizer(prompts)["input_ids"],
            "completion_ids": ids,
            "logprobs": None,
            "fixed_reward": rewards,
        }

    def fixed_rewards(completions, fixed_reward, **columns):
        return fixed_reward

    caught = CaughtGradients()
    trainer = GRPOTrainer(
        model=load_model(folder),
        reward_funcs=fixed_rewards,
        args=GRPOConfig(
            output_dir=str(output),
            per_device_train_batch_size=4,  # three micro-batches
            gradient_accumulation_steps=3,
            num_generations=4,
            max_completion_length=MAX_LENGTH,
            temperature=TEMPERATURE,
            loss_type=loss,
            scale_rewards=scale,
            beta=kl,
            max_grad_norm=CLIP,
            max_steps=1,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        rollout_func=rollout,
        callbacks=[caught],
    )
    trainer.train()
    return caught.gradients


def our_gradients(folder, tokenizer, loss, scale, size):
    """size: prompts of a micro-batch."""
    model = load_model(folder)
    completions = completions_with(tokenizer.eos_token_id)
    advantages = group_advantages(torch.tensor(REWARDS), scale)
    lengths = [[len(ids) for ids in group] for group in completions]
    weights = completion_weights(
        torch.tensor(lengths).flatten().float(), loss, MAX_LENGTH
    )
    weights = weights.view(advantages.shape)
    prompts = tokenizer(PROMPTS)["input_ids"]
    rows = []
    for prompt, group, of_group, of_tokens in zip(
        prompts, completions, advantages.tolist(), weights.tolist(), strict=True
    ):
        rows += policy_rows(prompt, group, of_group, of_tokens)
    for start in range(0, len(rows), size):
        tokens = token_tensors(model, rows[start : start + size], TEMPERATURE)
        policy_loss(tokens.log_p, tokens.advantages, tokens.weights).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def distance(ours, theirs):
    """The norm of the difference of all gradients, relative to the norm of theirs. TRL
    computes log-probabilities in float32, so single tensors differ by up to 2e-6."""
    differences = [ours[name] - theirs[name] for name in theirs]
    norm = torch.cat([gradient.flatten() for gradient in theirs.values()]).norm()
    return torch.cat([part.flatten() for part in differences]).norm() / norm


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_gradients_equal_those_of_trl(folder, tokenizer, tmp_path, loss, scale):
    """With completions of unlike length, one of which is truncated, a group without a
    signal, several micro-batches, a temperature other than 1, and clipping."""
    theirs = trl_gradients(folder, tokenizer, tmp_path, loss, scale, kl=0.0)
    for size in (12, 5):
        ours = our_gradients(folder, tokenizer, loss, scale, size)
        assert ours.keys() == theirs.keys()
        assert distance(ours, theirs) <= 1e-6
