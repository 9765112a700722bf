"""Many runs. sweep.py is a whole command; pool.py does runs on this machine, launch.py has Slurm and Ray do
them; attempt.py is one run in a process of its own; display.py shows all that.

Nothing is imported here: a plan needs progress alone."""
