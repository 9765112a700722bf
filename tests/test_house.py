"""How long the parts of the code may be, what records may import, and that each test
has a kind."""

import ast
import functools
import io
import re
import tokenize
from pathlib import Path

import pytest

pytestmark = pytest.mark.nets

ROOT = Path(__file__).parent.parent
ROOMS = ("vera", "tasks", "runs", "analysis")
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for room in ROOMS
    for path in sorted(ROOT.glob(f"{room}/**/*.py"))
}

FILE_LINES, FUNCTION_LINES, METHOD_LINES = 400, 60, 200
#: Of the four rooms together, without blank lines, comments and docstrings. A change
#: that needs more raises it.
CODE_LINES = 16_400
#: Of the data in tests/nets/golden.
GOLDEN_LINES, GOLDEN_BYTES = 6_000, 900_000

#: What someone reads in an evening: how a run is adapted, trained and recorded, and how
#: table 2 comes of it.
SPINE = (
    *("vera/sites.py", "vera/projections.py"),
    *(
        f"vera/methods/{n}.py"
        for n in (
            "contract",
            "layers",
            "merging",
            "adapted",
            "settings",
            "vera",
            "vera_layer",
            "lora",
        )
    ),
    *("tasks/base.py", "tasks/text.py", "tasks/glue.py", "tasks/metrics.py"),
    *("runs/record/", "runs/run.py", "runs/identity.py"),
    *(f"runs/config/{n}.py" for n in ("__init__", "schema", "files", "expand")),
    *(f"runs/training/{n}.py" for n in ("context", "loop", "result")),
    *(
        "analysis/frame.py",
        "analysis/beside.py",
        "analysis/paper.py",
        "analysis/tables/build.py",
    ),
)
#: Lines, all of them. A change that needs more raises it.
SPINE_LINES = 6_091
#: What it may name outside itself.
BESIDE_THE_SPINE = {
    *("vera", "vera.kernels", "vera.errors", "tasks", "tasks.fetch"),
    *("tasks.files", "tasks.reviews"),
    *(
        f"runs.{n}"
        for n in (
            *(
                "command",
                "models",
                "models.wheels",
                "errors",
                "provenance",
                "shared_files",
                "methods",
            ),
            *("gpus", "predictions", "tracking"),
        )
    ),
    *(f"runs.training.{n}" for n in ("checkpoint", "decode", "files")),
    *(
        f"analysis.{n}"
        for n in ("facts", "inference", "notes", "others", "render", "tables.specs")
    ),
}


parsed = functools.cache(ast.parse)


def functions(text):
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def code_lines(text):
    """Lines with code: no blank lines, comments and docstrings."""
    docstrings, found = set(), set()
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings |= set(range(node.lineno, node.end_lineno + 1))
    empty = ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if tokenize.tok_name[token.type] not in empty:
            found |= set(range(token.start[0], token.end[0] + 1))
    return len(found - docstrings)


def held(lines, ceiling):
    over = {name: count for name, count in lines.items() if count > ceiling}
    assert not over, f"longer than {ceiling} lines"


def test_a_file_can_be_read_at_once():
    held({name: len(text.splitlines()) for name, text in FILES.items()}, FILE_LINES)


def test_a_function_fits_on_a_page():
    found = {
        f"{name}:{function}": count
        for name, text in FILES.items()
        for function, count in functions(text)
    }
    held(found, FUNCTION_LINES)


def test_a_method_is_short():
    of_methods = {
        n: len(t.splitlines())
        for n, t in FILES.items()
        if n.startswith("vera/methods/")
    }
    held(of_methods, METHOD_LINES)


def test_the_rooms_hold_no_more_code_than_they_need():
    assert sum(map(code_lines, FILES.values())) <= CODE_LINES


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


def test_the_spine_is_read_in_an_evening_and_by_itself():
    spine = {name: text for name, text in FILES.items() if name.startswith(SPINE)}
    assert sum(len(text.splitlines()) for text in spine.values()) <= SPINE_LINES
    own = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in spine
    }
    for name, text in spine.items():
        assert not set(imports(text)) - own - BESIDE_THE_SPINE, name


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in FILES
        if n.startswith(("runs/record/", "runs/command.py", "runs/errors.py"))
    ],
)
def test_records_and_command_lines_know_nothing_else_of_the_project(name):
    known = (
        ("runs.record", "runs.errors") if name == "runs/command.py" else "runs.record"
    )
    assert all(module.startswith(known) for module in imports(FILES[name]))


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
