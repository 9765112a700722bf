"""What the runs of a plan would cost: from finished runs, or forecast before the first one. It runs nothing
and does not import torch.

rows.py: how many rows of data a run has, and their lengths. flops.py: what it takes to compute them. pace.py:
how fast this machine is, as measured by runs/probe.py. outline.py: all of these for one run. cost.py: the sum
in words.
"""

from runs.forecast.cost import Left, estimate, unknown
