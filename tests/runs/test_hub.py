"""The hub's protocol for real: a small server on loopback serves a model and GLUE's parquet files as the hub
does."""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from servers import COMMIT, Hub, serving
from tiny import cells, picture, write_e2e_hub

import tasks
from runs.record import read_record
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
    e2e = write_e2e_hub(tmp_path / "served_e2e")
    repositories = {"models/own/tiny": tiny_bert, "datasets/nyu-mll/glue": data.parent}
    repositories |= {"models/own/gpt2": tiny_gpt2, "datasets/tuetschek/e2e_nlg": e2e}
    cifar, rng = tmp_path / "served_cifar" / "cifar100", np.random.default_rng(0)
    cifar.mkdir(parents=True)
    for split in ("train", "test"):
        images = cells([picture(label % 3, rng) for label in range(12)])
        table = pyarrow.table({"img": images, "fine_label": [0, 1, 2] * 4, "coarse_label": [0] * 12})
        pyarrow.parquet.write_table(table, cifar / f"{split}-00000-of-00001.parquet")
    repositories |= {"models/timm/tiny": tiny_timm, "datasets/uoft-cs/cifar100": cifar.parent}
    space = tmp_path / "served_space"
    shutil.copytree(mt_bench, space / "data")
    repositories |= {
        "models/own/llama": tiny_llama,
        "datasets/yahma/alpaca-cleaned": alpaca,
        "spaces/lmsys/mt-bench": space,
    }
    with serving(**repositories) as address:
        yield address


def call(address, home, *words, module="runs", **more):
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


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
    assert (record["model"], record["data"]["content"]) == (
        f"own/gpt2@{COMMIT}",
        f"tuetschek/e2e_nlg@{COMMIT}",
    )
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
    assert (
        "the hub refuses uoft-cs/cifar100 (" in other.stderr
    )  # and timm/tiny, in what a long line leaves out
    assert "503" in other.stderr


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


def test_a_repository_that_the_hub_does_not_give(hub, tmp_path):
    done = call(hub, tmp_path / "home", *words_of("encoder", "own/secret", "rte", tmp_path))
    assert done.returncode == 2
    assert "the hub refuses own/secret" in done.stderr
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr


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
