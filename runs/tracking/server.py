"""The process that talks to W&B: it reads what a command says of its runs, a line of JSON for each thing.

    begin    a run starts, or goes on (payload.about)
    process  the process that does it, by its pid, and what it is done with
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

#: Seconds that close() waits, and that the process takes at most once its input has ended, where nobody says
#: otherwise; and so many more where adapters are uploaded.
PATIENCE, UPLOAD = 30.0, 60.0
#: Seconds that W&B's server has to answer at a run's beginning, and to take the rest at its end. Together
#: with one start of W&B they stay below PATIENCE: what could not be sent is on disk by then.
INIT_TIMEOUT, FINISH_TIMEOUT = 14.0, 8.0
#: After a failure runs are written offline for so many seconds, and then online is tried again.
RETRY = 600.0
#: Exit codes of the process: something is on disk only; something is not even there.
UNSENT, LOST = 3, 4
#: A file in the folder of a run that is on, locked as long as its process lives: sync leaves it alone.
OPEN = "open"


def patience_of(settings: Tracking) -> float:
    """Seconds that the end of a command may take."""
    return PATIENCE + UPLOAD * settings.adapter


class Server:
    """A run that W&B fails to take is repeated from its beginning, offline: nothing is missing then."""

    def __init__(self, settings: Tracking, mode: str, output: str, patience: float) -> None:
        self.settings, self.mode, self.output = settings, mode, output
        self.share = patience / patience_of(settings)
        self.code = 0
        self.over = False
        self.offline_until = 0.0
        self.lines: list[tuple[str, Any]] = []  # of the run that is on
        self.online = self.repeated = False  # how it is sent; whether for the second time
        self.about: dict[str, Any] = {}
        self.run: Any = None  # wandb's
        self.pid: int | None = None  # of the process that does it
        self.seen: set[int] = set()
        self.lock: Any = None

    def handle(self, word: str, value: Any) -> None:
        """One line of the input. Raises nothing."""
        if word == "begin":
            if self.lines:
                self.handle("end", None)
            self.lines, self.repeated = [], False
            self.online = self.mode == "online" and time.monotonic() > self.offline_until
        elif not self.lines:
            return  # a run that is lost already
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
        # The service behind wandb may be dead, or stuck on the way to the server: what comes now gets another
        # one.
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
                return  # W&B has to know at a run's beginning whose statistics they are
        if word == "process":
            # A process that was killed has a successor.
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
            wandb.teardown()  # it reads these once
        self.seen = set()
        stats = self.settings.stats and self.pid is not None
        settings = quiet_settings(
            init_timeout=INIT_TIMEOUT * self.share,
            finish_timeout=(FINISH_TIMEOUT + UPLOAD * self.settings.adapter) * self.share,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # a killed process has lost no more than that
            x_disable_machine_info=not stats,  # without it there are no statistics
            x_disable_stats=not stats,
            x_stats_pid=self.pid or os.getpid(),
            x_stats_track_process_tree=True,  # those that read images, too
        )
        config = about["config"] | {"mode": self.mode}
        self.run = wandb.init(
            # The agent has named these.
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
        if (
            agent
        ):  # a parameter of the sweep keeps its name, as W&B's search wants it: method=vera is no mapping
            fixed = self.run.config.as_dict()
            own = {k: v for k, v in config.items() if k not in fixed or fixed[k] != v}
            self.run.config.update({f"{k}_config" if k in fixed else k: v for k, v in own.items()})
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
            self.run.config.update(provenance_of(record), allow_val_change=True)
            self.run.summary.update(summary_of(record))
            if self.settings.adapter and status == "done":
                self._upload(record)
        else:
            self.run.mark_preempting()  # W&B's word for a run that was stopped and goes on later
            self.run.summary.update({"status": status})
        self.run.tags = (*self.run.tags, status)
        self.run.finish(exit_code=0 if status == "done" else 1)
        if self.lock:
            self.lock.close()
            self.lock = None
            (Path(self.run.dir).parent / OPEN).unlink(missing_ok=True)
        self.run = None

    def _upload(self, record: Record) -> None:
        """The kept adapter, or both of them, and the head; nothing where none is kept."""
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
        for path in files:  # read where they lie: nothing is copied
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact, aliases=["latest", record["id"]])


def serve(settings: Tracking, output: str, patience: float) -> int:
    """The process's whole life: reads lines until they end, or until this command's parent has gone."""
    words = os.fdopen(os.dup(0), "rb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # nobody may ask a question here, nor read what is not for them
    # Wandb's own crashes are told to a server elsewhere otherwise
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    with contextlib.suppress(OSError):
        os.nice(5)  # the run comes first
    take_environment()  # whichever run it is for brings it along
    server = Server(settings, "off", output, patience)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in words:
            lines.put(line)
        lines.put(b"")
        time.sleep(patience - 2)
        os._exit(server.code if server.over else LOST)  # whatever hangs

    threading.Thread(target=read, daemon=True).start()
    _decide_mode(server)
    while line := lines.get():
        try:
            word, value = json.loads(line)
        except ValueError:
            break  # half a line: the parent was killed
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
    """The command's word; without one, W&B's own settings."""
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
    """To the process's log; a full disk stops nothing."""
    with contextlib.suppress(OSError):
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text.rstrip(), flush=True)
