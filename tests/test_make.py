"""make hands on what it is given: each variable is one word of the command, and nothing
in it is run."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from running import ROOT

pytestmark = pytest.mark.properties

PROGRAM = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
with open("calls", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "runs" in sys.argv and os.path.exists("exits"):
    sys.exit(int(open("exits").read()))
if {{"magnitude", "similarity"}} & {{*sys.argv}} and os.path.exists("empty"):
    sys.exit("error: outputs/records has no runs for it")
sys.exit("pip" in sys.argv and os.path.exists("offline"))
"""


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "a place"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv" / ".installed").touch()
    (folder / ".venv" / "bin" / "python").write_text(PROGRAM)
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    return folder


@pytest.fixture
def make(process, place):
    """Runs make in a folder whose python writes down the words that it gets: these; of
    what fails its messages, too."""

    def make(*words, check=0):
        (place / "calls").write_text("")
        done = subprocess.run(
            ["make", *words], cwd=place, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == check, done.stderr
        assert not (place / "touched").exists()
        make.said = done.stderr
        return [json.loads(line) for line in (place / "calls").read_text().splitlines()]

    return make


@pytest.mark.parametrize(
    ("target", "runs", "then"),
    [
        ("demo", 1, ["analysis.tables", "analysis.figures"]),
        ("ablations", 4, ["analysis.tables", "analysis.tables"]),
        ("llama-7b", 1, ["runs.answer", "analysis.tables"]),
        ("rank-scaling", 2, ["analysis.figures", "runs.measure", "analysis.figures"]),
    ],
)
def test_a_failed_run_costs_no_table_and_a_mistake_ends_the_command(
    target, runs, then, make, place, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    every, one = ["runs"] * runs + then, ["runs"]
    # 2 is make's own
    for code, check, wanted in (
        (0, 0, every),
        (1, 2, every),
        (2, 2, one),
        (130, 2, one),
    ):
        (place / "exits").write_text(str(code))
        assert [words[1] for words in make(target, check=check)] == wanted


def test_an_upload_leaves_an_older_environment_as_it_is_and_sets_up_a_missing_one(
    make, place
):
    (place / "pyproject.toml").touch()
    os.utime(place / ".venv" / ".installed", (0, 0))
    upload = ["-m", "wandb", "sync", "--yes"]
    assert make("sync") == [upload]
    assert make("demo")[0][:3] == ["-m", "pip", "install"]
    shutil.rmtree(place / ".venv")
    text = subprocess.run(
        ["make", "--dry-run", "sync"], cwd=place, capture_output=True, text=True
    ).stdout
    assert "-m venv .venv" in text


#: One word of the command, in which nothing is run.
EVIL = (
    "0; touch touched; $(shell touch touched) `touch touched` a' b\"; touch touched #"
)


def test_what_a_variable_holds_is_one_word_and_is_not_run(make):
    of = {
        "SEEDS": "seed",
        "METHODS": "method",
        "TASKS": "task",
        "MODEL": "model",
        "OUTPUT": "output",
    }
    of |= {
        "MODEL_PATH": "model.path",
        "DATA": "task.data_dir",
        "MT_BENCH": "task.mt_bench_dir",
    }
    of["EXPERIMENT"] = "experiment"
    (words,) = make("plan", *(f"{name}={name} {EVIL}" for name in of))
    assert sorted(words) == sorted(
        ["-m", "runs.plan", *(f"{of[name]}={name} {EVIL}" for name in of)]
    )


def test_args_are_split_as_a_shell_splits_them_and_paths_may_hold_spaces(make):
    (words,) = make("plan", f"ARGS={EVIL}")
    assert words[:4] == ["-m", "runs.plan", "experiment=demo", "output=outputs"]
    assert make("plan", "ARGS='a b") == [
        ["-m", "runs.plan", "experiment=demo", "output=outputs", "'a b"]
    ]
    given = ["DATA=/my data/glue", "OUTPUT=my outputs", "SEEDS=0,1", "LAUNCHER=local"]
    first, table, figure = make(
        "demo", *given, "ARGS=train.epochs=1 method.label='a b' x={a: 1}"
    )
    assert first == [
        *("-m", "runs", "experiment=demo", "table=false", "seed=0,1"),
        *("task.data_dir=/my data/glue", "output=my outputs"),
        *("train.epochs=1", "method.label=a b", "x={a:", "1}", "launcher=local"),
    ]
    assert table == [
        "-m",
        "analysis.tables",
        "demo",
        "output=my outputs",
        "published=false",
        "save=true",
    ]
    assert figure == [
        "-m",
        "analysis.figures",
        "demo",
        "output=my outputs",
        "published=false",
    ]
    (answer,) = (
        words for words in make("llama-7b", "JUDGE=a b") if words[1] == "runs.answer"
    )
    assert answer == [
        "-m",
        "runs.answer",
        "experiment=table4_llama_7b",
        "output=outputs",
    ]
    assert make("dashboard", "PROJECT=a b")[0][-1] == "project=a b"
    (words,) = make("gpu-check", "PART=parity speed", "DEVICE=cpu", "OUTPUT=my outputs")
    assert words[3:] == ["gpu_check", "parity speed", "device=cpu", "output=my outputs"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        *(
            ("demo METHOD=vera", "METHODS"),
            ("glue-base TASK=rte", "TASKS"),
            ("tune SEED=0", "SEEDS"),
        ),
        *(("chaos SEED=0", ""), ("attack SEED=0", ""), ("attack TASK=rte", "TASKS")),
    ],
)
def test_a_variable_without_its_s_is_refused_and_not_ignored(words, named, make):
    calls = make(*words.split(), check=2 if named else 0)
    if named:
        assert not calls
        assert f"{named[:-1]}=: did you mean {named}=?" in make.said
        assert make.said.count("\n") == 1
    else:
        assert calls[0][-1] == "0"


def test_figures_are_drawn_without_the_measures_that_have_no_runs(make, place):
    (place / "empty").touch()
    assert [words[1] for words in make("figures")] == [
        *["runs.measure"] * 3,
        "analysis.figures",
    ]
    assert not make.said


def test_the_fast_tests_or_in_ci_all_of_them(make, monkeypatch):
    """CI calls `make test`, too, which alone the README names."""
    every = ["-m", "pytest", "-n", "auto", "--dist", "worksteal", "--durations", "10"]
    monkeypatch.delenv("ALL_TESTS", raising=False)
    assert (make("test"), make("test-all")) == ([[*every, "-m", "not slow"]], [every])
    monkeypatch.setenv("ALL_TESTS", "1")
    assert make("test") == [every]


def test_setup_installs_the_versions_that_ci_ran_unless_it_is_told_otherwise(
    make, place
):
    installed = place / ".venv" / ".installed"
    for words, versions in (
        ([], ["-c", "constraints.txt"]),
        (["CONSTRAINTS="], []),
        ([f"CONSTRAINTS={EVIL}"], ["-c", EVIL]),
    ):
        installed.unlink()
        venv, newest, pip, _ = make("setup", "PYTHON=.venv/bin/python", *words)
        assert venv == ["-m", "venv", ".venv"]
        assert newest[:3] == pip[:3] == ["-m", "pip", "install"]
        assert pip[-2 - len(versions) :] == [*versions, "-e", ".[bench,dev]"]
        assert installed.exists()
    installed.unlink()
    (place / "offline").touch()
    make("setup", "PYTHON=.venv/bin/python", check=2)
    assert make.said.startswith("error: a version of constraints.txt may not exist")
    assert not installed.exists()
