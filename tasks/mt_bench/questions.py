"""FastChat's files: questions, answers to them, and the prompts to a judge."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tasks.base import DataError, quoted
from tasks.files import atomic_write, placeholders, read_objects

#: The number of turns of each question.
BENCHES = {"mt_bench": 2, "vicuna_bench": 1}
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
TEMPERATURES |= {"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0}
#: Categories that are judged with a reference answer.
REFERENCED = ("math", "reasoning", "coding")
_OPTION = "task.mt_bench_dir=/where/FastChat/fastchat/llm_judge/data (here --data)"
INSTEAD = f"Give a local copy of FastChat's data: {_OPTION}"

Messages = list[dict[str, str]]
Number = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]


class Question(BaseModel):
    """A question of the bench. turns: the user's messages, one after the other."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: Number = Field(alias="question_id")
    category: str
    turns: tuple[Annotated[str, Field(pattern=r"\S")], ...]


class _Choice(BaseModel):
    turns: list[str]


class Reference(BaseModel):
    """An answer to a question. FastChat judges the first choice."""

    question_id: Number
    choices: list[_Choice] = Field(min_length=1)


class _Answer(Reference):
    model_id: str


def temperature(category: str) -> float:
    """The temperature of a category's answers (FastChat's gen_model_answer.py); 0 is
    greedy."""
    return TEMPERATURES.get(category, 0.7)


def data_folder(settings: Mapping[str, Any]) -> Path:
    """The folder with judge_prompts.jsonl and one folder for each bench:
    settings["mt_bench_dir"], else from the hub. Raises DataError where there is
    none."""
    if settings.get("mt_bench_dir"):
        given = Path(settings["mt_bench_dir"])
        for folder in (given, given / "data"):
            if (folder / "judge_prompts.jsonl").is_file():
                return folder
        raise DataError(f"{given}: no judge_prompts.jsonl in it. {INSTEAD}")
    from tasks.fetch import snapshot

    names = ("question.jsonl", "reference_answer/gpt-4.jsonl")
    patterns = [
        "data/judge_prompts.jsonl",
        *(f"data/{bench}/{name}" for bench in BENCHES for name in names),
    ]
    return snapshot("lmsys/mt-bench", None, patterns, "space", INSTEAD) / "data"


def read_questions(folder: Path, bench: str) -> list[Question]:
    """The questions of a bench, in the file's order. Raises DataError with the line
    that is wrong."""
    if bench not in BENCHES:
        raise DataError(f"no bench {bench!r}. Known: {', '.join(BENCHES)}")
    path, by_number = folder / bench / "question.jsonl", dict[int, Question]()
    for where, question in read_objects(path, Question):
        if question.id in by_number:
            raise DataError(f"{where}: question {question.id} a second time")
        if (count := len(question.turns)) != BENCHES[bench]:
            problem = f"has {count} turns, {bench} has {BENCHES[bench]}"
            raise DataError(f"{where}: question {question.id} {problem}")
        by_number[question.id] = question
    if not by_number:
        raise DataError(f"{path}: no questions")
    return list(by_number.values())


def read_answers(
    path: Path, questions: Sequence[Question], model: str | None = None
) -> tuple[str, dict[int, list[str]]]:
    """The model's id, and its answers by question: each turn's text, of the choice that
    FastChat judges.

    Raises DataError for answers of two models (or of another than `model`), missing,
    unknown or repeated questions, and another number of turns."""
    turns, answers = {q.id: len(q.turns) for q in questions}, dict[int, list[str]]()
    for where, row in read_objects(path, _Answer):
        model, number, given = (
            row.model_id if model is None else model,
            row.question_id,
            row.choices[0].turns,
        )
        if row.model_id != model:
            raise DataError(
                f"{where}: an answer of {quoted(row.model_id)}, not of {quoted(model)}"
            )
        if number not in turns:
            raise DataError(f"{where}: the bench has no question {number}")
        if number in answers:
            raise DataError(f"{where}: an answer to question {number} a second time")
        if len(given) != turns[number]:
            raise DataError(
                f"{where}: {len(given)} turns for question {number}, which has {turns[number]}"
            )
        answers[number] = given
    missing = [number for number in turns if number not in answers]
    if missing or model is None:
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{path}: no answer to {len(missing)} of {len(turns)} questions: {some}"
        )
    return model, {number: answers[number] for number in turns}


def write_answers(
    path: Path,
    model_id: str,
    answers: Mapping[int, Sequence[str]],
    questions: Sequence[Question],
) -> None:
    """Writes an answer file, whole or not at all. Raises ValueError for others, and
    OSError."""
    if {q.id: len(q.turns) for q in questions} != {
        number: len(turns) for number, turns in answers.items()
    }:
        raise ValueError("the answers do not fit the questions and their turns")
    with atomic_write(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for question in questions:
            turns = list(answers[question.id])
            row = {
                "question_id": question.id,
                "answer_id": digest([model_id, question.id, turns])[:22],
            }
            row |= {"model_id": model_id, "choices": [{"index": 0, "turns": turns}]}
            file.write(json.dumps(row | {"tstamp": time.time()}) + "\n")


# --- prompts


class _Prompt(BaseModel):
    name: str
    system_prompt: str
    prompt_template: str


def prompts(
    folder: Path,
    bench: str,
    questions: Sequence[Question],
    answers: Mapping[int, Sequence[str]],
) -> dict[tuple[int, int], Messages]:
    """The messages to the judge for each (question, turn from 1), as FastChat's
    gen_judgment.py, mode single.

    The prompts for math, reasoning and coding contain GPT-4's reference answers, those
    for turn 2 both turns. Raises DataError for a missing prompt or reference answer."""
    path, file = (
        folder / "judge_prompts.jsonl",
        folder / bench / "reference_answer" / "gpt-4.jsonl",
    )
    templates = {prompt.name: prompt for _, prompt in read_objects(path, _Prompt)}
    references = dict[int, list[str]]()
    if any(q.category in REFERENCED for q in questions):
        rows = read_objects(file, Reference)
        references = {row.question_id: row.choices[0].turns for _, row in rows}
    messages = {}
    for q in questions:
        texts, referenced = (
            {"question": q.turns, "answer": answers[q.id]},
            q.category in REFERENCED,
        )
        if referenced:
            if len(references.get(q.id, ())) < len(q.turns):
                raise DataError(
                    f"{file}: no reference answer to each turn of question {q.id}"
                )
            texts["ref_answer"] = references[q.id]
        for turn in range(1, len(q.turns) + 1):
            name = f"single-{'math-' * referenced}v1{'-multi-turn' * (turn > 1)}"
            if name not in templates:
                raise DataError(f"{path}: no prompt {name!r}")
            fields = {
                f"{key}_{n}": texts[key][n - 1]
                for key in texts
                for n in range(1, turn + 1)
            }
            if turn == 1:
                fields |= {
                    "question": fields["question_1"],
                    "answer": fields["answer_1"],
                }
            form, system = (
                templates[name].prompt_template,
                templates[name].system_prompt,
            )
            if unknown := placeholders(form) - fields.keys():
                problem = f"a placeholder that cannot be filled ({min(unknown)!r:.80})"
                raise DataError(f"{path}: prompt {name!r} has {problem}")
            text = form.format(**fields)
            first = [{"role": "system", "content": system}] if system else []
            messages[q.id, turn] = [*first, {"role": "user", "content": text}]
    return messages


def digest(value: Any) -> str:
    """SHA-256 of a plain value's JSON, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
