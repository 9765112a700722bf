"""Small versions of MT-Bench and Vicuna-bench: questions, reference answers and judge
prompts of our own, in FastChat's layout."""

import json
from pathlib import Path

#: By bench: the number, category and turns of each question.
QUESTIONS = {
    "mt_bench": [
        (81, "writing", ["Tell of a {red} boat.", "Now make it rhyme."]),
        (
            101,
            "reasoning",
            ["Ann is older than Bo. Who is younger?", "And if they were twins?"],
        ),
        (111, "math", ["What is 2 + 3?", "And twice that?"]),
        (151, "humanities", ["Who was Ashoka?", "Name one of his edicts."]),
    ],
    "vicuna_bench": [
        (1, "generic", ["How do I save time?"]),
        (68, "math", ["What is 7 - 4?"]),
        (70, "coding", ["Print a line."]),
    ],
}
#: By bench: the reference answer to each turn of a question, by its number.
REFERENCES = {
    "mt_bench": {101: ["Bo.", "Neither."], 111: ["5", "10"]},
    "vicuna_bench": {68: ["3"], 70: ["print('a {line}')"]},
}
#: The templates of prompts to the judge, by FastChat's names.
PROMPTS = {
    "single-v1": "plain: {question} / {answer}",
    "single-math-v1": "known {ref_answer_1}: {question} / {answer}",
    "single-v1-multi-turn": "plain 2: {question_1} / {answer_1} / {question_2} / {answer_2}",
    "single-math-v1-multi-turn": "known 2 {ref_answer_1}, {ref_answer_2}: "
    "{question_1} / {answer_1} / {question_2} / {answer_2}",
}


def jsonl(path, rows):
    """Writes rows as a JSONL file. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer_row(number, turns, model="own"):
    """A row of an answer file. number: the question's. turns: the answer to each turn."""
    return {
        "question_id": number,
        "answer_id": "a",
        "model_id": model,
        "tstamp": 0.5,
        "choices": [{"index": 0, "turns": turns}],
    }


def write_mt_bench(folder: Path) -> Path:
    """Writes the data of both benches in FastChat's layout. Returns the folder."""
    templates = []
    for name, template in PROMPTS.items():
        row = {
            "name": name,
            "type": "single",
            "system_prompt": f"You are {name}.",
            "prompt_template": template,
        }
        templates.append(row)
    jsonl(folder / "judge_prompts.jsonl", templates)
    for bench, questions in QUESTIONS.items():
        columns = ("question_id", "category", "turns")
        rows = [dict(zip(columns, question, strict=True)) for question in questions]
        jsonl(folder / bench / "question.jsonl", rows)
        references = [
            answer_row(number, turns, "gpt-4")
            for number, turns in REFERENCES[bench].items()
        ]
        jsonl(folder / bench / "reference_answer" / "gpt-4.jsonl", references)
    return folder
