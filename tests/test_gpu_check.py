"""make gpu-check, as a CPU can do it: its parts, how they end, and what is made of their findings."""

import json
import subprocess
import sys
import warnings
from types import SimpleNamespace

import gpu_check.__main__ as check
import pytest
import torch
from gpu_check import environment, families, parity, reads
from gpu_check.report import Report, failures, tally
from gpu_check.watch import Watch
from running import ROOT, call_here

#: What only a GPU can show, by the part that says so.
ABSENT = {
    "environment": 2,
    "parity": 0,
    "reads": 0,
    "repeats": 0,
    "memory": 1,
    "families": 2,
    "speed": 2,
    "crowd": 0,
}


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("part", check.PARTS)
def test_a_part_holds_on_a_cpu(part, tmp_path, capfd):
    problem = check.run_part(part, "cpu", tmp_path)
    found = check.read_part(tmp_path / f"{part}.json", part, "cpu", problem)
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


def worker(monkeypatch, tmp_path, body):
    """Has every part be this code instead: it gets PART, DEVICE and FOLDER."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time\nfrom pathlib import Path\n"
        "part, device, folder = sys.argv[1:]\nPath(folder).mkdir(parents=True, exist_ok=True)\n"
        "def leave(ended, *findings):\n"
        "    values = {'part': part, 'device': device, 'ended': ended, 'findings': findings}\n"
        "    values['date'] = 'today'\n"
        "    Path(folder, part + '.json').write_text(json.dumps(values))\n" + body
    )
    popen = check.subprocess.Popen
    monkeypatch.setattr(
        check.subprocess,
        "Popen",
        lambda command, **more: popen([sys.executable, str(script), *command[-3:]], **more),
    )


ENDS = """
good, bad = ({"name": "one", "passed": passed} for passed in (True, False))
if part == "parity":
    leave(False, good)
    os.kill(os.getpid(), 11)
elif part == "reads":
    leave(False, good)
    time.sleep(60)
elif part == "repeats":
    sys.exit("no torch here")
elif part == "memory":
    leave(True, good, bad)
elif part == "speed":
    leave(True, good, {"name": "two", "passed": None, "tflops": 1.0})
else:
    leave(True, good)
"""


@pytest.mark.usefixtures("process")
def test_a_part_that_crashes_or_hangs_fails_and_leaves_the_others(monkeypatch, tmp_path, capfd):
    monkeypatch.setitem(check.LIMITS, "cpu", 2.0)
    worker(monkeypatch, tmp_path, ENDS)
    done = call_here("gpu_check.__main__", "device=cpu", f"output={tmp_path}", check=1).stdout
    assert "FAIL  parity: signal 11" in done
    assert "FAIL  reads: it was ended after 2 seconds" in done
    assert "FAIL  repeats: exit code 1" in done
    assert done.rstrip().splitlines()[-6:-1] == [
        "on cpu: 7 passed, 4 failed, 0 not on a CPU",
        *("  parity: the part ends", "  reads: the part ends", "  repeats: the part ends", "  memory: one"),
    ]
    everything = json.loads((tmp_path / "gpu_check" / "gpu.json").read_text())
    # Of what had found nothing there is nothing to tell
    assert list(everything["parts"]) == [part for part in check.PARTS if part != "repeats"]
    assert everything["failed"] == {
        "parity": ["the part ends"],
        "reads": ["the part ends"],
        "memory": ["one"],
    }
    assert everything["parts"]["parity"]["problem"] == "signal 11"


@pytest.mark.usefixtures("process")
def test_parts_can_be_had_one_by_one_and_are_joined(monkeypatch, tmp_path):
    worker(monkeypatch, tmp_path, ENDS)
    words = ["device=cpu", f"output={tmp_path}"]
    call_here("gpu_check.__main__", "speed", *words, check=0)
    done = call_here("gpu_check.__main__", "environment, crowd", *words, check=0).stdout
    assert "--- crowd" in done
    assert "--- speed" not in done
    joined = json.loads((tmp_path / "gpu_check" / "gpu.json").read_text())
    assert list(joined["parts"]) == ["environment", "speed", "crowd"]
    # What another kind of device has left is not joined
    (tmp_path / "gpu_check" / "speed.json").write_text(
        json.dumps({"device": "cuda", "date": "today", "ended": True, "findings": []})
    )
    call_here("gpu_check.__main__", "crowd", *words, check=0)
    joined = json.loads((tmp_path / "gpu_check" / "gpu.json").read_text())
    assert list(joined["parts"]) == ["environment", "crowd"]


def test_a_wrong_part_or_device_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("runs.gpus.uuids", dict)
    monkeypatch.setattr("runs.gpus.DRIVERS", (str(tmp_path / "none"),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    output = f"output={tmp_path}"
    for words, line in (
        (["paritty", "device=cpu", output], "error: no part 'paritty'. Did you mean parity?"),
        (["device=gpu", output], "error: device=gpu: should be one of cuda, cpu"),
        (["parity", output], "error: device=cuda: no GPU is here that torch sees."),
    ):
        said = call_here("gpu_check.__main__", *words, check=2).stderr
        assert said.startswith(line)
        assert said.count("\n") == 1


# --- that the checks can fail


def test_a_report_keeps_what_was_found_before_a_crash(tmp_path, capsys):
    report = Report("reads", "cpu", tmp_path)
    report.check("it holds", True, "by far", count=3)
    report.absent("a wait")
    found = json.loads((tmp_path / "reads.json").read_text())
    assert failures(found) == ["the part ends"]
    assert found["findings"][0] == {"name": "it holds", "detail": "by far", "passed": True, "count": 3}
    with report.guarded("it goes on"):
        raise ValueError("no\nmore")
    report.write(ended=True)
    found = json.loads((tmp_path / "reads.json").read_text())
    assert failures(found) == ["it goes on"]
    assert tally([found]) == "1 passed, 1 failed, 1 not on a CPU"
    assert capsys.readouterr().out.splitlines() == [
        *("pass  it holds: by far", "  -   a wait: not on a CPU", "FAIL  it goes on: ValueError: no")
    ]


def test_parity_sees_a_gradient_that_is_off_and_one_that_is_none():
    ones = torch.ones(4, dtype=torch.float64)
    assert parity.off(ones, ones) == 0
    assert parity.off(ones * (1 + 1e-3), ones) == pytest.approx(1e-3)
    assert parity.off(ones * torch.nan, ones) == float("inf")
    good = parity.distances("BERT", parity.of_vera("materialised", "keep")("BERT"), "cpu")
    assert good["fp32"] < 1e-5 < good["bf16"] < parity.LIMITS["bf16"]
    assert parity.distances("Llama", parity.METHODS["BitFit"]("Llama"), "cpu") is None


def test_a_product_that_is_not_as_exact_as_float32_shows(monkeypatch):
    assert max(environment.errors(torch.device("cpu")).values()) < environment.EXACT
    matmul = torch.matmul
    monkeypatch.setattr(  # as TF32 has it: ten bits of mantissa
        torch,
        "matmul",
        lambda a, b: (
            matmul(a, b) if a.dtype == torch.float64 else matmul(*((x.half()).float() for x in (a, b)))
        ),
    )
    assert environment.errors(torch.device("cpu"))["product"] > 10 * environment.EXACT


def test_cards_are_those_of_the_driver(monkeypatch, tmp_path):
    """Beside a stand-in for both: two cards, of which torch sees what CUDA_VISIBLE_DEVICES says."""
    seen = ["aaaa", "bbbb"]
    monkeypatch.setattr("runs.gpus.uuids", lambda: {"0": "GPU-aaaa", "1": "GPU-bbbb"})
    monkeypatch.setattr("runs.gpus.driver", lambda: "580.1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
    card = lambda i: SimpleNamespace(uuid=seen[i], name="Card 80GB")  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60e9, 80e9))

    def holds(visible):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        report = Report("environment", "cuda", tmp_path)
        environment.cards(report)
        return report.findings[0]["passed"]

    assert holds(None)
    assert holds("0,1")
    assert holds("GPU-aaaa, 1")
    assert not holds("0")
    assert not holds("1,0")
    seen.pop()
    assert holds("0")
    assert not holds(None)
    seen.clear()
    assert not holds("0")


def test_waits_are_counted_as_cuda_tells_them(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with reads.Waits() as waits:
        for words in (
            "called a synchronizing CUDA operation",
            "called a synchronizing CUDA operation",
            "old",
        ):
            warnings.warn(words, stacklevel=1)
    assert modes == ["warn", "default"]
    assert waits.reads.total() == 2
    assert next(iter(waits.reads)).startswith("test_gpu_check.py:")


@pytest.mark.usefixtures("process")
def test_a_family_is_killed_and_resumed_as_a_command_too(tmp_path, monkeypatch):
    """As on a GPU, whose process cannot be forked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(families, "started", lambda *words: popen(families.material.command([*words])))

    def popen(command):
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=families.material.environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    own = families.material.text(tmp_path)
    found = families.family(*families.job(tmp_path, "text, bf16", [*own, "train.precision=bf16"], "cpu"))
    assert [good for _, good, _ in found] == [True] * 3, found


def test_a_family_that_differs_or_is_not_killed_fails():
    one = {
        "status": "done",
        "steps": 3,
        "curve": {"epoch": [1], "metric": [0.5]},
        "predictions": {"last": "a"},
    }
    one |= {"result": {}, "texts": None}
    assert families.same(one, dict(one))[0]
    assert families.same(one, one | {"predictions": {"last": "b"}}) == (False, "other predictions")
    assert families.same(one, one | {"texts": {"scores": []}}) == (False, "other texts")


def test_torchs_profiler_tells_how_long_a_device_is_busy():
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.ones(3).sum()
    assert all(event.self_device_time_total == 0 for event in seen.key_averages())


def test_the_watch_names_the_line_of_the_project(words):
    from vera.base_weights import sample

    with Watch() as watch:
        sample(torch.ones(100, device="meta"))
    assert list(watch.reads) == ["_to_copy at vera/base_weights.py sample"]
