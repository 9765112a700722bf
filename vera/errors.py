"""The one kind of error that vera raises for a user's mistake."""


class AdapterError(ValueError):
    """Something about the request or the adapter file is wrong. The message is one line: what, where, how to mend."""
