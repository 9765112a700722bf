"""Many runs: the checks before the first one, what does them, and the end of each.

sweep.py is a whole command. jobs.py: the runs of a command, and how each ends. preflight.py: the
checks. attempt.py is one run in a process of its own, claim.py the lock that keeps two processes off it.
launch.py: what starts those processes, here, on Slurm and on Ray. devices.py keeps two commands off the same
device, display.py shows all that. Nothing is imported here: a plan needs locks and progress alone.
"""
