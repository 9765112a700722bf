"""Your own problems in files: a prompt and an answer for each, read exactly.

A model is trained to write the answer, or rewarded for it (docs/reward.md). The files
are CSV, TSV, JSONL or parquet."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from tasks.answers import Reader, boxed_answer, gsm8k_answer, normal_form, reader
from tasks.base import DataError, Settings, Source, fixed_subset, require_columns
from tasks.exact import ExactTask, Tests
from tasks.files import module_file
from tasks.tables import read_table
from tasks.text import DEV_STRIDE

PROTOCOL = 1

#: The setting that names the file of each split.
FILE_SETTINGS = {"train": "train_file", "dev": "dev_file", "test": "test_file"}


def whole_text(text: str) -> str | None:
    """The text without the blanks around it; None for an empty one."""
    return text.strip() or None


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands separators and without zeros at the
    end of its decimals: "1200" for "1,200.00"."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not numbers:
        return None
    number = numbers[-1].replace(",", "")
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return str(number)


def boxed_or_plain(text: str) -> str | None:
    r"""The content of the last \boxed{}, or without one the whole text, in the normal form
    of MATH's answers."""
    return boxed_answer(text) or normal_form(text.strip()) or None


#: The values of task.reader that are this family's own. How an answer is read in a model's
#: text, and how in the answer column.
READERS = {
    "text": Reader(whole_text, whole_text),
    "number": Reader(last_number, last_number),
    "boxed": Reader(boxed_answer, boxed_or_plain),
    "gsm8k_boxed": Reader(boxed_answer, gsm8k_answer),
}


def find_reader(name: str) -> Reader:
    """The reader of this name: of READERS, of tasks/answers.py, or module.function."""
    return READERS[name] if name in READERS else reader(name)


def source(settings: Settings) -> Source:
    """See tasks.source. A user's own reader is part of the data."""
    files = _files(settings)
    own_reader = module_file(settings["reader"])
    if own_reader:
        files["reader.py"] = own_reader
    return Source(files=files)


def load(settings: Settings) -> ExactTask:
    """See tasks.load. Raises DataError with file and line for a row without a prompt,
    or without an answer that the reader finds."""
    files = _files(settings)
    answer_reader = find_reader(settings["reader"])
    rows = {
        split: _read_rows(settings, path, answer_reader.answer_in_solution)
        for split, path in files.items()
    }
    notes = []
    if "dev" not in rows:
        train = rows["train"]
        rows["dev"] = train[::DEV_STRIDE]
        rows["train"] = [row for index, row in enumerate(train) if index % DEV_STRIDE]
        notes.append(f"dev: {len(rows['dev'])} of {len(train)} training rows held out")
    # Absent from the settings of records that came before this key
    size = settings.get("train_rows")
    indices = fixed_subset(len(rows["train"]), size, settings["name"])
    rows["train"] = [rows["train"][index] for index in indices]
    tests: Tests = {}
    if "test" in rows:
        tests["test"] = [
            (prompt, answer_reader.answer_in_solution(answer))
            for prompt, answer in rows.pop("test")
        ]
    task = ExactTask(
        settings,
        rows,
        tests,
        lambda part, prompt, text: answer_reader.answer_in_output(text),
        read_response=answer_reader.answer_in_solution,
    )
    task.notes += notes
    return task


def _files(settings: Settings) -> dict[str, Path]:
    """The files by split: the test file only where texts are decoded, the dev file only
    where one is given. Raises DataError where a file is missing."""
    if not settings["train_file"]:
        raise DataError("task.train_file: give a file of problems with their answers")
    file_settings = dict(FILE_SETTINGS)
    if settings["decode"] == "none":
        del file_settings["test"]
    elif not settings["test_file"]:
        raise DataError("task.test_file: give one, or set task.decode=none")
    files = {}
    for split, key in file_settings.items():
        if settings[key]:
            files[split] = Path(settings[key])
    for split, path in files.items():
        if not path.is_file():
            raise DataError(f"task.{FILE_SETTINGS[split]}={path}: no such file")
    return files


def _read_rows(
    settings: Settings, path: Path, read: Callable[[str], str | None]
) -> list[tuple[str, str]]:
    """The prompts of a file, in the form of task.prompt, and their answers as the file has
    them. read: finds the answer in the answer column, which is checked here."""
    prompt_column, answer_column = settings["prompt_column"], settings["answer_column"]
    rows = []
    for line, row in read_table(path):
        place = f"{path} line {line}"
        require_columns(place, row, (prompt_column, answer_column))
        prompt, answer = str(row[prompt_column]), str(row[answer_column])
        if not prompt.strip():
            raise DataError(f"{place}: an empty {prompt_column}")
        if read(answer) is None:
            raise DataError(
                f"{place}: task.reader={settings['reader']} finds no answer in "
                f"{answer[:80]!r}"
            )
        rows.append((_filled_prompt(settings, prompt), answer))
    if len(rows) < 2:
        raise DataError(f"{path}: fewer than two rows")
    return rows


def _filled_prompt(settings: Mapping[str, str], prompt: str) -> str:
    """The text of task.prompt with a row's prompt in it."""
    template = settings["prompt"] or "{prompt}"
    return template.replace("{prompt}", prompt)
