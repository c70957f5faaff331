"""The error for bad usage and bad input."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar

_LONGEST = 2000  # characters of a message


class InputError(Exception):
    """Bad usage or bad input. Its message is one line: what is wrong, where, and what to do.

    The command line prints the message and exits with code 2; existing files do not change.
    """

    def __init__(self, line: str) -> None:
        # What a file has where a number is expected may be of any length; what to do is at the end.
        middle = f" ... ({len(line)} characters) ... "
        super().__init__(line if len(line) <= _LONGEST else line[: _LONGEST // 2] + middle + line[-_LONGEST // 4 :])


def suggestion(word: str, known: Iterable[str]) -> str:
    """The known name that is most like a mistyped one, as the end of a message; "" if none is."""
    from difflib import get_close_matches

    nearest = get_close_matches(word, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def install_hint(extra: str) -> str:
    """Say how to install an extra of this package. Until a release is published, pip installs it from a clone."""
    return f"run `pip install '.[{extra}]'` in a clone of the repository"


# Gets a line for each damaged sensor file, which then counts as missing; None: a damaged file is an error.
DAMAGE: ContextVar[Callable[[str], object] | None] = ContextVar("DAMAGE", default=None)


def report_damage(line: str) -> Exception:
    """The error to raise for a damaged sensor file: FileNotFoundError if `DAMAGE` gets the line, else InputError."""
    count = DAMAGE.get()
    if count is None:
        return InputError(line)
    count(line)
    return FileNotFoundError(line)
