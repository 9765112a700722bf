"""The one kind of error that vera raises for a user's mistake."""

import re


class AdapterError(ValueError):
    """Something about the request or the adapter file is wrong. The message is one line: what, where, how to mend."""

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"\s*[\r\n]+\s*", " ", message))  # names inside a file may hold anything
