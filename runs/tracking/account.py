"""Weights & Biases' settings on this machine, as wandb itself reads them, without the network.

Importing wandb takes a second, so a command that does runs leaves this to the tracker's process.
"""

import os
import urllib.error
import urllib.request
from typing import Any

PROJECT = "vera-bench"


def project() -> str:
    """The project of W&B that runs are sent to."""
    return os.environ.get("WANDB_PROJECT") or PROJECT


def cell_key(model: str, task: str) -> str:
    """The prefix of the names of a cell's numbers. A panel of a workspace selects by name, not by run."""
    return f"cells/{model}/{task}"


def quiet_settings(**more: Any) -> Any:
    """wandb.Settings of a run that sends our data and nothing else: no code, no console, no paths."""
    import wandb

    quiet: dict[str, Any] = {
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "save_code": False,
        "silent": True,
        "symlink": False,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }
    return wandb.Settings(**quiet | more)


def mode_here() -> str:
    """off, offline or online, by WANDB_MODE or `wandb offline`. Online only where a user is logged in.

    Raises an error of wandb or pydantic for settings that wandb cannot use.
    """
    import wandb

    mode = str(wandb.setup().settings.mode)
    if mode == "disabled":
        return "off"
    return "online" if mode not in ("offline", "dryrun") and logged_in() else "offline"


def base_url() -> str:
    """The address of W&B's server."""
    import wandb

    return str(wandb.setup().settings.base_url).rstrip("/")


def logged_in() -> bool:
    """Whether wandb finds a key for its server. In offline mode wandb looks for none."""
    import wandb

    return wandb.login(prompt=False, verify=False)


def check_account() -> None:
    """Raises ValueError, in one line, where nobody is logged in or the server does not answer.

    Sets wandb quiet and online for the rest of this process.
    """
    os.environ |= {"WANDB_MODE": "online", "WANDB_SILENT": "true"}
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or wandb reports its crashes to another server
    if not logged_in():
        raise ValueError(f"not logged in to {base_url()}. Run `wandb login`, or set WANDB_API_KEY")
    if why := unreachable():
        raise ValueError(f"{base_url()} cannot be reached ({why})")


def unreachable() -> str:
    """Why the server does not answer; empty where it does. wandb itself would retry for many minutes."""
    try:
        urllib.request.urlopen(base_url(), timeout=10).close()
    except urllib.error.HTTPError as error:  # an answer, such as "not found"
        return f"it answers {error.code}" if error.code >= 500 else ""
    except urllib.error.URLError as error:
        return getattr(error.reason, "strerror", None) or str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return ""
