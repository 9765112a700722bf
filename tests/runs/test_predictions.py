"""What a run with a head leaves of its predictions, what is made of them, and that no
row leaves its folder. And the wrong answers of a run, printed."""

import csv
import json

import numpy as np
import pytest
import torch
from ledgers import exact_record, record, text_record
from PIL import Image
from running import (
    begin,
    call_here,
    output_of,
    refused,
    replace_words,
    straight_and_resumed,
    train_here,
    trained,
)
from safetensors.torch import load_file
from sklearn.metrics import classification_report
from tiers import all_pairs

from analysis.report import main as report
from runs.evaluate import kept_score, restore
from runs.export import main as export
from runs.mistakes import main as mistakes
from runs.publish import main as publish
from runs.record.ledger import read_record, record_path, run_folder, write_record
from runs.record.spreadsheet import read_own_csv
from runs.sweep.display import result_words
from runs.tracking.tracker import Tracking
from runs.training import predictions
from runs.training.train import train

pytestmark = pytest.mark.properties

#: A word that no file but predictions.csv may hold.
MARKER = "zyxomarkerq"
NOUNS = {
    "billing": "the bill of the dog",
    "refund": "a bright cat",
    "other": "it is dull",
}


def own_words(words, path, rows, *more):
    """The words of a run on rows of id, text and label, in a file of one's own."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("ticket", "text", "queue"), *rows])
    kept = [word for word in words if not word.startswith(("task", "train.lr="))]
    own = [
        "task=text",
        "task.name=tickets",
        f"task.train_file={path}",
        "task.label_column=queue",
    ]
    return [*kept, *own, "task.id_column=ticket", "train.lr=3e-2", *more]


@pytest.fixture
def tickets(words, tmp_path):
    """Sixty rows of three classes, of which six are held out; a text has two lines and
    over 200 letters."""
    names = [*NOUNS] * 20
    rows = [
        (f"T-{i}", f"{MARKER} {i}\n{NOUNS[name]} {'old ' * 60}", name)
        for i, name in enumerate(names, 1)
    ]
    return own_words(words, tmp_path / "tickets.csv", rows, "method=vera")


def files_of(record):
    return run_folder(record["config"]["output"], record["id"])


def mistakes_of(record, *words):
    output = f"output={record['config']['output']}"
    return call_here(
        "runs.mistakes", record["id"], output, *words, check=0
    ).stdout.splitlines()


def test_a_run_leaves_what_it_predicted_and_how_well_by_class(tickets, drawn):
    record = train_here([*tickets, "task.metric=macro_f1", "train.epochs=3"])
    folder = files_of(record)
    rows = read_own_csv(folder / "predictions.csv")
    assert [*rows[0]][:6] == ["file", "row", "id", "text", "label", "predicted"]
    assert [(row["file"], row["row"], row["id"]) for row in rows] == [
        ("tickets.csv", str(n), f"T-{n}") for n in range(1, 61, 10)
    ]
    assert all(
        len(row["text"]) == 200 and row["text"].startswith(f"{MARKER} {row['row']}\n")
        for row in rows
    )
    context = restore(record, record["config"]["output"])
    shares = torch.tensor(context.evaluate()[1]).softmax(-1).numpy()
    names = context.task.classes
    found = [[float(row[f"p({name})"]) for name in names] for row in rows]
    np.testing.assert_allclose(found, shares, rtol=1e-3, atol=1e-9)
    labels, predicted = (
        [row[column] for row in rows] for column in ("label", "predicted")
    )
    assert predicted == [names[n] for n in shares.argmax(-1)]
    report = classification_report(labels, predicted, output_dict=True, zero_division=0)
    by_class = read_own_csv(folder / "by_class.csv")
    assert {row["class"]: float(row["f1-score"]) for row in by_class} == pytest.approx(
        {
            name: values["f1-score"]
            for name, values in report.items()
            if name != "accuracy"
        },
        abs=1e-4,
    )
    assert report["macro avg"]["f1-score"] == pytest.approx(
        kept_score(record, best=False)
    )
    with Image.open(folder / "confusion.png") as picture:
        assert picture.width > 300
    assert {"predictions.csv", "by_class.csv", "confusion.png"} <= record[
        "files"
    ].keys()


def test_a_regression_leaves_a_scatter_and_its_largest_errors_come_first(
    words, tmp_path, drawn, capsys
):
    rows = [(f"=T({i})", f"{'old ' * (i % 7)}dog", 100 + i / 4) for i in range(40)]
    record = train_here(
        own_words(words, tmp_path / "prices.csv", rows, "task.keep_text=false")
    )
    path = files_of(record) / "predictions.csv"
    # a spreadsheet runs no id, and the commands see it as it is
    assert path.read_text().splitlines()[1].startswith("prices.csv,1,'=T(0),100,")
    found = read_own_csv(path)
    assert [*found[0]] == ["file", "row", "id", "label", "predicted"]
    assert [float(row["label"]) for row in found] == [100, 102.5, 105, 107.5]
    assert "scatter.png" in record["files"]
    assert mistakes([record["id"], f"output={tmp_path / 'outputs'}", "limit=3"]) == 0
    printed = capsys.readouterr().out.splitlines()[-4:]
    error = {
        row["id"]: abs(float(row["label"]) - float(row["predicted"])) for row in found
    }
    first = sorted(error, key=error.get, reverse=True)[:3]
    assert [
        f"id {name}:" in line for name, line in zip(first, printed, strict=False)
    ] == [True] * 3


def test_the_rows_with_the_largest_loss_are_shown(tickets, monkeypatch):
    record, output = train_here(tickets), output_of(tickets)
    monkeypatch.setenv("COLUMNS", "70")
    *lines, summary, last = mistakes_of(record)
    rows = read_own_csv(files_of(record) / "predictions.csv")
    shares = {row["id"]: float(row[f"p({row['label']})"]) for row in rows}
    heads, texts = lines[::2], lines[1::2]
    assert [line.partition("id ")[2].partition(":")[0] for line in heads] == sorted(
        shares, key=shares.get
    )
    assert all(MARKER in text and len(text) < 70 for text in texts)
    wrong = sum(row["label"] != row["predicted"] for row in rows)
    assert summary == f"the prediction differs from the label in {wrong} of 6 dev rows"
    assert last.startswith(f"The predictions agree with {1 - wrong / 6:.1%} of these")
    refunds = sum(row["label"] == "refund" for row in rows)
    assert len(mistakes_of(record, "part=refund")) == 2 + 2 * refunds
    with refused("'refunds'", "refund"):
        mistakes([record["id"], f"output={output}", "part=refunds"])
    (files_of(record) / "predictions.csv").write_text("label\n")
    with refused("predictions.csv", "redo=true"):
        mistakes([record["id"], f"output={output}"])


def test_a_runs_wrong_answers_with_what_was_read_and_expected(sums_words, monkeypatch):
    made, output = trained(sums_words), output_of(sums_words)
    file = files_of(made) / "last_greedy.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    wrong = {n: row for n, row in enumerate(rows, 1) if not row["right"]}
    monkeypatch.setenv("COLUMNS", "60")
    *lines, last = mistakes_of(made)
    assert last.startswith(f"{len(wrong)} of {len(rows)} answers are wrong")
    heads, prompts, answers = lines[::3], lines[1::3], lines[2::3]
    for (number, row), head, prompt, text in zip(
        wrong.items(), heads, prompts, answers, strict=True
    ):
        assert head.startswith(f"row {number}, sums: ")
        assert head.endswith(f", expected {row['expected']}: {row['reason']}")
        assert ("no answer" in head) == (row["read"] is None)
        assert (row["prompt"] in prompt, len(text) <= 60) == (True, True)
    assert len(mistakes_of(made, "limit=2", "part=sums")) == 2 * 3 + 1
    assert any(
        row["text"] in "\n".join(mistakes_of(made, "whole=true"))
        for row in wrong.values()
    )
    with refused("maths", "sums"):
        mistakes([made["id"], f"output={output}", "part=maths"])
    file.write_text('{"part": 1}\n')
    with refused("last_greedy.jsonl", "redo=true"):  # it is not what the record names
        mistakes([made["id"], f"output={output}"])


def test_a_run_without_such_texts_is_refused(tmp_path):
    of_e2e = text_record() | {"curve": record()["curve"]}
    for made, why in (
        (record(), "predictions.csv"),
        (of_e2e, "answers"),
        (exact_record(), "last_greedy.jsonl"),
    ):
        write_record(tmp_path, made)
        with refused(made["id"], why):
            mistakes([made["id"], f"output={tmp_path}"])


@pytest.mark.parametrize(
    ("family", "keep"), all_pairs(["words", "image_words"], ["best", "last", "none"])
)
def test_predictions_and_adapter_are_of_the_epoch_that_is_kept(
    family, keep, request, monkeypatch
):
    """The best is the first of equals. With keep=none predictions are of the epoch that
    the task's table reports: images' last, texts' best."""
    loop, seen = (
        begin([*request.getfixturevalue(family), "train.epochs=3", f"keep={keep}"]),
        [],
    )
    # of dev and its halves
    scores = iter([score for metric in (5, 9, 9) for score in (metric, 0.0, 0.0)])
    monkeypatch.setattr(loop.task, "score", lambda *_: next(scores))

    def evaluated(evaluate=loop.evaluate):
        assert not loop.best_file.exists()  # it is for keep=both
        adapter = loop.method.adapter_parameters(loop.raw_model)
        values = {
            name.replace(".changes.whole", ""): p.detach().clone()
            for name, p in adapter.items()
        }
        seen.append((values, evaluate()))
        return seen[-1][1]

    monkeypatch.setattr(loop, "evaluate", evaluated)
    record = train(loop)
    which = {"none": loop.task.reported}.get(keep, keep)
    task, (values, (_, of)) = loop.task, seen[{"best": 1, "last": 2}[which]]
    wanted = predictions.prediction_table(
        task, task.about("dev"), of, task.labels("dev")
    )
    found = read_own_csv(files_of(record) / "predictions.csv")
    assert [[*found[0]], *([*row.values()] for row in found)] == [
        [*map(str, row)] for row in wanted
    ]
    kept = {} if keep == "none" else load_file(files_of(record) / "adapter.safetensors")
    assert kept.keys() == (set() if keep == "none" else values.keys())
    assert all(torch.equal(kept[name], values[name]) for name in kept)
    best, last = result_words(record).split(", last ")
    marked = "(predictions kept)" if keep == "none" else "(kept)"
    assert (marked in best, marked in last) == (which == "best", which == "last")


@pytest.mark.parametrize(("of", "number"), [("evaluate", 3), ("task.illustrate", 1)])
def test_a_resumed_run_has_the_predictions_of_an_epoch_before_the_kill(
    of, number, tickets, tmp_path, drawn
):
    # the first epoch stays the best
    words = [*tickets, "train.epochs=3", "train.lr=0", "train.lr_head=0"]
    record, resumed = straight_and_resumed(words, tmp_path, of, number)
    assert (record["result"]["best_epoch"], record["files"]) == (1.0, resumed["files"])
    assert {"predictions.csv", "confusion.png"} <= resumed["files"].keys()


def test_rows_without_labels_have_the_same_columns_but_theirs(tickets):
    task = begin(tickets).task
    header, row = predictions.prediction_table(
        task, {"row": [7]}, np.array([[0.0, np.log(3), -np.inf]])
    )
    assert header == ["row", "predicted", "p(billing)", "p(other)", "p(refund)"]
    assert row == [7, "other", "0.25", "0.75", "0"]


@pytest.mark.usefixtures("process")
def test_no_row_leaves_the_folder_of_its_run(tickets, tmp_path, monkeypatch, drawn):
    """Not into the record, W&B's files, the report, an export or what is published;
    nor, without keep_text, into the folder."""
    for key, value in {"WANDB_MODE": "offline", "HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(key, value)
    output, published = tmp_path / "outputs", tmp_path / "published"
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", published)
    monkeypatch.chdir(tmp_path)
    train_here(
        replace_words([*tickets, "task.keep_text=false"], output=tmp_path / "without")
    )
    loop = begin([*tickets, "task.keep_text=true"])
    train(loop, Tracking("offline", adapter=True))
    record = read_record(record_path(output, loop.run_id))
    assert publish(["a_study", f"output={output}"]) == 0
    assert report([f"output={output}"]) == 0
    assert (
        export([record["id"], "peft", str(tmp_path / "exported"), f"output={output}"])
        == 0
    )
    data = (tmp_path / "tickets.csv").read_bytes()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert MARKER.encode() in data
    parts = output / "records", output / "wandb", output / "report.html", published
    for part in (*parts, tmp_path / "exported", tmp_path / "without"):
        assert [path for path in files if part in (path, *path.parents)], part
    ours = {
        path
        for path, content in files.items()
        if MARKER.encode() in content and content != data
    }
    assert ours == {run_folder(output, record["id"]) / "predictions.csv"}
    assert json.dumps(record).count("T-11") == 0
