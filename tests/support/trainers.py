"""`perception train` and `adapt` in several processes, in float64, as torchrun and `accelerate launch` start them.

Sums in another order differ in the last digit. AdamW divides a gradient by its own size, so in float32 what is
rounding of a gradient near zero becomes a step of the learning rate's size. float64 keeps it far below 1e-6.
All are forks of a process that has imported everything, which takes 5 s of processor time.
"""

import multiprocessing
import os
import sys
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

IMPORTED = (
    *("deploy.cli", "perception.training.loop", "perception.training.adapt", "perception.sources"),
    *("perception.evaluation.evaluate", "torch.distributed.launcher.api"),
)


def _run(arguments: list[str]) -> None:
    """The command with these arguments."""
    import torch

    import deploy.cli
    from perception.training.loader import Batch

    def double(values: torch.Tensor) -> torch.Tensor:
        return values.double() if values.is_floating_point() else values

    torch.set_default_dtype(torch.float64)
    moved = Batch.to
    Batch.to = lambda batch, device: moved(batch, device)._changed(double)
    sys.argv = ["perception", *arguments]
    deploy.cli.main()


def _launch(count: int, output: Path, arguments: list[str]) -> None:
    """The command in one process; or in several, which torchrun's agent supervises."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
    if count == 1:
        _run(arguments)
        return
    alone = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(**alone, nproc_per_node=count, start_method="fork", monitor_interval=0.1)
    elastic_launch(config, _run)(arguments)


@cache
def _context() -> ForkServerContext:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED])
    return context


def started(count: int, output: Path, *arguments: object) -> ForkServerProcess:
    """A training in one process; or the launcher of several, its children."""
    given = count, output, [str(each) for each in arguments]
    process: ForkServerProcess = _context().Process(target=_launch, args=given)
    process.start()
    return process


def succeeds(count: int, output: Path, *arguments: object) -> None:
    """Run a training in this many processes."""
    process = started(count, output, *arguments)
    process.join()
    assert process.exitcode == 0, output.read_text()
