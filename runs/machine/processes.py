"""Other processes: the environment that this one gives them, what they print, and the
files that killed ones leave; and the fork server, from which every run is forked.

The fork server imports torch and others once (runs/machine/preload.py), which takes
seconds. A command starts it before its own imports, so this module imports little."""

import contextlib
import multiprocessing.forkserver
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runs import SEVERAL_RUNS

#: Seconds that a command such as squeue has to answer.
ANSWER_S = 60


def process_environment() -> dict[str, str]:
    """The environment variables for a process that this one starts, with the project on
    Python's path."""
    # imported late, since the fork server starts before these imports
    from runs.record.ledger import ROOT

    paths = [str(ROOT)]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def output_of(*command: str) -> str:
    """What a command prints. Raises OSError where there is no such command, and
    SubprocessError where it fails or does not answer in time."""
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=ANSWER_S
    )
    return result.stdout


def last_line(error: Exception | str) -> str:
    """The last line of an error's text, where programs say what was wrong."""
    text = str(error).strip() or repr(error)
    return text.splitlines()[-1]


def is_dead(name: str) -> bool:
    """Whether a name of the form HOST.PID.TOKEN, as our files and folders have it, names a
    process of this machine that has ended."""
    process, _, _ = name.rpartition(".")
    host, _, pid = process.rpartition(".")
    try:
        # a longer number may not fit into the system's type
        if host == socket.gethostname() and pid.isdecimal() and len(pid) < 10:
            os.kill(int(pid), 0)  # sends nothing, and raises where there is no process
    except OSError as error:
        # another user's process raises PermissionError, and /proc may hide it
        return isinstance(error, ProcessLookupError)
    return False


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed processes of this machine left in a
    folder. A process that lives keeps its own."""
    # .NAME.json.HOST.PID.TOKEN, where NAME has no dot
    for path in folder.glob(".*.*.*.*.*"):
        process = path.name.split(".", 3)[3]
        if is_dead(process):
            path.unlink(missing_ok=True)


# --- the fork server


#: The signals that ask a command to stop. Slurm sends SIGTERM, SIGUSR1 or SIGUSR2 before
#: a job's time ends; SIGHUP comes when a terminal closes.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
#: The launchers that do runs as children of the command itself.
LAUNCHERS_HERE = ("launcher=serial", "launcher=local")


@contextlib.contextmanager
def handling_signals(
    handler: Any, signals: Sequence[int] = STOP_SIGNALS
) -> Iterator[None]:
    """Sets the handler of signals for a with block. It changes nothing in another thread
    than the main one, the only one in which Python allows it. Under nohup SIGHUP stays
    ignored. handler: as signal.signal takes it."""
    previous_handlers = dict[int, Any]()
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            is_ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (is_ignored and number == signal.SIGHUP):
                previous_handlers[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in previous_handlers.items():
            signal.signal(number, previous)


def start_fork_server(several_runs: bool = True) -> None:
    """Starts the fork server, unless it is running. It ends with this process, but not
    before it has imported everything. several_runs: whether it also imports the
    metrics, which a single run imports after its first step."""
    if several_runs:
        os.environ[SEVERAL_RUNS] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["runs.machine.preload"]
    )
    # a terminal and Slurm send signals to a whole group of processes: the server must
    # ignore them, which it inherits from here
    with handling_signals(signal.SIG_IGN, (signal.SIGINT, *STOP_SIGNALS)):
        multiprocessing.forkserver.ensure_running()


def start_early(arguments: Sequence[str]) -> None:
    """Starts the fork server before a command's imports, if its arguments look as if it
    did runs on this machine. After a wrong guess the server just ends with this
    process."""
    if not arguments or "LOCAL_RANK" in os.environ:
        return
    for argument in arguments:
        # an option such as --help does no run, and debug=true does it in this process
        if argument.startswith(("-", "debug=")):
            return
        if argument.startswith("launcher=") and argument not in LAUNCHERS_HERE:
            return
    # a comma separates the values of a sweep, and a preset has many runs
    several_runs = any(
        "," in argument or argument.startswith("experiment=") for argument in arguments
    )
    start_fork_server(several_runs)


def end_with_parent() -> None:
    """Makes this process end when the one that started it ends, even by SIGKILL."""
    parent: Any = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
