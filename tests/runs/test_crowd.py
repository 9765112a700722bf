"""Several runs on one GPU, on a machine without one: what fits, and that MPS is started and stopped."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runs import gpus
from runs.config import expand
from runs.forecast.memory import fitting, training_bytes
from runs.sweep import crowd, launchers


def of(*overrides, method="vera", model="roberta_base"):
    (run,) = expand([f"model={model}", "task=qnli", f"method={method}", *overrides])
    return training_bytes(run)


def test_the_memory_of_a_run_grows_with_what_it_trains_and_holds_at_once():
    assert 2e9 < of() < 8e9  # 0.5 GB of weights, 4,000 tokens, CUDA
    batch = "train.effective_batch=64"
    assert of(batch, method="full") > of(batch) + 3 * 4 * 85e6  # gradients and two moments
    assert of("micro_batch=8") < of() - 1e9
    assert of("gradient_checkpointing=true") < of()
    assert of("train.precision=bf16") < of()
    llama = ["model=llama2_7b", "task=alpaca", "micro_batch=4"]
    (run,) = expand([*llama, "method=vera"])
    quantised = training_bytes(run)
    assert run.config["model"]["quantise"] == "nf4"
    assert 4e9 < quantised < 24e9  # the paper's 21.69 GB, at its own micro-batch
    assert of("model.path=/nowhere", model="encoder") is None


def test_a_dev_set_that_is_too_small_ends_no_forecast(words):
    """The run itself raises it; an executor or a plan of others goes on."""
    (run,) = expand([*words, "task.train_rows=16", "task.dev_rows=1"])
    assert fitting(run, 20e9) == {}


@pytest.mark.parametrize(
    ("gigabytes", "given", "rows"),
    [(80, "null", 16), (24, "null", 16), (12, "null", 4), (3, "null", 1), (3, "4", 16)],
)
def test_the_micro_batch_of_a_llama_follows_the_memory(gigabytes, given, rows):
    (run,) = expand(["model=llama2_13b", "task=alpaca", "method=vera", f"micro_batch={given}"])
    assert fitting(run, gigabytes * 1e9) == ({} if rows == 16 else {"micro_batch": rows})


@pytest.mark.parametrize(
    ("gigabytes", "cores", "devices", "fits"),
    [
        (80, 64, 1, 6),
        (80, 8, 1, 4),
        (80, 16, 2, 4),
        (12, 64, 1, 2),  # a forecast is trusted to fill four fifths
        (14, 64, 1, 3),
        (2, 64, 1, 1),
        (80, 1, 1, 1),
        (None, 64, 1, 1),
    ],
)
def test_what_fits_is_bounded_by_memory_and_cores(gigabytes, cores, devices, fits, monkeypatch):
    monkeypatch.setattr(gpus, "free_memory", lambda: gigabytes and gigabytes * 1e9)
    monkeypatch.setattr(gpus, "cores", lambda: list(range(cores)))
    monkeypatch.setattr(crowd, "training_bytes", lambda run: 3.5e9)
    assert crowd.room([None, None], devices) == fits


def test_a_run_whose_memory_is_not_known_has_a_device_to_itself(monkeypatch):
    monkeypatch.setattr(gpus, "free_memory", lambda: 80e9)
    monkeypatch.setattr(crowd, "training_bytes", lambda run: None)
    assert crowd.room([None], 1) == 1
    assert crowd.room([], 1) == 1


@pytest.mark.parametrize(
    ("given", "mps", "fit", "each"),
    [(None, True, 5, 5), (None, False, 5, 1), (3, True, 5, 3), (3, False, 5, 3), (1, True, 5, 1)],
)
def test_runs_share_a_gpu_as_the_user_says_or_where_mps_runs(given, mps, fit, each, words, monkeypatch):
    runs = expand(words)
    monkeypatch.setattr(crowd.MPS, "start", lambda self: mps)
    monkeypatch.setattr(launchers, "room", lambda *_: fit)
    launcher = launchers.local(Path("sweep.json"), ["GPU-aaaa", "GPU-bbbb"], given, runs)
    assert (launcher.runs_per_device, launcher.size) == (each, 2 * each)
    monkeypatch.setattr(crowd.MPS, "start", lambda self: pytest.fail("a CPU needs none"))
    assert launchers.local(Path("sweep.json"), ["cpu"], given, runs).runs_per_device == (given or 1)


@pytest.mark.parametrize(
    ("rates", "most"),
    [
        ({"1": 10.0, "2": 16.0, "4": 19.0, "8": 18.0}, 4),
        ({"1": 10.0, "2": 10.5}, 1),  # not worth it
        ({"2": 10.5}, 1),
        ("damaged", 1),
        (None, 1),
    ],
)
def test_without_mps_a_gain_that_gpu_check_has_measured_is_taken(rates, most, words, tmp_path, monkeypatch):
    runs = expand([*(w for w in words if not w.startswith("output=")), f"output={tmp_path}"])
    if rates is not None:
        (tmp_path / "gpu_check").mkdir()
        text = json.dumps({"crowd": {"without MPS": rates}})
        (tmp_path / "gpu_check" / "gpu.json").write_text(text)
    assert crowd.measured(str(tmp_path)) == most
    monkeypatch.setattr(crowd.MPS, "start", lambda self: False)
    monkeypatch.setattr(launchers, "room", lambda *_: 3)
    launcher = launchers.local(Path("sweep.json"), ["GPU-aaaa"], None, runs)
    assert launcher.runs_per_device == min(most, 3)


@pytest.mark.usefixtures("process")
def test_a_process_keeps_to_its_share_of_the_cores(monkeypatch):
    own = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(gpus, "cores", lambda: own[:2])

    def cores_of(place, places):
        script = "import os; print(sorted(os.sched_getaffinity(0)))"
        how = crowd.pinned(place, places)
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, **how).stdout

    assert [cores_of(place, 2) for place in (0, 1)] == [f"[{core}]\n" for core in own[:2]]
    assert cores_of(0, 1) == cores_of(2, 3) == f"{own}\n"  # alone; and more places than cores


@pytest.fixture
def control(tmp_path, monkeypatch):
    """A stand-in for nvidia-cuda-mps-control, which writes down what it is asked."""
    script = tmp_path / "bin" / crowd.CONTROL
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport os, pathlib, sys\n"
        f"pipe = pathlib.Path(os.environ['{crowd.PIPE}'])\n"
        f"with open({str(tmp_path / 'asked')!r}, 'a') as log:\n"
        "    log.write(' '.join(sys.argv[1:]) + ('' if sys.argv[1:] else sys.stdin.read().strip()) + '\\n')\n"
        "(pipe / 'control').touch() if sys.argv[1:] == ['-d'] else (pipe / 'control').unlink()\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(crowd.PIPE, str(tmp_path / "none"))
    monkeypatch.setattr(gpus, "uuids", lambda: {"0": ["GPU-aaaa"]})
    return SimpleNamespace(script=script, asked=lambda: (tmp_path / "asked").read_text().splitlines())


@pytest.mark.usefixtures("process")
def test_mps_is_started_for_a_sweep_and_stopped_after_it(control):
    mps = crowd.MPS()
    assert mps.start()
    folder = mps.folder
    assert mps.environment == {crowd.PIPE: str(folder), crowd.LOG: str(folder)}
    mps.stop()
    assert control.asked() == ["-d", "quit"]
    assert not folder.exists()
    assert not mps.environment


@pytest.mark.usefixtures("process")
def test_mps_that_cannot_start_is_none(control, monkeypatch):
    control.script.write_text("#!/bin/sh\nexit 1\n")
    mps = crowd.MPS()
    assert not mps.start()
    mps.stop()
    # A card in slices: MPS would have to be started for each
    monkeypatch.setattr(gpus, "uuids", lambda: {"0": ["MIG-1", "MIG-2"]})
    monkeypatch.setattr(crowd.subprocess, "run", lambda *_, **__: pytest.fail("it is not started"))
    assert not crowd.MPS().start()


def test_the_mps_of_a_machine_is_used_and_left_alone(tmp_path, monkeypatch):
    (tmp_path / "control").touch()
    monkeypatch.setenv(crowd.PIPE, str(tmp_path))
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: pytest.fail("nothing is started, nothing stopped")
    )
    mps = crowd.MPS()
    assert mps.start()
    assert not mps.environment
    mps.stop()
