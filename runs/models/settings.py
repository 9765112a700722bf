"""What runs/models reads of a model's configuration."""

from typing import Any

from runs.record.configuration import ModelConfig

#: Settings of a transformers configuration (config.json), by their names.
TransformersSettings = dict[str, Any]


def hub_name(model: ModelConfig) -> str:
    """OWNER/NAME of a model that has no other source: runs/config/schema.py refuses one
    without any."""
    assert model["hub"]
    return model["hub"]
