"""The `perception` command as a user types it, without importing everything anew for each; and refusals of one line.

As a program, this file is the server: it imports once what commands need, and runs each in a process of its own. A line
of JSON on standard input is a command: its arguments, working folder, environment and the files for its output. The
answer, a line on standard output, is its exit code and its processor time in seconds.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from repository import ROOT

from perception.errors import InputError

spent = SimpleNamespace(seconds=0.0)  # processor time of all commands
USED = (
    *("deploy.cli", "deploy.build", "deploy.export", "deploy.replay.run", "deploy.runtime"),
    *("perception.evaluation.evaluate", "perception.simulate.simulate", "perception.training.loop"),
    "nuscenes.eval.detection.evaluate",
)


@cache
def _server() -> subprocess.Popen[str]:
    """One for this process; it ends with it, as its standard input does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def perception(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `perception` with these arguments; what it printed, and its exit code."""
    server = _server()
    given = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "stdout", Path(folder) / "stderr"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = {"arguments": given, "folder": str(cwd or Path.cwd()), "environment": environment}
        print(json.dumps(command | {"stdout": str(out), "stderr": str(err)}), file=server.stdin, flush=True)
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


def score_and_replay(bundle: Path, drives: Path, out: Path) -> list[dict[str, Any]]:
    """Metrics and tracks of the first simulated scene, from `evaluate` and `replay`."""
    scene = ("--scenes", "scene-0001", "--out")
    succeeds("evaluate", bundle, "--data", drives, "--split", "all", *scene, out / "scores")
    succeeds("replay", drives, "--bundle", bundle, *scene, out / "replay")
    return [json.loads((out / file).read_text()) for file in ("scores/metrics.json", "replay/tracks.json")]


def _run(arguments: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str) -> tuple[int, float]:
    """Exit code and processor time of `perception` with these arguments."""
    import deploy.cli

    if arguments[:1] == ["export"]:
        _prepare_exporter()
    child = os.fork()
    if child:
        _, status, used = os.wait4(child, 0)
        return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
    code = 1
    try:
        for path, stream in ((os.devnull, 0), (stdout, 1), (stderr, 2)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["perception", *arguments]
        deploy.cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@cache
def _prepare_exporter() -> None:
    """Let torch's exporter import what it imports only once it exports."""
    import torch

    torch.onnx.export(torch.nn.ReLU().eval(), (torch.zeros(1),), dynamo=True, verbose=False)


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


def command(*arguments: object) -> None:
    """`perception` with these arguments in this process, whose tasks it knows; its exit code is 0."""
    from deploy.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["perception", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
    assert done.value.code in (0, None)


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Python as on a vehicle, where nothing of the workshop is installed."""
    from check_repository import ABSENT

    blocked = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
    return subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False, cwd=ROOT)


def without_ci(home: Path) -> dict[str, str]:
    """An environment in which ONNX Runtime reports what it runs unless that is forbidden; it stores that in `home`."""
    left = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    return left | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else goes between the answers
    for module in USED:
        importlib.import_module(module)
    for line in sys.stdin:
        print(*_run(**json.loads(line)), file=answers, flush=True)
