"""Maths: how answers are read, held to what the code of peft, MetaMath and MATH reads; the rows of both
protocols; and what of a file is refused. answers.jsonl has texts and solutions of our own, and what that code
read in them: of solutions peft and MetaMath; of texts, for both, what was found and whether it was right; of
MATH whether a text has an answer, and whether it is right."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from running import refused
from tiny import write_maths

import tasks
from runs.config import expand
from tasks import maths, sums
from tasks.answers import MATH, READERS
from tasks.base import DataError
from tasks.exact import Item
from tasks.maths import _read

pytestmark = pytest.mark.parity

READ = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text().splitlines()]
PAPERS = {
    "prompt": None,
    "reader": "metamath",
    "max_characters": None,
    "first_rows": 3,
    "train_on_inputs": False,
}
PAPERS |= {"test_suffix": " Let's think step by step.", "tests": ["gsm8k", "math"], "stops": ["Instruction"]}


@functools.cache
def of_conf():
    (run,) = expand(["model=decoder", "model.path=/x", "task=gsm8k"])
    return run.config["task"] | {"forgetting_text": "none"}


@pytest.fixture
def load(tmp_path):
    folder = write_maths(tmp_path / "maths")
    return lambda **changes: tasks.load(
        of_conf() | {"data_dir": str(folder), "test_dir": str(folder)} | changes
    )


def read(reader, expected, text, part="gsm8k"):
    """What is found and whether it is right; peft's code reads the prompt, too."""
    found = _read(READERS[reader], Item(part, "Question: ?", expected), text)
    assert bool(found.reason) is not found.right
    return [found.answer, found.right]


def test_solutions_and_texts_are_read_as_theirs():
    rows = {kind: [row for other, *row in READ if other == kind] for kind in ("gsm8k", "text", "math")}
    assert all(len(of_kind) >= 200 for of_kind in rows.values())
    peft, metamath = (READERS[name].expected for name in ("peft", "metamath"))
    for solution, *theirs in rows["gsm8k"]:
        assert [peft(solution), metamath(solution)] == theirs, solution
    for solution, text, *theirs in rows["text"]:
        ours = [*read("peft", peft(solution), text), *read("metamath", metamath(solution), text)]
        assert ours == theirs, text
    for solution, text, *theirs in rows["math"]:
        answer, right = read("peft", MATH.expected(solution), text, "math")
        assert [answer is not None, right] == theirs, (solution, text)


def test_rows_and_prompts_of_pefts_protocol(load):
    task = load(first_rows=4, max_characters=120, dev_rows=3)
    prompts = [prompt for prompt, _ in task.splits["train"]]
    assert prompts[0] == "Question: What is 2 {more} than 3? Think step by step.\nAnswer:"
    assert [len(of) for of in task.splits.values()] == [4, 3]
    assert not any("long" in prompt for prompt in prompts)  # the second of five in the file
    np.random.seed(0)
    order = np.arange(8)
    np.random.shuffle(order)
    assert [prompt.split()[1] for prompt, _ in task.splits["dev"]] == [f"Dev{i}" for i in order[:3]]
    assert [item.answer for item in task.items] == ["1200.0", "1,200", "-3.0", "1.0"]  # with a comma a text
    assert "train: 5 rows, of 395000 published" in task.notes
    assert not any("dev" in note for note in task.notes)
    assert any("task.dev_rows=9" in note for note in load(dev_rows=9).notes)  # of eight


def test_rows_and_prompts_of_the_papers_protocol(load, tmp_path):
    task = load(**PAPERS)
    assert len(task.splits["train"]) == 3  # the first of the file, the long one among them
    (prompt, response), item = task.splits["train"][1], task.items[0]
    assert prompt.endswith("\n\n### Response:")
    assert response.endswith("The answer is: 9")
    assert item.prompt.endswith("\n\n### Response: Let's think step by step.")
    assert [(one.part, one.answer) for one in task.items[-3:]] == [
        ("math", r"\frac{1}{2}"),
        ("math", "7"),
        ("math", None),
    ]
    assert any("not Alpaca's" in note for note in task.notes)
    scores = task.scores(
        ["The answer is: 1200", "The answer is: 1,200", "The answer is: 3", "", *["The answer is: 7."] * 3]
    )
    assert scores["parts"] == {"gsm8k": 50.0, "math": pytest.approx(100 / 3)}
    assert (scores["exact_match"], scores["unread"]) == (50.0, pytest.approx(100 / 7))
    # JSONL and parquet, and MATH as its authors have it
    folder = str(write_maths(tmp_path / "other", other=True))
    other = load(**PAPERS, data_dir=folder, test_dir=folder)
    assert (other.splits, other.items) == (task.splits, task.items)


def test_sums_are_right_and_none_is_there_twice():
    rows = sums.problems(sums.MOST + 5)
    assert len(dict(rows)) == sums.MOST
    assert all(eval(prompt.removesuffix(" =")) == int(answer) for prompt, answer in rows)
    assert sums.problems(10) == rows[:10]
    terms = [tuple(sorted(re.findall(r"[+-] \d", f"+ {prompt}"))) for prompt, _ in rows]
    assert len({*terms[:200]} & {*terms[200:]}) <= 1  # those of the same terms are on one side


@pytest.mark.parametrize(("key", "value"), [("test_rows", 0), ("train_rows", None), ("train_rows", 3078)])
def test_of_sums_there_are_rows_of_each_kind(key, value):
    with pytest.raises(DataError, match=f"task.{key}="):
        maths._sums({"test_rows": 2, "dev_rows": 2, "train_rows": 2, key: value})


@pytest.mark.parametrize(
    ("file", "row", "key"),
    [
        ("test.jsonl", {"question": "q", "answer": "no marker"}, "test.jsonl line 5"),
        ("test.jsonl", {"question": "q"}, "line 5"),
        ("train.jsonl", {"question": " ", "answer": "#### 1"}, "line 9"),
        ("MetaMathQA.json", None, "task.max_characters"),
        ("test.jsonl", None, "test set has no rows"),
    ],
)
def test_a_bad_file_is_refused_with_its_row(file, row, key, load, tmp_path):
    path = tmp_path / "maths" / file
    text = path.read_text() + json.dumps(row) + "\n" if row else "[]" if file.endswith("json") else ""
    path.write_text(text)
    with pytest.raises(tasks.DataError, match=key) as error:
        load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        *(
            ({key: "x"}, f"task.{key}")
            for key in ("tests", "prompt", "reader", "first_rows", "max_characters")
        ),
        ({"tests": ["gsm8k", "gsm8k"]}, "task.tests"),
        ({"tests": [1]}, "task.tests"),
        ({"test_suffix": None}, "task.test_suffix"),
        *(({"reader": reader}, "task.reader") for reader in ("sys.intern", "math.floor", "tasks.metrics")),
        ({"tests": ["math"], "test_dir": None}, "task.test_dir"),
        ({"test_dir": "/nowhere"}, "task.test_dir"),
        ({"data_dir": "/nowhere"}, "task.data_dir"),
        ({"prompt": None, "template": "/nowhere"}, "task.template"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes, key, load):
    with pytest.raises(tasks.DataError, match=key) as error:
        load(**changes)
    assert "\n" not in str(error.value)


def test_what_defines_the_rows_is_in_the_source(load, tmp_path, monkeypatch):
    """Files, and the words and the reader of one's own; on the hub, what is known of it."""
    folder = str(write_maths(tmp_path / "rows"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_reader.py").write_text(
        "def last_word(text):\n    return text.split()[-1] if text else None\n"
    )
    settings = of_conf() | {"data_dir": folder, "test_dir": folder}
    own = {"reader": "own_reader.last_word", "prompt": None, "tests": ["math"]}
    assert set(tasks.source(settings).files) == {"rows", "gsm8k_train", "gsm8k/test"}
    more = {"template.json", "reader.py", "math/MATH_test.jsonl"}
    assert set(tasks.source(settings | own).files) == {"rows", "gsm8k_train"} | more
    hub = settings | {"data_dir": None, "revision": "a" * 40}
    assert tasks.source(hub).pinned.startswith(f"meta-math/MetaMathQA@{'a' * 40} gsm8k_train:")
    assert tasks.source(hub | {"test_dir": None, "test_revision": None}) == tasks.base.Source()
    assert tasks.source(hub | {"test_dir": None, "tests": ["math"]}) == tasks.base.Source()
    task = load(reader="own_reader.last_word")
    assert task.scores(["it is 1200", "1200", "", "-4"])["exact_match"] == 25
    # Without texts the test sets are not read
    untested = {"decode": "none", "tests": ["gsm8k", "math"]}
    assert set(tasks.source(settings | untested).files) == {"rows", "gsm8k_train"}
    assert tasks.source(hub | {"test_dir": None} | untested).pinned.count("@") == 2
    assert not load(**untested).items


@pytest.mark.parametrize(
    "body",
    ["find = 3", "def find(text):\n    return text[0]", "def find(text):\n    return 3", "import nothing"],
)
def test_a_reader_of_ones_own_that_cannot_read_is_refused_before_training(body, load, tmp_path, monkeypatch):
    name = f"own_{abs(hash(body))}"  # imported once in a process
    (tmp_path / f"{name}.py").write_text(body + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with refused(f"task.reader={name}.find"):
        load(reader=f"{name}.find")


def test_a_reader_of_ones_own_that_fails_at_a_text_names_it(load, tmp_path, monkeypatch):
    (tmp_path / "own_failing.py").write_text(
        "def find(text):\n    return int(text) if 'odd' in text else text\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    task = load(reader="own_failing.find")
    assert task.scores(["1200"] * 4)["unread"] == 0
    with refused("odd one"):
        task.scores(["odd one"] * 4)
