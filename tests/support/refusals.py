"""What a user reads when something is refused."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from perception.errors import InputError


@contextmanager
def one_line_error(pattern: str | None = None, at: object = "", says: str = "", exactly: str = "") -> Iterator[None]:
    """An InputError of one line that matches the pattern, begins with `at` and has the words `says` in it."""
    with pytest.raises(InputError, match=pattern) as error:
        yield
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(str(at))
    assert says in line
    assert exactly in ("", line)
