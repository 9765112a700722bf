"""What the runs of a plan will take: rows and their lengths (data.py), steps, tokens and
FLOPs of one run (work.py), time and disk space of those that are left (pace.py)."""
