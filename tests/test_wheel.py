"""The wheel: what is in it, what it needs, and that it works where there is no clone."""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from running import ROOT, elsewhere

import runs
from analysis.results import __main__ as results
from runs import publish
from runs.errors import UserError
from runs.record import files as place

pytestmark = pytest.mark.properties

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = {"numpy", "safetensors", "torch"}
ROOMS = ("vera", "tasks", "runs", "analysis")


def imports(room: str, deep: bool) -> set[str]:
    """The foreign packages that a room imports: at the top of its modules, or (deep) anywhere."""
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
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


# --- what it needs


def test_the_base_requirements_are_those_of_vera():
    assert {Requirement(word).name for word in PROJECT["dependencies"]} == BASE == imports("vera", deep=False)
    # Where a method of peft's, or 4-bit weights, are asked for
    assert imports("vera", deep=True) == BASE | {"peft", "bitsandbytes"}


def test_what_commands_import_is_looked_for_first():
    rooms = ("runs", "tasks", "analysis")
    assert set().union(*(imports(room, deep=False) for room in rooms)) <= {*runs.IMPORTED, "IPython"}
    assert list(runs.IMPORTED) == sorted(runs.IMPORTED, key=str.lower)
    extras = PROJECT["optional-dependencies"]
    words = [*PROJECT["dependencies"], *extras["bench"]]
    names = {canonicalize_name(Requirement(word).name) for word in words}
    called = {"hydra": "hydra-core", "PIL": "pillow", "pynvml": "nvidia-ml-py", "sklearn": "scikit-learn"}
    called |= {"yaml": "pyyaml"}
    assert [n for n in runs.IMPORTED if called.get(n, canonicalize_name(n)) not in names] == []


@pytest.mark.parametrize(
    ("argv", "error"), [("-m", SystemExit), ("/bin/vera-bench", SystemExit), ("x.py", ImportError)]
)
def test_what_is_missing_is_one_line_of_a_command_and_an_error_of_a_program(argv, error, monkeypatch, capsys):
    runs.check()
    monkeypatch.setattr(runs, "IMPORTED", ("torch", "no_such_package", "nor_this"))
    monkeypatch.setattr(sys, "argv", [argv])
    with pytest.raises(error) as raised:
        runs.check()
    text = capsys.readouterr().err if error is SystemExit else f"error: {raised.value}\n"
    assert text.endswith(": no_such_package, nor_this. pip install 'vera-bench[bench]'\n")
    assert text.count("\n") == 1
    assert error is ImportError or raised.value.code == 2


# --- what a clone does, and a wheel does not


def test_a_clone_has_conf_at_its_top_and_asks_git_and_a_package_publishes_nothing(monkeypatch, tmp_path):
    assert not place.INSTALLED
    assert place.CONF == ROOT / "conf"
    monkeypatch.setattr(place, "ROOT", tmp_path)
    assert place.built_from() == {"commit": None, "dirty": None}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "build.json").write_text('{"commit": "c0ffee", "dirty": false}')
    assert place.built_from() == {"commit": "c0ffee", "dirty": False}
    for command, words, mend in (
        (publish, ["study"], "of a clone, which"),
        (results, [], "docs= and readme="),
    ):
        monkeypatch.setattr(command, "INSTALLED", True)
        with pytest.raises(UserError, match=mend):
            command.main(words)


# --- the wheel itself


@pytest.fixture(scope="module")
def wheel(network, tmp_path_factory) -> Path:
    """Built as pip builds it, with the build's own requirements from pip's index."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*pip, str(ROOT)], check=True, timeout=300)
    (file,) = folder.glob("*.whl")
    return file


def fresh(folder: Path, wheel: Path, packages: Path) -> Path:
    """The Python of a new environment with the wheel, and with the packages of a folder behind it."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    run_outside([*pip, "--no-index", str(wheel)], folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{packages}\n")
    return python


def run_outside(command: list[str], folder: Path, code: int = 0) -> subprocess.CompletedProcess:
    """Runs a command in a folder, with no way to the clone."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def project(wheel, tmp_path_factory) -> Path:
    """Another project's repository, with an environment in .venv that has the wheel and every package."""
    folder = tmp_path_factory.mktemp("another")
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(folder), *names, *words], check=True)
    fresh(folder / ".venv", wheel, Path(pytest.__file__).parents[1])
    return folder


@pytest.fixture
def outside(project):
    """Runs a command of the wheel's in that project; what it printed."""
    python = str(project / ".venv" / "bin" / "python")
    return lambda *words: run_outside([python, "-m", *words], project).stdout


def test_the_wheel_holds_the_packages_conf_and_records_alone(wheel):
    with zipfile.ZipFile(wheel) as file:
        texts = {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}
        about = next(file.read(name).decode() for name in file.namelist() if name.endswith("/METADATA"))
    built = json.loads(texts.pop("runs/build.json"))
    tracked = [name for name in git("ls-files", *ROOMS, "conf").splitlines() if (ROOT / name).is_file()]
    there = {name.replace("runs/conf/", "conf/", 1) for name in texts}
    assert set(tracked) <= there
    # The rest are new files, not yet committed
    assert there - set(tracked) <= set(git("ls-files", "--others", "--exclude-standard").splitlines())
    assert not [name for name, text in texts.items() if str(ROOT).encode() in text]
    assert built["commit"] == git("rev-parse", "HEAD").strip()
    assert isinstance(built["dirty"], bool)
    needs = [line.partition(": ")[2] for line in about.splitlines() if line.startswith("Requires-Dist: ")]
    assert {Requirement(line).name for line in needs if "extra ==" not in line} == BASE
    assert wheel.stat().st_size < 5_000_000


#: Of 40 rows.
TWO_STEPS = {"train.epochs": 1, "train.effective_batch": 20}


def test_runs_own_files_and_tables_work_without_a_clone(outside, project, words):
    run = ["runs", "method=vera", *elsewhere(words[:-1], **TWO_STEPS)]
    printed = outside(*run)
    (path,) = (project / "outputs" / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["steps"]) == ("done", 2), printed
    assert record["code"]["commit"] == git("rev-parse", "HEAD").strip()  # not the project's around it
    assert record["code"]["sources"]["method"]["file"] == "vera/methods/vera.py"
    assert record["code"]["sources"]["method"]["uncommitted"] is None
    assert "0 done, 1 already there" in outside(*run)
    assert "52 of glue_minilm" in outside("analysis.tables", "table2")
    assert "from conf/recipe" in outside("analysis.tables", "table8")
    assert "15 runs" in outside("runs.plan", "experiment=demo")
    (project / "own" / "method").mkdir(parents=True)
    shutil.copy(ROOT / "conf" / "method" / "vera.yaml", project / "own" / "method" / "mine.yaml")
    mine = ["--config-dir=own", "--cfg", "job", "method=mine", "method.rank=3"]
    assert "rank: 3" in outside("runs", *mine)


def test_vera_needs_three_packages_and_the_rest_says_what_it_needs(wheel, tmp_path):
    packages, waiting, seen = tmp_path / "packages", sorted(BASE), set()
    packages.mkdir()
    while waiting:
        if (name := waiting.pop().lower()) in seen:
            continue
        seen.add(name)
        for top in {Path(str(file)).parts[0] for file in metadata.files(name) or ()} - {"..", "__pycache__"}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
        needs = map(Requirement, metadata.requires(name) or ())
        waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    python = fresh(tmp_path / "env", wheel, packages)

    assert run_outside([str(python), "-c", LIBRARY], tmp_path).stdout == "True\n"
    for module in ("runs", "runs.plan", "analysis.tables"):
        done = run_outside([str(python), "-m", module, "experiment=demo"], tmp_path, 2)
        assert done.stderr.startswith("error: not installed, ")
        assert done.stderr.endswith(" pip install 'vera-bench[bench]'\n")
        assert done.stderr.count("\n") == 1


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
