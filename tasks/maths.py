"""Maths problems whose answer is read from the text of a solution (tasks/answers.py).

gsm8k: trained on MetaMathQA (Yu et al. 2024), tested on GSM8K and MATH, by either of two protocols, whose
words, limits and readers are settings (conf/task/gsm8k.yaml):
- peft's, in method_comparison/MetaMathQA of https://github.com/huggingface/peft: data.py@d9e56aa,
  run.py@026d1e0, utils.py@0134244;
- the papers', in main_math_tuning.py@0be0770 and instruction_tuning_eval of
  https://github.com/MohammadrezaBanaei/LoRA-XS, after PiSSA's and https://github.com/meta-math/MetaMath's.
dev rows are those that peft's code draws from GSM8K's training set; the papers name none.
sums (tasks/sums.py): small problems, of which the answer is the first number of the text."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from tasks import sums
from tasks.answers import MATH, Reader, own_file, reader
from tasks.base import DataError, Source, check, fixed_subset, quoted
from tasks.exact import ExactTask, Item, Reading, check_settings, compare
from tasks.fetch import content, data_folder, snapshot
from tasks.files import only_file, open_text, read_list, validated
from tasks.instruct import NotBlank, other_words, read_template, template_file
from tasks.text import read_parquet

PROTOCOL = 1

#: Rows as published.
PUBLISHED = {"train": 395_000, "gsm8k": 1_319, "math": 5_000}
#: Names of files: of MetaMathQA, of GSM8K's splits, and of MATH's test set (MetaMath's and hendrycks/math's).
METAMATHQA = ("*.json", "*.jsonl", "*.parquet")
GSM8K = ("{}.jsonl", "gsm8k_{}.jsonl", "main/{}-*.parquet", "{}-*.parquet")
MATHS = ("MATH_test.jsonl", "MATH/test/*/*.json")


class Solved(BaseModel):
    """A problem and its solution, by their names in MetaMathQA, GSM8K, MATH, and MetaMath's copy of MATH."""

    model_config = ConfigDict(frozen=True)

    problem: NotBlank = Field(validation_alias=AliasChoices("query", "question", "problem", "instruction"))
    solution: NotBlank = Field(validation_alias=AliasChoices("response", "solution", "output", "answer"))


def source(settings: Any) -> Source:
    """See tasks.source. The template and a reader of one's own are part of the data."""
    _check(settings)
    if settings.get("prepare") == "sums":
        return Source(pinned=sums.CONTENT)
    files = _files(settings, settings["data_dir"], settings["test_dir"])
    hubs = ("data_dir", "hub", "revision"), ("test_dir", "test_hub", "test_revision")
    pins = [content(settings[hub], settings[at], "dataset") for own, hub, at in hubs if not settings[own]]
    if not pins:
        return Source(files=files)
    if _misses(settings) or not all(pins):
        return Source()
    local = [f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" for name, path in files.items()]
    return Source(pinned=" ".join([*map(str, pins), *local]))


def load(settings: Any) -> ExactTask:
    """See tasks.load. Raises DataError with file and row for one without a problem or a solution, or a test
    row without an answer. MATH's without one count as wrong, as in the papers' code."""
    _check(settings)
    if settings.get("prepare") == "sums":
        return _sums(settings)
    if missed := _misses(settings):
        raise DataError(f"task.tests=[{', '.join(missed)}]: from a folder, task.test_dir=/where/it/is")
    rows, tests = data_folder(settings, METAMATHQA[0], "/where/metamathqa"), settings["test_dir"]
    if not tests:
        of_hub, instead = (settings["test_hub"], settings["test_revision"]), "task.test_dir=/where/gsm8k"
        tests = snapshot(*of_hub, ["main/*.parquet"], "dataset", f"Give a local copy: {instead}")
    files, read_by = _files(settings, rows, tests), reader(settings["reader"])
    form, notes = settings["prompt"], list[str]()
    if form is None:
        template = read_template(files["template.json"])
        form, notes = template.prompt("{query}").rstrip(), other_words(settings, template)

    def prompt(row: Solved) -> str:
        return str(form.replace("{query}", row.problem))

    def item(part: str, where: str, row: Solved) -> Item:
        answer = (MATH if part == "math" else read_by).expected(row.solution)
        if answer is None and part != "math":
            raise DataError(f"{where}: no answer in the solution {quoted(row.solution)}")
        return Item(part, prompt(row) + settings["test_suffix"], answer)

    every = [row for _, row in _rows(files["rows"])]
    limit = settings["max_characters"] or float("inf")  # peft's counts a space between the two
    train = [row for row in every if len(row.problem + row.solution) < limit][: settings["first_rows"]]
    train = [train[i] for i in fixed_subset(len(train), settings["train_rows"], settings["name"])]
    if not train:
        raise DataError(f"{files['rows']}: no rows (task.max_characters={settings['max_characters']})")
    dev, asked = [row for _, row in _rows(files["gsm8k_train"])], settings["dev_rows"]
    order = np.random.RandomState(0).permutation(len(dev))[:asked]  # peft's draw
    splits = {"train": train, "dev": [dev[i] for i in order]}
    notes += [f"dev: {len(dev)} rows, of task.dev_rows={asked}"] * (len(dev) < asked)
    tested = [(part, name) for part in settings["tests"] for name in files if name.startswith(f"{part}/")]
    items = [item(part, where, row) for part, name in tested for where, row in _rows(files[name])]
    counts = {"train": len(every), **Counter(item.part for item in items)}
    known = PUBLISHED if settings["name"] == "gsm8k" else {}
    notes += [f"{k}: {n} rows, of {known[k]} published" for k, n in counts.items() if n != known.get(k, n)]
    pairs = {split: [(prompt(row), row.solution) for row in of] for split, of in splits.items()}
    task = ExactTask(settings, pairs, items, partial(_read, read_by), settings["tests"][0])
    task.notes += notes
    return task


def _read(by: Reader, item: Item, text: str) -> Reading:
    by = MATH if item.part == "math" else by
    return compare(item, by.find(item.prompt + text if by.with_prompt else text))


def _sums(settings: Any) -> ExactTask:
    for key in (keys := ("test_rows", "dev_rows", "train_rows")):
        check(settings, key, type(settings[key]) is int and settings[key] >= 1, "a whole number from 1 on")
    test, dev, train = (settings[key] for key in keys)
    if test + dev + train > sums.MOST:
        raise DataError(f"task.train_rows={train}: with the other rows more than the {sums.MOST} problems")
    rows = sums.problems(test + dev + train)  # the test rows first: the same, whatever is trained on
    splits = {"train": rows[test + dev :], "dev": rows[test : test + dev]}
    items = [Item("sums", prompt, answer.strip()) for prompt, answer in rows[:test]]
    return ExactTask(settings, splits, items, partial(_read, reader("number")))


def _misses(settings: Any) -> list[str]:
    """The test sets that are in a folder, where none is given."""
    needs_none = settings["test_dir"] or settings["decode"] == "none"
    return [] if needs_none else [of for of in settings["tests"] if of != "gsm8k"]


def _check(settings: Any) -> None:
    """Raises DataError for a setting out of range."""
    check_settings(settings)
    if settings.get("prepare") == "sums":
        return
    tests, prompt = settings["tests"], settings["prompt"]
    named = isinstance(tests, list) and 0 < len(tests) == len({of for of in tests if type(of) is str})
    check(settings, "tests", named, "a list of different names, such as [gsm8k, math]")
    check(settings, "test_suffix", type(settings["test_suffix"]) is str, "a text")
    check(settings, "prompt", prompt is None or "{query}" in str(prompt), "a text with {query}, or null")
    check(settings, "dev_rows", settings["dev_rows"] is not None, "a whole number from 1 on")
    for key in ("max_characters", "first_rows"):
        fits = settings[key] is None or (type(settings[key]) is int and settings[key] >= 1)
        check(settings, key, fits, "a whole number from 1 on, or null for all")


# --- files


def _files(settings: Any, rows: Any, tests: Any) -> dict[str, Path]:
    """The local files by their names in a run's identity. rows, tests: where they are; None for the hub."""
    files = {} if settings["prompt"] else {"template.json": template_file(settings)}
    if own := own_file(settings["reader"]):
        files["reader.py"] = own
    if rows:
        files["rows"] = Path(rows) if Path(rows).is_file() else _file(Path(rows), "data_dir", METAMATHQA)
    if tests:
        files["gsm8k_train"] = _file(Path(tests), "test_dir", [name.format("train") for name in GSM8K])
    for part in settings["tests"] if tests and settings["decode"] == "test" else ():
        if part == "math":
            found = [sorted(Path(tests).glob(pattern)) for pattern in MATHS]
            if not any(found):
                raise DataError(f"{tests}: no {' or '.join(MATHS)} (task.test_dir)")
            files |= {f"math/{path.relative_to(tests).as_posix()}": path for path in found[0] or found[1]}
        else:
            names = [name.format("test") for name in GSM8K] if part == "gsm8k" else [f"{part}.jsonl"]
            files[f"{part}/test"] = _file(Path(tests), "test_dir", names)
    return files


def _file(folder: Path, key: str, names: Any) -> Path:
    if path := only_file(folder, *names, without="dataset_infos.json"):
        return path
    raise DataError(f"{folder}: no {' or '.join(names)} (task.{key})")


def _rows(path: Path) -> Iterator[tuple[str, Solved]]:
    """The rows of a JSON list, JSONL or parquet file, or the one of a file of MATH, and where they are."""
    if path.suffix == ".parquet":
        for number, row in read_parquet(path):
            yield (where := f"{path} row {number}"), validated(Solved, json.dumps(row), where)
    elif path.match("MATH/test/*/*.json"):
        with open_text(path) as file:
            yield str(path), validated(Solved, file.read(), str(path))
    else:
        yield from read_list(path, Solved)
