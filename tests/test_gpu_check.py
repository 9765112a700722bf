"""make gpu-check, as a CPU can do it: its parts, how they end, and what is made of their findings."""

import json
import sys

import gpu_check.__main__ as check
import pytest
import torch
from gpu_check import families, parity
from gpu_check.report import Report, failures, tally
from running import call_here

pytestmark = pytest.mark.parity

#: What only a GPU can show, by the part that says so.
ABSENT = {"environment": 1, "parity": 0, "repeats": 0, "memory": 0, "families": 6, "speed": 1}


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("part", check.PARTS)
def test_a_part_holds_on_a_cpu(part, tmp_path, capfd):
    found = check.run_part(part, "cpu", tmp_path)
    screen = capfd.readouterr().out
    assert found["ended"], screen
    assert not failures(found), screen
    assert sum(bool(one.get("absent")) for one in found["findings"]) == ABSENT[part]
    assert all(one["passed"] is None for one in found["findings"] if one.get("absent"))
    assert len(found["findings"]) > ABSENT[part]
    assert found["machine"]["type"] == "cpu"
    for one in found["findings"]:  # a line each
        assert f"  {one['name']}" in screen


# --- how parts end

ENDS = """
import json, os, sys, time
from pathlib import Path
part, device, folder = sys.argv[1:]
Path(folder).mkdir(parents=True, exist_ok=True)
def leave(ended, *findings):
    values = {'part': part, 'device': device, 'ended': ended, 'findings': findings}
    Path(folder, part + '.json').write_text(json.dumps(values))
good, bad = ({"name": "one", "passed": passed} for passed in (True, False))
if part == "parity":
    leave(False, good)
    os.kill(os.getpid(), 11)
elif part == "families":
    leave(False, good)
    time.sleep(60)
elif part == "repeats":
    sys.exit("no torch here")
else:
    leave(True, good, *[bad] * (part == "memory"))
"""


@pytest.mark.usefixtures("process")
def test_a_part_that_crashes_or_hangs_fails_and_leaves_the_others(monkeypatch, tmp_path):
    monkeypatch.setitem(check.LIMITS, "cpu", 2.0)
    (tmp_path / "worker.py").write_text(ENDS)
    popen = check.subprocess.Popen
    worker = lambda command, **more: popen([sys.executable, f"{tmp_path}/worker.py", *command[-3:]], **more)  # noqa: E731
    monkeypatch.setattr(check.subprocess, "Popen", worker)
    words = ["device=cpu", f"output={tmp_path}"]
    done = call_here("gpu_check.__main__", *words, check=1).stdout
    assert "FAIL  parity: signal 11" in done
    assert "FAIL  families: it was ended after 2 seconds" in done
    assert "FAIL  repeats: exit code 1" in done
    assert "on cpu: 5 passed, 4 failed, 0 not on a CPU\n" in done
    failed = [line for line in done.splitlines() if line.startswith("  ")]
    ends = [f"  {part}: {'one' if part == 'memory' else 'the part ends'}" for part in check.PARTS]
    assert failed == [line for line in ends if not line.startswith(("  environment", "  speed"))]
    assert json.loads((tmp_path / "gpu_check" / "parity.json").read_text())["problem"] == "signal 11"
    done = call_here("gpu_check.__main__", "environment, speed", *words, check=0).stdout
    assert [line for line in done.splitlines() if line.startswith("---")] == ["--- environment", "--- speed"]


def test_a_wrong_part_or_device_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("runs.gpus.cards", lambda what: [])
    monkeypatch.setattr("runs.gpus.DRIVER", str(tmp_path / "none"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for word in ("paritty", "device=gpu", "device=cuda"):
        said = call_here("gpu_check.__main__", word, f"output={tmp_path}", check=2).stderr
        assert said.startswith("error: ")
        assert word in said
        assert said.count("\n") == 1


# --- that the checks can fail


def test_a_report_keeps_what_was_found_before_a_crash(tmp_path, capsys):
    report = Report("parity", "cpu", tmp_path)
    report.check("it holds", True, "by far", count=3)
    report.absent("a wait")
    found = json.loads((tmp_path / "parity.json").read_text())
    assert failures(found) == ["the part ends"]
    assert found["findings"][0] == {"name": "it holds", "detail": "by far", "passed": True, "count": 3}
    with report.guarded("it goes on"):
        raise ValueError("no\nmore")
    report.write(ended=True)
    found = json.loads((tmp_path / "parity.json").read_text())
    assert failures(found) == ["it goes on"]
    assert tally([found]) == "1 passed, 1 failed, 1 not on a CPU"
    lines = ["pass  it holds: by far", "  -   a wait: not on a CPU", "FAIL  it goes on: ValueError: no"]
    assert capsys.readouterr().out.splitlines() == lines


def test_parity_sees_a_gradient_that_is_off_and_one_that_is_none(monkeypatch, tmp_path):
    ones = torch.ones(4, dtype=torch.float64)
    assert parity.off(ones, ones) == 0
    assert parity.off(ones * (1 + 1e-3), ones) == pytest.approx(1e-3)
    assert parity.off(ones * torch.nan, ones) == float("inf")
    good = parity.distances("BERT", parity.of_vera("materialised", "keep", "BERT"), "cpu")
    assert good["fp32"] < 1e-5 < good["bf16"] < parity.LIMITS["bf16"]
    assert parity.distances("Llama", parity.METHODS["BitFit"]("Llama"), "cpu") is None
    monkeypatch.setattr(parity, "distances", lambda *_: {"fp32": 1e-3, "bf16": 1e-3})  # as of TF32
    report = Report("parity", "cpu", tmp_path)
    parity.run(report, tmp_path)
    assert [one["passed"] for one in report.findings] == [False, True]


def test_a_family_that_differs_fails():
    one = {"status": "done", "steps": 3, "curve": {"epoch": [1]}, "predictions": {"last": "a"}}
    one |= {"result": {}, "texts": None}
    assert families.same(one, dict(one))[0]
    assert families.same(one, one | {"predictions": {"last": "b"}}) == (False, "other predictions")
    assert families.same(one, one | {"texts": {"scores": []}}) == (False, "other texts")
