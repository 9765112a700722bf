"""What memory.py puts around a run, from outside: Python imports this file at its
start.

A process that is forked from the one that has torch already, which is what does a run,
gets only so much memory: of a GPU by torch's own limit, else of its address space."""

import os
import sys

ROOM = int(os.environ.get("GPU_CHECK_ROOM", "0"))  # bytes


def limit() -> None:
    torch = sys.modules.get("torch")
    if torch is None or not ROOM:
        return
    if os.environ["GPU_CHECK_DEVICE"] == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(ROOM / total, 1.0))
        return
    import resource

    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


os.register_at_fork(after_in_child=limit)
