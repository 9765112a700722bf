"""Few-shot images: the layouts of the published sets, what is drawn, what is evaluated on, and broken
data."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny import picture, write_images

import tasks
from runs.config import expand
from tasks import DataError
from tasks.images.pixels import Preprocessing

pytestmark = pytest.mark.properties

VIT = Preprocessing((16, 16), (16, 16), False, 2, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(name, *words):
    (run,) = expand([f"task={name}", "model=dinov2_small", *words])
    return run.config["task"]


def load(name, *words):
    return tasks.load(settings(name, *words))


def prepared(name, *words):
    task = load(name, *words)
    task.prepare(VIT)
    return task


def names(task, split):
    return [task._splits[split].pool.names[row] for row in task._splits[split].rows]


# --- layouts


def parquet(
    folder, splits, image="image", label="label", classes=("ant", "bee", "cow"), per_class=5, group=4
):
    """The hub's parquet files, as the datasets library writes them."""
    import datasets

    rng = np.random.default_rng(0)
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(classes))})
    (folder / "data").mkdir(parents=True)
    for split in splits:
        labels = [*range(len(classes))] * per_class
        rows = {image: [Image.fromarray(picture(n, rng)) for n in labels], label: labels}
        data = datasets.Dataset.from_dict(rows, features)
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        data.to_parquet(path, batch_size=group)
        assert pyarrow.parquet.ParquetFile(path).num_row_groups > 1
    return folder


def check(task, train, dev):
    """Every class has its images, none is in both splits, and each image's colour is its class's."""
    assert np.bincount(task.labels("train")).tolist() == [train] * 3
    assert np.bincount(task.labels("dev")).tolist() == [dev] * 3
    same = task._splits["train"].pool is task._splits["dev"].pool
    assert not same or not set(names(task, "train")) & set(names(task, "dev"))
    for split in ("train", "dev"):
        batch = task.collate(split, range(len(task.lengths(split))))
        assert batch["pixel_values"].dtype == np.uint8
        brightest = batch["pixel_values"].reshape(len(batch["labels"]), 3, -1).mean(-1).argmax(-1)
        assert len({(label, colour) for label, colour in zip(batch["labels"], brightest, strict=True)}) == 3


@pytest.mark.parametrize(("name", "test", "dev"), [("resisc45", 0, 3), ("image_folder", 4, 4)])
def test_folders_of_images(name, test, dev, tmp_path):
    write_images(tmp_path / "data" / name, test=test)  # as one of several sets
    task = prepared(name, f"task.data_dir={tmp_path / 'data'}", "task.shots=3")
    check(task, 3, dev)
    assert any("published set has" in note for note in task.notes) == (name != "image_folder")


@pytest.mark.parametrize(
    ("name", "splits", "columns", "dev"),
    [
        ("cifar100", ["train", "test"], ("img", "fine_label"), 5),
        ("food101", ["train", "validation"], ("image", "label"), 5),
        ("flowers102", ["train", "validation", "test"], ("image", "label"), 5),
        ("resisc45", ["train", "validation", "test"], ("image", "label"), 12),  # all 45 but the 9 drawn
    ],
)
def test_the_hubs_parquet_files(name, splits, columns, dev, tmp_path):
    parquet(tmp_path / "data", splits, *columns)
    task = prepared(name, f"task.data_dir={tmp_path / 'data'}", "task.shots=3")
    check(task, 3, dev)
    assert task.classes == ["ant", "bee", "cow"]


def test_parquet_files_without_class_names_take_the_labels_words(tmp_path):
    rng, words = np.random.default_rng(0), ["ant", "bee", "cow"] * 4
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        files = [io.BytesIO() for _ in words]
        for number, target in enumerate(files):
            Image.fromarray(picture(number % 3, rng)).save(target, "PNG")
        images = [{"bytes": file.getvalue(), "path": None} for file in files]
        table = pyarrow.table({"image": images, "label": words})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}.parquet")
    where = [f"task.data_dir={tmp_path / 'data'}", "task.shots=2"]
    task = prepared("image_folder", *where)
    assert task.classes == ["ant", "bee", "cow"]
    check(task, 2, 4)
    with pytest.raises(DataError, match=r"no column 'photo'. It has: image, label"):
        load("image_folder", *where, "task.image_column=photo")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["ant", None, "bee", "bee"], "row 1: label None is neither a number nor a word"),
        ([[0], [1], [0], [1]], r"row 0: label \[0\] is neither"),
        ([0, 1, 0, -1], "labels -1 to 1, but 2 class names"),
        ([], "a split without rows"),
    ],
)
def test_strange_labels_in_parquet_files_are_one_clear_line(labels, message, tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        table = pyarrow.table({"image": [{"bytes": b"x", "path": None}] * len(labels), "label": labels})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}.parquet")
    with pytest.raises(DataError, match=message):
        load("image_folder", f"task.data_dir={tmp_path / 'data'}", "task.shots=1")


def test_another_image_column_is_another_file_of_prepared_images(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        columns = {}
        for name, shade in (("image", 10), ("other", 200)):
            file = io.BytesIO()
            Image.new("RGB", (8, 8), (shade,) * 3).save(file, "PNG")
            columns[name] = [{"bytes": file.getvalue(), "path": None}] * 4
        pyarrow.parquet.write_table(
            pyarrow.table({**columns, "label": [0, 1] * 2}), tmp_path / "data" / f"{split}.parquet"
        )
    words = [f"task.data_dir={tmp_path / 'data'}", "task.shots=1"]
    for column, shade in (("image", 10), ("other", 200)):
        task = prepared("image_folder", *words, f"task.image_column={column}")
        for split in ("train", "dev"):
            assert (task.collate(split, [0])["pixel_values"] == shade).all()


def test_digits_are_scikit_learns(tmp_path):
    task = prepared("digits", "task.image_size=null")
    assert len(task.lengths("train")) == 100
    assert len(task.lengths("dev")) == 1697
    pixels = next(task.set.train.items([17]))
    np.testing.assert_array_equal(pixels, np.rint(load_digits().images[17] * (255 / 16)))


# --- what is drawn


def test_exactly_k_images_a_class_from_the_seed_and_all_the_rest_is_evaluated_on(tmp_path):
    write_images(tmp_path / "data", train=9, test=0)
    where = f"task.data_dir={tmp_path / 'data'}"
    first, again, other = (prepared("resisc45", where, "task.shots=4", f"seed={seed}") for seed in (3, 3, 4))
    assert names(first, "train") == names(again, "train")
    assert first.selection == again.selection != other.selection
    # It is the rows'
    assert first.selection != prepared("resisc45", where, "task.shots=3", "seed=3").selection
    assert set(names(first, "train")) != set(names(other, "train"))
    for task in (first, other):
        everything = {p.relative_to(tmp_path / "data").as_posix() for p in (tmp_path / "data").rglob("*.png")}
        assert sorted([*names(task, "train"), *names(task, "dev")]) == sorted(everything)


def test_the_draw_follows_the_data_seed_and_not_the_trainings_and_fewer_shots_are_a_part(tmp_path, images):
    first, same, other, more = (
        prepared("image_folder", f"task.data_dir={images}", *words)
        for words in (
            *(["task.shots=2", "seed=1", "data_seed=7"], ["task.shots=2", "seed=2", "data_seed=7"]),
            *(["task.shots=2", "seed=1", "data_seed=8"], ["task.shots=5", "seed=1", "data_seed=7"]),
        )
    )
    assert first.selection == same.selection != other.selection
    assert set(names(first, "train")) < set(names(more, "train"))
    runs = expand(["task=digits", "model=dinov2_small", "seed=0,1,2"])
    assert [run.config["task"]["draw_seed"] for run in runs] == [0, 1, 2]


def test_all_training_images_and_a_part_of_the_evaluation(tmp_path, images):
    task = prepared("image_folder", f"task.data_dir={images}", "task.shots=null", "task.dev_rows=5")
    assert len(task.lengths("train")) == 18
    assert len(task.lengths("dev")) == 5
    assert any("fixed subset of 5" in note for note in task.notes)
    batch = task.collate("train", [0])
    wanted = VIT.apply(Image.open(images / names(task, "train")[0]))
    np.testing.assert_array_equal(batch["pixel_values"][0], wanted)


def test_held_out_images_are_training_images(tmp_path, images):
    """The test images are not even readable."""
    shutil.copytree(images, tmp_path / "data")
    for path in (tmp_path / "data" / "test").rglob("*.png"):
        path.write_bytes(b"poison")
    words = [f"task.data_dir={tmp_path / 'data'}", "task.shots=5"]
    task = prepared("image_folder", *words, "task.holdout=0.4")
    assert np.bincount(task.labels("train")).tolist() == [3] * 3
    assert np.bincount(task.labels("dev")).tolist() == [2] * 3
    every = [*names(task, "train"), *names(task, "dev")]
    assert len(set(every)) == 15
    assert all(name.startswith("train/") for name in every)
    batch = task.collate("dev", [0])
    np.testing.assert_array_equal(
        batch["pixel_values"][0], VIT.apply(Image.open(images / names(task, "dev")[0]))
    )
    with pytest.raises(DataError, match="leaves nothing to train on"):
        prepared("image_folder", words[0], "task.shots=1", "task.holdout=0.4")


# --- broken data


def test_images_that_cannot_be_read_are_named(tmp_path):
    """A link may lead nowhere."""
    folder = write_images(tmp_path / "data", train=6, test=4)
    (folder / "test" / "ant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    broken = folder / "test" / "ant" / "ant_002.png"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    where = f"task.data_dir={folder}"
    with pytest.raises(DataError, match=r"2 images cannot be read: test/ant/ant_002.png \(.*; test/ant/gone"):
        prepared("image_folder", where, "task.shots=4")
    for path in (folder / "train" / "bee").iterdir():
        path.write_bytes(b"\x89PNG broken")
    for shots in ("4", "null"):
        with pytest.raises(DataError, match=r"[46] images cannot be read: train/bee/bee_00") as refused:
            prepared("image_folder", where, f"task.shots={shots}")
        assert "\n" not in str(refused.value)


def folders(how):
    """Image folders with a fault."""

    def make(folder):
        write_images(folder, test=0 if how == "one split" else 4)
        others = (("train", "ing_set"), ("test", "_set"))
        {
            "few": lambda: [p.unlink() for p in sorted((folder / "train" / "bee").iterdir())[1:]],
            "extra": lambda: write_images(folder, classes=("dog",), train=0, test=2),
            "renamed": lambda: (folder / "test" / "cow").rename(folder / "test" / "kow"),
            "one class": lambda: [
                shutil.rmtree(folder / s / c) for s in ("train", "test") for c in ("ant", "bee")
            ],
            "one split": lambda: None,
            "empty": lambda: [shutil.rmtree(p) for p in folder.iterdir()],
            "no classes": lambda: (
                [shutil.move(p, folder) for p in (folder / "train" / "ant").iterdir()]
                + [shutil.rmtree(folder / s) for s in ("train", "test")]
            ),
            "ambiguous": lambda: write_images(folder, classes=("bus", "car"), train=5, test=0),
            "other names": lambda: [(folder / s).rename(folder / f"{s}{end}") for s, end in others],
            "no images": lambda: [
                p.unlink() for s in ("train", "test") for p in (folder / s / "bee").iterdir()
            ],
        }[how]()

    return make


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (folders("few"), "class bee has 1 training images, fewer than task.shots=4"),
        (folders("extra"), "only test has dog"),
        (folders("renamed"), "only train has cow; only test has kow"),
        (folders("one class"), "one class, cow"),
        (folders("empty"), "no images in folders. It should hold train/CLASS/"),
        (folders("no classes"), "no images in folders"),
        (folders("ambiguous"), "is train a split or a class"),
        (folders("other names"), r"test_set holds folders of images.*\(ant, bee, cow\)"),
        (folders("no images"), "train/bee: a folder for a class without an image"),
        (lambda folder: [parquet(folder / name, ["train", "test"]) for name in "ab"], "a/data, b/data"),
    ],
)
def test_bad_folders_are_one_clear_line(make, named, tmp_path):
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    with pytest.raises(DataError, match=named) as error:
        load("image_folder", f"task.data_dir={tmp_path / 'data'}", "task.shots=4")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shots", ["null", "6"])
def test_no_test_split_and_all_images_leave_nothing(shots, tmp_path):
    folders("one split")(tmp_path / "data")
    with pytest.raises(DataError, match="no test split"):
        load("image_folder", f"task.data_dir={tmp_path / 'data'}", f"task.shots={shots}")


@pytest.mark.parametrize(
    ("train", "test", "dev"),
    [("Train", "Test", 4), ("training", "testing", 4), ("TRAIN", "Validation", 4), ("train", None, 8)],
)
def test_what_is_of_the_data_and_what_is_not(train, test, dev, tmp_path, images):
    """Splits by other names or one alone; links, deep folders and capitals are; what is hidden is not."""
    top = Path(shutil.copytree(images / "train", tmp_path / "data" / train))
    if test:
        shutil.copytree(images / "test", tmp_path / "data" / test)
    (top / "ant" / "deep").mkdir()
    for name in ("ant/deep/X.PNG", "bee/y.Png"):
        shutil.copy(next((images / "test" / name[:3]).iterdir()), top / name)
    (top / "cow" / "more").symlink_to(images / "test" / "cow", target_is_directory=True)
    for name in (
        ".ipynb_checkpoints/x.png",
        "ant/__MACOSX/x.png",
        "ant/Thumbs.db",
        "ant/._a.png",
        "README.md",
    ):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(b"x")
    task = prepared("image_folder", f"task.data_dir={tmp_path / 'data'}", "task.shots=3")
    assert task.classes == ["ant", "bee", "cow"]
    assert np.bincount(task.set.train.labels).tolist() == [7, 7, 10]
    assert np.bincount(task.labels("dev")).tolist() == ([dev] * 3 if test else [4, 4, 7])


@pytest.mark.parametrize(
    "word",
    [
        *("task.shots=0", "task.image_size=-3", "task.data_dir=/nowhere/at/all"),
        *(f"task.data_dir={__file__}", "task.data_dir=null"),
    ],
)
def test_settings_out_of_range_are_one_clear_line(word, tmp_path, images):
    words = [f"task.data_dir={images}", "task.shots=2"]
    words = [w for w in words if w.partition("=")[0] != word.partition("=")[0]]
    with pytest.raises(DataError, match=word.partition("=")[0]):
        load("image_folder", *words, word)


def test_the_content_hash_is_that_of_the_files_wherever_they_lie(tmp_path, images):
    from runs.identity import data_content

    first = data_content(settings("image_folder", f"task.data_dir={images}"))
    shutil.copytree(images, tmp_path / "copy")
    assert data_content(settings("image_folder", f"task.data_dir={tmp_path / 'copy'}")) == first
    Image.new("RGB", (8, 8)).save(tmp_path / "copy" / "train" / "ant" / "ant_000.png")
    assert data_content(settings("image_folder", f"task.data_dir={tmp_path / 'copy'}")) != first


def test_predictions_are_written_beside_their_images(tmp_path, images):
    task = prepared("image_folder", f"task.data_dir={images}", "task.shots=2")
    predictions = task.labels("dev").copy()
    predictions[0] = 2
    task.illustrate(tmp_path, predictions)
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "image,label,predicted"
    assert lines[1] == "test/ant/ant_000.png,ant,cow"
    assert len(lines) == 13
    task.classes[:2] = ["price $1^$", "b$_$"]  # no mathematics
    task.illustrate(tmp_path, predictions)
    for name in ("predictions.png", "confusion.png"):
        with Image.open(tmp_path / name) as picture_:
            assert picture_.width > 300
    assert json.dumps(task.notes)
