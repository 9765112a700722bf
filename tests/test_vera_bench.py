"""The command vera-bench: its names, what it imports, and what it says."""

import contextlib
import importlib
import io
import subprocess
import sys

import pytest
from running import ROOT, refused

from runs.command.parser import entry_point
from runs.config import Files
from vera_bench import COMMANDS
from vera_bench.__main__ import main, overview, script

pytestmark = pytest.mark.properties


def said(monkeypatch, *words):
    """What vera-bench prints, to both streams, and its exit code."""
    output = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["/bin/vera-bench", *words])
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        pytest.raises(SystemExit) as end,
    ):
        entry_point(main)
    return output.getvalue(), end.value.code


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_module_with_a_main(name):
    module = importlib.import_module(COMMANDS[name].module)
    assert callable(module.main)
    assert len(COMMANDS[name].description) < 50


def test_by_itself_it_says_what_to_type_first(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vera-bench"])
    script()
    shown = capsys.readouterr().out
    assert shown == f"{overview()}\n"
    assert len(shown.splitlines()) <= 13
    assert max(map(len, shown.splitlines())) <= 80
    for name in COMMANDS:
        assert f" {name}" in shown


def test_a_command_is_what_its_module_does_and_is_named_as_it_was_typed(monkeypatch):
    """And KEY=VALUE and options stay those of run."""
    shown, code = said(monkeypatch, "plan", "--help")
    assert (shown.splitlines()[0], code) == ("usage: vera-bench plan", 0)
    for words in (["run", "model=x"], ["model=x"], ["plan", "model=x"]):
        shown, code = said(monkeypatch, *words)
        assert (shown[:23], code) == ("error: no model 'x'. Al", 2)
    shown, code = said(monkeypatch, "diff")
    assert shown == "error: ID is missing: vera-bench diff ID [ID] (--help)\n"
    assert "Hydra 1." in said(monkeypatch, "--version")[0]
    shown, code = said(monkeypatch, "--help")
    assert shown.startswith("usage: vera-bench\n")
    assert len(shown.splitlines()) <= 48


#: Slips, and what is said of them.
SLIPS = """
plna experiment=demo | no command 'plna'. Did you mean plan?
what | no command 'what'. Commands: run, plan,
--method vera | --method: no such option. Did you mean method=vera? Groups and keys have no dashes
method=vera seed=0, 1 | seed=0, 1: a list has no blanks: seed=0,1
expriment=demo | no key 'expriment'. Did you mean experiment?
model=bert-base-uncased | One of the hub: model=encoder model.hub=bert-base-uncased
--config-dir X tune method=vera | the command comes first: vera-bench tune ...
method=vera plan | the command comes first: vera-bench plan ...
list modles | no kind of name 'modles'. Did you mean models?
"""


@pytest.mark.parametrize("line", SLIPS.strip().splitlines())
def test_a_slip_is_answered_with_what_to_type(line, monkeypatch):
    words, _, message = line.partition(" | ")
    shown, code = said(monkeypatch, *words.split())
    assert (message in shown, shown.count("\n"), code) == (True, 1, 2), shown


@pytest.mark.parametrize("group", ["model", "task", "method"])
def test_a_list_has_every_name_and_its_label(group, monkeypatch):
    shown, code = said(monkeypatch, "list", f"{group}s")
    assert code == 0
    lines = shown.splitlines()[:-2]
    assert [line.split()[0] for line in lines] == Files().choices(group)
    assert sum(len(line.split()) > 1 for line in lines) > len(lines) / 3


def test_only_the_module_that_is_asked_for_is_imported():
    code = (
        "import sys; from vera_bench.__main__ import main; main(sys.argv[1:]); "
        "rooms = {'analysis', 'torch', 'hydra', 'runs.sweep', 'runs.plan'}; "
        "print(rooms & {*sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "list", "tasks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "set()\n")


#: What is typed, and what a shell gets for it.
COMPLETED = """
vera-bench pla | plan
vera-bench plan launcher=s | launcher=serial launcher=slurm
vera-bench run launcher=s | launcher=serial launcher=slurm
vera-bench launcher=s | launcher=serial launcher=slurm
vera-bench stats outp | output=
vera-bench list mo | models
"""


@pytest.mark.parametrize("line", COMPLETED.strip().splitlines())
def test_a_shell_completes_every_command(line, monkeypatch):
    typed, _, completed = line.partition(" | ")
    monkeypatch.setenv("COMP_LINE", typed)
    shown, code = said(monkeypatch, "-sc", "query=bash")
    assert (shown.split(), code) == (completed.split(), 0)


def test_the_server_is_an_example_of_the_repository(monkeypatch, tmp_path):
    from vera_bench import serve

    monkeypatch.setattr(sys, "argv", ["vera-bench serve", "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        serve.main(["--help"])
    assert end.value.code == 0
    monkeypatch.setattr(serve, "EXAMPLE", tmp_path / "serve.py")
    with refused("the server is an example of the repository"):
        serve.main([])
