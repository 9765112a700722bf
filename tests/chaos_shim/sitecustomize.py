"""What tests/chaos.py puts around its processes, from outside: Python imports this file at its start.

It widens windows that last microseconds (before and after a file is synced, renamed, linked or removed), says
in CHAOS_HOME/phase/PID what the process is doing, and, where asked, lets the clock jump or the disk be full.
"""

import errno
import os
import random
import threading
import time

HOME = os.environ.get("CHAOS_HOME", "")
SLOW = float(os.environ.get("CHAOS_SLOW", "0"))
DICE = random.Random()  # not the global one: a run's checkpoint holds its state

#: What a file's path tells of what is written; the first that fits.
KINDS = (
    ("/leases/", "writing a lease"),
    ("/records/", "writing a record"),
    ("checkpoint", "writing a checkpoint"),
    ("adapter", "writing an adapter"),
    ("head", "writing an adapter"),
    ("decoded_", "decoding"),
    ("progress.json", "writing progress"),
    ("attempts.json", "writing attempts"),
    ("/sweeps/", "writing the sweep's file"),
)


class Phase:
    """A small file that always says what this process does, to whoever kills it: a pwrite is whole or not at
    all."""

    def __init__(self) -> None:
        self.pid, self.file, self.base = 0, -1, "starting"

    def say(self, words: str) -> None:
        if self.pid != os.getpid():  # a fork has a file of its own
            self.pid = os.getpid()
            self.file = os.open(f"{HOME}/phase/{self.pid}", os.O_WRONLY | os.O_CREAT)
        os.pwrite(self.file, words.ljust(60).encode(), 0)

    def during(self, path: str, act, instead: str = ""):
        """Does what a process is to be caught in, with a pause before and after it."""
        here = threading.current_thread() is threading.main_thread()  # the heart's thread says nothing
        words = instead or next((words for part, words in KINDS if part in path), "")
        if here and words:
            self.say(words)
        time.sleep(DICE.random() * SLOW)
        try:
            return act()
        finally:
            time.sleep(DICE.random() * SLOW)
            if here and words:
                self.say(self.base)


def install() -> None:
    phase, outputs = Phase(), f"{HOME}/outputs"
    fsync, replace, link, unlink, clock = os.fsync, os.replace, os.link, os.unlink, time.time

    def slow_fsync(file) -> None:
        path = os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")
        if os.path.exists(f"{HOME}/full") and "/leases/" not in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return phase.during(path, lambda: fsync(file)) if path.startswith(outputs) else fsync(file)

    def around(real):
        def slow(source, target, **more):
            path = os.path.abspath(target)
            return (
                phase.during(path, lambda: real(source, target, **more))
                if path.startswith(outputs)
                else real(source, target)
            )

        return slow

    def slow_unlink(path, **more) -> None:
        full = os.path.abspath(path) if isinstance(path, str | os.PathLike) else ""
        if not full.startswith(outputs) or not os.path.lexists(full):
            return unlink(path, **more)
        words = "giving back a lease" if "/leases/" in full else "" if "/." in full else "clearing up"
        return phase.during(full, lambda: unlink(path, **more), words)

    os.fsync, os.replace, os.link, os.unlink = slow_fsync, around(replace), around(link), slow_unlink

    if os.environ.get("CHAOS_CLOCK"):
        jump = [0.0]

        def jumping_clock() -> float:
            if DICE.random() < 0.1:
                jump[0] = DICE.uniform(-12, 12) * 3600
            return clock() + jump[0]

        time.time = jumping_clock

    from multiprocessing.connection import Connection

    send = Connection.send

    def send_and_say(self, event) -> None:
        """A run's process tells its executor what it begins; the killer hears it at the same time."""
        if isinstance(event, dict) and "phase" in event:
            words = event["phase"]
            words = (
                "training"
                if words.startswith(("training", "evaluated", "resuming"))
                else words.partition(" (")[0]
            )
            phase.base = words
            phase.say(words)
        send(self, event)

    Connection.send = send_and_say
    phase.say(phase.base)


if HOME and SLOW:
    install()
