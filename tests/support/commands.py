"""The `perception` command as a user types it, without importing everything anew for each."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

spent = SimpleNamespace(seconds=0.0)  # processor time of all commands
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
        print(json.dumps(command), file=server.stdin, flush=True)
        code, seconds = server.stdout.readline().split()
        spent.seconds += float(seconds)
        return subprocess.CompletedProcess(given, int(code), out.read_text(), err.read_text())


def succeeds(*arguments: object) -> str:
    """What the command prints; its exit code is 0."""
    done = perception(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refuses(*arguments: object) -> str:
    """The one line that the command prints of a mistake; its exit code is 2."""
    done = perception(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    return done.stderr


def scored_and_replayed(bundle: Path, drives: Path, out: Path) -> list[dict[str, Any]]:
    """Metrics and tracks of the first simulated scene, from `evaluate` and `replay`."""
    scene = ("--scenes", "scene-0001", "--out")
    succeeds("evaluate", bundle, "--data", drives, "--split", "all", *scene, out / "scores")
    succeeds("replay", drives, "--bundle", bundle, *scene, out / "replay")
    return [json.loads((out / file).read_text()) for file in ("scores/metrics.json", "replay/tracks.json")]
