"""The commands, as a user types them: what they print, what they leave behind, how they
end and go on."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import Literal
from unittest.mock import Mock

import ledgers
import pytest
import submitit
import torch
from running import (
    TRAINING,
    begin,
    call,
    call_here,
    comparable,
    output_of,
    refused,
    replace_words,
    train_here,
    trained,
    wait_for,
)
from tiers import ALL_TESTS

import runs.__main__
import vera
from runs.command.errors import DeviceError, UserError
from runs.config import Launch, expand, read_command
from runs.config.composed import decode_command, encode_command
from runs.launchers import ray_tasks
from runs.launchers import slurm as slurm_jobs
from runs.launchers.contract import ByWorkers
from runs.launchers.registry import LAUNCHERS
from runs.machine import processes
from runs.machine.hashes import files_sha256
from runs.machine.locks import run_lock
from runs.record.ledger import (
    ROOT,
    read_ledger,
    read_record,
    record_path,
    run_folder,
    write_record,
)
from runs.run.identity import run_id
from runs.run.provenance import difference_if_run_again
from runs.sweep import child, display, pool, sweep, worker
from runs.tracking import tracker
from runs.tracking.tracker import Tracking
from runs.training import train as tries_of_a_run
from runs.training.loop import Training

pytestmark = pytest.mark.determinism


@pytest.fixture
def fork(process, monkeypatch):
    """Children are forked from this process, so that they see what a test has
    replaced."""
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda _: ForkContext())


def records_of(words):
    return [
        read_record(record_path(output_of(words), run_id(run))) for run in expand(words)
    ]


def log_of(run):
    return (run_folder(run.config["output"], run_id(run)) / "log.txt").read_text()


def start(*words):
    """`python -m runs`, in a session of its own."""
    how = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "start_new_session": True,
    }
    return subprocess.Popen([sys.executable, "-m", "runs", *words], cwd=ROOT, **how)


def end(process, code=0, seconds=300):
    """Waits for its end; returns what it printed."""
    printed, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, printed
    return printed


def checkpoints(words):
    return [*Path(output_of(words)).glob("runs/*/attempts/*/checkpoint.safetensors")]


def end_of(words, tmp_path):
    """Compares what a sweep left with what undisturbed runs leave; returns its
    records."""
    undisturbed = expand(replace_words(words, output=tmp_path / "straight"))
    for record, run in zip(records_of(words), undisturbed, strict=True):
        straight, folder = train_here(run), run_folder(output_of(words), record["id"])
        assert comparable(record) == comparable(straight)
        assert {
            name: files_sha256(folder / name) for name in straight["files"]
        } == record["files"]
        assert not (folder / "attempts").exists()
    return records_of(words)


@pytest.mark.usefixtures("process")
def test_a_sweep_runs_skips_and_survives_a_failure(dropout_words, tmp_path):
    """Its records are those of the same runs in another process, whether they are the
    first or the second there."""
    words = dropout_words
    sweep_words = [*words, "seed=0,1", "train.max_steps=2"]
    assert "2 of 2 runs done in " in call("runs", *sweep_words, check=0).stdout
    here = [
        [
            train_here(run)
            for run in expand(replace_words(sweep_words, output=tmp_path / name))
        ]
        for name in "ab"
    ]
    for records in here:
        assert [*map(comparable, records)] == [
            *map(comparable, records_of(sweep_words))
        ]
    # by the seed
    assert here[0][0]["curve"]["train_loss"] != here[0][1]["curve"]["train_loss"]
    stamps = {
        path: path.stat().st_mtime_ns
        for path in Path(output_of(words)).glob("records/*.json")
    }
    assert (
        ", 2 done before. Records: " in call_here("runs", *sweep_words, check=0).stdout
    )
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    # What is found last is one line, too, in a process of its own: nothing imported on
    # the way says a word.
    done = call("runs", *words, "method.sites=[qeury]", check=2)
    assert re.fullmatch("error: .*'qeury' site of this model.*\n", done.stderr)
    # A site that this model lacks fails its run; the others go on; the exit code says
    # so.
    mixed = [*sweep_words, "method.sites=[query],[qeury],[value]"]
    first = call_here(
        "runs", *mixed, "launcher=local", "launcher.runs_per_device=2", check=1
    )
    assert (
        len(
            re.findall(
                r"^  failed: .* 'qeury' site.*log\.txt\)$", first.stdout, re.MULTILINE
            )
        )
        == 2
    )
    assert "4 of 6 runs done in " in first.stdout
    assert "Traceback" not in first.stdout + first.stderr
    again = call_here("runs", *mixed, check=1)  # what failed is tried again
    assert ", 4 done before, 2 failed. Records" in again.stdout
    ledger = read_ledger(output_of(words), published=False)
    assert sorted(r["status"] for r in ledger) == ["done"] * 6 + ["failed"] * 2
    # A skipped run says what differs, and redo does it again.
    one = [*words, "seed=1", "train.max_steps=2"]
    (old,) = records_of(one)
    old["code"]["sources"]["method"] |= {"sha256": "0" * 16, "uncommitted": True}
    write_record(output_of(words), old)
    assert ", skipped: vera/methods/vera.py " in call_here("runs", *one, check=0).stdout
    assert (
        "1 of 1 run done in "
        in call_here("runs", *one, "redo=true", "launcher=local", check=0).stdout
    )
    (new,) = records_of(one)
    assert (new["id"], new["result"]) == (old["id"], old["result"])
    assert new["code"]["sources"] != old["code"]["sources"]


@pytest.mark.parametrize("name", ["runs", "locks"])
def test_a_file_where_none_can_be_is_one_line(name, words):
    (path := Path(output_of(words), name)).parent.mkdir(parents=True)
    path.touch()
    done = call_here("runs", *words, check=2)
    assert (done.stderr.startswith("error: "), done.stderr.count("\n")) == (True, 1)
    assert f"/{name}: File exists" in done.stderr
    assert not Path(output_of(words), "records").is_dir()


def test_a_debugged_run_raises_its_error_and_goes_on_with_what_memory_left(words):
    with pytest.raises(vera.AdapterError, match="qeury"):
        sweep.sweep(expand([*words, "method.sites=[qeury]", "debug=true"]))
    (run,) = expand([*words, "debug=true"])
    before = pool.Attempt(output_of(words), run_id(run))
    before.ended, before.settings = ["out of memory"], {"micro_batch": 2}
    before.deviations = ["micro-batch 2"]
    before.save(stopped=True)
    assert sweep.sweep([run]).done == 1
    (record,) = records_of([*words, "debug=true"])
    assert (record["config"]["micro_batch"], record["tries"]) == (2, ["out of memory"])
    assert "micro-batch 2" in record["deviations"]
    assert sweep.sweep([run]).skipped == 1


# --- what is tried again, in another process


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(
    words, fork, monkeypatch, tmp_path
):
    straight, collate = (
        trained(replace_words(words, output=tmp_path / "straight")),
        Training.batch,
    )

    def too_much(self, split, rows):
        if len(rows) > (2 if split == "train" else 6):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return collate(self, split, rows)

    monkeypatch.setattr(Training, "batch", too_much)
    tight = [*words, "eval_batch=16"]
    assert sweep.sweep(expand(tight)).exit_code == 0
    (record,) = records_of(tight)
    assert (record["config"]["micro_batch"], record["effective_batch"]) == (
        2,
        straight["effective_batch"],
    )
    assert record["tries"] == ["out of memory"] * 4
    assert [words.split(",")[0][-1] for words in record["deviations"][-2:]] == [
        "2",
        "4",
    ]
    assert record["curve"]["train_loss"] == pytest.approx(
        straight["curve"]["train_loss"], abs=1e-5
    )


@pytest.mark.parametrize(
    ("endings", "tries"),
    [
        ("killed " * 9, 4),  # the first, and three more
        ("killed killed killed saves killed killed killed", 7),
        ("busy " * 5 + "killed " * 9, 9),  # another process has it: no try
    ],
)
def test_a_process_is_tried_again_so_often_and_anew_once_more_is_saved(
    endings, tries, words, monkeypatch
):
    """saves: this process, killed like those around it, has saved more than there
    was."""
    coming, made = iter(endings.split()), []

    def begin(job, *_):  # a process that ends at once
        made.append(how := next(coming))
        job.started_at, job.ready = 0, None
        job.wait_for_end = lambda: (how.replace("saves", "killed"), f"ended by {how}")

    monkeypatch.setattr(pool.Job, "start", begin)
    monkeypatch.setattr(pool.connection, "wait", lambda ready, timeout: ready)
    monkeypatch.setattr(sweep, "start_fork_server", lambda several_runs: None)
    monkeypatch.setattr(pool, "saved_progress", lambda *_: made.count("saves"))
    assert len(sweep.sweep(expand(words)).failed) == 1
    assert (records_of(words)[0]["error"], len(made)) == ("ended by killed", tries)


def test_a_run_that_another_command_does_is_waited_for(words, monkeypatch, capsys):
    record = trained(words)
    path, claim = (
        record_path(output_of(words), record["id"]),
        run_lock(output_of(words), record["id"]),
    )
    path.rename(path.with_suffix(".later"))
    monkeypatch.setattr(pool, "PATIENCE_S", 0)
    monkeypatch.setattr(sweep, "start_fork_server", lambda several_runs: None)
    assert claim.take()
    threading.Timer(2.5, lambda: path.with_suffix(".later").rename(path)).start()
    outcome = sweep.sweep(expand(words))
    claim.release()
    assert (outcome.done, outcome.failed) == (1, [])
    assert (
        capsys.readouterr().out.count(f"is being done by process {os.getpid()} on ")
        == 1
    )


@pytest.mark.parametrize(
    ("happens", "code", "again"),
    [([EOFError(), ConnectionRefusedError()], 0, 2), ([signal.SIGTERM], 143, 0)],
)
def test_while_a_runs_process_starts(
    happens, code, again, words, fork, monkeypatch, capsys
):
    """The server that it is forked from is killed, which costs a try, or the command is
    asked to stop."""
    base, coming = pool.multiprocessing.process.BaseProcess, iter(happens)

    def starting(self, start=base.start):
        for it in coming:
            if isinstance(it, Exception):
                raise it
            os.kill(os.getpid(), it)
        start(self)

    monkeypatch.setattr(base, "start", starting)
    outcome = sweep.sweep(expand(words))
    assert (outcome.exit_code, outcome.failed) == (code, [])
    assert capsys.readouterr().out.count("tried again") == again


def test_a_full_disk_is_waited_for_and_then_one_line(words, fork, monkeypatch, capsys):
    """The log, then all from the first checkpoint on, also what tells the next process
    why; then each checkpoint."""
    room, log = (Path(f"{output_of(words)}-{name}") for name in ("room", "log"))
    fsync, into = os.fsync, child._redirect_output_to_log
    full = OSError(errno.ENOSPC, "No space left on device")
    first = []  # in the process whose checkpoint was the first one

    def sync(file):
        if "checkpoint" in os.readlink(f"/proc/self/fd/{file}") and not room.exists():
            if not any(
                record_path(output_of(words), run_id(run)).exists()
                for run in expand(words)
            ):
                room.touch(), first.append(file)
            raise full
        if first:
            raise full
        fsync(file)

    def log_into(*of):
        into(*of)
        if not log.exists():
            log.touch()
            raise full

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(child, "_redirect_output_to_log", log_into)
    for module in (pool, tries_of_a_run):
        monkeypatch.setattr(module, "DISK_PAUSES_S", (0.1, 0.1))
    # As a worker: it waits for room, and for no other process
    monkeypatch.setattr(
        pool.Sweep,
        "do_pending_runs",
        partialmethod(pool.Sweep.do_pending_runs, waits_for_others=lambda: False),
    )
    assert sweep.sweep(expand(words)).done == 1
    (why,) = records_of(words)[0]["tries"]
    assert why.startswith("No space left on device")
    assert capsys.readouterr().out.count("make room") == 2
    room.unlink()
    (*_, (_, error)) = sweep.sweep(expand([*words, "seed=1,2"])).failed
    assert error.startswith(
        "No space left on device. Finished runs are kept; make room"
    )
    failed = records_of([*words, "seed=1,2"])  # whose last try is no earlier one
    assert [(one["error"], one["tries"]) for one in failed] == [
        (error, [error] * 2)
    ] * 2
    room.touch()
    assert sweep.sweep(expand([*words, "seed=1,2"])).done == 2


# --- determinism: the same records and files, whatever happened on the way. tests/chaos kills at random


@pytest.mark.usefixtures("process")
def test_a_killed_command_or_run_and_one_at_its_time_limit_go_on(
    dropout_words, tmp_path
):
    """SIGINT, and SIGUSR1 in the middle of an epoch, to all processes, as terminals and
    Slurm do: the step is saved, not the five minutes before it. SIGKILL to the command,
    then to its run: it is tried again."""
    slow = [*dropout_words, "train.effective_batch=1", "train.epochs=8"]
    (run,) = expand(slow)
    place = (output_of(slow), run_id(run))
    progress, lock = run_folder(*place) / "progress.json", run_lock(*place)
    kinds = (
        (signal.SIGUSR1, 143),
        (signal.SIGINT, 130),
        (signal.SIGKILL, -signal.SIGKILL),
        (None, 0),
    )
    for number, code in kinds:
        process = start(*slow)
        wait_for(
            lambda: progress.is_file() and '"step"' in progress.read_text(), process
        )
        if number:
            os.killpg(process.pid, number)
        else:
            os.kill(int(lock.path.read_text().split()[0]), signal.SIGKILL)
        printed = end(process, code)
        assert not re.search("Traceback", printed)
        assert (
            "interrupted. Finished runs are kept; the same command resumes" in printed
        ) == (code > 0)
        assert ("was killed" in printed) == (number is None)
        assert number == signal.SIGKILL or not lock.is_held()
        if number:
            assert len({path.stat().st_ino for path in checkpoints(slow)}) == 1
            progress.unlink()
    assert log_of(run).count("resumed at step") == 4
    assert end_of(slow, tmp_path)[0]["tries"] == ["the process was killed"] * 2


@pytest.mark.usefixtures("process")
def test_two_commands_race_to_the_same(words, tmp_path):
    many, two_at_once = (
        [*words, "seed=0,1,2"],
        ["launcher=local", "launcher.runs_per_device=2"],
    )
    for process in [
        start(*many, "table=false"),
        start(*many, "table=false", *two_at_once),
    ]:
        end(process)
    assert (
        sum(len(re.findall(r"\n--- ", "\n" + log_of(run))) for run in expand(many))
        <= 3 + 3
    )
    end_of(many, tmp_path)


def test_a_log_shows_a_line_a_minute_and_a_terminal_a_line_a_run(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    shown = display.Display()
    one, two = (
        [("[ 1/12] a", TRAINING)],
        [("[ 1/12] a", TRAINING), ("[ 2/12] b", {"phase": "loading"})],
    )
    state = display.SweepState(1, 12, "1 of 12 runs, about 2.0h left")
    for now[0], on in ((9, one), (11, one), (70, one), (71.5, two)):
        shown.show(on, state)
    alone, beside = capsys.readouterr().out.splitlines()
    numbers = ["1/12", "2/5", "9/25", "0.500", "75.0", "80.0", "1500", "1m01s"]
    assert [number for number in numbers if number not in alone] == []
    assert alone.endswith("  (1 of 12 runs, about 2.0h left)")
    assert beside == alone.replace("  (1 of", "  and 1 other  (1 of")
    shown.live = True
    shown.show(two, state)
    shown.line("[ 2/12] b  done")
    printed, drawn = capsys.readouterr()
    assert (printed, drawn.count("\n")) == ("[ 2/12] b  done\n", 3)
    sweep, run, _ = drawn.split("\n", 2)
    assert re.search(r"\[##? +\]  1 of 12 runs, about 2.0h left", sweep)
    assert re.search(r"\[ 1/12\] a  \[#+ +\]  epoch 2/5", run)
    # the live lines are gone before the one that stays
    assert drawn.endswith("\x1b[3A\r\x1b[J")


def test_a_stage_never_goes_backwards(monkeypatch, capsys):
    """A run whose progress is gone is about to end; one that is tried again begins
    anew."""
    shown = display.Display()
    for event in ({}, {"phase": "evaluated"}, {}):
        shown.due = 0.0
        shown.show([("[1/2] a", event)])
    shown.line("[1/2] a  was killed: tried again")
    shown.due = 0.0
    shown.show([("[1/2] a", {})])
    stages = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert stages == [
        "starting",
        "evaluated",
        "writing the record",
        "was killed: tried again",
        "starting",
    ]


def test_the_time_left_of_a_sweep_is_of_runs_that_are_like_those_to_come():
    runs = expand(["method=vera,lora", "task=rte,mrpc", "seed=0,1"])
    by_cell = {display.duration_key(run): run for run in runs}
    vera_rte, vera_mrpc, lora_rte, lora_mrpc = by_cell.values()
    left = display.TimeLeft()
    assert left.of_sweep(runs, []) is None
    on = [display.RunningRun(vera_rte, elapsed=30.0, seconds_left=70.0)]
    # 100 s for each, as the one that is on says of itself
    assert left.of_sweep([lora_rte, vera_mrpc], on) == 270.0
    left.add(vera_rte, 50.0)
    left.add(lora_mrpc, 400.0)
    assert left.of_sweep([lora_rte], []) == 50.0  # of its task
    assert left.of_sweep([lora_mrpc, vera_mrpc], []) == 800.0
    # two at once; the one that has not told of itself takes what its cell takes
    on = [
        display.RunningRun(vera_rte, 10.0, None),
        display.RunningRun(lora_mrpc, 10.0, 390.0),
    ]
    assert left.of_sweep([vera_rte], on) == 390.0
    assert left.of_sweep([lora_mrpc] * 2, on) == (40 + 390 + 800) / 2
    assert display.sweep_words(3, 180, 7200.0) == "3 of 180 runs, about 2.0h left"
    assert display.sweep_words(3, 180, None) == "3 of 180 runs"


def test_a_resumed_run_has_the_time_of_all_its_attempts(words, fork, capsys):
    """In its record, its last line, and what the others of its cell are expected to
    take."""
    runs = expand([*words, "checkpoint_minutes=0", "seed=0,1"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tries_of_a_run, "PROGRESS_INTERVAL_S", -1.0)
        training = begin(runs[0], tries_of_a_run.Reporter(runs[0], run_id(runs[0])))
        training.state.seconds["train"] = 1000.0
        patch.setattr(training, "evaluate", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tries_of_a_run.train(training)
    assert sweep.sweep(runs).done == 2
    resumed, other = (
        line for line in capsys.readouterr().out.splitlines() if "  run " in line
    )
    assert re.search(r"  1[67]m\d\ds \(\d+s since it was resumed\)  run ", resumed)
    assert re.search(r"\(1 of 2 runs, about 1[67]m\d\ds left\)", resumed)
    assert re.search(r"  \d+s  run ", other)
    record, _ = records_of([*words, "seed=0,1"])
    assert 1000 < record["cost"]["train_seconds"] < 1100


def test_the_summary_of_a_command_says_how_many_of_its_runs_are_done(words, capsys):
    runs = expand([*words, "seed=0,1,2,3,4"])
    jobs = [pool.Job(f"seed {run.seed}", run, run_id(run)) for run in runs]
    commanded = pool.Sweep(jobs, Tracking("off"))
    commanded.done, commanded.skipped = 2, 1
    commanded.pending = jobs[3:4]
    commanded.failed = [(jobs[4], "no luck")]
    sweep._print_summary(commanded, 5.0)
    first, *_ = capsys.readouterr().out.splitlines()
    records = jobs[0].record.parent
    assert first == (
        f"2 of 5 runs done in 5s, 1 done before, 1 failed, 1 left. Records: {records}"
    )


@pytest.mark.parametrize("mode", ["online", "offline", None])
def test_offline_runs_are_not_said_to_be_missing_in_wandb(mode, capsys, monkeypatch):
    monkeypatch.setattr(tracker, "is_logged_in", lambda: True)
    sweep._note_unsent("outputs", mode == "online")
    note = capsys.readouterr().err
    assert ("W&B lacks some of these runs" in note) == (mode == "online")
    assert "wandb/tracking.log says why" in note
    how = "To send what is here: WANDB_DIR=outputs wandb sync --yes\n"
    assert note.endswith(how)


def test_the_last_line_names_the_login_that_sending_needs(monkeypatch, capsys):
    monkeypatch.setattr(tracker, "is_logged_in", lambda: False)
    sweep._note_unsent("my outputs", was_asked_to_send=True)
    note = capsys.readouterr().err
    command = "wandb login, then WANDB_DIR='my outputs' wandb sync --yes"
    assert note.endswith(f"To send what is here: {command}\n")


@pytest.mark.parametrize(
    ("mode", "variable", "is_said"),
    [
        ("offline", "disabled", True),
        ("off", "offline", False),
        (None, "disabled", False),
        (None, "offline", True),
    ],
)
def test_runs_that_were_wanted_offline_are_said_to_be_there(
    mode, variable, is_said, words, capsys, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setattr(tracker, "is_logged_in", lambda: True)
    monkeypatch.setattr(sweep, "_run_all", lambda *_: None)
    runs = expand([*words, "seed=0"])
    output = output_of(words)
    sweep.sweep(runs, Launch(tracking=Tracking(mode)))
    notes = capsys.readouterr().err
    place = f"note: {output}/wandb has these runs for W&B, and nothing was sent. "
    how = f"To send all runs there: WANDB_DIR={output} wandb sync --yes. To send one: "
    assert (f"{place}{how}" in notes) == is_said


def test_a_run_that_failed_before_is_left_to_do(words, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "_run_all", lambda *_: None)
    (run,) = expand([*words, "seed=0"])
    for status, is_left in (("failed", True), ("done", False)):
        made = {"id": run_id(run), "config": run.config, "status": status}
        write_record(output_of(words), ledgers.record() | made)
        sweep.sweep([run], Launch(tracking=Tracking("offline")))
        assert ("nothing was sent" in capsys.readouterr().err) == is_left


def test_one_function_counts_a_run_whoever_did_it(words, capsys):
    """The same count everywhere. Without the seconds of a run its record's are
    shown."""
    (run,) = expand(words)
    job = pool.Job("[1/1] VeRA seed 0", run, run_id(run))

    def finish(seconds, error=""):
        plan = pool.Sweep([job], Tracking("off"))
        ended = plan.finish(job, seconds, error)
        return (
            ended,
            plan.done,
            plan.skipped,
            len(plan.diverged),
            len(plan.failed),
            plan.exit_code,
        )

    assert finish(5.0) == finish(None) == (False, 0, 0, 0, 0, 0)
    assert finish(5.0, "no room") == (True, 0, 0, 0, 1, 1)
    made = ledgers.record() | {"id": job.id, "config": run.config}
    write_record(job.output, made)
    capsys.readouterr()
    assert finish(5.0) == finish(0.0) == (True, 1, 0, 0, 0, 0)
    assert re.findall(r" (\d+s) ", capsys.readouterr().out) == ["5s", "11s"]
    assert finish(None) == (True, 0, 1, 0, 0, 0)
    write_record(
        job.output, made | {"status": "diverged", "error": "the loss became NaN"}
    )
    # not tried again
    assert (finish(5.0), finish(None)) == ((True, 0, 0, 1, 0, 0), (True, 0, 1, 0, 0, 0))
    write_record(
        job.output, made | {"status": "failed", "error": "it broke", "claim": "a"}
    )
    assert finish(5.0) == (True, 0, 0, 0, 1, 1)
    # it failed before, as the first look says
    assert finish(None) == finish(5.0) == (False, 0, 0, 0, 0, 0)


def test_a_skipped_run_says_that_its_adapter_is_not_the_one_asked_for():
    config = {"keep": "best", "adapter_precision": "fp32"}
    record = ledgers.record() | {"config": config}
    said = {
        "keep=last": "keep=best (not last)",
        "adapter_precision=fp16": "=fp32 (not fp16)",
    }
    for asked in ("keep=best", "keep=none", *said):
        (run,) = expand(["task=rte", "method=vera", asked])
        found = difference_if_run_again(record, run)
        assert (bool(found), said.get(asked, "") in found) == (asked in said, True)
        diverged = record | {"status": "diverged"}
        assert difference_if_run_again(diverged, run) == ""


def test_what_others_start_from_is_not_done_again_unless_asked_for(words, monkeypatch):
    asked = Mock(return_value=pool.Sweep([], Tracking()))
    monkeypatch.setattr(runs.__main__, "sweep", asked)
    kept = [word for word in words if not word.startswith(("method.", "task="))]
    for task, count in (("rte", 1), ("mrpc,rte", 2)):
        runs.__main__.main(
            [*kept, "method=lora", f"task={task}", "init_from=lora@mrpc", "redo=true"]
        )
        runs_asked, _, runs_to_repeat = asked.call_args.args
        assert (len(runs_asked), len(runs_to_repeat)) == (count + 1, count)


def test_two_commands_set_a_record_aside_once_and_not_under_its_owners_hands(words):
    """With its folder, and the measures of its run."""
    few, output = [*words, "train.max_steps=1"], Path(output_of(words))
    record = trained(few)
    (output / "measures").mkdir()
    measure = {"schema": 1, "kind": "magnitude", "settings": {}, "seeds": {}}
    measure["values"] = {column: [] for column in ("layer", "site", "d", "b")}
    for name, of in (("m", record["id"]), ("n", "another")):
        content = measure | {"id": name, "of": [{**record, "id": of, "adapter": {}}]}
        (output / "measures" / f"{name}.json").write_text(json.dumps(content))
    job = pool.Job("it", expand(few)[0], record["id"])
    # it has been replaced since
    assert not sweep.archive(job, record | {"error": "newer"})
    claim = run_lock(output, record["id"])
    assert claim.take()
    with ThreadPoolExecutor() as threads:
        moved = [threads.submit(sweep.archive, job, record) for _ in range(4)]
        time.sleep(1.5)
        waited = run_folder(output, record["id"]).is_dir()
        claim.release()
    assert (waited, sum(each.result() for each in moved)) == (True, 1)
    (aside,) = (output / "replaced").iterdir()
    assert {path.name for path in aside.iterdir()} == {
        "run",
        "record.json",
        "measure_m.json",
    }
    assert json.loads((aside / "record.json").read_text()) == record
    assert not record_path(output, record["id"]).exists()
    assert not run_folder(output, record["id"]).exists()
    assert [path.name for path in (output / "measures").iterdir()] == ["n.json"]


@pytest.mark.parametrize("how", ["launcher=local", "launcher=slurm", "launcher=ray"])
def test_nothing_is_set_aside_where_nothing_can_start(how, words, monkeypatch):
    record = trained([*words, "train.max_steps=1"])
    refuse = Mock(
        side_effect=FileNotFoundError
        if "slurm" in how
        else DeviceError("torch cannot use it")
    )
    monkeypatch.setattr(pool.gpus, "devices", refuse)
    monkeypatch.setattr(slurm_jobs, "output_of", refuse)
    monkeypatch.setattr(ray_tasks.importlib.util, "find_spec", lambda name: None)
    command = read_command([*words, "train.max_steps=1", how])
    with pytest.raises(
        UserError, match=r"cannot use it|not installed|no Slurm here.*dry_run"
    ):
        sweep.sweep(command.runs, command.launch, command.runs)
    assert read_record(record_path(output_of(words), record["id"])) == record


# --- launchers


def test_submitit_is_told_what_the_launcher_is_told(monkeypatch, tmp_path):
    """Each setting, which is no part of a run; and the job that follows at the time
    limit is the same."""
    sent = []

    def submit(self, command):
        sent.append(self._make_submission_file_text(command, "x"))
        return submitit.SlurmJob(folder=self.folder, job_id="12", tasks=[0])

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    monkeypatch.setattr(submitit.SlurmExecutor, "_submit_command", submit)
    monkeypatch.setenv("PYTHONPATH", "")
    # squeue: no job of that name is there
    monkeypatch.setattr(slurm_jobs, "output_of", lambda *_: "")
    told = {
        key: key
        for key in (
            "partition=gpu",
            "account=lab",
            "qos=low",
            "constraint=a100",
            "gres=disk:1",
        )
    }
    told |= {
        "timeout_min=90": "time=90",
        "cpus_per_task=4": "cpus-per-task=4",
        "mem_gb=1.5": "mem=1536MB",
    }
    told |= {
        "array_parallelism=2": "array=0-2%2",
        "signal_delay_s=60": "signal=USR2@60",
    }
    told |= {
        "gpus_per_node=1": "gpus-per-node=1",
        "additional_parameters={exclude:node7}": "exclude=node7",
    }
    keys = [f"launcher.{key}" for key in (*told, "setup=[module load cuda]")]
    command = read_command(["launcher=slurm", *keys, "seed=1", "redo=true"])
    assert (command.runs, command.launch.redo) == (expand(["seed=1"]), True)
    work = worker.SweepWorker(pool.Sweep([], Tracking("off")), tmp_path, 3)
    with command.launch.launcher.start(work) as alive:
        assert alive() == 0
    (text,) = sent
    flags = [*told.values(), f"job-name={tmp_path.name}", "nodes=1"]
    assert not [flag for flag in flags if f"#SBATCH --{flag}\n" not in text]
    assert "module load cuda" in text
    with Launch(launcher={"name": "slurm"}).launcher.start(work):
        assert len(sent) == 2
    again = work.checkpoint(3)
    assert (again.function, again.args) == (work, (3,))


def test_a_dry_run_prints_what_sbatch_would_get_and_submits_nothing(words, monkeypatch):
    """Without Slurm, models or data; the script is the one that is submitted later."""
    few, output = [*words, "train.max_steps=1", "seed=0,1,2"], Path(output_of(words))
    slurm = ["launcher=slurm", "launcher.partition=gpu", "launcher.timeout_min=90"]
    dry = call_here("runs", *few, *slurm, "launcher.dry_run=true", check=0).stdout
    lines = dry.splitlines()
    assert lines[:2] == [
        "#!/bin/bash",
        "# 3 workers for 3 runs; nothing is submitted",
    ]
    for flag in ("partition=gpu", "time=90", "array=0-2%3", "nodes=1"):
        assert f"#SBATCH --{flag}" in lines
    assert not output.exists()

    sent = []

    def submit(self, command):
        sent.append(self._make_submission_file_text(command, "x"))
        return submitit.SlurmJob(folder=self.folder, job_id="12", tasks=[0])

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    monkeypatch.setattr(submitit.SlurmExecutor, "_submit_command", submit)
    monkeypatch.setattr(slurm_jobs, "output_of", lambda *_: "")
    command = read_command([*few, *slurm])
    sweep.sweep(command.runs, launch=command.launch)
    notes = [line for line in lines if line.startswith("# ") and line not in sent[0]]
    assert sent[0].splitlines() == [line for line in lines if line not in notes]
    assert any("--wckey=submitit is the label of submitit" in line for line in notes)
    assert any("+launcher.additional_parameters.wckey=NAME" in line for line in notes)
    named = [*few, *slurm, "+launcher.additional_parameters.wckey=mine"]
    named_script = call_here("runs", *named, "launcher.dry_run=true", check=0).stdout
    assert "#SBATCH --wckey=mine" in named_script.splitlines()
    assert not any("Fetched before" in line for line in notes)
    (output / "locks").mkdir(exist_ok=True)
    trained([*few[:-1], "seed=0"])
    fewer = call_here("runs", *few, *slurm, "launcher.dry_run=true", check=0).stdout
    assert "# 2 workers for 2 runs" in fewer
    one = [*words, "train.max_steps=1", "seed=0", *slurm]
    none = call_here("runs", *one, "launcher.dry_run=true", check=0).stdout
    assert none == "# 1 run already done: nothing to submit\n"
    wrong = [*one[:-1], "seed=1", "launcher.dry_run=true", "+launcher.colour=red"]
    assert "colour" in call_here("runs", *wrong, check=2).stderr
    hub = [
        "model=roberta_base",
        "task=rte",
        f"output={output}",
        "launcher.dry_run=true",
    ]
    fetched = call_here("runs", *hub, *slurm, check=0).stdout
    assert "lacks them: model roberta_base, data of rte\n" in fetched


@pytest.mark.parametrize(
    ("number", "handled", "requeued"),
    [
        (signal.SIGUSR2, signal.SIGUSR2, 1),
        (signal.SIGUSR1, signal.SIGUSR2, 1),
        # with SUBMITIT_PREEMPT_SIGNAL=USR1
        (signal.SIGUSR1, signal.SIGUSR1, 1),
        (signal.SIGTERM, signal.SIGUSR2, 0),
        (0, signal.SIGUSR2, 0),
    ],
)
def test_a_worker_that_was_asked_to_stop_has_its_job_requeued(
    number, handled, requeued, words, tmp_path, monkeypatch
):
    """And has the threads of the command, whatever the engine has set. handled: the signal
    that submitit has a handler for."""
    seen, (run,) = [], expand(words)

    def do_pending_runs(sweep, slots, waits_for_others):
        seen.append((os.environ.get("OMP_NUM_THREADS"), [job.id for job in sweep.jobs]))
        seen.append(waits_for_others())
        sweep.signal = number

    monkeypatch.setattr(pool.Sweep, "do_pending_runs", do_pending_runs)
    monkeypatch.setattr(worker, "start_fork_server", lambda: None)
    work = worker.SweepWorker(
        pool.Sweep([pool.Job("", run, name) for name in "abcd"], Tracking()),
        tmp_path,
        2,
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with processes.handling_signals(lambda *_: seen.append("requeued"), [handled]):
        assert work(1) == (143 if number else 0)
    assert seen == [("1", ["c", "d", "a", "b"]), False, *["requeued"] * requeued]


def test_what_workers_leave_is_a_failure_that_says_where_to_look(
    words, monkeypatch, capsys
):
    class Idle(ByWorkers):
        def start(self, worker):
            return contextlib.nullcontext(lambda: 0)

    monkeypatch.setitem(LAUNCHERS, "idle", Idle)
    launch = Launch(launcher={"name": "idle"})
    assert sweep.sweep(expand(words), launch=launch).exit_code == 1
    assert re.search(
        r"FAILED: its workers have ended, see .*/sweeps/runs-\w+\.",
        capsys.readouterr().out,
    )


class AtOnce(ByWorkers):
    """A launcher as somebody may add it: its settings, a check, and a start."""

    name: Literal["at_once"] = "at_once"
    refuses: bool = False

    def check(self):
        if self.refuses:
            raise UserError("launcher=at_once: not here")

    @contextlib.contextmanager
    def start(self, worker):
        codes = [worker(number) for number in range(worker.workers)]
        assert codes == [0]
        yield lambda: 0


def test_a_launcher_is_a_class_and_a_line_in_the_registry(
    words, fork, tmp_path, monkeypatch
):
    """And a file of Hydra's, for `launcher=NAME`."""
    monkeypatch.setitem(LAUNCHERS, "at_once", AtOnce)
    monkeypatch.setattr(worker, "start_fork_server", lambda: None)
    (tmp_path / "conf" / "launcher").mkdir(parents=True)
    file = tmp_path / "conf" / "launcher" / "at_once.yaml"
    file.write_text("name: at_once\nexecutors: null\nrefuses: false\n")
    line = [*words, "train.max_steps=1", "launcher=at_once"]
    folder = str(tmp_path / "conf")
    command = read_command([*line, "launcher.executors=1"], folder)
    assert command.launch.launcher == AtOnce(executors=1)
    outcome = sweep.sweep(command.runs, launch=command.launch)
    assert (outcome.done, outcome.failed) == (1, [])
    refusing = read_command([*line, "launcher.refuses=true"], folder).launch
    with refused("not here"):
        sweep.sweep(command.runs, refusing, command.runs)
    with refused("no key", "launcher.colour"):
        read_command([*line, "+launcher.colour=red"], folder)


def test_settings_of_a_launcher_survive_the_cache_of_composed_commands(words):
    line = [*words, "seed=0,1", "launcher=slurm", "launcher.partition=gpu"]
    composed = read_command(line)
    decoded = decode_command(encode_command(composed))
    launcher = decoded.launch.launcher
    assert launcher == composed.launch.launcher
    assert (launcher.name, launcher.partition) == ("slurm", "gpu")
    assert len(decoded.runs) == 2


# --- Slurm, Ray and torchrun, for real


@pytest.fixture
def slurm(process):
    """A one-node Slurm without accounting, whose sacct fails: see tests/slurm.sh."""
    if not ALL_TESTS:
        pytest.skip("a Slurm is started with ALL_TESTS=1 only")
    subprocess.run(
        ["bash", str(ROOT / "tests" / "slurm.sh"), "start"], check=True, timeout=60
    )
    yield
    subprocess.run(
        ["bash", str(ROOT / "tests" / "slurm.sh"), "stop"], check=True, timeout=60
    )


def test_on_slurm_a_job_near_its_time_limit_is_requeued_and_the_run_of_a_killed_one_goes_on(
    slurm, words, tmp_path
):
    """Signalled as Slurm does before the limit. And a job that Slurm refuses is one
    line."""
    refused = call(
        "runs", *words, "launcher=slurm", "launcher.partition=nowhere", check=2
    )
    assert refused.stderr.splitlines()[-1].startswith("error: Slurm takes no job: ")
    many = [*words, "seed=0,1", "train.epochs=60", "checkpoint_minutes=0"]
    process = start(
        *many, "launcher=slurm", "launcher.executors=2", "launcher.cpus_per_task=1"
    )
    wait_for(lambda: len(checkpoints(words)) == 2, process)
    name = next(Path(output_of(words)).glob("sweeps/*.json")).stem
    squeue = [
        "squeue",
        "--noheader",
        "--array",
        f"--name={name}",
        "--states=RUNNING",
        "--format=%i",
    ]

    def both():
        """A busy controller answers squeue with an error, now and then."""
        jobs = subprocess.run(squeue, stdout=subprocess.PIPE, text=True).stdout.split()
        return len(jobs) == 2 and jobs

    for number, job in zip(("USR2", "KILL"), wait_for(both, process), strict=True):
        subprocess.run(["scancel", f"--signal={number}", job], check=True)
    printed = end(process)
    assert "2 of 2 runs done in " in printed
    assert printed.count("2 workers of ") == 1
    assert all("resumed at step" in log_of(run) for run in expand(many))
    end_of(many, tmp_path)


def test_on_ray_two_workers_do_a_sweep(ray, words, tmp_path):
    many = [*words, "seed=0,1"]
    assert (
        "2 of 2 runs done in "
        in call("runs", *many, "launcher=ray", "launcher.executors=2", check=0).stdout
    )
    end_of(many, tmp_path)


def in_two_processes(words, folder):
    """What `python -m runs` prints in the first of a group of two, which are forked
    from this one."""

    def member(rank):
        local = {
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
        }
        os.environ |= {"RANK": rank, "WORLD_SIZE": "2", "MASTER_PORT": "29672"} | local
        (folder / rank).write_text(call_here("runs", *words, check=0).stdout)

    members = [ForkContext().Process(target=member, args=[rank]) for rank in "01"]
    for one in members:
        one.start()
    for one in members:
        one.join()
    assert [one.exitcode for one in members] == [0, 0]
    return (folder / "0").read_text()


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("kind", ["words", "e2e_words"])
def test_data_parallel_trains_and_decodes_as_one_process_does(
    kind, request, tmp_path, monkeypatch
):
    """Two processes, once under torchrun: the same effective batch, the same curve up
    to the order of sums, one attempt; a second command finds the record."""
    # Java takes seconds
    monkeypatch.setattr("tasks.e2e_metrics.shutil.which", lambda name: None)
    words = [*request.getfixturevalue(kind), "train.effective_batch=3"]
    first, two = (
        train_here(replace_words(words, output=tmp_path / "one")),
        replace_words(words, output=tmp_path / "two"),
    )
    if kind == "words":
        launched = [
            "--nproc-per-node",
            "2",
            "--master-port",
            "29671",
            "-m",
            "runs",
            *two,
        ]
        call("torch.distributed.run", *launched, check=0)
    else:
        in_two_processes(two, tmp_path)
    assert "already done" in in_two_processes(two, tmp_path)
    (second,) = records_of(two)
    for key in ("train_loss", "dev_loss"):
        assert second["curve"][key] == pytest.approx(first["curve"][key], abs=1e-5)
    # A perplexity is a loss's exponential: it differs in the last digits, too
    assert second["curve"]["metric"] == pytest.approx(
        first["curve"]["metric"], rel=1e-6
    )
    assert (second["texts"], {*second["files"]}) == (first["texts"], {*first["files"]})


@pytest.mark.usefixtures("process")
def test_two_processes_sample_what_one_does(sums_words, tmp_path, monkeypatch):
    """By reward: the same completions and rewards, and the same curve up to the order
    of sums."""
    (tmp_path / "letters.py").write_text(
        "def count(prompt, completion, answer):\n    return len(completion)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = ["train.objective=reward", "reward.function=letters.count"]
    words = [
        *sums_words,
        *changes,
        "reward.samples=3",
        "reward.kl=0.1",
        "micro_batch=2",
    ]
    first = train_here(replace_words(words, output=tmp_path / "one"))
    two = replace_words(words, output=tmp_path / "two")
    in_two_processes(two, tmp_path)
    (second,) = records_of(two)
    for key in ("reward", "reward_std", "completions/mean_length", "metric"):
        assert second["curve"][key] == first["curve"][key]
    for key in ("train_loss", "dev_loss", "entropy", "kl"):
        assert second["curve"][key] == pytest.approx(first["curve"][key], abs=1e-5)
