"""The repository on the hub that has the weights of a model. An adapter that is published
names it as its base model."""

from dataclasses import dataclass

from runs.models.wheels import package_names
from runs.record.configuration import ModelConfig
from runs.record.ledger import in_conf


@dataclass(frozen=True)
class Origin:
    """A model's repository on the hub.

    Attributes:
        name: OWNER/NAME.
        revision: the commit that has the same weights; None where it is not known.
        licence: as the hub abbreviates it.
        note: how the weights here differ from the hub's, in words.
    """

    name: str
    revision: str | None = None
    licence: str | None = None
    note: str = ""


def find_origin(
    model: ModelConfig, content: str, user_choice: str | None = None
) -> Origin | None:
    """The repository on the hub of a record's model.

    Args:
        model: its configuration.
        content: what the record says of the model's content (its key `model`): a hash,
            or OWNER/NAME@COMMIT.
        user_choice: OWNER/NAME or OWNER/NAME@REVISION, in place of what the record
            says.

    Returns:
        None where the record does not name one: for a local folder of any model.
    """
    origins = in_conf("origins.yaml")
    licences = origins["licences"]
    if user_choice:
        name, _, revision = user_choice.partition("@")
        return Origin(name, revision or None, licences.get(name))
    packages = package_names(model)
    if packages:  # of several, which hold parts of one model, the first has the entry
        known_origin = origins["packages"].get(packages[0])
        if known_origin is None:
            return None
        return Origin(licence=licences.get(known_origin["name"]), **known_origin)
    name = model["hub"] or ""
    if not name:
        return None
    repository, _, commit = content.partition("@")
    if model["path"] or repository != name:
        note = (
            "the adapter was trained over a local copy of the weights, whose commit is "
            "not known"
        )
        return Origin(name, licence=licences.get(name), note=note)
    return Origin(name, commit or None, licences.get(name))


def hub_name(model: ModelConfig) -> str:
    """OWNER/NAME of a model whose source is the hub."""
    # runs/config/schema.py refuses a model without any source
    assert model["hub"]
    return model["hub"]
