"""Maths: the rows and prompts of both protocols, and what defines them."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from running import refused, task_of
from tiny import write_maths

import tasks
from tasks import sums
from tasks.base import DataError

pytestmark = pytest.mark.parity

PAPERS = {"prompt": None, "reader": "metamath", "max_characters": None, "first_rows": 3}
PAPERS |= {"test_suffix": " Let's think step by step.", "tests": ["gsm8k", "math"]}


@pytest.fixture
def load(tmp_path):
    folder = write_maths(tmp_path / "maths")
    where = {
        "data_dir": str(folder),
        "test_dir": str(folder),
        "forgetting_text": "none",
    }
    return lambda **changes: tasks.load(task_of("gsm8k") | where | changes)


def test_rows_and_prompts_of_pefts_protocol(load):
    task = load(first_rows=4, max_characters=120, dev_rows=3)
    prompts = [prompt for prompt, _ in task.splits["train"]]
    assert (
        prompts[0] == "Question: What is 2 {more} than 3? Think step by step.\nAnswer:"
    )
    assert [len(of) for of in task.splits.values()] == [4, 3]
    # the second of five in the file
    assert not any("long" in prompt for prompt in prompts)
    np.random.seed(0)
    order = np.arange(8)
    np.random.shuffle(order)
    assert [prompt.split()[1] for prompt, _ in task.splits["dev"]] == [
        f"Dev{i}" for i in order[:3]
    ]
    # With a comma a text
    assert [answer for _, answer, _ in task.items] == ["1200.0", "1,200", "-3.0", "1.0"]
    assert "train: 5 rows, of 395000 published" in task.notes
    assert not any("dev" in note for note in task.notes)
    assert any("task.dev_rows=9" in note for note in load(dev_rows=9).notes)  # of eight


def test_rows_and_prompts_of_the_papers_protocol(load, tmp_path):
    task = load(**PAPERS)
    # the first of the file, the long one among them
    assert len(task.splits["train"]) == 3
    (prompt, response), (asked, *_) = task.splits["train"][1], task.items[0]
    assert prompt.endswith("\n\n### Response:")
    assert response.endswith("The answer is: 9")
    assert asked.endswith("\n\n### Response: Let's think step by step.")
    assert [answer for _, answer, part in task.items if part == "math"] == [
        r"\frac{1}{2}",
        "7",
        None,
    ]
    assert any("not Alpaca's" in note for note in task.notes)
    assert (task.headline, task.read("gsm8k", "", "The answer is: 1,200")) == (
        "gsm8k",
        "1200",
    )
    # JSONL and parquet, and MATH as its authors have it
    folder = str(write_maths(tmp_path / "other", other=True))
    other = load(**PAPERS, data_dir=folder, test_dir=folder)
    assert (other.splits, other.items) == (task.splits, task.items)


def test_pefts_code_reads_the_prompt_too(load):
    """The one that has a marker, where the text has none."""
    for name, right in (("peft", 100), ("metamath", 0)):
        task = load(prompt="The answer is: {query}", reader=name)
        assert task.read("gsm8k", "The answer is: 7\n", "") == (
            "7.0" if right else None
        )


def test_sums_are_right_and_none_is_there_twice():
    problems = sums.all_problems(sums.SPACES["sums"])
    prompts = {problem.prompt for problem in problems}
    assert len(prompts) == len(problems) == 2 * 9**2 + 4 * 9**3
    assert all(
        eval(problem.prompt.removesuffix(" =")) == int(problem.answer)
        for problem in problems
    )
    task = tasks.load(
        task_of("sums") | {"train_rows": 5, "dev_rows": 3, "test_rows": 2}
    )
    rows = [(problem.prompt, problem.answer) for problem in problems]
    assert [task.splits[part] for part in ("dev", "train")] == [rows[2:5], rows[5:10]]
    assert task.items == [
        (prompt, answer.strip(), "sums") for prompt, answer in rows[:2]
    ]
    assert [
        task.read("sums", "", text) for text in (" 7", "it is -3, not 4", "none")
    ] == ["7", "-3", None]


def test_orders_of_the_same_terms_are_neighbours_and_one_group():
    """A group's problems follow one another, so that parts share none but at their
    ends. The task has the group of each item that it decodes."""
    problems = sums.all_problems(sums.SPACES["sums"])
    groups = [problem.group for problem in problems]
    assert groups == sorted(groups)
    terms_of_group = {}
    for problem in problems:
        terms = sorted(re.findall(r"[+-] \d", f"+ {problem.prompt}"))
        assert terms_of_group.setdefault(problem.group, terms) == terms
    assert len({tuple(terms) for terms in terms_of_group.values()}) == groups[-1] + 1
    task = tasks.load(task_of("sums"))
    assert task.item_groups == groups[:1000]
    some = tasks.load(task_of("sums") | {"items": 30})
    group_of_prompt = {problem.prompt: problem.group for problem in problems}
    assert some.item_groups == [group_of_prompt[item.prompt] for item in some.items]
    assert tasks.load(task_of("sums") | {"decode": "none"}).item_groups is None


def test_sums_that_are_too_many_are_refused_before_anything_is_loaded():
    """By the source, which a plan asks for. The default sizes fit, of which 1,000 are
    tested."""
    settings = task_of("sums")
    sizes = [settings[f"{part}_rows"] for part in ("train", "dev", "test")]
    assert sizes == [1900, 100, 1000]
    assert tasks.source(settings).pinned == sums.SPACES["sums"].content
    available = len(sums.all_problems(sums.SPACES["sums"]))
    tasks.source(settings | {"train_rows": available - 1100})
    with refused(f"task.train_rows={available - 1099}"):
        tasks.source(settings | {"train_rows": available - 1099})


def test_what_defines_the_rows_is_in_the_source(load, tmp_path, monkeypatch):
    """Files, and the words and the reader of one's own; on the hub, what is known of
    it."""
    folder = str(write_maths(tmp_path / "rows"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_reader.py").write_text(
        "def last_word(text):\n    return text.split()[-1] if text else None\n"
    )
    settings = task_of("gsm8k") | {
        "data_dir": folder,
        "test_dir": folder,
        "forgetting_text": "none",
    }
    own = {"reader": "own_reader.last_word", "prompt": None, "tests": ["math"]}
    assert set(tasks.source(settings).files) == {"rows", "gsm8k_train", "gsm8k/test"}
    more = {"template.json", "reader.py", "math/MATH_test.jsonl"}
    assert set(tasks.source(settings | own).files) == {"rows", "gsm8k_train"} | more
    hub = settings | {"data_dir": None, "revision": "a" * 40}
    assert tasks.source(hub).pinned.startswith(
        f"meta-math/MetaMathQA@{'a' * 40} gsm8k_train:"
    )
    assert (
        tasks.source(hub | {"test_dir": None, "test_revision": None})
        == tasks.base.Source()
    )
    assert (
        tasks.source(hub | {"test_dir": None, "tests": ["math"]}) == tasks.base.Source()
    )
    task = load(reader="own_reader.last_word")
    assert task.scores(["it is 1200", "1200", "", "-4"])["exact_match"] == 25
    # Without texts the test sets are not read
    untested = {"decode": "none", "tests": ["gsm8k", "math"]}
    assert set(tasks.source(settings | untested).files) == {"rows", "gsm8k_train"}
    assert tasks.source(hub | {"test_dir": None} | untested).pinned.count("@") == 2
    assert not load(**untested).items


# --- sums of one digit


def terms_of(prompt):
    """The signed terms of a problem, whatever their order."""
    return tuple(sorted(re.findall(r"[+-]\d", f"+{prompt}")))


@pytest.mark.parametrize("share", [None, 0.2])
def test_parts_of_one_digit_sums_share_no_terms(share):
    """Nor does a trial hold out what it trains on."""
    changes = {"decode": "none", "holdout": share} if share else {}
    task = tasks.load(task_of("sums_digit") | changes)
    parts = [
        {terms_of(prompt) for prompt, _ in task.splits[split]}
        for split in ("train", "dev")
    ]
    parts.append({terms_of(item.prompt) for item in task.items})
    for one, other in itertools.combinations(parts, 2):
        assert not one & other
    if not share:
        rows = [*task.splits["train"], *task.splits["dev"]]
        assert [len(task.splits["train"]), len(task.splits["dev"])] == [3200, 300]
        assert len(task.items) == 1000
        for prompt, answer in rows:
            assert prompt.endswith("= ")
            assert str(eval(prompt.removesuffix("= "))) == answer
            assert len(answer) == 1


def test_each_digit_is_the_answer_of_a_tenth_of_what_models_are_judged_on():
    task = tasks.load(task_of("sums_digit"))
    dev = Counter(answer for _, answer in task.splits["dev"])
    test = Counter(item.answer for item in task.items)
    assert set(dev.values()) == {30}
    assert set(test.values()) == {100}
    train = Counter(answer for _, answer in task.splits["train"])
    assert max(train.values()) < 0.13 * 3200


def test_two_orders_of_each_set_of_terms_make_fewer_problems_of_more_sets():
    changes = {"train_rows": 1920, "dev_rows": 100, "test_rows": 400}
    every = tasks.load(task_of("sums_digit") | changes)
    two = tasks.load(task_of("sums_digit") | changes | {"orders": 2})
    prompts = {
        "train": [prompt for prompt, _ in two.splits["train"]],
        "dev": [prompt for prompt, _ in two.splits["dev"]],
        "test": [item.prompt for item in two.items],
    }
    assert {part: len(rows) for part, rows in prompts.items()} == {
        "train": 1920,
        "dev": 100,
        "test": 400,
    }
    sets = {part: Counter(map(terms_of, rows)) for part, rows in prompts.items()}
    assert max(sets["test"].values()) == max(sets["dev"].values()) == 2
    assert max(sets["train"].values()) > 2
    assert len(sets["test"]) >= 200
    assert len({terms_of(item.prompt) for item in every.items}) < 50
    for one, other in itertools.combinations(sets.values(), 2):
        assert not {*one} & {*other}
    assert {*Counter(item.answer for item in two.items).values()} == {40}
    assert {*Counter(answer for _, answer in two.splits["dev"]).values()} == {10}
    repeated = tasks.load(task_of("sums_digit") | changes | {"orders": 2})
    assert [item.prompt for item in repeated.items] == prompts["test"]


def test_more_problems_of_one_digit_than_there_are_are_refused():
    with pytest.raises(
        DataError, match=r"task\.train_rows=3900: only 3,8\d\d problems"
    ):
        tasks.load(task_of("sums_digit") | {"train_rows": 3900})


def test_orders_of_the_same_terms_are_one_problem_however_they_are_written():
    assert sums.terms_of("4+3-5+2= ") == sums.terms_of("2 + 3 + 4 - 5 =")
    assert sums.terms_of("4+3-5+2= ") != sums.terms_of("4+3+5-2= ")


def test_rows_are_asked_like_the_test_and_answered_like_their_solutions(
    load, tokenizer
):
    """MetaMathQA's solutions end like the texts, GSM8K's with its own marker."""
    for name in ("peft", "metamath"):
        task = load(reader=name)
        task.prepare(tokenizer, 256)
        for split in ("train", "dev"):
            exercises = task.exercises(split)
            assert len(exercises) == len(task.lengths(split))
            for exercise, (prompt, response) in zip(
                exercises, task.splits[split], strict=True
            ):
                assert exercise.prompt == prompt
                assert exercise.answer is not None
                if name == "peft" or "The answer is" in response:
                    assert task.is_right(exercise, response)
