"""The one exception that means: the input was wrong, not the program."""

from collections.abc import Sequence


class UserError(ValueError):
    """Bad input or settings. The message is one line: the value given, the values allowed, the override that mends it.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def few(rows: Sequence[int]) -> str:
    """The first of some row numbers, for a message: `3, 7, 8, ...`."""
    return ", ".join(map(str, rows[:8])) + ", ..." * (len(rows) > 8)
