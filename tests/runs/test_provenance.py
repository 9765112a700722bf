"""What a record says of the code that it was made with."""

import itertools
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
    for folder in ("vera/methods", "tasks/deep", "runs/records/study", "conf", "outputs/runs"):
        (root / folder).mkdir(parents=True)
    (root / "vera/methods/mine.py").write_text("one\n")
    (root / ".gitignore").write_text("outputs/\n*.pyc\n*_own.py\n")
    subprocess.run(["git", "-C", str(root), "init", "-q"], check=True)
    monkeypatch.setattr(provenance, "ROOT", root)
    monkeypatch.setattr(provenance, "AT_START", {})
    commit(root)
    yield root
    next_command()


def commit(root, *paths, goes_on=False):
    """goes_on: the command that has asked git before."""
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["add", *map(str, paths or ["."])], [*who, "commit", "-qm", "two"]):
        subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)
    if not goes_on:
        next_command()


def next_command():
    """A process asks git once."""
    provenance.code_state.cache_clear()
    provenance._uncommitted.cache_clear()


def changed(source):
    return provenance.changed({"code": {"sources": {"method": source}}})


def test_untracked_code_is_dirty_and_outside_a_checkout_nothing_is_known(checkout):
    code = (
        "vera/methods/new.py",
        "conf/method.yaml",
        "tasks/deep/new.py",
        ".gitignore",
    )  # the last is tracked
    others = ("runs/records/study/0123456789ab.json", "outputs/runs/x.json", "vera/x.pyc", "notes.txt")
    assert provenance.code_state()["dirty"] is False
    for path in (*others, *code):
        (checkout / path).write_text("new\n")
        next_command()
        state = provenance.code_state()
        assert (path, state["dirty"], len(state["commit"])) == (path, path in code, 40)
        (checkout / path).unlink()
    shutil.rmtree(checkout / ".git")
    next_command()
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


def test_a_source_that_was_committed_both_times_or_moved_is_no_difference(checkout):
    """A file for each way, edited or committed before a run and now."""
    ways = itertools.product(("committed", "uncommitted"), ("committed", "uncommitted", "the same", "moved"))
    files = {way: checkout / "vera/methods" / f"{'_'.join(way).replace(' ', '_')}.py" for way in ways}
    for path in files.values():
        path.write_text("one\n")
    commit(checkout)
    for (before, _), path in files.items():
        path.write_text("one\n" if before == "committed" else "edited\n")
    sources = {way: provenance._source(path) for way, path in files.items()}
    assert all(source["uncommitted"] is (before == "uncommitted") for (before, _), source in sources.items())
    for (_, now), path in files.items():
        if now in ("committed", "uncommitted"):
            path.write_text("two\n")
        if now == "moved":
            path.rename(path.with_suffix(".other"))
    commit(checkout, *(path for (_, now), path in files.items() if now == "committed"))
    found = ["_".join(way) for way, source in sources.items() if changed(source)]
    assert found == ["committed_uncommitted", "uncommitted_committed", "uncommitted_uncommitted"]
    assert changed(sources["committed", "uncommitted"]) == ["vera/methods/committed_uncommitted.py"]
    assert provenance.changed({"code": {"commit": "c", "dirty": True}}) == []  # an older record


IMPORTS = ["from vera.methods.layer import f", "from vera.methods import (\n    layer,\n)", "import layer"]
IMPORTS += ["from .layer import f", "def f():\n    import layer as it"]


def test_a_module_beside_it_that_the_file_imports_counts_too(checkout):
    """And one that this one imports; another file of the folder does not."""
    folder = checkout / "vera/methods"
    mine, layer, inner, other = (folder / f"{name}.py" for name in ("mine", "layer", "inner", "other"))
    layer.write_text("from vera.methods.inner import g\n")
    inner.touch(), other.touch()
    for line in IMPORTS:
        mine.write_text(f"import os\n{line}\n")
        assert provenance._imports(mine) == [inner, layer], line
    commit(checkout)
    source = provenance._source(mine)
    other.write_text("edited\n")
    assert changed(source) == []
    inner.write_text("edited\n")
    assert changed(source) == ["a module that vera/methods/mine.py imports"]
    assert changed({key: value for key, value in source.items() if key != "imports"}) == []  # an older one
    commit(checkout)
    assert changed(source) == []  # committed both times


def test_a_file_that_git_ignores_is_in_no_commit_and_one_of_another_kind_is_no_code(checkout):
    folder = checkout / "tasks" / "images"
    folder.mkdir()
    (folder / "__init__.py").write_text("one\n")
    commit(checkout)
    (folder / "compiled.pyc").write_text("")  # what Python leaves there
    ignored, odd = (checkout / "vera/methods" / name for name in ("my_own.py", "méthode.py"))
    ignored.write_text("one\n"), odd.write_text("one\n")
    paths = (ignored, odd, checkout / "vera/methods/mine.py", folder)
    assert [provenance._source(path)["uncommitted"] for path in paths] == [True, True, False, False]


def test_an_edit_or_a_commit_while_a_sweep_goes_on_is_in_no_run_of_it(checkout, monkeypatch):
    """Its runs are forked from a process that has imported the file, and asked git, as it was."""
    path = checkout / "vera/methods/mine.py"
    before, began = provenance._digest(path), provenance.code_state()
    # Edited as it was imported, and since then as it is committed
    monkeypatch.setattr(provenance, "AT_START", {path: "0" * 16})
    assert provenance._source(path)["uncommitted"] is True
    monkeypatch.setattr(provenance, "AT_START", {path: before})
    path.write_text("two\n")
    source = provenance._source(path)
    assert (source["sha256"], source["uncommitted"]) == (before, True)
    commit(checkout, goes_on=True)
    monkeypatch.setattr(provenance, "AT_START", {})
    provenance._uncommitted.cache_clear()
    assert provenance.git("rev-parse", "HEAD") != began["commit"]
    assert (provenance.code_state(), provenance._source(path)["uncommitted"]) == (began, True)
    path.write_text("three\n")
    next_command()
    assert changed(source) == ["vera/methods/mine.py"]
