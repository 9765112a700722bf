"""This machine: its GPUs (gpus.py), locks (locks.py), hashes of files (hashes.py), and
other processes with the one that runs are forked from (processes.py, preload.py)."""
