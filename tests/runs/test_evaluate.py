"""What commands make of finished runs: plan, publish, evaluate and export."""

import json
import re
from pathlib import Path

import ledgers
import pytest
from running import TRAINING, call_here, output_of, refused, trained
from tiers import sample

from runs import evaluate, plan, publish
from runs.config import expand
from runs.identity import run_id
from runs.record import Ledger, read_ledger, run_folder, without_paths, write_record
from runs.shared_files import alone, run_lock

pytestmark = pytest.mark.properties

# --- plan, publish, evaluate


def shows(text, *parts):
    """Asserts that a plan's text has these."""
    assert [part for part in parts if part not in text] == [], text


def test_the_plan_says_where_each_run_stands(words):
    every = [*words, "seed=0,1,2,3", "train.max_steps=2"]
    runs, output = expand(every), output_of(words)
    shows(call_here("runs.plan", *every, check=0).stdout, "missing 4")
    record = trained([*words, "seed=0", "train.max_steps=2"])
    write_record(output, record | {"id": run_id(runs[1]), "status": "failed", "error": "it broke"})
    write_record(output, record | {"id": run_id(runs[2]), "status": "diverged"})
    counts = "done 1 · diverged 1 · failed 1 · missing 1"
    named = ["plan: 4 runs on encoder", "2/4 df", counts, "failed: VeRA r=8 on RTE, seed 1: it broke"]
    shows(call_here("runs.plan", *every, check=0).stdout, *named, "from 1 finished run)")
    blocked = [f"model.path={Path(output) / 'none'}" if w.startswith("model.path") else w for w in every]
    nothing = call_here("runs.plan", *blocked, check=0).stdout
    shows(nothing, "blocked 4", "nothing that can be done now")
    unknown = call_here("runs.plan", "model=roberta_base", "model.revision=null", "task=rte", check=0).stdout
    shows(unknown, "0/1 ?", "has no pinned revision")


def test_publishing_copies_finished_records(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path / "published")
    output = output_of(words)
    one, two = (trained([*words, f"seed={seed}"]) for seed in (0, 1))
    trained([*words, "train.max_steps=1"])  # a trial, which stays here
    write_record(output, two | {"status": "failed"})
    for uncommitted, told in ((False, "1 record in runs/records/mine\n"), (None, "(1 made with code ")):
        one["code"]["dirty"] = False
        for source in one["code"]["sources"].values():
            source["uncommitted"] = uncommitted  # None: of another repository
        write_record(output, one)
        assert publish.main(["mine", f"output={output}"]) == 0
        assert told in capsys.readouterr().out
    (published,) = (tmp_path / "published" / "mine").glob("*.json")
    assert published.stem == one["id"]
    assert str(tmp_path) not in published.read_text()
    assert read_ledger(tmp_path / "nothing").origin == {one["id"]: "mine"}
    assert read_ledger(output).origin[one["id"]] == "ours"
    copy = tmp_path / "copy"
    (copy / "records").mkdir(parents=True)
    (copy / "records" / published.name).write_bytes(published.read_bytes())
    assert read_ledger(copy).origin == {one["id"]: "mine"}
    for study, folder, told in (
        ("again", copy, "what is there was copied"),
        ("../up", output, "a name of a-z"),
        ("mine", tmp_path / "nothing", "no finished record"),
    ):
        with refused(told):
            publish.main([study, f"output={folder}"])
    (copy / "runs" / one["id"]).mkdir(parents=True)  # as a run leaves it whose record names no path
    assert read_ledger(copy).origin == {one["id"]: "ours"}


@pytest.mark.parametrize("method", sample(["none", "lora_fa", "adalora", "bitfit"], "none", "lora_fa"))
def test_a_finished_run_is_checked_from_its_files(method, words, capsys):
    record = trained([*(w for w in words if not w.startswith("method.")), f"method={method}"])
    assert evaluate.main([record["id"][:6], f"output={output_of(words)}"]) == 0
    assert "the same" in capsys.readouterr().out
    assert (record["steps"] == 0) == (method == "none")


def test_what_is_not_what_the_record_names_is_one_line(words):
    record, output = trained(words), output_of(words)

    def says(*named, module="runs.evaluate", word=record["id"]):
        line = call_here(module, word, f"output={output}", check=2).stderr
        assert line.count("\n") == 1
        assert [words for words in named if words not in line] == []

    adapter = Path(output) / "runs" / record["id"] / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:200])
    says(f"{adapter} is not the file that the record of run {record['id']} names")
    older = {key: record[key] for key in record if key not in ("files", "overrides")}
    write_record(output, older)
    says("adapter.safetensors: damaged, or no")
    says(f"run {record['id']}: ", module="runs", word=f"rerun={record['id']}")  # without its overrides
    adapter.unlink()  # or a record that was copied
    says(f"{adapter} is not there (run {record['id']} had keep=best)", "redo=true\n")
    write_record(output, record | {"status": "diverged", "error": "a loss of nan"})
    says("is diverged: a loss of nan")


def test_a_plan_shows_what_runs_and_how_far_it_is(words, capsys):
    runs, output = expand([*words, "seed=0,1"]), output_of(words)
    first, folder = run_id(runs[0]), run_folder(output, run_id(runs[0]))

    def shown():
        return plan.text(plan.plan(runs, Ledger()), Ledger())

    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps(TRAINING | {"host": "node7"}))
    with alone(run_lock(output, first), "it"):
        row = "running: VeRA r=8 on RTE, seed 0: epoch 2/5  step 9/25  loss 0.500  dev"
        shows(shown(), "0/2 *", "running 1 · missing 1", row, "  left: 1m01s  on node7")
        assert re.search("est. 1m01s left on one .* for 1 of the 2 runs left", shown())
    assert "running" not in shown()
    (folder / "attempts" / "here.1.x").mkdir(parents=True)
    (folder / "attempts" / "here.1.x" / "checkpoint.safetensors").touch()
    shows(shown(), "0/2 r")
    assert re.search("est. 1m01s left on one .* for 1 of the 2 runs left", shown())  # it goes on from there

    for run in runs:
        cell = {"paper": None, "model": run.model, "task": run.task, "row": run.row, "seed": run.seed}
        write_record(output, ledgers.record() | {"id": run_id(run), "cell": cell, "config": run.config})
    assert plan.main([*words, "seed=0,1", "redo=true"]) == 0
    printed = capsys.readouterr().out
    assert "est. " in printed[printed.index("done 2") :]  # redo=true: what is done is done again


# --- a run once more


@pytest.mark.usefixtures("process")
def test_a_run_is_repeated_by_its_id(words, monkeypatch, tmp_path):
    """As the error of one says that kept no adapter; then a published one, whose data are elsewhere."""
    output = output_of(words)
    record = trained([*words, "train.max_steps=1", "keep=none"])
    done = call_here("runs.evaluate", record["id"], f"output={output}", check=2)
    assert "adapter.safetensors is not there" in done.stderr
    command = done.stderr.partition("python -m runs ")[2].split()
    assert command == [f"rerun={record['id']}", "keep=best", f"output={output}", "redo=true"]
    call_here("runs", *command, "device=cpu", check=0)
    call_here("runs.evaluate", record["id"], f"output={output}", check=0)
    study, other = tmp_path / "published" / "study", f"output={tmp_path / 'other'}"
    study.mkdir(parents=True)
    (study / f"{record['id']}.json").write_text(json.dumps(without_paths(record)))
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", study.parent)
    told = call_here("runs.evaluate", record["id"], other, check=2).stderr
    assert f"To have it here: python -m runs rerun={record['id']}" in told
    assert told.count("\n") == 1
    call_here("analysis.diff", record["id"], other, check=2)
    again = [f"rerun={record['id'][:8]}", other]
    folder = f"task.data_dir={record['config']['task']['data_dir']}"
    model = f"model.path={record['config']['model']['path']}"
    assert "add task.data_dir=" in call_here("runs", *again, model, check=2).stderr
    call_here("runs", *again, folder, model, "device=cpu", check=0)
    compared = call_here("analysis.diff", record["id"], other, check=0).stdout
    assert f"{record['id']} (published in study)" in compared
    assert not re.search(r"\| (curve|result|predictions)\.", compared)
    changed = call_here("runs", *again, folder, model, "device=cpu", "train.lr=0.02", check=0).stdout
    assert f"another run than {record['id']}" in changed
    two = call_here("runs", "--cfg", "job", *again, folder, model, "seed=0,1", check=0)
    assert "of 2 runs" in two.stderr
