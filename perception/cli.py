"""The `perception` command."""

from __future__ import annotations

import sys

from perception.commands import learn, modules, vehicle  # noqa: F401 - they add their commands to the application
from perception.commands.common import app
from perception.errors import InputError


def main() -> None:
    """Run the command; an InputError becomes one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"perception: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder without permission
        print(f"perception: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
