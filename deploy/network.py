"""A network to use from Python: a trained run or an exported bundle, by one interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploy.manifest import MANIFEST
from deploy.networks import find_network, shipped_networks
from deploy.recordings.drives import Drive
from deploy.recordings.drives import open_drives as open_recorded
from deploy.runtime import Runtime
from perception.datasets.arrays import frame_of
from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame, Prediction
from perception.rig import load_rig
from perception.sensors.inputs import InputSpec
from perception.tasks.task import Task
from perception.taxonomy import Taxonomy


class _Predictor(Protocol):
    def __call__(self, frame: Frame) -> Prediction: ...

    def follow(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Prediction]]: ...


@dataclass(frozen=True)
class Network:
    """A network that predicts frames; `load` opens it.

    Attributes:
        tasks: name -> task, whose result `Result.prediction` holds.
        spec: what it reads of a frame, and the rig that it was trained for.
        facts: what it is, in words, for pages.
    """

    path: Path
    tasks: Mapping[str, Task[Any]]
    spec: InputSpec
    taxonomy: Taxonomy
    facts: Mapping[str, str]
    _predictor: _Predictor = field(repr=False)

    def predict(self, frame: Frame) -> Result:
        """Perceive a single frame, by the conditions of its tags and without a memory of others.

        Raises:
            InputError: an output of the network is not finite.
        """
        return Result.of(frame, self._predictor(frame), self)

    def follow(self, drive: Drive | Iterable[Frame]) -> Iterator[tuple[Frame, Result]]:
        """Perceive the frames of a drive in order of time; a network with a memory remembers those before."""
        frames = drive if isinstance(drive, Iterable) else drive.frames()
        for frame, prediction in self._predictor.follow(frames):
            yield frame, Result.of(frame, prediction, self)

    def frame(
        self,
        points: np.ndarray | Mapping[str, np.ndarray] | None = None,
        images: Mapping[str, np.ndarray] | None = None,
        pose: np.ndarray | None = None,
        timestamp: int = 0,
        conditions: Mapping[str, str] | None = None,
        name: str = "frame",
    ) -> Frame:
        """A frame of the network's rig, from arrays.

        Args:
            points: (N, >=4) x y z (m) in the frame of the rig's first LiDAR and intensity (0-1 or 0-255), or such an
                array by the name of each LiDAR; None: no LiDAR.
            images: camera -> (H, W, 3) uint8 RGB, as recorded or reduced in size; cameras may be missing.
            pose: (4, 4) global_from_ego; None: unknown, so that the frame has no place.
            timestamp: us.
            conditions: kind -> value, such as weather -> rain; those that are unknown are left out.
            name: of the frame, for pages and messages.

        Raises:
            InputError: an array has another shape, or a sensor is none of the rig's.
        """
        given = {} if points is None else points
        named = given if isinstance(given, Mapping) else {self.spec.rig.lidars[0].name: given}
        known = Conditions(**(conditions or {}))
        try:
            return frame_of(self.spec.rig, self.spec.grid.reference, named, images or {}, pose, timestamp, known, name)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None


@dataclass(frozen=True)
class Result:
    """Output of a network for one frame.

    Attributes:
        timestamp, global_from_reference: None where the frame says neither when nor where it was recorded.
        prediction: the result of each task, in the frame's reference.
    """

    token: str
    scene: str
    timestamp: int | None  # us
    global_from_reference: np.ndarray | None  # (4, 4)
    prediction: Prediction = field(repr=False)
    network: Network = field(repr=False)

    @staticmethod
    def of(frame: Frame, prediction: Prediction, network: Network) -> Result:
        time, place = (frame.timestamp, frame.global_from_reference) if frame.placed else (None, None)
        return Result(frame.token, frame.scene, time, place, prediction, network)

    @property
    def boxes(self) -> Boxes:
        """The detections of all tasks that reach the thresholds of their configurations, in the frame's reference."""
        found = (task.published(result) for task, result in self._results())
        return Boxes.joined(Boxes.none(), *found)

    @property
    def recognised(self) -> dict[str, dict[str, float]]:
        """Kind of condition -> value -> its probability, of the kinds that a task recognises."""
        values = self.network.taxonomy.conditions
        return {
            kind: dict(zip(values[kind], map(float, probabilities), strict=True))
            for task, result in self._results()
            for kind, probabilities in task.evidence(result).items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The detections and recognised conditions as JSON; docs/predict.md names the units."""
        boxes, names = self.boxes, self.network.taxonomy.class_names
        pose = self.global_from_reference
        rows = zip(
            boxes.labels.tolist(),
            boxes.scores.tolist(),
            boxes.centers.tolist(),
            boxes.sizes[:, [1, 0, 2]].tolist(),
            boxes.yaws.tolist(),
            boxes.velocities[:, :2].tolist(),
            strict=True,
        )
        return {
            "token": self.token,
            "scene": self.scene,
            "timestamp": self.timestamp,
            "global_from_reference": None if pose is None else pose.tolist(),
            "detections": [
                {
                    "class": names[label],
                    "score": score,
                    "center": center,
                    "size": size,
                    "yaw": yaw,
                    "velocity": [None if np.isnan(each) else each for each in velocity],
                }
                for label, score, center, size, yaw, velocity in rows
            ],
            "conditions": self.recognised,
        }

    def _results(self) -> Iterator[tuple[Task[Any], Any]]:
        results = self.prediction.results
        return ((task, results[name]) for name, task in self.network.tasks.items() if name in results)


def load(network: str | Path, target: str = "cpu", rig: str | Path | None = None) -> Network:
    """Open a network: a run, one of its checkpoints, an exported bundle, or the name of one that comes along.

    Args:
        target: whose engine runs a bundle; `perception build` compiles others than cpu.
        rig: name or YAML file of another vehicle's sensors, for a run.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    path = find_network(network)
    if not path.exists():
        shipped = ", ".join(shipped_networks())
        raise InputError(f"{network}: is neither a run, nor a bundle, nor a network that comes along: {shipped}")
    if (path / MANIFEST).exists():
        if rig is not None:
            raise InputError(f"{path}: a bundle is for one rig; give a run, or leave out {rig}")
        runtime = Runtime(path, target)
        manifest, spec = runtime.bundle.manifest, runtime.bundle.spec
        return Network(path, manifest.heads, spec, manifest.taxonomy, manifest.facts(target), runtime)
    if target != "cpu":
        raise InputError(f"{path}: {target} is the target of a bundle; export one first")
    from perception.predict import TorchPredictor

    predictor = TorchPredictor.load(path, None if rig is None else load_rig(rig))
    facts = {
        "network": predictor.model.config.name,
        "sensors": " + ".join(predictor.spec.configs),
        "engine": str(predictor.device),
        "precision": "fp32",
        "parameters": f"{sum(each.numel() for each in predictor.model.parameters()):,}",
    }
    return Network(path, predictor.model.tasks, predictor.spec, predictor.taxonomy, facts, predictor)


def open_drives(
    data: str | Path,
    network: Network,
    scenes: Sequence[str] = (),
    version: str | None = None,
    topics: str | Path | None = None,
) -> Sequence[Drive]:
    """Open recorded drives for a network: a data set, a recording (.mcap, .db3, rosbag2), or single files.

    Args:
        scenes: names of a data set's scenes, or keyframes such as `scene-0103:0-4`; empty: all.
        version: of nuScenes' tables; None: the only one.
        topics: YAML file that maps the topics of a recording to the rig's sensors.
    """
    topics_file = None if topics is None else Path(topics)
    return open_recorded(Path(data), version, scenes, network.spec, topics_file, network.taxonomy)
