"""Every command of runs and analysis reads its settings in the same way, and ends in
the same way."""

import dataclasses
import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Literal

import pytest
from running import ROOT, call_here, refused

import vera_bench
from runs.command.errors import UserError
from runs.command.parser import (
    COMPOSING_OPTIONS,
    CommonSettings,
    RecordSettings,
    entry_point,
    read_command_line,
    setting,
)
from runs.record.text import LONGEST_LINE

pytestmark = pytest.mark.properties

#: The commands, each with positional words that it takes.
COMMANDS = {
    f"analysis.{n}": []
    for n in ("dashboard", "findings", "notebooks", "records", "report", "results")
}
COMMANDS |= {
    "runs.counts": [],
    "runs.plan": [],
    "runs.tune": [],
    "runs.answer": ["a"],
    "runs.judge": ["a"],
}
COMMANDS |= {
    "analysis.diff": ["a", "b"],
    "analysis.figures": ["figure4"],
    "analysis.stats": ["table2"],
}
COMMANDS |= {
    "analysis.tables": ["table1"],
    "benchmarks": ["training"],
    "runs.evaluate": ["RUN"],
}
COMMANDS |= {"runs.export": ["RUN", "peft", "FOLDER"], "runs.publish": ["study"]}
COMMANDS |= {
    "runs.measure": ["matrix_fit"],
    "runs.lm_eval": ["RUN"],
    "runs.mistakes": ["RUN"],
}
COMMANDS |= {"runs.predict": ["RUN", "FILE"]}


def module_of(name):
    folder = (ROOT / name.replace(".", "/")).is_dir()
    return importlib.import_module(f"{name}.__main__" if folder else name)


def mistake_of(name, *words) -> str:
    """The line of a refused command, which prints nothing else."""
    done = call_here(module_of(name).__name__, *words, check=2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert done.stderr.startswith("error: ")
    return done.stderr


def test_no_command_is_left_out():
    """runs itself is in test_config.py."""
    others = {"runs"}
    starts = [
        path
        for room in ("runs", "analysis", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    ]
    found = {
        path.relative_to(ROOT)
        .with_suffix("")
        .as_posix()
        .replace("/", ".")
        .removesuffix(".__main__")
        for path in starts
        if "entry_point(main)\n" in path.read_text()
    }
    assert found - others == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_the_options_then_every_setting_and_then_the_docstring(name):
    module = module_of(name)
    text = call_here(module.__name__, *COMMANDS[name], "--help", check=0).stdout
    assert text.startswith(f"usage: python -m {name}")
    shown = " ".join(text.partition("options:\n")[2].split())
    settings, docs, rest = shown.partition(" ".join(module.__doc__.split()))
    assert (bool(docs), rest) == (True, "")
    for field in dataclasses.fields(getattr(module, "Settings", CommonSettings)):
        key = re.escape(field.metadata["key"] or field.name)
        about = re.escape(field.metadata["description"])
        assert re.search(rf" {key}=\S* {about} \([a-z_|]+\)", settings), field.name
    assert "debug=maybe: should be" in mistake_of(name, *COMMANDS[name], "debug=maybe")


#: How many lines of help one sees at once.
SCREEN = 42


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("name", [n for n in vera_bench.COMMANDS if n != "serve"])
def test_help_has_its_examples_one_a_line_and_names_vera_bench(
    name, columns, monkeypatch
):
    """The server's parser is its own."""
    monkeypatch.setenv("COLUMNS", str(columns))
    module = vera_bench.COMMANDS[name].module
    words = COMMANDS.get(module.removesuffix(".__main__"), [])
    text = call_here(module, *words, "--help", check=0).stdout
    # usage, options and settings come before it, and Hydra's groups after it
    description = text.split("\n\n", 3)[3].partition("\n\nGroups")[0]
    lines = re.sub("`.*?`", "", description, flags=re.S).splitlines()
    examples = [line for line in lines if line.startswith("vera-bench ")]
    assert examples
    for example in examples:
        typed = example.split()[1]
        assert typed == name or (name == "run" and re.match("[a-z]+=|--", typed))
    # no second example in a line, nor one within a paragraph
    assert sum("vera-bench " in line for line in lines) == len(examples)
    assert all(line.count("vera-bench ") <= 1 for line in lines)
    assert "python -m" not in description
    assert max(map(len, text.splitlines())) <= columns
    if columns == 80:
        assert len(text.splitlines()) <= SCREEN


#: Words, and what the line that refuses them names.
MISTAKES = """
analysis.tables table2 --format latex | --format: no such option. Did you mean format=?
analysis.tables table2 format=latx | format=latx: should be 'md', 'latex' or 'csv'. Did you mean latex?
analysis.tables table2 outptu=x | outptu=x: no such setting. Did you mean output=? (python -m
analysis.tables tabel2 | no table 'tabel2'. Did you mean table2?
analysis.tables table2 much | does not take 'table2 much'. Usage: python -m analysis.tables [TABLE]
analysis.stats --config-dir conf row=lora | --config-dir: leave it out, since records say what ran
analysis.tables table2 all=true all=False | all=False: all is given twice
runs.export RUN pef x | no format 'pef'. Did you mean peft?
runs.export RUN peft | PATH is missing: python -m runs.export RUN peft|hub|lora|merged PATH
runs.judge | which runs? Name their ids, or what composes them
runs.tune train.lr=1 train.lr_head=1 | vera: nothing to search
runs.tune task.holdout=null train.lr=1,2 | task.holdout=null: trials are judged on held-out training rows
runs.export RUN hub films | films: a repository of the hub is OWNER/NAME
runs.export RUN hub me/more | me/more: pushing needs a token
runs.export RUN lora F rank=0 | rank=0: should be a whole number from 1 on, or a share
runs.export RUN merged F base=a/b | base= belongs to peft, hub, lora, not to merged
runs.export RUN peft F base=/a/b | base=/a/b: should be OWNER/NAME or OWNER/NAME@REVISION
runs.measure similarity RUN | similarity is of two runs
runs.measure matrix_fit RUN | matrix_fit is of no runs
runs.measure matrix_fit seed=-1 | seed=-1: should be at least 0
runs.measure magnitude seed=1 | seed=1:
runs.answer RUN task.topk=1 | task.topk=1: no such setting. Did you mean task.top_k=?
runs.predict RUN | FILE|FOLDER|- is missing
runs.evaluate zzz | begin with 'zzz'
runs rerun= | begin with ''
"""


@pytest.mark.parametrize("line", MISTAKES.strip("\n").splitlines())
def test_what_is_wrong_is_named_with_what_is_right(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without records
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
    words, _, named = line.partition(" | ")
    assert named in mistake_of(*words.split())
    assert not [*tmp_path.iterdir()]


# --- what is read


@dataclasses.dataclass(frozen=True)
class Settings(RecordSettings):
    count: int = setting(1, "a count")
    share: float | None = setting(0.5, "a share")
    where: Path = setting(Path("here"), "a folder")
    kind: Literal["one", "two"] = setting("one", "a kind")
    text: str | None = setting(None, "a text")
    bench: str = setting("mt", "with a key of its own", "task.bench")


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        *(
            ("count=-3", "count", -3),
            ("share=1e-2", "share", 0.01),
            ("share=2", "share", 2.0),
        ),
        *(
            ("share=null", "share", None),
            ("text=null", "text", None),
            ("text=5", "text", "5"),
        ),
        *(
            ("where=a=b", "where", Path("a=b")),
            ("where=~/a", "where", Path.home() / "a"),
        ),
        *(
            ("kind=two", "kind", "two"),
            ("text=", "text", ""),
            ("task.bench=x", "bench", "x"),
        ),
        *(("debug=True", "debug", True), ("output=x/y", "output", "x/y")),
    ],
)
def test_a_setting_has_its_type(word, name, value):
    line = read_command_line([word], Settings)
    read_value = getattr(line.settings, name)
    assert (read_value, type(read_value)) == (value, type(value))
    assert line.given == {word.partition("=")[0]: value}
    assert line.settings == dataclasses.replace(Settings(), **{name: value})


WRONG = "count= count=1.5 count=null share=nan share=1e999 share=1,2 kind=three debug=maybe task.bench=null"


def test_a_wrong_type_is_refused():
    for word in (*WRONG.split(), f"count={'9' * 5000}"):
        with refused(f"{word}: ", longest=6000):
            read_command_line([word], Settings)


def test_what_composes_runs_is_handed_on_in_its_order():
    words = [
        "-m",
        "model=a,b",
        "study",
        "--config-dir",
        "D",
        "+x.y=1",
        "~z",
        "output=o",
        "task@a=b",
    ]
    line = read_command_line(words, RecordSettings, "STUDY", "runs", COMPOSING_OPTIONS)
    assert (line.positional, line.settings.output, line.config_dir) == (
        ("study",),
        "o",
        "D",
    )
    assert line.overrides == ("model=a,b", "+x.y=1", "~z", "task@a=b")
    assert line.options == {"--multirun": True, "--config-dir": "D"}
    assert (
        read_command_line(
            ["-cd=E"], RecordSettings, options=COMPOSING_OPTIONS
        ).config_dir
        == "E"
    )
    for word, why in (
        ("model=a", "model=a: no such setting."),
        ("-m", "-m: no such option"),
    ):
        with refused(why):
            read_command_line([word], RecordSettings)
    # a path, and no setting
    assert read_command_line(["/a/b=c"], CommonSettings, "PATH").positional == (
        "/a/b=c",
    )


# --- how a command ends


def ended(main, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["x", *words])
    with pytest.raises(SystemExit) as end:
        entry_point(main)
    return end.value.code


def raising(error):
    def main(arguments):
        raise error

    return main


def test_an_error_is_its_line_or_with_debug_its_traceback(monkeypatch, capsys):
    from tasks import DataError
    from vera.errors import AdapterError

    for error in (
        UserError("a b"),
        DataError("a b"),
        AdapterError("a b"),
        UserError("a\nb"),
        OSError("a b"),
    ):
        assert ended(raising(error), monkeypatch) == 2
        assert capsys.readouterr() == ("", "error: a b\n")
        monkeypatch.setattr(sys, "argv", ["x", "debug=True"])
        with pytest.raises(type(error)):
            entry_point(raising(error))
    assert (
        ended(
            raising(AdapterError(f"a.json:\n{'x' * 10**6}. Get it again")), monkeypatch
        )
        == 2
    )
    cut = capsys.readouterr().err
    assert cut.startswith("error: a.json: xxx")
    assert cut.endswith("xxx. Get it again\n")
    assert (cut.count("\n"), len(cut) <= 500, len(str(AdapterError("x" * 10**6)))) == (
        1,
        True,
        LONGEST_LINE,
    )
    monkeypatch.setattr(sys, "argv", ["x"])
    other = type("DataError", (ValueError,), {"__module__": "pandas.errors"})
    for error in (ZeroDivisionError(), other("of another library")):
        with pytest.raises(type(error)):
            entry_point(raising(error))
    assert ended(raising(KeyboardInterrupt()), monkeypatch) == 130
    assert capsys.readouterr().err.startswith("\ninterrupted. ")
    # torchrun's first process prints
    for key, line in (("RANK", "error: a b\n"), ("LOCAL_RANK", "")):
        monkeypatch.setenv(key, "1")
        assert (
            ended(raising(UserError("a b")), monkeypatch),
            *capsys.readouterr(),
        ) == (2, "", line)


@pytest.mark.parametrize(
    ("options", "shown"), [([], ["odd"]), (["default"], ["changes", "odd"])]
)
def test_what_will_change_in_a_library_is_not_on_the_screen(
    options, shown, monkeypatch
):
    """Unless Python was asked for it (-W): then it is for whoever mends it."""

    def main(arguments):
        warnings.warn("changes", FutureWarning, stacklevel=1)
        warnings.warn("odd", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(sys, "warnoptions", options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ended(main, monkeypatch) == 0
    assert [str(one.message) for one in caught] == shown


def test_a_pipe_that_is_not_the_output_breaks_with_a_line(monkeypatch, capfd):
    assert ended(raising(BrokenPipeError(32, "Broken pipe")), monkeypatch) == 2
    assert capfd.readouterr().err == "error: Broken pipe\n"
    monkeypatch.setattr("runs.command.parser._drop_unread_output", lambda: True)
    assert ended(raising(BrokenPipeError(32, "Broken pipe")), monkeypatch) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("words", "both"), [("analysis.tables table8", True), ("runs -h", False)]
)
def test_a_reader_that_has_seen_enough_hears_no_complaint(words, both):
    """As of `| head` (and `2>&1 | head`), whose end is here before the first word."""
    errors = subprocess.STDOUT if both else subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-m", *words.split()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    ) as process:
        process.stdout.close()
        assert both or process.stderr.read() == ""
        assert process.wait(120) in (0, 141)


@pytest.mark.usefixtures("process")
def test_a_full_disk_behind_the_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "analysis.tables", "table1"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: No space left on device")
    assert "Exception ignored" not in done.stderr


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("runs.command.parser", {"torch", "hydra", "tasks", "vera"}),
        (
            "runs.plan, runs.publish, runs.sweep.sweep, analysis.dashboard",
            {"torch", "evaluate", "wandb"},
        ),
    ],
)
def test_a_command_line_is_read_without_what_takes_long_to_import(modules, absent):
    code = f"import sys, {modules}; sys.exit(bool({absent} & {{*sys.modules}}))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode
        == 0
    )
