"""A pretrained backbone from the hub, a local folder, an installed package, or a wheel: nothing else differs
between them.

torch and transformers are imported where they are used: the plan asks this package where a model lies.
"""

from runs.models.load import load, skeleton
from runs.models.locate import fetch, files, locate
from runs.models.memory import check_memory, free_memory

__all__ = ["check_memory", "fetch", "files", "free_memory", "load", "locate", "skeleton"]
