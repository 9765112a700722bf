"""FastChat's files: questions, answers to them, and the prompts to a judge."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tasks.base import DataError, Settings, quoted
from tasks.files import atomic_write, placeholders, read_objects

#: The number of turns of each question.
BENCHES = {"mt_bench": 2, "vicuna_bench": 1}
#: The temperature at which a model answers, by the question's category.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
}
#: For a category that FastChat does not name.
DEFAULT_TEMPERATURE = 0.7
#: Categories that are judged with a reference answer.
REFERENCED = ("math", "reasoning", "coding")
#: The advice in errors about missing data.
INSTEAD = (
    "Give a local copy of FastChat's data: "
    "task.mt_bench_dir=/where/FastChat/fastchat/llm_judge/data (here --data)"
)

#: Messages of a chat, as OpenAI's protocol has them: dictionaries of role and content.
Messages = list[dict[str, str]]
#: A question's number: a whole number of 64 bits.
Number = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]


class Question(BaseModel):
    """A question of the bench. turns: the user's messages, one after the other."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    id: Number = Field(alias="question_id")
    category: str
    turns: tuple[Annotated[str, Field(pattern=r"\S")], ...]


class _Choice(BaseModel):
    """One answer to a question. turns: its text in each turn."""

    turns: list[str]


class Reference(BaseModel):
    """An answer to a question. FastChat judges the first choice."""

    question_id: Number
    choices: list[_Choice] = Field(min_length=1)


class _Answer(Reference):
    """A row of a model's answer file."""

    model_id: str


def temperature(category: str) -> float:
    """The temperature of a category's answers (FastChat's gen_model_answer.py); 0 is
    greedy."""
    return TEMPERATURES.get(category, DEFAULT_TEMPERATURE)


def bench_folder(settings: Settings) -> Path:
    """The folder with judge_prompts.jsonl and one folder for each bench:
    settings["mt_bench_dir"] or its subfolder data, or without that setting a copy from the
    hub. Raises DataError where there is none."""
    if settings.get("mt_bench_dir"):
        copy = Path(settings["mt_bench_dir"])
        for folder in (copy, copy / "data"):
            if (folder / "judge_prompts.jsonl").is_file():
                return folder
        raise DataError(f"{copy}: no judge_prompts.jsonl in it. {INSTEAD}")
    from tasks.fetch import snapshot

    patterns = ["data/judge_prompts.jsonl"]
    for bench in BENCHES:
        patterns.append(f"data/{bench}/question.jsonl")
        patterns.append(f"data/{bench}/reference_answer/gpt-4.jsonl")
    return snapshot("lmsys/mt-bench", None, patterns, "space", INSTEAD) / "data"


def read_questions(folder: Path, bench: str) -> list[Question]:
    """The questions of a bench, in the file's order. Raises DataError with the line
    that is wrong."""
    if bench not in BENCHES:
        raise DataError(f"no bench {bench!r}. Known: {', '.join(BENCHES)}")
    path = folder / bench / "question.jsonl"
    questions: dict[int, Question] = {}
    for place, question in read_objects(path, Question):
        if question.id in questions:
            raise DataError(f"{place}: question {question.id} a second time")
        turns = len(question.turns)
        if turns != BENCHES[bench]:
            raise DataError(
                f"{place}: question {question.id} has {turns} turns, {bench} has "
                f"{BENCHES[bench]}"
            )
        questions[question.id] = question
    if not questions:
        raise DataError(f"{path}: no questions")
    return list(questions.values())


# --- answers


def read_answers(
    path: Path, questions: Sequence[Question], model: str | None = None
) -> tuple[str, dict[int, list[str]]]:
    """The model's id, and its answers by the question's number: each turn's text, of the
    choice that FastChat judges.

    model: the id that the answers must have; None for that of the first answer.

    Raises DataError for answers of another model, for missing, unknown or repeated
    questions, and for another number of turns."""
    turns = {question.id: len(question.turns) for question in questions}
    answers: dict[int, list[str]] = {}
    for place, row in read_objects(path, _Answer):
        model = row.model_id if model is None else model
        number = row.question_id
        answer = row.choices[0].turns
        if row.model_id != model:
            raise DataError(
                f"{place}: an answer of {quoted(row.model_id)}, not of {quoted(model)}"
            )
        if number not in turns:
            raise DataError(f"{place}: the bench has no question {number}")
        if number in answers:
            raise DataError(f"{place}: an answer to question {number} a second time")
        if len(answer) != turns[number]:
            raise DataError(
                f"{place}: {len(answer)} turns for question {number}, which has "
                f"{turns[number]}"
            )
        answers[number] = answer
    missing = [number for number in turns if number not in answers]
    if missing or model is None:  # without any answer there is no model's id
        numbers = ", ".join(str(number) for number in missing[:5])
        if len(missing) > 5:
            numbers += ", ..."
        raise DataError(
            f"{path}: no answer to {len(missing)} of {len(turns)} questions: {numbers}"
        )
    return model, {number: answers[number] for number in turns}


def write_answers(
    path: Path,
    model_id: str,
    answers: Mapping[int, Sequence[str]],
    questions: Sequence[Question],
) -> None:
    """Writes an answer file, whole or not at all. answers: by the question's number, the
    text of each turn. Raises ValueError where they do not fit the questions, and
    OSError."""
    expected = {question.id: len(question.turns) for question in questions}
    if expected != {number: len(turns) for number, turns in answers.items()}:
        raise ValueError("the answers do not fit the questions and their turns")
    with atomic_write(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for question in questions:
            turns = list(answers[question.id])
            row = {
                "question_id": question.id,
                # As long as FastChat's, but the same for equal answers
                "answer_id": json_hash([model_id, question.id, turns])[:22],
                "model_id": model_id,
                "choices": [{"index": 0, "turns": turns}],
                "tstamp": time.time(),
            }
            file.write(json.dumps(row) + "\n")


# --- prompts


class _Prompt(BaseModel):
    """A template of FastChat's for a prompt to the judge."""

    name: str
    system_prompt: str
    prompt_template: str

    def messages(self, path: Path, fields: Mapping[str, str]) -> Messages:
        """The messages to the judge. fields: the texts of the placeholders. path: of the
        template, for the error. Raises DataError for a placeholder that has no field."""
        unknown = placeholders(self.prompt_template) - fields.keys()
        if unknown:
            raise DataError(
                f"{path}: prompt {self.name!r} has a placeholder that cannot be filled "
                f"({min(unknown)!r:.80})"
            )
        text = self.prompt_template.format(**fields)
        user = {"role": "user", "content": text}
        if not self.system_prompt:
            return [user]
        return [{"role": "system", "content": self.system_prompt}, user]


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
    path = folder / "judge_prompts.jsonl"
    templates = {prompt.name: prompt for _, prompt in read_objects(path, _Prompt)}
    references = _references(folder, bench, questions)
    messages = {}
    for question in questions:
        texts: dict[str, Sequence[str]] = {
            "question": question.turns,
            "answer": answers[question.id],
        }
        if question.id in references:
            texts["ref_answer"] = references[question.id]
        for turn in range(1, len(question.turns) + 1):
            name = _template_name(question, turn)
            if name not in templates:
                raise DataError(f"{path}: no prompt {name!r}")
            fields = _fields(texts, turn)
            messages[question.id, turn] = templates[name].messages(path, fields)
    return messages


def _references(
    folder: Path, bench: str, questions: Sequence[Question]
) -> dict[int, list[str]]:
    """The reference answers of the questions that are judged with one. Raises DataError
    where a turn has none."""
    referenced = [question for question in questions if question.category in REFERENCED]
    if not referenced:
        return {}
    path = folder / bench / "reference_answer" / "gpt-4.jsonl"
    turns = {
        row.question_id: row.choices[0].turns
        for _, row in read_objects(path, Reference)
    }
    for question in referenced:
        if len(turns.get(question.id, ())) < len(question.turns):
            raise DataError(
                f"{path}: no reference answer to each turn of question {question.id}"
            )
    return {question.id: turns[question.id] for question in referenced}


def _template_name(question: Question, turn: int) -> str:
    """FastChat's name of the template for a question's turn (from 1)."""
    name = "single-"
    if question.category in REFERENCED:
        name += "math-"
    name += "v1"
    if turn > 1:
        name += "-multi-turn"
    return name


def _fields(texts: Mapping[str, Sequence[str]], turn: int) -> dict[str, str]:
    """The fields of a template: question_1, answer_1 and so on, up to this turn (from 1).
    For the first turn also question and answer. texts: the text of each turn, by the
    names question, answer and ref_answer."""
    fields = {}
    for key, turns in texts.items():
        for number in range(1, turn + 1):
            fields[f"{key}_{number}"] = turns[number - 1]
    if turn == 1:
        fields["question"] = fields["question_1"]
        fields["answer"] = fields["answer_1"]
    return fields


def json_hash(value: object) -> str:
    """SHA-256 of a plain value's JSON, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
