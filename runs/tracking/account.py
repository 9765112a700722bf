"""Weights & Biases as it is set up on this machine. wandb itself is asked, without the network.

Its import takes a second: a command that does runs leaves the questions to the tracker's process.
"""

import os
import urllib.error
import urllib.request
from typing import Any

PROJECT = "vera-bench"


def project() -> str:
    """The project that runs go to."""
    return os.environ.get("WANDB_PROJECT") or PROJECT


def cell_key(model: str, task: str) -> str:
    """What the names of a column's numbers begin with. A panel of a workspace cannot choose runs, only
    names."""
    return f"cells/{model}/{task}"


def quiet_settings(**more: Any) -> Any:
    """wandb.Settings of a run that sends what it is given and nothing else: no code, no console, no paths."""
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
    """off, offline or online: what WANDB_MODE or `wandb offline` says; online only for who is logged in.

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
    """Whether wandb finds a key for its server. In offline mode it looks for none."""
    import wandb

    return wandb.login(prompt=False, verify=False)


def check_account() -> None:
    """Raises ValueError, in one line, where nobody is logged in or the server does not answer.

    wandb is quiet and online from here on, whatever the mode of runs is.
    """
    os.environ |= {"WANDB_MODE": "online", "WANDB_SILENT": "true"}
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's own crashes go to another server
    if not logged_in():
        raise ValueError(f"not logged in to {base_url()}. Run `wandb login`, or set WANDB_API_KEY")
    if why := unreachable():
        raise ValueError(f"{base_url()} cannot be reached ({why})")


def unreachable() -> str:
    """Why the server does not answer; empty where it does. wandb itself would try for many minutes."""
    try:
        urllib.request.urlopen(base_url(), timeout=10).close()
    except urllib.error.HTTPError as error:  # an answer, such as "not found"
        return f"it answers {error.code}" if error.code >= 500 else ""
    except urllib.error.URLError as error:
        return getattr(error.reason, "strerror", None) or str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return ""
