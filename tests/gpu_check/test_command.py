"""How the command tells of checks that pass, fail, crash or hang."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import ROOT, call_here

pytestmark = pytest.mark.properties

CHECKS = """
import os, time, pytest
def test_it_holds(found):
    found("by far", count=3)
def test_it_fails():
    assert not "no\\nmore"
def test_it_crashes():
    os.abort()  # in this thread: a signal to the process may come when the check has passed
def test_it_hangs():
    time.sleep(60)
@pytest.mark.skip(reason="not on a CPU")
def test_a_wait():
    pass
def test_the_last_one():
    pass
"""
CHECK = """
import sys
from pathlib import Path
from gpu_check.__main__ import check
sys.exit(check([Path("test_odd.py").absolute()], "cpu", Path(), 2))
"""


@pytest.mark.usefixtures("process")
def test_a_check_that_crashes_or_hangs_fails_and_leaves_the_others(
    tmp_path, monkeypatch
):
    (tmp_path / "test_odd.py").write_text(CHECKS)
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    command = [sys.executable, "-W", "ignore", "-c", CHECK]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "on cpu: 2 passed, 3 failed, 1 not on a CPU" in done.stdout
    about, *found = map(
        json.loads, (tmp_path / "gpu_check.jsonl").read_text().splitlines()
    )
    assert about["machine"]["type"] == "cpu"
    assert found[0] == {
        "name": "odd: it holds",
        "outcome": "passed",
        "detail": "by far",
        "count": 3,
    }
    marks = {"passed": "pass", "failed": "FAIL", "skipped": "  - "}
    for one in found:
        assert f"{marks[one['outcome']]}  {one['name']}" in done.stdout
    failed = {one["name"]: one["detail"] for one in found if one["outcome"] == "failed"}
    assert [*failed] == ["odd: it fails", "odd: it crashes", "odd: it hangs"]
    assert all(f"  {name}\n" in done.stdout for name in failed)
    assert "crashed" in failed["odd: it hangs"]


def test_a_wrong_part_or_device_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("runs.machine.gpus.attribute_of_all", lambda what: [])
    monkeypatch.setattr("runs.machine.gpus.DEVICE_FILES", str(tmp_path / "none"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for word in ("paritty", "device=gpu", "device=cuda"):
        said = call_here(
            "gpu_check.__main__", word, f"output={tmp_path}", check=2
        ).stderr
        assert said.startswith("error: ")
        assert word in said
        assert said.count("\n") == 1
