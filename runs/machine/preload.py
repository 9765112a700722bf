"""The fork server runs this module once (runs/machine/processes.py): it imports what
nearly every run needs, so that the runs that are forked from it have it."""

import gc
import importlib
import os
import warnings

from runs import BAR_SWITCHES, SEVERAL_RUNS

# what is imported stays, and searching it for garbage takes a fifth of the time
gc.disable()
# the output of a run is a log, also where this server's output is a terminal
for variable in BAR_SWITCHES:
    os.environ.setdefault(variable, "1")
modules = [
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "runs.training.result",
    "runs.training.train",
]
# a single run imports these when it evaluates, after its first step
if SEVERAL_RUNS in os.environ:
    modules += ["tasks.metrics", "tasks.pictures"]
# this server's warnings would appear on the screen
with warnings.catch_warnings(action="ignore"):
    for module in modules:
        importlib.import_module(module)

# runs have this code, whatever is committed or installed while the sweep lasts
provenance = importlib.import_module("runs.run.provenance")
provenance.code_state()
provenance.versions()
# a run's garbage collector skips all this, and so copies no memory pages of it
gc.freeze()
gc.enable()
