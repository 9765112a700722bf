"""Whether and how the runs of a command are sent to W&B: the settings of tracking=, the
question before an upload, and the runs of an agent of W&B."""

import contextlib
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from runs.command.errors import process_rank
from runs.run.definition import Run, starts

PROJECT = "vera-bench"
#: Environment variables that `wandb agent` sets for a command.
AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


@dataclass
class Tracking:
    """mode: online, offline or off. None: offline, unless the user says yes to
    `ask_before_upload`. stats: with W&B's statistics of the system. adapter: the
    adapter that is kept becomes an artifact. agent: whether `wandb agent` started the
    command for this run (`of_run` sets it)."""

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
        f" To send these runs later: WANDB_DIR={output} wandb sync --yes",
        file=sys.stderr,
    )
    return replace(settings, mode="offline")


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


def of_run(settings: Tracking, run: Run, runs: list[Run]) -> Tracking:
    """The settings for one of a command's runs: an agent's is the only one that no
    other run starts from."""
    last = [entry for entry in runs if entry not in starts(runs)]
    return replace(settings, agent=AGENT[0] in os.environ and last == [run])


def agent_note(runs: list[Run]) -> str | None:
    """A line for an agent's command with too many runs to be attached to its sweep."""
    sweep = os.environ.get(AGENT[0])
    if not sweep or any(of_run(Tracking(), run, runs).agent for run in runs):
        return None
    return (
        f"note: this command has {len(runs)} runs, so that W&B attaches none of them to "
        f"the sweep {sweep}"
    )
