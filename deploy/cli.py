"""The `perception` command."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import tempfile
import traceback
from collections import defaultdict
from importlib.metadata import requires
from typing import Any

# OpenBLAS would wake its threads even to invert a 4 x 4 matrix, and they would spin for 20 ms.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Importing these modules adds their commands to the application; --help lists them in this order.
from deploy.commands import predict  # noqa: F401

# isort: split
from perception.commands import learn, modules  # noqa: F401
from perception.commands.common import app
from perception.errors import InputError, install_hint

# isort: split
from deploy.commands import bundles, config, drives, live  # noqa: F401


class _Pipe(io.FileIO):
    """Standard output that nobody may read to its end, as before `| head`; it changes no exit code."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return len(data)


def _smallest_extra(package: str) -> str:
    """Extra with the fewest requirements among those that install a package."""
    extras = defaultdict[str, set[str]](set)
    for requirement in requires("tessera-perception") or ():
        if found := re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)", requirement):
            extras[found[2]].add(found[1])
    return min((name for name in extras if package in extras[name]), key=lambda name: len(extras[name]), default="all")


def main() -> None:
    """Run the command.

    An InputError or a missing package becomes one line on stderr and exit code 2; 1 is a failed verdict. A defect of
    this program becomes one line and exit code 70 (EX_SOFTWARE of sysexits.h); the traceback goes to a file.
    """
    out = sys.__stdout__
    if out is not None and out is sys.stdout:
        pipe = io.BufferedWriter(_Pipe(out.fileno(), "w", closefd=False))
        # Names of files keep their bytes; what a locale such as C has no character for becomes a question mark.
        errors = "surrogateescape" if codecs.lookup(out.encoding).name == "utf-8" else "replace"
        sys.stdout = io.TextIOWrapper(pipe, out.encoding, errors, line_buffering=True)
    try:
        app()
    except InputError as error:
        from perception.io.stores import with_addresses

        print(f"perception: {with_addresses(str(error))}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:  # on the vehicle: no torch, no devkit
        package = (error.name or str(error)).split(".")[0]
        print(
            f"perception: this command needs {package}, which is not installed here; "
            f"{install_hint(_smallest_extra(package))}",
            file=sys.stderr,
        )
        sys.exit(2)
    except OSError as error:  # a full disk, a folder without permission
        print(f"perception: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        with tempfile.NamedTemporaryFile(
            "w", prefix="perception-", suffix=".log", delete=False, errors="replace"
        ) as file:
            traceback.print_exc(file=file)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print(
            f"perception: {text}; this is a defect of the program, please report it with {file.name}", file=sys.stderr
        )
        sys.exit(70)


if __name__ == "__main__":
    main()
