"""What tests run in processes of its own: predictors that can be killed, and trainings as torchrun starts them.

Apart from the tests, so that the processes import little. Trainings are forks of one that has imported everything,
which takes 5 s of processor time, and compute in float64. Sums in another order differ in the last digit; AdamW divides
a gradient by its own size, so in float32 what is rounding of a gradient near zero becomes a step of the learning rate's
size. float64 keeps it far below 1e-6.
"""

import multiprocessing
import os
import signal
import sys
from functools import cache, partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import numpy as np

from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.predictions import Predictor
from perception.frame import Frame, Prediction
from perception.grid import BevGrid
from perception.rig import load_rig
from perception.sensors.inputs import InputSpec

SPEC = InputSpec(BevGrid(), {}, load_rig("nuscenes"))
IMPORTED = (
    *("deploy.cli", "perception.training.loop", "perception.training.adapt", "perception.datasets.sources"),
    *("perception.evaluation.evaluate", "torch.distributed.launcher.api"),
)


def mortal(folder: Path, fatal: str, deaths: int, frame: Frame) -> Prediction:
    """The time of a frame; at the fatal one the process is killed, this many times, or refuses it (-1)."""
    if frame.token == fatal and len(list(folder.glob("death-*"))) < deaths:
        (folder / f"death-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if frame.token == fatal and deaths == -1:
        raise InputError(f"{fatal}: cannot be predicted")
    return Prediction({"time": np.array(frame.timestamp)})


def open_predictor(root: Path, fatal: str, deaths: int) -> tuple[Predictor, InputSpec, Keyframes]:
    return partial(mortal, root, fatal, deaths), SPEC, NuScenesTables(root, "v1.0-tiny")


def _train(arguments: list[str]) -> None:
    """The command with these arguments."""
    import torch

    import deploy.cli
    from perception.training.loader import Batch

    def double(values: torch.Tensor) -> torch.Tensor:
        return values.double() if values.is_floating_point() else values

    torch.set_default_dtype(torch.float64)
    moved = Batch.to
    Batch.to = lambda batch, device: moved(batch, device)._change(double)
    sys.argv = ["perception", *arguments]
    deploy.cli.main()


def _launch(count: int, output: Path, arguments: list[str]) -> None:
    """The command in one process; or in several, which torchrun's agent supervises."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
    if count == 1:
        _train(arguments)
        return
    alone = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(**alone, nproc_per_node=count, start_method="fork", monitor_interval=0.1)
    elastic_launch(config, _train)(arguments)


@cache
def _context() -> ForkServerContext:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED])
    return context


def training(count: int, output: Path, *arguments: object) -> ForkServerProcess:
    """A training in one process; or the launcher of several, its children."""
    given = count, output, [str(each) for each in arguments]
    process: ForkServerProcess = _context().Process(target=_launch, args=given)
    process.start()
    return process


def train(count: int, output: Path, *arguments: object) -> None:
    """Run a training in this many processes."""
    process = training(count, output, *arguments)
    process.join()
    assert process.exitcode == 0, output.read_text()
