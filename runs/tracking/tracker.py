"""Whether and how the runs of a command are sent to Weights & Biases; and the tracker,
which sends one run from the process that trains it. W&B is a view of the records.

In W&B a run has the same id, and a resumed run continues there. The x-axis of its
points is `epoch`, not W&B's own step: a resumed run sends its earlier epochs again, and
W&B drops points at a step before the last one. This module imports neither torch nor
Hydra, since analysis/ imports it."""

import contextlib
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from runs.command.errors import process_rank
from runs.record.ledger import run_folder
from runs.record.redaction import hide_paths
from runs.record.schema import Curve, Provenance, Record
from runs.record.text import describe
from runs.run.definition import Run, runs_started_from
from runs.tracking.content import (
    LONGEST_NAME,
    cell_key,
    describe_run,
    epoch_points,
    provenance_of,
    summary_of,
)

PROJECT = "vera-bench"
#: Environment variables that `wandb agent` sets for a command.
AGENT_SWEEP = "WANDB_SWEEP_ID"
AGENT_VARIABLES = (AGENT_SWEEP, "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


@dataclass
class Tracking:
    """The settings of tracking.

    Attributes:
        mode: online, offline or off. None: offline, unless the user says yes to
            `ask_before_upload`.
        stats: whether W&B records the use of processor, memory and GPU.
        adapter: whether the kept adapter is uploaded as an artifact.
        agent: whether `wandb agent` started the command for this run
            (`tracking_of_run` sets it).
    """

    mode: Literal["online", "offline", "off"] | None = None
    stats: bool = False
    adapter: bool = False
    # nobody gives this on the command line
    agent: bool = field(default=False, metadata={"omegaconf_ignore": True})


def with_mode_of_variable(settings: Tracking) -> Tracking:
    """The settings of a command, where WANDB_MODE=offline counts as tracking=offline
    unless tracking= says something else."""
    if settings.mode is None and os.environ.get("WANDB_MODE") == "offline":
        return replace(settings, mode="offline")
    return settings


def ask_before_upload(settings: Tracking, runs: int, output: str) -> Tracking:
    """The settings of a command's runs, with the mode that the user wants. Where tracking=
    says nothing, the user is asked at the terminal: after a yes the runs are uploaded,
    otherwise a line says how to send them later. Users who are not logged in to W&B, or
    have switched it off or offline, are not asked. With tracking=online and nobody logged
    in, a note says so before the first run.

    runs: how many are left to do. output: their folder."""
    if process_rank() or not runs:
        return settings
    if settings.mode == "online" and not is_logged_in():
        print(
            "note: nobody is logged in to W&B, so these runs are tracked offline."
            " Before you start them: wandb login, or set WANDB_API_KEY",
            file=sys.stderr,
        )
    is_set_by_variable = os.environ.get("WANDB_MODE", "online") != "online"
    if settings.mode or is_set_by_variable or not is_logged_in():
        return settings
    if sys.stdin.isatty() and sys.stderr.isatty():
        count = "this run" if runs == 1 else f"these {runs} runs"
        print(
            f"You are logged in to W&B. Send it {count}? docs/tracking.md lists what is"
            " sent; tracking=online or tracking=offline answers in advance. [y/N] ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return replace(settings, mode="online")
    print(
        "note: nothing is sent to W&B without tracking=online or a yes at a terminal."
        f" To send these runs later: {sync_advice(output)}",
        file=sys.stderr,
    )
    return replace(settings, mode="offline")


def sync_advice(output: str) -> str:
    """The command that sends all unsent runs of an output folder to W&B, as a part of a
    message: "wandb login, then ..." where nobody is logged in."""
    command = f"WANDB_DIR={shlex.quote(output)} wandb sync --yes"
    return command if is_logged_in() else f"wandb login, then {command}"


def is_logged_in() -> bool:
    """Whether wandb has a key of this user. Importing wandb takes a second, so it is asked
    only if a file or variable may have a key."""
    variables = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    files = (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")
    has_file = any(Path(file).expanduser().is_file() for file in files if file)
    has_variable = any(os.environ.get(name) for name in variables)
    if not has_file and not has_variable:
        return False
    os.environ["WANDB_SILENT"] = "true"
    # Whatever is wrong with wandb or its files counts as nobody logged in
    with contextlib.suppress(Exception):
        import wandb

        has_key = bool(wandb.login(prompt=False, verify=False))
        wandb.teardown()
        return has_key
    return False


def tracking_of_run(settings: Tracking, run: Run, runs: list[Run]) -> Tracking:
    """The settings for one of a command's runs. Under `wandb agent`, this run is the
    agent's (`agent`) if it is the only one from which no other run of the command
    starts."""
    started_from = runs_started_from(runs)
    last_runs = [entry for entry in runs if entry not in started_from]
    has_agent = AGENT_SWEEP in os.environ
    return replace(settings, agent=has_agent and last_runs == [run])


def agent_note(runs: list[Run]) -> str | None:
    """A line for a command of `wandb agent` that has too many runs for W&B to attach
    one to the agent's sweep; else None."""
    sweep = os.environ.get(AGENT_SWEEP)
    # any settings will do, since only their `agent` is looked at
    if not sweep or any(tracking_of_run(Tracking(), run, runs).agent for run in runs):
        return None
    return (
        f"note: this command has {len(runs)} runs, so that W&B attaches none of them to "
        f"the sweep {sweep}"
    )


# --- sending a run

#: Seconds that W&B's server has to answer when a run begins, and when it ends. After that
#: the run is written offline.
INIT_TIMEOUT = 10.0
FINISH_TIMEOUT = 10.0
#: Seconds that a run waits at its end until wandb has started, on a busy machine.
START_TIMEOUT = 20.0


class Tracker:
    """Sends one run. Whatever goes wrong with W&B does not fail the run, nor delay it by
    more than 30 seconds.

    Attributes:
        log: the file that says what went wrong.
        wandb: wandb's run; None before it has begun, and after wandb has failed.
        points_sent: how many points of the curve it has.
        is_off: whether nothing is sent.
        start: the thread that starts wandb's run.
    """

    def __init__(
        self,
        settings: Tracking | None,
        run: Run,
        run_id: str,
        provenance: Provenance,
    ) -> None:
        """settings: with None nothing is sent. provenance: code, versions and device of
        the run, as a record has them."""
        settings = settings or Tracking("off")
        self.settings = settings
        self.run = run
        self.run_id = run_id
        self.provenance = provenance
        self.log = log_file(run.config["output"])
        self.wandb: Any = None
        self.points_sent = 0
        disabled = settings.mode is None and os.environ.get("WANDB_MODE") == "disabled"
        # under torchrun only the first process sends
        self.is_off = settings.mode == "off" or disabled or bool(process_rank())
        # In a thread: wandb takes a second to import, and INIT_TIMEOUT without its server
        self.start = threading.Thread(
            target=self._begin, args=(settings.mode,), daemon=True
        )
        if not self.is_off:
            self.start.start()

    def send_epochs(self, curve: Curve, metric: str) -> None:
        """Sends the points of a record's curve that have not been sent; none while wandb
        is starting. metric: the name of the curve's metric."""
        if self.wandb and not self.start.is_alive():
            self._safely(self._send, curve, metric)

    def finish(self, record: Record | None, error: BaseException | None = None) -> None:
        """Sends what has not been sent, and ends the run in W&B. record: None where an
        error has ended the run."""
        if self.is_off:
            return
        # Twice, since a run with which wandb fails is sent once more, offline
        for _ in range(2):
            self.start.join(START_TIMEOUT)
            if self.start.is_alive():
                self._note(f"wandb did not start within {START_TIMEOUT:g} seconds")
            elif not self.wandb and not self.is_off:
                self._begin("offline")
            if not self.wandb or self._safely(self._end, record, error):
                break

    def _note(self, trouble: str) -> None:
        """Writes a line into the log of what went wrong with W&B."""
        with contextlib.suppress(OSError), open(self.log, "a") as log:
            print(
                f"{time.strftime('%Y-%m-%d %H:%M:%S')} run {self.run_id}: {trouble}",
                file=log,
            )

    def _safely(self, step: Callable[..., None], *arguments: object) -> bool:
        """Calls a function that uses wandb. Returns whether it went well; if not, wandb's
        run is given up, and the next one gets everything from the start."""
        try:
            step(*arguments)
        except Exception as error:
            self._note(describe(error))
            self.wandb = None
            self.points_sent = 0
            # Not imported here, since the import may be what failed
            with contextlib.suppress(Exception):
                sys.modules["wandb"].teardown()
            return False
        return True

    def _begin(self, mode: str | None) -> None:
        """Starts wandb's run, offline if that fails."""
        if not self._safely(self._init, mode) and mode != "offline":
            self._safely(self._init, "offline")

    def _init(self, mode: str | None) -> None:
        """Starts wandb's run, unless the user has disabled W&B: then `is_off` is set.
        mode: as in Tracking."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        has_agent = self.settings.agent
        if not has_agent:
            # Otherwise wandb would take this run for the one that an agent waits for
            for key in AGENT_VARIABLES:
                os.environ.pop(key, None)
        os.environ["WANDB_SILENT"] = "true"
        if mode:
            os.environ["WANDB_MODE"] = mode
        import wandb

        self.is_off = not mode and wandb.setup().settings.mode == "disabled"
        if self.is_off:
            return
        online = mode == "online"
        if online and not wandb.login(prompt=False, verify=False):
            raise ValueError(
                "nobody is logged in to W&B: run `wandb login`, or set WANDB_API_KEY"
            )
        arguments = describe_run(self.run, self.run_id, self.provenance)
        config = arguments.pop("config") | {"mode": "online" if online else "offline"}
        if not has_agent:  # an agent has chosen id, project and configuration
            project = os.environ.get("WANDB_PROJECT") or PROJECT
            arguments |= {"id": self.run_id, "project": project, "config": config}
        arguments["mode"] = config["mode"]
        # In the run's own folder, where `wandb sync` does not find it before its end
        arguments["dir"] = run_folder(self.run.config["output"], self.run_id)
        settings = quiet_settings(
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            x_disable_machine_info=not self.settings.stats,
            x_disable_stats=not self.settings.stats,
        )
        run: Any = wandb.init(**arguments, resume="allow", settings=settings)
        if has_agent:
            # W&B's search needs the sweep's own parameters (method=vera), so our
            # settings of the same names get other names, such as method_config
            sweep_parameters = run.config.as_dict()
            for key, value in config.items():
                if key not in sweep_parameters:
                    run.config.update({key: value})
                elif sweep_parameters[key] != value:
                    run.config.update({f"{key}_config": value})
        for name in ("train/*", "dev/*", "cells/*"):
            run.define_metric(name, step_metric="epoch")
        self.wandb = run

    def _send(self, curve: Curve, metric: str) -> None:
        """Sends the points of a curve that have not been sent."""
        cell = cell_key(self.run.model, self.run.config["task"]["name"])
        for point in epoch_points(curve, metric, cell)[self.points_sent :]:
            self.wandb.log(point)
            self.points_sent += 1

    def _end(self, record: Record | None, error: BaseException | None) -> None:
        """Sends the rest of the curve and the summary, and ends wandb's run as finished,
        failed or interrupted. See `finish` for the arguments."""
        failed = isinstance(error, Exception)
        status = "failed" if failed else "interrupted"
        summary: dict[str, object] = {
            "status": status,
            "error": hide_paths(describe(error)) if error and failed else "",
        }
        if record:
            status = record["status"]
            summary = summary_of(record)
            self._send(record["curve"], record["result"]["metric"])
            if status == "done" and self.settings.adapter:
                self._upload(record)
        elif not failed:
            self.wandb.mark_preempting()  # W&B's word for a run that is resumed later
        self.wandb.summary.update(summary)
        self.wandb.tags = (*self.wandb.tags, status)
        folder = Path(self.wandb.settings.sync_dir)
        offline = self.wandb.offline
        finished = self._safely(self.wandb.finish, 0 if status == "done" else 1)
        if finished:
            # Without it the next run of this process would not read the environment again
            sys.modules["wandb"].teardown()
        # `wandb sync` finds the folder by this name, and sends what is in it
        if offline or not finished:
            name = folder.name.removeprefix("offline-")
            folder.rename(self.log.with_name(f"offline-{name}"))

    def _upload(self, record: Record) -> None:
        """Uploads the kept adapters and the head as one artifact; nothing if no adapter
        is kept."""
        folder = run_folder(record["config"]["output"], self.run_id)
        adapters = sorted(folder.glob("adapter*.safetensors"))
        if not adapters:
            return
        cell = record["cell"]
        parts = [str(cell[key]) for key in ("row", "model", "task", "seed")]
        name = re.sub(r"[^\w.-]", "_", "-".join(parts))
        metadata: dict[str, Any] = {}
        for key in ("metric", "best", "best_epoch", "last"):
            metadata[key] = record["result"].get(key)
        metadata["run_id"] = self.run_id
        metadata["cell"] = cell
        metadata["parameters"] = record["parameters"]
        metadata["keep"] = record["config"]["keep"]
        metadata["method"] = record["config"]["method"]
        metadata |= provenance_of(record)
        artifact = sys.modules["wandb"].Artifact(
            name[:LONGEST_NAME], "model", metadata=metadata
        )
        for path in [*adapters, *folder.glob("head.safetensors")]:
            # wandb reads the file where it is, without a copy
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.wandb.log_artifact(artifact, aliases=["latest", self.run_id])


def log_file(output: str) -> Path:
    """The log of what went wrong with W&B, of all runs in an output folder."""
    return Path(output, "wandb", "tracking.log")


def quiet_settings(**settings: Any) -> Any:
    """wandb.Settings of a run that sends our data and nothing else: no code, no console,
    no paths. settings: further ones, which win over these."""
    import wandb

    quiet: dict[str, Any] = {
        f"disable_{key}": True for key in ("code", "git", "job_creation")
    }
    quiet |= {f"x_disable_{key}": True for key in ("machine_info", "meta", "stats")}
    quiet |= {"silent": True, "console": "off", "finish_timeout_raises": True}
    quiet |= {"save_code": False, "symlink": False, "x_save_requirements": False}
    return wandb.Settings(**quiet | settings)
