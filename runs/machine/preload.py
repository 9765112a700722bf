"""What nearly every run imports: once, in the server that runs are forked from
(runs/machine/processes.py)."""

import gc
import importlib
import os
import warnings

from runs import BAR_SWITCHES, SEVERAL_RUNS

# what is imported stays: looking through it for garbage is a fifth of the time
gc.disable()
for name in BAR_SWITCHES:  # a run's output is a log, whatever the server's own is
    os.environ.setdefault(name, "1")
# the server's output is still the screen
with warnings.catch_warnings(action="ignore"):
    for name in (
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.bert.modeling_bert",
        "runs.training.result",
        "runs.training.train",
        # A run by itself imports them as it evaluates and ends
        *["tasks.metrics", "tasks.pictures"] * (SEVERAL_RUNS in os.environ),
    ):
        importlib.import_module(name)

# Runs are this code, whatever is committed or installed while the sweep lasts
provenance = importlib.import_module("runs.run.provenance")
provenance.code_state()
provenance.versions()
# a run's collector does not walk through all this, and so copies no pages of it
gc.freeze()
gc.enable()
