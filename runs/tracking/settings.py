"""A command's settings for W&B."""

from dataclasses import dataclass


@dataclass
class Tracking:
    """mode: online, offline or off. None: as W&B is set up on this machine, and offline where nobody is
    logged in.

    stats: W&B's system statistics of the run's process: CPU, memory, disk, network, GPU.
    adapter: the kept adapter of a finished run is uploaded as an artifact.
    """

    mode: str | None = None
    stats: bool = False
    adapter: bool = False
