"""What a finished run answers: new rows, by python -m runs.predict; and a regression in
the units of its labels, wherever its files go."""

import csv
import io
import json
import random
import shutil
import sys
from types import SimpleNamespace

import ledgers
import numpy as np
import peft
import pytest
import torch
from running import call_here, output_of, refused, trained
from tiny import BAD, GOOD, NOUNS, VERBS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import vera
from runs.config import expand
from runs.evaluate import restore
from runs.predict import first_rows
from runs.record.ledger import run_folder, write_record
from runs.sweep.sweep import preflight
from tasks.text import TextTask

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
    file.write_text(
        "text\tlabel\n" + "".join(f"{text}\t{price}\n" for text, price in prices())
    )
    return [
        *("model=encoder", f"model.path={tiny_bert}", "task=text", "task.name=prices"),
        *(
            f"task.train_file={file}",
            "train.epochs=2",
            "train.effective_batch=8",
            "train.lr=1",
        ),
        *(
            "train.lr_head=1e-2",
            "method.rank=8",
            "device=cpu",
            f"output={tmp_path / 'outputs'}",
        ),
    ]


# --- labels that are far from 0 (task.scale_labels)


def test_scaled_labels_are_learnt_and_plain_ones_are_warned_of(price_words, capsys):
    errors = {}
    for scaled in (False, True):
        words = [*price_words, f"task.scale_labels={str(scaled).lower()}"]
        preflight(expand(words))
        notes = capsys.readouterr().out
        record = trained(words)
        assert ("task.scale_labels=true" in notes, "labels" in record["data"]) == (
            not scaled,
            scaled,
        )
        context = restore(record, output_of(words))
        found = context.task.predict(context.evaluate()[1])
        errors[scaled] = np.sqrt(np.mean((found - context.task.labels("dev")) ** 2))
        assert call_here(
            "runs.evaluate", record["id"], f"output={output_of(words)}", check=0
        )
    labels = [price for i, (_, price) in enumerate(prices()) if i % 10]
    assert record["data"]["labels"] == {
        "mean": np.mean(labels),
        "spread": np.std(labels),
    }
    assert errors[False] > 100_000  # as far off as 0
    assert errors[True] < 45_000  # nearer than their mean, or as near
    assert record["curve"]["dev_loss"][-1] < 2


def test_every_file_of_a_scaled_regression_answers_in_the_labels_units(
    price_words, tiny_bert, tmp_path
):
    words = [*price_words, "task.scale_labels=true"]
    record, output = trained(words), output_of(words)
    context, files = restore(record, output), run_folder(output, record["id"])
    expected = torch.from_numpy(context.task.predict(context.evaluate()[1]))
    assert expected.std() > 10  # rounding is a hundredth

    def base():
        return AutoModelForSequenceClassification.from_pretrained(
            tiny_bert, num_labels=1
        )

    def answers(model):
        rows = context.task.splits["dev"].texts
        batch = AutoTokenizer.from_pretrained(tiny_bert)(
            rows, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            return model.eval()(**batch).logits[:, 0]

    for form in ("peft", "merged", "lora"):
        rank = ["rank=8"] * (form == "lora")
        call_here(
            "runs.export",
            record["id"],
            form,
            str(tmp_path / form),
            *rank,
            f"output={output}",
            check=0,
        )
    many = vera.Adapters(base())
    many.add("prices", files / "adapter.safetensors", files / "head.safetensors")
    with many.use(["prices"] * len(expected)):
        served = answers(many.model)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    theirs = [
        peft.PeftModel.from_pretrained(base(), tmp_path / form)
        for form in ("peft", "lora")
    ]
    for found in (served, *map(answers, [merged, *theirs])):
        assert torch.allclose(found, expected, rtol=1e-6)


def test_scale_labels_is_for_numbers(price_words):
    for more in (
        ["task.scale_labels=yes!"],
        ["task.regression=false", "task.scale_labels=true"],
    ):
        with refused("task.scale_labels="):
            preflight(expand([*price_words, *more]))


# --- new rows (python -m runs.predict)

NEW = [f"the {noun} is {word} ." for noun in NOUNS[:7] for word in (GOOD[0], BAD[1])]


@pytest.fixture
def kind_words(tiny_bert, tmp_path):
    """Three classes; rows of 10 tokens are cut."""
    file = tmp_path / "kinds.csv"
    kinds = dict(zip(("bad", "good", "odd"), (BAD[0], GOOD[0], VERBS[0]), strict=True))
    rows = [
        f"the {noun} is {word} .,{kind}\n"
        for noun in NOUNS
        for kind, word in kinds.items()
    ]
    file.write_text("text,label\n" + "".join(rows))
    return [
        *(
            "model=encoder",
            f"model.path={tiny_bert}",
            "task=text",
            "task.name=kinds",
            "train.lr=0.1",
        ),
        *(
            f"task.train_file={file}",
            "train.epochs=2",
            "train.effective_batch=8",
            "train.max_length=10",
        ),
        *(
            "method.rank=8",
            "eval_batch=4",
            "device=cpu",
            f"output={tmp_path / 'outputs'}",
        ),
    ]


def predict(record, words, *more, check=0):
    return call_here(
        "runs.predict",
        record["id"],
        *map(str, more),
        f"output={output_of(words)}",
        check=check,
    )


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_new_rows_are_predicted_as_the_dev_rows_were_and_without_the_training_rows(
    kind_words, tmp_path
):
    """Merged, as live: probabilities differ by less than a thousandth of their own
    size."""
    record, out = trained(kind_words), tmp_path / "out.csv"
    live = table(run_folder(output_of(kind_words), record["id"]) / "predictions.csv")
    shutil.move(tmp_path / "kinds.csv", tmp_path / "gone")
    lines = [
        json.dumps({"text": row["text"], "n": i}) + "\n" for i, row in enumerate(live)
    ]
    (tmp_path / "new.jsonl").write_text("".join(lines))
    predict(record, kind_words, tmp_path / "new.jsonl", f"out={out}")
    found = table(out)
    assert [*found[0]] == ["text", "n", "predicted", "p(bad)", "p(good)", "p(odd)"]
    assert [*tmp_path.glob("out.*")] == [out]
    for row, (number, before) in zip(found, enumerate(live), strict=True):
        assert (row["text"], row["n"]) == (before["text"], str(number))
        assert row["predicted"] == before["predicted"]
        for column in ("p(bad)", "p(good)", "p(odd)"):
            assert float(row[column]) == pytest.approx(float(before[column]), rel=1e-3)


def test_rows_with_labels_are_scored_and_too_long_ones_cut(
    kind_words, price_words, tmp_path, monkeypatch
):
    record, out = trained(kind_words), tmp_path / "out.csv"
    text = f"text\tlabel\n{NEW[0]}\tgood\n{NEW[1] * 4}\tbad\n"
    for words, more in (
        (text, ", accuracy "),
        (text.replace("\tgood", "\t").replace("\tbad", "\t"), ""),
    ):
        monkeypatch.setattr(
            sys, "stdin", SimpleNamespace(buffer=io.BytesIO(words.encode()))
        )
        printed = predict(record, kind_words, "-", f"out={out}").stdout
        assert (
            "1 row cut after 10 tokens" in printed,
            f"2 rows in {out}{more}" in printed,
        ) == (True, True)
        assert ("accuracy" in printed) == bool(more)
        out.unlink()
    record = trained([*price_words, "task.scale_labels=true"])
    printed = predict(record, price_words, tmp_path / "prices.tsv", f"out={out}").stdout
    line, title, *shown = printed.rpartition("RMSE ")[2].splitlines()
    error = float(line)
    assert title == "the rows with the largest loss:"
    assert shown[0].split() == ["text", "label", "predicted", "loss"]
    found = [(float(row["predicted"]) - float(row["label"])) ** 2 for row in table(out)]
    assert error == pytest.approx(np.sqrt(np.mean(found)), rel=1e-3)
    assert error < 45_000


def test_a_killed_prediction_goes_on_where_it_was_and_no_half_file_is_left(
    kind_words, tmp_path, monkeypatch
):
    record, new = trained(kind_words), tmp_path / "new.csv"
    new.write_text("text\n" + "".join(f"{text}\n" for text in NEW))
    real, batches = TextTask.answers, []

    def answers(task, model, batch):
        batches.append(len(batch["labels"]))
        if len(batches) == stops:
            raise KeyboardInterrupt
        return real(task, model, batch)

    monkeypatch.setattr(TextTask, "answers", answers)
    for at, name, code in ((99, "straight", 0), (3, "killed", 130), (99, "killed", 0)):
        stops = at
        batches.clear()
        predict(record, kind_words, new, f"out={tmp_path / name}.csv", check=code)
        left = sorted(path.name for path in tmp_path.glob(f"{name}*"))
        assert left == [f"{name}.csv{'.partial' * (code == 130)}"]
    assert batches == [4, 2]  # of 14 rows in batches of 4
    assert (tmp_path / "killed.csv").read_bytes() == (
        tmp_path / "straight.csv"
    ).read_bytes()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("body\na\n", "no column 'text'"),
        (
            "text,label\na,good\nb,great\n",
            "line 3: label 'great' is not one of bad, good, odd",
        ),
        ("text,predicted\na,b\n", "has a column 'predicted' already"),
        (None, "not a file"),
    ],
)
def test_rows_that_cannot_be_predicted_are_one_line_and_nothing_is_written(
    content, named, kind_words, tmp_path
):
    record, out = trained(kind_words), tmp_path / "out.csv"
    path = tmp_path / "new.csv"
    path.mkdir() if content is None else path.write_text(content)
    line = predict(record, kind_words, path, f"out={out}", check=2).stderr
    assert (line.count("\n"), named in line, str(path) in line) == (1, True, True), line
    assert not [*tmp_path.glob("out.*")]


def test_a_file_of_glue_is_read_as_it_is(words, glue, tmp_path):
    record, out = trained(words), tmp_path / "out.csv"
    predict(record, words, glue / "RTE" / "dev.tsv", f"out={out}")
    live = table(run_folder(output_of(words), record["id"]) / "predictions.csv")
    assert [row["predicted"] for row in table(out)] == [
        row["predicted"] for row in live
    ]


def test_a_run_without_a_head_and_an_output_that_is_there_are_refused(
    kind_words, tmp_path
):
    made = ledgers.record()
    made["parameters"]["head"] = 0
    write_record(output_of(kind_words), made)
    line = predict(made, kind_words, tmp_path, check=2).stderr
    assert "vera-bench answer" in line
    record, out = trained(kind_words), tmp_path / "out.csv"
    out.write_text("mine")
    assert (
        str(out)
        in predict(
            record, kind_words, tmp_path / "kinds.csv", f"out={out}", check=2
        ).stderr
    )
    assert out.read_text() == "mine"


def test_images_of_a_folder_are_predicted_as_those_of_dev_were(
    image_words, images, tmp_path
):
    record, out = trained(image_words), tmp_path / "out.csv"
    predict(record, image_words, images, f"out={out}")
    live = table(run_folder(output_of(image_words), record["id"]) / "predictions.csv")
    found = {row["image"]: row for row in table(out)}
    assert len(found) > len(live) > 0
    for row in live:
        assert found[row["image"]]["predicted"] == row["predicted"]
    (tmp_path / "empty").mkdir()
    line = predict(
        record, image_words, tmp_path / "empty", f"out={tmp_path / 'o.csv'}", check=2
    ).stderr
    assert "no images" in line


def test_the_first_rows_are_shown_without_the_ends_of_long_texts():
    rows = [["text", "predicted"], *([f"{'x' * 50}{i}\n\x1b[2J", i] for i in range(5))]
    shown = first_rows(rows).splitlines()
    assert [line.split()[-1] for line in shown[:4]] == ["predicted", "0", "1", "2"]
    assert shown[1].split()[0] == f"{'x' * 37}..."
    assert shown[4:] == ["... and 2 more rows"]
    assert "... and" not in first_rows(rows[:3])
    assert "\\x1b" in first_rows([["text"], ["\x1b[2J"]])
