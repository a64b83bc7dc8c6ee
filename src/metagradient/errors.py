"""The one exception that means: the input was wrong, not the program."""


class UserError(ValueError):
    """Bad input or settings. The message is one line: the value given, the values allowed, the override that mends it.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
