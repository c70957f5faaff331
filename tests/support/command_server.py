"""Runs the command line of `perception`, each command in a process of its own, with imports made once for them all.

A line of JSON on standard input is a command: its arguments, working folder, environment and the files for its output.
The answer, a line on standard output, is its exit code and its processor time in seconds. The commands import what they
need as they always do; here it is there already, which takes 4 s of processor time off each.
"""

import importlib
import json
import os
import sys
import traceback
from functools import cache

USED = (
    "deploy.build",
    "deploy.export",
    "deploy.replay.run",
    "deploy.runtime",
    "nuscenes.eval.detection.evaluate",
    "perception.evaluation.evaluate",
    "perception.simulate.simulate",
    "perception.training.loop",
)


@cache
def prepare_exporter() -> None:
    """Let torch's exporter import what it imports only once it exports."""
    import torch

    torch.onnx.export(torch.nn.ReLU().eval(), (torch.zeros(1),), dynamo=True, verbose=False)


def run(arguments: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str) -> tuple[int, float]:
    """Exit code and processor time of `perception` with these arguments."""
    if arguments[:1] == ["export"]:
        prepare_exporter()
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


if __name__ == "__main__":
    import deploy.cli

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else goes between the answers
    for module in USED:
        importlib.import_module(module)
    for line in sys.stdin:
        print(*run(**json.loads(line)), file=answers, flush=True)
