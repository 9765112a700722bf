"""The judge's prompts, its ratings, and the file of judgments."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from tasks.base import DataError
from tasks.files import problem_of, read_objects
from tasks.mt_bench.questions import Question, Reference, digest

#: Categories that are judged with a reference answer.
REFERENCED = ("math", "reasoning", "coding")

Messages = list[dict[str, str]]


class _Prompt(BaseModel):
    name: str
    system_prompt: str
    prompt_template: str


def prompts(
    folder: Path, bench: str, questions: Sequence[Question], answers: Mapping[int, Sequence[str]]
) -> dict[tuple[int, int], Messages]:
    """The messages to the judge for each (question, turn), turns from 1 (FastChat's gen_judgment.py, mode
    single).

    The prompts for math, reasoning and coding contain GPT-4's reference answers, those for turn 2 both turns.
    Raises DataError for a missing prompt or reference answer."""
    path, file = folder / "judge_prompts.jsonl", folder / bench / "reference_answer" / "gpt-4.jsonl"
    templates = {prompt.name: prompt for _, prompt in read_objects(path, _Prompt)}
    references = dict[int, list[str]]()
    if any(q.category in REFERENCED for q in questions):
        rows = read_objects(file, Reference)
        references = {row.question_id: row.choices[0].turns for _, row in rows}
    messages = {}
    for q in questions:
        texts, referenced = {"question": q.turns, "answer": answers[q.id]}, q.category in REFERENCED
        if referenced:
            if len(references.get(q.id, ())) < len(q.turns):
                raise DataError(f"{file}: no reference answer to each turn of question {q.id}")
            texts["ref_answer"] = references[q.id]
        for turn in range(1, len(q.turns) + 1):
            name = f"single-{'math-' * referenced}v1{'-multi-turn' * (turn > 1)}"
            if name not in templates:
                raise DataError(f"{path}: no prompt {name!r}")
            fields = {f"{key}_{n}": texts[key][n - 1] for key in texts for n in range(1, turn + 1)}
            if turn == 1:
                fields |= {"question": fields["question_1"], "answer": fields["answer_1"]}
            text = _filled(templates[name].prompt_template, fields, f"{path}: prompt {name!r}")
            system = templates[name].system_prompt
            first = [{"role": "system", "content": system}] if system else []
            messages[q.id, turn] = [*first, {"role": "user", "content": text}]
    return messages


def _filled(template: str, fields: Mapping[str, str], where: str) -> str:
    """A template of str.format with its placeholders filled in. Raises DataError for one that is not just a
    known name in braces: str.format would also read attributes, or pad to any width."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name is None and match[0] in ("{{", "}}"):
            return match[0][0]
        if name not in fields:
            raise DataError(f"{where} has a placeholder that cannot be filled ({match[0]!r:.80})")
        return fields[name]

    return re.sub(r"\{\{|\}\}|\{(\w*)\}|[{}][^{}]*", value, template)


def rating(reply: str) -> float | None:
    """The first [[x]] of a reply, else the first [x]; None without one, or for a number outside of the
    judge's scale of 1 to 10, which FastChat would take."""
    # FastChat's \d+\.?\d* takes quadratic time on many digits. These match the same in linear time.
    for pattern in (r"\[\[(\d++(?:\.\d*+)?)\]\]", r"\[(\d++(?:\.\d*+)?)\]"):
        match = re.search(pattern, reply, re.ASCII)
        if match:
            value = float(match[1])
            return value if 1 <= value <= 10 else None
    return None


@dataclass(frozen=True)
class Judge:
    """A judge. passes: how often it judges each answer."""

    name: str = "gpt-4"
    passes: int = 1
    temperature: float = 0.0
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if not self.name or self.passes < 1 or self.max_tokens < 1:
            raise DataError("a judge needs a name, and passes and max_tokens above 0")

    def keys(self, messages: Messages) -> list[str]:
        """The key of the saved judgment of each pass: a hash of the request."""
        request = [self.name, messages, float(self.temperature), self.max_tokens]
        return [digest([*request, number]) for number in range(1, self.passes + 1)]

    def file(self) -> Path:
        """The default file of its judgments."""
        return Path("outputs", "judgments", re.sub(r"[^A-Za-z0-9._-]+", "_", self.name)[:200] + ".jsonl")


class Judgment(BaseModel):
    """A reply, its key and judge, and its tokens if the server counts them. The rating that a file has beside
    the reply is not read."""

    key: str
    judge: str = ""
    temperature: float = 0.0
    max_tokens: int = 0
    reply: str
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def rating(self) -> float | None:
        """The reply's rating, if it has one."""
        return rating(self.reply)


def read_judgments(file: Path) -> dict[str, Judgment]:
    """The saved judgments by key; none without a file. If two processes saved the same one, the first counts.
    A line that a kill cut off is skipped. Raises DataError for another kind of file."""
    judgments = dict[str, Judgment]()
    try:
        with open(file, "rb") as opened:
            for number, line in enumerate(opened, 1):
                try:
                    judgment = Judgment.model_validate_json(line)
                    judgments.setdefault(judgment.key, judgment)
                except ValidationError as error:
                    if error.errors()[0]["type"] != "json_invalid":
                        problem = problem_of(error)
                        raise DataError(f"{file} line {number}: not a judgment ({problem})") from None
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    return judgments


def append(file: Path, line: bytes) -> None:
    """Appends a line in one write, so that processes can share the file. Starts a new line after one that a
    kill cut off. Raises DataError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a+b", buffering=0) as opened:
            size = os.fstat(opened.fileno()).st_size
            # A line that another process is writing looks cut off, too. An extra empty line does no harm.
            if size and os.pread(opened.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line
            if opened.write(line) != len(line):
                raise DataError(f"{file}: a judgment could not be written in full. Is the disk full?")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
