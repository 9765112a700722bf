"""Many runs: what is checked before the first one, who does them, and how each is settled.

sweep.py is a command's whole way. jobs.py says which run is which, and settles one; preflight.py checks.
executor.py does runs, each attempt in a process of its own (attempt.py). launchers.py starts executors
elsewhere, and supervise.py watches them. leases.py keeps two of them from doing the same run; progress.py is
what a run that has begun keeps in its folder; devices.py says who has which device; redo.py sets aside what
is done again; display.py is what is seen of all that. Nothing is imported here: a plan reads leases and
progress alone.
"""
