"""The same id, other code: what a record says of the code, a skipped run that says it has changed, and
redo=true."""

import json
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from running import ROOT, call_here, output_of, trained

import runs.__main__
from runs import evaluate, sources
from runs.config import Launch, Local, expand
from runs.errors import DeviceError, UserError
from runs.record import read_ledger, read_record, record_path, run_folder, write_record
from runs.sweep import display, launchers, sweep
from runs.sweep.leases import Watcher, generations
from runs.sweep.redo import put_back, set_aside
from runs.training import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout of its own, with a committed method, in the place of this one."""
    root = tmp_path / "checkout"
    for folder in ("vera/methods", "tasks", "runs/records/study", "conf"):
        (root / folder).mkdir(parents=True)
    (root / "vera/methods/mine.py").write_text("one\n")
    (root / ".gitignore").write_text("outputs/\n*.pyc\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(root), *names, *words], check=True, capture_output=True)
    monkeypatch.setattr(sources, "ROOT", root)
    monkeypatch.setattr(sources, "AT_START", {})
    for cached in (sources.uncommitted, sources.head):
        cached.cache_clear()
    yield root
    for cached in (sources.uncommitted, sources.head):
        cached.cache_clear()


def commit(root):
    for words in (["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "two"]):
        subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)


# --- what a record says


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        (None, False),
        ("vera/methods/new.py", True),
        ("conf/method.yaml", True),
        ("tasks/deep/new.py", True),
        ("runs/new.py", True),
        ("runs/records/study/0123456789ab.json", False),  # no code
        ("outputs/runs/x.json", False),
        ("vera/x.pyc", False),
        ("notes.txt", False),
        (".gitignore", True),  # tracked
    ],
)
def test_untracked_code_is_dirty(path, dirty, checkout):
    if path:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text("new\n")
    state = provenance.code_state.__wrapped__()
    assert state["dirty"] is dirty
    assert len(state["commit"]) == 40


def test_outside_a_checkout_nothing_is_known(checkout):
    shutil.rmtree(checkout / ".git")
    assert provenance.code_state.__wrapped__() == {"commit": None, "dirty": None}
    assert sources._source(checkout / "vera/methods/mine.py")["uncommitted"] is None


def test_a_record_names_its_source_files(words):
    found = trained([*words, "train.max_steps=1"])["code"]["sources"]
    files = {part: source["file"] for part, source in found.items()}
    assert files == {"method": "vera/methods/vera.py", "task": "tasks/glue.py"}
    for source in found.values():
        assert source["sha256"] == sources._digest(ROOT / source["file"])
        assert source["uncommitted"] in (True, False, None)
    beside = {path.name for path in sources._imports(ROOT / "vera/methods/vera.py")}
    assert {"contract.py", "vera_layer.py"} <= beside
    assert "bitfit.py" not in beside


@pytest.mark.parametrize("before", ["committed", "uncommitted"])
@pytest.mark.parametrize("now", ["committed", "uncommitted", "the same", "moved"])
def test_a_source_that_was_committed_both_times_or_moved_is_no_difference(before, now, checkout):
    path = checkout / "vera/methods/mine.py"
    if before == "uncommitted":
        path.write_text("edited\n")
    source = sources._source(path)
    assert source["uncommitted"] is (before == "uncommitted")
    if now in ("committed", "uncommitted"):
        path.write_text("two\n")
    if now == "moved":
        path.rename(checkout / "vera/methods/other.py")
    if now == "committed":
        commit(checkout)
    record = {"code": {"sources": {"method": source}}}
    expected = now == "uncommitted" or (now == "committed" and before == "uncommitted")
    assert sources.changed(record) == ["vera/methods/mine.py"] * expected
    assert sources.changed({"code": {"commit": "c", "dirty": True}}) == []  # an older record


@pytest.mark.parametrize(
    "line",
    [
        "from vera.methods.layer import f",
        "from vera.methods import layer",
        "from .layer import f",
        "import layer",
    ],
)
def test_a_module_beside_it_that_the_file_imports_counts_too(line, checkout):
    """And one that this one imports; another file of the folder does not."""
    folder = checkout / "vera/methods"
    (folder / "mine.py").write_text(f"import os\n{line}\n")
    (folder / "layer.py").write_text("from vera.methods.inner import g\n")
    for name in ("inner", "other"):
        (folder / f"{name}.py").write_text("one\n")
    commit(checkout)
    source = sources._source(folder / "mine.py")
    record = {"code": {"sources": {"method": source}}}
    assert sources._imports(folder / "mine.py") == [folder / "inner.py", folder / "layer.py"]
    assert source["uncommitted"] is False
    (folder / "other.py").write_text("edited\n")
    assert sources.changed(record) == []
    (folder / "inner.py").write_text("edited\n")
    assert sources.changed(record) == ["a module that vera/methods/mine.py imports"]
    del source["imports"]  # an older record
    assert sources.changed(record) == []
    source["imports"] = "0" * 16
    assert sources._source(folder / "mine.py")["uncommitted"] is True
    commit(checkout)
    sources.uncommitted.cache_clear()
    assert sources.changed(record) == []  # committed both times


def test_a_file_that_git_ignores_is_in_no_commit(checkout):
    (checkout / ".gitignore").write_text("*_own.py\n*.pyc\n")
    commit(checkout)
    for name in ("my_own.py", "méthode.py"):
        (checkout / "vera/methods" / name).write_text("one\n")
        assert sources._source(checkout / "vera/methods" / name)["uncommitted"] is True
    assert sources._source(checkout / "vera/methods/mine.py")["uncommitted"] is False
    folder = checkout / "tasks" / "images"
    folder.mkdir()
    (folder / "__init__.py").write_text("one\n")
    commit(checkout)
    sources.head.cache_clear()
    (folder / "compiled.pyc").write_text("")  # what Python and notebooks leave there
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a_own.py").write_text("")
    assert sources._source(folder)["uncommitted"] is False


def test_an_edit_while_a_sweep_goes_on_is_in_no_run_of_it(checkout, monkeypatch):
    """Its runs are forked from a process that has imported the file as it was."""
    path = checkout / "vera/methods/mine.py"
    monkeypatch.setattr(sources, "AT_START", {path: sources._digest(path)})
    before = sources._digest(path)
    path.write_text("two\n")
    source = sources._source(path)
    assert (source["sha256"], source["uncommitted"]) == (before, True)
    assert sources.changed({"code": {"sources": {"method": source}}}) == ["vera/methods/mine.py"]


def test_a_commit_while_a_sweep_goes_on_is_that_of_no_run_of_it(checkout):
    """The record names the commit of the beginning, from which the file differed then."""
    path = checkout / "vera/methods/mine.py"
    path.write_text("edited\n")
    began = sources.head()  # as the process does that runs are forked from
    commit(checkout)
    source = sources._source(path)
    assert (sources.head(), source["uncommitted"]) == (began, True)
    assert sources.git("rev-parse", "HEAD") != began
    path.write_text("later\n")
    assert sources.changed({"code": {"sources": {"method": source}}}) == ["vera/methods/mine.py"]


# --- a skipped run, and redo=true


def edited(output, part="method"):
    """As if each record's file had been another one, and uncommitted, when it was made."""
    for record in read_ledger(output, published=False):
        record["code"]["sources"][part] |= {"sha256": "0" * 16, "uncommitted": True}
        write_record(output, record)


@pytest.mark.usefixtures("process")
def test_a_skipped_run_says_so_and_redo_runs_it_again_with_the_old_one_aside(words):
    few, output = [*words, "train.max_steps=2"], output_of(words)
    call_here("runs", *few, check=0)
    (old,) = read_ledger(output, published=False)
    folder = run_folder(output, old["id"])
    assert "changed" not in call_here("runs", *few, check=0).stdout
    edited(output)
    edited(output, "task")
    (old,) = read_ledger(output, published=False)
    (folder / "mt_bench.jsonl").write_text("an answer of the old run")
    measure = {"schema": 1, "kind": "magnitude", "settings": {}, "seeds": {}}
    columns = {column: [] for column in ("layer", "site", "d", "b")}
    for name, of in (("m", old["id"]), ("n", "another")):
        path = Path(output) / "measures" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        run = {"id": of, "cell": old["cell"], "label": old["label"], "adapter": {}}
        path.write_text(json.dumps({**measure, "id": name, "of": [run], "values": columns}))
    skipped = call_here("runs", *few, check=0).stdout
    assert (
        ", skipped: vera/methods/vera.py and tasks/glue.py have changed since this record was made; redo=true"
        in skipped
    )
    assert read_record(record_path(output, old["id"])) == old
    plan = call_here("runs.plan", *few, "redo=true", check=0).stdout
    assert "redo=true: also 1 run that is done, beyond that estimate" in plan
    again = call_here("runs", *few, "redo=true", check=0).stdout
    assert f"redo: 1 record set aside, in {output}/replaced" in again
    assert "1 done, 0 already there" in again
    (new,) = read_ledger(output, published=False)
    assert (new["id"], new["result"]) == (old["id"], old["result"])
    assert new["code"]["sources"]["method"]["sha256"] != "0" * 16
    (aside,) = (Path(output) / "replaced").iterdir()
    assert json.loads((aside / "record.json").read_text()) == old
    assert (aside / "run" / "mt_bench.jsonl").is_file()
    assert (aside / "run" / "adapter.safetensors").is_file()
    assert not (folder / "mt_bench.jsonl").exists()
    assert (folder / "adapter.safetensors").is_file()
    assert "resum" not in (folder / "log.txt").read_text()
    assert [path.name for path in (Path(output) / "measures").iterdir()] == ["n.json"]
    assert not generations(Path(output) / "leases", old["id"])
    assert "1 already there" in call_here("runs", *few, check=0).stdout


@pytest.mark.parametrize(
    ("had", "best", "asked", "words"),
    [
        ({"keep": "best"}, 1, {"keep": "best"}, ""),
        ({"keep": "best"}, 1, {"keep": "none"}, ""),
        ({"keep": "best"}, 1, {"keep": "last"}, "keep=best (not last)"),
        ({"keep": "best"}, 2, {"keep": "last"}, ""),
        ({"keep": "both"}, 1, {"keep": "last"}, ""),
        ({"keep": "best"}, 2, {"keep": "both"}, "keep=best (not both)"),
        ({"keep": "none"}, 2, {"keep": "best", "adapter_precision": "fp16"}, "keep=none (not best)"),
        (
            {"keep": "best"},
            1,
            {"keep": "best", "adapter_precision": "fp16"},
            "adapter_precision=fp32 (not fp16)",
        ),
        (
            {"keep": "last", "adapter_precision": "bf16"},
            1,
            {"keep": "best"},
            "keep=last (not best) and adapter_precision=bf16 (not fp32)",
        ),
    ],
)
def test_a_skipped_run_says_that_its_adapter_is_not_the_one_asked_for(had, best, asked, words):
    record = {"status": "done", "config": had, "result": {"best_epoch": best}, "curve": {"epoch": [1, 2]}}
    run = SimpleNamespace(config={"adapter_precision": "fp32"} | asked)
    assert display.kept_words(record, run) == (f"its adapter was kept with {words}" if words else "")
    assert display.kept_words({"status": "diverged"}, run) == ""


@pytest.mark.usefixtures("process")
def test_a_finished_run_without_the_adapter_that_is_asked_for_says_so(words):
    few = [*words, "train.max_steps=1"]
    call_here("runs", *few, "keep=none", check=0)
    printed = call_here("runs", *few, check=0).stdout
    assert "skipped: its adapter was kept with keep=none (not best); redo=true runs it again" in printed
    assert "1 done" in call_here("runs", *few, "redo=true", check=0).stdout
    assert call_here("runs", *few, check=0).stdout.rstrip().count("redo=true") == 0


@pytest.mark.usefixtures("process")
def test_launched_executors_do_again_what_was_set_aside_once(words):
    few, output = [*words, "train.max_steps=1"], output_of(words)
    call_here("runs", *few, "seed=0", check=0)
    edited(output)
    printed = call_here("runs", *few, "seed=0,1", "launcher=local", check=0).stdout
    assert (
        printed.count(
            "skipped: vera/methods/vera.py has changed since this record was made; redo=true runs it again"
        )
        == 1
    )
    assert "1 done, 1 already there" in printed
    printed = call_here("runs", *few, "seed=0,1", "launcher=local", "redo=true", check=0).stdout
    assert "redo: 2 records set aside" in printed
    assert "2 done, 0 already there" in printed
    assert len(list((Path(output) / "replaced").iterdir())) == 2
    assert all(
        r["code"]["sources"]["method"]["sha256"] != "0" * 16 for r in read_ledger(output, published=False)
    )


@pytest.mark.usefixtures("process")
def test_a_mistake_sets_nothing_aside(words):
    few, output = [*words, "train.max_steps=1"], output_of(words)
    call_here("runs", *few, check=0)
    gone = [word for word in few if not word.startswith("task.data_dir")]
    call_here("runs", *gone, "task.data_dir=/nowhere", "redo=true", check=2)
    assert not (Path(output) / "replaced").exists()
    call_here("runs", *few, "redo=maybe", check=2)


def test_what_others_start_from_is_not_done_again_unless_asked_for(words, monkeypatch):
    seen = {}

    def sweep(found, launch, again):
        seen.update(runs=found, again=again)
        raise SystemExit(0)

    monkeypatch.setattr(runs.__main__, "sweep", sweep)
    kept = [word for word in words if not word.startswith(("method.", "task="))]
    for task, count in (("rte", 1), ("mrpc,rte", 2)):
        with pytest.raises(SystemExit):
            runs.__main__.main([*kept, "method=lora", f"task={task}", "init_from=lora@mrpc", "redo=true"])
        assert (len(seen["runs"]), len(seen["again"])) == (count + 1, count)


@pytest.fixture
def finished(words):
    """A record, as a command has read it that wants it done again."""
    record = trained([*words, "train.max_steps=1"])
    return record, output_of(words)


def test_two_commands_set_a_record_aside_once(finished):
    record, output = finished
    threads = [threading.Thread(target=set_aside, args=(record, output, 5.0)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (aside,) = (Path(output) / "replaced").iterdir()
    assert json.loads((aside / "record.json").read_text()) == record
    assert not record_path(output, record["id"]).exists()
    assert not generations(Path(output) / "leases", record["id"])


def test_a_record_that_has_been_replaced_since_stays(finished):
    record, output = finished
    newer = record | {"error": "newer"}
    write_record(output, newer)
    set_aside(record, output, 5.0)
    assert read_record(record_path(output, record["id"])) == newer
    assert not (Path(output) / "replaced").exists()


def test_nothing_is_moved_under_the_hands_of_a_runs_owner(finished):
    record, output = finished
    lease = Watcher(output, 30.0).take(record["id"])
    thread = threading.Thread(target=set_aside, args=(record, output, 30.0))
    thread.start()
    thread.join(1.5)
    assert thread.is_alive()
    assert run_folder(output, record["id"]).is_dir()
    lease.release()
    thread.join(30)
    assert not record_path(output, record["id"]).exists()


def test_what_was_set_aside_comes_back_where_the_launcher_refuses(words, monkeypatch, capsys):
    few, output = [*words, "train.max_steps=1"], output_of(words)
    record = trained(few)
    files = sorted(path.name for path in run_folder(output, record["id"]).iterdir())

    def refuse(self, count):
        assert not record_path(output, record["id"]).exists()
        raise UserError("Slurm takes no job: invalid partition")

    monkeypatch.setattr(launchers.LocalProcesses, "start", refuse)
    with pytest.raises(UserError, match="invalid partition"):
        sweep.sweep(expand(few), launch=Launch(Local()), again=expand(few))
    assert read_record(record_path(output, record["id"])) == record
    assert sorted(path.name for path in run_folder(output, record["id"]).iterdir()) == files
    assert not list((Path(output) / "replaced").iterdir())
    assert "redo: 1 record put back" in capsys.readouterr().out


def refuse(device):
    raise DeviceError("torch cannot use it")


def another(how):
    return [how] if "=" in how else []


@pytest.mark.parametrize("how", ["local", "debug=true", "device=mps"])
def test_nothing_is_set_aside_where_no_device_can_be_used(how, words, monkeypatch):
    few = [*words, "train.max_steps=1"]
    record = trained(few)
    if how == "device=mps":
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    else:
        monkeypatch.setattr(sweep if how == "debug=true" else launchers, "devices", refuse)
    runs = expand(
        [*(word for word in few if "=mps" not in how or not word.startswith("device=")), *another(how)]
    )
    launch = Launch(Local()) if how == "local" else Launch()
    with pytest.raises(UserError, match=r"(torch cannot use it|no GPU of Apple's .*)\. Nothing was started"):
        sweep.sweep(runs, launch=launch, again=runs)
    assert read_record(record_path(output_of(words), record["id"])) == record


def test_a_measure_comes_back_and_a_run_that_another_command_has_begun_keeps_its_files(finished):
    record, output = finished
    name, measures = record["id"], Path(output) / "measures"
    measures.mkdir()
    measure = {"schema": 1, "kind": "magnitude", "settings": {}, "seeds": {}, "id": "m"}
    run = {"id": name, "cell": record["cell"], "label": record["label"], "adapter": {}}
    columns = {column: [] for column in ("layer", "site", "d", "b")}
    (measures / "m.json").write_text(json.dumps({**measure, "of": [run], "values": columns}))
    aside = set_aside(record, output, 5.0)
    assert not (measures / "m.json").exists()
    put_back([aside], output)
    assert (measures / "m.json").is_file()
    aside = set_aside(record, output, 5.0)
    run_folder(output, name).mkdir()
    put_back([aside], output)
    assert not record_path(output, name).exists()
    assert (aside / "record.json").is_file()


# --- the command that makes a record's run


@pytest.mark.usefixtures("process")
def test_the_error_names_the_record_and_a_command_that_makes_the_run(words, monkeypatch, tmp_path):
    output = output_of(words)
    record = trained([*words, "train.max_steps=1", "keep=none"])
    done = call_here("runs.evaluate", record["id"], f"output={output}", check=2)
    assert (
        f"the run kept none (its record is {record_path(output, record['id'])}). To have it here: "
        in done.stderr
    )
    command = done.stderr.partition("python -m runs ")[2].split()
    assert {"keep=best", "redo=true", f"output={output}"} <= set(command)
    assert not any(word.startswith("train.lr_head=") for word in command)  # which follows train.lr
    call_here("runs", *command, "device=cpu", check=0)
    call_here("runs.evaluate", record["id"], f"output={output}", check=0)
    # Published, and its data elsewhere.
    study = tmp_path / "published" / "study"
    record["config"]["task"]["data_dir"] = "glue_of_others"
    study.mkdir(parents=True)
    (study / f"{record['id']}.json").write_text(json.dumps(record))
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", study.parent)
    done = call_here("runs.evaluate", record["id"], f"output={tmp_path / 'other'}", check=2)
    assert str(study / f"{record['id']}.json") in done.stderr
    assert "task.data_dir=/where/glue_of_others" in done.stderr
    assert "redo=true" not in done.stderr


def test_overrides_of_a_row_of_pefts(words):
    kept = [word for word in words if not word.startswith("method.")]
    given = [*kept, "method=peft", "method.config={use_dora: true, r: 4}", 'method.label="DoRA, four"']
    given.append("init_from=0123456789ab")
    (run,) = expand(given)
    cell = {"paper": None, "row": run.row, "model": run.model, "task": run.task, "seed": run.seed}
    found = evaluate.overrides_of({"cell": cell, "config": run.config, "recipe": {"name": run.recipe}})
    (again,) = expand([*found, *(word for word in words if word.startswith(("output=", "device=")))])
    assert (again.row, again.config) == (run.row, run.config)
