"""The modules that nearly every run imports. The server that runs are forked from (runs/fork_server.py)
imports them once.

This takes seconds, and multiprocessing's server checks only afterwards whether its parent still lives. So the
first thing is to tie the server to the process that started it, and the runs to the server.

gc.freeze keeps a run's garbage collector from walking through all this, and so from copying its pages."""

import gc
import importlib
import os
import warnings

from runs import NO_BARS, PARENT, SEVERAL
from runs.fork_server import end_with, tie_forks

if PARENT in os.environ:
    end_with(int(os.environ[PARENT]))
    tie_forks()

gc.disable()  # what is imported stays: looking through it for garbage is a fifth of the time
for name in NO_BARS:  # a run's output is a log, whatever the server's own is
    os.environ.setdefault(name, "1")

PRELOADED: tuple[str, ...] = (
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "runs.training.result",
    "runs.training.train",
)
if SEVERAL in os.environ:  # a run by itself imports it as it evaluates, after its first step
    PRELOADED = (*PRELOADED, "tasks.metrics")
with warnings.catch_warnings():  # the server's output is still the screen
    warnings.simplefilter("ignore")
    for name in PRELOADED:
        importlib.import_module(name)

# Runs are this code, whatever is committed or installed while the sweep lasts
provenance = importlib.import_module("runs.provenance")
provenance.code_state()
provenance.versions()
gc.freeze()
gc.enable()
