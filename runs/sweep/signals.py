"""The signals by which schedulers and users ask a command to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

#: Slurm sends SIGUSR1 or SIGUSR2 before the end of a job's time.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def handling(handler: Any, signals: Sequence[int] = STOPPING) -> Iterator[dict[int, Any]]:
    """Sets the handler of signals for a block, and yields the previous handlers. It does nothing outside the
    main thread: Python allows handlers there alone."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in signals} if main else {}
    try:
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
