"""Commonsense: prompts, dev rows and reading as LLM-Adapters' scripts have them, and
what is refused."""

import json

import datasets
import pytest
from running import task_of
from tiny import write_commonsense

import tasks
from tasks.commonsense import lay_out, read_choice
from tasks.instruct import Template

pytestmark = pytest.mark.parity


def load(folder, **changes):
    return tasks.load(
        task_of("commonsense") | {"data_dir": str(folder), "dev_rows": 4} | changes
    )


# --- beside the scripts

S = " " * 16
#: What DoRA's finetune.py (commit bd3ed6f) and commonsense_evaluate.py make, with other
#: words than Alpaca's.
PROMPTS = {
    True: (
        f"Do it.  \n\n{S}### Instruction:\n{S}Go\n on.\n{S}\n{S}### Response:\n{S}",
        f"With. \n\n{S}### Instruction:\n{S}Go\n on.\n{S}\n{S}### Input:\n{S}x\n{S}\n{S}### Response:\n{S}",
    ),
    False: (
        f"Do it. \n\n{S}### Instruction:\n{S}Go\n on.\n\n{S}### Response:\n{S}",
        f"With.\n\n{S}### Instruction:\n{S}Go\n on.\n\n{S}### Input:\n{S}x\n\n{S}### Response:\n{S}",
    ),
}


# as in Stanford's templates, and in alpaca-lora's
@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("training", [True, False])
def test_prompts_have_the_white_space_of_the_scripts(training, end):
    asked = "\n\n### Instruction:\n{instruction}\n\n"
    full = f"With.{asked}### Input:\n{{input}}\n\n### Response:{end}"
    words = {
        "prompt_input": full,
        "prompt_no_input": f"Do it.{asked}### Response:{end}",
    }
    template = lay_out(Template.model_validate(words), training)
    assert (template.prompt("Go\n on."), template.prompt("Go\n on.", "x")) == PROMPTS[
        training
    ]


def test_dev_rows_are_those_that_the_scripts_hold_out(tmp_path):
    """Drawn by Hugging Face's datasets."""
    rows = json.loads(
        (
            write_commonsense(tmp_path) / "ft-training_set" / "commonsense_170k.json"
        ).read_text()
    )
    theirs = datasets.Dataset.from_list(rows).train_test_split(
        test_size=4, shuffle=True, seed=42
    )
    found = load(tmp_path).splits
    for split, name in (("train", "train"), ("dev", "test")):
        wanted = {
            (row["instruction"].split("\n")[0], row["output"]) for row in theirs[name]
        }
        pairs = [
            (prompt.split("\n")[3].strip(), response)
            for prompt, response in found[split]
        ]
        assert len(pairs) == theirs[name].num_rows
        assert {*pairs} == wanted


@pytest.mark.parametrize(
    ("part", "text", "answer"),
    [
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "It is untrue, false", "true"),  # a word within another counts
        ("boolq", "True", None),
        ("piqa", "solution2 or solution1", "solution2"),
        ("siqa", "the correct answer is answer5</s> answer1", "answer5"),
        ("arc_easy", "answer10", "answer1"),
        ("hellaswag", "ending5", None),
        # the last response
        ("winogrande", "option1\n\n### Response:\n option2", "option2"),
        ("openbookqa", "", None),
    ],
)
def test_the_first_of_the_sets_words_is_the_answer(part, text, answer):
    assert read_choice(part, "", text) == answer
