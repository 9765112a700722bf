"""What runs that are left would cost: from finished runs, or else forecast before the first one. No torch,
and nothing is run.

rows.py says how many rows there are and how long they are, flops.py what computing them takes, pace.py how
fast this machine was when it was probed (runs/probe.py); outline.py puts these together for a run, cost.py in
words.
"""

from runs.forecast.cost import Left, estimate, unknown

__all__ = ["Left", "estimate", "unknown"]
