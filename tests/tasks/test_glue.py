"""GLUE from TSV and parquet, and what is said about files that are wrong."""

import shutil

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from running import refused
from tiny import write_glue

import tasks
from runs.config import CONF

pytestmark = pytest.mark.properties

NAMES = ["sst2", "mrpc", "cola", "qnli", "rte", "stsb", "mnli"]


def settings(name, folder, **changes):
    files = ("shared/glue", f"task/{name}")
    read = [yaml.safe_load((CONF / f"{file}.yaml").read_text()) for file in files]
    return read[0] | read[1] | {"data_dir": str(folder)} | changes


def test_the_formats_read_as_they_are_written(glue):
    loaded = {name: tasks.load(settings(name, glue)) for name in NAMES}
    assert {
        name: (len(t.splits["train"]), len(t.splits["dev"])) for name, t in loaded.items()
    } == dict.fromkeys(NAMES, (40, 24))
    assert {name: t.metric for name, t in loaded.items() if t.metric != "accuracy"} == {
        "cola": "matthews",
        "stsb": "pearson",
    }
    assert {name: t.num_labels for name, t in loaded.items()} == dict.fromkeys(NAMES, 2) | {
        "stsb": 1,
        "mnli": 3,
    }
    assert loaded["stsb"].problem == "regression"
    assert {name for name, t in loaded.items() if t.splits["dev"].pairs is None} == {"sst2", "cola"}
    # The labels' order is GLUE's own on the hub: entailment is 0.
    assert loaded["rte"].splits["dev"].labels == [1 - y for y in loaded["cola"].splits["dev"].labels]
    assert loaded["sst2"].splits["dev"].texts == loaded["cola"].splits["dev"].texts
    assert all(0 <= y <= 5 for y in loaded["stsb"].splits["train"].labels)
    assert "GLUE has 2490" in loaded["rte"].notes[0]


def test_batches_are_of_like_lengths_unless_the_task_says_otherwise(glue):
    for value, block in ((True, 8), (False, 1)):
        assert tasks.load(settings("sst2", glue, length_grouped=value)).block == block
    of_an_old_record = settings("rte", glue)
    del of_an_old_record["length_grouped"]
    assert tasks.load(of_an_old_record).block == 8


def test_the_tasks_own_folder_or_the_one_that_holds_them_all(glue):
    assert tasks.source(settings("rte", glue)) == tasks.source(settings("rte", glue / "RTE"))


def test_a_lone_quotation_mark_is_text(tmp_path):
    folder = write_glue(tmp_path) / "CoLA"
    with open(folder / "dev.tsv", "a") as file:
        file.write('own\t1\t\tthe dog said " and the cat')  # no end of line, as in the published file
    assert tasks.load(settings("cola", folder)).splits["dev"].texts[-1] == 'the dog said " and the cat'


@pytest.mark.parametrize("name", ["rte", "stsb", "cola", "mnli"])
def test_the_hubs_parquet_files_give_the_same_rows(name, glue, tmp_path):
    tsv = tasks.load(settings(name, glue))
    columns = {"cola": ("sentence",), "mnli": ("premise", "hypothesis")}.get(name, ("sentence1", "sentence2"))
    for split, rows in tsv.splits.items():
        stem = "train" if split == "train" else "validation_matched" if name == "mnli" else "validation"
        table = dict(zip(columns, (rows.texts, rows.pairs), strict=False)) | {"label": rows.labels}
        (tmp_path / name).mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / name / f"{stem}-00000-of-00001.parquet")
    assert tasks.load(settings(name, tmp_path)).splits == tsv.splits


def test_a_split_in_several_files_is_refused(glue, tmp_path):
    rows = tasks.load(settings("cola", glue)).splits["train"]
    table = pyarrow.table({"sentence": rows.texts, "label": rows.labels})
    for i in range(2):
        pyarrow.parquet.write_table(table, tmp_path / f"train-0000{i}-of-00002.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "validation-00000-of-00001.parquet")
    words = r"one is expected: train-00000-of-00002.parquet, "
    with pytest.raises(tasks.DataError, match=words):
        tasks.load(settings("cola", tmp_path))


def test_a_fixed_subset_is_the_same_every_time_and_says_so(glue):
    some = [tasks.load(settings("rte", glue, train_rows=10)) for _ in range(2)]
    assert some[0].splits["train"] == some[1].splits["train"]
    assert len(some[0].splits["train"]) == 10
    assert set(some[0].splits["train"].texts) < set(tasks.load(settings("rte", glue)).splits["train"].texts)
    assert "10 rows (a fixed subset of 40)" in some[0].notes[0]


def test_of_sst2_sentences_are_held_out_with_all_phrases_that_only_they_have(tmp_path):
    """Its training rows are phrases of sentences: a model that was trained on a phrase would know its
    sentence."""
    rows = {
        f"the {name} dog barks at {name} cats .": i % 2
        for i, name in enumerate(["big", "small", "old", "new"] * 5)
    }
    for sentence, label in list(rows.items()):
        rows |= {" ".join(sentence.split()[:3]): label, "dog barks": 1, sentence.partition("at ")[2]: label}
    # A space at the end, as in the published file
    lines = [f"{text} \t{label}" for text, label in rows.items()]
    for split, some in (("train", lines), ("dev", lines[:2])):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *some]) + "\n")
    task, again = (tasks.load(settings("sst2", tmp_path, holdout=0.5)) for _ in range(2))
    assert task.splits == again.splits
    train, dev = ([text.strip() for text in task.splits[split].texts] for split in ("train", "dev"))
    assert len(dev) == 2
    assert all(text.endswith(".") and len(text.split()) == 8 for text in dev)
    assert sorted(task.splits["dev"].labels) == [0, 1]
    assert "dog barks" in train  # other sentences have it, too
    assert not [text for text in train if text != "dog barks" and any(text in sentence for sentence in dev)]
    assert len(train) == len(rows) - 2 * 3
    assert (
        task.notes[-1]
        == "dev: 2 sentences held out (task.holdout=0.5), 6 of 13 training rows are left out with them, the"
        " dev set is not used"
    )
    few = tasks.load(settings("sst2", tmp_path, holdout=0.5, train_rows=4))
    assert len(few.splits["dev"]) == 2
    # Of the whole file, whatever the four rows are
    assert all(len(text.split()) == 8 for text in few.splits["dev"].texts)
    trial, run, other = (
        {"name": name} | more
        for name, more in (("sst2", {"holdout": 0.2}), ("sst2", {}), ("rte", {"holdout": 0.2}))
    )
    assert [tasks.protocol(one | {"family": "glue"}) for one in (trial, run, other)] == [2, 1, 1]


@pytest.mark.parametrize(
    ("task", "line", "text", "named"),
    [
        *(("RTE", 3, "2\ta dog\ta cat\tmaybe", "'maybe'"), ("RTE", 5, "4\ta dog\ta c", "4 columns")),
        *(("CoLA", 2, "own\t2\t\ta dog", "'2'"), ("CoLA", 2, "own\t1", "4 columns")),
        *(("STS-B", 4, "\t".join(["x"] * 9 + [score]), score) for score in ("7.0", "[?]")),
        ("SST-2", 1, "text\tlabel", "no column 'sentence'. It has: text, label"),
    ],
)
def test_a_wrong_row_is_named_with_file_and_line(task, line, text, named, tmp_path):
    path = write_glue(tmp_path) / task / "train.tsv"
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines))
    with refused(named, f"{path}: " if line == 1 else f"{path} line {line}: "):
        tasks.load(settings(task.lower().replace("-", ""), tmp_path))


def test_missing_files_and_folders_and_names(glue, tmp_path):
    for wrong, named in (
        (settings("rte", tmp_path / "none"), "none"),
        (settings("rte", tmp_path), "RTE"),
        (settings("rte", glue) | {"name": "wnli"}, "wnli"),
        (settings("rte", glue, family="gleu"), "gleu"),
    ):
        with refused(named):
            tasks.source(wrong)
    with refused("task.data_dir="):  # nor can the hub be reached
        tasks.load(settings("rte", "", data_dir=None))
    shutil.copytree(glue / "RTE", tmp_path / "RTE")
    for content, named in (
        (None, "no dev.tsv"),
        (b"\xff\xfe\x00bad", "dev.tsv: not UTF-8"),
        (b"", "dev.tsv: no rows"),
    ):
        path = tmp_path / "RTE" / "dev.tsv"
        path.unlink() if content is None else path.write_bytes(content)
        with refused("RTE", named):
            tasks.load(settings("rte", tmp_path))
