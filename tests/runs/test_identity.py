"""A run is the same run wherever its files lie, and another one when anything that defines its result
differs."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

import tasks
from runs import models, shared_files
from runs.config import expand
from runs.errors import UserError
from runs.identity import hash_files, identify, run_id
from tasks import DataError
from tasks.fetch import cache_folder

pytestmark = pytest.mark.properties


def identity(words) -> str:
    (run,) = expand(words)
    return run_id(run)


def test_places_and_machinery_do_not_matter(words, tiny_bert, glue, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "moved_model")
    shutil.copytree(glue / "RTE", tmp_path / "moved_data")
    same = [f"output={tmp_path}", "device=auto", "micro_batch=2", "eval_batch=3", "checkpoint_minutes=0"]
    same += ["keep=none", "select=crossfit", "debug=true", "method.path=factor", "method.weights=recompute"]
    same += [f"model.path={tmp_path / 'moved_model'}", f"task.data_dir={tmp_path / 'moved_data'}"]
    first = identity(words)
    assert len(first) == 12
    for change in same:
        key = change.partition("=")[0]
        assert identity([*(w for w in words if not w.startswith(f"{key}=")), change]) == first, change


def test_what_defines_the_result_matters(words, tmp_path):
    numbers = (
        "seed",
        "data_seed",
        "method.projection_seed",
        "train.effective_batch",
        "train.epochs",
        "train.max_steps",
    )
    changes = [f"{key}={number + 1}" for number, key in enumerate(numbers)]
    changes += [
        "method.rank=9",
        "method.d_init=0.2",
        "train.lr=2e-2",
        "train.precision=bf16",
        "task.train_rows=9",
    ]
    ids = {identity(words)}
    for change in changes:
        key = change.partition("=")[0]
        ids.add(identity([*(w for w in words if not w.startswith(f"{key}=")), change]))
    ids.add(identity([*(w for w in words if not w.startswith("task=")), "task=qnli"]))
    assert len(ids) == len(changes) + 2


def test_what_was_run_stays_done():
    """Ids of records that are out there: a key that came later leaves them as they are, at the value that was
    fixed before."""
    rte = ["model=roberta_base", "task=rte", "method=vera", "task.length_grouped=true"]
    assert identity(["method=vera"]) == identity(["method=vera", "task.holdout=null"]) == "785471722292"
    assert identity(rte) == "ac00fae105f8"
    assert identity(["model=gpt2_medium", "task=e2e", "method=vera"]) == "d77cfe0db6b3"
    assert len({identity([f"task.holdout={share}"]) for share in ("null", "0.2", "0.3")}) == 3


def test_the_way_to_alpha_and_to_the_projection_seed_is_no_part_of_it(monkeypatch):
    """Ids of records that are out there, on CoLA's files as GLUE has them."""
    content = "sha256:bd6fba96205e0e162f02a73ddf3b97fe9e1a33b3d4288e936260c8b450dd9acf"
    monkeypatch.setattr("runs.identity.data_content", lambda settings: content)
    words = ["experiment=rank_scaling_minilm", "method=lora_r2"]
    alpha, scaling = "method.alpha=2", "method.scaling=proportional"
    for seed, known in ((0, "aac4f59ce8cf"), (1, "17ff3a843cbd")):
        for way in ([scaling], [alpha], [alpha, scaling]):
            assert identity([*words, *way, f"seed={seed}"]) == known
    assert identity(["experiment=rank_scaling_minilm_proportional", *words[1:], "seed=0"]) == "aac4f59ce8cf"
    for way in ([], ["method.scaling=constant"]):
        assert identity([*words, *way, "seed=0"]) == "6262bd26f718"
    redrawn = [run_id(run) for run in expand(["method=vera_redrawn", "seed=0,1,2"])]
    assert len({*redrawn, identity(["method=vera"])}) == 4


def test_batches_of_like_lengths_are_told_apart_from_random_ones_and_as_before_in_each_family():
    for words in (["task=reviews"], ["task=rte", "model=roberta_base"]):
        way = {grouped: identity([*words, f"task.length_grouped={grouped}"]) for grouped in ("true", "false")}
        assert way["true"] != way["false"]
        (run,) = expand([*words, "task.length_grouped=true"])
        del run.config["task"]["length_grouped"]  # a record from before the key
        assert run_id(run) == way["true"]
    # These two have had it from the beginning: both values are in it.
    gpt2 = ["model=gpt2_medium", "task=e2e", "method=vera"]
    ids = [identity([*gpt2, f"task.length_grouped={grouped}"]) for grouped in ("false", "true")]
    assert ids[0] == "d77cfe0db6b3" != ids[1]
    (run,) = expand(["model=smollm2", "task=alpaca"])
    with_it = run_id(run)
    del run.config["task"]["length_grouped"]
    assert run_id(run) != with_it


def test_content_and_the_protocols_version_decide_not_the_name(words, tiny_bert, glue, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(glue / "RTE", folder)
    place = [f"task.data_dir={folder}" if w.startswith("task.data_dir") else w for w in words]
    before = identity(place)
    lines = (folder / "train.tsv").read_text().splitlines()
    (folder / "train.tsv").write_text("\n".join(lines[:-1]) + "\n")
    assert identity(place) != before
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    other = [f"model.path={model}" if w.startswith("model.path") else w for w in words]
    before = identity(other)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert identity(other) != before
    before = identity(words)
    monkeypatch.setattr("tasks.glue.PROTOCOL", 99)
    assert identity(words) != before


def test_hub_revisions_identify_without_the_network():
    pinned = identity(["model=roberta_base", "task=rte"])
    assert pinned == identity(["model=roberta_base", "task=rte"])
    assert pinned != identity(["model=roberta_base", "task=rte", f"model.revision={'0' * 40}"])
    assert identity(["model=roberta_base", "task=rte", "model.revision=null"]) is None


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"no weights .*pickled weights",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no weights \(model\*.safetensors\)"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: [p.unlink() for p in folder.glob("[tv]o[kc]*")], "no tokenizer beside config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_model_folder_that_is_not_whole(break_it, message, words, tiny_bert, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    break_it(folder)
    with pytest.raises(UserError, match=message) as error:
        identity([f"model.path={folder}" if w.startswith("model.path") else w for w in words])
    assert "\n" not in str(error.value)


def test_another_model_than_the_configuration_names_and_missing_data(words, tiny_roberta, glue, tmp_path):
    with pytest.raises(UserError, match=r"hidden_size is 32, roberta_base has 768. Another model\?"):
        identity(["model=roberta_base", f"model.path={tiny_roberta}", "task=rte", f"task.data_dir={glue}"])
    with pytest.raises(DataError, match=r"task\.data_dir"):
        identity([f"task.data_dir={tmp_path}" if w.startswith("task.data_dir") else w for w in words])


@pytest.mark.parametrize("others", [0, 20])
def test_a_pipe_or_a_device_among_the_data_counts_as_missing_and_is_not_read(others, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    files = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero")}
    files |= {str(n): tmp_path / f"{n}.png" for n in range(others)}
    gone = dict.fromkeys(files, tmp_path / "gone")
    assert hash_files(files) == hash_files(gone)


def test_of_many_runs_each_model_and_data_set_is_looked_at_once_whatever_the_seed(
    monkeypatch, glue, tiny_bert, tmp_path
):
    asked, source, locate = [], tasks.source, models.locate
    monkeypatch.setattr(tasks, "source", lambda settings: asked.append("data") or source(settings))
    monkeypatch.setattr(models, "locate", lambda model: asked.append("model") or locate(model))
    words = ["model=encoder", f"model.path={tiny_bert}", f"task.data_dir={glue}", "seed=0,1,2"]
    runs = expand([*words, "task=rte,mrpc"])
    ids = identify(runs)
    assert sorted(asked) == ["data", "data", "model"]
    assert len(set(ids)) == 6
    assert ids == [run_id(run) for run in runs]  # each time anew
    assert len(asked) == 3 + 2 * 6


def test_of_many_runs_one_that_cannot_be_identified_is_told_apart(words, glue):
    runs = [*expand(words), *expand([*words, "init_from=/nowhere.safetensors"])]
    with pytest.raises(UserError, match="no such file"):
        identify(runs)
    problems = {}
    assert identify(runs, problems) == [run_id(runs[0]), None]
    assert problems == {1: "init_from=/nowhere.safetensors: no such file"}


def test_a_file_is_read_once_in_all_processes_and_a_damaged_note_of_it_is_none(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    expected, read = hashlib.sha256(b"weights").hexdigest(), []
    digest = shared_files.digest
    monkeypatch.setattr(shared_files, "digest", lambda path: read.append(path) or digest(path))
    for number, reads in enumerate((1, 1, 2)):
        shared_files._file_hash.cache_clear()  # another process
        assert shared_files.file_hash(path) == expected
        assert len(read) == reads
        if number == 1:
            (kept,) = [p for p in (cache_folder() / "sha256").iterdir() if p.read_text() == expected]
            kept.write_text("no hash")
    path.write_bytes(b"others!")
    assert shared_files.file_hash(path) != expected
