"""Runs that are told to W&B, and what wandb has written of them."""

import json
import struct
import time
from pathlib import Path

from runs.config import expand

LIMIT = 0.5  # seconds that no call of a run may take


def runs_of(output, *words, seeds=1):
    seed = ",".join(map(str, range(seeds)))
    row = [] if any(word.startswith("method=") for word in words) else ["method=vera"]
    return expand([*row, "task=reviews", "model=minilm", f"seed={seed}", f"output={output}", *words])


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
            | {
                "later": {
                    key: value
                    for m in messages
                    if m.HasField("config")
                    for key, value in values(m.config.update).items()
                },
                "stats": [values(m.stats.item) for m in messages if m.HasField("stats")],
                "artifacts": [m.artifact for m in messages if m.HasField("artifact")],
            }
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


def wait(condition, seconds=30):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
    return found
