"""What nearly every run imports, for the server that runs are forked from (runs/sweep/attempt.py) to import
once.

That takes long, and multiprocessing's server looks only afterwards whether anybody still needs it. So first
of all it is tied to the process that started it, and the runs to it.

It freezes what is there, too: a run's garbage collector need not walk through it, nor take a copy of the
pages it lies on."""

import gc
import importlib
import os
import warnings

from runs import NO_BARS
from tasks.parent import PARENT, end_with, tie_forks

if PARENT in os.environ:
    end_with(int(os.environ[PARENT]))
    tie_forks()

for name in NO_BARS:  # a run's output is a log, whatever the server's own is
    os.environ.setdefault(name, "1")

PRELOADED = (
    "sklearn.metrics",  # by the metrics themselves, which evaluate loads by path
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "runs.training.train",
    "tasks.metrics",
)
with warnings.catch_warnings():  # the server's output is still the screen
    warnings.simplefilter("ignore")
    for name in PRELOADED:
        importlib.import_module(name)

gc.collect()
gc.freeze()
