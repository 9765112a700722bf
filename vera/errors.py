"""The one kind of error that vera raises for a user's mistake."""

import re

#: The most characters of a message.
LONGEST = 480


class AdapterError(ValueError):
    """Something about the request or the adapter file is wrong. The message is one
    line: what, where, how to mend."""

    def __init__(self, message: str) -> None:
        # Names inside a file may hold anything, and be of any length; the mend stands
        # at the end
        line = (
            message
            if len(message) <= LONGEST
            else f"{message[:300]} ... {message[305 - LONGEST :]}"
        )
        super().__init__(re.sub(r"\s*[\r\n]+\s*", " ", line))


def first_line(error: BaseException) -> str:
    """Another library's message in one line; the name of its class where it says
    nothing."""
    line = (str(error).strip().splitlines() or [""])[0]
    return re.sub(r"\s+", " ", line) or type(error).__name__
