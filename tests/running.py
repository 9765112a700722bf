"""Runs in this process, commands in others, and their records, for tests."""

import contextlib
import copy
import functools
import importlib
import io
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from runs.command.errors import UserError
from runs.command.parser import entry_point
from runs.config import GROUPS, expand
from runs.config.compose import Composer, dotted_items, without_hydra
from runs.config.files import Files
from runs.record.ledger import read_record, record_path
from runs.record.override import as_override_value
from runs.run.identity import run_id
from runs.training import predictions
from runs.training.loop import Training
from runs.training.train import train
from tasks import DataError

ROOT = Path(__file__).parents[1]
#: What every run leaves in its folder.
CONFIGURATION = {"config.yaml", "overrides.yaml"}


@functools.cache
def task_of(task, *words):
    """The configuration of a task, for a model of these words."""
    (run,) = expand([f"task={task}", *(words or ("model=decoder", "model.path=/x"))])
    return run.config["task"]


def begin(words, report=lambda event: None):
    """A run's training, of a command's words or as they are expanded. report: gets its
    events."""
    (run,) = expand(words) if isinstance(words, list) else [words]
    training = Training(run, run_id(run), report)
    # At its end all garbage is looked through: a third of a tiny run's time
    training.accelerator.free_memory = lambda: None
    return training


def train_here(words):
    """A run in this process, of the same; its record, as written."""
    training = begin(words)
    train(training)
    return read_record(record_path(training.config["output"], training.run_id))


#: What `trained` has trained in this process: a run's seed and words without its output
#: and what draws its predictions, and its folder.
TRAINED: dict[tuple[object, ...], str] = {}
FOLDER = tempfile.TemporaryDirectory(prefix="trained-")


def trained(words):
    """The record of `do(words)`, and its files, for tests that only look: trained once
    in this process, then copied."""
    output, run = output_of(words), expand(words)[0]
    key = (
        run.seed,
        predictions.illustrate,
        *(w for w in run.overrides if not w.startswith("output=")),
    )
    if key not in TRAINED:
        folder = f"{FOLDER.name}/{len(TRAINED)}"
        train_here(replace_words(words, output=folder))
        TRAINED[key] = folder
    shutil.copytree(TRAINED[key], output, dirs_exist_ok=True)
    path = record_path(output, run_id(run))
    path.write_text(path.read_text().replace(TRAINED[key], output))
    return read_record(path)


def comparable(record):
    """A record without times, costs, how earlier tries ended, and the place where it
    was made."""
    record = copy.deepcopy(record)
    for key in ("cost", "code", "config_hash", "tries", "overrides"):
        del record[key]
    for key in ("output", "checkpoint_minutes", "micro_batch"):
        del record["config"][key]
    del record["micro_batch"]
    return record


def kill_at_call(words, of, number):
    """Begins a run, which is killed as it calls this function of its training for the
    nth time; the folder of its attempt."""
    training, calls = begin(words), itertools.count(1)
    holder, _, name = of.rpartition(".")
    holder = getattr(training, holder) if holder else training
    real = getattr(holder, name)

    def killed(*given):
        if next(calls) == number:
            raise KeyboardInterrupt
        return real(*given)

    setattr(holder, name, killed)
    with pytest.raises(KeyboardInterrupt):
        train(training)
    return training.folder


def straight_and_resumed(words, folder, of, number):
    """The record of a run, and that of the same run where it is killed and done
    again."""
    straight, resumed = (
        replace_words(words, output=folder / name) for name in ("straight", "resumed")
    )
    kill_at_call([*resumed, "checkpoint_minutes=0"], of, number)
    return train_here(straight), train_here(resumed)


def replace_words(words, **changes):
    return [
        next((f"{k}={v}" for k, v in changes.items() if w.startswith(f"{k}=")), w)
        for w in words
    ]


def call(module, *words, check=None):
    """A command in a process of its own, as a user starts it: how it ended, and what it
    printed."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert check in (None, done.returncode), done.stdout + done.stderr
    return done


def call_here(module, *words, check):
    """The same in this process, where torch and transformers, and the server that runs
    are forked from, are there already."""
    main = importlib.import_module("runs.__main__" if module == "runs" else module).main
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        patch.setattr(sys, "argv", [module, *words])
        with pytest.raises(SystemExit) as ended:
            entry_point(main)
    done = subprocess.CompletedProcess(
        sys.argv, ended.value.code, stdout.getvalue(), stderr.getvalue()
    )
    assert check in (None, done.returncode), done.stdout + done.stderr
    return done


def wait_for(there, process=None, seconds=120):
    """What there() finds, once it finds something; meanwhile the process has to
    live."""
    end = time.monotonic() + seconds
    while not (found := there()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def refused(*named, longest=1500):
    """What is done in here is refused, in one line that names each of these."""
    with pytest.raises((UserError, DataError)) as error:
        yield
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < longest
    assert [name for name in named if name not in line] == [], line


def output_of(words) -> str:
    return next(w.partition("=")[2] for w in words if w.startswith("output="))


def make_folder(path) -> None:
    path.mkdir()
    (path / "mine").touch()


#: What a run tells of itself in the middle of its training.
TRAINING = {
    "phase": "training",
    "epoch": 2,
    "epochs": 5,
    "step": 9,
    "steps": 25,
    "seconds_left": 61.0,
}
TRAINING |= {"metric_name": "accuracy", "scale": 100.0, "metric": 0.75, "best": 0.8}
TRAINING |= {"loss": 0.5, "pace": 1500, "unit": "tokens"}

#: What may stand in a file's place and is none, and what makes it there.
ODD = {
    "a folder": make_folder,
    "a named pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link that leads to no file": lambda path: path.symlink_to(path.name),
}


def values_of(groups):
    """Every key that has a value with these group choices, as KEY=VALUE: what --help
    and --cfg show."""
    with Composer(Files()) as composer:
        plain = without_hydra(composer.defaults(tuple(groups)), resolve=True)
    keys = dict(dotted_items(plain))
    parents = {key.rpartition(".")[0] for key in keys}
    where = ("launcher", "tracking", "redo")
    return [
        f"{key}={as_override_value(value)}"
        for key, value in keys.items()
        if key not in (*parents, *GROUPS, "task.name", "model.name")
        and not key.startswith((*where, "recipe.", "model.architecture"))
    ]
