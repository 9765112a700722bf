"""What a finished run answers: a regression in the units of its labels, wherever its files go."""

import random

import numpy as np
import peft
import pytest
import torch
from running import call_here, output_of, refused, trained
from tiny import BAD, GOOD, NOUNS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import vera
from runs.config import expand
from runs.evaluate import restore
from runs.record import run_folder
from runs.sweep.sweep import preflight

pytestmark = pytest.mark.properties


def prices(count=40):
    """Texts, and numbers far from 0 that follow from their words."""
    draw = random.Random(0)
    for _ in range(count):
        good, word = draw.random() < 0.5, draw.choice
        text = f"the {word(NOUNS)} is {word(GOOD if good else BAD)} and the {word(NOUNS)} is not ."
        yield text, (200_000 if good else 120_000) + draw.randint(-20_000, 20_000) + 0.5


@pytest.fixture
def price_words(tiny_bert, tmp_path):
    """A regression on prices."""
    file = tmp_path / "prices.tsv"
    file.write_text("text\tlabel\n" + "".join(f"{text}\t{price}\n" for text, price in prices()))
    return [
        *("model=encoder", f"model.path={tiny_bert}", "task=text", "task.name=prices"),
        *(f"task.train_file={file}", "train.epochs=2", "train.effective_batch=8", "train.lr=1"),
        *("train.lr_head=1e-2", "method.rank=8", "device=cpu", f"output={tmp_path / 'outputs'}"),
    ]


# --- labels that are far from 0 (task.scale_labels)


def test_scaled_labels_are_learnt_and_plain_ones_are_warned_of(price_words, capsys):
    errors = {}
    for scaled in (False, True):
        words = [*price_words, f"task.scale_labels={str(scaled).lower()}"]
        preflight(expand(words))
        notes = capsys.readouterr().out
        record = trained(words)
        assert ("task.scale_labels=true" in notes, "labels" in record["data"]) == (not scaled, scaled)
        context = restore(record, output_of(words))
        errors[scaled] = np.sqrt(np.mean((context.evaluate()[1] - context.task.labels("dev")) ** 2))
        assert call_here("runs.evaluate", record["id"], f"output={output_of(words)}", check=0)
    labels = [price for i, (_, price) in enumerate(prices()) if i % 10]
    assert record["data"]["labels"] == {"mean": np.mean(labels), "spread": np.std(labels)}
    assert errors[False] > 100_000  # as far off as 0
    assert errors[True] < 45_000  # nearer than their mean, or as near
    assert record["curve"]["dev_loss"][-1] < 2


def test_every_file_of_a_scaled_regression_answers_in_the_labels_units(price_words, tiny_bert, tmp_path):
    words = [*price_words, "task.scale_labels=true"]
    record, output = trained(words), output_of(words)
    context, files = restore(record, output), run_folder(output, record["id"])
    expected = torch.from_numpy(context.evaluate()[1])
    assert expected.std() > 10  # rounding is a hundredth

    def base():
        return AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=1)

    def answers(model):
        rows = context.task.splits["dev"].texts
        batch = AutoTokenizer.from_pretrained(tiny_bert)(rows, padding=True, return_tensors="pt")
        with torch.no_grad():
            return model.eval()(**batch).logits[:, 0]

    for form in ("peft", "merged", "lora"):
        rank = ["rank=8"] * (form == "lora")
        call_here("runs.export", record["id"], form, str(tmp_path / form), *rank, f"output={output}", check=0)
    plain, many = base(), vera.Adapters(base())
    vera.load(plain, files / "adapter.safetensors")
    vera.load_head(plain, files / "head.safetensors")
    many.add("prices", files / "adapter.safetensors", files / "head.safetensors")
    with many.use(["prices"] * len(expected)):
        served = answers(many.model)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    theirs = [peft.PeftModel.from_pretrained(base(), tmp_path / form) for form in ("peft", "lora")]
    for found in (answers(plain), served, *map(answers, [merged, *theirs])):
        assert torch.allclose(found, expected, rtol=1e-6)


def test_scale_labels_is_for_numbers(price_words):
    for more in (["task.scale_labels=yes!"], ["task.regression=false", "task.scale_labels=true"]):
        with refused("task.scale_labels="):
            preflight(expand([*price_words, *more]))
