"""A record of the journal: what was perceived in a frame, and what was written of it. numpy only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load, save

from deploy.replay.fingerprint import FrameHashes
from deploy.replay.undecoded import DrawingData, SensorSizes
from perception.frame import Prediction
from perception.scene.health.monitor import SensorHealth
from perception.scene.scene import SceneFrame
from perception.tasks import TASKS
from perception.tasks.task import part_of, prefixed

MonitorState = tuple[dict[str, Any], dict[str, np.ndarray]]  # of HealthMonitor


class Written(NamedTuple):
    """What was made of a frame's sensor data besides the prediction.

    Attributes:
        statistics: of `StatisticsWriter.add`.
        shown: of `Report.add`, as JSON.
        drawing: the same, of sensor data.
        monitor: state of the health monitor after the frame.
    """

    statistics: dict[str, Any]
    shown: dict[str, Any]
    drawing: DrawingData | None
    monitor: MonitorState


@dataclass(frozen=True)
class Recorded:
    """What was perceived in a frame before the replay was killed, and written of it.

    `sizes`, `statistics` and `shown` are None of a frame of which nothing was written.
    """

    token: str
    hashes: FrameHashes
    prediction: Prediction
    weights: Mapping[str, float]  # of the modules that the route switches
    seconds: Mapping[str, float]  # of each stage
    health: Mapping[str, SensorHealth]  # by sensor
    sizes: SensorSizes | None
    statistics: dict[str, Any] | None
    shown: dict[str, Any] | None

    @staticmethod
    def load(record: bytes) -> Recorded:
        """The inverse of `packed`."""
        arrays = load(record)
        known = json.loads(arrays.pop("known").tobytes())
        sizes = known["sizes"]
        return Recorded(
            token=known["token"],
            hashes=FrameHashes(*known["hashes"]),
            prediction=unpack(arrays, known["prediction"]),
            weights=known["weights"],
            seconds=known["seconds"],
            health={name: SensorHealth.of(each) for name, each in known["health"].items()},
            sizes=sizes and SensorSizes(arrays.get("sweeps"), arrays.get("lidars"), sizes["cameras"]),
            statistics=known["statistics"],
            shown=known["shown"],
        )


def packed(seen: SceneFrame, hashes: FrameHashes, sizes: SensorSizes | None, written: Written | None) -> bytes:
    """A record without executable content."""
    arrays, prediction = pack(seen.prediction)
    if sizes is not None:
        both = {"sweeps": sizes.sweeps, "lidars": sizes.lidars}
        arrays |= {name: each for name, each in both.items() if each is not None}
    known = {
        "token": seen.token,
        "hashes": hashes,
        "weights": {name: routed.weight for name, routed in seen.route.items()},
        "prediction": prediction,
        "seconds": dict(seen.seconds),
        "health": {name: asdict(each) for name, each in seen.health.items()},
        "sizes": sizes and {"cameras": sizes.cameras},
        "statistics": written and written.statistics,
        "shown": written and written.shown,
    }
    return save(arrays | {"known": _json(known)})


def packed_monitor(number: int, state: MonitorState) -> bytes:
    """The state of the health monitor after so many frames."""
    known, arrays = state
    return save(arrays | {"known": _json([number, known])})


def unpacked_monitor(record: bytes) -> tuple[int, MonitorState]:
    """The inverse of `packed_monitor`."""
    arrays = load(record)
    number, known = json.loads(arrays.pop("known").tobytes())
    return number, (known, arrays)


def packed_drawing(drawing: DrawingData) -> bytes:
    """Without executable content, as all records."""
    points = {} if drawing.points is None else {"points": drawing.points}
    return save(points | prefixed("pictures", {name: _bytes(each) for name, each in drawing.pictures.items()}))


def unpacked_drawing(record: bytes) -> DrawingData:
    """The inverse of `packed_drawing`."""
    arrays = load(record)
    pictures = {name: each.tobytes() for name, each in part_of("pictures", arrays).items()}
    return DrawingData(arrays.get("points"), pictures)


def pack(prediction: Prediction) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a prediction, and its other content as JSON values."""
    arrays: dict[str, np.ndarray] = {}
    for name, result in prediction.results.items():
        arrays |= prefixed(name, TASKS[name].pack(result))
    return arrays, {"tasks": list(prediction.results), "not_finite": prediction.not_finite}


def unpack(arrays: Mapping[str, np.ndarray], rest: Mapping[str, Any]) -> Prediction:
    """The inverse of `pack`."""
    results = {name: TASKS[name].unpack(part_of(name, arrays)) for name in rest["tasks"]}
    return Prediction(results, rest["not_finite"])


def _json(value: Any) -> np.ndarray:
    return _bytes(json.dumps(value).encode())


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
