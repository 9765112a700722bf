"""The base of tasks with a prompt and its continuation: E2E's references, instructions'
responses, solutions.

A row is the token ids of both. The loss is the mean over the tokens of the
continuation. The metric of an epoch is the perplexity of the dev rows'
continuations."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.base import (
    Array,
    Batch,
    DataError,
    Settings,
    Task,
    block_size,
    draw_held_out_rows,
    first_line,
)
from tasks.forgetting import fixed_text

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.beam import BeamSearch


#: Prompts and their continuations, of train and dev.
Splits = Mapping[str, Sequence[tuple[str, str]]]


class Row(NamedTuple):
    """The token ids of a prompt and its continuation. last_given: the index of the last
    token that is given and not predicted; the loss is over all tokens after it. This is
    the prompt's last token, or 0 where the prompt is trained on, too."""

    ids: list[int]
    last_given: int

    @property
    def trained_tokens(self) -> int:
        """How many tokens the loss is over."""
        return len(self.ids) - 1 - self.last_given


class Continuations(Task):
    """See the module. `prepare` fills `_rows` from `splits`.

    label_smoothing: of the training loss, over the whole vocabulary; the dev loss is not
    smoothed. as_one: whether prompt and continuation are always tokenised as one text.
    Without it, a row in which a token would span both is tokenised in two parts: it then
    begins with the prompt's own tokens, which the trained model will have to continue."""

    metric = "perplexity"
    higher_is_better = False
    scale = 1.0
    reported = "last"
    num_labels = 0
    problem = "generation"
    label_smoothing = 0.0
    as_one = False

    def __init__(self, settings: Settings, splits: Splits) -> None:
        self.name = settings["name"]
        self.task_settings = settings
        self.splits = dict(splits)
        self.block = block_size(settings)
        self.fixed_text = fixed_text(settings)
        self.notes = []
        self._rows: dict[str, list[Row]] = {}
        #: By split, the indices of the pairs in `splits` that have a row.
        self.kept_rows: dict[str, list[int]] = {}

    def hold_out(self, share: float) -> None:
        """See Task.hold_out."""
        rows = self.splits["train"]
        groups = [0] * len(rows)  # all rows are one group: they have no classes
        dev_rows = draw_held_out_rows(groups, share, self.name)
        train_rows = sorted(set(range(len(rows))) - set(dev_rows))
        self.splits = {
            "train": [rows[i] for i in train_rows],
            "dev": [rows[i] for i in dev_rows],
        }
        self.notes.append(
            f"dev: {len(dev_rows)} of {len(rows)} training rows held out "
            f"(task.holdout={share:g})"
        )

    def take_tokenizer(
        self, tokenizer: "PreTrainedTokenizerBase", positions: int | None
    ) -> None:
        """Stores both (see Task.prepare), and tokenises the text that forgetting is
        measured on, where there is one."""
        self.tokenizer = tokenizer
        self.positions = positions
        if self.fixed_text:
            self.fixed_text.prepare(tokenizer, positions)

    def prepare(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        positions: int | None = None,
    ) -> None:
        """See Task.prepare. A row ends with the end token, or after max_length tokens.
        A row without a token to train on is left out, which a note says.
        task.train_on_inputs: the loss is over the prompt, too."""
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"{self.name}: the model's tokenizer has no end-of-text token"
            )
        self.take_tokenizer(tokenizer, positions)
        left_out = 0
        for split, pairs in self.splits.items():
            rows = self._tokenised(pairs, max_length)
            self.kept_rows[split] = [
                index for index, row in enumerate(rows) if row.trained_tokens > 0
            ]
            self._rows[split] = [rows[index] for index in self.kept_rows[split]]
            left_out += len(rows) - len(self._rows[split])
            if not self._rows[split]:
                raise DataError(
                    f"train.max_length={max_length} leaves no {split} row a response"
                )
        if left_out:
            self.notes.append(
                f"{left_out} rows left out, whose prompt fills "
                f"train.max_length={max_length}"
            )

    def _tokenised(
        self, pairs: Sequence[tuple[str, str]], max_length: int
    ) -> list[Row]:
        """The rows of pairs of prompt and response, each cut after max_length
        tokens."""
        tokenizer = self.tokenizer
        prompts = token_ids(tokenizer, [prompt for prompt, _ in pairs])
        texts = token_ids(tokenizer, [prompt + response for prompt, response in pairs])
        rows = []
        for prompt, ids, (_, response) in zip(prompts, texts, pairs, strict=True):
            if not self.as_one and ids[: len(prompt)] != prompt:
                encoded = tokenizer(response, add_special_tokens=False)
                ids = prompt + encoded["input_ids"]
            ids = [*ids, tokenizer.eos_token_id]
            last_given = len(prompt) - 1
            if self.task_settings.get("train_on_inputs"):
                last_given = 0
            rows.append(Row(ids[:max_length], last_given))
        return rows

    def lengths(self, split: str) -> Sequence[int]:
        return [len(row.ids) for row in self._rows[split]]

    def labels(self, split: str) -> Array:
        # A continuation has no label, but the loop needs one for each row
        return np.zeros(len(self._rows[split]), dtype=np.int64)

    def weight(self, split: str, indices: Sequence[int]) -> float:
        rows = self._rows[split]
        return sum(rows[i].trained_tokens for i in indices)

    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        """input_ids, attention_mask and targets (rows, tokens). targets: what each
        position predicts, -100 for none."""
        rows = [self._rows[split][i] for i in indices]
        shape = len(rows), max(len(row.ids) for row in rows)
        input_ids = np.zeros(shape, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, -100, dtype=np.int64)
        for number, (ids, last_given) in enumerate(rows):
            length = len(ids)
            input_ids[number, :length] = ids
            attention_mask[number, :length] = 1
            # The logits at a position predict the token after it
            targets[number, last_given : length - 1] = ids[last_given + 1 :]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "targets": targets,
        }

    def loss(self, model: "Module", batch: Batch) -> "Tensor":
        losses, _ = self._token_losses(model, batch, self.label_smoothing)
        return losses.mean()

    def answers(self, model: "Module", batch: Batch) -> tuple[float, Array]:
        """The mean loss over the batch's trained tokens; and (rows, 2), for each row the
        sum of its tokens' losses and their number."""
        losses, is_trained = self._token_losses(model, batch, 0.0)
        mean = float(losses.mean())
        # On the CPU, since Apple's GPUs have no float64
        losses = losses.cpu().double()
        is_trained = is_trained.cpu()
        losses_by_row = losses.new_zeros(is_trained.shape)
        losses_by_row[is_trained] = losses
        sums = losses_by_row.sum(1).numpy()
        counts = is_trained.sum(1).numpy()
        return mean, np.array([sums, counts]).T

    def _token_losses(
        self, model: "Module", batch: Batch, smoothing: float
    ) -> tuple["Tensor", "Tensor"]:
        """The losses (trained tokens,) of a batch, row by row, and the mask (rows, tokens)
        of the positions that predict these tokens."""
        from torch.nn.functional import cross_entropy

        is_trained = batch["targets"] != -100
        # The output layer is half of a small model's work, so a hook gives it only the
        # positions that are trained
        unwrapped: PreTrainedModel = getattr(model, "module", model)
        head = unwrapped.get_output_embeddings()
        hook = head.register_forward_pre_hook(
            lambda module, inputs: (inputs[0][is_trained],)
        )
        try:
            # No attention mask: padding is on the right, which a causal model does not
            # look at. No cache: no later call would read it
            outputs = model(input_ids=batch["input_ids"], use_cache=False)
        finally:
            hook.remove()
        losses = cross_entropy(
            outputs.logits.float(),
            batch["targets"][is_trained],
            reduction="none",
            label_smoothing=smoothing,
        )
        return losses, is_trained

    def predict(self, outputs: Array) -> Array:
        """The outputs themselves, from which `score` computes the perplexity."""
        return outputs

    def score(self, predictions: Array, labels: Array) -> float:
        """The perplexity. predictions: the losses and tokens of each row, (rows, 2).
        labels: not used."""
        losses, tokens = predictions.sum(0)
        # exp of more than 709 is no float
        return float(np.exp(min(losses / tokens, 700.0)))


class Written(Continuations):
    """A task whose trained model writes a text for each item; metrics score the texts at
    the end. `prepare` fills `_prompts`, the token ids of each item's prompt, and `ends`,
    the tokens that end a text.

    split: the split that the items are from; "none" decodes nothing. items: what the
    model continues; the first field of each is its prompt. variants: the names of the
    ways in which each item is decoded, the protocol's own way first."""

    def __init__(
        self,
        settings: Settings,
        splits: Splits,
        items: list[Any],
        variants: list[str],
    ) -> None:
        super().__init__(settings, splits)
        self.split: str = settings["decode"]
        self.decodes = self.split != "none"
        self.items = items
        self.variants = variants
        self.ends: tuple[int, ...] = ()
        self._prompts: list[list[int]] = []

    @abstractmethod
    def scores(self, texts: Sequence[str]) -> Mapping[str, Any]:
        """The metrics by name. texts: one for each item. A metric that cannot be computed
        here is None; the reason is then under "unavailable", by the metric's name."""

    def right(self, texts: Sequence[str]) -> list[bool] | None:
        """Whether the text of each item is right; None where texts are not right or
        wrong."""
        return None

    @abstractmethod
    def write(self, folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
        """Writes named texts and their references as files for the metrics' published
        scripts."""

    @abstractmethod
    def text(self, ids: list[int]) -> str:
        """The text that the metrics score, from the tokens that the model has written."""

    def settings(self) -> dict[str, Any]:
        """How texts are decoded, for the record."""
        settings = {
            key: self.task_settings[key]
            for key in DECODING_KEYS
            if key in self.task_settings
        }
        return settings | {"ends": list(self.ends)}

    def search(
        self, model: "PreTrainedModel", prompts: list[list[int]], steps: int
    ) -> list[list[list[int]]]:
        """The token ids, at most `steps`, with which the model continues each prompt. The
        lists are by prompt, then by variant, then by token. task.search=lora is the search
        of microsoft/LoRA, which tasks/beam.py has; any other value is transformers'."""
        from tasks import beam  # imports torch, which a plan does not need

        search = self._search_settings(steps)
        if self.task_settings.get("search") == "lora":
            return beam.beam_search(model, prompts, search)
        return beam.transformers_search(model, prompts, search)

    def decoding(self, model: "PreTrainedModel") -> dict[str, Any]:
        """How this model's texts are decoded, for the record: the task's settings,
        whether texts are sampled (do_sample), and, where transformers decodes, its
        settings after it has merged them with the model's own (generate)."""
        from tasks import beam

        if self.task_settings.get("search") == "lora":  # our own search never samples
            return {**self.settings(), "do_sample": False}
        search = self._search_settings(self.task_settings["max_new_tokens"])
        merged = beam.transformers_settings(model, self._prompts[0], search)
        do_sample = merged["do_sample"]
        return {**self.settings(), "do_sample": do_sample, "generate": merged}

    def _search_settings(self, steps: int) -> "BeamSearch":
        """The settings of a search for at most `steps` tokens."""
        from tasks import beam  # imports torch

        settings = self.task_settings
        penalties = settings.get("length_penalty", [1])
        return beam.BeamSearch(
            beams=settings["beams"],
            penalties=tuple(float(penalty) for penalty in penalties),
            no_repeat_ngram=settings.get("no_repeat_ngram", 0),
            max_new_tokens=steps,
            ends=self.ends,
        )

    def decode(
        self, model: "PreTrainedModel", indices: Sequence[int]
    ) -> list[dict[str, str]]:
        """The texts of each of these items, by variant (the name of a way of decoding; see
        the class)."""
        prompts = [self._prompts[i] for i in indices]
        steps = self.task_settings["max_new_tokens"]
        texts_of_items = []
        for ids_by_variant in self.search(model, prompts, steps):
            texts = [self.text(ids) for ids in ids_by_variant]
            texts_of_items.append(dict(zip(self.variants, texts, strict=True)))
        return texts_of_items

    def rehearse(self, model: "PreTrainedModel") -> None:
        """Decodes a few tokens before training. Raises DataError for a model that
        cannot be decoded."""
        try:
            self.search(model, self._prompts[:1], 2)
        except Exception as error:
            # a model's own code raises anything, for lack of a cache or an argument
            raise DataError(
                f"{self.name}: this model cannot be decoded ({first_line(error)}). "
                "task.decode=none trains without"
            ) from None

    def check_positions(self) -> None:
        """Raises DataError where a prompt and its text may have more tokens than the model
        has positions."""
        if not self._prompts or self.positions is None:
            return
        longest = max(len(prompt) for prompt in self._prompts)
        steps = self.task_settings["max_new_tokens"]
        if longest + steps > self.positions:
            raise DataError(
                f"task.max_new_tokens={steps}: with a prompt of {longest} tokens it "
                f"exceeds the model's {self.positions} positions"
            )


#: Settings of decoding; a task may lack some.
DECODING_KEYS = (
    "search",
    "beams",
    "length_penalty",
    "no_repeat_ngram",
    "max_new_tokens",
    "stops",
)


def token_ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]
) -> list[list[int]]:
    """Token ids, with the tokenizer's BOS if it has one, without an end token."""
    if not texts:
        return []
    rows = []
    for ids in tokenizer(list(texts))["input_ids"]:
        has_end = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
        rows.append(ids[:-1] if has_end else ids)
    return rows
