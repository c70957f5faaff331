"""The error for bad usage and bad input."""


class InputError(Exception):
    """Bad usage or bad input. Its message is one line: what is wrong, where, and what to do.

    The command line prints the message and exits with code 2; existing files do not change.
    """
