"""Numbers and errors as text."""

import errno
import re

#: The operating system's errors for a full disk and a full quota.
FULL = (errno.ENOSPC, errno.EDQUOT)


def duration(seconds: float) -> str:
    """Seconds as text: 12s, 5m40s, 31.2h."""
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}m{rest:02d}s"
    return f"{seconds / 3600:.1f}h"


def megabytes(size: float | None) -> str:
    """Bytes as text: 34 KB, 86 MB, 5.2 GB (powers of 1000); "-" where they are not known."""
    if size is None:
        return "-"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            return f"{size / scale:.{1 if size < 10 * scale else 0}f} {unit}"
    return f"{size:.0f} B"


def plural(count: int, word: str) -> str:
    """A count and its word: 1 run, 2 runs."""
    return f"{count} {word}{'s' * (count != 1)}"


def one_line(text: str) -> str:
    """The text on one line: line breaks, tabs and repeated spaces become one space."""
    return re.sub(r"\s+", " ", text)


def describe(error: BaseException) -> str:
    """An error in one line; for a full disk, with what to do."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in FULL
        advice = ". Finished runs are kept; make room and run the same command again" if full else ""
        return f"{where}{error.strerror}{advice}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
