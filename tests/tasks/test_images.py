"""Few-shot images: the layouts of the published sets, what is drawn, what is evaluated
on, and broken data."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from running import refused, task_of
from sklearn.datasets import load_digits
from tiny import image_column, picture, write_images

import tasks
from runs.config import expand
from runs.record.files import write_atomically
from runs.record.spreadsheet import csv_text
from runs.run.identity import data_content
from runs.training.predictions import illustrate, prediction_table
from tasks.images.pixels import Preprocessing
from tasks.images.sets import _read_images_at

pytestmark = pytest.mark.properties

VIT = Preprocessing((16, 16), (16, 16), False, 2, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(name, data_dir=None, **changes):
    return (
        task_of(name, "model=dinov2_small")
        | {"data_dir": data_dir and str(data_dir)}
        | changes
    )


def load(name, data_dir=None, **changes):
    return tasks.load(settings(name, data_dir, **changes))


def prepared(name, data_dir=None, **changes):
    task = load(name, data_dir, **changes)
    task.prepare(VIT)
    return task


def names(task, split):
    return [task._splits[split].pool.names[row] for row in task._splits[split].rows]


# --- layouts


def written(folder, images, **columns):
    """The folder with these rows as a training and as a test split."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        pyarrow.parquet.write_table(
            pyarrow.table({"image": images, **columns}), folder / f"{split}.parquet"
        )
    return folder


def parquet(folder, splits, image="image", label="label"):
    """The hub's parquet files, as the datasets library writes them: five images of each
    class."""
    import datasets

    rng, labels = np.random.default_rng(0), [0, 1, 2] * 5
    kinds = {
        image: datasets.Image(),
        label: datasets.ClassLabel(names=["ant", "bee", "cow"]),
    }
    (folder / "data").mkdir(parents=True)
    for split in splits:
        rows = {
            image: [Image.fromarray(picture(n, rng)) for n in labels],
            label: labels,
        }
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, datasets.Features(kinds)).to_parquet(
            path, batch_size=4
        )
        assert pyarrow.parquet.ParquetFile(path).num_row_groups > 1
    return folder


def check(task, train, dev):
    """Every class has its images, none is in both splits, and each image's colour is
    its class's."""
    assert np.bincount(task.labels("train")).tolist() == [train] * 3
    assert np.bincount(task.labels("dev")).tolist() == [dev] * 3
    same = task._splits["train"].pool is task._splits["dev"].pool
    assert not same or not set(names(task, "train")) & set(names(task, "dev"))
    for split in ("train", "dev"):
        batch = task.collate(split, range(len(task.lengths(split))))
        assert batch["pixel_values"].dtype == np.uint8
        brightest = (
            batch["pixel_values"]
            .reshape(len(batch["labels"]), 3, -1)
            .mean(-1)
            .argmax(-1)
        )
        assert (
            len(
                {
                    (label, colour)
                    for label, colour in zip(batch["labels"], brightest, strict=True)
                }
            )
            == 3
        )


@pytest.mark.parametrize(
    ("name", "test", "dev"), [("resisc45", 0, 3), ("image_folder", 4, 4)]
)
def test_folders_of_images(name, test, dev, tmp_path):
    own = name == "image_folder"
    # as one of several sets
    write_images(tmp_path / "data" / ("" if own else name), test=test)
    task = prepared(name, tmp_path / "data", shots=3)
    check(task, 3, dev)
    assert any("published set has" in note for note in task.notes) != own
    if own:  # whose name may be that of one of its classes
        flat = settings(name, tmp_path / "data" / "train", shots=3) | {"name": "ant"}
        assert tasks.load(flat).classes == task.classes


def test_an_error_names_the_folder_of_the_splits_although_a_class_has_inner_folders(
    tmp_path,
):
    data = write_images(tmp_path / "data")
    inner = data / "train" / "ant" / "inner"
    inner.mkdir()
    for path in inner.parent.glob("*.png"):
        path.rename(inner / path.name)
    (data / "test" / "cow").rename(data / "test" / "kow")
    with refused(f"{data}: the class folders of train and test differ"):
        load("image_folder", data)


@pytest.mark.parametrize(
    ("name", "splits", "columns", "dev"),
    [
        ("cifar100", ["train", "test"], ("img", "fine_label"), 5),
        ("food101", ["train", "validation"], (), 5),
        ("flowers102", ["train", "validation", "test"], (), 5),
        ("resisc45", ["train", "validation", "test"], (), 12),  # all 45 but the 9 drawn
    ],
)
def test_the_hubs_parquet_files(name, splits, columns, dev, tmp_path):
    task = prepared(name, parquet(tmp_path / "data", splits, *columns), shots=3)
    check(task, 3, dev)
    assert task.classes == ["ant", "bee", "cow"]


def test_of_parquet_files_only_those_with_a_wanted_row_are_read(tmp_path):
    paths = [tmp_path / f"{n}.parquet" for n in range(3)]
    for path in paths[:2]:
        pyarrow.parquet.write_table(
            pyarrow.table({"image": [path.name.encode(), b"x"]}), path
        )
    content = paths[0].read_bytes()
    # its rows; the last is no file
    paths[0].write_bytes(content[:4] + b"\xff" * 40 + content[44:])
    assert list(_read_images_at(paths, "image", [2])) == [b"1.parquet"]
    with refused(str(paths[0])):
        list(_read_images_at(paths, "image", [0]))


def test_parquet_files_without_class_names_take_the_labels_words(tmp_path):
    rng = np.random.default_rng(0)
    images = image_column([picture(number % 3, rng) for number in range(12)])
    written(tmp_path / "data", images, label=["ant", "bee", "cow"] * 4)
    task = prepared("image_folder", tmp_path / "data", shots=2)
    assert task.classes == ["ant", "bee", "cow"]
    check(task, 2, 4)


def test_another_image_column_is_another_file_of_prepared_images(tmp_path):
    shades = {"image": 10, "other": 200}
    columns = {
        name: image_column([np.full((8, 8, 3), shade, np.uint8)] * 4)
        for name, shade in shades.items()
    }
    written(tmp_path / "data", columns.pop("image"), **columns, label=[0, 1] * 2)
    for column, shade in shades.items():
        task = prepared("image_folder", tmp_path / "data", shots=1, image_column=column)
        for split in ("train", "dev"):
            assert (task.collate(split, [0])["pixel_values"] == shade).all()


def test_digits_are_scikit_learns():
    task = prepared("digits", image_size=None)
    assert [len(task.lengths(split)) for split in ("train", "dev")] == [100, 1697]
    pixels = next(task.set.train.items([17]))
    np.testing.assert_array_equal(
        pixels, np.rint(load_digits().images[17] * (255 / 16))
    )


# --- what is drawn


def test_exactly_k_images_a_class_from_the_seed_and_all_the_rest_is_evaluated_on(
    tmp_path,
):
    data = write_images(tmp_path / "data", train=9, test=0)
    first, again, other = (
        prepared("resisc45", data, shots=4, draw_seed=seed) for seed in (3, 3, 4)
    )
    assert names(first, "train") == names(again, "train")
    assert first.selection == again.selection != other.selection
    # It is the rows'
    assert first.selection != prepared("resisc45", data, shots=3, draw_seed=3).selection
    assert set(names(first, "train")) != set(names(other, "train"))
    everything = sorted(
        path.relative_to(data).as_posix() for path in data.rglob("*.png")
    )
    for task in (first, other):
        assert np.bincount(task.labels("train")).tolist() == [4] * 3
        assert sorted([*names(task, "train"), *names(task, "dev")]) == everything


def test_the_draw_follows_the_data_seed_and_not_the_trainings_and_fewer_shots_are_a_part(
    images,
):
    runs = expand(["task=digits", "model=dinov2_small", "seed=0,1"])
    runs += expand(["task=digits", "model=dinov2_small", "seed=1", "data_seed=7"])
    assert [run.config["task"]["draw_seed"] for run in runs] == [0, 1, 7]
    few, more = (
        prepared("image_folder", images, shots=shots, draw_seed=7) for shots in (2, 5)
    )
    assert set(names(few, "train")) < set(names(more, "train"))
    every = prepared("image_folder", images, shots=None, dev_rows=5)
    assert [len(every.lengths(split)) for split in ("train", "dev")] == [18, 5]
    assert any("fixed subset of 5" in note for note in every.notes)
    wanted = VIT.apply(Image.open(images / names(every, "train")[0]))
    np.testing.assert_array_equal(
        every.collate("train", [0])["pixel_values"][0], wanted
    )


def test_held_out_images_are_training_images(tmp_path, images):
    """The test images are not even readable."""
    data = shutil.copytree(images, tmp_path / "data")
    for path in (data / "test").rglob("*.png"):
        path.write_bytes(b"poison")
    task = prepared("image_folder", data, shots=5, holdout=0.4)
    assert np.bincount(task.labels("train")).tolist() == [3] * 3
    assert np.bincount(task.labels("dev")).tolist() == [2] * 3
    every = {*names(task, "train"), *names(task, "dev")}
    assert (len(every), {name.partition("/")[0] for name in every}) == (15, {"train"})
    wanted = VIT.apply(Image.open(images / names(task, "dev")[0]))
    np.testing.assert_array_equal(task.collate("dev", [0])["pixel_values"][0], wanted)


HIDDEN = (
    ".ipynb_checkpoints/x.png",
    "ant/__MACOSX/x.png",
    "ant/Thumbs.db",
    "ant/._a.png",
    "README.md",
)


@pytest.mark.parametrize(
    ("train", "test", "dev"),
    [
        ("Train", "Test", 4),
        ("training", "testing", 4),
        ("TRAIN", "Validation", 4),
        ("train", None, 8),
    ],
)
def test_what_is_of_the_data_and_what_is_not(train, test, dev, tmp_path, images):
    """Splits by other names or one alone; links, deep folders and capitals are; what is
    hidden is not."""
    top = Path(shutil.copytree(images / "train", tmp_path / "data" / train))
    if test:
        shutil.copytree(images / "test", tmp_path / "data" / test)
    (top / "ant" / "deep").mkdir()
    for name in ("ant/deep/X.PNG", "bee/y.Png"):
        shutil.copy(next((images / "test" / name[:3]).iterdir()), top / name)
    (top / "cow" / "more").symlink_to(images / "test" / "cow", target_is_directory=True)
    for name in HIDDEN:
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(b"x")
    task = prepared("image_folder", tmp_path / "data", shots=3)
    assert task.classes == ["ant", "bee", "cow"]
    assert np.bincount(task.set.train.labels).tolist() == [7, 7, 10]
    assert np.bincount(task.labels("dev")).tolist() == (
        [dev] * 3 if test else [4, 4, 7]
    )


def test_the_content_hash_is_that_of_the_files_wherever_they_lie(tmp_path, images):
    first = data_content(settings("image_folder", images))
    copy = shutil.copytree(images, tmp_path / "copy")
    assert data_content(settings("image_folder", copy)) == first
    Image.new("RGB", (8, 8)).save(copy / "train" / "ant" / "ant_000.png")
    assert data_content(settings("image_folder", copy)) != first


def test_names_of_classes_are_no_mathematics_in_pictures(tmp_path, images):
    task = prepared("image_folder", images, shots=2)
    task.classes[:2] = ["price $1^$", "b$_$"]
    lines = prediction_table(
        task, task.about("dev"), np.eye(3)[task.labels("dev")], task.labels("dev")
    )
    assert lines[0] == [
        "image",
        "label",
        "predicted",
        "p(price $1^$)",
        "p(b$_$)",
        "p(cow)",
    ]
    write_atomically(tmp_path / "predictions.csv", csv_text(lines))
    illustrate(task, tmp_path, "best epoch (1)")
    for name in ("predictions.png", "confusion.png"):
        with Image.open(tmp_path / name) as drawn:
            assert drawn.width > 300
