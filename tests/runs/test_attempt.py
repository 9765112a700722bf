"""One run: its lock, the files of its attempts, what is tried again; that a record and
its files are of one attempt, whoever comes late; and that a process ends with the one
that started it."""

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock, patch

import ledgers
import pytest
import torch
from running import (
    CONFIGURATION,
    ROOT,
    comparable,
    output_of,
    refused,
    replace_words,
    train_here,
    trained,
    wait_for,
)

import vera
from runs.command.errors import DeviceError, Stop, StoppedError, UserError
from runs.config import expand
from runs.evaluate import amend
from runs.machine import locks
from runs.machine.hashes import check_unchanged, files_sha256
from runs.machine.locks import Lock, holding, run_lock
from runs.machine.processes import remove_leftovers
from runs.record.ledger import (
    finished_record,
    record_path,
    run_folder,
    write_record,
)
from runs.run.identity import run_id
from runs.tracking.tracker import Tracking
from runs.training import train
from runs.training.files import CHECKPOINT, Attempt, saved_progress, tidy
from runs.training.loop import Training
from runs.training.train import cause_of, halve_batch

pytestmark = pytest.mark.determinism

#: Errors by their causes; words are what torch says with a RuntimeError.
CAUSES = {
    "memory": [
        *(
            torch.OutOfMemoryError("no"),
            torch.AcceleratorError("CUDA error: out of memory"),
            MemoryError(),
        ),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling it",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:1016",
    ],
    "mistake": [OSError(errno.EACCES, "no"), UserError("no")],
    "disk": [OSError(errno.ENOSPC, "No space left"), OSError(errno.EIO, "no answer")],
    "device": [
        *(
            torch.AcceleratorError("CUDA error: launch failure"),
            DeviceError("torch cannot use it"),
        ),
        *("CUDA error: an illegal memory access", "cuDNN error: EXECUTION_FAILED"),
        *(
            "No CUDA GPUs are available",
            "GET was unable to find an engine to execute it",
        ),
    ],
    "error": [ValueError("CUDA out of memory"), "shapes differ"],
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_of_an_error(cause):
    errors = [
        RuntimeError(error) if isinstance(error, str) else error
        for error in CAUSES[cause]
    ]
    assert [error for error in errors if cause_of(error)[0] != cause] == []


def test_less_memory_is_half_the_rows_at_once_until_there_is_one(tmp_path):
    config = {"micro_batch": None, "eval_batch": 64, "train": {"effective_batch": 24}}
    for rows, phase, found in (
        (None, "training", {"micro_batch": 12}),
        (3, "training, resumed at step 4", {"micro_batch": 1}),
        (64, "evaluated", {"micro_batch": 12}),  # an epoch's first step
        (1, "evaluating", {"eval_batch": 32}),
        (1, "decoding (last epoch)", {"eval_batch": 32}),
        (1, "training", {}),
        (None, "loading", {}),  # the model alone is too large
    ):
        attempt = Attempt(tmp_path, "run")
        assert halve_batch(config | {"micro_batch": rows}, phase, attempt) == bool(
            found
        )
        assert attempt.settings == found
    attempt.deviations = ["evaluation batch 32"]
    for before, after in ((24, 12), (12, 6)):  # one deviation, whatever went before
        assert halve_batch(config | attempt.settings, "training", attempt)
        words = f"micro-batch {after}, since memory ran out at {before}; the effective batch stays"
        assert (attempt.settings, attempt.deviations[1:]) == (
            {"micro_batch": after},
            [words],
        )


# --- what one attempt leaves to the next


ADAPTER, HEAD, TEXTS = "adapter.safetensors", "head.safetensors", "decoded_last.jsonl"


@pytest.fixture
def place(tmp_path):
    """The output folder, a finished record without its files' hashes, and a function
    that makes an attempt with files of this content."""
    record = ledgers.record() | {"id": "run"}
    record["config"]["keep"] = "best"

    def make(text="", *names):
        attempt = Attempt(tmp_path, "run")
        for name in names:
            (attempt.folder / name).write_text(text)
        return attempt

    return tmp_path, record, make


def test_an_attempt_goes_on_from_what_the_last_one_left(place):
    output, _, make = place
    first = make("x", CHECKPOINT, ADAPTER, TEXTS, "other.txt")
    first.ended, first.settings = ["out of memory"], {"micro_batch": 2}
    first.save()
    before = saved_progress(output, "run")
    second = make()
    assert {path.name for path in second.folder.iterdir()} == {
        CHECKPOINT,
        ADAPTER,
        TEXTS,
        "attempt.json",
    }
    assert second.ended == ["out of memory", "the process was killed"]
    assert second.settings == {"micro_batch": 2}
    assert saved_progress(output, "run") == before  # nothing more
    (first.folder / TEXTS).write_text("x and late")
    assert (second.folder / TEXTS).read_text() == "x"
    assert saved_progress(output, "run") != before
    second.save(stopped=True)
    third = make()
    assert third.ended == second.ended  # it was asked to stop: no failure
    assert third.fail(expand(["model=smollm2", "task=alpaca"])[0], "it broke")
    failed, fourth = json.loads(record_path(output, "run").read_text()), make()
    assert (failed["status"], failed["error"], failed["tries"]) == (
        "failed",
        "it broke",
        second.ended,
    )
    assert (fourth.ended, fourth.settings) == ([], {})  # counted anew
    assert (fourth.folder / CHECKPOINT).is_file()


def test_a_take_over_costs_no_room_and_one_that_a_full_disk_ends_leaves_nothing(
    place, monkeypatch
):
    first = place[2]("x", CHECKPOINT, ADAPTER, TEXTS)
    first.save()
    # killed as it took over
    half = first.folder.with_name(f"{socket.gethostname()}.{2**22 + 1}.half")
    half.mkdir()
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with patch.object(shutil, "copy2", full), pytest.raises(OSError, match="No space"):
        place[2]()
    assert [*first.folder.parent.iterdir()] == [first.folder]
    second = place[2]()
    same = {
        name: (first.folder / name).samefile(second.folder / name)
        for name in (CHECKPOINT, ADAPTER, TEXTS)
    }
    # texts grow in place
    assert same == {CHECKPOINT: True, ADAPTER: True, TEXTS: False}
    monkeypatch.setattr(
        os, "link", Mock(side_effect=OSError(errno.EPERM, "no hard links here"))
    )
    before = saved_progress(place[0], "run")
    assert (place[2]().folder / CHECKPOINT).read_text() == "x"
    assert saved_progress(place[0], "run") == before


def test_of_several_the_newest_checkpoint_counts_and_dead_ones_of_this_machine_go(
    place,
):
    output, _, make = place
    first, second = make("old", CHECKPOINT), make()
    (second.folder / CHECKPOINT).unlink()
    (second.folder / CHECKPOINT).write_text("new")
    os.utime(first.folder / CHECKPOINT, ns=(1, 1))
    # no process has this number
    dead = first.folder.with_name(f"{socket.gethostname()}.{2**22 + 1}.dead")
    other = f"other.{socket.gethostname()}.{2**22 + 1}"
    far, half = (
        first.folder.with_name(f"{other}.{name}") for name in ("alive", "half")
    )
    for folder in (dead, far, half):
        shutil.copytree(first.folder, folder)
    (half / "attempt.json").unlink()  # killed as it took over
    (half / CHECKPOINT).write_text("newest")
    third = make()
    assert (third.folder / CHECKPOINT).read_text() == "new"
    assert {*third.folder.parent.iterdir()} == {
        first.folder,
        second.folder,
        third.folder,
        far,
        half,
    }
    for damaged in ("{", "[]", "{}", '{"ended": 1}'):  # it counts as none
        (third.folder / "attempt.json").write_text(damaged)
        fourth = make()
        assert fourth.ended == ["the process was killed"] * 2
        shutil.rmtree(fourth.folder)
    # what is no file in a record's place stays, and is named
    record_path(output, "run").mkdir(parents=True)
    with refused("records/run.json"):
        make()


# --- the record and its files


def test_a_record_names_its_files_which_move_in_and_everything_else_goes(place):
    output, record, make = place
    folder = run_folder(output, "run")
    make("late", CHECKPOINT)
    last = make("a", ADAPTER, HEAD, "adapter_best.safetensors")
    # of a record that was damaged
    stale = ("decoded_best.jsonl", "adapter_best.safetensors")
    # by a kill
    cut_off = ("progress.json", ".config.yaml.host.1.2", ".progress.json.7")
    for name in (*stale, *cut_off, "log.txt", ".a.user.s.own.file"):
        (folder / name).write_text("stale")
    assert last.finish(record)
    assert {path.name for path in folder.iterdir()} == {
        ADAPTER,
        HEAD,
        "log.txt",
        ".a.user.s.own.file",
    }
    finished = finished_record(output, "run")
    assert finished["files"] == {
        name: files_sha256(folder / name) for name in (ADAPTER, HEAD)
    }
    check_unchanged(finished, folder / ADAPTER)
    (folder / ADAPTER).write_text("another")
    with refused("adapter.safetensors is not the file that the record of run run"):
        check_unchanged(finished, folder / ADAPTER)
    check_unchanged(record | {"files": {}}, folder / ADAPTER)  # an older record


def test_the_second_to_finish_or_to_fail_changes_nothing(place):
    output, record, make = place
    late, first = make("late", ADAPTER), make("first", ADAPTER)
    assert first.finish(record)
    late.folder.mkdir(parents=True)  # as a late write makes it again
    assert not late.finish(record | {"error": "late"})
    assert not late.fail(expand(["model=smollm2", "task=alpaca"])[0], "late")
    assert finished_record(output, "run")["error"] is None
    assert not late.folder.parent.exists()


def test_records_may_lie_on_another_file_system_than_runs_and_what_a_killed_write_left_goes(
    place,
):
    output, record, make = place

    def within(call):
        def checked(source, target):
            if Path(source).parent != Path(target).parent:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return call(source, target)

        return checked

    write_record(output, record | {"status": "failed"})
    attempt = make("a")
    with patch.multiple(os, link=within(os.link), rename=within(os.rename)):
        assert attempt.finish(record)
    left = record_path(output, "run").with_name(
        f".run.json.{socket.gethostname()}.{2**22 + 1}.1"
    )
    other = left.with_name(f".run.json.other.{2**22 + 1}.1")  # of another machine
    left.touch(), other.touch()
    # another user's, that lives
    with patch.object(os, "kill", Mock(side_effect=PermissionError)):
        remove_leftovers(left.parent)
    assert left.exists()
    remove_leftovers(left.parent)
    assert {*left.parent.iterdir()} == {record_path(output, "run"), other}


# --- a run that is stopped at a write: its process is killed, at each, or its lock lets another pass


def go(words):
    """What the process of a run does once it has the lock: how it ends, and the record
    that is there then."""
    (run,) = expand(words)
    how, _ = train.attempt_run(run, run_id(run), [], Stop(), Tracking("off"), True)
    return how, record_path(output_of(words), run_id(run)).read_text()


WRITES = {os: ("replace", "link", "rename"), vera: ("save", "save_head")}


def disturbed(words, at, disturb=go):
    """A run, which another one interrupts before its write number `at` (a file that is
    saved, renamed or linked). Returns whether it came so far."""
    # what composing writes into the user's cache is no write of the run
    expand(words)
    writes, seen = itertools.count(1), []

    def disturbing(call):
        def write(*arguments, **more):
            if next(writes) == at:
                seen.append(disturb(words)[1])
                # into a folder that a late write has made again
                if call.__name__ == "rename":
                    Path(arguments[1]).parent.mkdir(parents=True, exist_ok=True)
            return call(*arguments, **more)

        return write

    calls = {
        of: {name: disturbing(getattr(of, name)) for name in names}
        for of, names in WRITES.items()
    }
    with patch.multiple(os, **calls[os]), patch.multiple(vera, **calls[vera]):
        how, text = go(words)
    # the first that is finished stays
    assert (how, {text, *seen}) == (train.DONE, {text})
    return bool(seen)


def killed(*run):
    """The same; a process of its own is killed there."""
    work = (*run, lambda words: os.kill(os.getpid(), signal.SIGKILL))
    child = multiprocessing.get_context("fork").Process(target=disturbed, args=work)
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop", [disturbed, pytest.param(killed, marks=pytest.mark.slow("process"))]
)
@pytest.mark.parametrize("kind", ["words", "e2e_words"])
def test_record_and_files_are_of_one_attempt(
    kind, stop, request, tmp_path, monkeypatch
):
    """Of a run that has failed before, and of which another attempt has left files."""
    # Java takes seconds
    monkeypatch.setattr("tasks.e2e_metrics.shutil.which", lambda name: None)
    words = [
        *request.getfixturevalue(kind),
        f"keep={'last' if kind == 'words' else 'both'}",
    ]
    straight, reached, at = (
        train_here(replace_words(words, output=tmp_path / "straight")),
        True,
        1,
    )
    with patch.object(Training, "batch", lambda *_: 1 / 0):
        how, failed = go(replace_words(words, output=tmp_path / "failed"))
    assert (how, json.loads(failed)["status"], json.loads(failed)["tries"]) == (
        "failed",
        "failed",
        [],
    )
    half = (
        run_folder(tmp_path / "failed", straight["id"])
        / "attempts"
        / "other.host.1.half"
    )
    half.mkdir()
    for name in straight["files"]:
        (half / name).write_text("another's")
    if kind == "e2e_words":
        record_path(tmp_path / "failed", straight["id"]).write_text("{")  # damaged
    while reached:
        output = Path(shutil.copytree(tmp_path / "failed", tmp_path / f"{at}"))
        reached = stop(replace_words(words, output=output), at)
        go(replace_words(words, output=output))
        record, folder = (
            finished_record(output, straight["id"]),
            run_folder(output, straight["id"]),
        )
        tidy(output, record)
        assert {path.name for path in folder.iterdir()} == {
            *straight["files"],
            *CONFIGURATION,
        }
        files = {name: files_sha256(folder / name) for name in record["files"]}
        assert record["files"] == files == straight["files"], at
        assert comparable(record) == comparable(straight)
        at += 7 if kind == "e2e_words" else 2 if stop is killed else 5
    assert at > 15


def test_a_lock_has_one_holder_and_says_who(tmp_path, monkeypatch, capsys):
    first, second = run_lock(tmp_path, "run"), run_lock(tmp_path, "run")
    assert not first.is_held()
    assert first.take()
    assert (second.is_held(), second.take(0)) == (True, False)
    assert second.holder() == f"process {os.getpid()} on {socket.gethostname()}"
    for written, words in (
        ("", "another process"),
        (f"{2**22 + 1} here", f"process {2**22 + 1} on here"),
    ):
        # the process may be invisible: the lock decides
        (tmp_path / "locks" / "run").write_text(written)
        assert (second.is_held(), second.take(0), second.holder()) == (
            True,
            False,
            words,
        )
    monkeypatch.setattr(
        Lock,
        "take",
        lambda lock, take=Lock.take, **given: first.release() or take(lock, **given),
    )
    with holding(run_lock(tmp_path, "run"), "its search"):
        assert first.is_held()
    assert not first.is_held()
    monkeypatch.undo()  # a file system without locks lets everybody pass
    no_locks = Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr("fcntl.flock", no_locks)
    assert (second.is_held(), second.take()) == (False, True)


@pytest.mark.usefixtures("process")
def test_a_killed_process_gives_its_lock_back_and_a_stopped_one_keeps_it(
    tmp_path, capsys, monkeypatch
):
    def hold():
        # one that was made before the fork cannot be taken
        lock = run_lock(tmp_path, "run")
        time.sleep(60 * lock.take())

    claim, holder = (
        run_lock(tmp_path, "run"),
        multiprocessing.get_context("fork").Process(target=hold),
    )
    holder.start()
    wait_for(lambda: claim.holder().startswith("process"))
    os.kill(holder.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
    monkeypatch.setattr(locks, "PATIENCE_S", 0)
    threading.Timer(2.5, holder.kill).start()
    with holding(run_lock(tmp_path, "run"), "RTE seed 0"):
        printed = capsys.readouterr().out
    assert printed.startswith(f"RTE seed 0 is being done by process {holder.pid} on ")
    assert f", which is stopped: kill -CONT {holder.pid} lets it go on" in printed
    assert printed.count("\n") == 1


def test_keys_are_added_to_the_record_as_it_is_now(place):
    output, record, _ = place
    write_record(output, record | {"judged": []})
    for run in ("run", "missing"):
        amend(output, run, lambda now: {"texts": None, "tries": [*now["tries"], "one"]})
    assert finished_record(output, "run") == record | {
        "judged": [],
        "texts": None,
        "tries": ["one"],
    }
    assert finished_record(output, "missing") is None


@pytest.mark.parametrize("more", [[], ["train.max_steps=7"]])
def test_a_stop_within_an_evaluation_evaluates_again(words, more, tmp_path):
    """At the end of the last epoch, where no step is left to be done after it; the
    epoch may end early."""
    words = [*words, *more]
    straight = trained(replace_words(words, output=tmp_path / "straight"))

    def stop(self, *given, evaluate=Training.evaluate):
        self.stop.is_requested = self.state.epoch == 1
        return evaluate(self, *given)

    with patch.object(Training, "evaluate", stop), pytest.raises(StoppedError):
        train_here(words)
    assert comparable(train_here(words)) == comparable(straight)


def test_a_stop_while_a_run_loads_ends_it_at_once_and_is_no_failure(words):
    (run,), stop = expand(words), Stop()
    with patch.object(Training, "__init__", lambda *_: stop.request()):
        assert train.attempt_run(run, run_id(run), [], stop, Tracking("off"), True) == (
            "stopped",
            "",
        )
    assert Attempt(output_of(words), run_id(run)).ended == []


COMMAND = """
import multiprocessing, time
from runs.machine.processes import end_with_parent

def run():
    end_with_parent()
    print("begun", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("forkserver").Process(target=run).start()
"""


@pytest.mark.usefixtures("process")
def test_a_killed_command_leaves_no_process(tmp_path):
    """Neither a run's nor the server's that it was forked from: SIGKILL leaves it no
    time to end them."""
    (tmp_path / "command.py").write_text(COMMAND)
    how = {"env": {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "command.py")], **how
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.kill()
        # all that share this pipe have ended
        assert process.communicate(timeout=20)[0] == ""
