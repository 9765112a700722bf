"""Pretrained backbones from the hub, a local folder, an installed package, or wheels.

torch and transformers are imported in functions, since the plan only asks where a model
lies."""

from runs.models.load import (
    architecture_of,
    check_memory,
    fetch,
    image_side,
    load,
    locate,
    skeleton,
)
from runs.models.wheels import Origin, content, files, origin, packages
