"""A predictor whose processes can be killed; apart from the tests, so that the processes import little."""

import os
import signal
from functools import partial
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

SPEC = InputSpec(BevGrid(), None, None, load_rig("nuscenes"))


def mortal(folder: Path, fatal: str, deaths: int, frame: Frame) -> Prediction:
    """The time of a frame; at the fatal one the process is killed, this many times, or refuses it (-1)."""
    if frame.token == fatal and len(list(folder.glob("death-*"))) < deaths:
        (folder / f"death-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if frame.token == fatal and deaths == -1:
        raise InputError(f"{fatal}: cannot be predicted")
    return Prediction({"time": np.array(frame.timestamp)})


def opened(root: Path, fatal: str, deaths: int) -> tuple[Predictor, InputSpec, Keyframes]:
    return partial(mortal, root, fatal, deaths), SPEC, NuScenesTables(root, "v1.0-tiny")
