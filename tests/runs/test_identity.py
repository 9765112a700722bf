"""A run is the same run wherever its files lie, and another one where what defines its
result differs.

Such as the adapter that it starts from. And what a record says of the code that it was
made with."""

import copy
import hashlib
import itertools
import os
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from running import ROOT, call_here, output_of, refused, replace_words, trained
from safetensors.torch import load_file

import tasks
import vera
from runs import models, plan
from runs.command.errors import Stop
from runs.config import expand
from runs.machine import hashes
from runs.record.folder import RecordFolder
from runs.record.ledger import read_record, record_path, run_folder, write_record
from runs.run import provenance
from runs.run.definition import runs_started_from, with_starts
from runs.run.identity import hash_files, identify, run_id, start_file, start_id
from runs.sweep import sweep
from runs.tracking.tracker import Tracking
from runs.training.loop import Training
from runs.training.train import attempt_run as attempt
from runs.training.train import train
from tasks.fetch import cache_folder

pytestmark = pytest.mark.properties


def identity(words) -> str:
    (run,) = expand(words)
    return run_id(run)


def with_value(run, key, value) -> str:
    """The id of a run with another value of its configuration."""
    config = copy.deepcopy(run.config)
    part, _, name = key.rpartition(".")
    (config[part] if part else config)[name] = value
    return run_id(replace(run, config=config))


def test_places_and_machinery_do_not_matter(words, tiny_bert, glue, tmp_path):
    same = {
        "output": "/x",
        "device": "auto",
        "micro_batch": 2,
        "eval_batch": 3,
        "checkpoint_minutes": 0,
    }
    same |= {
        "select": "crossfit",
        "debug": True,
        "keep": "none",
        "adapter_precision": "fp16",
    }
    same |= {
        "method.path": "factor",
        "method.weights": "recompute",
        "method.label": "x",
        "task.label": "x",
    }
    same |= {
        "model.path": str(shutil.copytree(tiny_bert, tmp_path / "model")),
        "task.bench": "x",
    }
    same |= {
        "task.data_dir": str(shutil.copytree(glue / "RTE", tmp_path / "data")),
        "task.workers": 7,
    }
    (run,) = expand(words)
    assert len(run_id(run)) == 12
    assert [
        key for key, value in same.items() if with_value(run, key, value) != run_id(run)
    ] == []


ANOTHER = {
    "seed": 1,
    "data_seed": 1,
    "method.projection_seed": 1,
    "method.rank": 9,
    "method.d_init": 0.2,
}
ANOTHER |= {
    "train.effective_batch": 9,
    "train.epochs": 9,
    "train.max_steps": 9,
    "train.lr": 2e-2,
}
ANOTHER |= {
    "train.precision": "bf16",
    "train.decay_all": True,
    "task.train_rows": 9,
    "task.holdout": 0.2,
}
ANOTHER |= {
    "model.revision": "0" * 40,
    "model.settings": {"a": 1},
    "model.quantise": "nf4",
    "model.dtype": "bf16",
}
ANOTHER |= {"task.revision": "0" * 40, "method.alpha": 2}


def test_what_defines_the_result_matters():
    """Known without the network, where the model and the data are pinned."""
    (run,) = expand(["model=roberta_base", "task=rte", "method=vera"])
    ids = {with_value(run, key, value) for key, value in ANOTHER.items()}
    assert (
        len(ids | {run_id(run), run_id(replace(run, row="another"))})
        == len(ANOTHER) + 2
    )
    assert [with_value(run, f"{of}.revision", None) for of in ("model", "task")] == [
        None,
        None,
    ]
    # At the value that was fixed before there was the key, it is the run of before; in
    # another family the key has been there from the beginning
    for words, later in (
        ("task=rte model=roberta_base", True),
        ("task=alpaca model=smollm2", False),
    ):
        (run,) = expand(words.split())
        ids = [
            with_value(run, "task.length_grouped", grouped) for grouped in (True, False)
        ]
        del run.config["task"]["length_grouped"]
        assert ids[0] != ids[1]
        assert (run_id(run) == ids[0]) == later
    # The way to alpha is no part of it
    lora = ["model=minilm", "task=reviews", "method=lora_r2"]
    ways = ("scaling=proportional",), ("alpha=2",), ("scaling=proportional", "alpha=2")
    assert (
        len({identity([*lora, *(f"method.{word}" for word in way)]) for way in ways})
        == 1
    )


def test_content_and_the_protocols_version_decide_not_the_name(
    words, tiny_bert, glue, tmp_path, monkeypatch
):
    for key, source in (("task.data_dir", glue / "RTE"), ("model.path", tiny_bert)):
        folder = shutil.copytree(source, tmp_path / key)
        place = replace_words(words, **{key: folder})
        before = identity(place)
        file = folder / {"model.path": "model.safetensors"}.get(key, "train.tsv")
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
        assert identity(place) != before
    before = identity(words)
    monkeypatch.setattr("tasks.glue.PROTOCOL", 99)
    assert identity(words) != before


def test_another_model_than_the_configuration_names_and_missing_data(
    words, tiny_roberta, glue, tmp_path
):
    other = ["model=roberta_base", f"model.path={tiny_roberta}", "task=rte"]
    other.append(f"task.data_dir={glue}")
    problem = "hidden_size is 32, roberta_base has 768. Another model?"
    with refused(f"{problem} (model=encoder recipe=roberta_base)"):
        identity([*other, "method=vera"])
    with refused(f"{problem} (model=encoder)"):
        identity([*other, "method=vera", "recipe=roberta_large"])
    with refused("task.data_dir"):
        identity(replace_words(words, **{"task.data_dir": tmp_path}))


@pytest.mark.parametrize("others", [0, 20])
def test_a_pipe_or_a_device_among_the_data_counts_as_missing_and_is_not_read(
    others, tmp_path
):
    os.mkfifo(tmp_path / "pipe")
    files = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero")}
    files |= {str(n): tmp_path / f"{n}.png" for n in range(others)}
    gone = dict.fromkeys(files, tmp_path / "gone")
    assert (
        hash_files(files) == hash_files(gone) != hash_files(gone | {"more": tmp_path})
    )


def test_of_many_runs_each_model_and_data_set_is_looked_at_once_whatever_the_seed(
    monkeypatch, glue, tiny_bert, tmp_path
):
    asked, source, locate = [], tasks.source, models.locate
    monkeypatch.setattr(
        tasks, "source", lambda settings: asked.append("data") or source(settings)
    )
    monkeypatch.setattr(
        models, "locate", lambda model: asked.append("model") or locate(model)
    )
    words = [
        "model=encoder",
        f"model.path={tiny_bert}",
        f"task.data_dir={glue}",
        "seed=0,1,2",
    ]
    runs = expand([*words, "task=rte,mrpc"])
    ids = identify(runs)
    assert sorted(asked) == ["data", "data", "model"]
    assert len(set(ids)) == 6
    assert ids == [run_id(run) for run in runs]  # each time anew
    assert len(asked) == 3 + 2 * 6
    # One that cannot be identified is refused, or a problem of its own
    runs[1] = expand([*words, "task=rte", "init_from=/nowhere.safetensors"])[0]
    with refused("no such file"):
        identify(runs)
    problems = {}
    assert identify(runs, problems) == [ids[0], None, *ids[2:]]
    assert problems == {1: "init_from=/nowhere.safetensors: no such file"}


def test_a_file_is_read_once_in_all_processes_and_a_damaged_note_of_it_is_none(
    tmp_path, monkeypatch
):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    expected, read = hashlib.sha256(b"weights").hexdigest(), []
    sha256 = hashes.files_sha256
    monkeypatch.setattr(
        hashes, "files_sha256", lambda path: read.append(path) or sha256(path)
    )
    for number, reads in enumerate((1, 1, 2)):
        assert hashes.file_hash(path) == hashes.file_hash(path) == expected
        assert len(read) == reads
        hashes.PROCESS_CACHE.clear()  # the next look is another process's
        if number == 1:
            (kept,) = [
                p
                for p in (cache_folder() / "sha256").iterdir()
                if expected in p.read_text()
            ]
            kept.write_text('"no hash"')
    path.write_bytes(b"others!")
    assert hashes.file_hash(path) != expected


# --- starting from another adapter: label, plan, order, and what is said while the start is not there


@pytest.fixture
def lora(words):
    """LoRA on the words' own task, two steps."""
    return [
        *(w for w in words if not w.startswith("method.")),
        "method=lora",
        "train.max_steps=2",
    ]


def text_of(runs) -> str:
    records = RecordFolder(runs[0].config["output"])
    return plan.plan_text(plan.plan(with_starts(runs), records), records)


def mnli_rows(words):
    others = [word for word in words if not word.startswith(("method=", "task="))]
    return [*others, "method=lora_mnli", "task=rte,mrpc", "seed=0,1"]


@pytest.mark.usefixtures("process")
def test_the_mnli_rows_wait_for_one_run_that_the_same_command_does_first(lora, capsys):
    words = mnli_rows(lora)
    runs = expand(words)
    (first,) = runs_started_from(runs)
    assert (first.row, first.task, first.seed, first.config["init_from"]) == (
        "lora",
        "mnli",
        0,
        None,
    )
    assert with_starts(runs) == [first, *runs]
    text = text_of(runs)
    assert re.search(r"lora +0/1 +- +-\nlora_mnli +- +0/2 b +0/2 b\n", text)
    assert "missing 1 · blocked 4" in text
    waits = f"blocked: waits for LoRA r=8 on MNLI, seed 0 (run {run_id(first)}), which has not run here"
    assert f"{waits} to its end, and is done first by the same command (4 runs)" in text
    done = call_here("runs", *words, check=0)
    ended = [
        line.split("] ")[1].split(", seed")[0]
        for line in done.stdout.splitlines()
        if ", last " in line
    ]
    after = [
        f"LoRA r=8 from mnli on {task}" for task in ("RTE", "MRPC") for _ in range(2)
    ]
    assert ended == ["LoRA r=8 on MNLI", *after]
    text = text_of(runs)
    assert re.search(r"lora +1/1 +- +-\nlora_mnli +- +2/2 +2/2\n", text)
    record = read_record(record_path(runs[0].config["output"], run_id(runs[0])))
    assert record["start"] == {"from": "lora@mnli", "id": run_id(first)}


def test_the_start_is_part_of_the_identity_and_of_the_row(lora):
    start = trained(lora)["id"]
    path = run_folder(output_of(lora), start) / "adapter.safetensors"
    by_id, by_file = (
        expand([*lora, f"init_from={of}", "seed=1"])[0] for of in (start, path)
    )
    before = run_id(by_file)
    assert start_id(by_id) == start  # alone, where it kept the best epoch as it was
    assert len({run_id(by_id), before, run_id(expand([*lora, "seed=1"])[0])}) == 3
    for run, name, row in (
        (by_id, f"run {start}", f"run_{start}"),
        (by_file, "adapter", "adapter"),
    ):
        assert (run.config["method"]["label"], run.row) == (
            f"LoRA r=8 from {name}",
            f"lora_from_{row}",
        )
    moved = path.rename(path.with_name("moved.safetensors"))
    again = expand([*lora, f"init_from={moved}", "seed=1"])[0]
    assert again.row == "lora_from_moved"  # named after the file
    path.write_bytes(moved.read_bytes())
    assert run_id(by_file) == before  # but known by its content
    path.write_bytes(b"another")
    with refused("is not the file that the record"):
        start_file(by_id)
    # ids that look like numbers
    swept = expand([*lora, "init_from=123e45678901,000000000000"])
    assert [run.config["init_from"] for run in swept] == [
        "123e45678901",
        "000000000000",
    ]


def test_training_begins_with_the_start_and_a_fresh_head(lora):
    start = trained(lora)
    kept = load_file(run_folder(output_of(lora), start["id"]) / "adapter.safetensors")
    begun, fresh = (
        Training(expand([*lora, *more, "seed=1"])[0], "x", lambda event: None).raw_model
        for more in ([f"init_from={start['id']}"], [])
    )
    attention = begun.bert.encoder.layer[0].attention.self.query.changes["whole"]
    assert torch.equal(attention.B, kept["bert.encoder.layer.0.attention.self.query.B"])
    assert torch.equal(begun.classifier.weight, fresh.classifier.weight)


def test_a_start_of_other_settings_is_refused_before_anything_starts(lora):
    """Whether the start has run, or would be done first by the same command."""
    (plain,) = expand(lora)
    trained(lora)
    for start in (run_id(plain), "lora@mnli"):
        with pytest.raises(vera.AdapterError, match="its alpha is 8, here it is 16"):
            sweep.preflight(
                with_starts(expand([*lora, "method.alpha=16", f"init_from={start}"]))
            )


def test_a_start_that_is_not_there_is_damaged_failed_or_kept_nothing_blocks_what_comes_after(
    lora, tmp_path
):
    file = tmp_path / "none.safetensors"
    for start, named in (
        ("0123456789ab", "waits for run 0123456789ab, which"),
        (file, f"{file}: no such"),
    ):
        with refused(named):
            sweep.sweep(expand([*lora, f"init_from={start}"]))
        assert "blocked 1" in text_of(expand([*lora, f"init_from={start}"]))
    runs = expand([*mnli_rows(lora)[:-2], "task=rte", "seed=0,1"])
    (first,), usual = runs_started_from(runs), run_id(runs[0])
    output, found = first.config["output"], run_id(first)
    train(Training(first, found, lambda event: None))
    path, folder = record_path(output, found), run_folder(output, found)
    record = read_record(path)
    assert run_id(runs[0]) == usual
    (folder / "adapter.safetensors").rename(folder / "away")
    assert "which kept none: delete" in text_of(runs)
    (folder / "away").rename(folder / "adapter.safetensors")
    write_record(output, record | {"status": "diverged", "error": "loss became nan"})
    waits = f"waits for {first.label} (run {found}), which is diverged"
    assert f"{waits} (2 runs)" in text_of(runs)
    assert attempt(runs[0], usual, [], Stop(), Tracking("off"), True) == (
        "failed",
        waits,
    )
    # keep=last keeps another epoch's values: whoever starts there is another run
    write_record(output, record | {"config": record["config"] | {"keep": "last"}})
    assert run_id(runs[0]) != usual
    path.write_text("{")
    assert (
        "has not run here to its end, and is done first by the same command"
        in text_of(runs)
    )


# --- the code that a record was made with


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout of its own, with a committed method, in the place of this one; git
    is asked anew each time, as by another command."""
    root = tmp_path / "checkout"
    for folder in (
        "vera/methods",
        "tasks/deep",
        "runs/records/study",
        "conf",
        "outputs/runs",
    ):
        (root / folder).mkdir(parents=True)
    for path in ("vera/methods/mine.py", "runs/records/study/records.jsonl"):
        (root / path).write_text("one\n")
    (root / ".gitignore").write_text("outputs/\n*.pyc\n*_own.py\n")
    subprocess.run(["git", "-C", str(root), "init", "-q"], check=True)
    monkeypatch.setattr(provenance, "ROOT", root)
    monkeypatch.setattr(provenance, "HASHES_AT_START", {})
    for name in ("code_state", "_is_uncommitted"):
        monkeypatch.setattr(provenance, name, getattr(provenance, name).__wrapped__)
    commit(root)
    return root


def commit(root, *paths):
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["add", *map(str, paths or ["."])], [*who, "commit", "-qm", "two"]):
        subprocess.run(
            ["git", "-C", str(root), *words], check=True, capture_output=True
        )


def changed_method_source(source):
    return provenance.changed_sources({"code": {"sources": {"method": source}}})


def test_untracked_code_is_dirty_and_outside_a_checkout_nothing_is_known(checkout):
    # which is tracked
    code = [
        "vera/methods/new.py",
        "conf/method.yaml",
        "tasks/deep/new.py",
        ".gitignore",
    ]
    # tracked, the last
    records = [f"runs/records/study/{name}s.jsonl" for name in ("measure", "record")]
    others = [*records, "outputs/runs/x.json", "vera/x.pyc", "notes.txt"]
    assert provenance.code_state()["dirty"] is False
    for path in (*others, *code):
        (checkout / path).write_text("new\n")
        state = provenance.code_state()
        assert (path, state["dirty"], len(state["commit"])) == (path, path in code, 40)
        (checkout / path).unlink()
    shutil.rmtree(checkout / ".git")
    assert provenance.code_state() == {"commit": None, "dirty": None}
    assert (
        provenance._describe_source(checkout / "vera/methods/mine.py")["uncommitted"]
        is None
    )


def test_a_record_names_its_source_files(words):
    found = trained([*words, "train.max_steps=1"])["code"]["sources"]
    named = {part: (source["file"], source["sha256"]) for part, source in found.items()}
    files = {"method": "vera/methods/vera.py", "task": "tasks/glue.py"}
    assert named == {
        part: (file, provenance._short_hash(ROOT / file))
        for part, file in files.items()
    }


def test_a_source_that_was_committed_both_times_or_moved_is_no_difference(checkout):
    """A file for each way: committed or edited before a run, and now so, the same or
    moved."""
    ways = itertools.product(
        ("committed", "edited"), ("committed", "edited", "same", "moved")
    )
    files = {way: checkout / "vera/methods" / f"{'_'.join(way)}.py" for way in ways}
    for path in files.values():
        path.write_text("one\n")
    commit(checkout)
    for (before, _), path in files.items():
        path.write_text("one\n" if before == "committed" else "edited\n")
    sources = {way: provenance._describe_source(path) for way, path in files.items()}
    assert all(
        source["uncommitted"] is (before == "edited")
        for (before, _), source in sources.items()
    )
    for (_, now), path in files.items():
        if now == "moved":
            path.rename(path.with_suffix(".other"))
        elif now != "same":
            path.write_text("two\n")
    commit(checkout, *(path for (_, now), path in files.items() if now == "committed"))
    ways = [("committed", "edited"), ("edited", "committed"), ("edited", "edited")]
    told = {way: [f"vera/methods/{'_'.join(way)}.py"] for way in ways}
    assert {
        way: found
        for way, source in sources.items()
        if (found := changed_method_source(source))
    } == told
    # an older record
    assert provenance.changed_sources({"code": {"commit": "c", "dirty": True}}) == []


IMPORTS = [
    "from vera.methods.layer import f",
    "from vera.methods import (\n    layer,\n)",
    "import layer",
]
IMPORTS += ["from .layer import f", "def f():\n    import layer as it"]


def test_a_module_beside_it_that_the_file_imports_counts_too(checkout):
    """And one that this one imports; another file of the folder does not."""
    mine, layer, inner, other = (
        checkout / "vera/methods" / f"{name}.py"
        for name in ("mine", "layer", "inner", "other")
    )
    layer.write_text("from vera.methods.inner import g\n")
    inner.touch(), other.touch()
    for line in IMPORTS:
        mine.write_text(f"import os\n{line}\n")
        assert provenance.imports_of(mine) == [inner, layer], line
    commit(checkout)
    source = provenance._describe_source(mine)
    other.write_text("edited\n")
    assert changed_method_source(source) == []
    inner.write_text("edited\n")
    assert changed_method_source(source) == [
        "a module that vera/methods/mine.py imports"
    ]
    # an older one
    assert (
        changed_method_source(
            {key: value for key, value in source.items() if key != "imports"}
        )
        == []
    )
    commit(checkout)
    assert changed_method_source(source) == []  # committed both times


def test_a_file_that_git_ignores_is_in_no_commit_and_one_of_another_kind_is_no_code(
    checkout,
):
    (checkout / "tasks/deep/__init__.py").write_text("one\n")
    commit(checkout)
    for path in (
        "tasks/deep/compiled.pyc",
        "vera/methods/my_own.py",
        "vera/methods/méthode.py",
    ):
        (checkout / path).write_text("one\n")
    states = {
        "my_own.py": True,
        "méthode.py": True,
        "mine.py": False,
        "../../tasks/deep": False,
    }
    paths = {name: (checkout / "vera/methods" / name).resolve() for name in states}
    assert {
        name: provenance._describe_source(path)["uncommitted"]
        for name, path in paths.items()
    } == states


def test_an_edit_or_a_commit_while_a_sweep_goes_on_is_in_no_run_of_it(
    checkout, monkeypatch
):
    """Its runs are forked from a process that has imported the file, and asked git, as
    it was."""
    path, ask = checkout / "vera/methods/mine.py", provenance.code_state
    monkeypatch.setattr(provenance, "code_state", cache(ask))
    before, began = provenance._short_hash(path), provenance.code_state()
    # Edited as it was imported, and since then as it is committed
    monkeypatch.setattr(provenance, "HASHES_AT_START", {path: "0" * 16})
    assert provenance._describe_source(path)["uncommitted"] is True
    monkeypatch.setattr(provenance, "HASHES_AT_START", {path: before})
    path.write_text("two\n")
    source = provenance._describe_source(path)
    assert (source["sha256"], source["uncommitted"]) == (before, True)
    commit(checkout)
    monkeypatch.setattr(provenance, "HASHES_AT_START", {})
    assert (
        provenance.code_state(),
        provenance._describe_source(path)["uncommitted"],
    ) == (
        began,
        True,
    )
    monkeypatch.setattr(provenance, "code_state", ask)  # the next command
    assert provenance.code_state() != began
    path.write_text("three\n")
    assert changed_method_source(source) == ["vera/methods/mine.py"]
