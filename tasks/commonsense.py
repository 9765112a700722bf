"""Eight commonsense sets after training on commonsense_170k (Hu et al. 2023).

The protocol is that of DoRA's scripts (commit bd3ed6f), which are made from
LLM-Adapters'. A row is an instruction and the response "the correct answer is X". The
trained model writes a text for each test row, in the scripts with 4 beams. The answer
is the first of the test set's words in the text; a text without one is wrong. The score
is the mean over the test sets. The dev rows are those that the scripts hold out."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.base import DataError, Settings, Source, check_setting, quoted
from tasks.exact import ExactTask
from tasks.files import read_list, require_file
from tasks.instruct import (
    Example,
    Template,
    notes_on_template,
    read_template,
    split_rows,
    template_file,
)

PROTOCOL = 1


class TestSet(NamedTuple):
    """folder: the set's folder in LLM-Adapters. words: its possible answers, as a regular
    expression."""

    folder: str
    words: str


FIVE_ANSWERS = "answer1|answer2|answer3|answer4|answer5"
#: The test sets by their names in task.tests.
SETS = {
    "boolq": TestSet("boolq", "true|false"),
    "piqa": TestSet("piqa", "solution1|solution2"),
    "siqa": TestSet("social_i_qa", FIVE_ANSWERS),
    "hellaswag": TestSet("hellaswag", "ending1|ending2|ending3|ending4"),
    "winogrande": TestSet("winogrande", "option1|option2"),
    "arc_easy": TestSet("ARC-Easy", FIVE_ANSWERS),
    "arc_challenge": TestSet("ARC-Challenge", FIVE_ANSWERS),
    "openbookqa": TestSet("openbookqa", FIVE_ANSWERS),
}
#: The answers of all sets: a training row may be of any of them.
ANY_WORD = "|".join(dict.fromkeys(test_set.words for test_set in SETS.values()))
#: Settings of the published runs.
PUBLISHED = {
    "train_set": "commonsense_170k",
    "layout": "indented",
    "beams": 4,
    "max_new_tokens": 32,
}
#: The seed with which the scripts draw their dev rows, through Hugging Face's datasets.
DEV_SEED = 42
#: What the lines of the scripts' prompts begin with.
INDENT = " " * 16


class ChoiceQuestion(Example):
    """A row of a test set. answer: the right one of the set's words."""

    answer: str


def lay_out(template: Template, training: bool) -> Template:
    """A template as the scripts lay it out: INDENT before each line after the first and
    as a last line, and a space after the first line of the prompt without input. In
    training, unlike in the tests, both first lines end with one more space, and empty
    lines from the third on have the INDENT, too."""
    trailing_spaces = 1 if training else 0
    without_input = _indented(template.prompt_no_input, training, trailing_spaces + 1)
    with_input = _indented(template.prompt_input, training, trailing_spaces)
    return template.model_copy(
        update={"prompt_no_input": without_input, "prompt_input": with_input}
    )


def _indented(text: str, training: bool, trailing_spaces: int) -> str:
    """A prompt in the layout that `lay_out` describes. trailing_spaces: how many spaces end
    the first line."""
    first_line, *other_lines = text.rstrip().split("\n")
    lines = [first_line + " " * trailing_spaces]
    for number, line in enumerate(other_lines):
        is_indented = bool(line) or (training and number > 0)
        lines.append(INDENT + line if is_indented else "")
    return "\n".join([*lines, INDENT])


def read_choice(part: str, prompt: str, text: str) -> str | None:
    """The first of the test set's answer words that follows the last "### Response:" in the
    text (in all of it without that heading), as the scripts read it.

    part: the test set; "" for the words of any set. prompt: not used."""
    response = text.rpartition("### Response:")[2]
    words = SETS[part].words if part else ANY_WORD
    word = re.search(words, response)
    return word and word[0]


def source(settings: Settings) -> Source:
    """See tasks.source. The template is part of the data. Without task.data_dir there are
    no files, and `load` fails."""
    return Source(files=_files(settings))


def load(settings: Settings) -> ExactTask:
    """See tasks.load. Raises DataError with file and row for a wrong one."""
    files = _files(settings)
    if not files:
        raise DataError(
            "task.data_dir: give a clone of AGI-Edgerunners/LLM-Adapters, which has "
            "these sets"
        )
    template = read_template(files.pop("template.json"))
    train_template = test_template = template
    if settings["layout"] != "plain":
        train_template = lay_out(template, training=True)
        test_template = lay_out(template, training=False)
    train_path = files.pop("train.json")
    examples = [row for _, row in read_list(train_path, Example)]
    splits, notes = split_rows(settings, examples, train_path, _dev_rows)
    # The files that are left are the test sets
    tests = {
        part: _test_rows(part, path, test_template) for part, path in files.items()
    }
    pairs = {split: train_template.pairs(rows) for split, rows in splits.items()}
    # training_part "": read_choice takes the words of any test set
    task = ExactTask(settings, pairs, tests, read_choice, training_part="")
    for key, published in PUBLISHED.items():
        if settings[key] != published:
            notes.append(f"task.{key}={settings[key]}; the scripts': {published}")
    task.notes += [*notes, *notes_on_template(settings, template)]
    return task


def _dev_rows(total: int, count: int) -> list[int]:
    """The indices of the `count` rows that the scripts hold out, of `total`."""
    order = np.random.default_rng(DEV_SEED).permutation(total)
    return [int(index) for index in order[:count]]


def _test_rows(
    part: str, path: Path, template: Template
) -> list[tuple[str, str | None]]:
    """The prompts and answers of a test set. part: its name in SETS."""
    words = SETS[part].words
    rows: list[tuple[str, str | None]] = []
    for place, row in read_list(path, ChoiceQuestion):
        if not re.fullmatch(words, row.answer):
            raise DataError(f"{place}: answer: {quoted(row.answer)} should be {words}")
        rows.append((template.prompt(row.instruction, row.input), row.answer))
    return rows


def _files(settings: Settings) -> dict[str, Path]:
    """The files of the template ("template.json"), of the training rows ("train.json"), and
    of the test sets, by their names in SETS; none without task.data_dir. Raises DataError
    for a file that is not there, and for a test set that is not in SETS."""
    parts = settings["tests"]
    check_setting(
        settings, "tests", set(parts) <= set(SETS), f"a list of {', '.join(SETS)}"
    )
    if not settings["data_dir"]:
        return {}
    folder = Path(settings["data_dir"])
    names = {"train.json": f"{settings['train_set']}.json"}
    if settings["decode"] == "test":
        names |= {part: f"{SETS[part].folder}/test.json" for part in parts}
    files = {"template.json": template_file(settings)}
    for key, name in names.items():
        files[key] = require_file(folder, "data_dir", name, f"*/{name}")
    return files
