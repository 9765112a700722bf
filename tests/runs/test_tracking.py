"""Weights & Biases: what a run is there, and that nothing that goes wrong there reaches a run.

The real wandb, offline, read back from its files; and online against servers of our own, good and bad.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb_runs import at_once, event, failed, offline_runs, record_of, runs_of, tell, wait
from wandb_server import bad, good, refusing

from runs.config import expand
from runs.errors import UserError
from runs.record import run_folder
from runs.tracking import Tracker, Tracking
from runs.tracking.__main__ import main
from runs.tracking.payload import about, point_of, points_of, provenance_of, summary_of
from runs.tracking.server import OPEN, PATIENCE, UPLOAD

ROOT = Path(__file__).parents[2]
KEY = "a" * 40


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    """This machine's own W&B is out of the way, and no address that a test forgets leads anywhere."""
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", refusing())
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "outputs")


@pytest.fixture
def online(monkeypatch):
    """Logs in to a server."""

    def login(url):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)

    return login


@pytest.mark.usefixtures("process")
def test_runs_as_they_are_in_wandb(output, tmp_path, capfd):
    """One after another: done, failed, interrupted, gone on and diverged; from one process."""
    done, broken, stopped = runs_of(output, f"task.cache_dir={tmp_path}", seeds=3)
    tracker = Tracker(Tracking("offline"), output, patience=60)  # as long as a slow machine takes
    tell(tracker, done, "a" * 12, record_of(done, "a" * 12))
    tell(tracker, broken, "b" * 12, failed(broken, "b" * 12), epochs=(1,))
    tell(tracker, stopped, "c" * 12, None, epochs=(1, 2))
    tell(tracker, stopped, "c" * 12, record_of(stopped, "c" * 12, "diverged"), epochs=(3,))
    tracker.close()
    assert capfd.readouterr() == ("", "")
    first, second, third, fourth = offline_runs(output)
    run = first["run"]
    assert (run.run_id, run.project, run.run_group) == ("a" * 12, "vera-bench", "vera@minilm@reviews")
    assert run.display_name == done.label
    assert list(run.tags) == ["vera", "minilm", "reviews"]  # the kind of method is vera, too
    assert first["tags"] == ["vera", "minilm", "reviews", "done"]
    assert first["config"]["train"] == done.config["train"]
    assert first["config"]["cell"] == record_of(done, "x")["cell"]
    assert first["config"]["mode"] == "offline"
    assert first["config"]["task"]["cache_dir"] == tmp_path.name  # not where it lies
    assert str(tmp_path) not in json.dumps(first["config"])
    assert first["axes"] == {"train/*": "epoch", "dev/*": "epoch", "cells/*": "epoch"}
    lines = [
        {k: line[k] for k in ("epoch", "step", "dev/accuracy", "cells/minilm/reviews/dev")}
        for line in first["history"]
    ]
    assert lines == [
        {"epoch": e, "step": 10 * e, "dev/accuracy": m, "cells/minilm/reviews/dev": m}
        for e, m in ((1, 0.6), (2, 0.8), (3, 0.7))
    ]
    assert first["history"][1]["train/loss"] == 0.5
    shown = {"status": "done", "best": 0.8, "best_epoch": 2.0, "last": 0.7, "metric": "accuracy"}
    shown |= {"parameters/adapter": 7680, "cost/train_seconds": 1.25, "cells/minilm/reviews/best": 0.8}
    assert shown.items() <= first["summary"].items()
    assert first["exit"] == [0]
    # A failed run must not look finished.
    assert (second["exit"], second["tags"][-1], second["summary"]["status"]) == ([1], "failed", "failed")
    assert second["summary"]["error"] == "signal 9"
    assert "preempting" in third["kinds"]
    assert "preempting" not in first["kinds"] + fourth["kinds"]
    assert (third["exit"], third["tags"][-1], third["summary"]["status"]) == (
        [1],
        "interrupted",
        "interrupted",
    )
    # The same id again: the epochs before the break come from the record, and W&B's own steps still rise.
    assert fourth["run"].run_id == third["run"].run_id == "c" * 12
    assert [line["epoch"] for line in fourth["history"]] == [3, 1.0, 2.0]
    assert [line["_step"] for line in fourth["history"]] == [0, 1, 2]
    assert (fourth["exit"], fourth["tags"][-1]) == ([1], "diverged")
    assert "interrupted" not in fourth["tags"]
    # What was not asked for: no code, no list of packages, no locks left.
    files = {path.name for path in (Path(output) / "wandb").rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith(("debug", "run-"))} == {"tracking.log"}


def test_nothing_starts_before_a_run_nor_where_it_is_off(output, monkeypatch):
    (run,) = runs_of(output)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    Tracker(Tracking("offline"), output).close()
    for tracker in (Tracker(Tracking("off"), output), rank_1(output, monkeypatch)):
        tell(tracker, run, "a" * 12, None)
        tracker.close()
    assert not Path(output).exists()


def rank_1(output, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    return Tracker(Tracking("online"), output)


@pytest.mark.usefixtures("process")
def test_the_executors_process_never_imports_wandb():
    code = "import runs.tracking, runs.sweep.sweep, runs.plan, sys; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.usefixtures("process")
def test_the_mode_is_what_wandb_says(monkeypatch, tmp_path):
    """In processes of their own: wandb reads its settings once in a life."""

    def fresh():
        code = "from runs.tracking.account import mode_here; print(mode_here())"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=240,
        )
        return done.stdout.strip()

    assert fresh() == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    (tmp_path / ".netrc").write_text(f"machine wandb.other.org\n  login user\n  password {KEY}\n")
    assert fresh() == "offline"  # another server's
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.other.org")
    assert fresh() == "online"
    known = {"disabled": "off", "offline": "offline", "dryrun": "offline", "run": "online"}
    for value, mode in known.items():
        monkeypatch.setenv("WANDB_MODE", value)
        assert fresh() == mode
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_BASE_URL")
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")  # wandb login --host
    assert fresh() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert fresh() == "online"
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")  # wandb offline
    assert fresh() == "offline"


def test_tags_say_preset_and_trial_and_keep_to_wandbs_limits(output):
    (run,) = runs_of(output, "experiment=demo", "train.max_steps=2", f"method.label={'x' * 200}")
    told = about(run, "a" * 12)
    assert told["tags"] == ["vera", "minilm", "reviews", "demo", "trial"]
    assert len(told["name"]) == 128


def test_scores_of_texts_are_in_the_summary(output):
    (run,) = runs_of(output)
    record = record_of(run, "a" * 12)
    entries = [("last", "0.9", 69.1), ("last", "0.8", 68.0), ("best", "0.9", 69.5)]
    scores = [
        {"which": w, "variant": v, "epoch": 3.0, "bleu": b, "meteor": None, "hash": "h"}
        for w, v, b in entries
    ]
    found = summary_of(record | {"texts": {"split": "test", "scores": scores}})
    assert {k: v for k, v in found.items() if "bleu" in k} == {
        "texts/last/bleu": 69.1,
        "texts/best/bleu": 69.5,
        "cells/minilm/reviews/bleu": 69.1,
    }
    assert not any("meteor" in key or "hash" in key for key in found)


def test_a_point_is_the_same_live_and_from_the_record(output):
    (run,) = runs_of(output)
    live = [point_of(event(e, m), "cells/minilm/reviews") for e, m in ((1, 0.6), (2, 0.8), (3, 0.7))]
    assert points_of(record_of(run, "a" * 12)) == live
    assert points_of(failed(run, "a" * 12)) == []


def test_the_kind_of_job_is_train_tune_or_eval(output):
    words = {"train": [], "tune": ["task.holdout=0.2"], "eval": ["method=none"]}
    for kind, more in words.items():
        (run,) = runs_of(output, *more)
        assert about(run, "a" * 12)["job_type"] == kind
    (run,) = runs_of(output, "train.max_steps=2")
    assert about(run, "a" * 12)["job_type"] == "train"  # and its tag says trial


#: The event that a run's process begins with, and the record's parts with the same.
MADE_WITH = {
    "code": {"commit": "c0ffee", "dirty": True, "sources": {}},
    "versions": {"python": "3.11.7", "torch": "2.9.0"},
    "device": {"type": "cuda", "name": "NVIDIA H100", "system": "Linux", "cuda": "13.0"},
}


@pytest.mark.usefixtures("process")
def test_the_configuration_says_what_a_run_is_made_with(output, capfd):
    """From the first event on, and from the record where that has not come."""
    on, done = runs_of(output, seeds=2)
    tracker = Tracker(Tracking("offline"), output)
    tracker.begin(on, "a" * 12)
    tracker.event({"phase": "loading", "provenance": MADE_WITH | {"pid": 1}})
    tracker.end(None)
    tell(tracker, done, "b" * 12, record_of(done, "b" * 12) | MADE_WITH)
    tracker.close()
    assert capfd.readouterr() == ("", "")
    known = {
        "commit": "c0ffee",
        "dirty": True,
        "versions": MADE_WITH["versions"],
        "device_name": "NVIDIA H100",
    }
    for run in offline_runs(output):
        config = run["config"] | run["later"]
        assert known.items() <= config.items()
        assert config["recipe_name"] == on.recipe
        assert (config["run_id"], run["run"].job_type) == (run["run"].run_id, "train")


def test_a_runs_process_says_what_it_is_made_with(words):
    from runs.training.loop import Training
    from runs.training.train import train

    events = []
    (run,) = expand(words)
    record = train(Training(run, "a" * 12, events.append))
    (first,) = [event["provenance"] for event in events if "provenance" in event]
    assert first["pid"] == os.getpid()
    assert provenance_of(first) == provenance_of(record)
    assert set(provenance_of(first)) == {"commit", "dirty", "versions", "device_name"}
    assert json.loads(json.dumps(first)) == first


@pytest.mark.usefixtures("process")
def test_statistics_are_those_of_the_runs_process(output, capfd):
    """A second try is another process: what it takes is asked for anew."""
    (run,) = runs_of(output)
    sleepers = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in "ab"]
    tracker = Tracker(Tracking("offline", stats=True), output, patience=60)
    tracker.begin(run, "a" * 12)
    time.sleep(0.5)
    assert not list((Path(output) / "wandb").glob("offline-run-*"))  # whose they are is not known yet
    for number, sleeper in enumerate(sleepers, 1):
        tracker.event({"phase": "loading", "provenance": MADE_WITH | {"pid": sleeper.pid}})
        wait(
            lambda number=number: len(list((Path(output) / "wandb").glob("offline-run-*/*.wandb"))) == number
        )
        time.sleep(3)
    tracker.end(record_of(run, "a" * 12))
    tracker.close()
    for sleeper in sleepers:
        sleeper.communicate(b"\n")
    assert capfd.readouterr() == ("", "")
    first, second = offline_runs(output)
    assert first["run"].run_id == second["run"].run_id == "a" * 12
    assert (first["tags"][-1], second["tags"][-1]) == ("interrupted", "done")
    for written in (first, second):
        assert any(
            0 < each["proc.memory.rssMB"] < 60 for each in written["stats"]
        )  # a sleeper, and no tracker


@pytest.mark.usefixtures("process")
def test_without_the_key_there_are_no_statistics(output):
    (run,) = runs_of(output)
    tracker = Tracker(Tracking("offline"), output)
    tracker.begin(run, "a" * 12)
    tracker.event({"phase": "loading", "provenance": MADE_WITH | {"pid": os.getpid()}})
    tracker.end(record_of(run, "a" * 12))
    tracker.close()
    (written,) = offline_runs(output)
    assert written["stats"] == []
    assert not {"artifact", "environment"} & set(written["kinds"])


@pytest.mark.usefixtures("process")
def test_the_kept_adapter_is_an_artifact(output, capfd):
    done, none_kept, diverged = runs_of(output, seeds=3)
    tracker = Tracker(Tracking("offline", adapter=True), output)
    assert tracker.patience == PATIENCE + UPLOAD
    for run, run_id in ((done, "a" * 12), (none_kept, "b" * 12), (diverged, "c" * 12)):
        run_folder(output, run_id).mkdir(parents=True)
        status = "diverged" if run is diverged else "done"
        if run is not none_kept:
            (run_folder(output, run_id) / "adapter.safetensors").write_bytes(b"adapter")
        (run_folder(output, run_id) / "head.safetensors").write_bytes(b"head")
        (run_folder(output, run_id) / "log.txt").write_text("what nobody asked for")
        tell(tracker, run, run_id, record_of(run, run_id, status) | MADE_WITH)
    tracker.close()
    assert capfd.readouterr() == ("", "")
    first, second, third = offline_runs(output)
    (artifact,) = first["artifacts"]
    assert (artifact.name, artifact.type) == ("vera-minilm-reviews-0", "model")
    assert sorted(artifact.aliases) == ["a" * 12, "latest"]
    assert [file.path for file in artifact.manifest.contents] == ["adapter.safetensors", "head.safetensors"]
    metadata = json.loads(artifact.metadata)
    assert (metadata["run_id"], metadata["best"], metadata["commit"]) == ("a" * 12, 0.8, "c0ffee")
    assert metadata["method"] == done.config["method"]
    assert second["artifacts"] == third["artifacts"] == []


@pytest.mark.usefixtures("process")
def test_online_a_run_goes_to_the_server(output, online, capfd):
    (run,) = runs_of(output)
    with good() as server:
        online(server.url)
        tracker = Tracker(Tracking(), output)
        tell(tracker, run, "a" * 12, record_of(run, "a" * 12))
        tracker.close()
    assert capfd.readouterr() == ("", "")
    streamed = [body for run_id, body in server.streams if run_id == "a" * 12]
    assert [body["exitcode"] for body in streamed if body.get("complete")] == [0]
    lines = [
        json.loads(line)
        for b in streamed
        for line in b.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
    ]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    upserts = [told["variables"] for told in server.told if "upsertBucket" in told["query"]]
    assert upserts[0]["groupName"] == "vera@minilm@reviews"
    assert upserts[-1]["tags"][-1] == "done"
    assert offline_runs(output) == []


@pytest.mark.usefixtures("process")
def test_a_server_that_refuses_hangs_or_answers_nonsense_costs_a_run_nothing(tmp_path, online, capfd):
    """At the same time, since each takes as long as W&B is given. All is on disk in
    the end."""
    trackers = []
    garbage = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{garbage]"
    error = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    with contextlib.ExitStack() as stack:
        urls = [refusing(), *(stack.enter_context(bad(answer)) for answer in (None, error, garbage))]
        for number, url in enumerate(urls):
            output = str(tmp_path / str(number))
            (run,) = runs_of(output)
            online(url)
            trackers.append(Tracker(Tracking(), output, patience=24))
            assert not trackers[-1].off
            at_once(trackers[-1].begin, run, "a" * 12)
            for epoch in (1, 2, 3):
                at_once(trackers[-1].event, event(epoch, 0.5))
            at_once(trackers[-1].end, record_of(run, "a" * 12))
            wait(lambda tracker=trackers[-1]: tracker._process)  # it has read where its server is
        started = time.monotonic()
        for tracker in trackers:
            tracker.close()
        assert time.monotonic() - started < 24 + 5
    for tracker in trackers:
        (written,) = offline_runs(tracker.output)
        assert [line["epoch"] for line in written["history"]] == [1, 2, 3]
        assert written["exit"] == [0]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == len(trackers)
    assert all(f"make sync OUTPUT={t.output} uploads" in line for t, line in zip(trackers, said, strict=True))


@pytest.mark.usefixtures("process")
def test_a_killed_process_is_one_line(output, capfd):
    (run,) = runs_of(output)
    tracker = Tracker(Tracking("offline"), output)
    tracker.begin(run, "a" * 12)
    wait(lambda: list((Path(output) / "wandb").glob("offline-run-*/*.wandb")))
    os.kill(tracker._process.pid, signal.SIGKILL)
    tracker._process.wait(10)
    for epoch in range(1, 50):
        at_once(tracker.event, event(epoch, 0.5))
    at_once(tracker.end, record_of(run, "a" * 12))
    at_once(tracker.begin, run, "b" * 12)
    at_once(tracker.end, None)
    started = time.monotonic()
    tracker.close()
    tracker.close()
    assert time.monotonic() - started < 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "W&B does not have every run; the records are whole" in err
    assert "tracking.log" in err


@pytest.mark.usefixtures("process")
def test_wandbs_service_dies_and_the_run_is_told_again(output, capfd):
    """wandb's own process, behind ours: an answer that it does not expect is enough to end it."""
    (run,) = runs_of(output)
    tracker = Tracker(Tracking("offline"), output)
    tracker.begin(run, "a" * 12)
    wait(lambda: list((Path(output) / "wandb").glob("offline-run-*/*.wandb")))
    tracker.event(event(1, 0.6))
    service = wait(
        lambda: (
            subprocess.run(["pgrep", "-P", str(tracker._process.pid)], capture_output=True, text=True).stdout
        )
    )
    os.kill(int(service.split()[0]), signal.SIGKILL)
    time.sleep(0.2)
    tracker.event(event(2, 0.8))
    tracker.end(record_of(run, "a" * 12))
    tracker.close()
    assert capfd.readouterr() == ("", "")
    again = offline_runs(output)[-1]
    assert [line["epoch"] for line in again["history"]] == [1, 2, 3]
    assert again["exit"] == [0]


PARENT = """
import sys, time
from runs.config import expand
from runs.config import expand
from runs.record import run_folder
from runs.tracking import Tracker, Tracking
(run,) = expand(["method=vera", "task=reviews", "model=minilm", f"output={sys.argv[1]}"])
tracker = Tracker(Tracking("offline"), sys.argv[1])
tracker.begin(run, "a" * 12)
at = {"phase": "evaluated", "epoch": 1, "step": 10, "loss": 1.0}
tracker.event({**at, "metric_name": "accuracy", "metric": 0.6})
while not tracker._process: time.sleep(0.01)
print(tracker._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.usefixtures("process")
def test_it_ends_when_the_sweep_is_killed(output):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, output], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    wait(lambda: list((Path(output) / "wandb").glob("offline-run-*/*.wandb")))
    parent.kill()
    parent.communicate()
    wait(lambda: not alive(child))
    (written,) = offline_runs(output)
    assert [line["epoch"] for line in written["history"]] == [1]
    assert (written["exit"], written["tags"][-1]) == ([1], "interrupted")


def alive(pid):
    with contextlib.suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def test_what_cannot_be_written_down_stops_nothing(output, capfd, tmp_path):
    (run,) = runs_of(output)
    endless = []
    endless.append(endless)
    (tmp_path / "outputs").write_text("no folder")
    tracker = Tracker(Tracking("offline"), output)
    at_once(tracker.begin, run, "a" * 12)
    at_once(tracker.event, {"phase": "evaluated"})
    at_once(tracker.end, {"status": endless})
    tracker.close()
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "the records are whole" in err


def test_a_run_that_cannot_be_told_is_one_line(output, capfd):
    tracker = Tracker(Tracking("offline"), output)
    at_once(tracker.begin, None, "a" * 12)
    tracker.close()
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("process")
def test_sync_uploads_each_run_once(output, online):
    run, other = runs_of(output, seeds=2)
    tracker = Tracker(Tracking("offline"), output)
    tell(tracker, run, "a" * 12, None, epochs=(1,))
    tell(tracker, run, "a" * 12, record_of(run, "a" * 12), epochs=(2, 3))
    tell(tracker, other, "b" * 12, failed(other, "b" * 12), epochs=(1,))
    tracker.close()
    folder = Path(output) / "wandb"
    folders = sorted(folder.glob("offline-run-*"))
    before = {path: path.read_bytes() for each in folders for path in each.glob("*.wandb")}
    assert "not logged in to http://" in refused(output)
    online(url := refusing())
    assert f"{url} cannot be reached (Connection refused). Nothing was uploaded" in refused(output)
    with bad(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as url:
        online(url)
        assert f"{url} cannot be reached (it answers 503). Nothing was uploaded" in refused(output)
    assert {path: path.read_bytes() for path in before} == before
    assert not list(folder.rglob("*.synced"))
    with good() as server:
        online(server.url)
        with open(folders[-1] / OPEN, "w") as lock:  # as if the last one were still on
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert sync(output)[:2] == (0, "2 uploaded, 0 left, 1 still on\n")
        assert {run_id for run_id, _ in server.streams} == {"a" * 12}
        assert sync(output)[:2] == (0, "1 uploaded, 0 left\n")
        ended = [(run_id, body["exitcode"]) for run_id, body in server.streams if body.get("complete")]
        assert ended == [("a" * 12, 1), ("a" * 12, 0), ("b" * 12, 1)]  # the first part before the second
        # What a kill may leave. A file without a header stops those that are named beside it.
        whole = next(iter(before.values()))
        cut = [("x", "x", b""), ("y", "y", whole[:7]), ("z", "a" * 12, whole[:-9])]
        for number, run_id, content in [*cut, ("1", "c" * 12, whole)]:
            (folder / f"offline-run-9-{number}").mkdir()
            (folder / f"offline-run-9-{number}" / f"run-{run_id}.wandb").write_bytes(content)
        for uploaded in (1, 0):
            code, out, err = sync(output)
            assert (code, out) == (1, f"{uploaded} uploaded, 3 left\n")
            names = ", ".join(f"{folder}/offline-run-9-{name}" for name in "xyz")
            assert err.splitlines()[-1].startswith(f"left: {names}. The same command tries again.")
        # A later part of the same run has all that it lacks.
        (folder / "offline-run-9-zz").mkdir()
        (folder / "offline-run-9-zz" / f"run-{'a' * 12}.wandb").write_bytes(whole)
        for name in "xy":
            (folder / f"offline-run-9-{name}" / f"run-{name}.wandb").unlink()
        assert sync(output)[:2] == (0, "2 uploaded, 0 left\n")
        server.streams.clear()
        nothing = f"no offline runs to upload in {folder} (6 uploaded before)\n"
        assert sync(output) == (0, nothing, "")
        assert server.streams == []


def sync(output):
    """make sync: its exit code, output and errors."""
    command = [sys.executable, "-m", "runs.tracking", "sync", f"output={output}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    return done.returncode, done.stdout, done.stderr


def refused(output):
    """The one line of a sync that uploads nothing."""
    code, out, err = sync(output)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    return err


@pytest.mark.usefixtures("process")
def test_syncs_errors_are_one_line_and_exit_code_2(output):
    (Path(output) / "wandb" / "offline-run-1").mkdir(parents=True)
    (Path(output) / "wandb" / "offline-run-1" / "run-a.wandb").write_bytes(b"")
    assert "Run `wandb login`, or set WANDB_API_KEY. Nothing was uploaded" in refused(output)
    for words, message in {
        ("sync", "outptu=x"): "no setting outptu=. Did you mean output=?",
        ("snyc",): "no command 'snyc'. Did you mean sync?",
        (): "sync is missing",
    }.items():
        with pytest.raises(UserError, match=re.escape(message)):
            main(list(words))
