"""Eight commonsense sets after training on commonsense_170k (Hu et al. 2023), as the
scripts of DoRA (commit bd3ed6f), made from LLM-Adapters', have it.

A row is an instruction and the response "the correct answer is X". The trained model
writes a text for each test row, in the scripts with 4 beams. Its answer is the first of
the set's words; without one it is wrong. The score is the mean over the sets. Dev rows
are those that the scripts hold out."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import DataError, Source, check, quoted
from tasks.exact import ExactTask, Tests
from tasks.files import read_list, the_file
from tasks.instruct import (
    Example,
    Template,
    other_words,
    read_template,
    split_rows,
    template_file,
)

PROTOCOL = 1

#: The test sets: the folder of each in LLM-Adapters, and the words that it is answered
#: with.
SETS = {
    "boolq": ("boolq", "true|false"),
    "piqa": ("piqa", "solution1|solution2"),
    "siqa": ("social_i_qa", "answer1|answer2|answer3|answer4|answer5"),
    "hellaswag": ("hellaswag", "ending1|ending2|ending3|ending4"),
    "winogrande": ("winogrande", "option1|option2"),
    "arc_easy": ("ARC-Easy", "answer1|answer2|answer3|answer4|answer5"),
    "arc_challenge": ("ARC-Challenge", "answer1|answer2|answer3|answer4|answer5"),
    "openbookqa": ("openbookqa", "answer1|answer2|answer3|answer4|answer5"),
}
#: Settings of the published runs.
PUBLISHED = {
    "train_set": "commonsense_170k",
    "layout": "indented",
    "beams": 4,
    "max_new_tokens": 32,
}
# of the scripts' dev rows, as Hugging Face's datasets draws them; of their lines
SEED, INDENT = 42, " " * 16


class Question(Example):
    """A row of a test set. answer: one of the set's words."""

    answer: str


def laid_out(template: Template, training: bool) -> Template:
    """A template as the scripts lay it out: 16 spaces before each line after the first.
    Other than in the tests, in training empty lines but the first have them, too, and
    the first line ends with a space more."""

    def form(text: str, spaces: int) -> str:
        first, *rest = text.rstrip().split("\n")
        lines = [
            INDENT + line if line or (training and number) else ""
            for number, line in enumerate(rest)
        ]
        return "\n".join([first + " " * (spaces + training), *lines, INDENT])

    forms = {"prompt_no_input": form(template.prompt_no_input, 1)}
    return template.model_copy(
        update=forms | {"prompt_input": form(template.prompt_input, 0)}
    )


def read(part: str, prompt: str, text: str) -> str | None:
    """The first of the set's words, after the text's last "### Response:", at which the
    scripts cut it."""
    found = re.search(SETS[part][1], text.rpartition("### Response:")[2])
    return found and found[0]


def source(settings: Any) -> Source:
    """See tasks.source. The template is part of the data. Without task.data_dir nothing
    is known."""
    return Source(files=_files(settings))


def load(settings: Any) -> ExactTask:
    """See tasks.load. Raises DataError with file and row for a wrong one."""
    if not (files := _files(settings)):
        raise DataError(
            "task.data_dir: give a clone of AGI-Edgerunners/LLM-Adapters, which has these sets"
        )
    template, path = read_template(files.pop("template.json")), files.pop("train.json")
    plain = settings["layout"] == "plain"
    trained, asked = (
        template if plain else laid_out(template, of) for of in (True, False)
    )
    draw = np.random.default_rng(SEED).permutation
    rows = [row for _, row in read_list(path, Example)]
    splits, notes = split_rows(
        settings, rows, path, lambda total, held: draw(total)[:held]
    )
    tests: Tests = {part: [] for part in files}
    for part, of_part in tests.items():
        for where, row in read_list(files[part], Question):
            if not re.fullmatch(words := SETS[part][1], row.answer):
                raise DataError(
                    f"{where}: answer: {quoted(row.answer)} should be {words}"
                )
            of_part.append((asked.prompt(row.instruction, row.input), row.answer))
    task = ExactTask(
        settings,
        {split: trained.pairs(of) for split, of in splits.items()},
        tests,
        read,
    )
    notes += [
        f"task.{k}={settings[k]}; the scripts': {v}"
        for k, v in PUBLISHED.items()
        if settings[k] != v
    ]
    task.notes += [*notes, *other_words(settings, template)]
    return task


def _files(settings: Any) -> dict[str, Path]:
    """The template, the training rows and the test sets by part; empty without
    task.data_dir. Raises DataError for a file that is not there, and for a setting out
    of range."""
    tests = settings["tests"]
    check(settings, "tests", {*tests} <= {*SETS}, f"a list of {', '.join(SETS)}")
    if not settings["data_dir"]:
        return {}
    folder, wanted = (
        Path(settings["data_dir"]),
        {"train.json": f"{settings['train_set']}.json"},
    )
    wanted |= {
        part: f"{SETS[part][0]}/test.json"
        for part in tests
        if settings["decode"] == "test"
    }
    found = {
        key: the_file(folder, "data_dir", file, f"*/{file}")
        for key, file in wanted.items()
    }
    return {"template.json": template_file(settings)} | found
