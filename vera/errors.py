"""The one kind of error that vera raises for a user's mistake."""

import re

#: The most characters of a message. A longer one loses its middle.
MAX_MESSAGE_LENGTH = 480
BEGINNING_LENGTH = 300


class AdapterError(ValueError):
    """Something about the request or the adapter file is wrong. The message is one
    line: what, where, how to mend."""

    def __init__(self, message: str) -> None:
        if len(message) > MAX_MESSAGE_LENGTH:
            # Names inside a file may have any length. How to mend it stands at the end.
            beginning = message[:BEGINNING_LENGTH] + " ... "
            ending_length = MAX_MESSAGE_LENGTH - len(beginning)
            message = beginning + message[-ending_length:]
        super().__init__(re.sub(r"\s*[\r\n]+\s*", " ", message))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, which may be another library's; the name of
    the error's class where the message is empty."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return re.sub(r"\s+", " ", lines[0])
