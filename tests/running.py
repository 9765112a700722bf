"""Does runs in this process and commands in others for tests, and gives their records."""

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
    """The composed configuration of a task. words: of a model and further overrides; by
    default a decoder."""
    (run,) = expand([f"task={task}", *(words or ("model=decoder", "model.path=/x"))])
    return run.config["task"]


def begin(words, report=lambda event: None):
    """A run's training, which has not begun. words: of the run's command, or the run that
    `expand` has made of them. report: gets the training's events."""
    (run,) = expand(words) if isinstance(words, list) else [words]
    training = Training(run, run_id(run), report)
    # It collects all garbage at the end, which takes a third of a tiny run's time
    training.accelerator.free_memory = lambda: None
    return training


def train_here(words):
    """Does a run in this process, and returns its record as it was written. words: as
    `begin` takes them."""
    training = begin(words)
    train(training)
    return read_record(record_path(training.config["output"], training.run_id))


#: The output folder of each run that `trained` has done in this process. Its key is the
#: run's seed, the function that draws its predictions (some tests replace it), and its
#: overrides without output.
TRAINED: dict[tuple[object, ...], str] = {}
FOLDER = tempfile.TemporaryDirectory(prefix="trained-")


def trained(words):
    """The record of `train_here(words)`, and its files in the words' output folder. The run
    is done once in this process and then copied, for tests that change nothing in it."""
    output = output_of(words)
    (run,) = expand(words)
    overrides = [word for word in run.overrides if not word.startswith("output=")]
    key = (run.seed, predictions.illustrate, *overrides)
    if key not in TRAINED:
        folder = f"{FOLDER.name}/{len(TRAINED)}"
        train_here(replace_words(words, output=folder))
        TRAINED[key] = folder
    shutil.copytree(TRAINED[key], output, dirs_exist_ok=True)
    path = record_path(output, run_id(run))
    path.write_text(path.read_text().replace(TRAINED[key], output))
    return read_record(path)


def comparable(record):
    """A copy of a record without what may differ between two runs of one configuration:
    times, costs, how earlier attempts ended, and where and in which batches it was
    computed."""
    record = copy.deepcopy(record)
    for key in ("cost", "code", "config_hash", "tries", "overrides"):
        del record[key]
    for key in ("output", "checkpoint_minutes", "micro_batch"):
        del record["config"][key]
    del record["micro_batch"]
    return record


def kill_at_call(words, method, number):
    """Begins a run that is killed when it calls a method for the nth time. Returns the
    folder of its attempt.

    method: the method's name on Training, or that of an attribute of it ("task.decode").
    number: the n, from 1."""
    training = begin(words)
    calls = itertools.count(1)
    attribute, _, name = method.rpartition(".")
    holder = getattr(training, attribute) if attribute else training
    real_method = getattr(holder, name)

    def count_and_kill(*arguments):
        if next(calls) == number:
            raise KeyboardInterrupt
        return real_method(*arguments)

    setattr(holder, name, count_and_kill)
    with pytest.raises(KeyboardInterrupt):
        train(training)
    return training.folder


def straight_and_resumed(words, folder, method, number):
    """The record of a run, and that of the same run after it was killed (see
    `kill_at_call`) and resumed. folder: for the output of both."""
    straight = replace_words(words, output=folder / "straight")
    resumed = replace_words(words, output=folder / "resumed")
    kill_at_call([*resumed, "checkpoint_minutes=0"], method, number)
    return train_here(straight), train_here(resumed)


def replace_words(words, **changes):
    """The words of a command, with other values for these keys. A key that no word has is
    not added."""
    replaced = []
    for word in words:
        key, equals, _ = word.partition("=")
        if equals and key in changes:
            word = f"{key}={changes[key]}"
        replaced.append(word)
    return replaced


def call(module, *words, check=None):
    """Runs a command in a process of its own, as a user starts it. Returns the
    CompletedProcess: its exit code and what it printed.

    module: the command's module. check: the exit code that is asserted; None for any."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert check in (None, done.returncode), done.stdout + done.stderr
    return done


def call_here(module, *words, check):
    """Does the same as `call` in this process, which saves the time to import torch and
    transformers and to start the server that runs are forked from."""
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


def wait_for(condition, process=None, seconds=120):
    """Calls condition() until it returns something true, and returns that. Fails after so
    many seconds, or when the process ends before."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


@contextlib.contextmanager
def refused(*parts, longest=1500):
    """Asserts that the with block raises a UserError or DataError, whose message is one line
    of fewer than `longest` characters with each of these parts in it."""
    with pytest.raises((UserError, DataError)) as error:
        yield
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < longest
    assert [part for part in parts if part not in line] == [], line


def output_of(words) -> str:
    """The output folder that a command's words name."""
    return next(w.partition("=")[2] for w in words if w.startswith("output="))


def make_folder(path) -> None:
    """Makes a folder with a file in it."""
    path.mkdir()
    (path / "mine").touch()


#: An event that a run reports in the middle of its training.
TRAINING = {
    "phase": "training",
    "epoch": 2,
    "epochs": 5,
    "step": 9,
    "steps": 25,
    "seconds_left": 61.0,
    "metric_name": "accuracy",
    "scale": 100.0,
    "metric": 0.75,
    "best": 0.8,
    "loss": 0.5,
    "pace": 1500,
    "unit": "tokens",
}

#: Things that may be where a file should be, each with a function that makes it at a path.
ODD = {
    "a folder": make_folder,
    "a named pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link that leads to no file": lambda path: path.symlink_to(path.name),
}


def values_of(groups):
    """The keys of a run's configuration with these choices of groups, as KEY=VALUE words.
    Left out are keys that a user cannot set like that: groups, names, and where a run is
    done.

    groups: words such as task=mrpc."""
    with Composer(Files()) as composer:
        plain = without_hydra(composer.defaults(tuple(groups)), resolve=True)
    values = dict(dotted_items(plain))
    parents = {key.rpartition(".")[0] for key in values}
    left_out = {*parents, *GROUPS, "task.name", "model.name"}
    left_out_prefixes = (
        "launcher",
        "tracking",
        "redo",
        "recipe.",
        "model.architecture",
    )
    words = []
    for key, value in values.items():
        if key not in left_out and not key.startswith(left_out_prefixes):
            words.append(f"{key}={as_override_value(value)}")
    return words
