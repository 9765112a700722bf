"""Families of tasks by their names, which also come from records that others have written."""

import pytest

import tasks

pytestmark = pytest.mark.properties


@pytest.mark.parametrize(
    "name", ["../../evil", "metrics.accuracy", "base", "", None, ".text", "text.py", ["text"], {}]
)
def test_nothing_else_is_imported(name, monkeypatch):
    monkeypatch.setattr(tasks.importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(
        tasks.DataError, match=r"no task family .*: it is one of e2e, glue, images, instruct, text"
    ):
        tasks.family({"family": name})
