"""Weights & Biases, told of each run by a process of its own: whatever happens there never hurts a run.

tracker.py is the command's side, server.py the process, payload.py what is sent; account.py says how W&B is
set up here, agent.py what a command of `wandb agent` does; sync.py uploads what was written offline. Nothing
here imports torch or Hydra: analysis/ reads this package, too.

W&B is a view; the records are what counts. A run of W&B has the run's id, its cell as group, its row, model,
task, kind of method and preset as tags, the status as one more at the end, and exit code 1 where it failed or
diverged (a failed run would look finished otherwise). Its points lie over `epoch`, and W&B's own step counts
lines: a run that goes on, or is repeated, may tell an epoch twice or late, and W&B drops what comes at a step
that it has passed.
"""

from runs.tracking.account import cell_key, check_account, project, quiet_settings
from runs.tracking.agent import agent_note
from runs.tracking.settings import Tracking
from runs.tracking.tracker import Tracker

__all__ = [
    "Tracker",
    "Tracking",
    "agent_note",
    "cell_key",
    "check_account",
    "project",
    "quiet_settings",
]
