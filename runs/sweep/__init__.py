"""Many runs: the checks before the first one, the executors that do them, and the end of each.

sweep.py is a whole command. jobs.py: the runs of a command, and how each is settled. preflight.py: the
checks. executor.py does runs, each attempt in a process of its own (attempt.py), and can be asked to stop
(signals.py). launchers.py starts executors elsewhere, and supervise.py watches them. leases.py keeps two
executors from doing the same run, devices.py two commands from using the same device. progress.py: the files
of a run that has begun. redo.py sets aside what redo=true replaces. display.py shows all that. Nothing is
imported here: a plan needs leases and progress alone.
"""
