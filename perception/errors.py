"""The error for bad usage and bad input."""

from collections.abc import Callable
from contextvars import ContextVar


class InputError(Exception):
    """Bad usage or bad input. Its message is one line: what is wrong, where, and what to do.

    The command line prints the message and exits with code 2; existing files do not change.
    """


# What counts the damaged files of sensors, by a line for each, where they are as missing ones; None: they are errors.
DAMAGE: ContextVar[Callable[[str], object] | None] = ContextVar("DAMAGE", default=None)


def damaged(line: str) -> Exception:
    """The error of a damaged file of a sensor, which the line describes."""
    count = DAMAGE.get()
    if count is None:
        return InputError(line)
    count(line)
    return FileNotFoundError(line)
