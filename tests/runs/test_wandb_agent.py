"""`wandb agent`: the run that it starts is the one that W&B's sweep has named."""

import os
import subprocess
import sys

import pytest
import yaml
from running import ROOT, output_of
from wandb_server import good

from runs.config import expand
from runs.identity import run_id
from runs.record import read_record, record_path
from runs.run import with_starts
from runs.tracking import Tracking, agent_note, of_run

pytestmark = pytest.mark.properties

EXAMPLE = ROOT / "examples" / "wandb_sweep.yaml"


@pytest.mark.usefixtures("process")
def test_the_real_agent_starts_a_run_that_attaches(words, tmp_path):
    """And one that has its record already: the sweep waits for its numbers."""
    words = [*words, "method=vera"]
    args = {key: {"value": value} for key, value in (word.split("=", 1) for word in words)}
    with good() as server:
        sweep = yaml.safe_load(EXAMPLE.read_text())
        assert (sweep["program"], sweep["command"][1:]) == (
            "runs",
            ["python", "-m", "runs", "${args_no_hyphens}"],
        )
        server.sweep = yaml.safe_dump({**sweep, "command": [sys.executable, *sweep["command"][2:]]})
        command = {"type": "run", "program": "runs", "args": args}
        server.commands = [command | {"run_id": name} for name in ("first111", "second22")]
        own = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        own |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_DIR": str(tmp_path)}
        own |= {"WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}
        agent = [sys.executable, "-m", "wandb", "agent", "--count", "2", "me/p/sweep1"]
        done = subprocess.run(
            agent, cwd=ROOT, env=own, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        told = {name: server.run(name) for name in ("first111", "second22")}
    record = read_record(record_path(output_of(words), run_id(expand(words)[0])))
    assert {name for name, _ in server.streams} == set(told)
    for run in told.values():
        assert (run["made"]["sweep"], run["made"]["project"], run["exit"]) == ("sweep1", "p", [0])
        assert (run["config"]["run_id"], run["config"]["commit"]) == (record["id"], record["code"]["commit"])
        assert run["config"]["method"] == "vera"  # the sweep's own parameter
        assert run["config"]["method_config"]["kind"] == "vera"
        assert run["summary"]["best"] == record["result"]["best"]


@pytest.mark.parametrize(
    ("words", "attached"),
    [
        (["method=vera"], [True]),
        (["method=vera", "init_from=lora@mrpc"], [False, True]),  # not the run that it starts from
        (["method=vera", "seed=0,1"], [False, False]),
    ],
)
def test_the_one_run_of_a_command_attaches(words, attached, monkeypatch):
    runs = with_starts(expand(["task=rte", *words]))
    assert agent_note(runs) is None
    assert not any(of_run(Tracking(), run, runs).agent for run in runs)  # without an agent
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert [of_run(Tracking(), run, runs).agent for run in runs] == attached
    note = agent_note(runs)
    assert (note is None) == any(attached)
    assert note is None or ("2 runs" in note and "sweep1" in note and "\n" not in note)


def test_the_examples_words_are_runs():
    parameters = yaml.safe_load(EXAMPLE.read_text())["parameters"].items()
    words = [f"{key}={of['value'] if 'value' in of else of['values'][0]}" for key, of in parameters]
    (run,) = expand(words)
    assert run.config["task"]["holdout"]
