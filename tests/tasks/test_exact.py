"""Texts that are read for an exact answer: rows, decoding in batches, scores and files."""

import functools
import json

import pytest
from running import comparable, do, elsewhere, killed_at, trained
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks
from runs.config import expand
from tasks.exact import ExactTask, Item, compare

pytestmark = pytest.mark.properties

ITEMS = [Item("a", "one", "x"), Item("a", "one two three four", "y"), Item("b", "a longer prompt, one", "x")]
ROWS = {"train": [("Answer:", "To be"), ("12 + 5 =", " 17")], "dev": [("3 - 1 =", " 2"), ("1 + 1 =", " 2")]}


@functools.cache
def of_conf():
    (run,) = expand(["model=decoder", "model.path=/x", "task=sums"])
    return run.config["task"] | {"forgetting_text": "none"}


def make(tokenizer=None, headline=None, of=ITEMS, **changes):
    """A task whose reader takes a text's first letter."""
    read = lambda item, text: compare(item, text[:1] or None)  # noqa: E731
    task = ExactTask(of_conf() | changes, ROWS, of, read, headline)
    if tokenizer:
        task.prepare(tokenizer, 64, 256)
    return task


@pytest.fixture
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.mark.parametrize("on_inputs", [False, True])
def test_a_row_is_one_text_and_its_end(on_inputs, tokenizer):
    task = make(tokenizer, train_on_inputs=on_inputs)
    for (ids, last), (prompt, response) in zip(task._rows["train"], ROWS["train"], strict=True):
        assert ids == [*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]
        assert last == (0 if on_inputs else len(tokenizer(prompt)["input_ids"]) - 1)


def test_the_text_depends_on_no_neighbour_and_no_padding(tokenizer, tiny_llama):
    """One by one, together (the shorter prompts padded), and in another order; the model has no pad token."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    assert tokenizer.pad_token is None
    for beams in (1, 3):
        task = make(tokenizer, beams=beams, max_new_tokens=12)
        alone = [task.decode(model, [i])[0] for i in range(3)]
        assert task.decode(model, [0, 1, 2]) == alone == task.decode(model, [2, 1, 0])[::-1]
        assert len({text for texts in alone for text in texts.values()}) > 1
        assert sorted(range(3), key=task.prompt_length) == [0, 1, 2]


def test_a_text_ends_at_its_end_token_or_the_first_stop(tokenizer):
    task = make(tokenizer, stops=["Question", "###"])
    ids = tokenizer("the answer ### 5 Question", add_special_tokens=False)["input_ids"]
    assert task._text(ids) == "the answer "
    assert task._text([*ids[:2], tokenizer.eos_token_id, *ids]) == tokenizer.decode(ids[:2])


def test_scores_files_and_a_fixed_subset_of_each_part(tmp_path):
    texts = ["x", "", "z"]
    assert make().scores(texts) == {"exact_match": 25.0, "parts": {"a": 50.0, "b": 0.0}, "unread": 100 / 3}
    assert make(headline="a").scores(texts)["exact_match"] == 50
    make().write(tmp_path, {"last_greedy": texts})
    lines = [json.loads(line) for line in (tmp_path / "last_greedy.jsonl").read_text().splitlines()]
    wrong = {
        "part": "b",
        "prompt": ITEMS[2].prompt,
        "text": "z",
        "expected": "x",
        "read": "z",
        "right": False,
    }
    assert lines[2] == wrong | {"reason": lines[2]["reason"]}
    assert [(line["right"], bool(line["reason"])) for line in lines] == [(True, False), *[(False, True)] * 2]
    few = make(of=ITEMS * 4, items=3)
    assert [item.part for item in few.items] == ["a"] * 3 + ["b"] * 3
    assert len(few.notes) == 2


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        *(({key: 0}, f"task.{key}") for key in ("beams", "max_new_tokens", "stops", "train_on_inputs")),
        ({"decode": "dev"}, "task.decode"),
        ({"test_rows": 0}, "test_rows"),
        ({"train_rows": 3078}, "task.train_rows"),  # there are no more problems
        ({"max_new_tokens": 250}, "task.max_new_tokens"),  # beyond the model's positions, with the prompt
        ({"holdout": 0.5}, "task.decode"),
    ],
)
def test_what_is_refused(changes, key, tokenizer):
    rows = {"train_rows": 4, "dev_rows": 2, "test_rows": 2}
    with pytest.raises(tasks.DataError, match=key) as error:
        tasks.load(of_conf() | rows | changes).prepare(tokenizer, 64, 256)
    assert "\n" not in str(error.value)


def test_a_run_decodes_its_items_and_goes_on_after_a_kill(tiny_llama, tmp_path):
    words = [
        *("model=decoder", f"model.path={tiny_llama}", "task=sums", "task.train_rows=12", "task.dev_rows=4"),
        *("task.test_rows=6", "train.epochs=2", "train.effective_batch=4", "train.lr=1e-2", "method.rank=8"),
        *("device=cpu", "eval_batch=2", f"output={tmp_path / 'outputs'}"),
    ]
    straight = trained(words)
    scores, items = straight["texts"]["scores"][0], straight["texts"]["items"]
    assert (scores["parts"], items, scores["variant"]) == ({"sums": scores["exact_match"]}, 6, "greedy")
    killed = elsewhere(words, output=tmp_path / "killed")
    folder = killed_at(killed, "task.decode", 2)
    assert (folder / "decoded_last.jsonl").read_text().count("\n") == 1 + 2
    assert comparable(do(killed)) == comparable(straight)
