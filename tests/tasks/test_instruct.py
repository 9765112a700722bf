"""Instructions: what a model reads, what it is trained on, and what of a file or
template is refused."""

import hashlib
import json

import pytest
from running import refused, task_of
from tiny import INSTRUCTIONS

import tasks
from tasks.instruct import OWN_TEMPLATE, read_template

pytestmark = pytest.mark.parity


def load(data_dir, dev_rows=2, **changes):
    return tasks.load(
        task_of("alpaca") | {"data_dir": str(data_dir), "dev_rows": dev_rows} | changes
    )


@pytest.fixture
def task(alpaca, tokenizer):
    task = load(alpaca)
    task.prepare(tokenizer, 96, 256)
    return task


def text(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_row_is_the_beginning_the_prompt_the_response_and_the_end(task, tokenizer):
    template = read_template(OWN_TEMPLATE)
    known = {
        (template.prompt(instruction, given), output)
        for instruction, given, output in INSTRUCTIONS
    }
    assert {*task.splits["train"], *task.splits["dev"]} == known
    # an input of blanks is none
    assert template.prompt("Do it.", "  \n") == template.prompt("Do it.")
    for (ids, last), (prompt, response) in zip(
        task._rows["train"], task.splits["train"], strict=True
    ):
        assert text(tokenizer, ids[: last + 1]) == f"<s>{prompt}"
        assert text(tokenizer, ids[last + 1 :]) == f"{response}</s>"


def test_what_is_asked_is_what_was_trained(task, tokenizer):
    """The tokens before an answer are those before the response of a training row; a
    second turn follows the end token."""
    form = task.template.prompt
    plain = {
        asked: (form(asked), output)
        for asked, given, output in INSTRUCTIONS
        if not given
    }
    asked, pair = next(one for one in plain.items() if one[1] in task.splits["train"])
    ids, last = task._rows["train"][task.splits["train"].index(pair)]
    assert task.conversation([asked], []) == ids[: last + 1]
    second = task.conversation([asked, "And why?"], [pair[1]])
    assert second[: len(ids)] == ids
    assert (
        text(tokenizer, second[len(ids) :])
        == task.template.turn("And why?")
        == "\n\n### Instruction:\nAnd why?\n\n### Response:\n"
    )


def test_a_token_across_prompt_and_response_is_not_trained_as_one(
    alpaca, tokenizer, tmp_path
):
    """A template that ends in a space, which GPT-2's BPE takes into the response's
    first word."""
    words = {
        "prompt_input": "{instruction} {input} = ",
        "prompt_no_input": "{instruction} = ",
    }
    (tmp_path / "t.json").write_text(json.dumps(words))
    task = load(alpaca, template=str(tmp_path / "t.json"))
    task.prepare(tokenizer, 96, 256)
    for (ids, last), (prompt, response) in zip(
        task._rows["train"], task.splits["train"], strict=True
    ):
        assert ids[: last + 1] == tokenizer(prompt)["input_ids"]
        assert text(tokenizer, ids[last + 1 :]) == f"{response}</s>"
    assert (task.template.next_turn, task.template.stop) == (
        "\n\n{instruction} = ",
        None,
    )


# as in Stanford's file, alpaca-lora's and QLoRA's
@pytest.mark.parametrize("end", ["", "\n", " "])
def test_alpacas_own_prompts_are_no_deviation(end, alpaca, tmp_path, monkeypatch):
    """By stand-ins: their words are not in this repository."""
    prompts = {
        "prompt_input": "do {instruction} to {input}:",
        "prompt_no_input": "do {instruction}:",
    }
    digests = {
        key: hashlib.sha256(text.encode()).hexdigest() for key, text in prompts.items()
    }
    (tmp_path / "t.json").write_text(
        json.dumps({key: text + end for key, text in prompts.items()})
    )

    def notes(**known):
        monkeypatch.setattr("tasks.instruct.ALPACA", digests | known)
        return " ".join(load(alpaca, template=str(tmp_path / "t.json")).notes)

    assert "prompts" not in notes()
    for key in prompts:  # one of the two is not enough
        assert "prompts by the template t.json" in notes(**{key: "0" * 64})
    assert "prompts in this project's own words" in " ".join(load(alpaca).notes)


def test_upstreams_templates_are_taken_as_they_are(tmp_path):
    """alpaca-lora's keys alone: the next turn and the end of a run-on answer follow
    from them."""
    begin, end = "Task.\n\n### Instruction:\n{instruction}\n\n", "### Response:\n"
    forms = {
        "prompt_input": f"{begin}### Input:\n{{input}}\n\n{end}",
        "prompt_no_input": f"{begin}{end}",
    }
    others = {"description": "x", "response_split": "### Response:"}
    (tmp_path / "t.json").write_text(json.dumps(forms | others))
    template = read_template(tmp_path / "t.json")
    assert template.turn("Go on.") == "\n\n### Instruction:\nGo on.\n\n### Response:\n"
    assert template.stop == "### Instruction"


def test_dev_rows_are_held_out_and_the_same_for_every_run(alpaca):
    one, two = (load(alpaca, 3) for _ in range(2))
    assert one.splits == two.splits
    assert (len(one.splits["train"]), len(one.splits["dev"])) == (7, 3)
    assert not set(one.splits["train"]) & set(one.splits["dev"])
    fewer = load(alpaca, 3, train_rows=4)
    assert fewer.splits["dev"] == one.splits["dev"]
    assert set(fewer.splits["train"]) < set(one.splits["train"])
    assert f"alpaca: {len(INSTRUCTIONS)} rows; Alpaca-cleaned has 51760" in fewer.notes
    # A trial's are of the rows that are trained on
    published, trial = load(alpaca).splits, load(alpaca, holdout=0.25).splits
    assert (len(trial["train"]), len(trial["dev"])) == (6, 2)
    assert not set(published["dev"]) & {*trial["train"], *trial["dev"]}


def test_a_prompt_that_fills_the_length_is_left_out_and_said(alpaca, tokenizer):
    task = load(alpaca)
    limit = max(
        len(tokenizer(prompt)["input_ids"]) for prompt, _ in task.splits["train"]
    )
    task.prepare(tokenizer, limit, 256)
    assert 0 < len(task._rows["train"]) < 8
    assert any("left out" in note for note in task.notes)
    assert all(last + 1 < len(ids) <= limit for ids, last in task._rows["train"])
    with refused("max_length=5"):
        task.prepare(tokenizer, 5, 256)
