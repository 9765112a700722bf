"""This machine: its GPUs (gpus.py), locks (locks.py), hashes of files (hashes.py), and
the process that runs are forked from (fork_server.py, preload.py)."""
