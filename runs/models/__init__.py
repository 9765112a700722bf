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
from runs.models.load import (
    DTYPES,
    check_memory,
    dtype_of,
    load,
    memory_of_weights,
    skeleton,
)
from runs.models.origin import Origin, hub_name, origin
from runs.models.wheels import content_hash, model_files, packages
