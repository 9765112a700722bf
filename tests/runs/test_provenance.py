"""What a record says of the code that it was made with."""

import shutil
import subprocess

import pytest
from running import ROOT, trained

from runs import provenance

pytestmark = pytest.mark.properties


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout of its own, with a committed method, in the place of this one."""
    root = tmp_path / "checkout"
    for folder in ("vera/methods", "tasks", "runs/records/study", "conf"):
        (root / folder).mkdir(parents=True)
    (root / "vera/methods/mine.py").write_text("one\n")
    (root / ".gitignore").write_text("outputs/\n*.pyc\n")
    subprocess.run(["git", "-C", str(root), "init", "-q"], check=True)
    monkeypatch.setattr(provenance, "ROOT", root)
    monkeypatch.setattr(provenance, "AT_START", {})
    commit(root)
    yield root
    provenance.code_state.cache_clear()


def commit(root):
    """What the next command finds."""
    for words in (["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "two"]):
        subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)
    provenance.code_state.cache_clear()
    provenance._uncommitted.cache_clear()


def edit(path, text="edited\n"):
    """The same after an edit; a process asks git once."""
    path.write_text(text)
    provenance.code_state.cache_clear()


def changed(source):
    return provenance.changed({"code": {"sources": {"method": source}}})


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        (None, False),
        ("vera/methods/new.py", True),
        ("conf/method.yaml", True),
        ("tasks/deep/new.py", True),
        ("runs/records/study/0123456789ab.json", False),  # no code
        ("outputs/runs/x.json", False),
        ("vera/x.pyc", False),
        ("notes.txt", False),
        (".gitignore", True),  # tracked
    ],
)
def test_untracked_code_is_dirty_and_outside_a_checkout_nothing_is_known(path, dirty, checkout):
    if path:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        edit(checkout / path, "new\n")
    state = provenance.code_state()
    assert (state["dirty"], len(state["commit"])) == (dirty, 40)
    shutil.rmtree(checkout / ".git")
    provenance.code_state.cache_clear()
    provenance._uncommitted.cache_clear()
    assert provenance.code_state() == {"commit": None, "dirty": None}
    assert provenance._source(checkout / "vera/methods/mine.py")["uncommitted"] is None


def test_a_record_names_its_source_files(words):
    found = trained([*words, "train.max_steps=1"])["code"]["sources"]
    files = {part: source["file"] for part, source in found.items()}
    assert files == {"method": "vera/methods/vera.py", "task": "tasks/glue.py"}
    for source in found.values():
        assert source["sha256"] == provenance._digest(ROOT / source["file"])
    beside = {path.name for path in provenance._imports(ROOT / "vera/methods/vera.py")}
    assert {"contract.py", "vera_layer.py"} <= beside
    assert "ssf.py" not in beside


@pytest.mark.parametrize("before", ["committed", "uncommitted"])
@pytest.mark.parametrize("now", ["committed", "uncommitted", "the same", "moved"])
def test_a_source_that_was_committed_both_times_or_moved_is_no_difference(before, now, checkout):
    path = checkout / "vera/methods/mine.py"
    if before == "uncommitted":
        edit(path)
    source = provenance._source(path)
    assert source["uncommitted"] is (before == "uncommitted")
    if now in ("committed", "uncommitted"):
        edit(path, "two\n")
    if now == "moved":
        path.rename(checkout / "vera/methods/other.py")
    if now == "committed":
        commit(checkout)
    expected = now == "uncommitted" or (now == "committed" and before == "uncommitted")
    assert changed(source) == ["vera/methods/mine.py"] * expected
    assert provenance.changed({"code": {"commit": "c", "dirty": True}}) == []  # an older record


IMPORTS = ["from vera.methods.layer import f", "from vera.methods import (\n    layer,\n)", "import layer"]


@pytest.mark.parametrize("line", [*IMPORTS, "from .layer import f", "def f():\n    import layer as it"])
def test_a_module_beside_it_that_the_file_imports_counts_too(line, checkout):
    """And one that this one imports; another file of the folder does not."""
    folder = checkout / "vera/methods"
    (folder / "mine.py").write_text(f"import os\n{line}\n")
    (folder / "layer.py").write_text("from vera.methods.inner import g\n")
    for name in ("inner", "other"):
        (folder / f"{name}.py").write_text("one\n")
    commit(checkout)
    source = provenance._source(folder / "mine.py")
    assert provenance._imports(folder / "mine.py") == [folder / "inner.py", folder / "layer.py"]
    edit(folder / "other.py")
    assert changed(source) == []
    edit(folder / "inner.py")
    assert changed(source) == ["a module that vera/methods/mine.py imports"]
    older = {key: value for key, value in source.items() if key != "imports"}
    assert changed(older) == []
    commit(checkout)
    assert changed(source) == []  # committed both times


def test_a_file_that_git_ignores_is_in_no_commit_and_one_of_another_kind_is_no_code(checkout):
    (checkout / ".gitignore").write_text("*_own.py\n*.pyc\n")
    folder = checkout / "tasks" / "images"
    folder.mkdir()
    (folder / "__init__.py").write_text("one\n")
    commit(checkout)
    for name in ("my_own.py", "méthode.py"):
        (checkout / "vera/methods" / name).write_text("one\n")
        assert provenance._source(checkout / "vera/methods" / name)["uncommitted"] is True
    (folder / "compiled.pyc").write_text("")  # what Python leaves there
    for path in (checkout / "vera/methods/mine.py", folder):
        assert provenance._source(path)["uncommitted"] is False


def test_an_edit_or_a_commit_while_a_sweep_goes_on_is_in_no_run_of_it(checkout, monkeypatch):
    """Its runs are forked from a process that has imported the file, and asked git, as it was."""
    path = checkout / "vera/methods/mine.py"
    before = provenance._digest(path)
    monkeypatch.setattr(provenance, "AT_START", {path: before})
    began = provenance.code_state()
    path.write_text("two\n")
    source = provenance._source(path)
    assert (source["sha256"], source["uncommitted"]) == (before, True)
    edit(path)
    monkeypatch.setattr(provenance, "AT_START", {})  # of the next command
    assert changed(source) == ["vera/methods/mine.py"]
    dirty = provenance.code_state()
    for words in (["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "two"]):
        subprocess.run(["git", "-C", str(checkout), *words], check=True, capture_output=True)
    assert (provenance.code_state(), provenance._source(path)["uncommitted"]) == (dirty, True)
    assert (dirty["commit"], provenance.git("rev-parse", "HEAD") != began["commit"]) == (
        began["commit"],
        True,
    )
