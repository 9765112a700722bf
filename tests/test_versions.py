"""constraints.txt: what it holds, and how it is written and compared (.ci/versions.py)."""

import importlib.util
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.properties

ROOT = Path(__file__).parents[1]


@pytest.fixture
def versions():
    spec = importlib.util.spec_from_file_location("versions", ROOT / ".ci" / "versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_dependency_is_there_in_a_version_that_the_project_takes(versions):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    pinned = versions.pinned()
    for requirement in map(Requirement, words):
        name = canonicalize_name(requirement.name)
        if name != project["name"]:
            assert Version(pinned[name]) in requirement.specifier, requirement


def test_it_names_versions_and_no_place_host_or_build():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if "/" in line or "@" in line]
    pins = [line for line in lines if not line.startswith("#")]
    form = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9]+(\.[0-9]+)*((a|b|rc|\.post|\.dev)[0-9]+)?")
    assert [pin for pin in pins if not form.fullmatch(pin)] == []
    names = [pin.partition("==")[0] for pin in pins]
    assert names == sorted(set(names))
    assert not {"vera-bench", "pip"} & set(names)


@pytest.fixture
def project(versions, tmp_path, monkeypatch):
    """Writes a project of these dependencies and an extra, whose constraints.txt is its own."""
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "FILE", tmp_path / "constraints.txt")

    def write(*words, extra=()):
        text = f"[project]\nname = 'mine'\ndependencies = {list(words)}\n"
        (tmp_path / "pyproject.toml").write_text(f"{text}optional-dependencies.dev = {list(extra)}\n")

    return write


def test_it_is_written_from_what_is_installed_and_compared_with_it(versions, project, monkeypatch, capsys):
    project("Jinja2>=3", "torch", 'none-such; python_version < "3"', extra=["mine[dev]", "hypothesis"])
    of, find = versions.metadata, versions.metadata.distribution

    class Built:
        version, requires = "2.13.0+cpu", []

    monkeypatch.setattr(of, "distribution", lambda name: Built if name == "torch" else find(name))
    assert versions.main([]) == 0
    assert set(versions.pinned()) == {"hypothesis", "jinja2", "markupsafe", "sortedcontainers", "torch"}
    assert versions.pinned()["torch"] == "2.13.0"
    assert f"(Python {sys.version_info[0]}.{sys.version_info[1]} on " in versions.FILE.read_text()
    assert versions.main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "5 of 5 packages as in constraints.txt"
    versions.FILE.write_text(versions.FILE.read_text().replace("torch==2.13.0", "torch==2.12.0"))
    before = versions.FILE.read_text()
    assert versions.main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "torch: 2.13.0 is installed, 2.12.0 in constraints.txt",
        "4 of 5 packages as in constraints.txt: make constraints writes what is installed",
    ]
    assert versions.FILE.read_text() == before


def test_what_is_not_installed_is_no_version_that_ran(versions, project, capsys):
    project("none-such>=1")
    assert versions.main([]) == 2
    assert "error: none-such is not installed" in capsys.readouterr().out
    assert not versions.FILE.exists()
    versions.FILE.write_text("none-such==1.0\n")
    assert versions.main(["--check"]) == 0
    assert capsys.readouterr().out.startswith("none-such: none is installed, 1.0 in constraints.txt\n")
