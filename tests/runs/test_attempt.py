"""One run: its lock, the files of its attempts, what is tried again; and that a record and its files are of
one attempt, whoever comes late."""

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import ledgers
import pytest
import torch
from running import ODD, ROOT, comparable, do, elsewhere, output_of

import vera
from runs.config import expand
from runs.errors import DeviceError, UserError
from runs.file_hash import check_kept, digest
from runs.identity import run_id, start_file
from runs.record import finished_record, read_record, record_path, run_folder, write_record
from runs.sweep import attempt as attempts
from runs.sweep import claim as claims
from runs.sweep.claim import Claim, amend, check_leases, claimed
from runs.tracking import Tracking
from runs.training import failures
from runs.training.failures import Stop, StoppedError, cause_of, less_memory, with_less_memory, with_room
from runs.training.files import CHECKPOINT, Attempt, last_checkpoint, saved, tidy
from runs.training.loop import Training
from runs.training.train import train

pytestmark = pytest.mark.determinism

# --- what an error means


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
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "memory",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"), "memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory"),
        (RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:1016"), "memory"),
        (torch.AcceleratorError("CUDA error: out of memory"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
        (OSError(errno.EIO, "Input/output error"), "disk"),
        (OSError(errno.ESTALE, "Stale file handle"), "disk"),
        (OSError(errno.EACCES, "Permission denied"), "mistake"),
        (UserError("no"), "mistake"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "device"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("No CUDA GPUs are available"), "device"),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "device"),
        (DeviceError("torch cannot use it"), "device"),
        (RuntimeError("shapes differ"), "error"),
        (ValueError("CUDA out of memory"), "error"),
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


def test_a_smaller_batch_is_one_deviation_whatever_went_before(tmp_path):
    config = {"micro_batch": None, "eval_batch": 64, "train": {"effective_batch": 8}}
    attempt = Attempt(tmp_path, "run")
    for before, after in ((8, 4), (4, 2)):
        assert less_memory(config | attempt.settings, "training", attempt)
        words = f"micro-batch {after}, since memory ran out at {before}; the effective batch stays"
        assert (attempt.settings, attempt.deviations) == ({"micro_batch": after}, [words])
    assert not less_memory(config, "loading", attempt)


def test_room_is_waited_for_and_nothing_else(monkeypatch):
    monkeypatch.setattr(failures, "ROOM", (0, 0))
    full, denied = OSError(errno.ENOSPC, "full"), OSError(errno.EACCES, "denied")

    def tried(*errors):
        coming, calls = iter(errors), []

        def write():
            calls.append(1)
            for error in coming:
                raise error

        with contextlib.suppress(OSError):
            with_room(write, Stop())
            calls.append("written")
        return calls

    assert tried(full, full) == [1, 1, 1, "written"]
    assert tried(full, full, full) == [1, 1, 1]
    assert tried(denied) == [1]


# --- what one attempt leaves to the next


@pytest.fixture
def place(tmp_path):
    """The output folder, a finished record without its files' hashes, and a function that makes an attempt
    with these files."""
    record = ledgers.record() | {"id": "run"}
    record["config"]["keep"] = "best"

    def make(**files):
        attempt = Attempt(tmp_path, "run")
        for name, text in files.items():
            (attempt.folder / name.replace("__", ".")).write_text(text)
        return attempt

    return tmp_path, record, make


def test_an_attempt_goes_on_from_what_the_last_one_left(place):
    _, _, make = place
    first = make(
        checkpoint__safetensors="1", adapter__safetensors="a", decoded_last__jsonl="x\n", other__txt=""
    )
    first.ended, first.settings = ["out of memory"], {"micro_batch": 2}
    first.save()
    before = saved(*place[:1], "run")
    assert last_checkpoint(place[0], "run") == first.folder / CHECKPOINT
    second = make()
    assert {path.name for path in second.folder.iterdir()} == {
        *(CHECKPOINT, "adapter.safetensors", "decoded_last.jsonl", "attempt.json"),
    }
    assert (second.ended, second.settings) == (
        ["out of memory", "the process was killed"],
        {"micro_batch": 2},
    )
    assert saved(place[0], "run") == before  # nothing more
    with open(first.folder / "decoded_last.jsonl", "a") as file:
        file.write("late\n")
    assert (second.folder / "decoded_last.jsonl").read_text() == "x\n"
    assert saved(place[0], "run") != before
    second.save(stopped=True)
    assert make().ended == second.ended  # it was asked to stop: no failure


def test_of_several_the_newest_checkpoint_counts_and_dead_ones_of_this_machine_go(place):
    _output, _, make = place
    first = make(checkpoint__safetensors="old")
    second = make()
    (second.folder / CHECKPOINT).unlink()
    (second.folder / CHECKPOINT).write_text("new")
    os.utime(first.folder / CHECKPOINT, ns=(1, 1))
    dead = first.folder.with_name(f"{socket.gethostname()}.{2**22 + 1}.dead")  # no process has this number
    elsewhere_ = first.folder.with_name(f"other.host.{2**22 + 1}.alive")
    half = first.folder.with_name(f"other.host.{2**22 + 1}.half")  # killed as it took over
    for folder in (dead, elsewhere_, half):
        shutil.copytree(first.folder, folder)
    (half / "attempt.json").unlink()
    (half / CHECKPOINT).write_text("newest")
    third = make()
    assert (third.folder / CHECKPOINT).read_text() == "new"
    assert {*third.folder.parent.iterdir()} == {f.folder for f in (first, second, third)} | {elsewhere_, half}
    (third.folder / "attempt.json").write_text("{")  # damaged: it counts as none
    assert make().ended == ["the process was killed"] * 2


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_in_a_records_place_stays_and_is_named(kind, place):
    output, _, make = place
    path = record_path(output, "run")
    path.parent.mkdir()
    ODD[kind](path)
    with pytest.raises(UserError, match="is no file"):
        make()
    assert os.path.lexists(path)


# --- the record and its files


def test_a_record_names_its_files_which_move_in_and_everything_else_goes(place):
    output, record, make = place
    folder = run_folder(output, "run")
    make(checkpoint__safetensors="late")
    last = make(
        adapter__safetensors="a",
        head__safetensors="h",
        decode_seconds__json="",
        adapter_best__safetensors="b",
    )
    for stale in ("decoded_best.jsonl", "adapter_best.safetensors"):  # of a record that was damaged
        (folder / stale).write_text("stale")
    (folder / "log.txt").touch()
    assert last.finish(record)
    assert {path.name for path in folder.iterdir()} == {"adapter.safetensors", "head.safetensors", "log.txt"}
    assert finished_record(output, "run")["files"] == {
        name: digest(folder / name) for name in ("adapter.safetensors", "head.safetensors")
    }
    check_kept(finished_record(output, "run"), folder / "adapter.safetensors")
    (folder / "adapter.safetensors").write_text("another")
    with pytest.raises(
        UserError, match=r"adapter\.safetensors is not the file that the record of run run names"
    ):
        check_kept(finished_record(output, "run"), folder / "adapter.safetensors")
    check_kept(record | {"files": {}}, folder / "adapter.safetensors")  # an older record


@pytest.mark.parametrize("rounded", [True, False])
def test_of_two_kept_adapters_the_best_is_the_rounded_one(rounded, place):
    output, record, make = place
    record["config"]["keep"] = "both"
    files = {"adapter__safetensors": "a", "adapter_best__safetensors": "full"}
    attempt = make(**files, **({"adapter_best_rounded__safetensors": "rounded"} if rounded else {}))
    assert attempt.finish(record)
    best = run_folder(output, "run") / "adapter_best.safetensors"
    assert best.read_text() == ("rounded" if rounded else "full")
    assert not best.with_name("adapter_best_rounded.safetensors").exists()


def test_the_second_to_finish_changes_nothing(place):
    output, record, make = place
    late, first = make(adapter__safetensors="late"), make(adapter__safetensors="first")
    assert first.finish(record)
    for _ in range(2):
        late.folder.mkdir(parents=True, exist_ok=True)  # as a late write makes it again
        (late.folder / "adapter.safetensors").write_text("late")
        assert not late.finish(record | {"error": "late"})
        with contextlib.suppress(FileNotFoundError):
            late.fail(expand(["model=smollm2", "task=alpaca"])[0], "late")
    assert finished_record(output, "run")["error"] is None
    assert (run_folder(output, "run") / "adapter.safetensors").read_text() == "first"
    late.remove()
    assert not late.folder.parent.exists()


@pytest.mark.parametrize("before", ["failed", "damaged", "none"])
def test_a_failed_or_damaged_record_is_replaced(before, place):
    output, record, make = place
    if before == "failed":
        write_record(output, record | {"status": "failed", "error": "it broke"})
    elif before == "damaged":
        record_path(output, "run").parent.mkdir()
        record_path(output, "run").write_text("{")
    assert make().finish(record)
    assert finished_record(output, "run")


def test_a_record_that_is_finished_between_two_looks_stays(place, monkeypatch):
    """A late owner saw a failed record, slept, and takes the finished one out of its place."""
    output, record, make = place
    write_record(output, record | {"status": "failed", "error": "it broke"})
    late, first, rename = make(), make(adapter__safetensors="first"), os.rename

    def finish_first(*paths):
        monkeypatch.setattr(os, "rename", rename)
        assert first.finish(record | {"tries": ["first"]})
        late.folder.mkdir(parents=True)
        rename(*paths)

    monkeypatch.setattr(os, "rename", finish_first)
    assert not late.finish(record | {"tries": ["late"]})
    assert finished_record(output, "run")["tries"] == ["first"]


def test_a_failed_run_counts_its_tries_anew(place):
    output, _, make = place
    (run,) = expand(["model=smollm2", "task=alpaca"])
    attempt = make(checkpoint__safetensors="1")
    attempt.ended, attempt.settings = ["out of memory"], {"micro_batch": 1}
    assert attempt.fail(run, "it broke")
    record = read_record(record_path(output, "run"))
    assert (record["status"], record["error"], record["tries"]) == ("failed", "it broke", ["out of memory"])
    again = make()
    assert (again.ended, again.settings) == ([], {})
    assert (again.folder / CHECKPOINT).is_file()


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_kill_between_a_record_and_its_files_leaves_no_half(moved, place, monkeypatch):
    output, record, make = place
    other = make(adapter__safetensors="other")
    attempt, replace, folder = (
        make(adapter__safetensors="a", head__safetensors="h"),
        os.replace,
        run_folder(output, "run"),
    )
    count = iter(range(9))

    def killed(source, to):
        if Path(to).parent == folder and next(count) == moved:
            raise KeyboardInterrupt
        replace(source, to)

    monkeypatch.setattr(os, "replace", killed)
    with contextlib.suppress(KeyboardInterrupt):
        attempt.finish(record)
    monkeypatch.setattr(os, "replace", replace)
    (folder / ".progress.json.17").write_text('{"ph')  # cut off by the kill
    for _ in range(2):
        tidy(output, finished_record(output, "run"))
        assert {path.name: path.read_text() for path in folder.glob("*.safetensors")} == {
            "adapter.safetensors": "a",
            "head.safetensors": "h",
        }
        assert not other.folder.exists()
        assert not [path for path in folder.iterdir() if "progress" in path.name]


# --- a lock that always succeeds: a late owner, stopped at every write


class Late:
    """An attempt that is stopped before its write number `at` (a file that is saved, renamed or linked),
    until another one, which the lock has let through, has finished; then it goes on."""

    def __init__(self, words):
        (self.run,) = expand(words)
        self.output, self.name, self.writes = output_of(words), run_id(self.run), 0

    def until_done(self):
        ended = attempts.carry_out(self.run, self.name, [], Stop(), Tracking("off"), False)
        assert ended == (attempts.DONE, "")

    def stops(self, at):
        """Returns whether it comes so far."""
        self.writes = 0

        def stopping(call):
            def write(*arguments, **more):
                self.writes += 1
                if self.writes == at:
                    self.until_done()
                return call(*arguments, **more)

            return write

        with pytest.MonkeyPatch.context() as patch:
            for call in ("replace", "link", "rename"):
                patch.setattr(os, call, stopping(getattr(os, call)))
            for call in ("save", "save_head"):
                patch.setattr(vera, call, stopping(getattr(vera, call)))
            self.until_done()
        return self.writes >= at

    @property
    def left(self):
        """The run's record, and the hash of each of its files."""
        record, folder = read_record(record_path(self.output, self.name)), run_folder(self.output, self.name)
        tidy(self.output, record)
        return record, {name: digest(folder / name) for name in record["files"]}


@pytest.mark.parametrize("kind", ["words", pytest.param("e2e_words", marks=pytest.mark.slow)])
def test_record_and_files_are_of_one_attempt_wherever_another_is_late(kind, request, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.e2e_metrics.shutil.which", lambda name: None)  # Java takes seconds
    words = [*request.getfixturevalue(kind), f"keep={'last' if kind == 'words' else 'both'}"]
    straight = do(elsewhere(words, output=tmp_path / "straight"))
    for at in range(1, 200, 1 if kind == "words" else 7):
        late = Late(elsewhere(words, output=tmp_path / f"{at}"))
        reached = late.stops(at)
        record, files = late.left
        assert record["files"] == files == straight["files"], at
        assert comparable(record) == comparable(straight)
        if not reached:
            break
    assert at > 15


# --- the lock


def test_a_lock_has_one_holder_and_says_who(tmp_path, monkeypatch, capsys):
    first, second = Claim(tmp_path, "run"), Claim(tmp_path, "run")
    assert not first.is_held()
    assert first.take()
    assert (second.is_held(), second.take(0)) == (True, False)
    assert second.holder() == f"process {os.getpid()} on {socket.gethostname()}"
    monkeypatch.setattr(claims, "PATIENCE", 0)
    monkeypatch.setattr(Claim, "take", lambda self, take=Claim.take: first.release() or take(self))
    with claimed(tmp_path, "run", "its search"):
        assert first.is_held()
    assert not first.is_held()
    (tmp_path / "locks" / "run").write_text("")
    assert first.holder() == "another process"


def test_a_file_system_without_locks_lets_everybody_pass(tmp_path, monkeypatch):
    def no_locks(self, timeout):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    assert (Claim(tmp_path, "run").is_held(), Claim(tmp_path, "run").take()) == (False, True)


@pytest.mark.usefixtures("process")
def test_the_kernel_gives_back_what_a_killed_process_held_and_a_stopped_one_is_named(
    tmp_path, capsys, monkeypatch
):
    code = (
        f"from runs.sweep.claim import Claim; claim = Claim({str(tmp_path)!r}, 'run'); claim.take(); input()"
    )
    process, claim = (
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE),
        Claim(tmp_path, "run"),
    )
    while not claim.is_held():
        assert process.poll() is None
    while "process" not in claim.holder():
        pass
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert f"which is stopped: kill -CONT {process.pid} lets it go on" in claim.holder()
    monkeypatch.setattr(claims, "PATIENCE", 0)
    threading.Timer(2.5, process.kill).start()
    with claimed(tmp_path, "run", "RTE seed 0"):
        printed = capsys.readouterr().out
    assert printed.startswith(f"RTE seed 0 is being done by process {process.pid} on ")
    assert printed.count("\n") == 1
    process.wait()


def test_keys_are_added_to_the_record_as_it_is_now(place):
    output, record, _ = place
    write_record(output, record | {"judged": []})
    amend(output, "run", lambda now: {"texts": None, "tries": [*now["tries"], "one"]})
    assert finished_record(output, "run") == record | {"judged": [], "texts": None, "tries": ["one"]}
    amend(output, "missing", lambda now: {"texts": None})
    assert finished_record(output, "missing") is None


def test_an_output_with_leases_is_refused_in_one_line(tmp_path):
    check_leases(tmp_path)
    (tmp_path / "leases").mkdir()
    check_leases(tmp_path)
    (tmp_path / "leases" / "run.1").touch()
    with pytest.raises(
        UserError, match="leases is of an earlier version: end its commands, then delete"
    ) as told:
        check_leases(tmp_path)
    assert "\n" not in str(told.value)


# --- training goes on


@pytest.mark.parametrize("more", [[], ["train.max_steps=7"]])
def test_a_stop_within_an_evaluation_evaluates_again(words, more, monkeypatch, tmp_path):
    """At the end of the last epoch, where no step is left to be done after it; the epoch may end early."""
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


def test_a_run_starts_from_the_file_that_its_record_names_alone(words, tmp_path):
    record = do([*words, "train.max_steps=1"])
    (run,) = expand([*words, f"init_from={record['id']}"])
    path = start_file(run)
    path.write_bytes(b"another")
    with pytest.raises(UserError, match="is not the file that the record"):
        start_file(run)
