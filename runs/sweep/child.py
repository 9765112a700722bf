"""The process of one run: it takes the run's lock and trains, once."""

import os
import signal
import time
from typing import Any

from runs.command.errors import Stop
from runs.machine.locks import run_lock
from runs.machine.processes import STOP_SIGNALS, end_with_parent
from runs.record.ledger import run_folder
from runs.run.definition import Run
from runs.tracking.tracker import Tracking
from runs.training.train import BUSY, FAILED, attempt_run, cause_of, end_on_full_disk


def run_in_child(
    run: Run,
    run_id: str,
    failures: list[str],
    gpu: str | None,
    tracking: Tracking,
    is_only_run: bool,
    sender: Any,
) -> None:
    """The main function of a run's process. Its output goes into the run's log.

    Args:
        failures, is_only_run: as in `attempt_run`.
        gpu: the GPU that it may use; None for all that are visible.
        sender: the end of a pipe to the command, which gets an End: how the process has
            ended, and why.
    """
    end_with_parent()
    # The command handles Ctrl-C and a closed terminal, and ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = Stop()
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP:
            signal.signal(number, stop.request)
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    lock = run_lock(run.config["output"], run_id)
    try:
        _redirect_output_to_log(run, run_id)
        end = BUSY, ""
        if lock.take():  # the process keeps it to its end
            end = attempt_run(run, run_id, failures, stop, tracking, is_only_run)
    except Exception as error:  # such as a log that cannot be written
        cause, message = cause_of(error)
        ending = end_on_full_disk(failures) if cause == "disk" else FAILED
        end = ending, message
    sender.send(end)


def _redirect_output_to_log(run: Run, run_id: str) -> None:
    """Appends what this process prints from now on to the run's log."""
    path = run_folder(run.config["output"], run_id) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):  # stdout and stderr
        os.dup2(log, stream)
    date = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"--- {date} {run.label}, run {run_id}", flush=True)
