"""The base of families whose trained model writes texts that are read for an exact answer.

A training row is prompt and response tokenised as one text, as in the code behind the papers' numbers, and
the end token. At the end each test item's prompt is continued once (greedy, or with beams; nothing is
sampled), and a reader finds the answer in the text. It is right or wrong."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.base import DataError, block, check, fixed_subset
from tasks.continuations import Written, token_ids
from tasks.forgetting import fixed_text


class Item(NamedTuple):
    """part: the test set's name. prompt: what the model is given. answer: the expected one, as the reader
    compares it; None for a row without one, which counts as wrong."""

    part: str
    prompt: str
    answer: str | None


class Reading(NamedTuple):
    """answer: what the reader found in a text, None for nothing. reason: why it is wrong, in a few words."""

    answer: str | None
    right: bool
    reason: str


Read = Callable[[Item, str], Reading]


def compare(item: Item, answer: str | None) -> Reading:
    """Of a reader that has found this answer, or none: it is right where it is the expected one."""
    if answer is None:
        return Reading(None, False, "no answer found")
    right = answer == item.answer
    return Reading(answer, right, "" if right else "another answer")


class ExactTask(Written):
    """See the module.

    splits: of train and dev the prompts with their responses. read: reads an item's text, with neither
    the prompt nor an end token. headline: the part that is the score, None for the mean of all."""

    def __init__(
        self,
        settings: Any,
        splits: Mapping[str, Sequence[tuple[str, str]]],
        items: Sequence[Item],
        read: Read,
        headline: str | None = None,
    ) -> None:
        self.name, self.how, self.split = settings["name"], settings, settings["decode"]
        self.decodes = self.split != "none"
        self.splits, self.read, self.headline = dict(splits), read, headline
        self.block = block(settings)
        self.variants = ["greedy" if settings["beams"] == 1 else f"beams{settings['beams']}"]
        self.fixed_text = fixed_text(settings)
        self._rows, self._prompts, self.items, self.notes = {}, [], [], []
        for part in dict.fromkeys(item.part for item in items):
            every = [item for item in items if item.part == part]
            taken = fixed_subset(len(every), settings["items"], part)
            self.items += [every[i] for i in taken]
            if len(taken) < len(every):
                self.notes.append(f"{len(taken)} of the {len(every)} items of {part} are decoded")
        if self.decodes and not self.items:
            raise DataError(f"{self.name}: the test set has no rows")

    def prepare(self, tokenizer: Any, max_length: int, positions: int | None = None) -> None:
        self._tokenizer = tokenizer
        self.prepare_text(tokenizer, positions)
        self.prepare_rows(tokenizer, self.splits, max_length, True, self.how["train_on_inputs"])
        self._prompts = token_ids(tokenizer, [item.prompt for item in self.items])
        if self.decodes:
            self.check_positions(self.how["max_new_tokens"], positions)

    # --- texts

    def settings(self) -> dict[str, Any]:
        keys = ("beams", "max_new_tokens", "stops")
        return {key: self.how[key] for key in keys} | {"ends": [self._tokenizer.eos_token_id]}

    def prompt_length(self, item: int) -> int:
        return len(self._prompts[item])

    def search(self, model: Any, prompts: list[list[int]], steps: int) -> list[Any]:
        from tasks import beam  # imports torch, which a plan does not need

        how = beam.Search(self.how["beams"], (1.0,), 0, steps, (self._tokenizer.eos_token_id,))
        return [ids for (ids,) in beam.transformers_search(model, prompts, how)]

    def decode(self, model: Any, indices: Sequence[int]) -> list[dict[str, str]]:
        found = self.search(model, [self._prompts[i] for i in indices], self.how["max_new_tokens"])
        return [{self.variants[0]: self._text(ids)} for ids in found]

    def _text(self, ids: list[int]) -> str:
        """The text before the end token and the first of the stops."""
        end = self._tokenizer.eos_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        text = str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for stop in self.how["stops"]:
            text = text.split(stop)[0]
        return text

    def readings(self, texts: Sequence[str]) -> list[Reading]:
        """What the reader finds in one text for each item."""
        return [self.read(item, text) for item, text in zip(self.items, texts, strict=True)]

    def scores(self, texts: Sequence[str]) -> dict[str, Any]:
        """exact_match: see headline. parts: by test set. unread: of texts without an answer. In percent."""
        readings, right = self.readings(texts), dict[str, list[bool]]()
        for item, reading in zip(self.items, readings, strict=True):
            right.setdefault(item.part, []).append(reading.right)
        parts = {part: 100 * sum(found) / len(found) for part, found in right.items()}
        mean = sum(parts.values()) / len(parts)
        unread = 100 * sum(reading.answer is None for reading in readings) / len(readings)
        return {"exact_match": parts.get(self.headline or "", mean), "parts": parts, "unread": unread}

    def write(self, folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
        """NAME.jsonl of each: a line for each item, with the text and how it was read."""
        for name, of_items in texts.items():
            with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
                for item, text, found in zip(self.items, of_items, self.readings(of_items), strict=True):
                    row = {"part": item.part, "prompt": item.prompt, "text": text, "expected": item.answer}
                    row |= {"read": found.answer, "right": found.right, "reason": found.reason}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def check_settings(settings: Any) -> None:
    """Raises DataError for a setting out of range, which the types of the configuration do not catch."""
    check(settings, "decode", settings["decode"] in ("test", "none"), "test or none")
    for key in ("beams", "max_new_tokens"):
        check(settings, key, type(settings[key]) is int and settings[key] >= 1, "a whole number from 1 on")
    check(settings, "train_on_inputs", type(settings["train_on_inputs"]) is bool, "true or false")
    stops = settings["stops"]
    fits = isinstance(stops, list) and all(type(stop) is str and stop for stop in stops)
    check(settings, "stops", fits, "a list of texts")
