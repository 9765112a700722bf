"""Weights & Biases, told of each run by a process of its own: whatever happens there never hurts a run.

    python -m runs.tracking sync [output=outputs]      uploads what was written offline (make sync)

W&B is a view; the records are what counts. A run of W&B has the run's id, its cell as group, its row, model,
task, kind of method and preset as tags, the status as one more at the end, and exit code 1 where it failed or
diverged (a failed run would look finished otherwise). Its points lie over `epoch`, and W&B's own step counts
lines: a run that goes on, or is repeated, may tell an epoch twice or late, and W&B drops what comes at a step
that it has passed.
"""

from runs.tracking.account import base_url, cell_key, logged_in, project, unreachable
from runs.tracking.tracker import Tracker

__all__ = ["Tracker", "base_url", "cell_key", "logged_in", "project", "unreachable"]
