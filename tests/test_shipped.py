"""What is installed and shipped: the requirements, constraints.txt (.ci/versions.py),
the Dockerfile, and the wheel, which works where there is no clone."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from running import ROOT, replace_words

import runs
from analysis.results import __main__ as results
from runs.command.errors import UserError
from runs.record import ledger as place

pytestmark = pytest.mark.properties

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BASE = {"numpy", "safetensors", "torch"}
ROOMS = ("vera", "tasks", "runs", "analysis", "vera_bench")


def imports(room: str, deep: bool) -> set[str]:
    """The foreign packages that a room imports: at the top of its modules, or (deep)
    anywhere."""
    names = set()
    for path in sorted(ROOT.glob(f"{room}/**/*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree) if deep else tree.body:
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).partition(".")[0])
    return names - set(sys.stdlib_module_names) - set(ROOMS)


def git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
    ).stdout


# --- what it needs


def test_the_base_requirements_are_those_of_vera():
    assert (
        {Requirement(word).name for word in PROJECT["dependencies"]}
        == BASE
        == imports("vera", deep=False)
    )
    # Where a method of peft's, or 4-bit weights, are asked for
    assert imports("vera", deep=True) == BASE | {"peft", "bitsandbytes"}


def test_bench_has_what_commands_import():
    rooms = ("runs", "tasks", "analysis")
    words = [*PROJECT["dependencies"], *EXTRAS["bench"]]
    names = {canonicalize_name(Requirement(word).name) for word in words}
    called = {
        "hydra": "hydra-core",
        "PIL": "pillow",
        "pynvml": "nvidia-ml-py",
        "sklearn": "scikit-learn",
    }
    called |= {"yaml": "pyyaml"}
    imported = set().union(*(imports(room, deep=False) for room in rooms)) - {"IPython"}
    assert [
        n for n in imported if called.get(n, canonicalize_name(n)) not in names
    ] == []


@pytest.mark.parametrize(
    ("argv", "error"),
    [("-m", SystemExit), ("/bin/vera-bench", SystemExit), ("x.py", ImportError)],
)
def test_what_is_missing_is_one_line_of_a_command_and_an_error_of_a_program(
    argv, error, monkeypatch, capsys
):
    runs.check_packages()
    monkeypatch.setattr(
        runs, "IMPORTED_PACKAGES", ("torch", "no_such_package", "nor_this")
    )
    monkeypatch.setattr(sys, "argv", [argv])
    with pytest.raises(error) as raised:
        runs.check_packages()
    text = (
        capsys.readouterr().err if error is SystemExit else f"error: {raised.value}\n"
    )
    assert text.endswith(f": no_such_package, nor_this. {runs.INSTALL}\n")
    assert text.count("\n") == 1
    assert error is ImportError or raised.value.code == 2


def test_one_version_stands_wherever_it_is_named():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    newest = re.findall(r"^## (\S+) \(", (ROOT / "CHANGELOG.md").read_text(), re.M)[-1]
    wheels = re.findall(
        r"vera_bench-([\d.]+)-py3", (ROOT / "docs" / "quickstart.md").read_text()
    )
    assert {citation, newest, *wheels} == {PROJECT["version"]}


# --- constraints.txt


@pytest.fixture
def versions():
    spec = importlib.util.spec_from_file_location(
        "versions", ROOT / ".ci" / "versions.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_newest_versions_are_those_that_are_not_released_yet_too(
    versions, monkeypatch, capsys
):
    asked = []
    ended = SimpleNamespace(returncode=0)
    monkeypatch.setattr(
        versions.subprocess, "run", lambda words: asked.append(words) or ended
    )
    assert versions.main(["--pre"]) == 0
    (words,) = asked
    assert words[words.index("--pre") + 1 :] == [
        "hydra-core<1.5,>=1.3.2",
        "omegaconf<2.5,>=2.3",
        "peft>=0.21",
        "transformers>=5.0",
    ]
    assert "hydra-core==" in capsys.readouterr().out


def test_each_dependency_is_there_in_a_version_that_the_project_takes(versions):
    pinned = versions.pinned()
    for requirement in map(
        Requirement, [*PROJECT["dependencies"], *chain(*EXTRAS.values())]
    ):
        name = canonicalize_name(requirement.name)
        assert (
            name == PROJECT["name"] or Version(pinned[name]) in requirement.specifier
        ), requirement


def test_they_are_written_from_what_is_installed_and_compared(
    versions, tmp_path, monkeypatch, capsys
):
    here = {
        "torch": "2.13.0+cpu",
        "Jinja2": "3.1.6",
        "pip": "26.0",
        "vera-bench": "0.1.0",
    }
    packages = [
        SimpleNamespace(name=name, version=version) for name, version in here.items()
    ]
    monkeypatch.setattr(versions, "FILE", tmp_path / "constraints.txt")
    monkeypatch.setattr(versions.metadata, "distributions", lambda: packages)
    needs = ["jinja2>=3", "torch", 'vera-bench[bench]; extra == "dev"']
    monkeypatch.setattr(versions.metadata, "requires", lambda _: needs)
    assert versions.main([]) == 0
    assert versions.pinned() == {"jinja2": "3.1.6", "torch": "2.13.0"}
    assert (
        f"(Python {sys.version_info[0]}.{sys.version_info[1]} on "
        in versions.FILE.read_text()
    )
    assert versions.main(["--check"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "2 of 2 packages as in constraints.txt"
    )
    del packages[1]
    before = versions.FILE.read_text()
    assert versions.main(["--check"]) == 0
    assert [
        line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()
    ] == ["jinja2:", "1"]
    assert versions.main([]) == 2
    assert "jinja2" in capsys.readouterr().out
    assert versions.FILE.read_text() == before


# --- the Dockerfile, which no machine of this project has built


def test_the_image_runs_as_a_user_with_cis_python_and_copies_first_what_setup_reads():
    text = re.sub(r"\\\n\s*|(?m:^#.*\n)", "", (ROOT / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line]
    version = re.search(
        r"\(Python ([\d.]+) on linux\)", (ROOT / "constraints.txt").read_text()
    )[1]
    assert ["ARG", f"PYTHON={version}"] in lines
    assert any(
        rest.endswith(' make setup CONSTRAINTS="$CONSTRAINTS"')
        for name, rest in lines
        if name == "RUN"
    )
    at = lines.index(["USER", "vera"])
    assert not [
        rest for name, rest in lines[:at] if name == "COPY" or "make setup" in rest
    ]
    copies = [rest.split() for name, rest in lines if name == "COPY"]
    assert {first for first, *_ in copies} == {"--chown=vera:vera"}
    (rule,) = re.findall(
        r"^\.venv/\.installed: (.*)$", (ROOT / "Makefile").read_text(), re.M
    )
    wanted = {
        "Makefile",
        "hatch_build.py",
        PROJECT["readme"],
        *PROJECT["license-files"],
        *rule.split(),
    }
    assert (set(copies[0][1:-1]), copies[0][-1], copies[-1][1:]) == (
        wanted,
        "./",
        [".", "."],
    )


def test_what_git_ignores_stays_outside_of_the_image_and_nothing_else():
    """A tracked file that is missing in the image would make each record's code differ
    from its commit."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    outside = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line.removeprefix("**/") for line in outside] == ignored


# --- what a clone does, and a wheel does not


def test_a_clone_has_conf_at_its_top_and_asks_git_and_a_package_writes_no_pages(
    monkeypatch, tmp_path
):
    assert not place.INSTALLED
    assert place.CONF == ROOT / "conf"
    monkeypatch.setattr(place, "ROOT", tmp_path)
    assert place.built_from() == {"commit": None, "dirty": None}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "build.json").write_text(
        '{"commit": "c0ffee", "dirty": false}'
    )
    assert place.built_from() == {"commit": "c0ffee", "dirty": False}
    monkeypatch.setattr(results, "INSTALLED", True)
    with pytest.raises(UserError, match="docs=, readme= and rates="):
        results.main([])


# --- the wheel itself


@pytest.fixture(scope="module")
def wheel(network, tmp_path_factory) -> Path:
    """Built as pip builds it, with the build's own requirements from pip's index."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
    ]
    subprocess.run([*pip, str(ROOT)], check=True, timeout=300)
    (file,) = folder.glob("*.whl")
    return file


def run_outside(
    command: list[str], folder: Path, code: int = 0
) -> subprocess.CompletedProcess:
    """Runs a command in a folder, with no way to the clone."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def project(wheel, tmp_path_factory) -> Path:
    """Another project's repository, with an environment in .venv that has the wheel and
    every package."""
    folder = tmp_path_factory.mktemp("another")
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(folder), *names, *words], check=True)
    python = [sys.executable, "-m"]
    run_outside([*python, "venv", "--without-pip", ".venv"], folder)
    pip = [
        *python,
        "pip",
        "--python",
        ".venv/bin/python",
        "install",
        "--quiet",
        "--no-deps",
    ]
    run_outside([*pip, "--no-index", str(wheel)], folder)
    (site,) = folder.glob(".venv/lib/python*/site-packages")
    (site / "others.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return folder


@pytest.fixture
def outside(project):
    """Runs the wheel's Python in that project."""
    python = str(project / ".venv" / "bin" / "python")
    return lambda *words, code=0: run_outside([python, *words], project, code)


def test_the_wheel_holds_the_packages_conf_and_records_alone(wheel):
    with zipfile.ZipFile(wheel) as file:
        texts = {
            name: file.read(name)
            for name in file.namelist()
            if ".dist-info/" not in name
        }
        about = next(
            file.read(name).decode()
            for name in file.namelist()
            if name.endswith("/METADATA")
        )
    built = json.loads(texts.pop("runs/build.json"))
    tracked = [
        name
        for name in git("ls-files", *ROOMS, "conf").splitlines()
        if (ROOT / name).is_file()
    ]
    there = {name.replace("runs/conf/", "conf/", 1) for name in texts}
    assert set(tracked) <= there
    # The rest are new files, not yet committed
    assert there - set(tracked) <= set(
        git("ls-files", "--others", "--exclude-standard").splitlines()
    )
    assert not [name for name, text in texts.items() if str(ROOT).encode() in text]
    assert built["commit"] == git("rev-parse", "HEAD").strip()
    assert isinstance(built["dirty"], bool)
    needs = [
        line.partition(": ")[2]
        for line in about.splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    assert {Requirement(line).name for line in needs if "extra ==" not in line} == BASE
    assert wheel.stat().st_size < 5_000_000


#: Of 40 rows.
TWO_STEPS = {"train.epochs": 1, "train.effective_batch": 20}


def test_runs_own_files_and_tables_work_without_a_clone(outside, project, words):
    printed = outside(
        "-m", "runs", "method=vera", *replace_words(words[:-1], **TWO_STEPS)
    ).stdout
    (path,) = (project / "outputs" / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["steps"]) == ("done", 2), printed
    # not the project's around it
    assert record["code"]["commit"] == git("rev-parse", "HEAD").strip()
    assert record["code"]["sources"]["method"]["file"] == "vera/methods/vera.py"
    assert record["code"]["sources"]["method"]["uncommitted"] is None
    printed = outside("-m", "analysis.tables", "table2").stdout
    assert "Left out: published runs on minilm, mpnet_base (model=minilm" in printed
    printed = outside("-m", "analysis.tables", "table2", "model=mpnet_base").stdout
    assert "Published by the project in runs/records: 15 of glue_mpnet" in printed
    assert "from conf/recipe" in outside("-m", "analysis.tables", "table8").stdout
    (project / "own" / "method").mkdir(parents=True)
    shutil.copy(
        ROOT / "conf" / "method" / "vera.yaml", project / "own" / "method" / "mine.yaml"
    )
    mine = ["--config-dir=own", "--cfg", "job", "method=mine", "method.rank=3"]
    assert "rank: 3" in outside("-m", "runs", *mine).stdout


def test_vera_needs_three_packages_and_the_rest_says_what_it_needs(outside):
    """Where there is none of the others but those that torch itself needs."""
    gone = {*runs.IMPORTED_PACKAGES} - BASE - {"jinja2", "typing_extensions"}
    without = f"import runpy, sys\nsys.modules.update(dict.fromkeys({gone}))\n"
    assert outside("-c", without + LIBRARY).stdout == "True\n"
    for module in ("runs", "runs.plan", "analysis.tables"):
        start = f"sys.argv[:] = ['-m', 'experiment=demo']\nrunpy.run_module({module!r}, None, '__main__')"
        said = outside("-c", without + start, code=2).stderr
        assert said.startswith("error: not installed, ")
        assert said.endswith(
            " pip install 'vera-bench[bench]', or in a clone: . .venv/bin/activate\n"
        )
        assert said.count("\n") == 1


LIBRARY = """
import torch
from torch import nn
from vera import VeRA, load, save

torch.manual_seed(0)
model = nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8)})
untrained = {key: value.clone() for key, value in model.state_dict().items()}
method = VeRA(rank=4)
method.adapt(model)
for group in method.parameter_groups(model)["adapter"].values():
    nn.init.normal_(group)
save(model, method, "adapter.safetensors")
fresh = nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8)})
fresh.load_state_dict(untrained)
load(fresh, "adapter.safetensors")
x = torch.randn(3, 8)
print(torch.equal(fresh["query"](x), model["query"](x)) and not torch.equal(fresh["query"](x), x))
"""
