"""The recorded frames that an INT8 graph is calibrated on, and the ranges of activations on them."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import CalibrationDataReader, PercentileCalibrater

from deploy.engine import Engine
from perception.datasets.keyframes import Keyframes
from perception.datasets.sources import open_source
from perception.errors import InputError
from perception.frame import Arrays, Frame
from perception.modules.memories import SPACING
from perception.rig import Rig
from perception.sensors.inputs import InputSpec, prepare
from perception.session import follow, run_with_state
from perception.state import MOTION_INPUTS, Moment
from perception.training.clips import find_clip, frame_period

PERCENTILE = 99.99  # of the values; the others are clipped
_BINS = 2048

Clip = Sequence[Arrays]  # of a frame and, for a network with a memory, of frames before it: the oldest first


def ranges(model: onnx.ModelProto, tensors: Iterable[str], frames: Iterable[Arrays]) -> dict[str, tuple[float, float]]:
    """Measure the range (low, high) of each activation of an FP32 graph, sorted by name; it always contains 0."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # the calibrater prints
        calibrater = _Calibrater(model, sorted(tensors), Path(folder))
        for inputs in frames:  # one at a time, because collect_data keeps all activations of its frames in memory
            calibrater.collect_data(_Reader(inputs))
        found = calibrater.compute_data()
    low_high = {name: (min(0.0, float(each.lowest)), max(0.0, float(each.highest))) for name, each in found.items()}
    return dict(sorted(low_high.items()))


class _Calibrater(PercentileCalibrater):
    def __init__(self, model: onnx.ModelProto, tensors: list[str], folder: Path) -> None:
        self._chosen = tensors
        onnx.save(model, folder / "model.onnx")
        augmented = str(folder / "augmented.onnx")
        super().__init__(folder / "model.onnx", None, augmented, symmetric=False, num_bins=_BINS, percentile=PERCENTILE)
        self.augment_graph()
        self.create_inference_session()

    def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict[str, onnx.ValueInfoProto]]:
        known = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
        return {*self._chosen}, {name: known[name] for name in self._chosen}


class _Reader(CalibrationDataReader):
    def __init__(self, inputs: Arrays) -> None:
        self._left = [dict(inputs)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


MOST = 32  # keyframes
BEFORE = 2  # frames before each, for a network with a memory


@dataclass(frozen=True)
class Drives:
    """Up to `MOST` keyframes of recorded or simulated drives, evenly spread."""

    root: Path
    version: str | None = None  # of a dataroot's tables; None: its only version
    scenes: Sequence[str] = ()  # names, or keyframes such as scene-0103:0-4; empty: all
    rig: Rig | None = None  # of the vehicle; None: nuScenes' car
    topics: Path | None = None  # YAML file that maps the topics of a recording to sensors

    @cached_property
    def source(self) -> Keyframes:
        return open_source(self.root, self.version, self.rig)

    def inputs(self, spec: InputSpec) -> dict[str, Clip]:
        """The network's inputs for each keyframe by token; keyframes without one of its sensors are left out.

        For a network with a memory they are a clip with `BEFORE` earlier frames, without states.
        """
        tokens = self.source.samples(selectors=self.scenes)
        found: dict[str, Clip] = {}
        for i in np.unique(np.linspace(0, len(tokens) - 1, min(MOST, len(tokens))).astype(int)):
            frame = self.source.frame(tokens[i], spec.reads._replace(lidar=True, cameras=True))
            if not all(sensor.sees(frame) for sensor in spec.sensors.values()):
                continue
            clip = [(Moment.of(each), prepare(each, spec)) for each in (*self._before(tokens[i], spec), frame)]
            *before, (inputs, _) = follow(clip, spec.memory)
            found[frame.token] = [*(earlier for earlier, replaces in before if replaces), inputs]
        if not found:
            raise InputError(f"{self.root}: no keyframe of these scenes has all sensors; calibrate on others")
        return found

    def _before(self, token: str, spec: InputSpec) -> list[Frame]:
        """The frames before a keyframe that give a network with a memory its state."""
        if spec.memory is None:
            return []
        moments = self.source.moments(token)
        spacing = max(SPACING[0], frame_period(moments))
        return [self.source.frame(each, spec.reads) for each in find_clip(moments, token, [spacing] * BEFORE)]


def with_state(clip: Clip, engine: Engine) -> Mapping[str, np.ndarray]:
    """The inputs of the last frame of a clip, with the states that the frames before it leave."""
    state, last = engine.new_state(), clip[-1]
    if state is None:
        return {name: array for name, array in last.items() if name not in MOTION_INPUTS}
    for frame in clip[:-1]:
        run_with_state(engine.run, frame, state)
    return {**last, **state.read()}
