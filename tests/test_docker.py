"""The Dockerfile, which no machine of this project has built: that its lines are instructions, and that its
make setup is make setup."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from running import ROOT

pytestmark = pytest.mark.properties

#: One instruction a line, without comments.
LINES = [
    line.split(maxsplit=1)
    for line in re.sub(
        r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text())
    ).splitlines()
    if line
]
COMMANDS = [rest for name, rest in LINES if name == "RUN"]


def test_it_runs_as_a_user_with_cis_python_and_copies_first_what_setup_reads():
    names = [name for name, _ in LINES]
    assert set(names) == {"ARG", "FROM", "RUN", "USER", "WORKDIR", "COPY", "ENV", "CMD"}
    assert names[:2] == ["ARG", "FROM"]
    version = re.search(r"\(Python ([\d.]+) on linux\)", (ROOT / "constraints.txt").read_text())[1]
    assert ["ARG", f"PYTHON={version}"] in LINES
    at = LINES.index(["USER", "vera"])
    assert not [rest for name, rest in LINES[:at] if name == "COPY" or "make setup" in rest]
    assert all(rest.startswith("--chown=vera:vera ") for name, rest in LINES if name == "COPY")
    (folder,) = (rest for name, rest in LINES if name == "WORKDIR")
    assert ["ENV", f'PATH="{folder}/.venv/bin:$PATH"'] in LINES
    first, *_, everything = (rest.split()[1:] for name, rest in LINES if name == "COPY")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (rule,) = re.findall(r"^\.venv/\.installed: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    wanted = {"Makefile", "hatch_build.py", project["readme"], *project["license-files"], *rule.split()}
    assert (set(first[:-1]), first[-1], everything) == (wanted, "./", [".", "."])


def test_what_git_ignores_stays_outside_and_nothing_else():
    """A tracked file that is missing in the image would make each record's code differ from its commit."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    outside = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line.removeprefix("**/") for line in outside] == ignored


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("index", ["", "an index"])
def test_its_steps_are_those_of_make_setup(index, tmp_path):
    """With a python that writes down what it is asked for."""
    first = next(rest.split()[1:-1] for name, rest in LINES if name == "COPY")
    program = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
if "venv" in sys.argv:
    os.makedirs(".venv/bin"), os.symlink(os.path.abspath(__file__), ".venv/bin/python")
with open("calls", "a") as file:
    file.write(json.dumps([sys.argv[1:], os.environ.get("PIP_EXTRA_INDEX_URL") or ""]) + "\\n")
"""

    def calls(command: str, name: str) -> list:
        folder = tmp_path / name
        folder.mkdir()
        for file in first:
            shutil.copy(ROOT / file, folder)
        (folder / "python3").write_text(program)
        (folder / "python3").chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "TORCH_INDEX": index, "CONSTRAINTS": "constraints.txt"}
        subprocess.run(
            ["sh", "-c", command], cwd=folder, env=env, check=True, capture_output=True, timeout=60
        )
        return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]

    (setup,) = (command for command in COMMANDS if "make setup" in command)
    image, clone = calls(setup, "image"), calls("make setup", "clone")
    assert [words for words, _ in image] == [words for words, _ in clone]
    assert image[1][0][-4:] == ["-c", "constraints.txt", "-e", ".[bench,dev]"]
    assert {given for _, given in image} == {index}
