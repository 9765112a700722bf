"""The process that talks to W&B."""

import contextlib
import fcntl
import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from runs.record import Record
from runs.tracking.account import project
from runs.tracking.payload import points_of, summary_of

#: Seconds that close() waits, and that the process takes at most once its input has ended, where nobody says
#: otherwise.
PATIENCE = {"online": 30.0, "offline": 10.0}
#: Seconds that W&B's server has to answer at a run's beginning, and to take the rest at its end. Together
#: with one start of W&B they stay below PATIENCE: what could not be sent is on disk by then.
INIT_TIMEOUT, FINISH_TIMEOUT = 14.0, 8.0
#: After a failure runs are written offline for so many seconds, and then online is tried again.
RETRY = 600.0
#: Exit codes of the process: something is on disk only; something is not even there.
UNSENT, LOST = 3, 4
#: A file in the folder of a run that is on, locked as long as its process lives: sync leaves it alone.
OPEN = "open"


class Server:
    """The process's side. A run that W&B fails to take is told again from its beginning, offline: nothing is
    missing then."""

    def __init__(self, mode: str, output: str, patience: float) -> None:
        self.mode, self.output, self.share = mode, output, patience / PATIENCE[mode]
        self.code = 0
        self.over = False
        self.offline_until = 0.0
        self.told: list[tuple[str, Any]] = []  # of the run that is on
        self.online = self.again = False  # how it is told; whether for the second time
        self.run: Any = None
        self.seen: set[int] = set()
        self.lock: Any = None

    def handle(self, word: str, value: Any) -> None:
        """One line of the input. Raises nothing."""
        if word == "begin":
            if self.told:
                self.handle("end", None)
            self.told, self.again = [], False
            self.online = self.mode == "online" and time.monotonic() > self.offline_until
        elif not self.told:
            return  # a run that is lost already
        self.told.append((word, value))
        try:
            self._do(word, value)
        except Exception:
            self._failed()
        if word == "end":
            self.told = []

    def _failed(self) -> None:
        """Tells the run once more, offline; a second failure loses it."""
        log(traceback.format_exc())
        # The service behind wandb may be dead, or stuck on the way to the server: what comes now gets another
        # one.
        with contextlib.suppress(Exception):
            import wandb

            wandb.teardown()
        if self.online:
            self.code, self.offline_until = max(self.code, UNSENT), time.monotonic() + RETRY
        if self.again:
            self.code, self.told = LOST, []
            return
        log("this run is told again, offline")
        self.again, self.online = True, False
        try:
            for word, value in self.told:
                self._do(word, value)
        except Exception:
            self._failed()

    def _do(self, word: str, value: Any) -> None:
        if word == "begin":
            self._begin(value)
        elif word == "point":
            self.seen.add(value["step"])
            self.run.log(value)
        elif word == "end":
            self._end(value)

    def _begin(self, about: dict[str, Any]) -> None:
        import wandb

        self.seen = set()
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT * self.share,
            finish_timeout=FINISH_TIMEOUT * self.share,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # a killed process has lost no more than that
            # The record has versions, commit and device; the log is the run's own; the rest is not this
            # process's to tell.
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            silent=True,
            symlink=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self.run = wandb.init(
            project=project(),
            id=about["id"],
            resume="allow",
            name=about["name"],
            group=about["group"],
            tags=about["tags"],
            config=about["config"] | {"mode": about["mode"]},
            dir=self.output,
            mode="online" if self.online else "offline",
            settings=settings,
        )
        for name in ("train/*", "dev/*", "cells/*"):
            self.run.define_metric(name, step_metric="epoch")
        if not self.online:
            self.lock = open(Path(self.run.dir).parent / OPEN, "w")  # noqa: SIM115 - locked until the run's end
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _end(self, record: Record | None) -> None:
        status = record["status"] if record else "interrupted"
        if record:
            for point in points_of(record):  # a resumed run: what came before, and may never have reached W&B
                if point["step"] not in self.seen:
                    self.run.log(point)
            self.run.summary.update(summary_of(record))
        else:
            self.run.mark_preempting()  # W&B's word for a run that was stopped and goes on later
            self.run.summary.update({"status": status})
        self.run.tags = (*self.run.tags, status)
        self.run.finish(exit_code=0 if status == "done" else 1)
        if self.lock:
            self.lock.close()
            self.lock = None
            (Path(self.run.dir).parent / OPEN).unlink(missing_ok=True)


def serve(mode: str, output: str, patience: float) -> int:
    """The process's whole life: reads lines until they end, or until this command's parent has gone."""
    words = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # nobody may ask a question here, nor read what is not for them
    for key in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_SWEEP_ID"):  # the parent has decided
        os.environ.pop(key, None)
    # Wandb's own crashes are told to a server elsewhere otherwise
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    with contextlib.suppress(OSError):
        os.nice(5)  # the run comes first
    server = Server(mode, output, patience)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in words:
            lines.put(line)
        lines.put(b"")
        time.sleep(patience - 2)
        os._exit(server.code if server.over else LOST)  # whatever hangs

    threading.Thread(target=read, daemon=True).start()
    while line := lines.get():
        try:
            word, value = json.loads(line)
        except ValueError:
            break  # half a line: the parent was killed
        server.handle(word, value)
    if server.told:  # the parent was killed in the middle of a run
        server.handle("end", None)
    server.over = True
    with contextlib.suppress(Exception):
        wandb = sys.modules.get("wandb")
        if wandb:
            wandb.teardown()
    return server.code


def log(text: str) -> None:
    """To the process's log; a full disk stops nothing."""
    with contextlib.suppress(OSError):
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text.rstrip(), flush=True)
