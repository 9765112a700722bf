"""A test that does what makes it slow, and does not say so by a fixture, fails; and each file has a kind."""

import multiprocessing
import os
import re
import subprocess
from pathlib import Path

import pytest
import tiers
from tiers import guard, pairs
from transformers import AutoModel

pytestmark = pytest.mark.properties


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run(["true"], check=True),
        lambda: subprocess.run("true", shell=True, check=True),
        multiprocessing.get_context("fork").Process(target=print).start,
        multiprocessing.get_context("forkserver").Process(target=print).start,
        os.fork,
    ],
)
def test_a_process_needs_its_fixture(start):
    with pytest.raises(pytest.fail.Exception, match="have the test use the fixture process"):
        start()
    assert "starts" in guard.found
    guard.found = ""  # it was meant


def test_git_needs_none():
    assert subprocess.run(["git", "--version"], capture_output=True, check=True).stdout


def test_a_real_model_needs_its_fixture(tiny_bert, monkeypatch):
    assert AutoModel.from_pretrained(tiny_bert)
    monkeypatch.setattr(tiers, "REAL", 1000)
    with pytest.raises(pytest.fail.Exception, match=r"it loads .*: have the test use the fixture real_model"):
        AutoModel.from_pretrained(tiny_bert)
    guard.found = ""


@pytest.mark.parametrize(("rows", "columns"), [("abcde", "xyz"), ("ab", "wxyz"), ("abc", "xyz"), ("a", "x")])
def test_each_row_and_each_column_is_among_the_fast_pairs(rows, columns):
    found = pairs(rows, columns)
    assert [one.values for one in found] == [(row, column) for row in rows for column in columns]
    fast = [one.values for one in found if not one.marks]
    assert ({row for row, _ in fast}, {column for _, column in fast}) == (set(rows), set(columns))
    assert len(fast) == max(len(rows), len(columns))


def test_each_file_has_one_of_the_five_kinds():
    kinds = "contract|parity|determinism|properties|nets"
    for path in Path(__file__).parent.rglob("test_*.py"):
        marks = re.findall(rf"^pytestmark = .*pytest\.mark\.({kinds})\b", path.read_text(), re.M)
        assert len(marks) == 1, f"{path.name}: give it one kind, pytestmark = pytest.mark.({kinds})"
