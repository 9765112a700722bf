"""`wandb agent`: a sweep of W&B starts commands of this project, and chooses the id of each command's run."""

import os
from collections.abc import Sequence

from runs.run import Run

#: Environment variables that the agent sets for a command. wandb reads them once in a process.
SWEEP, RUN_ID, PARAMETERS = "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"


def take_environment() -> dict[str, str]:
    """Removes the agent's variables from the environment, since only one run may have them. Returns them, or
    nothing where an agent has not set them."""
    taken = {key: os.environ.pop(key, "") for key in (SWEEP, RUN_ID, PARAMETERS)}
    return taken if taken[SWEEP] and taken[RUN_ID] else {}


def agents_run(runs: Sequence[Run]) -> Run | None:
    """The run that an agent started this command for: the only one that no other run starts from."""
    if not (os.environ.get(SWEEP) and os.environ.get(RUN_ID)):
        return None
    last = [run for run in runs if all(other.start != run for other in runs)]
    return last[0] if len(last) == 1 else None


def agent_note(runs: Sequence[Run]) -> str | None:
    """A line for an agent's command with too many runs to be attached to its sweep."""
    sweep = os.environ.get(SWEEP)
    if not sweep or not os.environ.get(RUN_ID) or agents_run(runs):
        return None
    return (
        f"note: wandb agent starts one run at a time, and this command has {len(runs)}: W&B has them as they"
        f" are, and none is attached to the sweep {sweep}"
    )
