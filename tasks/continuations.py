"""The base of tasks with a prompt and its continuation: E2E's references, instructions'
responses, solutions.

A row is the token ids of both. The loss is the mean over the tokens of the
continuation. The metric of an epoch is the perplexity of the dev rows'
continuations."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import Array, DataError, Task, block, first_line, held_out
from tasks.forgetting import fixed_text

#: Prompts and their continuations, of train and dev.
Splits = Mapping[str, Sequence[tuple[str, str]]]
#: Token ids, and the index of the prompt's last token, which predicts the
#: continuation's first.
Row = tuple[list[int], int]


class Continuations(Task):
    """See the module. `prepare` fills `_rows` from `splits`.

    label_smoothing: of the training loss, over the whole vocabulary; the dev loss has
    none. as_one: prompt and continuation are one text, even where a token then spans
    both. Else such a row has the prompt's own tokens, with which the model is asked at
    the end."""

    metric = "perplexity"
    higher_is_better = False
    scale = 1.0
    reported = "last"
    num_labels = 0
    problem = "generation"
    label_smoothing = 0.0
    as_one = False

    def __init__(self, settings: Any, splits: Splits) -> None:
        self.name, self.how, self.splits = settings["name"], settings, dict(splits)
        self.block, self.fixed_text = block(settings), fixed_text(settings)
        self.notes, self._rows = list[str](), dict[str, list[Row]]()

    def hold_out(self, share: float) -> None:
        """See Task.hold_out."""
        rows = self.splits["train"]
        held = set(held_out([0] * len(rows), share, self.name))
        rest = [row for i, row in enumerate(rows) if i not in held]
        self.splits = {"train": rest, "dev": [rows[i] for i in sorted(held)]}
        self.notes.append(
            f"dev: {len(held)} of {len(rows)} training rows held out (task.holdout={share:g})"
        )

    def prepare_text(self, tokenizer: Any, positions: int | None) -> None:
        """Tokenises the text that forgetting is measured on, where there is one."""
        self.tokenizer, self.positions = tokenizer, positions
        if self.fixed_text:
            self.fixed_text.prepare(tokenizer, positions)

    def prepare(
        self, tokenizer: Any, max_length: int, positions: int | None = None
    ) -> None:
        """See Task.prepare. A row ends with the end token, or after max_length tokens.
        A row without a token to train on is left out, which a note says.
        task.train_on_inputs: the loss is over the prompt, too."""
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"{self.name}: the model's tokenizer has no end-of-text token"
            )
        self.prepare_text(tokenizer, positions)
        left_out = 0
        for split, pairs in self.splits.items():
            prompts = token_ids(tokenizer, [prompt for prompt, _ in pairs])
            whole = token_ids(
                tokenizer, [prompt + response for prompt, response in pairs]
            )
            self._rows[split] = []
            for prompt, both, (_, response) in zip(prompts, whole, pairs, strict=True):
                if not self.as_one and both[: len(prompt)] != prompt:
                    both = (
                        prompt
                        + tokenizer(response, add_special_tokens=False)["input_ids"]
                    )
                ids = [*both, tokenizer.eos_token_id][:max_length]
                last = 0 if self.how.get("train_on_inputs") else len(prompt) - 1
                if len(ids) > last + 1:
                    self._rows[split].append((ids, last))
            left_out += len(pairs) - len(self._rows[split])
            if not self._rows[split]:
                raise DataError(
                    f"train.max_length={max_length} leaves no {split} row a response"
                )
        if left_out:
            self.notes.append(
                f"{left_out} rows left out, whose prompt fills train.max_length={max_length}"
            )

    def lengths(self, split: str) -> Sequence[int]:
        return [len(ids) for ids, _ in self._rows[split]]

    def labels(self, split: str) -> Array:
        # A continuation has no label, but the loop wants one for each row
        return np.zeros(len(self._rows[split]), dtype=np.int64)

    def weight(self, split: str, indices: Sequence[int]) -> float:
        return sum(
            len(ids) - 1 - last for ids, last in (self._rows[split][i] for i in indices)
        )

    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        """input_ids, attention_mask, targets (rows, tokens): what each position
        predicts, -100 for none."""
        rows = [self._rows[split][i] for i in indices]
        width = max(len(ids) for ids, _ in rows)
        batch = {
            "input_ids": np.zeros((len(rows), width), dtype=np.int64),
            "attention_mask": np.zeros((len(rows), width), dtype=np.int64),
            "targets": np.full((len(rows), width), -100, dtype=np.int64),
        }
        for row, (ids, last) in enumerate(rows):
            batch["input_ids"][row, : len(ids)] = ids
            batch["attention_mask"][row, : len(ids)] = 1
            batch["targets"][row, last : len(ids) - 1] = ids[last + 1 :]
        return batch

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Any:
        return self._token_losses(model, batch, self.label_smoothing)[0].mean()

    def answers(self, model: Any, batch: Mapping[str, Any]) -> tuple[float, Array]:
        """The mean loss over the batch's tokens, and for each row the sum of its losses
        and their number."""
        losses, trained = self._token_losses(model, batch, 0.0)
        mean, losses, trained = (
            float(losses.mean()),
            losses.cpu().double(),
            trained.cpu(),
        )
        # on the CPU: Apple's GPUs have no float64
        by_row = losses.new_zeros(trained.shape)
        by_row[trained] = losses
        return mean, np.array([by_row.sum(1).numpy(), trained.sum(1).numpy()]).T

    def _token_losses(
        self, model: Any, batch: Mapping[str, Any], smoothing: float
    ) -> tuple[Any, Any]:
        """The losses (trained tokens,) of a batch, row by row, and these tokens' mask
        (rows, tokens)."""
        from torch.nn.functional import cross_entropy

        trained = batch["targets"] != -100
        # The output layer is half of a small model's work, so it gets only positions
        # that are trained
        head = getattr(model, "module", model).get_output_embeddings()
        hook = head.register_forward_pre_hook(
            lambda module, inputs: (inputs[0][trained],)
        )
        try:
            # No mask: padding stands to the right, where no token looks. No cache,
            # which no call would read
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits.float()
        finally:
            hook.remove()
        targets = batch["targets"][trained]
        return cross_entropy(
            logits, targets, reduction="none", label_smoothing=smoothing
        ), trained

    def predict(self, outputs: Array) -> Array:
        return outputs

    def score(self, predictions: Array, labels: Array) -> float:
        losses, tokens = predictions.sum(0)
        return float(np.exp(min(losses / tokens, 700.0)))


class Written(Continuations):
    """Continuations that a trained model writes, a text for each item, which several
    metrics score at the end. `prepare` fills `_prompts`, an item's tokens, and `ends`,
    the tokens that end a text.

    split: of the items. items: each begins with its prompt. variants: of decoding, the
    protocol's first."""

    def __init__(
        self, settings: Any, splits: Any, items: list[Any], variants: list[str]
    ) -> None:
        super().__init__(settings, splits)
        self.split, self.items, self.variants = settings["decode"], items, variants
        self.decodes, self._prompts = self.split != "none", list[list[int]]()
        self.ends: tuple[int, ...] = ()

    @abstractmethod
    def scores(self, texts: Sequence[str]) -> dict[str, Any]:
        """The metrics by name, from one text for each item; None for one that cannot be
        computed here, with the reason under "unavailable"."""

    @abstractmethod
    def write(self, folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
        """Writes named texts and their references as files for the metrics' published
        scripts."""

    @abstractmethod
    def text(self, ids: list[int]) -> str:
        """What the metrics get of the tokens that the model has written."""

    def settings(self) -> dict[str, Any]:
        """How texts are decoded, for the record."""
        keys = (
            "search",
            "beams",
            "length_penalty",
            "no_repeat_ngram",
            "max_new_tokens",
            "stops",
        )
        return {key: self.how[key] for key in keys if key in self.how} | {
            "ends": list(self.ends)
        }

    def search(
        self, model: Any, prompts: list[list[int]], steps: int
    ) -> list[list[list[int]]]:
        """Token ids, at most `steps`, that the model writes to each prompt, by
        variant."""
        from tasks import beam  # imports torch, which a plan does not need

        how, penalties = (
            self.how,
            tuple(map(float, self.how.get("length_penalty", [1]))),
        )
        search = beam.Search(
            how["beams"], penalties, how.get("no_repeat_ngram", 0), steps, self.ends
        )
        by = (
            beam.beam_search
            if how.get("search") == "lora"
            else beam.transformers_search
        )
        return by(model, prompts, search)

    def decode(self, model: Any, indices: Sequence[int]) -> list[dict[str, str]]:
        """The texts of each of these items, by variant."""
        found = self.search(
            model, [self._prompts[i] for i in indices], self.how["max_new_tokens"]
        )
        return [
            dict(zip(self.variants, map(self.text, texts), strict=True))
            for texts in found
        ]

    def rehearse(self, model: Any) -> None:
        """Decodes a few tokens before training. Raises DataError for a model that
        cannot be decoded."""
        try:
            self.search(model, self._prompts[:1], 2)
        except Exception as error:
            # a model's own code raises anything, for lack of a cache or an argument
            why = f"this model cannot be decoded ({first_line(error)}). task.decode=none trains without"
            raise DataError(f"{self.name}: {why}") from None

    def check_positions(self) -> None:
        """Raises DataError where a prompt and its text can be more than the model's
        positions."""
        longest, new = (
            max(map(len, self._prompts), default=0),
            self.how["max_new_tokens"],
        )
        if (
            self._prompts
            and self.positions is not None
            and longest + new > self.positions
        ):
            why = f"with a prompt of {longest} tokens it exceeds the model's {self.positions} positions"
            raise DataError(f"task.max_new_tokens={new}: {why}")


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids, with the tokenizer's BOS if it has one, without an end token."""
    rows: list[list[int]] = tokenizer(list(texts))["input_ids"] if texts else []
    end = tokenizer.eos_token_id
    return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in rows]
