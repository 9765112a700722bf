"""Weights & Biases: what a run is there, and that nothing that goes wrong there reaches
a run.

The real wandb, with servers of our own, good and bad. What it wrote offline is read by
`wandb sync`."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ledgers
import pytest
import wandb
import yaml
from running import ROOT, call, comparable, output_of, replace_words, trained
from servers import NOBODY, logged_in

from runs.command.errors import StoppedError
from runs.config import expand
from runs.record.ledger import read_record, record_path
from runs.run.definition import with_starts
from runs.run.identity import run_id
from runs.tracking import tracker
from runs.tracking.content import describe_run, summary_of
from runs.tracking.tracker import (
    Tracker,
    Tracking,
    agent_note,
    ask_before_upload,
    tracking_of_run,
    with_mode_of_variable,
)
from runs.training.loop import Training
from runs.training.train import train

pytestmark = [pytest.mark.properties, pytest.mark.usefixtures("process")]
KEY = {"WANDB_API_KEY": "a" * 40}
MADE_WITH = {
    "code": {"commit": "c", "dirty": False},
    "versions": {},
    "device": {"name": "d"},
}
EXAMPLE = yaml.safe_load((ROOT / "examples" / "wandb_sweep.yaml").read_text())


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    """This machine's own W&B is out of the way."""
    monkeypatch.setenv("WANDB_SILENT", "")  # as the tracker does
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    yield
    wandb.teardown()


@pytest.fixture
def run(words):
    return expand([*words, "method=vera"])[0]


def sync(output):
    """make sync."""
    keep = {
        key: value
        for key, value in os.environ.items()
        if key not in ("WANDB_MODE", "WANDB_SILENT")
    }
    command = [sys.executable, "-m", "wandb", "sync", "--yes"]
    subprocess.run(command, env=keep | {"WANDB_DIR": output}, check=True, timeout=120)


def test_a_run_as_wandb_has_it(words, tmp_path):
    """From the command line to the server: written offline, then uploaded, once."""
    words = [*words, "method=vera"]
    done = call(
        "runs",
        *words,
        "tracking=offline",
        "tracking.adapter=true",
        "tracking.stats=true",
        check=0,
    )
    (run,), output = expand(words), output_of(words)
    record = read_record(record_path(output, run_id(run)))
    assert "tracking.log" not in done.stdout + done.stderr  # which lists what failed
    with logged_in() as server:
        sync(output)
        told, count = server.run(record["id"]), len(server.streams)
        sync(output)
        assert len(server.streams) == count
    names = [
        told["made"][key]
        for key in ("project", "groupName", "jobType", "displayName", "tags")
    ]
    tags = ["vera", "encoder", "rte", "done"]
    assert names == ["vera-bench", "vera@encoder@rte", "train", run.label, tags]
    known = {
        "run_id": record["id"],
        "recipe_name": run.recipe,
        "train": run.config["train"],
    }
    known |= {key: record[key] for key in ("versions", "cell")} | {
        "device_name": record["device"]["name"]
    }
    known |= {key: record["code"][key] for key in ("commit", "dirty")}
    assert known.items() <= told["config"].items()
    assert str(tmp_path) not in str(told["config"])
    keys = {
        "epoch": "epoch",
        "step": "step",
        "train_loss": "train/loss",
        "metric": "cells/encoder/rte/dev",
    }
    for key, name in keys.items():
        assert [line[name] for line in told["history"]] == record["curve"][key]
    result, size, cost = (record[key] for key in ("result", "parameters", "cost"))
    shown = {
        "status": "done",
        "best": result["best"],
        "cells/encoder/rte/last": result["last"],
    }
    shown |= {
        "parameters/adapter": size["adapter"],
        "cost/train_seconds": cost["train_seconds"],
    }
    assert shown.items() <= told["summary"].items()
    assert (told["exit"], told["preempting"]) == ([0], False)
    (artifact,) = [
        a["variables"]["input"] for a in server.told if "createArtifact(" in a["query"]
    ]
    assert artifact["artifactCollectionName"] == "vera-encoder-rte-0"
    assert record["id"] in artifact["metadata"]


ENDS = [("done", None), ("failed", RuntimeError("no")), ("interrupted", StoppedError())]


@pytest.mark.parametrize(("status", "error"), ENDS)
def test_how_a_run_ends_in_wandb(status, error, run, words):
    """Online. A process that is killed, and another that goes on, are one run with all
    epochs."""
    record = trained([*words, "method=vera"]) | {"status": status}
    first = {key: values[:1] for key, values in record["curve"].items()}
    with logged_in() as server:
        if killed := os.fork():
            os.waitpid(killed, 0)
        tracker = Tracker(Tracking("online"), run, "a" * 12, record)
        tracker.start.join()
        tracker.send_epochs(first, "accuracy")
        if not killed:
            os.kill(os.getpid(), signal.SIGKILL)
        tracker.finish(None if error else record, error)
        told = server.run("a" * 12)
    assert {name for name, _ in server.streams} == {"a" * 12}
    assert [line["epoch"] for line in told["history"]] == (
        first if error else record["curve"]
    )["epoch"]
    assert (told["made"]["tags"][-1], told["summary"]["status"]) == (status, status)
    assert (told["exit"], told["preempting"]) == (
        [int(status != "done")],
        status == "interrupted",
    )
    assert not list(Path(output_of(words)).rglob("tracking.log"))


@pytest.mark.parametrize(
    "fault", ["hangs", "error 500", "dies on the way", "wandb dies"]
)
def test_a_fault_of_wandb_changes_no_record(fault, run, words, monkeypatch, tmp_path):
    """And loses nothing, nor takes more than half a minute."""
    assert tracker.START_TIMEOUT + tracker.FINISH_TIMEOUT <= 30
    monkeypatch.setattr(tracker, "INIT_TIMEOUT", 4.0)
    monkeypatch.setattr(tracker, "FINISH_TIMEOUT", 3.0)
    straight = trained(
        replace_words([*words, "method=vera"], output=tmp_path / "straight")
    )

    def report(event):  # the second epoch is over
        if event["phase"] == "evaluated" and event["epoch"] == 1:
            training.tracker.start.join()
            if fault == "dies on the way":
                server.server_close()
            if fault == "wandb dies":
                subprocess.run(
                    ["pkill", "-9", "-P", str(os.getpid()), "wandb-core"], check=True
                )

    with logged_in({"hangs": None, "error 500": 500}.get(fault, 200)) as server:
        training = Training(run, run_id(run), report)
        begun = time.monotonic()
        record = train(training, Tracking("online"))
        # as promised; the server that hangs would hold a run that waits for it forever
        assert time.monotonic() - begun < 30
    assert comparable(record) == comparable(straight)
    assert run_id(run) in Path(output_of(words), "wandb", "tracking.log").read_text()
    with logged_in() as server:
        sync(output_of(words))
        told = server.run(run_id(run))
    assert [line["epoch"] for line in told["history"]] == [1, 2]
    assert told["exit"] == [0]


def test_whoever_is_not_logged_in_reads_so_and_a_full_disk_stops_nothing(run, words):
    done = call("runs", *words, "method=vera", "tracking=online", check=0)
    early, late = [line for line in done.stderr.splitlines() if "W&B" in line]
    assert early.startswith("note: nobody is logged in to W&B, so these runs are")
    command = f"WANDB_DIR={output_of(words)} wandb sync --yes"
    assert f"wandb login, then {command}" in late
    folder = Path(output_of(words), "wandb")
    shutil.rmtree(folder)
    folder.write_text("no folder")
    train(Training(run, run_id(run), lambda event: None), Tracking("offline"))


OFFLINE, RANK = KEY | {"WANDB_MODE": "offline"}, KEY | {"RANK": "1", "LOCAL_RANK": "1"}
#: What the command asks for, and W&B's mode by the environment. Without a key nobody is
#: logged in.
MODES = [
    (None, {}, "offline"),
    (None, KEY, "offline"),
    (None, KEY | {"WANDB_MODE": "online"}, "offline"),
    ("online", KEY, "online"),
    (None, OFFLINE, "offline"),
    ("online", {}, "offline"),
]
MODES += [
    (None, {"WANDB_MODE": "disabled"}, None),
    ("off", KEY, None),
    ("online", RANK, None),
]


@pytest.mark.parametrize(
    ("asked", "environment", "mode"), [*MODES, ("online", OFFLINE, "online")]
)
def test_the_mode_is_the_commands_and_nothing_is_sent_without_it(
    asked, environment, mode, run, monkeypatch
):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    started = []
    monkeypatch.setattr(wandb, "init", lambda **given: started.append(given) or 1 / 0)
    tracker = Tracker(Tracking(asked, stats=True), run, "a" * 12, MADE_WITH)
    assert tracker.is_off or tracker.start.join() is None
    assert [given["mode"] for given in started][:1] == [mode] * bool(mode)
    assert not any(given["settings"].x_disable_stats for given in started)


class Terminal(io.StringIO):
    """Somebody who types an answer, or nobody."""

    def __init__(self, answer=None):
        super().__init__(answer or "")
        self.is_there = answer is not None

    def isatty(self):
        return self.is_there


@pytest.mark.parametrize(
    ("answer", "mode"),
    [
        ("y\n", "online"),
        (" YES\n", "online"),
        ("n\n", "offline"),
        ("\n", "offline"),
        ("", "offline"),  # Ctrl-D
        (None, "offline"),
    ],
)
def test_a_user_who_is_logged_in_is_asked_before_anything_is_sent(
    answer, mode, monkeypatch
):
    terminal, shown = Terminal(answer), Terminal("" if answer is not None else None)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys, "stderr", shown)
    with logged_in():
        found = ask_before_upload(Tracking(stats=True), 3, "there")
    assert (found.mode, found.stats) == (mode, True)
    told = shown.getvalue()
    assert ("Send it these 3 runs?" in told) == (answer is not None)
    how = "WANDB_DIR=there wandb sync --yes\n"
    assert told.endswith(how) == (mode == "offline")
    assert told.count("\n") == (mode == "offline")


@pytest.mark.parametrize(
    ("asked", "environment", "runs"),
    [
        ("online", KEY, 1),
        ("offline", KEY, 1),
        ("off", KEY, 1),
        (None, {}, 1),
        (None, KEY, 0),
        (None, OFFLINE, 1),
        (None, KEY | {"WANDB_MODE": "disabled"}, 1),
        (None, RANK, 1),
    ],
)
def test_nobody_is_asked_in_vain(asked, environment, runs, monkeypatch, capsys):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    settings = Tracking(asked)
    assert ask_before_upload(settings, runs, "there") == settings
    assert capsys.readouterr() == ("", "")


def test_wandb_mode_offline_is_tracking_offline_unless_another_is_typed(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert with_mode_of_variable(Tracking()).mode == "offline"
    assert with_mode_of_variable(Tracking("online")).mode == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert with_mode_of_variable(Tracking()).mode is None


def test_the_page_says_that_no_line_appears_without_a_login(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal(None))
    assert ask_before_upload(Tracking(), 1, "there").mode is None
    assert capsys.readouterr() == ("", "")
    page = (ROOT / "docs" / "tracking.md").read_text()
    assert "If you are not logged in, nothing is printed" in page


def test_a_command_sends_nothing_and_says_how_to_send(words):
    with logged_in() as server:
        done = call("runs", *words, "method=vera", check=0)
        assert not server.streams
        line = [line for line in done.stderr.splitlines() if "W&B" in line]
        assert line == [
            "note: nothing is sent to W&B without tracking=online or a yes at a"
            " terminal. To send these runs later:"
            f" WANDB_DIR={output_of(words)} wandb sync --yes"
        ]
        sync(output_of(words))
        assert len(server.streams) > 0


def test_job_types_tags_and_limits():
    """Of a run, of a search (the sweep of our example) and of a model as it is."""
    of_sweep = EXAMPLE["parameters"].items()
    search = [
        f"{key}={it['value'] if 'value' in it else it['values'][0]}"
        for key, it in of_sweep
    ]
    own, label = ["model=minilm", "task=reviews", "seed=0"], f"method.label={'x' * 200}"
    demo, none = (
        [*own, "method=vera", "experiment=demo", "train.max_steps=2"],
        [*own, "method=none"],
    )
    of = [
        ("train", demo, {"trial", "demo"}),
        ("tune", search, {"trial"}),
        ("eval", none, set()),
    ]
    for job, words, tags in of:
        about = describe_run(expand([*words, label])[0], "a" * 12, MADE_WITH)
        assert (about["job_type"], len(about["name"]) <= 128) == (job, True)
        assert {"trial", "demo"} & set(about["tags"]) == tags


def test_scores_of_texts_are_in_the_summary():
    """By the protocol alone, the first length penalty; numbers, not the hash of the
    texts."""
    found = summary_of(ledgers.text_record(hash="h"))
    expected = {
        "texts/last/bleu": 68.0,
        "texts/best/bleu": 68.25,
        "cells/gpt2_medium/e2e/bleu": 68.0,
    }
    assert {k: v for k, v in found.items() if "bleu" in k or "hash" in k} == expected


# --- `wandb agent`: the run that it starts is the one that W&B's sweep has named


def test_the_real_agent_starts_a_run_that_attaches(words, monkeypatch, tmp_path):
    """And one that has its record already: the sweep waits for its numbers."""
    words = [*words, "method=vera"]
    assert EXAMPLE["command"][1:4] == ["python", "-m", "runs"]
    assert EXAMPLE["command"][4:] == ["${args_no_hyphens}", "tracking=online"]
    with logged_in() as server:
        server.sweep = yaml.safe_dump(
            {**EXAMPLE, "command": [sys.executable, *EXAMPLE["command"][2:]]}
        )
        args = {
            key: {"value": value}
            for key, value in (word.split("=", 1) for word in words)
        }
        command = {"type": "run", "program": "runs", "args": args}
        server.commands = [
            command | {"run_id": name} for name in ("first111", "second22")
        ]
        monkeypatch.setenv("WANDB_DIR", str(tmp_path))
        agent = [sys.executable, "-m", "wandb", "agent", "--count", "2", "me/p/sweep1"]
        done = subprocess.run(
            agent, cwd=ROOT, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        told = {name: server.run(name) for name in ("first111", "second22")}
    record = read_record(record_path(output_of(words), run_id(expand(words)[0])))
    assert {name for name, _ in server.streams} == set(told)
    for run in told.values():
        assert (run["made"]["sweep"], run["made"]["project"], run["exit"]) == (
            "sweep1",
            "p",
            [0],
        )
        known = {"run_id": record["id"], "commit": record["code"]["commit"]}
        # the sweep's own parameter
        assert (known | {"method": "vera"}).items() <= run["config"].items()
        assert run["config"]["method_config"]["kind"] == "vera"
        assert run["summary"]["best"] == record["result"]["best"]


@pytest.mark.parametrize(
    ("words", "attached"),  # not the run that it starts from
    [
        ("method=vera", [1]),
        ("method=vera init_from=lora@mrpc", [0, 1]),
        ("method=vera seed=0,1", [0, 0]),
    ],
)
def test_the_one_run_of_a_command_attaches(words, attached, monkeypatch):
    runs = with_starts(expand(["task=rte", *words.split()]))
    assert agent_note(runs) is None
    # without an agent
    assert not any(tracking_of_run(Tracking(), run, runs).agent for run in runs)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert [tracking_of_run(Tracking(), run, runs).agent for run in runs] == attached
    note = agent_note(runs)
    assert (note is None) == any(attached)
    assert note is None or ("2 runs" in note and "sweep1" in note and "\n" not in note)
