"""The command's side of tracking: it sends events of its runs to the server's process."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runs.errors import rank
from runs.record import Record
from runs.record.text import describe
from runs.run import Run
from runs.tracking.account import cell_key
from runs.tracking.agent import PARAMETERS, RUN_ID, SWEEP, agents_run
from runs.tracking.payload import about, point_of
from runs.tracking.server import LOST, UNSENT, patience_of
from runs.tracking.settings import Tracking


class Tracker:
    """Sends runs to Weights & Biases from a process of its own, where no failure can harm a run.

    begin, event and end never raise and never wait. The process starts with the first run, takes one run
    after another, and ends when this process does."""

    def __init__(
        self, settings: Tracking, output: str, patience: float | None = None, runs: Sequence[Run] = ()
    ) -> None:
        """Starts nothing yet.

        patience: seconds that close() waits; the timeouts of W&B's server are a share of them. runs: of the
        command. Where `wandb agent` started it, one of them takes the agent's id in W&B.
        """
        later_process = bool(rank())  # of torchrun's processes the first one tracks
        disabled = settings.mode is None and os.environ.get("WANDB_MODE") == "disabled"
        self.off = settings.mode == "off" or later_process or disabled
        self.settings, self.output = settings, output
        self.patience = patience or patience_of(settings)
        self.log = Path(output) / "wandb" / "tracking.log"
        self.agents = agents_run(runs)  # the run that takes the agent's id, if any
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble = ""
        self._cell = ""  # of the current run

    def begin(self, run: Run, run_id: str) -> None:
        """A run starts, or is resumed."""
        self._send("begin", lambda: self._about(run, run_id))

    def event(self, event: dict[str, Any]) -> None:
        """An event of the current run. Its process and evaluated epochs are sent."""
        if "provenance" in event:
            self._send("process", lambda: event["provenance"])
        if event.get("phase") == "evaluated":
            self._send("point", lambda: point_of(event, self._cell))

    def end(self, record: Record | None) -> None:
        """The current run ended with this record. None: it was interrupted."""
        self._send("end", lambda: record)

    def close(self) -> None:
        """Waits for `patience` seconds at most until W&B has everything, and ends the process. Prints a line
        where something is missing."""
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
        self.off, self._writer, trouble, self._trouble = True, None, self._trouble, ""
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

    def _about(self, run: Run, run_id: str) -> dict[str, Any]:
        self._cell = cell_key(run.model, run.config["task"]["name"])
        agents = {key: os.environ.get(key, "") for key in (SWEEP, RUN_ID, PARAMETERS)}
        return about(run, run_id) | {"agent": agents if run == self.agents else {}}

    def _send(self, word: str, value: Callable[[], Any]) -> None:
        if self.off:
            return
        try:
            # As text at once, since the caller may change the value later
            self._lines.put(json.dumps([word, value()], default=str).encode() + b"\n")
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="tracker", daemon=True)
                self._writer.start()
        except Exception as error:
            self._trouble = self._trouble or describe(error)

    def _write(self) -> None:
        """The main function of the thread: starts the process and writes to it. A full or broken pipe stops
        this thread alone."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            root = str(Path(__file__).parents[2])
            paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            settings = json.dumps(asdict(self.settings))
            command = [sys.executable, "-m", "runs.tracking", "serve", settings, self.output]
            with open(self.log, "ab") as log:
                process = self._process = subprocess.Popen(
                    [*command, str(self.patience)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"PYTHONPATH": paths},
                    start_new_session=True,  # Ctrl-C is for the parent, which sends the run's end
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
