"""The one kind of error that vera raises for a user's mistake."""

import re

#: The most characters of a message.
LONGEST = 480


class AdapterError(ValueError):
    """Something about the request or the adapter file is wrong. The message is one
    line: what, where, how to mend."""

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST:
            # Names inside a file may have any length. How to mend it stands at the end.
            beginning = message[:300]
            ending = message[305 - LONGEST :]
            message = f"{beginning} ... {ending}"
        super().__init__(re.sub(r"\s*[\r\n]+\s*", " ", message))


def first_line(error: BaseException) -> str:
    """Another library's message in one line; the name of its class where it says
    nothing."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return re.sub(r"\s+", " ", lines[0])
