"""Numbers and errors as text."""

import errno
import re
import unicodedata
from typing import Any

#: The operating system's errors for a full disk and a full quota.
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)
#: Unicode's categories of characters that a terminal or a browser obeys and does not
#: show: controls, formats (such as the direction of writing), separators of lines and
#: paragraphs, halves of other characters, private ones.
HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co"})
#: The most characters of an error's line, with room for what a command puts before it.
LONGEST_LINE = 480
#: How much of the beginning of a longer line is shown.
LENGTH_OF_BEGINNING = 300
#: How an error names a command that the user can copy.
COMMAND_TO_TYPE = ": vera-bench "


def duration(seconds: float) -> str:
    """Seconds as text: 12s, 5m40s, 31.2h."""
    if seconds < 59.5:
        return f"{seconds:.0f}s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}m{rest:02d}s"
    return f"{seconds / 3600:.1f}h"


def megabytes(size: float | None) -> str:
    """Bytes as text: 34 KB, 86 MB, 5.2 GB (powers of 1000); "-" where they are not
    known."""
    if size is None:
        return "-"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= scale:
            decimals = 1 if size < 10 * scale else 0
            return f"{size / scale:.{decimals}f} {unit}"
    return f"{size:.0f} B"


def rounded(count: float) -> str:
    """A large count in few digits: 310, 9.1k, 42k, 310k, 1.4M, 1,213M."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        # 999.6 is rounded to 1.0k, not to 1000, and 9,960 to 10k, not to 10.0k
        if count >= 0.9995 * scale:
            decimals = 1 if count < 9.95 * scale else 0
            return f"{count / scale:,.{decimals}f}{unit}"
    return f"{count:.0f}"


def plural(count: int, word: str) -> str:
    """A count and its word: 1 run, 2 runs."""
    return f"{count} {word}{'s' * (count != 1)}"


def one_line(text: str) -> str:
    """The text on one line: line breaks, tabs and repeated spaces become one space."""
    return re.sub(r"\s+", " ", text)


def folded(text: str, width: int, separator: str = ", ") -> list[str]:
    """A list of names broken into lines of at most this width, between two names. A
    longer name has a line of its own.

    text: the names, with the separator between them."""
    first, *names = text.split(separator)
    lines = [first]
    for name in names:
        longer = f"{lines[-1]}{separator}{name}"
        # a separator may have to follow on the same line
        if len(longer) + len(separator) > width:
            lines[-1] += separator.rstrip()
            lines.append(name)
        else:
            lines[-1] = longer
    return lines


def is_hidden(character: str) -> bool:
    """Whether a character is of HIDDEN_CATEGORIES. Tab and line feed are not hidden."""
    return (
        character not in "\t\n" and unicodedata.category(character) in HIDDEN_CATEGORIES
    )


def printable(value: Any) -> Any:
    """A text, or a JSON value with all its texts and keys, with hidden characters as
    Python writes them: \\x1b, \\u202e."""
    if isinstance(value, str):
        return value if value.isprintable() else _escaped(value)
    if isinstance(value, dict):
        return {printable(key): printable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [printable(part) for part in value]
    return value


def _escaped(text: str) -> str:
    """The text with hidden characters as Python writes them."""
    return "".join(
        ascii(character)[1:-1] if is_hidden(character) else character
        for character in text
    )


def error_line(text: str) -> str:
    """An error as a command prints it: one line of printable characters. A long one is
    cut in the middle, since it begins with the file and ends with how to fix it. One
    that names a command to type stays whole."""
    line: str = printable(one_line(text))
    if len(line) <= LONGEST_LINE or COMMAND_TO_TYPE in line:
        return line
    gap = " ... "
    length_of_end = LONGEST_LINE - LENGTH_OF_BEGINNING - len(gap)
    return line[:LENGTH_OF_BEGINNING] + gap + line[-length_of_end:]


def describe(error: BaseException) -> str:
    """An error in one line, as `error_line`; for a full disk, with what to do."""
    if isinstance(error, OSError) and error.strerror:
        text = str(error.strerror)
        if error.filename:
            text = f"{error.filename}: {text}"
        if error.errno in FULL_DISK_ERRORS:
            text += ". Finished runs are kept; make room and run the same command again"
        return error_line(text)
    return error_line(first_line(error))


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if that is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def count_problem(formula: int, trained: int) -> str:
    """What a note says of a method whose count() gives another number (`formula`) than
    that of the parameters that train (`trained`, without the head)."""
    problem = "is something not frozen?"
    if trained < formula:
        problem = "is something frozen that should train?"
    return f"the method's count() gives {formula:,}, but {trained:,} train: {problem}"
