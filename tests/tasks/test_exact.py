"""Texts that are read for an exact answer: rows, decoding in batches, scores and
files."""

import json

import pytest
from running import task_of
from transformers import AutoModelForCausalLM

from tasks.base import DataError
from tasks.exact import FILLER_CHOICES, FILLER_TOKENS, ExactTask

pytestmark = pytest.mark.properties

LONG = "a longer prompt, one"
TESTS = {"a": [("one", "x"), ("one two three four", "y")], "b": [(LONG, "x")]}
ROWS = {
    "train": [("Answer:", "To be"), ("12 + 5 =", " 17")],
    "dev": [("3 - 1 =", " 2"), ("1 + 1 =", " 2")],
}


def make(tokenizer=None, headline=None, of=TESTS, **changes):
    """A task whose reader takes a text's first letter."""
    settings = task_of("sums") | {"forgetting_text": "none"} | changes
    task = ExactTask(
        settings, ROWS, of, lambda part, prompt, text: text[:1] or None, headline
    )
    if tokenizer:
        task.prepare(tokenizer, 64, 256)
    return task


def test_rows_are_sorted_by_length_only_where_the_settings_say_so():
    assert make(length_grouped=True).block == ExactTask.block > 1
    assert make(length_grouped=False).block == 1


@pytest.mark.parametrize("on_inputs", [False, True])
def test_a_row_is_one_text_and_its_end(on_inputs, tokenizer):
    task = make(tokenizer, train_on_inputs=on_inputs)
    for (ids, last), (prompt, response) in zip(
        task._rows["train"], ROWS["train"], strict=True
    ):
        assert ids == [
            *tokenizer(prompt + response)["input_ids"],
            tokenizer.eos_token_id,
        ]
        assert last == (0 if on_inputs else len(tokenizer(prompt)["input_ids"]) - 1)


def test_a_demonstration_has_random_tokens_between_answer_and_end(tokenizer):
    plain, shown = make(tokenizer), make(tokenizer)
    shown.add_filler_tokens(seed=3)
    fillers = []
    for before, after in zip(plain._rows["train"], shown._rows["train"], strict=True):
        *text, end = before.ids
        assert after.last_given == before.last_given
        assert after.ids[: len(text)] == text
        assert after.ids[-1] == end
        fillers.append(after.ids[len(text) : -1])
        assert after.trained_tokens == before.trained_tokens + FILLER_TOKENS
    assert fillers[0] != fillers[1]
    tokens = {token for filler in fillers for token in filler}
    assert not tokens & {*tokenizer.all_special_ids}
    assert shown._rows["dev"] == plain._rows["dev"]
    for seed, is_same in ((3, True), (4, False)):
        repeated = make(tokenizer)
        repeated.add_filler_tokens(seed)
        assert (repeated._rows == shown._rows) is is_same


def test_random_tokens_of_demonstrations_are_among_sixteen(tokenizer, monkeypatch):
    monkeypatch.setattr("tasks.exact.FILLER_TOKENS", 300)
    task = make(tokenizer)
    plain_length = len(task._rows["train"][0].ids)
    task.add_filler_tokens(seed=3)
    row = task._rows["train"][0]
    assert len(row.ids) == plain_length + 300
    assert len({*row.ids[plain_length - 1 : -1]}) == FILLER_CHOICES


def test_a_demonstration_without_an_end_is_refused(tokenizer):
    task = make()
    task.prepare(tokenizer, 6, 256)
    with pytest.raises(DataError, match="max_length"):
        task.add_filler_tokens(seed=0)


def test_the_text_depends_on_no_neighbour_and_no_padding(tokenizer, tiny_llama):
    """One by one, together (the shorter prompts padded), and in another order; the
    model has no pad token."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    assert tokenizer.pad_token is None
    for beams in (1, 3):
        task = make(tokenizer, beams=beams, max_new_tokens=12)
        alone = [task.decode(model, [i])[0] for i in range(3)]
        assert (
            task.decode(model, [0, 1, 2])
            == alone
            == task.decode(model, [2, 1, 0])[::-1]
        )
        assert len({text for texts in alone for text in texts.values()}) > 1


def test_a_text_ends_at_its_end_token_or_the_first_stop(tokenizer):
    task = make(tokenizer, stops=["Question", "###"])
    ids = tokenizer("the answer ### 5 Question", add_special_tokens=False)["input_ids"]
    assert task.text(ids) == "the answer "
    assert task.text([*ids[:2], tokenizer.eos_token_id, *ids]) == tokenizer.decode(
        ids[:2]
    )


def test_scores_files_and_a_fixed_subset_of_each_part(tmp_path):
    texts = ["x", "", "z"]
    assert make().scores(texts) == {
        "exact_match": 25.0,
        "parts": {"a": 50.0, "b": 0.0},
        "unread": 100 / 3,
    }
    assert make(headline="a").scores(texts)["exact_match"] == 50
    make().write(tmp_path, {"last_greedy": texts})
    lines = [
        json.loads(line)
        for line in (tmp_path / "last_greedy.jsonl").read_text().splitlines()
    ]
    wrong = {
        "part": "b",
        "prompt": LONG,
        "text": "z",
        "expected": "x",
        "read": "z",
        "right": False,
    }
    assert lines[2] == wrong | {"reason": lines[2]["reason"]}
    assert [(line["right"], bool(line["reason"])) for line in lines] == [
        (True, False),
        *[(False, True)] * 2,
    ]
    few = make(of={part: rows * 4 for part, rows in TESTS.items()}, items=3)
    assert [part for _, _, part in few.items] == ["a"] * 3 + ["b"] * 3
    assert len(few.notes) == 2
