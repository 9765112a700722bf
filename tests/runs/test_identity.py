"""A run is the same run wherever its files lie, and another one when anything that defines its result
differs, such as the adapter that it starts from."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from running import call_here, trained
from safetensors.torch import load_file

import tasks
import vera
from runs import models, plan, shared_files
from runs.config import expand
from runs.errors import UserError
from runs.identity import hash_files, identify, run_id, start_file
from runs.record import read_ledger, read_record, record_path, run_folder, write_record
from runs.run import starts, with_starts
from runs.sweep import sweep
from runs.training.loop import Training
from runs.training.train import train
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
    same += ["select=crossfit", "debug=true", "method.path=factor", "method.weights=recompute"]
    same += ["keep=none", "adapter_precision=fp16"]
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


# --- starting from another adapter: label, plan, order, and what is said while the start is not there


@pytest.fixture
def lora(words):
    """LoRA on the words' own task, two steps."""
    return [*(w for w in words if not w.startswith("method.")), "method=lora", "train.max_steps=2"]


def text_of(words) -> str:
    runs = expand(words)
    ledger = read_ledger(runs[0].config["output"], published=False)
    return plan.text(plan.plan(with_starts(runs), ledger), ledger)


def mnli_rows(words):
    others = [word for word in words if not word.startswith(("method=", "task="))]
    return [*others, "method=lora_mnli", "task=rte,mrpc", "seed=0,1"]


@pytest.mark.usefixtures("process")
def test_the_mnli_rows_wait_for_one_run_that_the_same_command_does_first(lora, capsys):
    words = mnli_rows(lora)
    runs = expand(words)
    (first,) = starts(runs)
    assert (first.row, first.task, first.seed, first.config["init_from"]) == ("lora", "mnli", 0, None)
    assert with_starts(runs) == [first, *runs]
    text = text_of(words)
    assert "plan: 5 runs on encoder" in text
    assert re.search(r"lora +0/1 +- +-\nlora_mnli +- +0/2 b +0/2 b\n", text)
    assert "missing 1 · blocked 4" in text
    waits = f"blocked: waits for LoRA r=8 on MNLI, seed 0 (run {run_id(first)}), which has not run here"
    assert f"{waits}, and is done first by the same command (4 runs)" in text
    done = call_here("runs", *words, check=0)
    ended = [line.split("] ")[1].split(", seed")[0] for line in done.stdout.splitlines() if ", last " in line]
    after = [f"LoRA r=8 from mnli on {task}" for task in ("RTE", "MRPC") for _ in range(2)]
    assert ended == ["LoRA r=8 on MNLI", *after]
    text = text_of(words)
    assert re.search(r"lora +1/1 +- +-\nlora_mnli +- +2/2 +2/2\n", text)
    record = read_record(record_path(runs[0].config["output"], run_id(runs[0])))
    assert record["start"] == {"from": "lora@mnli", "id": run_id(first)}
    assert record["label"]["row"] == "LoRA r=8 from mnli"
    assert record["cell"]["row"] == "lora_mnli"


def test_the_start_is_part_of_the_identity_and_of_the_row(lora):
    (plain,) = expand(lora)
    trained(lora)
    path = run_folder(plain.config["output"], run_id(plain)) / "adapter.safetensors"
    by_id, by_file = (expand([*lora, f"init_from={start}", "seed=1"])[0] for start in (run_id(plain), path))
    ids = {run_id(by_id), run_id(by_file), run_id(expand([*lora, "seed=1"])[0])}
    assert len(ids) == 3
    assert by_id.config["method"]["label"] == f"LoRA r=8 from run {run_id(plain)}"
    assert by_id.row == f"lora_from_run_{run_id(plain)}"
    assert (by_file.config["method"]["label"], by_file.row) == ("LoRA r=8 from adapter", "lora_from_adapter")
    before = run_id(by_file)
    moved = path.rename(path.with_name("moved.safetensors"))
    again = expand([*lora, f"init_from={moved}", "seed=1"])[0]
    assert again.row == "lora_from_moved"  # named after the file
    path.write_bytes(moved.read_bytes())
    assert run_id(by_file) == before  # but known by its content
    path.write_bytes(b"another")
    with pytest.raises(UserError, match="is not the file that the record"):
        start_file(by_id)
    swept = expand([*lora, "init_from=123e45678901,000000000000"])  # ids that look like numbers
    assert [run.config["init_from"] for run in swept] == ["123e45678901", "000000000000"]


def test_training_begins_with_the_start_and_a_fresh_head(lora):
    (plain,) = expand(lora)
    trained(lora)
    folder = run_folder(plain.config["output"], run_id(plain))
    kept = load_file(folder / "adapter.safetensors")
    (run,) = expand([*lora, f"init_from={run_id(plain)}", "seed=1"])
    model = Training(run, run_id(run), lambda event: None).raw_model
    attention = model.bert.encoder.layer[0].attention.self.query.changes["whole"]
    assert torch.equal(attention.B, kept["bert.encoder.layer.0.attention.self.query.B"])
    fresh = Training(expand([*lora, "seed=1"])[0], "x", lambda event: None).raw_model
    assert torch.equal(model.classifier.weight, fresh.classifier.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("method.alpha=16", "its alpha is 8, here it is 16"),
        ("method.rank=4", "its rank is 8, here it is 4"),
        ("method=vera", "its kind is lora, here it is vera"),
        ("method=none", "its kind is lora, here it is none"),
    ],
)
def test_a_start_of_other_settings_is_refused_before_anything_starts(change, message, lora):
    """Whether the start has run, or would be done first by the same command."""
    (plain,) = expand(lora)
    trained(lora)
    kept = [word for word in lora if word.partition("=")[0] != change.partition("=")[0]]
    for start in (run_id(plain), "lora@mnli"):
        with pytest.raises(vera.AdapterError, match=message):
            sweep.sweep(with_starts(expand([*kept, change, f"init_from={start}"])))


def test_what_a_start_kept_is_part_of_the_identity(lora):
    """The same run keeps another epoch's values by keep=last: whoever starts there is another run."""
    run = expand(mnli_rows(lora))[0]
    usual = run_id(run)
    assert run.start
    run.start.config["keep"] = "last"
    train(Training(run.start, run_id(run.start), lambda event: None))
    assert run_id(expand(mnli_rows(lora))[0]) != usual


def test_a_start_that_is_not_there_or_damaged_is_one_line(lora, tmp_path):
    file = tmp_path / "none.safetensors"
    for start, words in (("0123456789ab", "waits for run 0123456789ab, which"), (file, f"{file}: no such")):
        with pytest.raises(UserError, match=words) as error:
            sweep.sweep(expand([*lora, f"init_from={start}"]))
        assert "\n" not in str(error.value)
        assert "blocked 1" in text_of([*lora, f"init_from={start}"])
    (first,) = starts(expand(mnli_rows(lora)))
    path = record_path(first.config["output"], run_id(first))
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert "not a record" in text_of(mnli_rows(lora))


@pytest.mark.usefixtures("process")
def test_a_start_that_failed_or_kept_nothing_blocks_what_comes_after(lora, capsys):
    runs = expand(mnli_rows(lora))
    (first,) = starts(runs)
    sweep.sweep([first])
    path = record_path(first.config["output"], run_id(first))
    record = read_record(path)
    adapter = run_folder(first.config["output"], run_id(first)) / "adapter.safetensors"
    adapter.rename(adapter.with_suffix(".away"))
    assert "which kept none: delete" in text_of(mnli_rows(lora))
    adapter.with_suffix(".away").rename(adapter)
    write_record(first.config["output"], record | {"status": "diverged", "error": "loss became nan"})
    assert f"(run {run_id(first)}), which is diverged (4 runs)" in text_of(mnli_rows(lora))
    capsys.readouterr()
    outcome = sweep.sweep(with_starts(runs))
    assert outcome.exit_code == 1
    assert [error for _, error, _ in outcome.failed] == [
        f"waits for {first.label} (run {run_id(first)}), which is diverged"
    ] * 4
