"""What a record says of the code that it was made with."""

import shutil
import subprocess

import pytest
from running import ROOT, trained

from runs import sources
from runs.training import provenance

pytestmark = pytest.mark.properties


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout of its own, with a committed method, in the place of this one."""
    root = tmp_path / "checkout"
    for folder in ("vera/methods", "tasks", "runs/records/study", "conf"):
        (root / folder).mkdir(parents=True)
    (root / "vera/methods/mine.py").write_text("one\n")
    (root / ".gitignore").write_text("outputs/\n*.pyc\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(root), *names, *words], check=True, capture_output=True)
    monkeypatch.setattr(sources, "ROOT", root)
    monkeypatch.setattr(sources, "AT_START", {})
    in_another_command()
    yield root
    in_another_command()


def in_another_command():
    """A process asks git once."""
    for cached in (sources.uncommitted, sources.head):
        cached.cache_clear()


def commit(root):
    for words in (["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "two"]):
        subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)


# --- what a record says


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        (None, False),
        ("vera/methods/new.py", True),
        ("conf/method.yaml", True),
        ("tasks/deep/new.py", True),
        ("runs/new.py", True),
        ("runs/records/study/0123456789ab.json", False),  # no code
        ("outputs/runs/x.json", False),
        ("vera/x.pyc", False),
        ("notes.txt", False),
        (".gitignore", True),  # tracked
    ],
)
def test_untracked_code_is_dirty(path, dirty, checkout):
    if path:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text("new\n")
    state = provenance.code_state.__wrapped__()
    assert state["dirty"] is dirty
    assert len(state["commit"]) == 40


def test_outside_a_checkout_nothing_is_known(checkout):
    shutil.rmtree(checkout / ".git")
    assert provenance.code_state.__wrapped__() == {"commit": None, "dirty": None}
    assert sources._source(checkout / "vera/methods/mine.py")["uncommitted"] is None


def test_a_record_names_its_source_files(words):
    found = trained([*words, "train.max_steps=1"])["code"]["sources"]
    files = {part: source["file"] for part, source in found.items()}
    assert files == {"method": "vera/methods/vera.py", "task": "tasks/glue.py"}
    for source in found.values():
        assert source["sha256"] == sources._digest(ROOT / source["file"])
        assert source["uncommitted"] in (True, False, None)
    beside = {path.name for path in sources._imports(ROOT / "vera/methods/vera.py")}
    assert {"contract.py", "vera_layer.py"} <= beside
    assert "bitfit.py" not in beside


@pytest.mark.parametrize("before", ["committed", "uncommitted"])
@pytest.mark.parametrize("now", ["committed", "uncommitted", "the same", "moved"])
def test_a_source_that_was_committed_both_times_or_moved_is_no_difference(before, now, checkout):
    path = checkout / "vera/methods/mine.py"
    if before == "uncommitted":
        path.write_text("edited\n")
    source = sources._source(path)
    assert source["uncommitted"] is (before == "uncommitted")
    if now in ("committed", "uncommitted"):
        path.write_text("two\n")
    if now == "moved":
        path.rename(checkout / "vera/methods/other.py")
    if now == "committed":
        commit(checkout)
        in_another_command()
    record = {"code": {"sources": {"method": source}}}
    expected = now == "uncommitted" or (now == "committed" and before == "uncommitted")
    assert sources.changed(record) == ["vera/methods/mine.py"] * expected
    assert sources.changed({"code": {"commit": "c", "dirty": True}}) == []  # an older record


@pytest.mark.parametrize(
    "line",
    [
        "from vera.methods.layer import f",
        "from vera.methods import layer",
        "from .layer import f",
        "import layer",
    ],
)
def test_a_module_beside_it_that_the_file_imports_counts_too(line, checkout):
    """And one that this one imports; another file of the folder does not."""
    folder = checkout / "vera/methods"
    (folder / "mine.py").write_text(f"import os\n{line}\n")
    (folder / "layer.py").write_text("from vera.methods.inner import g\n")
    for name in ("inner", "other"):
        (folder / f"{name}.py").write_text("one\n")
    commit(checkout)
    source = sources._source(folder / "mine.py")
    record = {"code": {"sources": {"method": source}}}
    assert sources._imports(folder / "mine.py") == [folder / "inner.py", folder / "layer.py"]
    assert source["uncommitted"] is False
    (folder / "other.py").write_text("edited\n")
    assert sources.changed(record) == []
    (folder / "inner.py").write_text("edited\n")
    assert sources.changed(record) == ["a module that vera/methods/mine.py imports"]
    del source["imports"]  # an older record
    assert sources.changed(record) == []
    source["imports"] = "0" * 16
    assert sources._source(folder / "mine.py")["uncommitted"] is True
    commit(checkout)
    in_another_command()
    assert sources.changed(record) == []  # committed both times


def test_a_file_that_git_ignores_is_in_no_commit(checkout):
    (checkout / ".gitignore").write_text("*_own.py\n*.pyc\n")
    commit(checkout)
    for name in ("my_own.py", "méthode.py"):
        (checkout / "vera/methods" / name).write_text("one\n")
        assert sources._source(checkout / "vera/methods" / name)["uncommitted"] is True
    assert sources._source(checkout / "vera/methods/mine.py")["uncommitted"] is False
    folder = checkout / "tasks" / "images"
    folder.mkdir()
    (folder / "__init__.py").write_text("one\n")
    commit(checkout)
    sources.head.cache_clear()
    (folder / "compiled.pyc").write_text("")  # what Python and notebooks leave there
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a_own.py").write_text("")
    assert sources._source(folder)["uncommitted"] is False


def test_an_edit_while_a_sweep_goes_on_is_in_no_run_of_it(checkout, monkeypatch):
    """Its runs are forked from a process that has imported the file as it was."""
    path = checkout / "vera/methods/mine.py"
    monkeypatch.setattr(sources, "AT_START", {path: sources._digest(path)})
    before = sources._digest(path)
    path.write_text("two\n")
    source = sources._source(path)
    assert (source["sha256"], source["uncommitted"]) == (before, True)
    monkeypatch.setattr(sources, "AT_START", {})  # of the next command
    assert sources.changed({"code": {"sources": {"method": source}}}) == ["vera/methods/mine.py"]


def test_a_commit_while_a_sweep_goes_on_is_that_of_no_run_of_it(checkout):
    """The record names the commit of the beginning, from which the file differed then."""
    path = checkout / "vera/methods/mine.py"
    path.write_text("edited\n")
    began = sources.head()  # as the process does that runs are forked from
    commit(checkout)
    source = sources._source(path)
    assert (sources.head(), source["uncommitted"]) == (began, True)
    assert sources.git("rev-parse", "HEAD") != began
    path.write_text("later\n")
    assert sources.changed({"code": {"sources": {"method": source}}}) == ["vera/methods/mine.py"]
