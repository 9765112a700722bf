"""The process that sends runs to W&B. It reads lines of JSON from a command, each a word and a value:

    begin    a run starts, or is resumed (payload.about)
    process  the pid, code, versions and device of the process that does it
    point    an evaluated epoch
    end      the run's record; null: it was interrupted

It never imports torch.
"""

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

from runs.record import Record, run_folder
from runs.tracking.account import mode_here, project, quiet_settings
from runs.tracking.agent import take_environment
from runs.tracking.payload import artifact_of, points_of, provenance_of, summary_of
from runs.tracking.settings import Tracking

#: Seconds that Tracker.close waits by default, which is also the most that this process takes after its input
#: has ended; and how many more where adapters are uploaded.
PATIENCE, UPLOAD = 30.0, 60.0
#: Timeouts of W&B's server at a run's beginning and end, in seconds. With one start of W&B their sum is below
#: PATIENCE, so that everything that could not be sent is on disk in time.
INIT_TIMEOUT, FINISH_TIMEOUT = 14.0, 8.0
#: Seconds after a failure in which runs are written offline. Then online is tried again.
RETRY = 600.0
#: Exit codes of the process: some data are on disk only; some are lost.
UNSENT, LOST = 3, 4
#: The name of a file in a current run's folder. While its process lives it is locked, and sync skips the run.
OPEN = "open"


def patience_of(settings: Tracking) -> float:
    """Seconds that the end of a command may take."""
    return PATIENCE + UPLOAD * settings.adapter


class Server:
    """Sends one run after another. Where W&B fails, the run is repeated offline from its beginning, so that
    nothing is missing."""

    def __init__(self, settings: Tracking, mode: str, output: str, patience: float) -> None:
        self.settings, self.mode, self.output = settings, mode, output
        self.share = patience / patience_of(settings)
        self.code = 0
        self.over = False
        self.offline_until = 0.0
        # Of the current run
        self.lines: list[tuple[str, Any]] = []
        self.online = self.repeated = False  # whether it is sent online; whether for the second time
        self.about: dict[str, Any] = {}
        self.run: Any = None  # wandb's
        self.pid: int | None = None  # of the process that does it
        self.seen: set[int] = set()  # steps of the points that were sent
        self.lock: Any = None

    def handle(self, word: str, value: Any) -> None:
        """One line of the input. Raises nothing."""
        if word == "begin":
            if self.lines:
                self.handle("end", None)
            self.lines, self.repeated = [], False
            self.online = self.mode == "online" and time.monotonic() > self.offline_until
        elif not self.lines:
            return  # the run is lost already
        self.lines.append((word, value))
        try:
            self._do(word, value)
        except Exception:
            self._failed()
        if word == "end":
            self.lines = []

    def _failed(self) -> None:
        """Repeats the run, offline; a second failure loses it."""
        log(traceback.format_exc())
        # wandb's service process may be dead or blocked by the network: start another one
        with contextlib.suppress(Exception):
            import wandb

            wandb.teardown()
        if self.online:
            self.code, self.offline_until = max(self.code, UNSENT), time.monotonic() + RETRY
        if self.repeated:
            self.code, self.lines = LOST, []
            return
        log("this run is repeated, offline")
        self.repeated, self.online = True, False
        try:
            for word, value in self.lines:
                self._do(word, value)
        except Exception:
            self._failed()

    def _do(self, word: str, value: Any) -> None:
        if word == "begin":
            self.about, self.run, self.pid = value, None, None
            if self.settings.stats:
                return  # wandb.init needs the pid of the process
        if word == "process":
            # The successor of a killed process
            if self.settings.stats and self.run and self.pid != value["pid"]:
                self._end(None)
            self.pid = value["pid"]
        if self.run is None:
            self._begin()
        if word == "process":
            self.run.config.update(provenance_of(value), allow_val_change=True)
        elif word == "point":
            self.seen.add(value["step"])
            self.run.log(value)
        elif word == "end":
            self._end(value)

    def _begin(self) -> None:
        import wandb

        about, agent = self.about, self.about["agent"]
        if agent or take_environment():
            os.environ |= agent
            wandb.teardown()  # or wandb would not read them again
        self.seen = set()
        stats = self.settings.stats and self.pid is not None
        settings = quiet_settings(
            init_timeout=INIT_TIMEOUT * self.share,
            finish_timeout=(FINISH_TIMEOUT + UPLOAD * self.settings.adapter) * self.share,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # the seconds that a killed process loses
            x_disable_machine_info=not stats,  # the statistics need it
            x_disable_stats=not stats,
            x_stats_pid=self.pid or os.getpid(),
            x_stats_track_process_tree=True,  # with the processes that read images
        )
        config = about["config"] | {"mode": self.mode}
        self.run = wandb.init(
            # An agent has chosen project and id
            project=None if agent else project(),
            id=None if agent else about["id"],
            resume="allow",
            job_type=about["job_type"],
            name=about["name"],
            group=about["group"],
            tags=about["tags"],
            config=None if agent else config,
            dir=self.output,
            mode="online" if self.online else "offline",
            settings=settings,
        )
        if agent:
            # W&B's search needs the sweep's own parameters (method=vera): our mapping gets another name
            fixed = self.run.config.as_dict()
            own = {k: v for k, v in config.items() if k not in fixed or fixed[k] != v}
            self.run.config.update({f"{k}_config" if k in fixed else k: v for k, v in own.items()})
        for name in ("train/*", "dev/*", "cells/*"):
            self.run.define_metric(name, step_metric="epoch")
        if not self.online:
            self.lock = open(Path(self.run.dir).parent / OPEN, "w")  # noqa: SIM115 - locked until the run's end
            with contextlib.suppress(OSError):  # of a file system without locks
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _end(self, record: Record | None) -> None:
        status = record["status"] if record else "interrupted"
        if record:
            for point in points_of(record):  # of a resumed run: those of earlier processes
                if point["step"] not in self.seen:
                    self.run.log(point)
            self.run.config.update(provenance_of(record), allow_val_change=True)
            self.run.summary.update(summary_of(record))
            if self.settings.adapter and status == "done":
                self._upload(record)
        else:
            self.run.mark_preempting()  # W&B's word for a run that is resumed later
            self.run.summary.update({"status": status})
        self.run.tags = (*self.run.tags, status)
        self.run.finish(exit_code=0 if status == "done" else 1)
        if self.lock:
            self.lock.close()
            self.lock = None
            (Path(self.run.dir).parent / OPEN).unlink(missing_ok=True)
        self.run = None

    def _upload(self, record: Record) -> None:
        """Uploads the kept adapters with the head; nothing where no adapter is kept."""
        import wandb

        folder = run_folder(self.output, record["id"])
        files = [
            path
            for path in (*sorted(folder.glob("adapter*.safetensors")), folder / "head.safetensors")
            if path.is_file() and not path.is_symlink()
        ]
        if not any(path.name.startswith("adapter") for path in files):
            return
        name, about = artifact_of(record)
        artifact = wandb.Artifact(name, "model", metadata=about)
        for path in files:  # without copies
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact, aliases=["latest", record["id"]])


def serve(settings: Tracking, output: str, patience: float) -> int:
    """The main function of the process: handles lines until they end, which they do with the parent."""
    words = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # wandb must not prompt, nor read our lines
    # Or wandb reports its crashes to another server
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    with contextlib.suppress(OSError):
        os.nice(5)  # the run comes first
    take_environment()  # the agent's run has it in its `begin`
    server = Server(settings, "off", output, patience)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in words:
            lines.put(line)
        lines.put(b"")
        time.sleep(patience - 2)
        os._exit(server.code if server.over else LOST)  # wandb hangs

    threading.Thread(target=read, daemon=True).start()
    _decide_mode(server)
    while line := lines.get():
        try:
            word, value = json.loads(line)
        except ValueError:
            break  # an incomplete line: the parent was killed
        if server.mode != "off":
            server.handle(word, value)
    if server.lines:  # the parent was killed in the middle of a run
        server.handle("end", None)
    server.over = True
    with contextlib.suppress(Exception):
        wandb = sys.modules.get("wandb")
        if wandb:
            wandb.teardown()
    return server.code


def _decide_mode(server: Server) -> None:
    """Sets the mode: the command's, or by W&B's own settings."""
    if server.settings.mode:
        server.mode = server.settings.mode
        os.environ.pop("WANDB_MODE", None)
        return
    try:
        server.mode = mode_here()
    except Exception:  # settings that wandb cannot use
        log(traceback.format_exc())
        server.mode, server.code = "offline", UNSENT


def log(text: str) -> None:
    """Writes to the process's log. A full disk is ignored."""
    with contextlib.suppress(OSError):
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text.rstrip(), flush=True)
