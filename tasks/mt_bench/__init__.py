"""MT-Bench and Vicuna-bench by FastChat's protocol and file formats: see __main__.py,
the command."""

from tasks.mt_bench.judging import *
from tasks.mt_bench.questions import *
from tasks.mt_bench.scores import *
