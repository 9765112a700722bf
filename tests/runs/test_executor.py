"""Executors and launchers: how runs end, what is tried again, and who starts what. Slurm and Ray for real,
where they are."""

import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import ledgers
import pytest
import submitit
import torch
import yaml
from running import ODD, ROOT, ForkNow, call, call_here, comparable, do, elsewhere, output_of
from tiers import ALL_TESTS, guard

from runs import plan
from runs.config import CONF, choices, expand, read_command
from runs.config import launch as settings
from runs.errors import DeviceError, UserError
from runs.identity import run_id
from runs.record import Ledger, read_record, record_path, run_folder, write_record
from runs.sweep import attempt, display, executor, jobs, launchers, sweep
from runs.sweep.attempt import cause_of
from runs.sweep.executor import with_less_memory
from runs.sweep.leases import Heart, Lease, LostLeaseError, Watcher
from runs.sweep.progress import (
    append,
    clear,
    in_the_way,
    read_attempts,
    read_progress,
    sweep_up,
    write_attempts,
    write_progress,
)
from runs.tracking import Tracking
from runs.training.loop import Training
from runs.training.train import train


@pytest.fixture
def fork(process, monkeypatch):
    """Children are forked from this process, so that they see what a test has replaced."""
    monkeypatch.setattr(attempt.multiprocessing, "get_context", lambda _: ForkNow())


def records_of(words):
    return [read_record(record_path(output_of(words), run_id(run))) for run in expand(words)]


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "runs", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(there, process, seconds=120):
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_time_left_is_told_by_runs_of_the_same_row_or_task_but_not_by_a_head_or_no_training(words):
    words = [w for w in words if not w.startswith("method.")]
    head, vera, lora = expand([*words, "method=head,vera,lora"])  # of rte
    (other,) = expand([*elsewhere(words, task="mrpc"), "method=lora"])
    (none,) = expand(["model=smollm2", "task=alpaca", "method=none"])
    (taught,) = expand(["model=smollm2", "task=alpaca", "method=lora"])
    assert display.estimate([head, vera], []) == (0, 2)
    assert display.estimate([head, vera, lora], [(head, 5)]) == (5, 2)
    assert display.estimate([vera, lora, other], [(head, 5), (vera, 60), (vera, 70), (vera, 900)]) == (
        140,
        1,
    )
    assert display.estimate([head, none], [(vera, 60), (taught, 90)]) == (0, 2)
    assert display.estimate([taught], [(none, 5)]) == (0, 1)
    assert display.estimate([], []) == (0, 0)


# --- what is tried again


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            "memory",
        ),
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
        (OSError(errno.EACCES, "Permission denied"), "mistake"),
        (UserError("no"), "mistake"),
        (LostLeaseError("gone"), "lost"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), "device"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "memory",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"), "memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory"),
        (RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:1016"), "memory"),
        (torch.AcceleratorError("CUDA error: out of memory"), "memory"),
        (RuntimeError("CUDA driver error: out of memory"), "memory"),
        (RuntimeError("CUDA driver error: unknown error"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), "device"),
        (RuntimeError("No CUDA GPUs are available"), "device"),
        (
            RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"),
            "device",
        ),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error"), "device"),
        (DeviceError("torch cannot use it"), "device"),
        (RuntimeError("shapes do not fit"), "error"),
        (ValueError("CUDA is a word"), "error"),
    ],
)
def test_the_cause_of_an_error(error, cause):
    assert cause_of(error)[0] == cause


def test_less_memory_is_half_the_rows_at_once_until_there_is_one():
    config = {"micro_batch": None, "eval_batch": 64, "train": {"effective_batch": 24}}
    assert with_less_memory(config, "training, first step") == ("micro_batch", 24, 12)
    assert with_less_memory(config | {"micro_batch": 3}, "training") == ("micro_batch", 3, 1)
    assert with_less_memory(config | {"micro_batch": 64}, "training") == ("micro_batch", 24, 12)
    assert with_less_memory(config | {"micro_batch": 1}, "training") is None
    assert with_less_memory(config, "evaluated") == ("micro_batch", 24, 12)  # an epoch's first step
    assert with_less_memory(config, "evaluating") == ("eval_batch", 64, 32)
    assert with_less_memory(config, "decoding (last epoch)") == ("eval_batch", 64, 32)
    assert with_less_memory(config, "loading") is None  # the model alone is too large


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(
    words, fork, monkeypatch, tmp_path, capsys
):
    straight = do(elsewhere(words, output=tmp_path / "straight"))
    collate = Training.batch

    def too_much(self, split, rows):
        if len(rows) > (2 if split == "train" else 6):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return collate(self, split, rows)

    monkeypatch.setattr(Training, "batch", too_much)
    tight = [*words, "eval_batch=16"]
    assert sweep.sweep(expand(tight)).exit_code == 0
    printed = capsys.readouterr().out
    assert "out of memory: tried again with micro-batch 4" in printed
    assert "out of memory: tried again with micro-batch 2" in printed
    (record,) = records_of(tight)
    assert record["config"]["micro_batch"] == 2
    assert record["effective_batch"] == straight["effective_batch"] == 8
    assert record["tries"] == ["out of memory"] * 4
    assert record["deviations"][-2:] == [
        "micro-batch 2, since memory ran out at 4; the effective batch stays",
        "evaluation batch 4, since memory ran out at 8",
    ]
    assert record["curve"]["train_loss"] == pytest.approx(straight["curve"]["train_loss"], abs=1e-5)
    assert not (run_folder(output_of(words), record["id"]) / "attempts.json").exists()


def test_a_run_begins_with_the_micro_batch_that_fits_and_keeps_it(words, fork, monkeypatch, tmp_path):
    seen, words = [], [*(word for word in words if not word.startswith("device=")), "device=auto"]
    monkeypatch.setattr(executor, "free_memory", lambda: 8e9)
    monkeypatch.setattr(executor, "fitting", lambda run, free: seen.append(free) or {"micro_batch": 2})
    assert sweep.sweep(expand(words)).exit_code == 0
    (record,) = records_of(words)
    assert (record["config"]["micro_batch"], record["effective_batch"], seen) == (2, 8, [8e9])
    assert not [text for text in record["deviations"] if "micro" in text]
    # An earlier attempt's, which had less room or has run out of memory since, stays
    again = elsewhere(words, output=tmp_path / "again")
    (run,) = expand(again)
    write_attempts(
        output_of(again), run_id(run), {"ended": [], "settings": {"micro_batch": 1}, "deviations": []}
    )
    assert sweep.sweep([run]).exit_code == 0
    assert records_of(again)[0]["config"]["micro_batch"] == 1
    # On a CPU nobody asks
    other = elsewhere(words, output=tmp_path / "cpu", device="cpu")
    assert sweep.sweep(expand(other)).exit_code == 0
    assert records_of(other)[0]["config"]["micro_batch"] is None


def test_memory_that_one_row_exceeds_is_a_failure(words, fork, monkeypatch):
    def too_much(self, split, rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Training, "batch", too_much)
    outcome = sweep.sweep(expand(words))
    assert outcome.exit_code == 1
    (record,) = records_of(words)
    assert (record["status"], record["error"]) == ("failed", "out of memory")
    assert record["tries"] == ["out of memory"] * 3  # 8, 4, 2


def test_the_summary_counts_what_is_left(words, capsys):
    of_sweep = [jobs.Job(i, run, run_id(run)) for i, run in enumerate(expand([*words, "seed=0,1,2"]), 1)]
    for done, told in ((1, "1 done, 1 already there, 1 left."), (2, "2 done, 1 already there.")):
        sweep._summary(of_sweep, jobs.Outcome(done=done, skipped=1), 5.0)
        assert f"3 runs in 5s: {told} Records: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("endings", "attempts"),
    [
        ("killed " * 9, 4),  # the first, and three more
        ("device " * 9, 3),
        ("disk " * 9, 3),  # as many as there are pauses
        ("error", 1),
        ("killed killed killed device device killed", 6),  # each cause by itself
        ("killed killed killed saves killed killed killed", 7),
        ("device device saves device device device", 5),
    ],
)
def test_a_cause_is_tried_again_so_often_and_anew_once_more_is_saved(endings, attempts, words, monkeypatch):
    """saves: this attempt, killed like those around it, has saved more than there was."""
    coming, made, saved = iter(endings.split()), [], [0]
    (run,) = expand(words)

    def end(self, attempt, heart):
        made.append(word := next(coming))
        saved[0] += word == "saves"
        cause = endings.split()[0] if word == "saves" else word
        return executor.Ending(cause, f"ended by {word}")

    monkeypatch.setattr(executor.Executor, "_attempt", end)
    monkeypatch.setattr(executor.progress, "saved", lambda *_: list(saved))
    monkeypatch.setattr(executor, "ROOM", (0.0, 0.0))
    outcome = sweep.sweep([run])
    assert len(outcome.failed) == 1
    assert len(made) == attempts
    (record,) = records_of(words)
    assert record["tries"] == [f"ended by {word}" for word in made[:-1]]


def test_a_killed_process_goes_on_where_it_was(words, fork, monkeypatch, tmp_path, capsys):
    straight = do(elsewhere(words, output=tmp_path / "straight"))
    end_epoch, once = Training.end_epoch, tmp_path / "once"

    def kill_once(self):
        if self.state.epoch == 1 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        end_epoch(self)

    monkeypatch.setattr(Training, "end_epoch", kill_once)
    assert sweep.sweep(expand(words)).exit_code == 0
    (record,) = records_of(words)
    assert comparable(record) == comparable(straight)
    assert len(record["tries"]) == 1
    assert "resuming at step 5 of 10" in capsys.readouterr().out


def test_a_process_that_is_killed_with_its_record_written_is_done(words, fork, monkeypatch):
    write = Lease.write

    def write_and_kill(*arguments):
        write(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Lease, "write", write_and_kill)
    outcome = sweep.sweep(expand(words))
    assert (outcome.done, outcome.failed) == (1, [])
    (record,) = records_of(words)
    assert record["tries"] == []
    assert not (run_folder(output_of(words), record["id"]) / "checkpoint.safetensors").exists()


def test_a_full_disk_is_waited_for(words, fork, monkeypatch, capsys):
    """Once where the lease is to be written, once in the run itself."""
    full = iter([OSError(errno.ENOSPC, "No space left on device")])
    link, fsync, once = Watcher._create, os.fsync, Path(f"{output_of(words)}-once")

    def no_lease(self, path):
        for error in full:
            raise error
        return link(self, path)

    def no_checkpoint(file):
        if not once.exists() and "checkpoint" in os.readlink(f"/proc/self/fd/{file}"):
            once.touch()
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(Watcher, "_create", no_lease)
    monkeypatch.setattr("runs.training.checkpoint.os.fsync", no_checkpoint)
    monkeypatch.setattr(executor, "ROOM", (0.1,))
    assert sweep.sweep(expand(words)).done == 1
    assert capsys.readouterr().out.count("No space left on device") == 2


def test_a_diverged_run_is_kept_and_not_tried_again(words, fork, monkeypatch, capsys):
    monkeypatch.setattr(Training, "step", lambda self, rows: float("nan"))
    outcome = sweep.sweep(expand(words))
    assert (outcome.exit_code, len(outcome.diverged)) == (0, 1)
    assert records_of(words)[0]["status"] == "diverged"
    assert re.search(
        r"diverged: VeRA .* seed 0: loss became nan at epoch 1, step 1 \(.*log.txt\)", capsys.readouterr().out
    )
    assert sweep.sweep(expand(words)).skipped == 1


def test_a_run_sees_the_device_that_was_leased_after_its_server_had_begun(words, fork, monkeypatch):
    """As in a search, which starts the server of all its trials first."""
    child, seen = attempt._child, f"{output_of(words)}-seen"

    def of_an_older_server(*work):
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        child(*work)

    def noting(training):
        Path(seen).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        train(training)

    monkeypatch.setattr(attempt, "_child", of_an_older_server)
    monkeypatch.setattr("runs.training.train.train", noting)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-of-the-lease")
    assert sweep.sweep(expand([*words, "device=cpu", "train.max_steps=1"])).done == 1
    assert Path(seen).read_text() == "GPU-of-the-lease"


def test_a_failure_of_this_sweep_counts_once_and_an_earlier_one_is_tried_again(words, fork, monkeypatch):
    tried = []
    child = attempt._child

    def count(run, settled, lease, attempts, events, visible):
        with open(f"{output_of(words)}-tried", "a") as file:
            file.write(f"{run.seed} ")
        child(run, settled, lease, attempts, events, visible)

    monkeypatch.setattr(attempt, "_child", count)
    wrong = [w for w in words if not w.startswith("method.")] + ["method.sites=[qeury]", "seed=0,1"]
    for times in (1, 2):
        outcome = sweep.sweep(expand(wrong))
        assert [run.seed for run, _, _ in outcome.failed] == [0, 1]
        tried = Path(f"{output_of(words)}-tried").read_text().split()
        assert tried == ["0", "1"] * times


def test_a_run_that_took_ten_executors_with_it_is_given_up(words, fork, tmp_path):
    (run,) = expand(words)
    folder = Path(output_of(words)) / "leases"
    folder.mkdir(parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    owner = {
        "beat": "0" * 12,
        "token": "x",
        "host": "here",
        "pid": dead.pid,
        "started": "1",
        "boot": executor_boot(),
        "lease_seconds": 30.0,
    }
    (folder / f"{run_id(run)}.10").write_text(json.dumps(owner))
    if owner["boot"] is None:
        pytest.skip("this system does not tell which processes live")
    outcome = sweep.sweep([run])
    assert outcome.failed[0][1] == "10 executors fell silent over it"
    assert not list(folder.iterdir())


def executor_boot():
    from runs.sweep.leases import _boot

    return _boot()


def test_a_lost_run_is_left_to_its_new_owner(words, fork, monkeypatch):
    """The executor was stopped for longer than its lease; the other one is done by the time it looks
    again."""
    (run,) = expand(words)
    end_epoch = Training.end_epoch

    def lose(self):
        if self.state.epoch == 1:
            later = self.owner.path.with_suffix(".2")
            later.write_text('{"beat": "000000000000", "token": "another"}')
            write_record(
                output_of(words), ledgers.record(best=1.0) | {"id": run_id(run), "config": run.config}
            )
            later.unlink()
            self.owner.path.unlink()
        end_epoch(self)

    monkeypatch.setattr(Training, "end_epoch", lose)
    assert sweep.sweep([run]).exit_code == 0
    assert read_record(record_path(output_of(words), run_id(run)))["result"]["best"] == 1.0


@pytest.mark.parametrize(
    "content", ["garbage", "[]", '{"ended": 1, "settings": [], "deviations": {}}', '{"ended": null}']
)
def test_damaged_tries_count_as_none(content, words, fork):
    (run,) = expand(words)
    path = run_folder(output_of(words), run_id(run)) / "attempts.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert sweep.sweep([run]).done == 1
    assert records_of(words)[0]["tries"] == []
    assert not path.exists()


OURS = {
    "ended": ["out of memory", "killed"],
    "settings": {"eval_batch": 2, "micro_batch": 4},
    "deviations": [
        "evaluation batch 2, since memory ran out at 4",
        "micro-batch 4, since memory ran out at 8; the effective batch stays",
    ],
}


def test_of_tries_only_what_executors_write_is_believed(words, tmp_path):
    """Settings of which halving memory's needs came about, and nothing else: no other place for the output,
    say."""
    config = expand(words)[0].config  # an effective batch of 8
    told = []

    def read(found, config=config):
        write_attempts(tmp_path, "run", found)
        told.clear()
        return read_attempts(tmp_path, "run", config, told.append)

    assert read(OURS) == OURS
    assert read(OURS, config | OURS["settings"]) == OURS  # as the run's own process asks
    assert told == []
    none = {"ended": [], "settings": {}, "deviations": []}
    assert read_attempts(tmp_path, "another", config, told.append) == none
    assert told == []
    for value in (-5, 0, 9, 10**30, True, 2.5, "4", None, [4], {}):
        found = read(OURS | {"settings": {"micro_batch": value, "eval_batch": 2}})
        assert found == OURS | {"settings": {"eval_batch": 2}, "deviations": OURS["deviations"][:1]}
        path = f"{tmp_path}/runs/run/attempts.json"
        assert told == [f"{path}: content that no executor wrote for this run is ignored"]
    foreign = {"output": str(tmp_path / "other"), "seed": 7, "keep": "none", "train": {}, "debug": True}
    for found in (
        none | {"settings": foreign},
        none | {"deviations": OURS["deviations"]},  # without the settings that these are about
        none | {"deviations": ["state of the art"]},
        none | {"ended": [1]},
        none | {"ended": None, "settings": [], "deviations": {}},
        none | {"output": "other"},
    ):
        assert read(found) == none
        assert len(told) == 1
    path = run_folder(tmp_path, "run") / "attempts.json"
    for content in ("[" * 100_000, " " * 2**20 + "{}", "[]", "\udcff"):
        path.write_text(content, errors="surrogateescape")
        assert read_attempts(tmp_path, "run", config) == none


@pytest.mark.usefixtures("no_hang")
def test_foreign_tries_change_nothing(words, fork, tmp_path, capsys):
    (run,) = expand(words)
    other = tmp_path / "other"
    write_attempts(
        output_of(words), run_id(run), OURS | {"settings": {"output": str(other), "micro_batch": -5}}
    )
    assert sweep.sweep([run]).done == 1
    assert "attempts.json: content that no executor wrote for this run is ignored" in capsys.readouterr().out
    assert not other.exists()
    (record,) = records_of(words)
    assert record["config"] == run.config
    assert not [words for words in record["deviations"] if "memory" in words]


@pytest.mark.parametrize(
    "found",
    [
        {"phase": "training", "seconds_left": "soon"},
        {"phase": ["training"]},
        {"phase": "training", "epoch": 1},
        {"phase": "decoding", "of": 7},
        {"seconds_left": 10**400},
        {"epoch": 1, "epochs": 2, "metric": 0.5, "metric_name": "accuracy", "scale": 100.0, "best": None},
    ],
)
def test_progress_that_is_none_is_not_shown(found, tmp_path):
    write_progress(tmp_path, "run", found)
    assert read_progress(tmp_path, "run") == {}
    assert plan.progress_words(read_progress(tmp_path, "run")) == "begins"


OWN = ("log.txt", "checkpoint.safetensors", "adapter.safetensors", "attempts.json", "progress.json")


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", OWN)
def test_what_is_no_file_in_a_runs_folder_is_told_and_stays(kind, name, tmp_path):
    path = run_folder(tmp_path, "run") / name
    path.parent.mkdir(parents=True)
    (path.parent / "notes").mkdir()  # a user's own folder is in nobody's way
    assert in_the_way(tmp_path, "run") is None
    ODD[kind](path)
    assert in_the_way(tmp_path, "run").startswith(f"{path}: {kind}")
    clear(tmp_path, "run", "best")
    sweep_up(tmp_path, "run")
    assert read_progress(tmp_path, "run") == {}
    assert os.path.lexists(path)


@pytest.mark.usefixtures("no_hang")
def test_what_is_no_file_in_a_runs_folder_fails_that_run_alone(words, fork):
    """It stays; the other runs are done; and once it has been moved away, so is this one."""
    runs = expand([*words, f"seed={','.join(map(str, range(len(OWN) + 1)))}", "train.max_steps=1"])
    places = [run_folder(output_of(words), run_id(run)) / name for run, name in zip(runs, OWN, strict=False)]
    for path, kind in zip(places, itertools.cycle(ODD), strict=False):
        path.parent.mkdir(parents=True)
        ODD[kind](path)
    outcome = sweep.sweep(runs)
    assert (outcome.done, outcome.exit_code) == (1, 1)
    for path, (_, error, _) in zip(places, outcome.failed, strict=True):
        assert error.startswith(f"{path}: a ")
        assert error.endswith("Move it away, and the same command does the run")
        path.rename(path.with_suffix(".away"))
    assert sweep.sweep(runs[:1]).done == 1


def test_a_log_that_becomes_a_pipe_is_not_waited_for(words, fork, monkeypatch, no_hang):
    monkeypatch.setattr(executor.progress, "in_the_way", lambda *_: None)  # it was none a moment ago
    runs = expand([*words, "seed=0,1", "train.max_steps=1"])
    path = run_folder(output_of(words), run_id(runs[0])) / "log.txt"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    outcome = sweep.sweep(runs)
    assert (outcome.done, outcome.failed[0][1]) == (1, f"{path}: No such device or address")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="a named pipe, and no file"):
        append(path)
    os.close(reader)


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("content", ["{}", None])
def test_a_launchers_executor_takes_over_what_nobody_holds(content, words, fork):
    """It does not leave before a lease in its way can have grown old: a damaged one, and one of another
    machine's."""
    owner = {"beat": "0" * 12, "token": "x", "host": "elsewhere", "pid": 7, "started": "1", "boot": "another"}
    owner["lease_seconds"] = 1.0
    (run,) = expand([*words, "train.max_steps=1"])
    path = Path(output_of(words)) / "leases" / f"{run_id(run)}.1"
    path.parent.mkdir(parents=True)
    path.write_text(content or json.dumps(owner))
    job = jobs.Job(1, run, run_id(run))
    plan_ = jobs.Sweep([job], {}, lease_seconds=1.0, tracking=Tracking("off"))
    outcome = executor.Executor(plan_, display.Display(1, name_task=False), waits=False).go()
    assert outcome.done == 1
    assert records_of([*words, "train.max_steps=1"])[0]["tries"] == ["its executor fell silent"]


def test_a_finished_run_is_tidied_by_what_it_kept_itself(e2e_words, fork, monkeypatch):
    """A kill between the record and the end leaves this; the next command may keep another epoch."""
    # Without Java's scores: seconds less
    monkeypatch.setattr("tasks.e2e_metrics.shutil.which", lambda name: None)
    (run,) = expand([*e2e_words, "keep=both"])
    sweep.sweep([run])
    folder, output = run_folder(output_of(e2e_words), run_id(run)), Path(output_of(e2e_words))
    whole = {path.name for path in folder.iterdir()}
    left = [folder / "checkpoint.safetensors", folder / "progress.json", folder / ".adapter.safetensors.12"]
    here = f"{socket.gethostname()}.{2**22 + 1}.3"  # no process has this number
    left += [
        output / "records" / f".{run_id(run)}.json.{here}",
        output / "leases" / f".{run_id(run)}.1.{here}",
    ]
    for path in left:
        path.touch()
    assert sweep.sweep(expand([*e2e_words, "keep=best"])).skipped == 1
    assert {path.name for path in folder.iterdir()} == whole
    assert "adapter_best.safetensors" in whole
    assert not any(path.exists() for path in left)


def test_a_server_that_is_killed_while_a_run_starts_costs_a_try(words, fork, monkeypatch, capsys):
    broken = iter(
        [EOFError("unexpected EOF"), ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")]
    )
    start_process = attempt.multiprocessing.process.BaseProcess.start

    def start(self):
        for error in broken:
            raise error
        start_process(self)

    monkeypatch.setattr(attempt.multiprocessing.process.BaseProcess, "start", start)
    assert sweep.sweep(expand(words)).done == 1
    assert capsys.readouterr().out.count("the process that runs are forked from was killed: tried again") == 2


def test_a_signal_while_a_runs_process_starts(words, fork, monkeypatch):
    start_process = attempt.multiprocessing.process.BaseProcess.start

    def start(self):
        os.kill(os.getpid(), signal.SIGTERM)
        start_process(self)

    monkeypatch.setattr(attempt.multiprocessing.process.BaseProcess, "start", start)
    outcome = sweep.sweep(expand(words))
    assert (outcome.exit_code, outcome.failed) == (143, [])


@pytest.mark.usefixtures("process")
def test_an_executor_whose_command_is_gone_before_it_has_begun_ends():
    script = (
        "import time, runs.sweep.executor as e; e.Sweep.load = lambda path: time.sleep(60);"
        " e.main(['sweep.json', '0'])"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=50, check=False).returncode == 1


# --- signals, and several executors


@pytest.mark.usefixtures("process")
def test_a_time_limit_saves_and_the_same_command_goes_on(words, tmp_path):
    """SIGTERM in the middle of an epoch, as a scheduler sends it: the step is saved, not the five minutes
    before it."""
    slow = [*words, "train.effective_batch=1", "train.epochs=8"]
    (run,) = expand(slow)
    process = start(*slow)
    progress = run_folder(output_of(words), run_id(run)) / "progress.json"
    wait_for(lambda: progress.is_file() and '"step"' in progress.read_text(), process)
    os.killpg(process.pid, signal.SIGUSR1)  # to all of its processes, as Slurm and `timeout` do
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143, printed
    assert "interrupted. Finished runs are kept; the same command goes on where it was." in printed
    assert "Traceback" not in printed
    assert "killed" not in printed
    assert (run_folder(output_of(words), run_id(run)) / "checkpoint.safetensors").is_file()
    assert not list((Path(output_of(words)) / "leases").iterdir())
    call_here("runs", *slow, check=0)
    assert "resumed at step" in (run_folder(output_of(words), run_id(run)) / "log.txt").read_text()
    assert comparable(records_of(slow)[0]) == comparable(do(elsewhere(slow, output=tmp_path / "straight")))


@pytest.mark.parametrize("more", [[], ["train.max_steps=7"]])
def test_a_stop_within_an_evaluation_evaluates_again(words, more, monkeypatch, tmp_path):
    """At the end of the last epoch, where no step is left to be done after it; the epoch may end early."""
    from runs.errors import StoppedError
    from runs.training.train import train

    words = [*words, *more]
    straight = do(elsewhere(words, output=tmp_path / "straight"))
    (run,) = expand(words)
    evaluate = Training.evaluate

    def stop(self, *given):
        self.stop.wanted = self.state.epoch == 1
        return evaluate(self, *given)

    monkeypatch.setattr(Training, "evaluate", stop)
    with pytest.raises(StoppedError):
        train(Training(run, run_id(run), lambda event: None))
    monkeypatch.setattr(Training, "evaluate", evaluate)
    assert comparable(do(words)) == comparable(straight)


@pytest.mark.usefixtures("process")
def test_two_executors_share_a_sweep_whose_failures_stop_nobody(words, tmp_path):
    """launcher=local: one executor is killed with its run on, and one run fails."""
    many = [*words, "seed=0,1,2", "train.epochs=12", "method.sites=[query],[qeury]", "lease_seconds=3"]
    runs = expand([w for w in many if not w.startswith("lease_seconds")])
    process = start(*many, "launcher=local", "launcher.runs_per_device=2")
    wait_for(lambda: len(list(Path(output_of(words)).glob("leases/*"))) == 2, process)
    holder = json.loads(next(Path(output_of(words)).glob("leases/*")).read_text())
    os.kill(holder["pid"], signal.SIGKILL)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 1, printed
    assert "0 already done, 6 to do" in printed
    assert "2 executors started (" in printed
    assert "3 done, 0 already there, 3 failed" in printed
    assert (
        len(
            re.findall(
                r"^  failed: VeRA r=8 on RTE, seed \d method\.sites=\[qeury\]: no linear layer is a 'qeury'"
                r" site.*log\.txt\)$",
                printed,
                re.MULTILINE,
            )
        )
        == 3
    )
    found = [read_record(record_path(output_of(words), run_id(run))) for run in runs]
    assert sorted(record["status"] for record in found) == ["done"] * 3 + ["failed"] * 3
    assert not list((Path(output_of(words)) / "leases").iterdir())
    # Another launcher: what is done stays, what failed is tried again
    again = call_here("runs", *many, check=1)
    assert "0 done, 3 already there, 3 failed" in again.stdout


@pytest.mark.usefixtures("process")
def test_executors_that_cannot_begin_are_not_started_for_ever(words, monkeypatch):
    monkeypatch.setattr(launchers.sys, "executable", shutil.which("false"))
    with pytest.raises(
        UserError,
        match=r"executors end before they begin a run\. The reason is in .*executor-\*\.log",
    ):
        sweep.sweep(expand(words), launch=settings.Launch(settings.Local()))


# --- words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launcher=slrum"], "no launcher 'slrum'. Did you mean slurm?"),
        (["tracking=yes"], "no tracking 'yes'. Known: auto, off, offline, online"),
        (["launcher.runs_per_device=0"], "launcher.runs_per_device=0: should be at least 1"),
        (["runs_per_device=2"], "no key 'runs_per_device'. Did you mean launcher.runs_per_device?"),
        (["lease_seconds=0"], "lease_seconds=0: should be at least 1"),
        (["lease_seconds=long"], "lease_seconds=long: should be a number"),
        (["launcher.executors=3"], "no key 'launcher.executors'. launcher has: name, runs_per_device"),
        (["launcher=ray", "launcher.executors=0"], "launcher.executors=0: should be at least 1"),
        (["launcher=ray", "launcher.runs_per_device=2"], "no key 'launcher.runs_per_device'"),
        (["launcher=slurm", "launcher.partitoin=gpu"], "Did you mean launcher.partition?"),
        (["launcher=slurm", "launcher.cpus_per_task=many"], "launcher.cpus_per_task=many: should be a whole"),
    ],
)
def test_a_wrong_word_about_the_launcher_is_one_line(words, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_command(words)
    assert "\n" not in str(caught.value)


def test_a_launcher_gets_its_settings():
    own = ["launcher.partition=gpu", "+launcher.additional_parameters.nice=1", "launcher.executors=3"]
    command = read_command(["launcher=slurm", *own, "seed=1", "redo=true", "tracking=offline"])
    slurm = settings.Slurm(executors=3, partition="gpu", additional_parameters={"nice": 1})
    assert command.launch == settings.Launch(slurm, settings.Tracking("offline"), redo=True)
    assert command.runs == expand(["seed=1"])  # of which none of it is a part
    assert read_command(["seed=1,2", "launcher=ray", "launcher.init={address:auto}"]).launch.launcher == (
        settings.Ray(init={"address": "auto"})
    )


@pytest.mark.parametrize("name", choices("launcher"))
def test_a_launchers_file_has_what_its_type_has(name):
    """With the same defaults: launchers are made in tests and notebooks, too."""
    (of,) = (launcher for launcher in settings.LAUNCHERS if launcher.name == name)
    assert read_command([f"launcher={name}"]).launch.launcher == of()
    written = yaml.safe_load((CONF / "launcher" / f"{name}.yaml").read_text()).keys() - {"defaults"}
    assert written == {field.name for field in dataclasses.fields(of)} - {"name"}


def test_submitit_is_told_what_the_launcher_is_told(monkeypatch, tmp_path):
    """Each setting comes to the text that sbatch is given."""
    sent = []

    def submit(self, command):
        sent.append(self._make_submission_file_text(command, "x"))
        return submitit.SlurmJob(folder=self.folder, job_id="12", tasks=[0])

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    monkeypatch.setattr(submitit.SlurmExecutor, "_submit_command", submit)
    monkeypatch.setattr(submitit.helpers, "sleep", lambda _: None, raising=False)
    slurm = settings.Slurm(
        partition="gpu",
        account="lab",
        qos="low",
        constraint="a100",
        timeout_min=90,
        cpus_per_task=4,
        gpus_per_node=1,
        gres="disk:1",
        mem_gb=1.5,
        array_parallelism=2,
        signal_delay_s=60,
        setup=["module load cuda"],
        additional_parameters={"exclude": "node7"},
    )
    launcher = launchers.SlurmJobs(tmp_path / "sweep.json", slurm, runs=3)
    launcher.start(3)
    (text,) = sent
    told = ["partition=gpu", "account=lab", "qos=low", "constraint=a100", "time=90", "cpus-per-task=4"]
    told += ["gpus-per-node=1", "gres=disk:1", "mem=1536MB", "array=0-2%2", "signal=USR2@60"]
    told += ["exclude=node7", f"job-name={tmp_path.name}", "nodes=1"]
    assert not [flag for flag in told if f"#SBATCH --{flag}\n" not in text]
    assert "module load cuda" in text


def test_a_job_whose_time_is_over_goes_back_into_the_queue_as_it_is():
    there = launchers.RemoteExecutor("sweep.json")
    again = there.checkpoint(3)
    assert (again.function, again.args) == (there, (3,))


# --- the plan while a sweep runs


def test_the_plan_shows_what_runs_and_how_far_it_is(words, monkeypatch, capsys):
    runs = expand([*words, "seed=0,1"])
    output = output_of(words)
    event = {
        "phase": "training",
        "epoch": 2,
        "epochs": 5,
        "step": 9,
        "steps": 25,
        "seconds_left": 61.0,
        "host": "node7",
    }
    event |= {"metric_name": "accuracy", "scale": 100.0, "metric": 0.75, "best": 0.8}
    write_progress(output, run_id(runs[0]), event)
    with Heart(Watcher(output, 30.0).take(run_id(runs[0])), 30.0):
        shown = plan.text(plan.plan(runs, Ledger()), Ledger())
        assert "0/2 *" in shown
        assert "running 1 · missing 1" in shown
        assert (
            "running: VeRA r=8 on RTE, seed 0: epoch 2/5, accuracy 75.0 (best 80.0), left: 1m01s (on node7)"
            in shown
        )
        assert "est. 1m01s left on one device for 1 of the 2 runs left" in shown
    assert "running" not in plan.text(plan.plan(runs, Ledger()), Ledger())
    (run_folder(output, run_id(runs[0])) / "checkpoint.safetensors").touch()
    shown = plan.text(plan.plan(runs, Ledger()), Ledger())
    assert "0/2 r" in shown
    assert "est. 1m01s left on one device for 1 of the 2 runs left" in shown  # it goes on from there

    def finish(_):
        for run in runs:
            cell = {"paper": None, "model": run.model, "task": run.task, "row": run.row, "seed": run.seed}
            write_record(output, ledgers.record() | {"id": run_id(run), "cell": cell, "config": run.config})

    monkeypatch.setattr(plan.time, "sleep", finish)
    assert plan.main([*words, "seed=0,1", "watch=true", "redo=true"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("partial 1 · missing 1") < printed.index("done 2")
    assert "redo=true: also 2 runs that are done, beyond that estimate" in printed


# --- Slurm and Ray, for real


@pytest.fixture(scope="session")
def slurm(process):
    """A one-node Slurm without accounting, whose sacct fails: see tests/slurm.sh."""
    if not ALL_TESTS:
        pytest.skip("a Slurm is started with ALL_TESTS=1 only")
    subprocess.run(["bash", str(ROOT / "tests" / "slurm.sh"), "start"], check=True, timeout=60)
    yield
    guard.allowed = {"process"}  # it ends with the session, whatever the last test was
    subprocess.run(["bash", str(ROOT / "tests" / "slurm.sh"), "stop"], check=True, timeout=60)


def jobs_of(name):
    """Ids of a sweep's jobs that run."""
    command = ["squeue", "--noheader", "--array", f"--name={name}", "--states=RUNNING", "--format=%i"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_on_slurm_a_killed_job_and_one_at_its_time_limit_lose_nothing(slurm, words, tmp_path):
    """Two jobs, one killed, one told that its time is over: another job goes on with what they had."""
    many = [*words, "seed=0,1", "train.epochs=120"]
    runs = expand(many)
    process = start(
        *many, "launcher=slurm", "launcher.executors=2", "lease_seconds=5", "launcher.cpus_per_task=1"
    )
    folder = Path(output_of(words))
    wait_for(lambda: len(list(folder.glob("runs/*/checkpoint.safetensors"))) == 2, process)
    name = next(folder.glob("sweeps/*.json")).stem
    first, second = jobs_of(name)
    subprocess.run(["scancel", "--signal=KILL", first], check=True)
    subprocess.run(["scancel", "--signal=USR2", second], check=True)  # as Slurm does before the limit
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert "2 done, 0 already there" in printed
    assert "Traceback" not in printed
    logs = [run_folder(output_of(words), run_id(run)) / "log.txt" for run in runs]
    assert all("resumed at step" in log.read_text() for log in logs)
    straight = do(elsewhere([*words, "train.epochs=120"], output=tmp_path / "straight"))
    assert comparable(records_of(many)[0]) == comparable(straight)
    left = subprocess.run(
        ["squeue", "--noheader", f"--name={name}", "--states=PENDING"], capture_output=True, text=True
    )
    assert left.stdout == ""


def test_a_job_that_slurm_refuses_is_one_line(slurm, words):
    done = call("runs", *words, "launcher=slurm", "launcher.partition=nowhere", check=2)
    assert done.stderr.splitlines()[-1].startswith("error: Slurm takes no job: ")
    assert "Traceback" not in done.stderr


def test_on_ray_two_workers_do_a_sweep(ray, words, tmp_path):
    many = [*words, "seed=0,1"]
    done = call("runs", *many, "launcher=ray", "launcher.executors=2", check=0)
    assert "2 done, 0 already there" in done.stdout
    assert comparable(records_of(many)[1]) == comparable(
        do([*elsewhere(words, output=tmp_path / "straight"), "seed=1"])
    )
