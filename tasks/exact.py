"""The base of families whose trained model writes texts that are read for an exact
answer.

A training row is prompt and response tokenised as one text, as in the code behind the
papers' numbers, and the end token. At the end each test item's prompt is continued once
(greedy, or with beams; nothing is sampled), and a reader finds the answer in the text.
It is right or wrong."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.base import DataError, check, fixed_subset
from tasks.continuations import Splits, Written, token_ids

#: Of each test set the prompts and their answers, as they are read; None, which is
#: wrong, for a row without.
Tests = dict[str, list[tuple[str, str | None]]]
#: Of test set, prompt and text (without the prompt and an end token) the answer in the
#: text; None for none.
Read = Callable[[str, str, str], str | None]


class ExactTask(Written):
    """See the module.

    headline: the test set that is the score, None for the mean of all. items: prompt,
    answer and test set."""

    as_one = True

    def __init__(
        self,
        settings: Any,
        splits: Splits,
        tests: Tests,
        read: Read,
        headline: str | None = None,
    ) -> None:
        check(
            settings, "decode", settings["decode"] in ("test", "none"), "test or none"
        )
        beams = settings["beams"]
        super().__init__(
            settings, splits, [], ["greedy" if beams == 1 else f"beams{beams}"]
        )
        self.read, self.headline = read, headline
        for part, rows in tests.items() if self.decodes else ():
            if not rows:
                raise DataError(f"{self.name}: the test set {part} has no rows")
            taken = fixed_subset(len(rows), settings["items"], part)
            self.items += [(*rows[i], part) for i in taken]
            if len(taken) < len(rows):
                self.notes.append(
                    f"{len(taken)} of the {len(rows)} items of {part} are decoded"
                )

    def prepare(
        self, tokenizer: Any, max_length: int, positions: int | None = None
    ) -> None:
        super().prepare(tokenizer, max_length, positions)
        self.ends = (tokenizer.eos_token_id,)
        self._prompts = token_ids(tokenizer, [prompt for prompt, _, _ in self.items])
        self.check_positions()

    # --- texts

    def text(self, ids: list[int]) -> str:
        """The text before the end token and the first of the stops."""
        (end,) = self.ends
        ids = ids[: ids.index(end)] if end in ids else ids
        text = str(
            self.tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        for stop in self.how["stops"]:
            text = text.split(stop)[0]
        return text

    def readings(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Of one text for each item: the item, the text, what is read in it, and why
        that is wrong."""
        rows = []
        for (prompt, expected, part), text in zip(self.items, texts, strict=True):
            answer = self.read(part, prompt, text)
            right = answer is not None and answer == expected
            reason = (
                ""
                if right
                else "no answer found"
                if answer is None
                else "another answer"
            )
            row = {"part": part, "prompt": prompt, "text": text, "expected": expected}
            rows.append(row | {"read": answer, "right": right, "reason": reason})
        return rows

    def scores(self, texts: Sequence[str]) -> dict[str, Any]:
        """exact_match: see headline. parts: by test set. unread: of texts without an
        answer. In percent."""
        rows, right = self.readings(texts), dict[str, list[bool]]()
        for row in rows:
            right.setdefault(row["part"], []).append(row["right"])
        parts = {part: 100 * sum(found) / len(found) for part, found in right.items()}
        score = (
            parts[self.headline] if self.headline else sum(parts.values()) / len(parts)
        )
        unread = 100 * sum(row["read"] is None for row in rows) / len(rows)
        return {"exact_match": score, "parts": parts, "unread": unread}

    def write(self, folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
        """NAME.jsonl of each: a line for each item, with the text and how it was
        read."""
        for name, of_items in texts.items():
            lines = [
                json.dumps(row, ensure_ascii=False) + "\n"
                for row in self.readings(of_items)
            ]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
