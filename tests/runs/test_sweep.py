"""The commands, as a user types them: what they print, what they leave behind, and how they end."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ledgers
import pytest
from running import ODD, ROOT, ForkNow, call, call_here, do, elsewhere, output_of, trained
from tiers import sample

from runs import evaluate, plan, publish
from runs.config import expand
from runs.config.files import Files
from runs.errors import UserError
from runs.forecast import cost
from runs.identity import run_id
from runs.record import read_ledger, read_record, record_path, run_folder, sweep_up_dead, write_record
from runs.sweep import attempt, display, executor, jobs, sweep
from runs.sweep.preflight import preflight
from runs.sweep.progress import write_attempts
from runs.tracking import Tracking


@pytest.mark.usefixtures("process")
def test_a_sweep_runs_skips_and_survives_a_failure(words):
    sweep_words = [*words, "seed=0,1", "train.max_steps=2"]
    first = call("runs", *sweep_words, check=0)
    before, line, _ = first.stdout.partition("[1/2] VeRA r=8 seed 0  epoch 1/1")
    assert line  # max_steps cuts its epoch short
    assert "note: no recipe for this method and model: the harness's defaults (vera on rte)\n" in before
    assert "2 runs in" in first.stdout
    assert "2 done, 0 already there" in first.stdout
    assert "  all stopped early by train.max_steps: in no table\n" in first.stdout
    records = list((Path(output_of(words)) / "records").glob("*.json"))
    assert len(records) == 2
    stamps = [p.stat().st_mtime_ns for p in records]
    again = call_here("runs", *sweep_words, check=0)
    assert again.stdout.count("already done (accuracy") == 2
    assert [p.stat().st_mtime_ns for p in records] == stamps
    # A site that this model lacks fails its run; the others go on; the exit code says so.
    mixed = call_here("runs", *sweep_words, "method.sites=[query],[qeury],[value]", check=1)
    assert mixed.stdout.count("FAILED: no linear layer is a 'qeury' site") == 2
    assert "4 done, 0 already there, 2 failed" in mixed.stdout
    assert "Traceback" not in mixed.stdout + mixed.stderr
    ledger = read_ledger(output_of(words), published=False)
    assert sorted(r["status"] for r in ledger) == ["done"] * 6 + ["failed"] * 2


def test_what_a_recipe_lacks_for_a_task_is_printed_before_the_first_run(words, capsys):
    (run,) = expand(words)
    known = {"lr": 1e-3, "lr_head": 1e-3, "epochs": 1, "by_task": {}}
    elsewhere_ = {key: {"cola": value} for key, value in known.items() if key == "lr"}
    recipe = {"lr_head": 1e-3, "epochs": 1, "by_task": elsewhere_}
    lacks = replace(run, recipe="vera/mine", config=run.config | {"recipe": recipe}, changed=[])
    knows = replace(lacks, config=run.config | {"recipe": known}, seed=1)
    preflight([lacks, replace(lacks, seed=2), knows])
    note = "note: the recipe has no lr for this task: the harness's defaults (vera on rte)\n"
    assert note in capsys.readouterr().out
    preflight([knows])
    assert "harness" not in capsys.readouterr().out


def test_a_log_shows_before_the_first_epoch_ends_that_a_run_goes_on(words, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("runs.sweep.display.time.monotonic", lambda: now[0])
    show = display.Display(1, name_task=False)
    show.live = False  # as in a file or a pipe
    show.start(1, expand(words)[0])
    event = {"epoch": 1, "epochs": 2, "steps": 200, "loss": 0.5, "metric": None, "pace": 900.0, "unit": "tok"}
    for seconds in (1, 29, 31, 32, 90, 92):
        now[0] = 1000.0 + seconds
        show.show(event | {"phase": "training", "step": seconds, "seconds_left": 60})
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("seed 0  ")[2] for line in lines] == [
        f"epoch 1/2  step {step}/200  left: run 1m00s, all 1m00s" for step in (31, 92)
    ]
    show.later, show.unknown = 30, 2
    show.show(event | {"phase": "evaluated", "step": 200, "seconds_left": 60})
    assert capsys.readouterr().out.endswith("left: run 1m00s, all 1m30s and 2 runs not timed yet\n")
    show.later = 0
    show.show(event | {"phase": "evaluated", "step": 200, "seconds_left": 60})
    assert capsys.readouterr().out.endswith("left: run 1m00s\n")
    # Without an event, too
    show.show({"phase": "decoding", "done": 3, "of": 8, "seconds_left": None})
    for seconds in (59, 61, 62, 122):
        now[0] = 1092.0 + seconds
        show.remind()
    assert capsys.readouterr().out == f"{show.head}  decoding 3/8\n" * 2
    board = display.Board(4, name_task=False)
    board.live = False
    for seconds in (0, 31, 32, 92):
        now[0] = 2000.0 + seconds
        board.state(3, [{"seconds_left": 60.0}], 2)
    line = "[1/4]  1 running on 2 executors  the longest of them: 1m00s\n"
    assert capsys.readouterr().out == line * 2


def test_a_line_has_the_words_that_tell_its_run_from_the_others_and_no_word_twice():
    words = ["model=roberta_base", "task=rte", "method=lora,peft:IA3Config,peft:LNTuningConfig"]
    assert set(jobs.distinguishing_words(expand([*words, "seed=0,1"]))) == {""}  # labels and seeds do
    rates = jobs.distinguishing_words(expand([*words, "train.lr=1e-3,1e-2"]))
    assert set(rates) == {"train.lr=0.001", "train.lr=0.01"}


def test_a_log_names_once_a_minute_who_else_does_a_run(words, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr("runs.sweep.executor.time.monotonic", lambda: now[0])
    (run,) = expand(words)
    show = display.Display(1, name_task=False)
    holder = {"host": "elsewhere", "pid": 7}
    watching = SimpleNamespace(display=show, watcher=SimpleNamespace(holder=lambda _: holder))
    for live, lines in ((False, 3), (True, 1)):
        show.live, next_word = live, {}
        for _ in range(121):
            now[0] += 1
            executor.Executor._show_waiting(watching, [jobs.Job(1, run, "x")], next_word)
        assert capsys.readouterr().out.count("waiting for it\n") == lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["model=robertta_base"], "error: no model 'robertta_base'. Did you mean roberta_base?"),
        (["method.rank=0"], "error: rank must be a whole number of at least 1, got 0"),
        pytest.param(
            ["method.sites=[qeury]"],
            "error: no linear layer is a 'qeury' site of this model. It has: dense, key, query, value,"
            " all-linear",
            marks=pytest.mark.slow("process"),
        ),
        (["model.path=/nowhere"], "error: /nowhere: no such folder (model.path)"),
        (["task.data_dir=/nowhere"], "error: /nowhere: no such folder (task.data_dir)"),
        pytest.param(
            ["device=cuda"],
            "error: device=cuda: no GPU is here that torch sees",
            marks=pytest.mark.slow("process"),
        ),
        (
            ["--nonsense"],
            "error: no option --nonsense; settings are KEY=VALUE, such as output=FOLDER",
        ),
        (["seed=0,0"], "seed 0 appears twice in this sweep"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(change, message, words, monkeypatch):
    if change == ["device=cuda"]:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device here")
    kept = [w for w in words if w.partition("=")[0] not in {c.partition("=")[0] for c in change}]
    # What is found last has a process of its own: nothing that is imported on the way says a word.
    done = (call if change == ["method.sites=[qeury]"] else call_here)("runs", *kept, *change, check=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (Path(output_of(words)) / "records").exists()


def test_without_hub_and_path_the_way_out_is_named(glue, tmp_path):
    done = call_here(
        "runs", "model=roberta_base", "task=rte", f"task.data_dir={glue}", f"output={tmp_path}", check=2
    )
    assert "FacebookAI/roberta-base is not on this machine and the hub cannot be reached" in done.stderr
    assert "model.path=/where/roberta-base" in done.stderr


@pytest.mark.usefixtures("process")
def test_weights_that_are_damaged_or_of_another_model(words, tiny_bert, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    there = [f"model.path={folder}" if w.startswith("model.path") else w for w in words]
    assert "cannot be loaded" in call_here("runs", *there, check=2).stderr
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text(json.dumps(config))
    lacking = call_here("runs", *there, check=2).stderr
    assert "the weights lack bert.encoder.layer.2" in lacking


@pytest.mark.usefixtures("process")
def test_debug_shows_the_traceback(words):
    done = call(
        "runs", *[w for w in words if not w.startswith("method.")], "method.sites=[qeury]", "debug=true"
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.usefixtures("process")
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(words):
    long = [*words, "train.epochs=2000", "checkpoint_minutes=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "runs", *long],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    (run,) = expand(long)
    checkpoint = Path(run.config["output"]) / "runs" / run_id(run) / "checkpoint.safetensors"
    while not checkpoint.is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted. Finished runs are kept; the same command goes on where it was." in errors
    assert "Traceback" not in errors
    assert checkpoint.is_file()
    assert [p.state for p in plan.plan([run], read_ledger(run.config["output"], published=False))] == [
        "partial"
    ]


@pytest.mark.usefixtures("process")
def test_a_full_disk_is_one_line_and_the_records_before_it_stay(words, monkeypatch, capsys):
    """The run's process meets a full disk when it writes its checkpoint."""
    from runs.__main__ import main
    from runs.command import entry_point

    (first,) = expand([*words, "train.max_steps=1"])
    sweep.sweep([first])
    before = record_path(output_of(words), run_id(first)).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attempt.multiprocessing, "get_context", lambda _: ForkNow())
    monkeypatch.setattr("runs.training.checkpoint.os.fsync", full)
    monkeypatch.setattr(executor, "ROOM", (0,))
    monkeypatch.setattr(sys, "argv", ["runs", *words, "seed=1", "train.max_steps=1"])
    with pytest.raises(SystemExit) as ended:
        entry_point(main)
    assert ended.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert (
        message
        == "error: No space left on device. Finished runs are kept; make room and run the same command again"
    )
    assert record_path(output_of(words), run_id(first)).read_bytes() == before
    assert [p.name for p in record_path(output_of(words), "x").parent.iterdir()] == [f"{run_id(first)}.json"]


@pytest.mark.usefixtures("process")
def test_a_file_that_cannot_grow_is_one_line_too(words):
    """For real: the operating system refuses to write more than 60 KB to any file (the checkpoint is
    larger)."""
    import resource

    done = subprocess.run(
        [sys.executable, "-m", "runs", *words, "method.rank=2000"],
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path(output_of(words)).glob("records/*"))
    assert not list(Path(output_of(words)).glob("runs/*/.*"))  # no half-written file stays


@pytest.mark.usefixtures("process")
def test_a_killed_process_is_a_failed_run_and_the_next_one_goes_on(words, monkeypatch):
    runs = expand([*words, "seed=0,1", "train.max_steps=1"])

    def kill_the_first(run, *rest):
        if run.seed == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sweep_child(run, *rest)

    sweep_child = attempt._child
    monkeypatch.setattr(attempt.multiprocessing, "get_context", lambda _: ForkNow())
    monkeypatch.setattr(attempt, "_child", kill_the_first)
    outcome = sweep.sweep(runs)
    assert (outcome.done, len(outcome.failed), outcome.exit_code) == (1, 1, 1)
    assert "killed (signal 9; out of memory?)" in outcome.failed[0][1]
    assert read_record(record_path(output_of(words), run_id(runs[0])))["status"] == "failed"


# --- plan, publish, evaluate


def test_the_plan_says_where_each_run_stands(words):
    every = [*words, "seed=0,1,2,3", "train.max_steps=2"]
    runs = expand(every)
    output = output_of(words)
    assert "missing 4" in call_here("runs.plan", *every, check=0).stdout
    record = trained([*words, "seed=0", "train.max_steps=2"])
    write_record(output, record | {"id": run_id(runs[1]), "status": "failed", "error": "it broke"})
    write_record(output, record | {"id": run_id(runs[2]), "status": "diverged"})
    text = call_here("runs.plan", *every, check=0).stdout
    assert "1 task x 1 row x 4 seeds = 4 runs on encoder" in text
    assert "2/4 df" in text
    assert "done 1 · diverged 1 · failed 1 · missing 1" in text
    assert "from 1 finished run)" in text
    assert "failed: VeRA r=8 on RTE, seed 1: it broke" in text
    blocked = [f"model.path={Path(output) / 'none'}" if w.startswith("model.path") else w for w in every]
    nothing = call_here("runs.plan", *blocked, check=0).stdout
    assert "blocked 4" in nothing
    assert "nothing that can be done yet" in nothing
    unknown = call_here("runs.plan", "model=roberta_base", "model.revision=null", "task=rte", check=0).stdout
    assert "0/1 ?" in unknown
    assert "has no pinned revision" in unknown


def test_the_plan_says_that_cells_have_finished_on_other_data(words, tmp_path):
    record = trained([*words, "train.epochs=1"])
    folder = tmp_path / "other" / "RTE"
    shutil.copytree(Path(record["config"]["task"]["data_dir"]) / "RTE", folder)
    lines = (folder / "dev.tsv").read_text().splitlines(keepends=True)
    (folder / "dev.tsv").write_text("".join(lines[:-1]))
    ledger = read_ledger(output_of(words))
    for place, told in ((record["config"]["task"]["data_dir"], 0), (folder.parent, 1)):
        runs = expand([*elsewhere(words, **{"task.data_dir": place}), "train.epochs=2"])
        text = plan.text(plan.plan(runs, ledger), ledger)
        said = "missing: 1 run of which the cell has finished on data of other content: task.data_dir= names"
        assert text.count(said) == told


#: Presets, their cells and their seeds.
WHOLE = [("table3_large", 5, 3), ("table2_base", 36, 5)]


@pytest.mark.parametrize(("paper", "cells", "seeds"), sample(WHOLE, WHOLE[0]))
def test_the_plan_of_a_whole_table_composes_each_cell_once(paper, cells, seeds, monkeypatch, tmp_path):
    """Composing is what a plan's time goes into: not once for each seed, and not at all the second time."""
    composed = []
    once = Files.compose
    monkeypatch.setattr(
        Files, "compose", lambda files, overrides: composed.append(overrides) or once(files, overrides)
    )
    runs = expand([f"experiment={paper}", f"output={tmp_path}"])
    assert len(runs) == cells * seeds
    # The cells, the preset itself, and the defaults that types are checked against
    assert len(composed) < cells + 5
    composed.clear()
    assert expand([f"experiment={paper}", f"output={tmp_path}"]) == runs
    assert not composed


def test_runs_on_a_part_of_the_data_are_no_measure_of_the_whole_but_by_their_flops(words):
    small = [*words, "task.train_rows=16", "task.dev_rows=8"]
    trained(small)
    assert "est. " in call_here("runs.plan", *small, "seed=1", check=0).stdout
    text = call_here("runs.plan", *words, check=0).stdout
    assert "(FLOPs at the rate of 1 finished run of other cells on this device)" in text


def test_a_run_without_steps_is_no_measure_of_others(words):
    """method=none is evaluated once: nothing can be told from it of a run that trains, and the plan says
    so."""
    plain = [w for w in words if not w.startswith("method.")]
    trained([*plain, "method=none"])
    assert "no estimate" in call_here("runs.plan", *plain, "method=lora", check=0).stdout
    assert "est. " in call_here("runs.plan", *plain, "method=none", "seed=1", check=0).stdout


def test_a_head_that_trains_alone_is_no_measure_of_others(words):
    """Its features may be computed once."""
    head = trained([*(w for w in words if not w.startswith("method.")), "method=head"])
    (run,) = expand(words)
    assert cost._like(run, [head]) == []
    (other,) = expand([*(w for w in words if not w.startswith("method.")), "method=head", "seed=1"])
    assert cost._like(other, [head]) == [head]


def test_an_estimate_goes_by_steps_not_by_runs(words):
    """A trial of 2 steps is no measure of a run of 10: its pace is."""
    (trial,) = expand([*words, "train.max_steps=2"])
    record = trained([*words, "train.max_steps=2"])
    record["cost"] |= {"train_seconds": 4.0, "evaluate_seconds": 3.0}
    (whole,) = expand(words)  # 2 epochs of 5 steps
    assert cost._seconds(cost.Left(whole), record) == pytest.approx(10 * 2.0 + 2 * 3.0)
    assert cost._seconds(cost.Left(trial), record) == pytest.approx(2 * 2.0 + 3.0)


def test_publishing_copies_finished_records(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path / "published")
    runs = expand([*words, "seed=0,1"])
    for more in (["seed=0"], ["seed=1"], ["train.max_steps=1"]):  # the last one is a trial, and stays here
        trained([*words, *more])
    failed = read_record(record_path(output_of(words), run_id(runs[1])))
    write_record(output_of(words), failed | {"status": "failed"})
    done = read_record(record_path(output_of(words), run_id(runs[0])))
    done["code"]["dirty"] = False
    for source in done["code"]["sources"].values():
        source["uncommitted"] = False
    write_record(output_of(words), done)
    assert publish.main(["my_study", f"output={output_of(words)}"]) == 0
    assert "1 record in runs/records/my_study\n" in capsys.readouterr().out
    done["code"]["sources"]["method"]["uncommitted"] = None  # of another repository
    write_record(output_of(words), done)
    assert publish.main(["my_study", f"output={output_of(words)}"]) == 0
    assert "(1 made with code that is in no commit of this repository)" in capsys.readouterr().out
    published = list((tmp_path / "published" / "my_study").glob("*.json"))
    assert [p.stem for p in published] == [run_id(runs[0])]
    assert str(tmp_path) not in published[0].read_text()
    elsewhere = read_ledger(tmp_path / "nothing")
    assert elsewhere.origin == {run_id(runs[0]): "my_study"}
    assert read_ledger(output_of(words)).origin[run_id(runs[0])] == "ours"
    copy = tmp_path / "copy" / "records" / published[0].name
    copy.parent.mkdir(parents=True)
    copy.write_bytes(published[0].read_bytes())
    assert read_ledger(tmp_path / "copy").origin == {run_id(runs[0]): "my_study"}
    from runs.errors import UserError

    with pytest.raises(UserError, match=r"no finished record to publish in .*: what is there was copied"):
        publish.main(["again", f"output={tmp_path / 'copy'}"])
    # As a run leaves it whose record names no path
    (tmp_path / "copy" / "runs" / run_id(runs[0])).mkdir(parents=True)
    assert read_ledger(tmp_path / "copy").origin == {run_id(runs[0]): "ours"}
    with pytest.raises(UserError, match="a name of a-z"):
        publish.main(["../up", f"output={output_of(words)}"])
    with pytest.raises(UserError, match="no finished record"):
        publish.main(["my_study", f"output={tmp_path / 'nothing'}"])


def test_a_finished_run_is_checked_from_its_files(words, capsys):
    found = trained(words)["id"]
    assert evaluate.main([found[:6], f"output={output_of(words)}"]) == 0
    assert "the same" in capsys.readouterr().out
    adapter = Path(output_of(words)) / "runs" / found / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:200])
    done = call_here("runs.evaluate", found, f"output={output_of(words)}", check=2)
    assert "adapter.safetensors: damaged, or not a file of the format" in done.stderr.splitlines()[-1]
    adapter.unlink()
    # Or a record that was copied
    told = call_here("runs.evaluate", found, f"output={output_of(words)}", check=2).stderr
    assert "is not there: the run kept one, where it was done (its record is" in told
    assert told.strip().endswith("redo=true")
    none = trained([*words, "train.epochs=1", "keep=none"])
    told = call_here("runs.evaluate", none["id"], f"output={output_of(words)}", check=2).stderr
    assert "the run kept none (its record is" in told
    assert " keep=best " in told
    assert (
        "no records begin with 'zzz'"
        in call_here("runs.evaluate", "zzz", f"output={output_of(words)}", check=2).stderr
    )


KINDS = ["none", "adapter_p", "lora_fa", "vera_unique", "adalora", "bitfit", "lora_xs", "nola", "dylora"]
FROZEN = ("lora_fa", "vera_unique", "lora_xs", "nola")


@pytest.mark.parametrize("method", sample(KINDS, "none", "lora_fa"))
def test_any_method_is_checked_from_its_files(method, words, capsys):
    plain = [w for w in words if not w.startswith("method.")]
    record = trained([*plain, f"method={method}"])
    assert evaluate.main([record["id"], f"output={output_of(words)}"]) == 0
    assert (record["steps"] == 0) == (method == "none")
    assert record["parameters"]["adapter"] == record["parameters"]["formula"]
    assert (record["parameters"]["frozen_extra"] > 0) == (method in FROZEN)


DIFFER = r"Outputs of (\d+) dev rows differ by at most ([\d.e+-]+); the largest is ([\d.e+-]+)\."


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_merged_model_differs_by_float32s_rounding_whatever_the_run_computed_in(
    precision, words, tmp_path, capsys
):
    from runs.export import __main__ as export

    found = trained([*words, "train.lr=1", f"train.precision={precision}"])["id"]
    assert export.main([found, "merged", str(tmp_path / "merged"), f"output={output_of(words)}"]) == 0
    _, differ, largest = map(float, re.search(DIFFER, capsys.readouterr().out).groups())
    assert differ < 1e-5 * largest


def test_an_adapter_goes_elsewhere(words, tiny_bert, tmp_path, capsys, monkeypatch):
    """To peft, into a plain model folder, and into half precision: each answers as the run's own files do."""
    import peft
    import torch
    from tiny import answer
    from transformers import AutoModelForSequenceClassification

    from runs.export import __main__ as export
    from vera.methods.vera_layer import VeRAChange

    found, output = trained([*words, "train.lr=1"])["id"], f"output={output_of(words)}"
    for form in ("peft", "merged", "fp16", "bf16"):
        assert export.main([found, form, str(tmp_path / form), output]) == 0
    printed = capsys.readouterr().out
    assert f"where base is the model of {tiny_bert}" in printed
    files = [*tmp_path.rglob("*.safetensors"), tmp_path / "fp16", tmp_path / "peft" / "adapter_config.json"]
    assert len({path.stat().st_mode for path in files}) == 1  # for others in a shared folder, too
    assert "from the fp16 file" in printed
    rows, differ, largest = map(float, re.search(DIFFER, printed).groups())
    assert rows == 24
    assert differ < 1e-5 * largest
    # A change whose weight() says another thing than its forward; then a merge of another model, untried
    real = VeRAChange.weight
    monkeypatch.setattr(VeRAChange, "weight", lambda change: -50 * real(change))
    done = call_here("runs.export.__main__", found, "merged", str(tmp_path / "wrong"), output, check=2)
    assert "VeRAChange.forward is not x @ weight().T" in done.stderr
    monkeypatch.setattr("vera.methods.contract.check_changes", lambda layers: None)
    done = call_here("runs.export.__main__", found, "merged", str(tmp_path / "wrong"), output, check=2)
    assert f"run {found} is not written: merged, it is another model. Outputs of 24 dev rows" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "wrong").exists()
    monkeypatch.undo()
    expected = answer(
        evaluate.restore(read_record(record_path(output_of(words), found)), output_of(words)).raw_model.eval()
    )
    named = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (named["base_model_name_or_path"], named["revision"]) == (tiny_bert.name, None)
    for form in ("peft", "merged"):
        assert not [
            path for path in (tmp_path / form).glob("*.json") if str(tiny_bert.parent) in path.read_text()
        ]
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(answer(merged), expected, atol=1e-4)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2).eval()
    assert not torch.allclose(answer(base), expected, atol=1e-2)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    assert torch.allclose(answer(theirs.base_model.model), expected, atol=1e-4)
    assert 2 * (tmp_path / "fp16").stat().st_size < 2 * 4 * 8 * (32 + 8) + 2 * 160 * 8 + 2048
    for words_, message in (
        (
            [found, "gguf", str(tmp_path / "x")],
            "no format 'gguf'. Known: peft, hub, lora, merged, fp16, bf16",
        ),
        ([found, "peft", str(tmp_path / "peft")], "is there already"),
        (["zzz", "peft", str(tmp_path / "x")], "no records begin with 'zzz'"),
    ):
        done = call_here("runs.export.__main__", *words_, output, check=2)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_an_adapter_is_kept_in_half_precision_on_request(words):
    from safetensors.torch import load_file

    (run,) = expand([*words, "adapter_precision=fp16"])
    assert run_id(run) == run_id(expand(words)[0])  # a matter of storage: the result is the same run's
    trained([*words, "adapter_precision=fp16"])
    tensors = load_file(Path(output_of(words)) / "runs" / run_id(run) / "adapter.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.float16"}


@pytest.mark.usefixtures("process")
def test_damaged_records_are_named_and_hide_nothing(words, capsys):
    (run,) = expand([*words, "train.max_steps=1"])
    sweep.sweep([run])
    folder = Path(output_of(words)) / "records"
    (folder / "bad.json").write_text('{"schema": 1, "id": "x"')
    (folder / "old.json").write_text('{"schema": 99, "id": "x"}')
    ledger = read_ledger(output_of(words), published=False)
    assert len(ledger.records) == 1
    assert len(ledger.problems) == 2
    assert "bad.json: not a record" in ledger.problems[0]
    assert "schema 99" in ledger.problems[1]
    # A run whose own record is damaged is done again.
    path = record_path(output_of(words), run_id(run))
    path.write_text("{")
    sweep.sweep([run])
    assert read_record(path)["status"] == "done"


@pytest.mark.usefixtures("process", "no_hang")
def test_what_is_no_file_in_a_records_place_fails_that_run_alone(words):
    """It stays, and is named with the way out; the others are done, and one whose record is damaged is done
    again."""
    many = [*words, f"seed={','.join(map(str, range(len(ODD) + 2)))}", "train.max_steps=1"]
    runs = expand(many)
    paths = [record_path(output_of(words), run_id(run)) for run in runs]
    paths[0].parent.mkdir(parents=True)
    for path, kind in zip(paths, ODD, strict=False):
        ODD[kind](path)
    paths[-1].write_text("[]")
    done = call_here("runs", *many, check=1)
    for path, kind in zip(paths, ODD, strict=False):
        assert f"FAILED: {path}: {kind}" in done.stdout
        assert os.path.lexists(path)
    assert done.stdout.count("Move it away, and the same command does the run") == 2 * len(ODD)
    assert f"2 done, 0 already there, {len(ODD)} failed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert f"{paths[-1]}: not a record: the run is done again" in done.stderr
    assert [read_record(path)["status"] for path in paths[-2:]] == ["done"] * 2
    assert not list((Path(output_of(words)) / "leases").iterdir())
    paths[0].rename(paths[0].with_suffix(".away"))
    assert sweep.sweep(runs[:1]).done == 1


@pytest.mark.usefixtures("process", "no_hang")
def test_a_launcher_names_what_is_no_file_in_a_records_place(words):
    (run,) = expand(words)
    path = record_path(output_of(words), run_id(run))
    path.mkdir(parents=True)
    done = call_here("runs", *words, "launcher=local", check=1)
    assert f"FAILED: {path}: a folder, and no file, where the run has a file of its own" in done.stdout


@pytest.mark.usefixtures("no_hang")
def test_a_debugged_run_names_what_is_no_file(words):
    (run,) = expand(words)
    path = record_path(output_of(words), run_id(run))
    path.mkdir(parents=True)
    outcome = sweep.sweep(expand([*words, "debug=true"]))
    assert (outcome.exit_code, outcome.failed[0][1].partition(",")[0]) == (1, f"{path}: a folder")


def test_a_debugged_run_is_tracked(words, monkeypatch):
    told = []

    class Tracker:
        def __init__(self, settings, output, runs):
            told.append(("for", [run.seed for run in runs]))

        def begin(self, run, run_id):
            told.append(("begin", run.seed))

        def event(self, event):
            told.extend([("epoch", event["epoch"])] if event["phase"] == "evaluated" else [])

        def end(self, record):
            told.append(("end", record["status"]))

        def close(self):
            told.append(("close",))

    monkeypatch.setattr(sweep, "Tracker", Tracker)
    assert sweep.sweep(expand([*words, "debug=true", "tracking=online"])).done == 1
    assert told == [("for", [0]), ("begin", 0), ("epoch", 1), ("epoch", 2), ("end", "done"), ("close",)]


def test_of_torchruns_processes_none_does_again_what_another_command_has_finished(words, monkeypatch):
    """The others could not know of it."""
    record = trained(words)
    path = record_path(output_of(words), record["id"])
    path.rename(path.with_suffix(".later"))

    @contextlib.contextmanager
    def held(output, name, seconds):
        path.with_suffix(".later").rename(path)  # what a command that had the lease leaves
        yield

    monkeypatch.setattr(sweep, "held", held)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="another command has finished it"):
        sweep.sweep(expand(words))


def test_a_watch_forgets_a_record_that_was_set_aside(words, monkeypatch, capsys):
    record = trained(words)
    path = record_path(output_of(words), record["id"])

    def sleep(seconds):
        if not path.exists():
            raise KeyboardInterrupt
        path.rename(path.with_suffix(".aside"))

    monkeypatch.setattr(plan.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        plan.watch(expand([*words, "seed=0,1"]))
    printed = capsys.readouterr().out
    assert printed.index("done 1 · missing 1") < printed.index("missing 2")


def test_a_debugged_run_goes_on_with_the_micro_batch_that_memory_left(words):
    (run,) = expand([*words, "debug=true"])
    text = "micro-batch 2, since memory ran out at 4; the effective batch stays"
    attempts = {"ended": ["out of memory"], "settings": {"micro_batch": 2}, "deviations": [text]}
    write_attempts(output_of(words), run_id(run), attempts)
    assert sweep.sweep([run]).done == 1
    record = read_record(record_path(output_of(words), run_id(run)))
    assert (record["config"]["micro_batch"], record["tries"]) == (2, ["out of memory"])
    assert text in record["deviations"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_where_a_runs_folder_should_be_is_one_line(kind, words):
    (run,) = expand(words)
    folder = run_folder(run.config["output"], run_id(run))
    folder.parent.mkdir(parents=True)
    if kind == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to("nowhere")
    with pytest.raises(
        UserError,
        match=r"is not a folder, but the run .* keeps its files there\. Move it away\. Nothing was",
    ):
        sweep.sweep([run])
    assert not record_path(run.config["output"], run_id(run)).exists()


@pytest.mark.parametrize("name", ["records", "leases", "runs", "sweeps"])
def test_a_file_where_a_folder_of_the_output_should_be_is_one_line(name, words):
    """Nothing could be written there, and a sweep would try again for ever."""
    Path(output_of(words)).mkdir(parents=True, exist_ok=True)
    Path(output_of(words), name).symlink_to("nowhere")
    with pytest.raises(
        UserError, match=rf"/{name} is not a folder, but runs keep their files there\. Move it away\."
    ):
        sweep.sweep(expand(words))


def test_a_half_written_file_with_a_number_that_no_process_has_is_left_alone(tmp_path):
    for number in ("9" * 23, "x", ""):
        (tmp_path / f".a.json.{socket.gethostname()}.{number}.1").touch()
    sweep_up_dead(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.usefixtures("process")
def test_data_parallel_trains_as_one_process_does(words, tmp_path):
    """Two processes under torchrun: the same effective batch, the same curve up to the order of sums."""
    trained(words)
    two = [f"output={tmp_path / 'two'}" if w.startswith("output=") else w for w in words]
    launch = ["--nproc-per-node", "2", "--master-port", "29671", "-m", "runs", *two]
    call("torch.distributed.run", *launch, check=0)
    curves = [
        read_record(next((Path(o) / "records").glob("*.json")))["curve"]
        for o in (output_of(words), tmp_path / "two")
    ]
    assert curves[0]["train_loss"] == pytest.approx(curves[1]["train_loss"], abs=1e-5)
    assert curves[0]["metric"] == curves[1]["metric"]


@pytest.mark.usefixtures("process")
def test_two_processes_decode_as_one_does(e2e_words, tmp_path):
    """Token means weigh the shares of a batch; each decodes its part of the MRs, and one file has them
    all."""
    one = elsewhere([*e2e_words, "train.effective_batch=3"], output=tmp_path / "one")
    do(one)
    two = elsewhere(one, output=tmp_path / "two")
    call(
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29672",
        "-m",
        "runs",
        *two,
        check=0,
    )
    first, second = (
        read_record(next((tmp_path / name / "records").glob("*.json"))) for name in ("one", "two")
    )
    for key in ("train_loss", "dev_loss"):
        assert second["curve"][key] == pytest.approx(first["curve"][key], abs=1e-5)
    assert second["texts"] == first["texts"]
    folder = run_folder(tmp_path / "two", second["id"])
    assert len((folder / "decoded_last.jsonl").read_text().splitlines()) == 1 + 3


def test_one_function_settles_a_run_whoever_did_it(words, capsys):
    """The same count everywhere. A board has the seconds of the record, and no line for what was there."""
    (run,) = expand(words)
    job = jobs.Job(1, run, run_id(run))
    plan_ = jobs.Sweep([job], {}, lease_seconds=1.0, tracking=Tracking("off"))

    def settle(show, seconds):
        outcome = jobs.Outcome()
        settled = jobs.settle(job, plan_, outcome, show, None, seconds)
        return settled, outcome.done, outcome.skipped, len(outcome.diverged), len(outcome.failed)

    one, board = display.Display(1, name_task=False), display.Board(1, name_task=False)
    assert settle(one, 5.0) == settle(board, 5.0) == settle(one, None) == (False, 0, 0, 0, 0)
    assert capsys.readouterr().out == ""
    made = ledgers.record() | {"id": job.id, "config": run.config}
    write_record(job.output, made)
    assert settle(one, 5.0) == settle(board, 5.0) == (True, 1, 0, 0, 0)
    assert settle(one, None) == settle(board, None) == (True, 0, 1, 0, 0)
    head, result = "[1/1] VeRA r=8 seed 0  ", "accuracy 80.0 at epoch 2, last 79.0"
    assert capsys.readouterr().out.splitlines() == [
        f"{head}{result}  5s  run {job.id}",
        f"{head}{result}  11s  run {job.id}",
        f"{head}already done ({result}, run {job.id}), skipped",
    ]
    write_record(job.output, made | {"status": "diverged", "error": "the loss became NaN"})
    assert settle(one, 5.0) == settle(board, 5.0) == (True, 0, 0, 1, 0)
    assert capsys.readouterr().out == f"{head}DIVERGED: the loss became NaN\n" * 2
    job.record.unlink()
    job.record.mkdir()
    assert settle(one, 5.0) == settle(board, None) == (True, 0, 0, 0, 1)
    assert capsys.readouterr().out.count(f"{head}FAILED: {job.record}: a folder, and no file") == 2
