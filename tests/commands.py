"""The `perception` command as a user types it, without importing everything anew for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SERVER = Path(__file__).with_name("command_server.py")


@cache
def _server() -> subprocess.Popen[str]:
    """One for this process; it ends with it, as its standard input does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def perception(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `perception` with these arguments; what it printed, and its exit code."""
    server = _server()
    given = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "stdout", Path(folder) / "stderr"
        command = {
            "arguments": given,
            "folder": str(cwd or Path.cwd()),
            "environment": os.environ | {"OMP_NUM_THREADS": "1"},
            "stdout": str(out),
            "stderr": str(err),
        }
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(command), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(given, code, out.read_text(), err.read_text())
