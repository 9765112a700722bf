"""Pretrained backbones from the hub, a local folder, an installed package, or wheels.

torch and transformers are imported in functions, since the plan only asks where a model
lies."""

from runs.models.folder import (
    OtherArchitectureError,
    architecture_of,
    fetch,
    image_side,
    locate,
)
from runs.models.load import DTYPES, load, skeleton
from runs.models.memory import check_memory, dtype_of, memory_of_weights
from runs.models.origin import Origin, hub_name, origin
from runs.models.wheels import content_hash, model_files, packages
