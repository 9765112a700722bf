"""Runs in this process, and their records, for tests."""

import copy

from runs.config import expand
from runs.identity import run_id
from runs.record import read_record, record_path
from runs.train import train


def do(words):
    """A run in this process; its record, as written."""
    (run,) = expand(words)
    train(run, run_id(run), lambda event: None)
    return read_record(record_path(run.config["output"], run_id(run)))


def comparable(record):
    """A record without times, costs, how earlier tries ended, and the place where it was made."""
    record = copy.deepcopy(record)
    for key in ("cost", "code", "config_hash", "tries"):
        del record[key]
    for key in ("output", "checkpoint_minutes", "micro_batch"):
        del record["config"][key]
    del record["micro_batch"]
    return record


def elsewhere(words, **changes):
    return [next((f"{k}={v}" for k, v in changes.items() if w.startswith(f"{k}=")), w) for w in words]
