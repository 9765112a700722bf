"""Maths problems whose answer is read from the text of a solution (tasks/answers.py).

gsm8k: trained on MetaMathQA (Yu et al. 2024), tested on GSM8K and MATH, by either of two protocols, whose
words, limits and readers are settings (conf/task/gsm8k.yaml):
- peft's, in method_comparison/MetaMathQA of https://github.com/huggingface/peft: data.py@d9e56aa,
  run.py@026d1e0, utils.py@0134244;
- the papers', in main_math_tuning.py@0be0770 and instruction_tuning_eval of
  https://github.com/MohammadrezaBanaei/LoRA-XS, after PiSSA's and https://github.com/meta-math/MetaMath's.
dev rows are those that peft's code draws from GSM8K's training set; the papers name none.
sums: small problems, made by tasks/sums.py."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import AliasChoices, BaseModel, Field

from tasks import sums
from tasks.answers import MATH, peft_answer, reader
from tasks.base import DataError, Source, check, fixed_subset, quoted
from tasks.exact import ExactTask, Tests
from tasks.fetch import content, snapshot
from tasks.files import module_file, read_list, the_file
from tasks.instruct import NotBlank, other_words, read_template, template_file

PROTOCOL = 1

#: Rows as published.
PUBLISHED = {"train": 395_000, "gsm8k": 1_319, "math": 5_000}
#: Names of files: of MetaMathQA, of GSM8K's splits, and of MATH's test set (MetaMath's
#: and hendrycks/math's).
METAMATHQA = ("*.json", "*.jsonl", "*.parquet")
GSM8K = ("{}.jsonl", "gsm8k_{}.jsonl", "main/{}-*.parquet", "{}-*.parquet")
MATHS = ("MATH_test.jsonl", "MATH/test/*/*.json")
#: By the key of a local copy: the keys of the hub's data set and its revision.
HUBS = {"data_dir": ("hub", "revision"), "test_dir": ("test_hub", "test_revision")}


class Solved(BaseModel):
    """A problem and its solution, by their names in MetaMathQA, GSM8K, MATH, and
    MetaMath's copy of MATH."""

    problem: NotBlank = Field(
        validation_alias=AliasChoices("query", "question", "problem", "instruction")
    )
    solution: NotBlank = Field(
        validation_alias=AliasChoices("response", "solution", "output", "answer")
    )


def source(settings: Any) -> Source:
    """See tasks.source. The template and a reader of one's own are part of the data."""
    if settings.get("prepare") == "sums":
        return Source(pinned=sums.CONTENT)
    files, hubs = (
        _files(settings, settings),
        [of for key, of in HUBS.items() if not settings[key]],
    )
    if not hubs:
        return Source(files=files)
    pins = [
        content(settings[hub], settings[revision], "dataset") for hub, revision in hubs
    ]
    # which are in a folder alone
    others = settings["decode"] == "test" and {*settings["tests"]} - {"gsm8k"}
    if not all(pins) or (others and not settings["test_dir"]):
        return Source()
    local = [
        f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
        for name, path in files.items()
    ]
    return Source(pinned=" ".join([*map(str, pins), *local]))


def load(settings: Any) -> ExactTask:
    """See tasks.load. Raises DataError with file and row for one without a problem or a
    solution, or a test row without an answer. MATH's without one count as wrong, as in
    the papers' code."""
    if settings.get("prepare") == "sums":
        return sums.load(settings)
    at = {key: settings[key] for key in HUBS}
    for key, of in HUBS.items():
        hub, revision = (settings[name] for name in of)
        instead = f"Give a local copy: task.{key}=/where/it/is"
        at[key] = at[key] or snapshot(
            hub, revision, ["*.json", "main/*.parquet"], "dataset", instead
        )
    files, form, notes = _files(settings, at), settings["prompt"], list[str]()
    readers = dict.fromkeys(settings["tests"], reader(settings["reader"])) | {
        "math": MATH
    }
    if form is None:
        template = read_template(files["template.json"])
        form, notes = (
            template.prompt("{query}").rstrip(),
            other_words(settings, template),
        )

    def read(part: str, prompt: str, text: str) -> str | None:
        find = readers[part][0]
        # peft's code reads the prompt, too
        return find(prompt + text if find is peft_answer else text)

    def pair(row: Solved) -> tuple[str, str]:
        return form.replace("{query}", row.problem), row.solution

    tests = Tests()
    for name in [name for name in files if "/" in name]:
        of_part = tests.setdefault(part := name.partition("/")[0], [])
        for where, row in read_list(files[name], Solved):
            answer = readers[part][1](row.solution)
            if answer is None and part != "math":
                raise DataError(
                    f"{where}: no answer in the solution {quoted(row.solution)}"
                )
            of_part.append((pair(row)[0] + settings["test_suffix"], answer))
    every = [row for _, row in read_list(files["rows"], Solved)]
    # peft's counts a space between the two
    limit = settings["max_characters"] or float("inf")
    train = [row for row in every if len(row.problem + row.solution) < limit][
        : settings["first_rows"]
    ]
    train = [
        train[i]
        for i in fixed_subset(len(train), settings["train_rows"], settings["name"])
    ]
    if not train:
        raise DataError(
            f"{files['rows']}: no rows (task.max_characters={settings['max_characters']})"
        )
    dev, asked = (
        [row for _, row in read_list(files["gsm8k_train"], Solved)],
        settings["dev_rows"],
    )
    order = np.random.RandomState(0).permutation(len(dev))[:asked]  # peft's draw
    splits = {"train": [*map(pair, train)], "dev": [pair(dev[i]) for i in order]}
    task = ExactTask(settings, splits, tests, read, settings["tests"][0])
    notes += [f"dev: {len(dev)} rows, of task.dev_rows={asked}"] * (
        len(dev) < (asked or 0)
    )
    known = PUBLISHED if settings["name"] == "gsm8k" else {}
    counts = {"train": len(every)} | {part: len(rows) for part, rows in tests.items()}
    notes += [
        f"{k}: {n} rows, of {known[k]} published"
        for k, n in counts.items()
        if n != known.get(k, n)
    ]
    task.notes += notes
    return task


# --- files


def _files(settings: Any, at: Any) -> dict[str, Path]:
    """Local files by their names in a run's identity. at: folders or files, by HUBS;
    None: the hub."""
    prompt = settings["prompt"]
    check(
        settings,
        "prompt",
        prompt is None or "{query}" in prompt,
        "a text with {query}, or null",
    )
    files = {} if prompt else {"template.json": template_file(settings)}
    if own := module_file(settings["reader"]):
        files["reader.py"] = own
    if at["data_dir"]:
        rows = Path(at["data_dir"])
        files["rows"] = (
            rows if rows.is_file() else the_file(rows, "data_dir", *METAMATHQA)
        )
    if not at["test_dir"]:
        return files
    tests = Path(at["test_dir"])
    files["gsm8k_train"] = the_file(
        tests, "test_dir", *(name.format("train") for name in GSM8K)
    )
    for part in settings["tests"] if settings["decode"] == "test" else ():
        if part == "math":
            found = sorted(tests.glob(MATHS[0])) or sorted(tests.glob(MATHS[1]))
            # which says that there is none
            found = found or [the_file(tests, "test_dir", *MATHS)]
            files |= {
                f"math/{path.relative_to(tests).as_posix()}": path for path in found
            }
        else:
            names = (
                [name.format("test") for name in GSM8K]
                if part == "gsm8k"
                else [f"{part}.jsonl"]
            )
            files[f"{part}/test"] = the_file(tests, "test_dir", *names)
    return files
