"""Every command of runs and analysis reads its settings in the same way, and ends in the same way."""

import dataclasses
import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Literal

import pytest
from running import ROOT, call

from runs import command
from runs.command import COMPOSING, Common, OfRecords, entry_point, read, setting
from runs.errors import UserError

#: The commands, each with the positional words that it takes at most; none where it takes any number.
COMMANDS = {
    "analysis.dashboard": [],
    "analysis.diff": ["a", "b"],
    "analysis.figures": ["figure4"],
    "analysis.notebooks": None,
    "analysis.records": [],
    "analysis.report": [],
    "analysis.results": [],
    "analysis.stats": ["table2"],
    "analysis.tables": ["table1"],
    "benchmarks": ["training"],
    "runs.answer": None,
    "runs.counts": [],
    "runs.evaluate": ["RUN"],
    "runs.export": ["RUN", "peft", "FOLDER"],
    "runs.judge": None,
    "runs.measure": None,
    "runs.publish": ["study"],
}
ANY = {"analysis.notebooks": [], "runs.measure": ["matrix_fit"], "runs.answer": ["a"], "runs.judge": ["a"]}


def module_of(name):
    folder = (ROOT / name.replace(".", "/")).is_dir()
    return importlib.import_module(f"{name}.__main__" if folder else name)


@pytest.fixture
def here(monkeypatch, capsys):
    """A command in this process, as a user starts it: its exit code, what it printed, and its errors."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as ended:
            entry_point(module_of(name).main)
        return ended.value.code, *capsys.readouterr()

    return run


def names_of(name):
    return ANY[name] if COMMANDS[name] is None else COMMANDS[name]


def test_no_command_is_left_out():
    """Those that take Hydra's words alone have a reader of their own: runs, plan, tune, and W&B's sync."""
    others = {"runs", "runs.sweep.executor", "runs.plan", "runs.tracking", "runs.tune"}
    starts = [path for room in ("runs", "analysis", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    found = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")
        for path in starts
        if "entry_point(main)\n" in path.read_text()
    }
    assert found - others == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_is_the_docstring_and_every_setting(here, name, word):
    code, text, errors = here(name, *names_of(name), word)
    module = module_of(name)
    assert (code, errors) == (0, "")
    assert text.startswith(module.__doc__.strip())
    assert f"\npython -m {name}" in text
    for one in dataclasses.fields(module.Settings):
        key = one.metadata["key"] or one.name
        assert re.search(rf"^  {re.escape(key)}=\S* +.*{re.escape(one.metadata['about'])}$", text, re.M), key


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["debgu=true"], "Did you mean debug"),
        (["--debug"], "no option --debug. Settings are words: debug=true"),
        (["--debug=false"], "no option --debug=false. Settings are words: debug=false"),
        (["--debgu"], "no option --debgu. Settings are words: debug=true"),
        (["--zzz"], "no option --zzz. Settings are words: debug="),
        (["debug=maybe"], "debug=maybe: should be true or false"),
        (["debug=false", "debug=False"], "debug=False: debug is given twice"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "_".join(value),
)
def test_a_mistake_is_one_line_and_exit_code_2(here, name, words, message):
    code, text, errors = here(name, *names_of(name), *words)
    assert (code, text, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: ")
    assert message in errors


@pytest.mark.parametrize("name", [name for name, names in COMMANDS.items() if names is not None])
def test_a_word_too_many_or_too_few_is_one_line(here, name):
    code, text, errors = here(name, *COMMANDS[name], "much")
    assert (code, text) == (2, "")
    assert errors.startswith(f"error: 'much' is too much: python -m {name}")
    optional = ("analysis.diff", "analysis.stats", "analysis.tables", "benchmarks")
    needed = 0 if name in optional else len(COMMANDS[name])
    if needed:
        code, text, errors = here(name, *COMMANDS[name][:-1])
        assert (code, text) == (2, "")
        assert re.match(rf"error: [A-Z]+ is missing: python -m {name} [A-Z ]+ \(--help\)\n$", errors)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("analysis.tables", ["table2", "--format", "latex"], "Settings are words: format=latex"),
        ("analysis.tables", ["table2", "--output=x"], "Settings are words: output=x"),
        ("analysis.tables", ["table2", "--format", "runs=true"], "Settings are words: format=VALUE"),
        ("analysis.tables", ["table2", "format=latx"], "one of md, latex, csv. Did you mean latex?"),
        ("analysis.tables", ["table2", "outptu=x"], "no setting outptu=. Did you mean output=? (python -m"),
        ("analysis.tables", ["table2", "x=1"], "no setting x=. Known: debug=, output=, sweep=, model="),
        ("analysis.tables", ["tabel2"], "no table 'tabel2'. Did you mean table2?"),
        ("analysis.tables", ["table2", "seeds=1.5"], "seeds=1.5: should be a whole number, or null"),
        ("analysis.figures", ["figur2"], "no figure 'figur2'. Did you mean figure2?"),
        ("benchmarks", ["--full"], "Settings are words: full=true"),
        ("runs.export", ["RUN", "pef", "x"], "no format 'pef'. Did you mean peft?"),
        ("runs.judge", ["RUN", "pases=3"], "no setting pases=. Did you mean passes=?"),
        ("runs.judge", ["RUN", "passes=many"], "passes=many: should be a whole number"),
        ("runs.judge", [], "which runs? Name their ids, or what composes them"),
        ("runs.answer", ["task.bench=mt_bench"], "which runs? Name their ids, or what composes them"),
        ("runs.publish", ["study", "--config-dir"], "--config-dir: its value is missing"),
        ("runs.publish", ["study", "-m=1"], "no option -m=1"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_right(here, name, words, message):
    code, text, errors = here(name, *words)
    assert (code, text, errors.count("\n")) == (2, "", 1)
    assert message in errors


# --- what is read


@dataclasses.dataclass(frozen=True)
class Settings(OfRecords):
    count: int = setting(1, "a count")
    share: float | None = setting(0.5, "a share")
    where: Path = setting(Path("here"), "a folder")
    kind: Literal["one", "two"] = setting("one", "a kind")
    text: str | None = setting(None, "a text")
    bench: str = setting("mt", "with a key of its own", "task.bench")


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("count=-3", "count", -3),
        ("share=1e-2", "share", 0.01),
        ("share=2", "share", 2.0),
        ("share=null", "share", None),
        ("where=a=b", "where", Path("a=b")),
        ("where=~/a", "where", Path.home() / "a"),
        ("kind=two", "kind", "two"),
        ("text=null", "text", None),
        ("text=5", "text", "5"),
        ("text=", "text", ""),
        ("task.bench=null", "bench", "null"),
        ("debug=True", "debug", True),
        ("output=x/y", "output", "x/y"),
    ],
)
def test_a_setting_has_its_type(word, name, value):
    line = read([word], Settings)
    read_value = getattr(line.settings, name)
    assert read_value == value
    assert type(read_value) is type(value)
    assert line.given == {word.partition("=")[0]: value}
    assert line.settings == dataclasses.replace(Settings(), **{name: value})


@pytest.mark.parametrize(
    "word",
    [
        *("count=", "count=1.0", "count=null", "count=1_0", "count= 1", "count=٣", f"count={'9' * 5000}"),
        *("share=nan", "share=inf", "share=1e999", "share=", "share=1,2", "where=", "kind=three", "debug=1"),
    ],
)
def test_a_wrong_type_is_refused(word):
    with pytest.raises(UserError, match=f"^{re.escape(word)}: should be "):
        read([word], Settings)


def test_what_composes_runs_is_handed_on_in_its_order():
    words = ["-m", "model=a,b", "study", "--config-dir", "D", "+x.y=1", "~z", "output=o", "task@a=b", "-cd=E"]
    line = read(words, OfRecords, "STUDY", "runs", COMPOSING)
    assert line.names == ("study",)
    assert line.overrides == ("model=a,b", "+x.y=1", "~z", "task@a=b")
    assert line.options == ("-m", "--config-dir", "D", "-cd", "E")
    assert line.composing("o") == [*line.options, *line.overrides, "output=o"]
    with pytest.raises(UserError, match=r"^no setting model=\."):
        read(["model=a"], OfRecords)
    with pytest.raises(UserError, match=r"^no option -m"):
        read(["-m"], OfRecords)
    assert read(["/a/b=c"], Common, "PATH").names == ("/a/b=c",)  # a path, and no setting


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

    for error in (UserError("a b"), DataError("a b"), AdapterError("a b"), UserError("a\nb"), OSError("a b")):
        assert ended(raising(error), monkeypatch) == 2
        assert capsys.readouterr() == ("", "error: a b\n")
        monkeypatch.setattr(sys, "argv", ["x", "debug=True"])
        with pytest.raises(type(error)):
            entry_point(raising(error))
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(ZeroDivisionError):
        entry_point(raising(ZeroDivisionError()))
    other = type("DataError", (ValueError,), {"__module__": "pandas.errors"})
    with pytest.raises(other):
        entry_point(raising(other("of another library")))
    assert ended(raising(KeyboardInterrupt()), monkeypatch) == 130
    assert capsys.readouterr().err.startswith("\ninterrupted. ")


@pytest.mark.parametrize(("options", "shown"), [([], ["odd"]), (["default"], ["changes", "odd"])])
def test_what_will_change_in_a_library_is_not_on_the_screen(options, shown, monkeypatch):
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
    monkeypatch.setattr(command, "_drop_unread_output", lambda: True)
    assert ended(raising(BrokenPipeError(32, "Broken pipe")), monkeypatch) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    "words", [["analysis.tables", "table8"], ["analysis.figures", "-h"], ["runs", "-h"], ["runs.judge", "-h"]]
)
@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_has_seen_enough_hears_no_complaint(words, both):
    """As of `| head` (and `2>&1 | head`), whose end is here before the first word."""
    errors = subprocess.STDOUT if both else subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as process:
        process.stdout.close()
        assert both or process.stderr.read() == ""
        assert process.wait(120) == 141


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["analysis.tables", "table1", "outptu=x"], "no setting outptu=. Did you mean output=?"),
        (["analysis.report", "output=FILE"], "FILE: File exists"),
        (["analysis.tables", "table1", "output=FILE", "save=true"], "FILE/table1: Not a directory"),
        (["runs.counts", "--json"], "no option --json. Settings are words: debug= (--help)"),
        (["runs.evaluate", "x", "output=FILE"], "no records begin with 'x' in FILE/records"),
    ],
)
def test_a_mistake_in_a_process_of_its_own(words, message, tmp_path):
    path = tmp_path / "file"
    path.touch()
    done = call(*(word.replace("FILE", str(path)) for word in words), check=2)
    assert done.stderr.splitlines()[-1].startswith(f"error: {message.replace('FILE', str(path))}")
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("process")
def test_a_full_disk_behind_the_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "analysis.tables", "table1"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: No space left on device")
    assert "Exception ignored" not in done.stderr


@pytest.mark.usefixtures("process")
def test_a_command_line_is_read_without_torch_and_hydra():
    code = (
        "import runs.command, sys; sys.exit(bool({'torch', 'hydra', 'tasks', 'vera'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
