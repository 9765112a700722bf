"""A folder of records that a stranger wants to add: what publish writes, what is wrong
with a folder, and what of it is not read at all."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ledgers import seed_records
from running import ROOT, call_here, output_of, refused, trained

import tasks
from runs import publish
from runs.config import expand
from runs.publishing import study_check
from runs.publishing.study_check import problems_of_study, read_study_folder
from runs.record import ledger
from runs.record.derived import derived_keys
from runs.record.ledger import study_folders
from runs.record.redaction import without_paths
from runs.record.sweeps import write_sweep
from runs.run import provenance
from runs.sweep.sweep import preflight

pytestmark = pytest.mark.properties

SOURCES = {"method": "vera/methods/vera.py", "task": "tasks/glue.py"}
# VeRA's b and d of rank 8 in RoBERTa-base's queries and values
TRAINED = 24 * (768 + 8)


def git(root, *words):
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    done = subprocess.run(
        ["git", "-C", str(root), *who, *words],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of a project, with a commit that the project has; in it somebody has
    added a method."""
    project, root = tmp_path / "project", tmp_path / "clone"
    for name in (
        *SOURCES.values(),
        "runs/run/definition.py",
        "conf/config.yaml",
        "runs/records/s/records.jsonl",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(f"{name}\n")
    git(tmp_path, "init", "-q", "-b", "main", str(project))
    git(project, "add", ".")
    git(project, "commit", "-qm", "one")
    git(tmp_path, "clone", "-q", str(project), str(root))
    (root / "vera/methods/mine.py").write_text("mine\n")
    monkeypatch.setattr(provenance, "ROOT", root)
    forget()
    yield root
    forget()


def forget():
    """What was asked of git, as by a command of its own."""
    for known in (
        study_check.in_history,
        study_check._blobs,
        study_check._hash_in,
        study_check._blob_content,
        provenance.code_state,
    ):
        known.cache_clear()


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sound(clone, method="vera/methods/vera.py", row="vera"):
    """Two seeds of a run in the clone."""
    made = seed_records(
        row=row,
        bests=(0.8, 0.81),
        protocol=tasks.protocol({"family": "glue", "name": "rte"}),
    )
    for one in made:
        files = {"method": method, "task": SOURCES["task"]}
        sources = {
            part: {"file": file, "sha256": sha((clone / file).read_text())}
            for part, file in files.items()
        }
        one["overrides"], one["code"] = (
            ["task=rte"],
            provenance.code_state() | {"sources": sources},
        )
        one["parameters"] |= {"adapter": TRAINED, "formula": TRAINED}
    for one in made:
        complete(one)
    return [without_paths(one) for one in made]


def complete(record):
    """Adds the keys that training writes and derives, of 1,000 test rows."""
    config = record["config"]
    config |= {"data_seed": config["seed"], "select": "paper", "micro_batch": None}
    config["train"] |= {"effective_batch": 5, "lr_head": 1e-3, "weight_decay": 0.0}
    for part in ("model", "task", "method"):
        config[part].setdefault("label", config[part].get("name", "VeRA r=8"))
    record["data"]["dev_rows"] = 1000
    losses = record["curve"]["train_loss"]
    record["curve"]["train_loss"] = [loss + config["seed"] for loss in losses]
    for key, value in derived_keys(record).items():
        record[key] = record[key] | value if isinstance(value, dict) else value


def study_of(clone, records, name="mine"):
    """A folder of these records, with notes."""
    folder = clone / "runs" / "records" / name
    shutil.rmtree(folder, ignore_errors=True)
    ledger.write_study(folder, records)
    (folder / "NOTES.md").write_text("On a laptop.\n")
    return folder


def commit_all(clone, message="more"):
    git(clone, "add", ".")
    git(clone, "commit", "-qm", message)
    forget()


MINE = "vera/methods/mine.py"


def test_a_method_on_the_branch_or_in_sources_makes_a_result_repeatable(clone):
    base = git(clone, "rev-parse", "HEAD")
    assert provenance.code_state() == {
        "commit": base,
        "dirty": True,
        "upstream": base,
        "altered": [],
    }
    folder = study_of(clone, sound(clone, MINE, row="mine"))
    (line,) = problems_of_study(read_study_folder(folder))
    assert line.startswith(f"{MINE}, as it was run, is in no commit")
    assert line.count("\n") == 0
    # as a wheel's publish writes it
    (folder / "sources").mkdir()
    outside = sound(clone, MINE, row="mine")
    for one in outside:
        one["code"]["sources"]["method"]["file"] = "mine.py"
    ledger.write_study(folder, outside)
    (folder / "sources" / "mine.py").write_text("mine\n")
    assert problems_of_study(read_study_folder(folder)) == []
    (folder / "sources" / "mine.py").write_text("edited\n")
    assert len(problems_of_study(read_study_folder(folder))) == 1
    # A commit on the branch is none of the project's, and still has the method, also
    # after a later edit
    folder = study_of(clone, sound(clone, MINE, row="mine"))
    commit_all(clone, "my method")
    assert problems_of_study(read_study_folder(folder)) == []
    (clone / MINE).write_text("better\n")
    commit_all(clone)
    assert problems_of_study(read_study_folder(folder)) == []
    state = provenance.code_state()
    assert (state["upstream"], state["altered"]) == (base, [])


#: What is planted in a record of the first seed, below its keys, and what is said of it.
FAULTS = [
    (
        {"code": {"altered": ["runs/run/definition.py"]}},
        "changed files of the project itself (runs/run/definition.py): 1 run",
    ),
    (
        {"code": {"altered": None, "dirty": True}},
        "changed files of the project itself (?): 1 run",
    ),
    ({"code": {"upstream": "f" * 40}}, "commit ffffffffffff is not in"),
    ({"code": {"upstream": "--all"}}, "commit --all is not in"),
    ({"code": {"upstream": None}}, "no commit is named"),
    (
        {"code": {"sources": {"method": {"file": MINE, "sha256": "0" * 16}}}},
        f"{MINE}, as it was run, is in no commit",
    ),
    (
        {"code": {"sources": {"method": {"file": "no.py", "sha256": ""}}}},
        "no.py, as it was run, is in no commit",
    ),
    ({"protocol": 99}, "protocol 99 of rte"),
    ({"data": {"content": "other"}}, "task rte: of 2 contents"),
    ({"model": "other"}, "model roberta_base: of 2 contents"),
    ({"cell": {"seed": 1}, "config": {"seed": 1}}, "seed 1 twice: 2 runs"),
    (
        {"result": {"protocols": {"paper": {"best": 0.9}}}},
        "result.protocols.paper.best does not follow",
    ),
    ({"result": {"last": 0.9}}, "result.last does not follow"),
    (
        {"config": {"train": {"lr": 0.1, "epochs": 3, "max_steps": 3}}},
        "not a finished result: 1 run",
    ),
    ({"overrides": []}, "without overrides"),
    ({"overrides": ["task=rte", "model.path=/home/me/x"]}, "it names local paths"),
]


@pytest.mark.parametrize(("planted", "named"), FAULTS)
def test_a_planted_fault_is_found_in_a_line(planted, named, clone):
    (clone / MINE).unlink()
    made = sound(clone)
    for key, value in planted.items():
        made[0][key] = made[0][key] | value if isinstance(value, dict) else value
    lines = problems_of_study(read_study_folder(study_of(clone, made)))
    assert any(named in line for line in lines), lines
    assert all("\n" not in line for line in lines)


def test_a_changed_file_of_the_project_is_named(clone):
    (clone / "runs/run/definition.py").write_text("edited\n")
    (line,) = problems_of_study(read_study_folder(study_of(clone, sound(clone))))
    assert "(runs/run/definition.py): 2 runs" in line
    # And before the hours, by the sweep
    assert provenance.code_state()["altered"] == ["runs/run/definition.py"]


def test_a_count_is_the_methods_own(clone):
    """Of this project's methods in models of conf/model; of others, and of settings out
    of bounds, none."""
    made = sound(clone)
    made[1]["parameters"]["adapter"] += 1
    other_count, _ = problems_of_study(read_study_folder(study_of(clone, made)))
    assert "count() gives 18,624, but 18,625 train: is something not" in other_count
    made[1]["parameters"]["formula"] += 1
    (line,) = problems_of_study(read_study_folder(study_of(clone, made)))
    assert "18,625 trained parameters, where VeRA" in line
    assert "has 18,624: 1 run" in line
    for settings in (
        {"kind": "peft"},
        {"kind": "a.B"},
        {"kind": "none"},
        {"rank": 10**9},
        {"rank": -1},
    ):
        made[1]["config"]["method"] |= settings
        lines = problems_of_study(read_study_folder(study_of(clone, made)))
        assert not any("parameters" in line for line in lines), settings


def test_what_the_history_lacks_is_not_compared_and_a_package_is_not_checked(
    clone, monkeypatch, capsys
):
    folder = study_of(clone, sound(clone))
    git(clone, "checkout", "-q", "--orphan", "another")
    git(clone, "commit", "-qm", "another project's")
    forget()
    (line,) = problems_of_study(read_study_folder(folder))
    assert "is not in this project's history" in line
    monkeypatch.setattr(provenance, "INSTALLED", True)
    assert publish.main([f"check={folder}"]) == 0
    assert "not checked: the code" in capsys.readouterr().out


def test_no_published_study_has_a_problem(capsys):
    for folder in study_folders():
        assert problems_of_study(read_study_folder(folder)) == [], folder


# --- folders that are not safe, or no studies


def test_what_is_no_file_of_a_study_is_named_and_not_read(clone, monkeypatch):
    def plant(name, text=b""):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)

    folder = study_of(clone, sound(clone), "odd")
    secret = clone / "secret"
    secret.write_text("secret")
    monkeypatch.setattr(study_check, "MAX_TEXT_BYTES", 1000)
    plant("setup.py")
    plant("sources/.bashrc")
    plant("sources/large.py", b"0" * 1001)
    plant("sources/no_text.py", b"\xff")
    (folder / "measures.jsonl").symlink_to(secret)
    (folder / "sources" / "folder").symlink_to(clone)
    os.mkfifo(folder / "sources" / "pipe.py")
    lines = problems_of_study(read_study_folder(folder))
    assert [line.partition(": ")[0] for line in lines] == [
        "measures.jsonl",
        "setup.py",
        "sources/.bashrc",
        "sources/folder",
        "sources/large.py",
        "sources/no_text.py",
        "sources/pipe.py",
    ]
    assert "secret" not in "".join(lines).replace("secret:", "")
    monkeypatch.setattr(study_check, "MAX_FILES", 3)
    assert "more than 3 files" in problems_of_study(read_study_folder(folder))[0]
    with refused("no such folder"):
        read_study_folder(folder / "setup.py")


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("NOTES.md", study_check.NOTES_TEMPLATE, ["still the template"]),
        ("NOTES.md", "\x1b]0;x\x07", ["NOTES.md: holds a control character"]),
        ("records.jsonl", "", ["has no record"]),
        ("records.jsonl", "{\n", ["line 1: not a record", "has no record"]),
        ("measures.jsonl", "{}\n", ["measures.jsonl line 1: not a measure"]),
        (
            "records.jsonl",
            "{}\n" * 1000,
            ["line 1", "line 2", "line 3", "997 more such lines", "has no record"],
        ),
        (
            "records.jsonl",
            "\n" * 30_000,
            ["more than 20,000 lines", "has no record"],
        ),
    ],
)
def test_damaged_files_are_named_in_a_few_lines(name, text, named, clone):
    folder = study_of(clone, sound(clone))
    (folder / name).write_text(text)
    lines = problems_of_study(read_study_folder(folder))
    assert len(lines) == len(named), lines
    for line, expected in zip(lines, named, strict=True):
        assert expected in line


def test_ids_stand_once_and_in_order_and_the_folder_has_a_studys_name(clone):
    folder = study_of(clone, sound(clone))
    path = folder / "records.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    for lines in ([second, first], [first, second, second]):
        path.write_text("".join(lines))
        assert "in sorted order" in problems_of_study(read_study_folder(folder))[0]
    path.write_text(first + second)
    named = folder.rename(folder.with_name("My study"))
    (line,) = problems_of_study(read_study_folder(named))
    assert "'My study'" in line


def test_a_hostile_label_is_no_record_and_reaches_no_terminal(clone):
    folder = study_of(clone, sound(clone))
    path = folder / "records.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first.replace('"VeRA', '"\\u001b[2J') + second)
    (line,) = problems_of_study(read_study_folder(folder))
    assert "label: holds a control character" in line
    assert "\x1b" not in line


# --- the commands


def test_the_command_writes_a_study_and_checks_it(words, tmp_path, monkeypatch):
    """From the first run to a study with nothing to mend, as an installed package
    writes it; on a tree without changes of the project's files."""
    monkeypatch.setattr(provenance, "altered_files", list)
    provenance.code_state.cache_clear()
    monkeypatch.setattr(publish, "INSTALLED", True)
    monkeypatch.chdir(tmp_path)
    output, folder = output_of(words), Path("mine")
    one, two = (trained([*words, f"seed={seed}"]) for seed in (0, 1))
    trained([*words, "train.max_steps=1"])  # a trial, which is left out
    write_sweep(output, "alone", [one["id"]])
    said = call_here(
        "runs.publish", "mine", "sweep=last", f"output={output}", check=0
    ).stdout
    assert "1 record in mine" in said
    assert "To be written: mine/NOTES.md" in said
    missing = call_here("runs.publish", "check=mine", check=1).stdout
    assert "NOTES.md is missing or still the template" in missing
    assert "mine: 1 record, " in missing
    (folder / "NOTES.md").write_text("On a laptop.\n")
    own = [word for word in words if not word.startswith("output=")]
    command = ["runs.publish", "mine", f"output={output}"]
    said = call_here(*command, *own, "seed=0,1", check=0).stdout
    assert "2 records in mine" in said
    assert "NOTES.md" not in said
    assert {record["id"] for record in read_study_folder(folder).records} == {
        one["id"],
        two["id"],
    }
    assert str(tmp_path) not in (folder / "records.jsonl").read_text()
    for bad in ("check=mine seed=1", "check=none", "a-b", "mine sweep=no"):
        stderr = call_here(*command[:1], *bad.split(), check=2).stderr
        assert stderr.count("\n") == 1


def test_a_method_and_configuration_from_outside_come_along(tmp_path, monkeypatch):
    (tmp_path / "my_method.py").write_text("import beside\n")
    (tmp_path / "beside.py").write_text("x = 1\n")
    preset = tmp_path / "conf" / "experiment" / "mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("seed: 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (made,) = seed_records(row="mine", bests=(0.8,))
    made["config"]["method"]["kind"] = "my_method.Mine"
    sources = publish.own_sources([made], str(tmp_path / "conf"))
    assert sources == {
        "my_method.py": "import beside\n",
        "beside.py": "x = 1\n",
        "config/experiment/mine.yaml": "seed: 0\n",
    }
    (tmp_path / "beside.py").write_bytes(b"\xff")
    with refused("a method or a file of configuration"):
        publish.own_sources([made], None)


def test_a_sweep_says_before_its_runs_that_code_was_changed(words, monkeypatch, capsys):
    for others, told in (
        ([], False),
        (["runs/run/definition.py", "vera/check.py"], True),
    ):
        monkeypatch.setattr(
            "runs.sweep.preflight.code_state", lambda of=others: {"altered": of}
        )
        preflight(expand(words))
        assert ("runs/run/definition.py and 1 more" in capsys.readouterr().out) == told


@pytest.mark.usefixtures("process")
def test_ci_checks_each_study_that_a_branch_changes(tmp_path):
    root = tmp_path / "clone"
    for name in ("same", "edited", "gone"):
        (root / "runs" / "records" / name).mkdir(parents=True)
        (root / "runs" / "records" / name / "NOTES.md").write_text("old\n")
    (root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "records", root / ".ci" / "records")
    checked = tmp_path / "python"
    checked.write_text('#!/bin/sh\necho "$@"\n[ "$3" != "check=runs/records/bad" ]\n')
    checked.chmod(0o755)

    def run(base="main"):
        return subprocess.run(
            [root / ".ci" / "records", base],
            env=os.environ | {"PYTHON": str(checked)},
            capture_output=True,
            text=True,
        )

    git(tmp_path, "init", "-q", "-b", "main", str(root))
    commit_all(root)
    git(root, "checkout", "-qb", "mine")
    (root / "runs" / "records" / "edited" / "NOTES.md").write_text("now\n")
    shutil.rmtree(root / "runs" / "records" / "gone")
    (root / "runs" / "records" / "overrides.jsonl").write_text("{}\n")
    (root / "runs" / "records" / "a b").mkdir()
    (root / "runs" / "records" / "a b" / "NOTES.md").write_text("new\n")
    commit_all(root)
    done = run()
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [f"-m runs.publish check=runs/records/{name}" for name in ("a b", "edited")],
    )
    (root / "runs" / "records" / "bad").mkdir()
    (root / "runs" / "records" / "bad" / "NOTES.md").write_text("new\n")
    commit_all(root)
    assert run().returncode == 1
    assert run("no-such-branch").returncode == 1
