"""make hands on what it is given: each variable is one word of the command, and nothing in it is run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.properties

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make(process, tmp_path):
    """Runs a target in a folder whose python writes down the words that each command gets."""
    folder = tmp_path / "a place"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv" / ".installed").touch()
    program = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
with open("calls", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "runs" in sys.argv and os.path.exists("exits"):
    sys.exit(int(open("exits").read()))
sys.exit("pip" in sys.argv and os.path.exists("offline"))
"""
    (folder / ".venv" / "bin" / "python").write_text(program)
    (folder / ".venv" / "bin" / "python").chmod(0o755)

    def run(*words, check=0):
        (folder / "calls").unlink(missing_ok=True)
        done = subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == check, done.stderr
        assert not (folder / "touched").exists()
        return (
            [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
            if not check
            else done.stderr
        )

    return run


@pytest.mark.parametrize(
    ("target", "runs", "then"),
    [
        ("demo", 1, ["analysis.tables", "analysis.figures"]),
        ("glue-base", 1, ["analysis.tables"]),
        ("ablations", 4, ["analysis.tables", "analysis.tables"]),
        ("llama-7b", 1, ["runs.answer", "analysis.tables"]),
        ("rank-scaling", 2, ["analysis.figures", "runs.measure", "analysis.figures"]),
    ],
)
def test_a_failed_run_costs_no_table_and_a_mistake_ends_the_command(
    target, runs, then, make, tmp_path, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    folder = tmp_path / "a place"

    def called(code):
        (folder / "exits").write_text(str(code))
        done = subprocess.run(["make", target], cwd=folder, capture_output=True, text=True, timeout=60)
        lines = (folder / "calls").read_text().splitlines()
        (folder / "calls").unlink()
        return done.returncode, [json.loads(line)[1] for line in lines]

    assert called(0) == (0, ["runs"] * runs + then)
    assert called(1) == (2, ["runs"] * runs + then)  # make's own code for a recipe that failed
    assert called(2) == called(130) == (2, ["runs"])


#: One word of the command each, in which nothing is run.
EVIL = ["0; touch touched", "$(shell touch touched)", "`touch touched`", "a' b\"; touch touched #"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("SEEDS", "seed"), ("METHODS", "method"), ("TASKS", "task"), ("MODEL", "model")),
        *(("MODEL_PATH", "model.path"), ("DATA", "task.data_dir"), ("MT_BENCH", "task.mt_bench_dir")),
        *(("OUTPUT", "output"), ("EXPERIMENT", "experiment")),
    ],
)
def test_what_a_variable_holds_is_one_word_and_is_not_run(make, name, key):
    for evil in EVIL:
        (words,) = make("plan", f"{name}={evil}")
        assert f"{key}={evil}" in words
        assert len(words) == (4 if name in ("OUTPUT", "EXPERIMENT") else 5)
        (words,) = make("plan", f"ARGS={evil}")  # as a shell splits them
        assert words[:4] == ["-m", "runs.plan", "experiment=demo", "output=outputs"]


def test_paths_may_hold_spaces_and_args_quotes(make):
    given = [
        "DATA=/my data/glue",
        "OUTPUT=my outputs",
        "SEEDS=0,1",
        "ARGS=train.epochs=1 method.label='a b' x={a: 1}",
    ]
    first, table, figure = make("demo", *given, "LAUNCHER=local")
    assert first == [
        *("-m", "runs", "experiment=demo", "table=false", "seed=0,1"),
        *("task.data_dir=/my data/glue", "output=my outputs"),
        *("train.epochs=1", "method.label=a b", "x={a:", "1}", "launcher=local"),
    ]
    assert table == ["-m", "analysis.tables", "demo", "output=my outputs", "published=false", "save=true"]
    assert figure == ["-m", "analysis.figures", "demo", "output=my outputs", "published=false"]
    (answer,) = (words for words in make("llama-7b", "JUDGE=a b") if words[1] == "runs.answer")
    assert answer == ["-m", "runs.answer", "experiment=table4_llama_7b", "output=outputs"]
    assert make("plan", "ARGS='a b") == [["-m", "runs.plan", "experiment=demo", "output=outputs", "'a b"]]
    assert make("dashboard", "PROJECT=a b")[0][-1] == "project=a b"


def test_the_check_of_a_gpu_is_given_its_parts_and_its_device(make):
    assert make("gpu-check") == [["-W", "ignore", "-m", "gpu_check", "output=outputs"]]
    (words,) = make("gpu-check", "PART=parity speed", "DEVICE=cpu", "OUTPUT=my outputs")
    assert words[3:] == ["gpu_check", "parity speed", "device=cpu", "output=my outputs"]


def test_all_tests_are_the_fast_ones_and_the_slow_ones_each_once(make):
    """As CI calls it, where `make test` alone is what the README names."""
    command = ["-m", "pytest", "-n", "auto", "--dist", "worksteal", "--durations", "10", "-m"]
    fast, slow = [*command, "not slow"], [*command, "slow"]
    assert make("test") == [fast]
    assert make("test", "test-all") == make("test-all") == [fast, slow]


def test_setup_installs_the_versions_that_ci_ran_unless_it_is_told_otherwise(make, tmp_path):
    installed = tmp_path / "a place" / ".venv" / ".installed"
    for words, versions in (
        ([], ["-c", "constraints.txt"]),
        (["CONSTRAINTS="], []),
        *(([f"CONSTRAINTS={evil}"], ["-c", evil]) for evil in EVIL),
    ):
        installed.unlink()
        venv, pip, _ = make("setup", "PYTHON=.venv/bin/python", *words)
        assert venv == ["-m", "venv", ".venv"]
        assert pip[:3] == ["-m", "pip", "install"]
        assert pip[-2 - len(versions) :] == [*versions, "-e", ".[bench,dev]"]
        assert installed.exists()
    installed.unlink()
    (tmp_path / "a place" / "offline").touch()
    said = make("setup", "PYTHON=.venv/bin/python", check=2)
    assert said.startswith(
        "error: a version of constraints.txt may not exist for this Python: make setup CONSTR"
    )
    assert not installed.exists()
