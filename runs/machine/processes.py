"""Other processes: the environment that they get from this one, what they print, what
killed ones leave, and the fork server, the process that every run is forked from.

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
    """The environment variables of another process of this project, with the project on
    Python's path."""
    # The fork server starts before these imports
    from runs.record.ledger import ROOT

    paths = [str(ROOT)]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def output_of(*command: str) -> str:
    """What a command prints. Raises OSError where it is not there, and SubprocessError
    where it fails or does not answer."""
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=ANSWER_S
    )
    return result.stdout


def last_line(error: Exception | str) -> str:
    """The last line of an error's text, where programs say what was wrong."""
    text = str(error).strip() or repr(error)
    return text.splitlines()[-1]


def is_dead(name: str) -> bool:
    """Whether HOST.PID.TOKEN names a process of this machine that has ended."""
    host, _, number = name.rpartition(".")[0].rpartition(".")
    try:
        if host == socket.gethostname() and number.isdecimal() and len(number) < 10:
            os.kill(int(number), 0)
    except OSError as error:  # or it is another user's, whom /proc may hide
        return isinstance(error, ProcessLookupError)
    return False


def sweep_up_dead(folder: Path) -> None:
    """Removes the temporary files in a folder that killed processes of this machine
    left. Always safe."""
    for partial in folder.glob(".*.*.*.*.*"):
        if is_dead(partial.name.split(".", 3)[3]):  # .NAME.json.HOST.PID.TOKEN
            partial.unlink(missing_ok=True)


# --- the fork server


#: The signals that ask a command to stop. Slurm's come before the end of a job's time;
#: SIGHUP comes when a terminal closes.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
#: The launchers that do runs as children of the command itself.
LAUNCHERS_HERE = ("launcher=serial", "launcher=local")


@contextlib.contextmanager
def handling_signals(handler: Any, signals: Sequence[int] = STOPPING) -> Iterator[None]:
    """Sets the handler of signals for a block; nothing outside the main thread, where
    Python allows it. Under nohup SIGHUP stays ignored."""
    before = dict[int, Any]()
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            is_ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (is_ignored and number == signal.SIGHUP):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def start_fork_server(several_runs: bool = True) -> None:
    """Starts the fork server, unless it is on. It ends with this process, once it has imported all.
    several_runs: a single run imports the metrics as it evaluates, after its first
    step."""
    if several_runs:
        os.environ[SEVERAL_RUNS] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["runs.machine.preload"]
    )
    # Signals may go to a whole group of processes. The server must ignore them, and
    # inherits that from here
    with handling_signals(signal.SIG_IGN, (signal.SIGINT, *STOPPING)):
        multiprocessing.forkserver.ensure_running()


def start_early(words: Sequence[str]) -> None:
    """Starts the fork server where runs here seem to be wanted. A wrong guess costs a process that
    ends with this one."""
    if not words or "LOCAL_RANK" in os.environ:
        return
    for word in words:
        if word.startswith(("-", "debug=")):
            return
        if word.startswith("launcher=") and word not in LAUNCHERS_HERE:
            return
    several_runs = any("," in word or word.startswith("experiment=") for word in words)
    start_fork_server(several_runs)


def end_with_parent() -> None:
    """Makes this process end with the one that started it, also where SIGKILL leaves
    that no time."""
    parent: Any = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
