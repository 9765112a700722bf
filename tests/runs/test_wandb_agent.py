"""`wandb agent`: the run that it starts is the one that W&B's sweep has named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import ROOT, output_of
from wandb_runs import offline_runs, record_of, runs_of
from wandb_server import good, refusing

from runs.config import expand
from runs.identity import run_id
from runs.record import read_record, record_path
from runs.run import with_starts
from runs.tracking import Tracker, Tracking, agent_note

KEY = "a" * 40
EXAMPLE = ROOT / "examples" / "wandb_sweep.yaml"


@pytest.fixture(autouse=True)
def own_settings(monkeypatch, tmp_path):
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", refusing())
    monkeypatch.delenv("NETRC", raising=False)


@pytest.fixture
def under_agent(monkeypatch, tmp_path):
    """What `wandb agent` sets for a command (_command_run of wandb_agent.py)."""
    file = tmp_path / "config-sweeprun.yaml"
    file.write_text("wandb_version: 1\n\nmethod:\n  value: vera\ntrain.lr:\n  value: 0.01\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "sweeprun")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(file))
    monkeypatch.setenv("WANDB_ENTITY", "me")
    monkeypatch.setenv("WANDB_PROJECT", "p")


@pytest.mark.usefixtures("process")
def test_the_real_agent_starts_a_run_that_attaches(words, tmp_path):
    """And one that has its record already: the sweep waits for its numbers."""
    words = [*words, "method=vera"]
    (run,) = expand(words)
    values = dict(word.split("=", 1) for word in words)
    args = {key: {"value": value} for key, value in values.items()}
    with good() as server:
        sweep = yaml.safe_load(EXAMPLE.read_text())
        assert sweep["command"] == ["${env}", "python", "-m", "runs", "${args_no_hyphens}"]
        server.sweep = yaml.safe_dump({**sweep, "command": [sys.executable, *sweep["command"][2:]]})
        command = {"type": "run", "program": "runs", "args": args}
        server.commands = [command | {"run_id": name} for name in ("first111", "second22")]
        environment = {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": KEY,
            "WANDB_DIR": str(tmp_path),
            "WANDB_ERROR_REPORTING": "false",
        }
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "agent", "--count", "2", "me/p/sweep1"],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    upserts = [told["variables"] for told in server.told if "upsertBucket" in told["query"]]
    record = read_record(record_path(output_of(words), run_id(run)))
    assert {(upsert["name"], upsert["sweep"]) for upsert in upserts if upsert.get("sweep")} == {
        ("first111", "sweep1"),
        ("second22", "sweep1"),
    }
    for name in ("first111", "second22"):
        config = json.loads([u for u in upserts if u["name"] == name and u.get("config")][-1]["config"])
        assert config["run_id"]["value"] == record["id"]
        assert config["method"]["value"] == "vera"  # the sweep's own parameter
        assert config["method_config"]["value"]["kind"] == "vera"
        assert config["commit"]["value"] == record["code"]["commit"]
        streamed = [body for run_id, body in server.streams if run_id == name]
        assert [body["exitcode"] for body in streamed if body.get("complete")] == [0]
        files = [body["files"] for body in streamed if "wandb-summary.json" in body.get("files", {})]
        summaries = [json.loads(each["wandb-summary.json"]["content"][-1]) for each in files]
        assert summaries[-1]["best"] == record["result"]["best"]
    assert {run_id for run_id, _ in server.streams} == {"first111", "second22"}


@pytest.mark.usefixtures("process", "under_agent")
def test_one_run_attaches_and_what_it_starts_from_does_not(tmp_path):
    output = str(tmp_path / "outputs")
    runs = with_starts(expand(["method=vera", "task=rte", "init_from=lora@mrpc", f"output={output}"]))
    assert len(runs) == 2
    assert agent_note(runs) is None
    tracker = Tracker(Tracking("offline"), output, runs=runs)
    for number, run in enumerate(runs):
        tracker.begin(run, f"{number}" * 12)
        tracker.end(record_of(run, f"{number}" * 12))
    tracker.close()
    start, asked = offline_runs(output)
    assert (start["run"].run_id, start["run"].sweep_id) == ("0" * 12, "")
    assert (asked["run"].run_id, asked["run"].sweep_id, asked["run"].project) == ("sweeprun", "sweep1", "p")
    assert asked["config"]["train.lr"] == 0.01
    assert "train.lr" not in start["config"]


@pytest.mark.usefixtures("process", "under_agent")
def test_many_runs_say_that_none_is_attached(tmp_path):
    output = str(tmp_path / "outputs")
    runs = runs_of(output, seeds=2)
    tracker = Tracker(Tracking("offline"), output, runs=runs)
    for number, run in enumerate(runs):
        tracker.begin(run, f"{number}" * 12)
        tracker.end(record_of(run, f"{number}" * 12))
    tracker.close()
    assert [(run["run"].run_id, run["run"].sweep_id) for run in offline_runs(output)] == [
        ("0" * 12, ""),
        ("1" * 12, ""),
    ]
    note = agent_note(runs)
    assert note.startswith("note: wandb agent starts one run at a time, and this command has 2: ")
    assert note.endswith("none is attached to the sweep sweep1")
    assert "\n" not in note


def test_without_an_agent_nothing_is_said(tmp_path):
    assert agent_note(runs_of(str(tmp_path), seeds=2)) is None


def test_the_examples_words_are_runs():
    sweep = yaml.safe_load(EXAMPLE.read_text())
    parameters = sweep["parameters"].items()
    first = [f"{key}={of['value'] if 'value' in of else of['values'][0]}" for key, of in parameters]
    (run,) = expand(first)
    assert run.config["task"]["holdout"]
    assert sweep["program"] == "runs"
    assert Path(ROOT / "runs" / "__main__.py").is_file()
