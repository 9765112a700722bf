"""Many runs. sweep.py is a whole command, and preflight.py the checks before its first
run; pool.py does runs on this machine, each in a process of its own; worker.py is what
a launcher's workers do; display.py shows all that, with the time that is left.

Nothing is imported here: a plan needs progress alone."""
