"""What a run and its command leave where a machine takes something away: the terminal,
locks, memory for pictures."""

import errno
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios

import numpy as np
import pytest
from running import ROOT, output_of, train_here, wait_for

import tasks
from runs.config import expand
from runs.machine import processes
from runs.machine.locks import run_lock
from runs.record.ledger import record_path, run_folder
from runs.record.spreadsheet import read_own_csv
from runs.run.identity import run_id
from runs.sweep import display, pool, sweep
from runs.tracking.tracker import Tracking
from tasks import metrics

pytestmark = pytest.mark.properties


@pytest.mark.usefixtures("process")
def test_a_closed_terminal_saves_within_the_epoch(dropout_words):
    """As when a laptop closes or ssh ends: the kernel sends SIGHUP, and writing to the
    terminal fails from then on."""
    slow = [*dropout_words, "train.effective_batch=1", "train.epochs=8"]
    (run,) = expand(slow)
    place = output_of(slow), run_id(run)
    folder = run_folder(*place)
    command = [sys.executable, "-m", "runs", *slow]
    terminal, inside = pty.openpty()

    def own_the_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # which these tests themselves ignore where they run under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=own_the_terminal,
    )
    os.close(inside)
    progress = folder / "progress.json"
    wait_for(lambda: progress.is_file() and '"step"' in progress.read_text())
    os.close(terminal)
    assert process.wait(timeout=120) == 143
    assert not run_lock(*place).is_held()
    assert len([*folder.glob("attempts/*/checkpoint.safetensors")]) == 1
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "log.txt").read_text().count("resumed at step") == 1
    assert record_path(*place).is_file()


def test_under_nohup_a_command_stays_when_its_terminal_closes():
    seen = []

    def handler(number, frame):
        seen.append(number)

    for before, expected in (
        (signal.SIG_IGN, []),
        (signal.SIG_DFL, [signal.SIGHUP]),
    ):
        original = signal.signal(signal.SIGHUP, before)
        try:
            with processes.handling_signals(handler):
                os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is before
        finally:
            signal.signal(signal.SIGHUP, original)
        assert seen == expected


@pytest.mark.parametrize(
    ("launcher", "starts"),
    [("serial", 1), ("local", 1), ("slurm", 0), ("ray", 0), ("mine", 0)],
)
def test_only_launchers_that_run_here_start_the_fork_server_early(
    launcher, starts, monkeypatch
):
    """Also of a launcher that a reader has added, which may run elsewhere."""
    started = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(processes, "start_fork_server", started.append)
    processes.start_early(["task=rte", f"launcher={launcher}"])
    assert len(started) == starts


def test_a_run_needs_no_locks_of_its_file_systems(words, monkeypatch):
    """As on NFS without its lock daemon, also for what the evaluate library does."""

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    metrics._metric.cache_clear()
    labels = np.array([0, 1, 1, 0])
    for name in metrics.METRICS:
        assert metrics.score(name, labels, labels) == pytest.approx(1.0)
    assert train_here(words)["status"] == "done"


def test_a_table_is_written_where_memory_is_too_little_for_pictures(
    words, drawn, monkeypatch, capsys
):
    # an import of None fails, as that of matplotlib does without memory
    monkeypatch.setitem(sys.modules, "tasks.pictures", None)
    # another test may have imported it: then the package has it as an attribute
    monkeypatch.delattr(tasks, "pictures", raising=False)
    record = train_here(words)
    folder = run_folder(output_of(words), record["id"])
    assert "the pictures of its predictions were not drawn" in capsys.readouterr().out
    assert [row["class"] for row in read_own_csv(folder / "by_class.csv")][-2:] == [
        "macro avg",
        "weighted avg",
    ]
    assert "by_class.csv" in record["files"]


@pytest.mark.parametrize(
    ("limit", "failed", "said"),
    [
        (2, [], "  all stopped early by"),
        (2, [0], "  the others stopped early by"),
        (2, [0, 1], None),
        (None, [0], None),
    ],
)
def test_a_run_that_failed_is_not_said_to_be_stopped_early(
    limit, failed, said, words, capsys
):
    runs = expand([*words, "seed=0,1", f"train.max_steps={limit or 'null'}"])
    jobs = [pool.Job(f"seed {run.seed}", run, run_id(run)) for run in runs]
    done = pool.Sweep(jobs, Tracking("off"))
    done.pending = []
    done.failed = [(jobs[index], "out of luck") for index in failed]
    sweep._print_summary(done, 1.0)
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "train.max_steps" in line]
    assert [line.startswith(said) for line in told] == ([True] if said else [])


class ClosedTerminal:
    """A stream to a terminal that has closed: each writing fails."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")

    def flush(self):
        pass


def test_a_line_to_a_terminal_that_has_just_closed_is_no_error(monkeypatch):
    """The signal of the closed terminal may come a moment later than the error."""
    left = []
    monkeypatch.setattr(display, "leave_terminal", lambda: left.append(True))
    monkeypatch.setattr(sys, "stdout", ClosedTerminal())
    display.Display().line("a run has ended")
    assert left == [True]
