"""What tests/chaos.py puts into its processes, from outside: Python imports this file at its start.

A run's process asks at each phase (of training, as progress.json says it, and before and after each file that
it writes) whether CHAOS_HOME/aim names this phase. The one that takes the aim, by renaming it, does what it
says to itself, to the server that it was forked from, to its command or to all of them. With CHAOS_NO_LOCKS,
locks let everybody pass, as on a file system that has none."""

import fcntl
import json
import os
import signal
import time

HOME = os.environ.get("CHAOS_HOME", "")
#: What a file's path tells of what is written; the first that fits.
KINDS = (
    ("/locks/", "taking the lock"),
    ("/records/", "writing the record"),
    ("attempt.json", "writing the attempt"),
    ("checkpoint", "writing a checkpoint"),
    ("adapter", "writing an adapter"),
    ("head", "writing a head"),
    ("decoded_", "writing texts"),
)


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def reach(phase: str) -> None:
    """Says that this process is in a phase; ends or stops whom the aim names, if it is this one's."""
    try:
        with open(f"{HOME}/aim") as file:
            aim = json.load(file)
        if aim["phase"] != phase:
            return
        os.rename(f"{HOME}/aim", f"{HOME}/hit")  # the real one: only one process can
    except (OSError, ValueError):
        return
    server = parent_of(os.getpid())
    if aim["who"] == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif aim["who"] == "everything":
        os.killpg(os.getpgid(parent_of(server)), signal.SIGKILL)
    else:
        pids = {"run": os.getpid(), "server": server, "command": parent_of(server)}
        os.kill(pids[aim["who"]], signal.SIGKILL)
        time.sleep(5)  # the signal, or the parent's death, is on its way


if HOME:
    outputs, replace, link, rmdir, opened = f"{HOME}/outputs", os.replace, os.link, os.rmdir, os.open

    def around(real):
        def call(source, target, **more):
            path = os.path.abspath(target)
            if not path.startswith(outputs):
                return real(source, target, **more)
            if path.endswith("progress.json"):
                with open(source) as file:
                    words = json.load(file)["phase"]
                reach("training" if words.startswith(("training", "evaluated")) else words.partition(" (")[0])
                return real(source, target, **more)
            into = "/attempts/" in str(source) and "/attempts/" not in path
            words = "moving files in" if into else next((w for part, w in KINDS if part in path), "")
            reach(f"before {words}")
            made = real(source, target, **more)
            reach(f"after {words}")
            return made

        return call

    def clear(path, **more) -> None:
        if str(path).endswith("attempts") or "/attempts" in str(path):
            reach("clearing up")
        rmdir(path, **more)

    def take(path, *more, **others) -> int:
        if isinstance(path, str) and path.startswith(outputs) and "/locks/" in path:
            reach("taking the lock")
        return opened(path, *more, **others)

    os.replace, os.link, os.rmdir, os.open = around(replace), around(link), clear, take
    if os.environ.get("CHAOS_NO_LOCKS"):
        fcntl.flock = lambda *_: None
