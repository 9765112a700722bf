"""`wandb agent`: a sweep of W&B starts commands of this project, and names the one run of each."""

import os
from collections.abc import Sequence

from runs.tracking.payload import Run

#: What the agent sets in the environment of a command, and wandb reads once in a process's life.
SWEEP, RUN_ID, PARAMETERS = "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"


def take_environment() -> dict[str, str]:
    """Takes the agent's variables out of the environment: only one run may have them."""
    taken = {key: os.environ.pop(key, "") for key in (SWEEP, RUN_ID, PARAMETERS)}
    return taken if taken[SWEEP] and taken[RUN_ID] else {}


def agents_run(runs: Sequence[Run]) -> Run | None:
    """The run that an agent has started this command for: the only one that no other starts from."""
    if not (os.environ.get(SWEEP) and os.environ.get(RUN_ID)):
        return None
    asked = [run for run in runs if all(other.start != run for other in runs)]
    return asked[0] if len(asked) == 1 else None


def agent_note(runs: Sequence[Run]) -> str | None:
    """A line for a command of an agent whose runs cannot be attached to its sweep."""
    sweep = os.environ.get(SWEEP)
    if not sweep or not os.environ.get(RUN_ID) or agents_run(runs):
        return None
    return (
        f"note: wandb agent starts one run at a time, and this command has {len(runs)}: W&B has them as they"
        f" are, and none is attached to the sweep {sweep}"
    )
