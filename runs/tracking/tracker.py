"""Whether and how the runs of a command are sent to Weights & Biases, and what sends
one from the process that trains it. W&B is a view of the records.

A run of W&B has the run's id, and goes on there as itself when it was killed. The
x-axis of its points is `epoch`, not W&B's own step: a resumed run sends its earlier
epochs again, and W&B drops points at a step before the last one. Without torch and
Hydra, since analysis/ reads this, too."""

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
from runs.run.definition import Run, starts
from runs.tracking.content import (
    LONGEST_NAME,
    about_run,
    cell_key,
    points,
    provenance_of,
    summary_of,
)

PROJECT = "vera-bench"
#: Environment variables that `wandb agent` sets for a command.
AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


@dataclass
class Tracking:
    """mode: online, offline or off. None: offline, unless the user says yes to
    `ask_before_upload`. stats: with W&B's statistics of the system. adapter: the
    adapter that is kept becomes an artifact. agent: whether `wandb agent` started the
    command for this run (`tracking_of_run` sets it)."""

    mode: Literal["online", "offline", "off"] | None = None
    stats: bool = False
    adapter: bool = False
    # no key of the command line
    agent: bool = field(default=False, metadata={"omegaconf_ignore": True})


def ask_before_upload(settings: Tracking, runs: int, output: str) -> Tracking:
    """The settings of a command's runs, which are uploaded after a yes at the terminal
    where tracking= says nothing; else a line says how to send them. Nobody is asked who
    is not logged in to W&B, or has switched it off or offline. Whoever asks for uploads
    without being logged in reads so before the first run.

    runs: how many are left to do."""
    set_otherwise = os.environ.get("WANDB_MODE", "online") != "online"
    if settings.mode == "online" and runs and not process_rank() and not is_logged_in():
        print(
            "note: nobody is logged in to W&B, so these runs are tracked offline."
            " Before you start them: wandb login, or set WANDB_API_KEY",
            file=sys.stderr,
        )
    if (
        settings.mode
        or set_otherwise
        or process_rank()
        or not runs
        or not is_logged_in()
    ):
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
        f" To send these runs later: {sync_command(output)}",
        file=sys.stderr,
    )
    return replace(settings, mode="offline")


def sync_command(output: str) -> str:
    """What sends all runs of an output folder that have not been sent, with a login
    before it where nobody is logged in."""
    command = f"WANDB_DIR={shlex.quote(output)} wandb sync --yes"
    return command if is_logged_in() else f"wandb login, then {command}"


def is_logged_in() -> bool:
    """Whether W&B has a key of this user. wandb, which takes a second to import, is
    asked only where there is something like a key."""
    variables = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    files = (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")
    has_file = any(Path(file).expanduser().is_file() for file in files if file)
    if not has_file and not any(os.environ.get(name) for name in variables):
        return False
    os.environ["WANDB_SILENT"] = "true"
    with contextlib.suppress(Exception):  # whatever is wrong with wandb or its files
        import wandb

        has_key = bool(wandb.login(prompt=False, verify=False))
        wandb.teardown()
        return has_key
    return False


def tracking_of_run(settings: Tracking, run: Run, runs: list[Run]) -> Tracking:
    """The settings for one of a command's runs: an agent's is the only one that no
    other run starts from."""
    last = [entry for entry in runs if entry not in starts(runs)]
    return replace(settings, agent=AGENT[0] in os.environ and last == [run])


def agent_note(runs: list[Run]) -> str | None:
    """A line for an agent's command with too many runs to be attached to its sweep."""
    sweep = os.environ.get(AGENT[0])
    if not sweep or any(tracking_of_run(Tracking(), run, runs).agent for run in runs):
        return None
    return (
        f"note: this command has {len(runs)} runs, so that W&B attaches none of them to "
        f"the sweep {sweep}"
    )


# --- sending a run

#: Seconds that W&B's server has at a run's beginning and end, after which the run is
#: written offline; and that a run waits at its end for wandb's start, where the machine
#: is busy.
INIT_TIMEOUT, FINISH_TIMEOUT, START = 10.0, 10.0, 20.0


class Tracker:
    """Sends one run. Nothing that goes wrong with W&B reaches the run, or takes it more
    than 30 seconds."""

    def __init__(
        self,
        settings: Tracking | None,
        run: Run,
        run_id: str,
        made_with: Provenance,
    ) -> None:
        """made_with: code, versions and device of the run, as a record has them."""
        settings = settings or Tracking("off")
        self.settings = settings
        self.run = run
        self.run_id = run_id
        self.made_with = made_with
        self.log = log_file(run.config["output"])
        self.wandb: Any = None  # wandb's run, once it has begun
        self.sent = 0  # points
        disabled = settings.mode is None and os.environ.get("WANDB_MODE") == "disabled"
        # torchrun's first process sends
        self.is_off = settings.mode == "off" or disabled or bool(process_rank())
        # It takes a second to import wandb, and where its server is away INIT_TIMEOUT
        self.start = threading.Thread(
            target=self._begin, args=(settings.mode,), daemon=True
        )
        if not self.is_off:
            self.start.start()

    def epoch(self, curve: Curve, metric: str) -> None:
        """Sends the epochs of a record's curve that have not been sent. metric: its
        name."""
        if self.wandb and not self.start.is_alive():
            self._safely(self._send, curve, metric)

    def finish(self, record: Record | None, error: BaseException | None = None) -> None:
        """Ends the run in W&B. record: None where an error has ended the run."""
        # the second time offline, where wandb has failed
        for _ in range(0 if self.is_off else 2):
            self.start.join(START)
            if self.start.is_alive():
                self._note(f"wandb did not start within {START:g} seconds")
            elif not self.wandb and not self.is_off:
                self._begin("offline")
            if not self.wandb or self._safely(self._end, record, error):
                break

    def _note(self, trouble: str) -> None:
        with contextlib.suppress(OSError), open(self.log, "a") as log:
            print(
                f"{time.strftime('%Y-%m-%d %H:%M:%S')} run {self.run_id}: {trouble}",
                file=log,
            )

    def _safely(self, step: Callable[..., None], *arguments: object) -> bool:
        """Takes a step with wandb; returns whether it went well. Else the next of
        wandb's runs sends all."""
        try:
            step(*arguments)
        except Exception as error:
            self._note(describe(error))
            self.wandb, self.sent = None, 0
            with contextlib.suppress(Exception):
                sys.modules["wandb"].teardown()
            return False
        return True

    def _begin(self, mode: str | None) -> None:
        if not self._safely(self._init, mode) and mode != "offline":
            self._safely(self._init, "offline")

    def _init(self, mode: str | None) -> None:
        """Starts wandb's run. mode: as in Tracking."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        agent = self.settings.agent
        for key in () if agent else AGENT:
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
        about = about_run(self.run, self.run_id, self.made_with)
        config = about.pop("config") | {"mode": "online" if online else "offline"}
        if not agent:  # which has chosen id, project and configuration
            project = os.environ.get("WANDB_PROJECT") or PROJECT
            about |= {"id": self.run_id, "project": project, "config": config}
        limits = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT}
        stats = dict.fromkeys(
            ("x_disable_machine_info", "x_disable_stats"), not self.settings.stats
        )
        # In the run's folder `wandb sync` does not find it yet
        about |= {
            "mode": config["mode"],
            "dir": run_folder(self.run.config["output"], self.run_id),
        }
        run: Any = wandb.init(
            **about, resume="allow", settings=quiet_settings(**limits, **stats)
        )
        if agent:
            # W&B's search needs the sweep's own parameters (method=vera): our mapping
            # gets another name
            fixed = run.config.as_dict()
            for key, value in config.items():
                if key not in fixed:
                    run.config.update({key: value})
                elif fixed[key] != value:
                    run.config.update({f"{key}_config": value})
        for name in ("train/*", "dev/*", "cells/*"):
            run.define_metric(name, step_metric="epoch")
        self.wandb = run

    def _send(self, curve: Curve, metric: str) -> None:
        cell = cell_key(self.run.model, self.run.config["task"]["name"])
        for point in points(curve, metric, cell)[self.sent :]:
            self.wandb.log(point)
            self.sent += 1

    def _end(self, record: Record | None, error: BaseException | None) -> None:
        failed = isinstance(error, Exception)
        status = "failed" if failed else "interrupted"
        summary: dict[str, object] = {
            "status": status,
            "error": hide_paths(describe(error)) if error and failed else "",
        }
        if record:
            status, summary = record["status"], summary_of(record)
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
            # the next run of this process reads the environment again
            sys.modules["wandb"].teardown()
        # all of it is in the folder, which `wandb sync` finds by this name
        if offline or not finished:
            name = folder.name.removeprefix("offline-")
            folder.rename(self.log.with_name(f"offline-{name}"))

    def _upload(self, record: Record) -> None:
        """Uploads the kept adapters with the head, as an artifact; nothing where no
        adapter is kept."""
        folder = run_folder(record["config"]["output"], self.run_id)
        adapters = sorted(folder.glob("adapter*.safetensors"))
        if not adapters:
            return
        cell = record["cell"]
        parts = [str(cell[key]) for key in ("row", "model", "task", "seed")]
        name = re.sub(r"[^\w.-]", "_", "-".join(parts))
        about: dict[str, Any] = {}
        for key in ("metric", "best", "best_epoch", "last"):
            about[key] = record["result"].get(key)
        about["run_id"] = self.run_id
        about["cell"] = cell
        about["parameters"] = record["parameters"]
        about["keep"] = record["config"]["keep"]
        about["method"] = record["config"]["method"]
        about |= provenance_of(record)
        artifact = sys.modules["wandb"].Artifact(
            name[:LONGEST_NAME], "model", metadata=about
        )
        for path in [*adapters, *folder.glob("head.safetensors")]:
            # without copies
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.wandb.log_artifact(artifact, aliases=["latest", self.run_id])


def log_file(output: str) -> Path:
    """The file with what went wrong with W&B, a line each."""
    return Path(output, "wandb", "tracking.log")


def quiet_settings(**settings: Any) -> Any:
    """wandb.Settings of a run that sends our data and nothing else: no code, no
    console, no paths."""
    import wandb

    quiet: dict[str, Any] = {
        f"disable_{key}": True for key in ("code", "git", "job_creation")
    }
    quiet |= {f"x_disable_{key}": True for key in ("machine_info", "meta", "stats")}
    quiet |= {"silent": True, "console": "off", "finish_timeout_raises": True}
    quiet |= {"save_code": False, "symlink": False, "x_save_requirements": False}
    return wandb.Settings(**quiet | settings)
