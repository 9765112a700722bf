"""What a judge is asked, and what it says: prompts, ratings, and the file of judgments."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from tasks.base import DataError, quoted
from tasks.mt_bench.questions import Question, digest, number_and_turns, read_rows
from tasks.text import Lines

#: Categories that are judged beside a reference answer.
REFERENCED = ("math", "reasoning", "coding")

Messages = list[dict[str, str]]


def prompts(
    folder: Path, bench: str, questions: Sequence[Question], answers: Mapping[int, Sequence[str]]
) -> dict[tuple[int, int], Messages]:
    """What the judge is sent for each (question, turn), turns from 1 (FastChat's gen_judgment.py, mode
    single).

    Math, reasoning and coding take the prompts with GPT-4's reference answers; turn 2 shows the judge both
    turns. Raises DataError for a prompt or a reference answer that is missing."""
    path = folder / "judge_prompts.jsonl"
    templates = dict[str, dict[str, str]]()
    for where, row in read_rows(path, *_PROMPT):
        if not all(isinstance(row[key], str) for key in _PROMPT):
            raise DataError(f"{where}: {', '.join(_PROMPT)} are to be texts")
        templates[row["name"]] = row
    references, known = dict[int, list[str]](), folder / bench / "reference_answer" / "gpt-4.jsonl"
    if any(q.category in REFERENCED for q in questions):
        references = dict(
            number_and_turns(where, row) for where, row in read_rows(known, "question_id", "choices")
        )
    found = {}
    for q in questions:
        shown = {"question": q.turns, "answer": answers[q.id]}
        if q.category in REFERENCED:
            if len(references.get(q.id, ())) < len(q.turns):
                raise DataError(
                    f"{known}: no reference answer to each turn of question {q.id} ({q.category})"
                )
            shown["ref_answer"] = references[q.id]
        for turn in range(1, len(q.turns) + 1):
            name = f"single-{'math-' * (q.category in REFERENCED)}v1{'-multi-turn' * (turn > 1)}"
            if name not in templates:
                raise DataError(f"{path}: no prompt {name!r}")
            fields = {
                f"{what}_{n}": texts[n - 1] for what, texts in shown.items() for n in range(1, turn + 1)
            }
            if turn == 1:
                fields |= {"question": fields["question_1"], "answer": fields["answer_1"]}
            text = _filled(templates[name]["prompt_template"], fields, f"{path}: prompt {name!r}")
            system = templates[name]["system_prompt"]
            found[q.id, turn] = [{"role": "system", "content": system}] * bool(system) + [
                {"role": "user", "content": text}
            ]
    return found


#: What a prompt of the judge has.
_PROMPT = ("name", "system_prompt", "prompt_template")


def _filled(template: str, fields: Mapping[str, str], where: str) -> str:
    """A template with its placeholders filled in. DataError for one that is not just a known name in braces:
    what else format() obeys would look into objects, or pad to any width."""
    try:
        asked = [
            (name, spec or conversion)
            for _, name, spec, conversion in Formatter().parse(template)
            if name is not None
        ]
        odd = next((name for name, more in asked if name not in fields or more), None)
        if odd is None:
            return template.format(**fields)  # once: what it fills in may hold braces
        reason = quoted(odd)
    except ValueError as error:
        reason = str(error)
    raise DataError(f"{where} has a placeholder that cannot be filled ({reason})")


def rating(reply: str) -> float | None:
    """The first [[x]] of a reply, else the first [x]; None without one.

    None, too, for a number outside of 1 to 10, the scale that the judge is told; FastChat would take it.
    """
    # FastChat's are \d+\.?\d*, which take quadratic time on many digits; these match the same in linear time.
    for pattern in (r"\[\[(\d++(?:\.\d*+)?)\]\]", r"\[(\d++(?:\.\d*+)?)\]"):
        match = re.search(pattern, reply, re.ASCII)
        if match:
            value = float(match[1])
            return value if 1 <= value <= 10 else None
    return None


@dataclass(frozen=True)
class Judge:
    """Who judges, and how often: each pass asks for everything once more."""

    name: str = "gpt-4"
    passes: int = 1
    temperature: float = 0.0
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if not self.name or self.passes < 1 or self.max_tokens < 1:
            raise DataError("a judge needs a name, and passes and max_tokens above 0")

    def keys(self, messages: Messages) -> list[str]:
        """What a judgment is saved by, for each pass: a hash of all that defines it."""
        asked = [self.name, messages, float(self.temperature), self.max_tokens]
        return [digest([*asked, number]) for number in range(1, self.passes + 1)]

    def file(self) -> Path:
        """Where its judgments are saved, unless another file is named."""
        return Path("outputs", "judgments", re.sub(r"[^A-Za-z0-9._-]+", "_", self.name)[:200] + ".jsonl")


@dataclass(frozen=True)
class Judgment:
    """A reply that was paid for, whether or not a rating can be read from it, and its tokens, where the
    server counts."""

    reply: str
    rating: float | None
    prompt_tokens: int = 0
    completion_tokens: int = 0


def read_judgments(file: Path) -> dict[str, Judgment]:
    """The saved judgments by key, none where there is no file. The first counts, should two processes have
    asked at once.

    A line that a kill cut off is passed over. Raises DataError for a file of something else.
    """
    found = dict[str, Judgment]()
    try:
        with open(file, "rb") as opened:
            for number, line in enumerate(Lines(file, opened), 1):
                judgment = _judgment(line, f"{file} line {number}")
                if judgment is not None:
                    found.setdefault(*judgment)
    except FileNotFoundError:
        return found
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    return found


def _judgment(line: bytes, where: str) -> tuple[str, Judgment] | None:
    """A judgment after its key; None for a line that is no JSON."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    except RecursionError:
        row = None
    try:
        tokens = int(row["prompt_tokens"]), int(row["completion_tokens"])
        key, reply = row["key"], row["reply"]
        if type(key) is not str or type(reply) is not str:
            raise TypeError
        return key, Judgment(reply, rating(reply), *tokens)
    except (LookupError, TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: not a judgment") from None


def append(file: Path, line: bytes) -> None:
    """Appends a line in one write, so that processes may share the file, after one that a kill cut off.
    Raises DataError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            # A line that another process is in the middle of writing looks cut off, too: an empty line more
            # does no harm.
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise DataError(f"{file}: a judgment could not be written in full. Is the disk full?")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
