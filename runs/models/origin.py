"""Where a model's weights come from, as others can name it: the base model of an adapter that travels."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from runs.models.wheels import packages
from runs.record import CONF


@dataclass(frozen=True)
class Origin:
    """A model's repository on the hub. revision: the commit that has the same weights; None where that is not
    known. licence: as the hub abbreviates it. note: how the weights here differ from the hub's, in words."""

    name: str
    revision: str | None = None
    licence: str | None = None
    note: str = ""


@cache
def known_origins() -> dict[str, Any]:
    """What conf/origins.yaml says of models in packages and of licences."""
    return dict(yaml.safe_load((CONF / "origins.yaml").read_text(encoding="utf-8")))


def origin(model: Mapping[str, Any], content: str, named: str | None = None) -> Origin | None:
    """A record's model on the hub; None where the record does not tell: a local folder of any model.

    model: its configuration. content: the record's hash of it, or OWNER/NAME@COMMIT. named: OWNER/NAME or
    OWNER/NAME@REVISION, which replaces what the record tells."""
    known = known_origins()
    found: dict[str, Any] | None = {"name": model["hub"]} if model.get("hub") else None
    if named:
        name, _, revision = named.partition("@")
        found = {"name": name, "revision": revision or None}
    elif names := packages(model):
        found = known["packages"].get(names.partition(",")[0])
    elif found and (model.get("path") or content.partition("@")[0] != model["hub"]):
        found["note"] = "the adapter was trained over a local copy of the weights, whose commit is not known"
    elif found:
        found["revision"] = content.partition("@")[2] or None
    return Origin(licence=known["licences"].get(found["name"]), **found) if found else None
