"""Weights & Biases as it is set up on this machine, told without importing wandb (half a second) and without
the network.

analysis/ reads this, too.
"""

import configparser
import contextlib
import netrc
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

PROJECT = "vera-bench"


def project() -> str:
    """The project that runs go to."""
    return os.environ.get("WANDB_PROJECT") or PROJECT


def cell_key(model: str, task: str) -> str:
    """What the names of a column's numbers begin with. A panel of a workspace cannot choose runs, only
    names."""
    return f"cells/{model}/{task}"


def wandb_settings() -> dict[str, str]:
    """What `wandb login` and `wandb offline` have set, and the environment over it."""
    # Never raises, as Path.home() may
    folder = os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")
    found: dict[str, str] = {}
    for path in (Path(folder) / "settings", Path("wandb") / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(OSError, ValueError, configparser.Error):
            parser.read(path)
            found |= dict(parser["default"]) if parser.has_section("default") else {}
    named = {
        key: os.environ.get(f"WANDB_{key.upper()}")
        for key in ("mode", "base_url", "api_key", "identity_token_file")
    }
    return found | {key: value for key, value in named.items() if value}


def mode_here() -> str:
    """off, offline or online: WANDB_MODE or `wandb offline` says it; else online if the user is logged in."""
    said = wandb_settings().get("mode", "")
    known = {
        "disabled": "off",
        "offline": "offline",
        "dryrun": "offline",
        "online": "online",
        "run": "online",
    }
    return known.get(said) or ("online" if logged_in() else "offline")


def base_url() -> str:
    """The address of W&B's server."""
    return wandb_settings().get("base_url", "https://api.wandb.ai").rstrip("/")


def logged_in() -> bool:
    """Whether W&B would find a key for its server, without asking it."""
    settings = wandb_settings()
    if settings.get("api_key") or settings.get("identity_token_file"):
        return True
    places = [os.environ.get("NETRC")] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next((found for place in places if os.path.exists(found := os.path.expanduser(place or ""))), None)
    try:
        entry = netrc.netrc(path).authenticators(urlsplit(base_url()).netloc) if path else None
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return bool(entry and entry[2])


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
