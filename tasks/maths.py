"""Maths problems whose answer is read from the text of a solution (tasks/answers.py).

gsm8k: trained on MetaMathQA (Yu et al. 2024) and tested on GSM8K and MATH, by either of
two protocols. Their words, limits and readers are settings (conf/task/gsm8k.yaml).

- peft's: data.py, run.py and utils.py in method_comparison/MetaMathQA of
  https://github.com/huggingface/peft at commit 5d602fd (August 2026);
- the papers': main_math_tuning.py and instruction_tuning_eval in
  https://github.com/MohammadrezaBanaei/LoRA-XS at commit 0be0770, which follow PiSSA
  and https://github.com/meta-math/MetaMath.

The dev rows are those that peft's code draws from GSM8K's training set; the papers name
none. MATH's answers are compared as hendrycks/math compares them (answers.normal_form).

sums, sums_digit: small problems, made by tasks/sums.py."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from pydantic import AliasChoices, BaseModel, Field

from tasks import sums
from tasks.answers import MATH, Reader, peft_answer, reader
from tasks.base import DataError, Settings, Source, check_setting, fixed_subset, quoted
from tasks.continuations import Splits
from tasks.exact import ExactTask, Read, Tests
from tasks.fetch import pinned_content, snapshot
from tasks.files import module_file, read_list, require_file
from tasks.instruct import NotBlank, notes_on_template, read_template, template_file

PROTOCOL = 1

#: How many rows each set has as published.
PUBLISHED = {"train": 395_000, "gsm8k": 1_319, "math": 5_000}
#: Patterns of MetaMathQA's file.
METAMATHQA_FILES = ("*.json", "*.jsonl", "*.parquet")
#: Patterns of the file of a split of GSM8K; {} is the split's name.
GSM8K_FILES = ("{}.jsonl", "gsm8k_{}.jsonl", "main/{}-*.parquet", "{}-*.parquet")
#: Patterns of MATH's test set: MetaMath's single file, or the files of hendrycks/math.
MATH_FILES = ("MATH_test.jsonl", "MATH/test/*/*.json")
#: The settings of the hub's data set and its revision, by the setting of a local copy that
#: replaces it.
HUBS = {"data_dir": ("hub", "revision"), "test_dir": ("test_hub", "test_revision")}


class Solved(BaseModel):
    """A problem and its solution, which MetaMathQA, GSM8K, MATH, and MetaMath's copy of
    MATH call by different names."""

    problem: NotBlank = Field(
        validation_alias=AliasChoices("query", "question", "problem", "instruction")
    )
    solution: NotBlank = Field(
        validation_alias=AliasChoices("response", "solution", "output", "answer")
    )


def source(settings: Settings) -> Source:
    """See tasks.source. The template and a user's own reader are part of the data."""
    if settings.get("prepare") in sums.SPACES:
        return sums.source(settings)
    # The settings themselves name the local copies, by the same keys
    files = _files(settings, settings)
    remote = [keys for local, keys in HUBS.items() if not settings[local]]
    if not remote:
        return Source(files=files)
    pins = [
        pinned_content(settings[hub], settings[revision], "dataset")
        for hub, revision in remote
    ]
    # The other test sets are in no data set of the hub, only in a folder.
    decodes_others = settings["decode"] == "test" and set(settings["tests"]) - {"gsm8k"}
    if not all(pins) or (decodes_others and not settings["test_dir"]):
        return Source()
    hashes = [
        f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
        for name, path in files.items()
    ]
    return Source(pinned=" ".join([*map(str, pins), *hashes]))


def load(settings: Settings) -> ExactTask:
    """See tasks.load. Raises DataError with file and row for a row without a problem or
    a solution, and for a test row without an answer. A row of MATH without one counts
    as wrong, as in the papers' code."""
    if settings.get("prepare") in sums.SPACES:
        return sums.load(settings)
    files = _files(settings, _local_copies(settings))
    form, notes = _prompt_form(settings, files)
    # task.reader reads every test set but MATH, whose answers have a reader of their own
    readers = dict.fromkeys(settings["tests"], reader(settings["reader"]))
    readers["math"] = MATH
    tests = _tests(settings, files, form, readers)
    rows_in_file = [row for _, row in read_list(files["rows"], Solved)]
    train = _train_rows(settings, rows_in_file, files["rows"])
    dev, dev_notes = _dev_rows(settings, files["gsm8k_train"])
    splits: Splits = {
        "train": [(_prompt(form, row), row.solution) for row in train],
        "dev": [(_prompt(form, row), row.solution) for row in dev],
    }
    headline = settings["tests"][0]
    task = ExactTask(
        settings,
        splits,
        tests,
        _text_reader(readers),
        headline,
        read_response=_response_reader(readers[headline]),
    )
    task.notes += notes + dev_notes
    if settings["name"] == "gsm8k":
        counts = {"train": len(rows_in_file)}
        counts |= {part: len(rows) for part, rows in tests.items()}
        for part, count in counts.items():
            published = PUBLISHED.get(part, count)
            if count != published:
                task.notes.append(f"{part}: {count} rows, of {published} published")
    return task


# --- prompts and answers


def _prompt_form(
    settings: Settings, files: Mapping[str, Path]
) -> tuple[str, list[str]]:
    """The text of a prompt with {query} in the problem's place, and notes about it for the
    record."""
    if settings["prompt"] is not None:
        return settings["prompt"], []
    template = read_template(files["template.json"])
    return template.prompt("{query}").rstrip(), notes_on_template(settings, template)


def _prompt(form: str, row: Solved) -> str:
    """The prompt of a row. form: see _prompt_form."""
    return form.replace("{query}", row.problem)


def _text_reader(readers: Mapping[str, Reader]) -> Read:
    """A function that finds the answer in a model's text with the reader of its test set.
    readers: by test set."""

    def read(part: str, prompt: str, text: str) -> str | None:
        find = readers[part].answer_in_output
        # peft's code reads the prompt, too
        return find(prompt + text if find is peft_answer else text)

    return read


def _response_reader(reader: Reader) -> Callable[[str], str | None]:
    """A function that finds the answer in the solution of a train or dev row. It reads the
    solution like that of a test row, as GSM8K's dev rows need. If that finds nothing, it
    reads it like a model's text, since MetaMathQA's solutions end as the model learns to
    end its texts."""

    def read_response(solution: str) -> str | None:
        answer = reader.answer_in_solution(solution)
        if answer is None:
            answer = reader.answer_in_output(solution)
        return answer

    return read_response


# --- rows


def _tests(
    settings: Settings,
    files: Mapping[str, Path],
    form: str,
    readers: Mapping[str, Reader],
) -> Tests:
    """The prompts and answers of each test set. A row of MATH without an answer stays, with
    the answer None, and always counts as wrong; in another set it is an error. files: of
    the task, by the names that `_files` gives."""
    tests = Tests()
    for name, path in files.items():
        part, slash, _ = name.partition("/")
        if not slash:  # only files of test sets are named PART/FILE
            continue
        items = tests.setdefault(part, [])
        for place, row in read_list(path, Solved):
            answer = readers[part].answer_in_solution(row.solution)
            if answer is None and part != "math":
                raise DataError(
                    f"{place}: no answer in the solution {quoted(row.solution)}"
                )
            items.append((_prompt(form, row) + settings["test_suffix"], answer))
    return tests


def _train_rows(settings: Settings, rows: list[Solved], path: Path) -> list[Solved]:
    """The training rows: those of at most task.max_characters, of these the first
    task.first_rows, and of these a fixed subset of task.train_rows. path: of the rows, for
    the error."""
    # "<", since peft also counts the space that it writes between problem and solution
    limit = settings["max_characters"] or float("inf")
    short_rows = [row for row in rows if len(row.problem + row.solution) < limit]
    candidates = short_rows[: settings["first_rows"]]
    indices = fixed_subset(len(candidates), settings["train_rows"], settings["name"])
    if not indices:
        raise DataError(
            f"{path}: no rows (task.max_characters={settings['max_characters']})"
        )
    return [candidates[i] for i in indices]


def _dev_rows(settings: Settings, path: Path) -> tuple[list[Solved], list[str]]:
    """The task.dev_rows rows that peft's code draws from GSM8K's training set, and a note
    where the set has fewer."""
    rows = [row for _, row in read_list(path, Solved)]
    count = settings["dev_rows"]
    indices = np.random.RandomState(0).permutation(len(rows))[:count]
    notes = []
    if count and len(rows) < count:
        notes.append(f"dev: {len(rows)} rows, of task.dev_rows={count}")
    return [rows[i] for i in indices], notes


# --- files


def _local_copies(settings: Settings) -> dict[str, Path | str]:
    """The folder or file for each key of HUBS: the user's own copy, or else what is fetched
    from the hub."""
    copies: dict[str, Path | str] = {}
    for local, (hub, revision) in HUBS.items():
        if settings[local]:
            copies[local] = settings[local]
            continue
        copies[local] = snapshot(
            settings[hub],
            settings[revision],
            ["*.json", "main/*.parquet"],
            "dataset",
            f"Give a local copy: task.{local}=/where/it/is",
        )
    return copies


def _files(
    settings: Settings, copies: Mapping[str, Path | str | None]
) -> dict[str, Path]:
    """The task's local files by their names in a run's identity. A test set's files are
    named PART/FILE. copies: a folder or file by the keys of HUBS; None where the rows are
    on the hub, whose files are then left out."""
    prompt = settings["prompt"]
    has_place = prompt is None or "{query}" in prompt
    check_setting(settings, "prompt", has_place, "a text with {query}, or null")
    files = {}
    if not prompt:
        files["template.json"] = template_file(settings)
    own_reader = module_file(settings["reader"])
    if own_reader:
        files["reader.py"] = own_reader
    if copies["data_dir"]:
        rows = Path(copies["data_dir"])
        if not rows.is_file():
            rows = require_file(rows, "data_dir", *METAMATHQA_FILES)
        files["rows"] = rows
    if copies["test_dir"]:
        files |= _test_files(settings, Path(copies["test_dir"]))
    return files


def _test_files(settings: Settings, folder: Path) -> dict[str, Path]:
    """The files in task.test_dir, by their names in a run's identity: GSM8K's training set,
    and the test sets where texts are decoded."""
    patterns = [name.format("train") for name in GSM8K_FILES]
    files = {"gsm8k_train": require_file(folder, "test_dir", *patterns)}
    if settings["decode"] != "test":
        return files
    for part in settings["tests"]:
        if part == "math":
            for path in _math_files(folder):
                files[f"math/{path.relative_to(folder).as_posix()}"] = path
            continue
        patterns = [f"{part}.jsonl"]
        if part == "gsm8k":
            patterns = [name.format("test") for name in GSM8K_FILES]
        files[f"{part}/test"] = require_file(folder, "test_dir", *patterns)
    return files


def _math_files(folder: Path) -> list[Path]:
    """MATH's test set: MetaMath's file, or the files of hendrycks/math. Raises
    DataError where neither is there."""
    for pattern in MATH_FILES:
        paths = sorted(folder.glob(pattern))
        if paths:
            return paths
    return [require_file(folder, "test_dir", *MATH_FILES)]
