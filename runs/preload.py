"""What nearly every run imports, for the server that runs are forked from (runs/executor.py) to import once.

It freezes what is there, too: a run's garbage collector need not walk through it, nor take a copy of the pages it lies on.
"""

import gc

import sklearn.metrics  # noqa: F401 - by the metrics themselves, which evaluate loads by path
import transformers.modeling_utils
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto
import transformers.models.bert.modeling_bert  # noqa: F401

import runs.train  # noqa: F401
import tasks.metrics  # noqa: F401

gc.collect()
gc.freeze()
