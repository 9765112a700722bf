"""How long and how dense the code may be, what records may import, and that each test
has a kind."""

import ast
import functools
import re
from pathlib import Path

import pytest
from language import Language

from vera_bench import COMMANDS

pytestmark = pytest.mark.nets

ROOT = Path(__file__).parent.parent
ROOMS = ("vera", "tasks", "runs", "analysis", "vera_bench")
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for room in ROOMS
    for path in sorted(ROOT.glob(f"{room}/**/*.py"))
}

#: What a reader can hold in mind. Split by topic, never to fit.
FILE_LINES, FUNCTION_LINES = 500, 70
#: Files that are longer, until they are rewritten.
LONGER_FILES: set[str] = set()
#: Functions that are longer, until they are rewritten.
LONGER_FUNCTIONS = {
    "runs/models/load.py:load",
}
#: The most that each measure of tests/language.py may be, in percent. The goals are 3.5
#: for dense statements, 0.5 for function words and 7 for Any: each room comes down to
#: them as it is rewritten, and never goes up again.
LIMITS = {
    "vera_bench": {"dense statements": 4.0, "function words": 0.5, "Any": 7.0},
    "vera": {"dense statements": 3.5, "function words": 0.5, "Any": 7.0},
    "tasks": {"dense statements": 3.5, "function words": 0.5, "Any": 7.0},
    "runs": {"dense statements": 1.5, "function words": 0.7, "Any": 10.3},
    "analysis": {"dense statements": 3.5, "function words": 0.7, "Any": 8.5},
}
#: Of the data in tests/nets/golden.
GOLDEN_LINES, GOLDEN_BYTES = 6_000, 1_000_000


parsed = functools.cache(ast.parse)


def functions(text):
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def longer(lines, limit, exempt):
    """What is longer than a limit, and what is exempt without need."""
    over = {name for name, count in lines.items() if count > limit}
    return over - exempt, exempt - over


def test_a_file_can_be_read_at_once():
    lines = {name: len(text.splitlines()) for name, text in FILES.items()}
    assert longer(lines, FILE_LINES, LONGER_FILES) == (set(), set())


def test_a_function_fits_on_a_page():
    lines = {}
    for name, text in FILES.items():
        for function, count in functions(text):
            lines[f"{name}:{function}"] = count
    assert longer(lines, FUNCTION_LINES, LONGER_FUNCTIONS) == (set(), set())


@pytest.mark.parametrize("room", LIMITS)
def test_statements_and_names_are_readable(room):
    language = Language()
    for name, text in FILES.items():
        if name.startswith(f"{room}/"):
            language.add(name, text)
    percentages = language.percentages()
    over = {
        key: percentages[key]
        for key in percentages
        if percentages[key] > LIMITS[room][key]
    }
    assert not over, (language.dense[:20], language.function_words[:20])


def imports(text):
    """The modules of this project that a file names."""
    for node in ast.walk(parsed(text)):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import | ast.ImportFrom)
            else []
        )
        if isinstance(node, ast.ImportFrom):
            under = [f"{node.module}.{name}" for name in names]
            names = [name if is_module(name) else node.module for name in under]
        yield from (name for name in names if name.partition(".")[0] in ROOMS)


def is_module(name):
    path = name.replace(".", "/")
    return f"{path}.py" in FILES or f"{path}/__init__.py" in FILES


@pytest.mark.parametrize(
    "name",
    [name for name in FILES if name.startswith(("runs/record/", "runs/command/"))],
)
def test_records_and_command_lines_know_nothing_else_of_the_project(name):
    known = ("runs.record",)
    if name.startswith("runs/command/"):
        known = ("runs.record", "runs.command")
    assert all(module.startswith(known) for module in imports(FILES[name]))


def test_the_files_at_the_top_of_runs_are_commands():
    commands = {command.module for command in COMMANDS.values()}
    at_the_top = {
        name.removesuffix(".py").replace("/", ".")
        for name in FILES
        if name.startswith("runs/") and name.count("/") == 1
    }
    assert at_the_top - commands == {"runs.__init__"}


def test_golden_data_are_few():
    paths = [
        path
        for path in (ROOT / "tests" / "nets" / "golden").rglob("*")
        if path.is_file()
    ]
    assert sum(path.read_bytes().count(b"\n") for path in paths) <= GOLDEN_LINES
    assert sum(path.stat().st_size for path in paths) <= GOLDEN_BYTES


def test_each_test_file_has_one_of_the_five_kinds():
    kinds = "contract|parity|determinism|properties|nets"
    for path in Path(__file__).parent.rglob("test_*.py"):
        marks = re.findall(
            rf"^pytestmark = .*pytest\.mark\.({kinds})\b", path.read_text(), re.M
        )
        assert len(marks) == 1, (
            f"{path.name}: give it one kind, pytestmark = pytest.mark.({kinds})"
        )
