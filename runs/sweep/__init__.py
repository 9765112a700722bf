"""Many runs. sweep.py is a whole command; pool.py does runs on this machine, each in a
process of its own; launch.py has Slurm and Ray do them; display.py shows all that.

Nothing is imported here: a plan needs progress alone."""
