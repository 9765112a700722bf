"""The types of what runs/models reads of a configuration."""

from typing import Any, Literal, NotRequired, TypedDict

#: Settings of a transformers configuration (config.json), by their names.
TransformersSettings = dict[str, Any]


class ModelSettings(TypedDict):
    """The part `model` of a run's configuration, as runs/record/keys.py declares it.

    Keys that came later are missing in older records."""

    name: str
    label: str
    modality: str
    hub: str | None
    revision: str | None
    path: str | None
    package: str | None
    wheel: NotRequired[str | list[str] | None]
    sha256: str | None
    architecture: TransformersSettings | None
    settings: NotRequired[TransformersSettings | None]
    quantise: NotRequired[str | None]
    dtype: NotRequired[Literal["fp32", "bf16", "fp16"]]
    chat: NotRequired[dict[str, Any] | None]


def hub_name(model: ModelSettings) -> str:
    """OWNER/NAME of a model that has no other source: runs/config/schema.py refuses one
    without any."""
    assert model["hub"]
    return model["hub"]
