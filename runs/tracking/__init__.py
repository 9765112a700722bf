"""Sends each run to Weights & Biases from a process of its own, where no failure can harm a run.

tracker.py is the command's side, server.py the process, payload.py the data that it sends. account.py: W&B's
settings on this machine. agent.py: commands that `wandb agent` starts. sync.py uploads what was written
offline. Nothing here imports torch or Hydra, since analysis/ reads this package, too.

W&B is a view of the records. A run of W&B has the run's id; its cell as group; its row, model, task, kind of
method, preset and final status as tags; and exit code 1 where it failed or diverged (otherwise W&B shows it
as finished). The x-axis of its points is `epoch`, not W&B's own step: a run that is resumed or repeated may
send an epoch twice or late, and W&B drops points at a step before the last one.
"""

from runs.tracking.account import cell_key, check_account, project, quiet_settings
from runs.tracking.agent import agent_note
from runs.tracking.settings import Tracking
from runs.tracking.tracker import Tracker
