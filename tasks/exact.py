"""The base of task families whose trained model writes texts that are read for an exact
answer.

A training row is prompt and response, tokenised as one text as in the code behind the
papers' numbers, and the end token. After training the model continues each test item's
prompt once, greedily or with beams; nothing is sampled. A reader finds the answer in
the text, which is right or wrong."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from tasks.base import (
    Array,
    DataError,
    Settings,
    check_setting,
    draw_held_out_rows,
    fixed_subset,
)
from tasks.continuations import Row, Splits, Written, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: By test set: prompts with their expected answers, in the form that the reader returns.
#: A row whose answer is None always counts as wrong.
Tests = dict[str, list[tuple[str, str | None]]]
#: Takes test set, prompt and text (without the prompt and an end token), and returns
#: the answer in the text, or None if there is none.
Read = Callable[[str, str, str], str | None]

#: How many tokens follow the answer of a demonstration.
FILLER_TOKENS = 8
#: From how many different tokens each of them is drawn: it carries 4 bits.
FILLER_CHOICES = 16
#: A part of the generator's counter: it keeps the random numbers behind these tokens apart
#: from those behind batches, samples and permuted rewards.
FILLER_STREAM = 3


class Item(NamedTuple):
    """A prompt that the trained model continues. answer: the expected one (see Tests).
    part: the name of the test set."""

    prompt: str
    answer: str | None
    part: str


class Exercise(NamedTuple):
    """A row of train or dev whose answer the model has to write, in training by reward or
    when dev rows are scored. answer: as the reader finds it in the row's response. If it
    is None, no text is right."""

    prompt: str
    prompt_ids: list[int]
    answer: str | None


class Reading(TypedDict):
    """How a text was read. part: its test set. expected, read: the item's answer, and the
    one that was found in the text, if any. reason: why it is wrong; "" if it is right."""

    part: str
    prompt: str
    text: str
    expected: str | None
    read: str | None
    right: bool
    reason: str


class ExactScores(TypedDict):
    """All in percent. exact_match: the task's score. parts: the score of each test set.
    unread: the share of texts in which no answer was found."""

    exact_match: float
    parts: dict[str, float]
    unread: float


class ExactTask(Written):
    """See the module.

    Args:
        tests: the rows of each test set, of which task.items are decoded.
        read: finds the answer in a text.
        headline: the test set whose score is the task's; None for the mean over all
            test sets.
        groups: by test set the number of each row's group, where rows resemble each
            other; see Task.item_groups.
        training_part: the test set that `read` is given for train and dev rows; by
            default `headline`, or else the first test set.
        read_response: finds the answer in the response of a train or dev row; by default
            `read` does.
        problem_key: turns a prompt into a text that is the same for all prompts of one
            problem.
        train_groups: the number of each training row's group. task.holdout then holds
            out whole groups."""

    as_one = True
    items: list[Item]
    #: What the model's chat template gets beside the messages (model.chat).
    chat_variables: Mapping[str, object] = {}

    def __init__(
        self,
        settings: Settings,
        splits: Splits,
        tests: Tests,
        read: Read,
        headline: str | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
        training_part: str | None = None,
        read_response: Callable[[str], str | None] | None = None,
        problem_key: Callable[[str], str] = str.strip,
        train_groups: Sequence[int] | None = None,
    ) -> None:
        decode = settings["decode"]
        beams = settings["beams"]
        check_setting(settings, "decode", decode in ("test", "none"), "test or none")
        variant = "greedy" if beams == 1 else f"beams{beams}"
        super().__init__(settings, splits, [], [variant])
        self.read = read
        self.read_response = read_response
        self.headline = headline
        self.training_part = headline or next(iter(tests), "")
        if training_part is not None:  # "" is a value, too: of no single test set
            self.training_part = training_part
        self.problem_key = problem_key
        self.train_groups = train_groups
        if settings.get("dev_score") == "exact_match":
            self.use_exact_match_as_metric()
        if self.decodes:
            self._take_items(tests, groups)

    def _take_items(
        self, tests: Tests, groups: Mapping[str, Sequence[int]] | None
    ) -> None:
        """Fills `items` with as many rows of each test set as task.items says, or with all
        of them."""
        item_groups = []
        for part, rows in tests.items():
            if not rows:
                raise DataError(f"{self.name}: the test set {part} has no rows")
            indices = fixed_subset(len(rows), self.task_settings["items"], part)
            self.items += [Item(*rows[i], part) for i in indices]
            if groups is not None:
                item_groups += [groups[part][i] for i in indices]
            if len(indices) < len(rows):
                self.notes.append(
                    f"{len(indices)} of the {len(rows)} items of {part} are decoded"
                )
        if groups is not None:
            self.item_groups = item_groups

    def prepare(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        positions: int | None = None,
    ) -> None:
        """See Task.prepare. Also tokenises the prompts that are decoded, and checks that
        they and their answers fit into the model's positions. task.chat_template: the
        prompts are messages of a user in the model's own form."""
        if self.task_settings.get("chat_template"):
            self._apply_chat_template(tokenizer)
        super().prepare(tokenizer, max_length, positions)
        self.ends = (tokenizer.eos_token_id,)
        self._prompts = token_ids(tokenizer, [item.prompt for item in self.items])
        self.check_positions()

    def _apply_chat_template(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Writes every prompt as a user's message in the form of the model's chat template.
        Raises DataError for a model without one."""
        if not tokenizer.chat_template:
            raise DataError(
                "task.chat_template=true: the model's tokenizer has no chat template"
            )

        def as_message(prompt: str) -> str:
            messages = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                **self.chat_variables,
            )
            # Templates write the beginning token, too: it is removed here where the
            # tokenizer adds it to every text
            if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
                return str(text).removeprefix(str(tokenizer.bos_token or ""))
            return str(text)

        self.splits = {
            split: [(as_message(prompt), response) for prompt, response in pairs]
            for split, pairs in self.splits.items()
        }
        self.items = [
            Item(as_message(item.prompt), item.answer, item.part) for item in self.items
        ]

    # --- rows of train and dev that are answered

    def hold_out(self, share: float) -> None:
        """See Task.hold_out. Groups are held out as a whole, where the rows have any."""
        if self.train_groups is None:
            super().hold_out(share)
            return
        rows = self.splits["train"]
        groups = sorted(set(self.train_groups))
        # What is drawn here are groups, as the rows of a single pool
        drawn = draw_held_out_rows([0] * len(groups), share, self.name)
        dev_groups = {groups[i] for i in drawn}
        train = []
        dev = []
        for row, group in zip(rows, self.train_groups, strict=True):
            if group in dev_groups:
                dev.append(row)
            else:
                train.append(row)
        self.splits = {"train": train, "dev": dev}
        self.notes.append(
            f"dev: {len(dev)} of {len(rows)} training rows held out in whole "
            f"groups (task.holdout={share:g})"
        )

    def use_exact_match_as_metric(self) -> None:
        """Makes the share of dev rows that the model answers exactly the metric of an
        epoch, in place of the perplexity."""
        self.answers_dev = True
        self.metric = "exact_match"
        self.higher_is_better = True
        self.scale = 100.0

    def exercises(self, split: str) -> list[Exercise]:
        """The rows of a prepared split, in its order, without those that `prepare` left
        out."""
        pairs = [self.splits[split][i] for i in self.kept_rows[split]]
        all_ids = token_ids(self.tokenizer, [prompt for prompt, _ in pairs])
        return [
            Exercise(prompt, ids, self.expected(prompt, response))
            for (prompt, response), ids in zip(pairs, all_ids, strict=True)
        ]

    def expected(self, prompt: str, response: str) -> str | None:
        """The answer in the response of a train or dev row; None if there is none."""
        if self.read_response is not None:
            return self.read_response(response)
        return self.read(self.training_part, prompt, response)

    def is_right(self, exercise: Exercise, text: str) -> bool:
        """Whether a text answers a row."""
        answer = self.read(self.training_part, exercise.prompt, text)
        return answer is not None and answer == exercise.answer

    def score(self, predictions: Array, labels: Array) -> float:
        """The perplexity or, where dev rows are answered, the share of greedy answers that
        are right. predictions: in the second case (rows, 1 + samples), of 1 for a right
        answer and 0 for a wrong one; the greedy answer comes first, then the samples."""
        if self.answers_dev:
            return float(predictions[:, 0].mean())
        return super().score(predictions, labels)

    # --- training rows as demonstrations

    def add_filler_tokens(self, seed: int) -> None:
        """Adds FILLER_TOKENS random tokens to each training row, after the answer and
        before the end token. Neither the prompt nor the answer determines them, and no
        score reads them: they stand for all that a demonstration shows beside its
        answer. They are drawn evenly from FILLER_CHOICES tokens of the vocabulary, none
        of which is special.

        seed: of the run. It chooses these tokens, and a row has the same ones in all
        epochs.

        Raises DataError for a row that train.max_length cuts, which has no end."""
        tokenizer = self.tokenizer
        ordinary = np.setdiff1d(
            np.arange(tokenizer.vocab_size), tokenizer.all_special_ids
        )
        rows = self._rows["train"]
        bits = np.random.Philox(key=[seed, 0], counter=[0, FILLER_STREAM, 0, 0])
        generator = np.random.Generator(bits)
        choices = generator.choice(ordinary, FILLER_CHOICES, replace=False)
        filler = generator.choice(choices, (len(rows), FILLER_TOKENS))
        extended = []
        for row, tokens in zip(rows, filler.tolist(), strict=True):
            *text, last_token = row.ids
            if last_token not in self.ends:
                raise DataError(
                    "train.objective=demonstrations: train.max_length cuts a training "
                    "row, which leaves its answer without an end"
                )
            extended.append(Row([*text, *tokens, last_token], row.last_given))
        self._rows["train"] = extended

    # --- texts

    def text(self, ids: list[int]) -> str:
        """The text before the end token and before any of task.stops."""
        (end,) = self.ends
        if end in ids:
            ids = ids[: ids.index(end)]
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for stop in self.task_settings["stops"]:
            text = text.split(stop)[0]
        return text

    def readings(self, texts: Sequence[str]) -> list[Reading]:
        """How the texts are read. texts: one for each item."""
        readings = []
        for item, text in zip(self.items, texts, strict=True):
            answer = self.read(item.part, item.prompt, text)
            right = answer is not None and answer == item.answer
            if right:
                reason = ""
            elif answer is None:
                reason = "no answer found"
            else:
                reason = "another answer"
            reading: Reading = {
                "part": item.part,
                "prompt": item.prompt,
                "text": text,
                "expected": item.answer,
                "read": answer,
                "right": right,
                "reason": reason,
            }
            readings.append(reading)
        return readings

    def right(self, texts: Sequence[str]) -> list[bool]:
        """Whether the text of each item is right."""
        return [reading["right"] for reading in self.readings(texts)]

    def scores(self, texts: Sequence[str]) -> ExactScores:
        """The scores of the texts, one for each item."""
        readings = self.readings(texts)
        right_by_part: dict[str, list[bool]] = {}
        for reading in readings:
            right_by_part.setdefault(reading["part"], []).append(reading["right"])
        parts = {part: _percentage(right) for part, right in right_by_part.items()}
        score = sum(parts.values()) / len(parts)
        if self.headline:
            score = parts[self.headline]
        unread = _percentage([reading["read"] is None for reading in readings])
        return {"exact_match": score, "parts": parts, "unread": unread}

    def write(self, folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
        """Writes each named list of texts to NAME.jsonl: a line for each item, with the
        text and how it was read."""
        for name, texts_of_items in texts.items():
            with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
                for reading in self.readings(texts_of_items):
                    file.write(json.dumps(reading, ensure_ascii=False) + "\n")


def _percentage(outcomes: Sequence[bool]) -> float:
    """How many percent of the outcomes are true."""
    return 100 * sum(outcomes) / len(outcomes)
