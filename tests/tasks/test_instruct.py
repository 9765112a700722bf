"""Instructions: what a model reads, what it is trained on, and what of a file or template is refused."""

import hashlib
import json

import numpy as np
import pytest
import torch
from tiny import INSTRUCTIONS, write_alpaca
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks
from runs.config import expand
from tasks import DataError
from tasks.instruct import OWN_TEMPLATE, read_rows, read_template

pytestmark = pytest.mark.parity


def load(*words):
    (run,) = expand(["model=decoder", "model.path=/x", "task=alpaca", *words])
    return tasks.load(run.config["task"])


@pytest.fixture
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def task(alpaca, tokenizer):
    task = load(f"task.data_dir={alpaca}", "task.dev_rows=2")
    task.prepare(tokenizer, 96, 256)
    return task


def text(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_row_is_the_beginning_the_prompt_the_response_and_the_end(task, tokenizer):
    template = read_template(OWN_TEMPLATE)
    for (ids, last), row in zip(task._rows["train"], task.splits["train"], strict=True):
        assert text(tokenizer, ids[: last + 1]) == f"<s>{template.prompt(row.instruction, row.input)}"
        assert text(tokenizer, ids[last + 1 :]) == f"{row.output}</s>"
    batch = task.collate("train", [0, 1])
    for row, (ids, last) in enumerate(task._rows["train"][:2]):
        wanted = batch["targets"][row]
        assert wanted[wanted != -100].tolist() == ids[last + 1 :]
        assert np.flatnonzero(wanted != -100).tolist() == list(range(last, len(ids) - 1))
    assert task.weight("train", [0, 1]) == (batch["targets"] != -100).sum()


def test_the_loss_is_transformers_own_with_the_prompt_masked(task, tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64)
    batch = {key: torch.from_numpy(value) for key, value in task.collate("train", [0, 1, 2]).items()}
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, 1:] = batch["targets"][:, :-1]
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    assert task.loss(model, batch).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_two_forms_and_the_braces_of_a_row():
    template = read_template(OWN_TEMPLATE)
    plain, with_input = template.prompt("Do {this}."), template.prompt("Do {this}.", "to {that}")
    assert plain.endswith("### Instruction:\nDo {this}.\n\n### Response:\n")
    assert with_input.endswith("### Instruction:\nDo {this}.\n\n### Input:\nto {that}\n\n### Response:\n")
    assert "### Input" not in plain
    assert template.prompt("Do it.", "  \n") == template.prompt("Do it.")


def test_what_is_asked_is_what_was_trained(task, tokenizer):
    """The tokens before an answer are those before the response of a training row; a second turn follows the
    end token."""
    row = next(row for row in task.splits["train"] if not row.input)
    ids, last = task._rows["train"][task.splits["train"].index(row)]
    assert task.conversation([row.instruction], []) == ids[: last + 1]
    second = task.conversation([row.instruction, "And why?"], [row.output])
    assert second[: len(ids)] == ids
    assert (
        text(tokenizer, second[len(ids) :])
        == task.template.turn("And why?")
        == "\n\n### Instruction:\nAnd why?\n\n### Response:\n"
    )


def test_a_token_across_prompt_and_response_is_not_trained_as_one(alpaca, tokenizer, tmp_path):
    """A template that ends in a space, which GPT-2's BPE takes into the response's first word."""
    words = {"prompt_input": "{instruction} {input} = ", "prompt_no_input": "{instruction} = "}
    (tmp_path / "t.json").write_text(json.dumps(words))
    task = load(f"task.data_dir={alpaca}", "task.dev_rows=2", f"task.template={tmp_path / 't.json'}")
    task.prepare(tokenizer, 96, 256)
    for (ids, last), row in zip(task._rows["train"], task.splits["train"], strict=True):
        assert ids[: last + 1] == tokenizer(task.template.prompt(row.instruction, row.input))["input_ids"]
        assert text(tokenizer, ids[last + 1 :]) == f"{row.output}</s>"
    assert "prompts by the template t.json, not Alpaca's" in task.notes
    assert (task.template.next_turn, task.template.stop) == ("\n\n{instruction} = ", None)


@pytest.mark.parametrize("end", ["", "\n", " "])  # as in Stanford's file, alpaca-lora's and QLoRA's
def test_alpacas_own_prompts_are_no_deviation(end, alpaca, tmp_path, monkeypatch):
    """By stand-ins: their words are not in this repository."""
    prompts = {"prompt_input": "do {instruction} to {input}:", "prompt_no_input": "do {instruction}:"}
    digests = {key: hashlib.sha256(text.encode()).hexdigest() for key, text in prompts.items()}
    (tmp_path / "t.json").write_text(json.dumps({key: text + end for key, text in prompts.items()}))
    words = [f"task.data_dir={alpaca}", "task.dev_rows=2", f"task.template={tmp_path / 't.json'}"]
    assert "prompts by the template t.json, not Alpaca's" in load(*words).notes
    monkeypatch.setattr("tasks.instruct.ALPACA", digests)
    assert not any("prompts" in note for note in load(*words).notes)
    assert "prompts in this project's own words, not Alpaca's" in load(*words[:2]).notes
    for key in prompts:  # one of the two is not enough
        monkeypatch.setattr("tasks.instruct.ALPACA", digests | {key: "0" * 64})
        assert "prompts by the template t.json, not Alpaca's" in load(*words).notes


def test_upstreams_templates_are_taken_as_they_are(tmp_path):
    """alpaca-lora's keys alone: the next turn and the end of a run-on answer follow from them."""
    forms = {
        "prompt_input": "Task.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    }
    forms["prompt_no_input"] = "Task.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    (tmp_path / "t.json").write_text(
        json.dumps({**forms, "description": "x", "response_split": "### Response:"})
    )
    template = read_template(tmp_path / "t.json")
    assert template.turn("Go on.") == "\n\n### Instruction:\nGo on.\n\n### Response:\n"
    assert template.stop == "### Instruction"


def test_dev_rows_are_held_out_and_the_same_for_every_run(alpaca):
    one, two = (load(f"task.data_dir={alpaca}", "task.dev_rows=3", f"seed={seed}") for seed in (0, 1))
    assert one.splits == two.splits
    assert (len(one.splits["train"]), len(one.splits["dev"])) == (7, 3)
    assert not set(one.splits["train"]) & set(one.splits["dev"])
    fewer = load(f"task.data_dir={alpaca}", "task.dev_rows=3", "task.train_rows=4")
    assert fewer.splits["dev"] == one.splits["dev"]
    assert set(fewer.splits["train"]) < set(one.splits["train"])
    assert f"alpaca: {len(INSTRUCTIONS)} rows; Alpaca-cleaned has 51760" in fewer.notes


def test_tuning_holds_out_training_rows(alpaca):
    task = load(f"task.data_dir={alpaca}", "task.dev_rows=2", "task.holdout=0.25")
    published = load(f"task.data_dir={alpaca}", "task.dev_rows=2").splits
    assert (len(task.splits["train"]), len(task.splits["dev"])) == (6, 2)
    assert not set(published["dev"]) & {*task.splits["train"], *task.splits["dev"]}


def test_a_prompt_that_fills_the_length_is_left_out_and_said(alpaca, tokenizer):
    task = load(f"task.data_dir={alpaca}", "task.dev_rows=2")
    lengths = [
        len(tokenizer(task.template.prompt(r.instruction, r.input))["input_ids"])
        for r in task.splits["train"]
    ]
    limit = sorted(lengths)[-1]
    task.prepare(tokenizer, limit, 256)
    assert 0 < len(task._rows["train"]) < 8
    assert any("left out, whose prompt fills" in note for note in task.notes)
    assert all(last + 1 < len(ids) <= limit for ids, last in task._rows["train"])
    with pytest.raises(DataError, match="max_length=5"):
        task.prepare(tokenizer, 5, 256)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        *(("[{", "rows.json"), ('{"a": 1}', "rows.json"), ('["x"]', "0: ")),
        ('[{"instruction": "x", "output": 3}]', "0.output"),
        ('[{"instruction": "x", "output": "y"}, {"instruction": "x", "output": " "}]', "1.output"),
        ('[{"instruction": "x", "output": "y"}]', "task.dev_rows=2"),
    ],
)
def test_bad_rows_are_one_line(content, named, tmp_path):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(DataError, match=named) as error:
        load(f"task.data_dir={tmp_path}", "task.dev_rows=2")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 300


def test_bad_folders_and_settings_are_one_line(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load(f"task.data_dir={tmp_path / 'gone'}")
    with pytest.raises(DataError, match="no JSON file with rows"):
        load(f"task.data_dir={tmp_path}")
    write_alpaca(tmp_path)
    (tmp_path / "more.json").write_text("[]")
    with pytest.raises(DataError, match=r"one is expected: alpaca_own.json, more.json"):
        load(f"task.data_dir={tmp_path}")
    assert load(f"task.data_dir={tmp_path / 'alpaca_own.json'}", "task.dev_rows=2").splits["train"]
    with pytest.raises(DataError, match=r"task\.dev_rows=1: should be at least 2"):
        load(f"task.data_dir={tmp_path}", "task.dev_rows=1")


def test_rows_a_line_each(tmp_path):
    lines = [json.dumps({"instruction": a, "input": b, "output": c}) for a, b, c in INSTRUCTIONS]
    lines.append(
        json.dumps({"instruction": "Break\u2028here.", "output": "As\x85it is."}, ensure_ascii=False)
    )
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    *rows, last = read_rows(tmp_path / "rows.jsonl")
    assert [(r.instruction, r.input, r.output) for r in rows] == INSTRUCTIONS
    assert (last.instruction, last.output) == ("Break\u2028here.", "As\x85it is.")
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, "{"]), encoding="utf-8")
    with pytest.raises(DataError, match=f"rows.jsonl line {len(lines) + 1}: "):
        read_rows(tmp_path / "rows.jsonl")


GOOD = {"prompt_input": "{instruction}{input}", "prompt_no_input": "{instruction}"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *(({"prompt_input": v}, "prompt_input") for v in (None, "{instruction}", "{instruction!r}{input}")),
        *(({"prompt_no_input": v}, "prompt_no_input") for v in ("{question}", "{instruction:d}", "{")),
        *(({"stop": 5}, "stop"), ({"stop": ""}, "stop"), ("{", "JSON")),
    ],
)
def test_bad_templates_are_one_line(change, named, alpaca, tmp_path):
    template = change if isinstance(change, str) else json.dumps(GOOD | change)
    (tmp_path / "t.json").write_text(template)
    with pytest.raises(DataError, match=f"t.json.*{named}|{named}") as error:
        load(f"task.data_dir={alpaca}", f"task.template={tmp_path / 't.json'}")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="No such file"):
        load(f"task.data_dir={alpaca}", f"task.template={tmp_path / 'gone.json'}")
