"""Weights & Biases, told of each run by a process of its own: whatever happens there never hurts a run.

    python -m runs.tracking sync [output=outputs]      uploads what was written offline (make sync)

W&B is a view; the records are what counts. A run of W&B has the run's id, its cell as group, its row, model,
task, kind of method and preset as tags, the status as one more at the end, and exit code 1 where it failed or
diverged (a failed run would look finished otherwise). Its points lie over `epoch`, and W&B's own step counts
lines: a run that goes on, or is repeated, may tell an epoch twice or late, and W&B drops what comes at a step
that it has passed.
"""

import contextlib
import fcntl
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.command import entry_point
from runs.errors import UserError
from runs.record import Record, is_trial
from runs.record.text import describe
from runs.wandb_setup import base_url, cell_key, logged_in, mode_here, project, unreachable

if TYPE_CHECKING:
    from runs.config import Run

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
#: W&B's limits.
LONGEST_TAG, LONGEST_NAME = 64, 128


class Tracker:
    """Tells Weights & Biases of runs, from a process of its own: whatever happens there never hurts a run.

    begin, event and end never raise and never wait. The process starts with the first run, takes one run
    after another, and ends by itself when this one does."""

    def __init__(self, mode: str | None, output: str, patience: float | None = None) -> None:
        """mode: online, offline, off, or None: as W&B is set up here (see mode_here). Starts nothing yet.

        patience: seconds that close() waits; W&B's server has its part of them (INIT_TIMEOUT, FINISH_TIMEOUT
        of PATIENCE).
        """
        later_process = bool(int(os.environ.get("RANK", "0")))  # of torchrun's, the first one speaks for all
        self.mode = "off" if later_process else mode or mode_here()
        self.output = output
        self.patience = patience or PATIENCE.get(self.mode, 0.0)
        self.log = Path(output) / "wandb" / "tracking.log"
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble = ""
        self._cell = ""  # of the run that is on

    def begin(self, run: "Run", run_id: str) -> None:
        """A run starts, or goes on."""
        self._tell("begin", lambda: self._about(run, run_id))

    def event(self, event: dict[str, Any]) -> None:
        """Something happened in it; only evaluated epochs are logged."""
        if event.get("phase") == "evaluated":
            self._tell("point", lambda: point_of(event, self._cell))

    def end(self, record: Record | None) -> None:
        """It ended with this record. None: it was interrupted, and goes on later."""
        self._tell("end", lambda: record)

    def close(self) -> None:
        """Waits until W&B has everything, not beyond its patience, and ends the process. One line if
        something is missing."""
        if self._writer is None and not self._trouble:
            return
        deadline = time.monotonic() + self.patience
        self._lines.put(None)
        if self._writer:
            self._writer.join(self.patience)
        code: int | None = LOST
        if self._process:
            try:
                code = self._process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(OSError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)
        self.mode, self._writer, trouble, self._trouble = "off", None, self._trouble, ""
        again = "make sync" if self.output == "outputs" else f"make sync OUTPUT={self.output}"
        if code == UNSENT and not trouble:
            print(
                f"note: W&B could not be reached: {again} uploads what was not sent ({self.log})",
                file=sys.stderr,
            )
        elif code or trouble:
            why = f"{trouble}; " if trouble else ""
            print(
                f"note: W&B does not have every run; the records are whole ({why}{self.log})", file=sys.stderr
            )

    def _about(self, run: "Run", run_id: str) -> dict[str, Any]:
        self._cell = cell_key(run.model, run.config["task"]["name"])
        return about(run, run_id) | {"mode": self.mode}

    def _tell(self, word: str, value: Callable[[], Any]) -> None:
        if self.mode == "off":
            return
        try:
            # Made into text here and now: the caller may change it.
            self._lines.put(json.dumps([word, value()], default=str).encode() + b"\n")
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="tracker", daemon=True)
                self._writer.start()
        except Exception as error:
            self._trouble = self._trouble or describe(error)

    def _write(self) -> None:
        """The thread's whole life: starts the process and feeds it. A pipe that is full or broken stops
        nobody else."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            root = str(Path(__file__).parents[1])
            places = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            with open(self.log, "ab") as log:
                process = self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "runs.tracking",
                        "serve",
                        self.mode,
                        self.output,
                        str(self.patience),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"PYTHONPATH": places},
                    start_new_session=True,  # Ctrl-C is the parent's, which says what becomes of the run
                )
            pipe = process.stdin
            assert pipe is not None
            try:
                for line in iter(self._lines.get, None):
                    pipe.write(line)
                    pipe.flush()
            finally:
                with contextlib.suppress(OSError):
                    pipe.close()
        except Exception as error:
            self._trouble = self._trouble or describe(error)


# --- what is told


def about(run: "Run", run_id: str) -> dict[str, Any]:
    """What W&B is told of a run at its beginning. Where files lie on this machine is left out, as from
    published records."""
    from runs.publish import without_paths

    config = run.config
    cell = {
        "paper": run.paper,
        "row": run.row,
        "model": run.model,
        "task": config["task"]["name"],
        "seed": run.seed,
    }
    tags = [
        run.row,
        run.model,
        cell["task"],
        config["method"]["kind"],
        run.paper,
        "trial" if is_trial(config) else None,
    ]
    start = {"from": config["init_from"]} if config["init_from"] else None
    return {
        "id": run_id,
        "name": run.label[:LONGEST_NAME],
        "group": f"{run.row}@{run.model}@{cell['task']}"[:LONGEST_NAME],
        "tags": [tag[:LONGEST_TAG] for tag in dict.fromkeys(tags) if tag],
        "config": without_paths({"config": config, "start": start})["config"] | {"cell": cell},
    }


def point_of(event: dict[str, Any], cell: str) -> dict[str, Any]:
    """A point from the event of an evaluated epoch. cell: see cell_key."""
    return _point(cell, event["metric_name"], *(event[key] for key in ("epoch", "step", "loss", "metric")))


def points_of(record: Record) -> list[dict[str, Any]]:
    """All points of a record's curve. A failed run has none."""
    curve, cell = record.get("curve"), cell_key(record["cell"]["model"], record["cell"]["task"])
    columns = [curve[key] for key in ("epoch", "step", "train_loss", "metric")] if curve else []
    return [_point(cell, record["result"]["metric"], *values) for values in zip(*columns, strict=True)]


def _point(
    cell: str, name: str, epoch: float, step: int, loss: float, metric: float | None
) -> dict[str, Any]:
    point = {"epoch": epoch, "step": step, "train/loss": loss, f"dev/{name}": metric, f"{cell}/dev": metric}
    return {key: value for key, value in point.items() if value is not None}


def summary_of(record: Record) -> dict[str, Any]:
    """What W&B shows of a finished run: status, result, parameters, cost, and the scores of its texts by the
    protocol.

    What tables are made of stands there twice: once more under the name of the cell.
    """
    result, cost, texts = record.get("result") or {}, record.get("cost") or {}, record.get("texts") or {}
    found = {"status": record["status"], "error": record["error"]}
    found |= {key: result.get(key) for key in ("metric", "select", "best", "best_epoch", "last")}
    found |= {f"parameters/{key}": value for key, value in (record.get("parameters") or {}).items()}
    found |= {f"cost/{key}": value for key, value in cost.items()}
    shown = {key: result.get(key) for key in ("best", "last")}
    shown |= {key: cost.get(key) for key in ("train_seconds", "peak_memory_bytes")}
    for entry in texts.get("scores") or []:  # of the last epoch, and of the best one where it is another
        if entry["variant"] == texts["scores"][0]["variant"]:
            scores = {
                key: value for key, value in entry.items() if isinstance(value, float) and key != "epoch"
            }
            found |= {f"texts/{entry['which']}/{key}": value for key, value in scores.items()}
            shown |= scores if entry["which"] == "last" else {}
    cell = cell_key(record["cell"]["model"], record["cell"]["task"])
    found |= {f"{cell}/{key}": value for key, value in shown.items()}
    return {key: value for key, value in found.items() if value is not None}


# --- the process


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


# --- make sync


def sync(output: str) -> int:
    """Uploads the runs that were written offline, each once. Exit code 1 where some are left; the same
    command goes on."""
    folder = Path(output) / "wandb"
    files = sorted(folder.glob("offline-run-*/*.wandb"))
    waiting = [file for file in files if not _synced(file)]
    on = [file for file in waiting if _is_on(file.parent / OPEN)]
    damaged = [file for file in waiting if file not in on and not _whole(file)]
    waiting = [file for file in waiting if file not in (*on, *damaged)]
    also = f", {len(on)} still on" if on else ""
    also += f", {len(damaged)} cut off by a kill and left out" if damaged else ""
    if not waiting:
        print(
            f"no offline runs to upload in {folder} ({len(files) - len(on) - len(damaged)} uploaded"
            f" before{also})"
        )
        return 0
    if not logged_in():
        raise UserError(
            f"not logged in to {base_url()}. Run `wandb login`, or set WANDB_API_KEY. Nothing was uploaded."
        )
    if why := unreachable():
        raise UserError(f"{base_url()} cannot be reached ({why}). Nothing was uploaded, and nothing is lost")
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    environment = (
        {"WANDB_ERROR_REPORTING": "false", "WANDB__GRAPHQL_RETRY_MAX": "4"}
        | environment
        | {"WANDB_DIR": output}
    )
    # What a command line holds; wandb keeps the order of a run's own folders
    for first in range(0, len(waiting), 200):
        part = waiting[first : first + 200]
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *map(str, part)],
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    left = [file for file in waiting if not _synced(file)]
    again = "; the same command tries again" if left else ""
    print(f"{len(waiting) - len(left)} uploaded, {len(left)} left{also}{again}")
    return 1 if left else 0


def _synced(file: Path) -> bool:
    return file.with_name(f"{file.name}.synced").exists()


def _whole(file: Path) -> bool:
    """Whether a run's file (LevelDB's log format) ends where a message ends: one that does not stops wandb
    from uploading any that is named beside it."""
    data, place, kind = file.read_bytes(), 7, 0
    while place < len(data):
        room = 32768 - place % 32768  # a header of 7 bytes never crosses a block's end
        if room < 7:
            place += room
            continue
        if place + 7 > len(data):
            return False
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if kind not in (1, 2, 3, 4):  # a whole message, or its first, middle or last part
            return False
        place += 7 + length
    return data[:4] == b":W&B" and place == len(data) and kind in (1, 4)


def _is_on(path: Path) -> bool:
    """Whether a living process holds the lock of a run."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not there, or no locks on this file system
        return False
    return False


def main(arguments: list[str]) -> int:
    if len(arguments) == 4 and arguments[0] == "serve":
        return serve(arguments[1], arguments[2], float(arguments[3]))
    words = [word for word in arguments[1:] if not word.startswith("output=")]
    if not arguments or arguments[0] != "sync" or words or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    return sync(next((word.partition("=")[2] for word in arguments if word.startswith("output=")), "outputs"))


if __name__ == "__main__":
    entry_point(main)
