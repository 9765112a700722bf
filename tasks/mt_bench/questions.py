"""FastChat's files: questions, and answers to them."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import DataError, parse_json, quoted
from tasks.files import whole
from tasks.text import open_text

#: The number of turns of each question.
BENCHES = {"mt_bench": 2, "vicuna_bench": 1}
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
TEMPERATURES |= {"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0}
_OPTION = "task.mt_bench_dir=/where/FastChat/fastchat/llm_judge/data (here --data)"
INSTEAD = f"Give a local copy of FastChat's data: {_OPTION}"


@dataclass(frozen=True)
class Question:
    """A question of the bench. turns: the user's messages, one after the other."""

    id: int
    category: str
    turns: tuple[str, ...]


def temperature(category: str) -> float:
    """The temperature of a category's answers (FastChat's gen_model_answer.py); 0 is greedy."""
    return TEMPERATURES.get(category, 0.7)


def data_folder(settings: Mapping[str, Any]) -> Path:
    """The folder with judge_prompts.jsonl and one folder for each bench: settings["mt_bench_dir"], else from
    the hub. Raises DataError where there is none."""
    if settings.get("mt_bench_dir"):
        given = Path(settings["mt_bench_dir"])
        for folder in (given, given / "data"):
            if (folder / "judge_prompts.jsonl").is_file():
                return folder
        raise DataError(f"{given}: no judge_prompts.jsonl in it. {INSTEAD}")
    from tasks.fetch.hub import snapshot

    names = ("question.jsonl", "reference_answer/gpt-4.jsonl")
    patterns = ["data/judge_prompts.jsonl", *(f"data/{bench}/{name}" for bench in BENCHES for name in names)]
    return snapshot("lmsys/mt-bench", None, patterns, "space", INSTEAD) / "data"


def read_questions(folder: Path, bench: str) -> list[Question]:
    """The questions of a bench, in the file's order. Raises DataError with the line that is wrong."""
    if bench not in BENCHES:
        raise DataError(f"no bench {bench!r}. Known: {', '.join(BENCHES)}")
    path, by_number = folder / bench / "question.jsonl", dict[int, Question]()
    for where, row in read_rows(path, "question_id", "category", "turns"):
        number, turns = number_and_turns(where, row)
        if number in by_number:
            raise DataError(f"{where}: question {number} a second time")
        if len(turns) != BENCHES[bench]:
            raise DataError(f"{where}: question {number} has {_turns(turns)}, {bench} has {BENCHES[bench]}")
        if not all(turn.strip() for turn in turns):
            raise DataError(f"{where}: question {number} has an empty turn")
        by_number[number] = Question(number, str(row["category"]), tuple(turns))
    if not by_number:
        raise DataError(f"{path}: no questions")
    return list(by_number.values())


def read_answers(
    path: Path, questions: Sequence[Question], model: str | None = None
) -> tuple[str, dict[int, list[str]]]:
    """The model's id, and its answers by question: a text for each turn, of the first choice, which FastChat
    judges.

    Raises DataError for answers of two models (or of another than `model`), missing, unknown or repeated
    questions, and another number of turns."""
    by_number, answers = {q.id: q for q in questions}, dict[int, list[str]]()
    for where, row in read_rows(path, "question_id", "model_id", "choices"):
        number, turns = number_and_turns(where, row)
        model = str(row["model_id"]) if model is None else model
        if row["model_id"] != model:
            raise DataError(f"{where}: an answer of {quoted(row['model_id'])}, not of {quoted(model)}")
        if number not in by_number:
            raise DataError(f"{where}: the bench has no question {number}")
        if number in answers:
            raise DataError(f"{where}: an answer to question {number} a second time")
        count = len(by_number[number].turns)
        if len(turns) != count:
            raise DataError(f"{where}: {_turns(turns)} for question {number}, which has {count}")
        answers[number] = turns
    missing = [number for number in by_number if number not in answers]
    if missing or model is None:
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(f"{path}: no answer to {len(missing)} of {len(by_number)} questions: {some}")
    return model, {number: answers[number] for number in by_number}


def write_answers(
    path: Path, model_id: str, answers: Mapping[int, Sequence[str]], questions: Sequence[Question]
) -> None:
    """Writes an answer file, whole or not at all. Raises ValueError for answers that do not fit the
    questions, and OSError."""
    if {q.id: len(q.turns) for q in questions} != {number: len(turns) for number, turns in answers.items()}:
        raise ValueError("the answers do not fit the questions and their turns")
    with whole(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for question in questions:
            turns = list(answers[question.id])
            row = {"question_id": question.id, "answer_id": digest([model_id, question.id, turns])[:22]}
            row |= {"model_id": model_id, "choices": [{"index": 0, "turns": turns}]}
            file.write(json.dumps(row | {"tstamp": time.time()}) + "\n")


def read_rows(path: Path, *keys: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its file and line for messages. Raises DataError for one without
    these keys, and for what is no file: a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a file")
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path} line {number}"
            if not line.strip():
                continue
            row = parse_json(line, where)
            for key in keys:
                if not isinstance(row, dict) or key not in row:
                    raise DataError(f"{where}: no {key!r}")
            yield where, row


def number_and_turns(where: str, row: Mapping[str, Any]) -> tuple[int, list[str]]:
    """The number of a question and its turns, or those of the first choice of an answer."""
    try:
        number, turns = row["question_id"], (row["choices"][0] if "choices" in row else row)["turns"]
        if type(number) is not int or number.bit_length() > 63 or type(turns) is not list or not turns:
            raise TypeError
        "".join(turns)
    except (LookupError, TypeError):
        raise DataError(f"{where}: question_id is to be a whole number, turns a list of texts") from None
    return number, turns


def _turns(turns: Sequence[str]) -> str:
    return f"{len(turns)} turn{'s' * (len(turns) != 1)}"


def digest(value: Any) -> str:
    """SHA-256 of a plain value's JSON, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
