"""Pretrained backbones from the hub, a local folder, an installed package, or wheels.

torch and transformers are imported in functions: a plan, which only asks where a model is,
does not need them."""

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
from runs.models.origin import Origin, find_origin, hub_name
from runs.models.wheels import content_hash, model_files, package_names
