"""All launchers, by the names of their files in conf/launcher."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from runs.command.advice import describe_mistake, require_known
from runs.launchers.contract import Launcher, Local, Serial
from runs.launchers.ray_tasks import Ray
from runs.launchers.slurm import Slurm

LAUNCHERS: dict[str, type[Launcher]] = {
    "serial": Serial,
    "local": Local,
    "slurm": Slurm,
    "ray": Ray,
}


def launcher_of(settings: Launcher | Mapping[str, Any]) -> Launcher:
    """The launcher with these settings, `name` among them. Raises UserError for a name
    that no launcher has, and ValueError for a setting that it does not take."""
    if isinstance(settings, Launcher):
        return settings
    name = require_known("launcher", str(settings["name"]), LAUNCHERS)
    try:
        return LAUNCHERS[name].model_validate(settings)
    except ValidationError as error:
        text = describe_mistake(error, parent_key="launcher")
        if text.startswith("no key"):
            text += f" of launcher={name}"
        raise ValueError(text) from None
