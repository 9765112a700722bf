"""Weights & Biases: what a run is there, and that nothing that goes wrong there reaches a run.

The real wandb, offline, read back from its files; and online against servers of our own, good and bad.
"""

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb_server import bad, good, refusing

from runs.config import expand
from runs.errors import UserError
from runs.tracking import Tracker, account
from runs.tracking.__main__ import main
from runs.tracking.payload import about, point_of, points_of, summary_of
from runs.tracking.server import OPEN
from runs.tracking.sync import sync

ROOT = Path(__file__).parents[2]
KEY = "a" * 40
LIMIT = 0.5  # seconds that no call of a run may take


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


def runs_of(output, *words, seeds=1):
    seed = ",".join(map(str, range(seeds)))
    return expand(["method=vera", "task=reviews", "model=minilm", f"seed={seed}", f"output={output}", *words])


def event(epoch, metric):
    """An event as the training loop reports it."""
    about = {
        "epochs": 3,
        "steps": 30,
        "best": metric,
        "pace": 1.0,
        "unit": "tok",
        "seconds_left": 0.0,
        "texts": 0,
    }
    point = {
        "epoch": epoch,
        "step": 10 * epoch,
        "loss": 1 / epoch,
        "metric_name": "accuracy",
        "metric": metric,
    }
    return {"phase": "evaluated", **point, **about}


def record_of(run, run_id, status="done", metrics=(0.6, 0.8, 0.7)):
    epochs = range(1, len(metrics) + 1)
    curve = {"epoch": [float(e) for e in epochs], "step": [10 * e for e in epochs], "metric": list(metrics)}
    return {
        "schema": 1,
        "id": run_id,
        "status": status,
        "error": None if status == "done" else "loss became nan at epoch 4, step 31",
        "cell": {
            "paper": run.experiment,
            "row": run.row,
            "model": run.model,
            "task": run.config["task"]["name"],
            "seed": run.seed,
        },
        "config": run.config,
        "curve": curve | {"train_loss": [1 / e for e in epochs]},
        "result": {
            "metric": "accuracy",
            "select": "paper",
            "best": max(metrics),
            "best_epoch": 2.0,
            "last": metrics[-1],
        },
        "parameters": {"adapter": 7680, "head": 148610},
        "cost": {"train_seconds": 1.25, "peak_memory_bytes": 1000},
        "texts": None,
    }


def failed(run, run_id):
    """As the sweep writes it for a run whose process ended."""
    whole = record_of(run, run_id, "failed")
    return {key: whole[key] for key in ("schema", "id", "status", "cell", "config")} | {"error": "signal 9"}


def read(file):
    """The messages of a .wandb file: LevelDB's log format, wandb's own messages in it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, part, found = Path(file).read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole message, or its last part
            found.append(Record.FromString(part))
            part = b""
    return found


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def offline_runs(output):
    """What was written: for each folder its run, config, history, summary, exit code, last tags."""
    found = []
    for file in sorted(
        (Path(output) / "wandb").glob("offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime_ns
    ):
        messages = read(file)
        kinds = [m.WhichOneof("record_type") for m in messages]
        first = next((m.run for m in messages if m.HasField("run")), None)
        if first is None:  # killed before anything was written
            continue
        history = [values(m.history.item) for m in messages if m.HasField("history")]
        summary = {}
        for message in messages:
            if message.HasField("summary"):
                summary |= values(message.summary.update)
        exits = [m.exit.exit_code for m in messages if m.HasField("exit")]
        tags = [list(m.run.tags) for m in messages if m.HasField("run")][-1]
        axes = {m.metric.glob_name: m.metric.step_metric for m in messages if m.HasField("metric")}
        found.append(
            {
                "run": first,
                "config": values(first.config.update),
                "history": history,
                "summary": summary,
                "exit": exits,
            }
            | {"tags": tags, "kinds": kinds, "axes": axes}
        )
    return found


def at_once(call, *arguments):
    """Does it, and holds it to LIMIT."""
    started = time.monotonic()
    call(*arguments)
    assert time.monotonic() - started < LIMIT


def tell(tracker, run, run_id, record, epochs=(1, 2, 3)):
    tracker.begin(run, run_id)
    tracker.event({"phase": "loading"})
    for epoch in epochs:
        tracker.event({"phase": "training", "step": 10 * epoch - 1})
        tracker.event(event(epoch, (0.6, 0.8, 0.7)[epoch - 1]))
    tracker.end(record)


@pytest.mark.usefixtures("process")
def test_runs_as_they_are_in_wandb(output, tmp_path, capfd):
    """One after another: done, failed, interrupted, gone on and diverged; from one process."""
    done, broken, stopped = runs_of(output, f"task.cache_dir={tmp_path}", seeds=3)
    tracker = Tracker("offline", output, patience=60)  # as long as a slow machine takes
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
    Tracker("offline", output).close()
    for tracker in (Tracker("off", output), rank_1(output, monkeypatch)):
        tell(tracker, run, "a" * 12, None)
        tracker.close()
    assert not Path(output).exists()


def rank_1(output, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    return Tracker("online", output)


@pytest.mark.usefixtures("process")
def test_the_executors_process_never_imports_wandb():
    code = "import runs.tracking, runs.sweep.sweep, runs.plan, sys; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_mode_is_what_wandb_would_take(output, monkeypatch, tmp_path):
    assert Tracker(None, output).mode == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert Tracker(None, output).mode == "offline"  # another server's
    monkeypatch.delenv("WANDB_BASE_URL")
    assert Tracker(None, output).mode == "online"
    for said, mode in (
        ("disabled", "off"),
        ("offline", "offline"),
        ("dryrun", "offline"),
        ("nonsense", "online"),
    ):
        monkeypatch.setenv("WANDB_MODE", said)
        assert Tracker(None, output).mode == mode
        assert Tracker("online", output).mode == "online"  # tracking= says otherwise
    monkeypatch.delenv("WANDB_MODE")
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")  # wandb login --host
    assert Tracker(None, output).mode == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert Tracker(None, output).mode == "online"
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")  # wandb offline
    assert Tracker(None, output).mode == "offline"
    for path in (settings, tmp_path / ".netrc"):
        path.write_text("\x00 nonsense")
    assert Tracker(None, output).mode == "offline"


def test_wandb_itself_agrees_on_who_is_logged_in(monkeypatch, tmp_path):
    from wandb.sdk.lib.wbauth import wbnetrc

    for host in ("api.wandb.ai", "localhost:8080"):
        (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
        for url in ("https://api.wandb.ai", "http://localhost:8080", "http://localhost:8081"):
            monkeypatch.setenv("WANDB_BASE_URL", url)
            assert account.logged_in() == bool(wbnetrc.read_netrc_auth(host=url))


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


@pytest.mark.usefixtures("process")
def test_online_a_run_goes_to_the_server(output, online, capfd):
    (run,) = runs_of(output)
    with good() as server:
        online(server.url)
        tracker = Tracker(None, output)
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
    """At the same time, since each takes as long as W&B is given: half of the usual here. All is on disk in
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
            trackers.append(Tracker(None, output, patience=15))
            assert trackers[-1].mode == "online"
            at_once(trackers[-1].begin, run, "a" * 12)
            for epoch in (1, 2, 3):
                at_once(trackers[-1].event, event(epoch, 0.5))
            at_once(trackers[-1].end, record_of(run, "a" * 12))
            wait(lambda tracker=trackers[-1]: tracker._process)  # it has read where its server is
        started = time.monotonic()
        for tracker in trackers:
            tracker.close()
        assert time.monotonic() - started < 15 + 5
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
    tracker = Tracker("offline", output)
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


def wait(condition, seconds=30):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
    return found


@pytest.mark.usefixtures("process")
def test_wandbs_service_dies_and_the_run_is_told_again(output, capfd):
    """wandb's own process, behind ours: an answer that it does not expect is enough to end it."""
    (run,) = runs_of(output)
    tracker = Tracker("offline", output)
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
from runs.tracking import Tracker
(run,) = expand(["method=vera", "task=reviews", "model=minilm", f"output={sys.argv[1]}"])
tracker = Tracker("offline", sys.argv[1])
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
    tracker = Tracker("offline", output)
    at_once(tracker.begin, run, "a" * 12)
    at_once(tracker.event, {"phase": "evaluated"})
    at_once(tracker.end, {"status": endless})
    tracker.close()
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "the records are whole" in err


def test_a_run_that_cannot_be_told_is_one_line(output, capfd):
    tracker = Tracker("offline", output)
    at_once(tracker.begin, None, "a" * 12)
    tracker.close()
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("process")
def test_sync_uploads_each_run_once(output, online, capfd):
    run, other = runs_of(output, seeds=2)
    tracker = Tracker("offline", output)
    tell(tracker, run, "a" * 12, None, epochs=(1,))
    tell(tracker, run, "a" * 12, record_of(run, "a" * 12), epochs=(2, 3))
    tell(tracker, other, "b" * 12, failed(other, "b" * 12), epochs=(1,))
    tracker.close()
    folders = sorted((Path(output) / "wandb").glob("offline-run-*"))
    before = {path: path.read_bytes() for folder in folders for path in folder.glob("*.wandb")}
    with pytest.raises(UserError, match=r"not logged in to http://.*Run `wandb login`, or set WANDB_API_KEY"):
        sync(output)
    url = refusing()
    online(url)
    with pytest.raises(UserError, match=rf"{url} cannot be reached \(Connection refused\)"):
        sync(output)
    with bad(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as url:
        online(url)
        with pytest.raises(UserError, match=rf"{url} cannot be reached \(it answers 503\)"):
            sync(output)
    assert {path: path.read_bytes() for path in before} == before
    assert not list((Path(output) / "wandb").rglob("*.synced"))
    capfd.readouterr()
    with good() as server:
        online(server.url)
        with open(folders[-1] / OPEN, "w") as lock:  # as if the last one were still on
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert sync(output) == 0
        out = capfd.readouterr().out
        assert out == "2 uploaded, 0 left, 1 still on\n"
        assert {run_id for run_id, _ in server.streams} == {"a" * 12}
        assert sync(output) == 0
        assert capfd.readouterr().out == "1 uploaded, 0 left\n"
        ended = [(run_id, body["exitcode"]) for run_id, body in server.streams if body.get("complete")]
        assert ended == [("a" * 12, 1), ("a" * 12, 0), ("b" * 12, 1)]  # the first part before the second
        server.streams.clear()
        # What a kill may leave: wandb itself would upload nothing at all with one of these among the rest.
        whole = next(iter(before.values()))
        for name, left in (("x", b""), ("y", whole[:7]), ("z", whole[:-9]), ("a" * 12, whole)):
            (Path(output) / "wandb" / f"offline-run-0-{name}").mkdir()
            (Path(output) / "wandb" / f"offline-run-0-{name}" / f"run-{name}.wandb").write_bytes(left)
        assert sync(output) == 0
        assert capfd.readouterr().out == "1 uploaded, 0 left, 3 cut off by a kill and left out\n"
        for name in "xyz":
            (Path(output) / "wandb" / f"offline-run-0-{name}" / f"run-{name}.wandb").unlink()
        server.streams.clear()
        assert sync(output) == 0
        assert capfd.readouterr().out == f"no offline runs to upload in {output}/wandb (4 uploaded before)\n"
        assert server.streams == []


@pytest.mark.usefixtures("process")
def test_syncs_errors_are_one_line_and_exit_code_2(output):
    (Path(output) / "wandb" / "offline-run-1").mkdir(parents=True)
    (Path(output) / "wandb" / "offline-run-1" / "run-a.wandb").write_bytes(
        b":W&B\xe1\xbe\0" + struct.pack("<IHB", 0, 0, 1)
    )
    command = [sys.executable, "-m", "runs.tracking", "sync", f"output={output}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: not logged in to http://127.0.0.1")
    assert main(["sync", "outptu=x"]) == 2
