"""What the runs of a plan would cost. rows.py: how many rows of data a run has, and how long they are.
cost.py: steps, FLOPs, time and disk. memory.py: what fits on a GPU. None of them imports torch by itself."""
