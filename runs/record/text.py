"""Numbers and errors in words, for people."""

import re


def duration(seconds: float) -> str:
    """Seconds in words: 12s, 5m40s, 31.2h."""
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}m{rest:02d}s"
    return f"{seconds / 3600:.1f}h"


def megabytes(size: float) -> str:
    """Bytes in words: 34 KB, 86 MB, 5.2 GB (powers of 1000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            return f"{size / scale:.{1 if size < 10 * scale else 0}f} {unit}"
    return f"{size:.0f} B"


def plural(count: int, word: str) -> str:
    """A count and its word: 1 run, 2 runs."""
    return f"{count} {word}{'s' * (count != 1)}"


def one_line(text: str) -> str:
    """The text with each stretch of white space (line breaks, tabs, ...) as one space: it cannot leave its
    line."""
    return re.sub(r"\s+", " ", text)


def describe(error: BaseException) -> str:
    """One line for an error; a full disk says what to do."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        kept = (
            ". Finished runs are kept; make room and run the same command again"
            if error.errno in (28, 122)
            else ""
        )
        return f"{where}{error.strerror}{kept}"
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
