"""Eight commonsense sets after training on commonsense_170k (Hu et al. 2023), as the scripts of DoRA (commit
bd3ed6f), made from LLM-Adapters', have it.

A row is an instruction and the response "the correct answer is X". The trained model writes a text for each
test row, in the scripts with 4 beams. Its answer is the first of the set's words; without one it is wrong.
The score is the mean over the sets. Dev rows are those that the scripts hold out."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import DataError, Source, check, fixed_subset, quoted
from tasks.exact import ExactTask, Item, Reading, check_settings, compare
from tasks.files import only_file, read_list
from tasks.instruct import Example, NotBlank, Template, other_words, read_rows, read_template, template_file

PROTOCOL = 1

#: The test sets: the folder of each in LLM-Adapters, and the words that it is answered with.
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
PUBLISHED = {"train_set": "commonsense_170k", "layout": "indented", "beams": 4, "max_new_tokens": 32}
SEED, INDENT = 42, " " * 16  # of the scripts' dev rows, as Hugging Face's datasets draws them; of their lines


class Question(Example):
    """A row of a test set. answer: one of the set's words."""

    answer: NotBlank


def laid_out(template: Template, training: bool) -> Template:
    """A template as the scripts lay it out: 16 spaces before each line after the first. Other than in the
    tests, in training empty lines but the first have them, too, and the first line ends with a space more."""

    def form(text: str, spaces: int) -> str:
        first, *rest = text.rstrip().split("\n")
        empty = INDENT if training else ""
        lines = [INDENT + line if line else empty if number else "" for number, line in enumerate(rest)]
        return "\n".join([first + " " * (spaces + training), *lines, INDENT])

    forms = {"prompt_no_input": form(template.prompt_no_input, 1)}
    return template.model_copy(update=forms | {"prompt_input": form(template.prompt_input, 0)})


def read(item: Item, text: str) -> Reading:
    """The first of the set's words, after the text's last "### Response:", at which the scripts cut it."""
    found = re.search(SETS[item.part][1], text.rpartition("### Response:")[2])
    return compare(item, found and found[0])


def source(settings: Any) -> Source:
    """See tasks.source. The template is part of the data. Without task.data_dir nothing is known."""
    return Source(files=_files(settings))


def load(settings: Any) -> ExactTask:
    """See tasks.load. Raises DataError with file and row for a wrong one."""
    if not (files := _files(settings)):
        raise DataError("task.data_dir: give a clone of AGI-Edgerunners/LLM-Adapters, which has these sets")
    template, rows = read_template(files.pop("template.json")), read_rows(files.pop("train.json"))
    if len(rows) < (held := settings["dev_rows"]) + 2:
        raise DataError(f"{settings['train_set']}: {len(rows)} rows are too few for task.dev_rows={held}")
    plain = settings["layout"] == "plain"
    trained, asked = (template if plain else laid_out(template, of) for of in (True, False))
    order = np.random.default_rng(SEED).permutation(len(rows)).tolist()
    dev, rest = sorted(order[:held]), sorted(order[held:])
    train = [rest[i] for i in fixed_subset(len(rest), settings["train_rows"], settings["name"])]
    pairs = [(trained.prompt(row.instruction, row.input), row.output) for row in rows]
    items = list[Item]()
    for part, path in files.items():
        for where, row in read_list(path, Question):
            if not re.fullmatch(words := SETS[part][1], row.answer):
                raise DataError(f"{where}: answer: {quoted(row.answer)} should be {words}")
            items.append(Item(part, asked.prompt(row.instruction, row.input), row.answer))
        if not items or items[-1].part != part:
            raise DataError(f"{path}: no rows")
    splits = {"train": [pairs[i] for i in train], "dev": [pairs[i] for i in dev]}
    task = ExactTask(settings, splits, items, read)
    changed = [key for key, value in PUBLISHED.items() if settings[key] != value]
    task.notes += [f"task.{key}={settings[key]}; the scripts' is {PUBLISHED[key]}" for key in changed]
    if len(train) < len(rest):
        task.notes.append(f"train: a fixed subset of {len(train)} rows, of {len(rest)}")
    task.notes += other_words(settings, template)
    return task


def _files(settings: Any) -> dict[str, Path]:
    """The template, the training rows and the test sets by part; empty without task.data_dir. Raises
    DataError for a file that is not there, and for a setting out of range."""
    check_settings(settings)
    tests, held = settings["tests"], settings["dev_rows"]
    known = bool(tests) and len({*tests} & {*SETS}) == len(tests)
    check(settings, "tests", known, f"a list of {', '.join(SETS)}")
    check(settings, "layout", settings["layout"] in ("indented", "plain"), "indented or plain")
    check(settings, "dev_rows", type(held) is int and held >= 2, "at least 2 rows, which are held out")
    if not settings["data_dir"]:
        return {}
    folder, files = Path(settings["data_dir"]), {"template.json": template_file(settings)}
    wanted = {"train.json": f"{settings['train_set']}.json"}
    wanted |= {part: f"{SETS[part][0]}/test.json" for part in tests if settings["decode"] == "test"}
    for key, file in wanted.items():
        if not (path := only_file(folder, file, f"*/{file}")):
            raise DataError(f"{folder}: no {file} there, or in a folder of it (task.data_dir)")
        files[key] = path
    return files
