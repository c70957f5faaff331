"""The one error that a user can cause and mend."""


class InputError(Exception):
    """Bad usage or bad input. Its message is a single line: what is wrong, where, and what to do.

    The command line prints that line and exits with code 2; nothing that existed before is lost.
    """
