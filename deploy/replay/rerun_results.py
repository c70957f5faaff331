"""The results of a replay as a recording that opens in Rerun's viewer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deploy.replay.pictures import BOX_COLOURS, LOWEST_SCORE, jpeg, map_colours
from perception.atomic import atomic_file
from perception.errors import InputError
from perception.frame import CLASSES, Boxes, Frame
from perception.rotations import quaternions
from perception.scene.scene import SceneFrame

try:
    import rerun
except ImportError:
    raise InputError("rerun-sdk is not installed here: pip install 'tessera-perception[viewer]'") from None

_COLOURS = np.array([[*bytes.fromhex(colour[1:])] for colour in BOX_COLOURS], np.uint8)


class RerunWriter:
    """Writes results.rrd.

    world/tracks                       objects that are followed, with their ids
    world/vehicle                      the frame of reference: points, detections, annotations
    world/vehicle/CAM_*                pictures, where the cameras were
    map                                fused over the drive, seen from above
    conditions, route, health          what is believed, what runs, how the sensors are, and why
    """

    def __init__(self, recording: rerun.RecordingStream) -> None:
        self._recording = recording

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[RerunWriter]:
        """A writer of the file `path`, which appears whole when the block ends."""
        recording = rerun.RecordingStream("tessera")
        with atomic_file(path, "the recording") as file:
            recording.save(file.name)
            recording.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
            try:
                yield cls(recording)
            finally:
                recording.flush()
                recording.disconnect()

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """The next frame, with what was perceived in it."""
        log = self._recording.log
        self._recording.set_time("time", timestamp=frame.timestamp * 1e-6)
        log("world/vehicle", _transform(frame.global_from_reference))
        detections, tracks = seen.prediction.results["detection"], seen.states["detection"]
        tracks = tracks.select(tracks.confirmed)
        sure = detections.scores >= LOWEST_SCORE
        log("world/vehicle/detections", _boxes(detections.select(sure), [f"{s:.2f}" for s in detections.scores[sure]]))
        sure = tracks.boxes.scores >= LOWEST_SCORE
        log("world/tracks", _boxes(tracks.boxes.select(sure), [str(track) for track in tracks.ids[sure]]))
        if frame.boxes is not None:
            truth = frame.boxes.select(frame.boxes.num_points != 0)
            log("world/vehicle/annotations", _boxes(truth, [""] * len(truth)))
        points = np.zeros((0, 3)) if frame.points is None else frame.points[:, :3]
        log("world/vehicle/points", rerun.Points3D(points))
        reference_from_global = np.linalg.inv(frame.global_from_reference)
        for name, camera in frame.cameras.items():
            height, width = camera.image.shape[:2]
            pose = reference_from_global @ camera.global_from_ego @ camera.ego_from_camera
            log(f"world/vehicle/{name}", _transform(pose))
            log(f"world/vehicle/{name}", rerun.Pinhole(image_from_camera=camera.intrinsics, resolution=[width, height]))
            log(f"world/vehicle/{name}", rerun.EncodedImage(contents=jpeg(camera.image), media_type="image/jpeg"))
        if "map" in seen.states:
            log("map", rerun.Image(map_colours(seen.states["map"])[::-1]))
        for topic, lines in _words(seen).items():
            log(topic, rerun.TextDocument("\n".join(lines)))


def _words(seen: SceneFrame) -> dict[str, list[str]]:
    return {
        "conditions": [f"{kind}: {belief.value or 'unknown'} ({belief.why})" for kind, belief in seen.beliefs.items()],
        "route": [f"{name}: {routed.weight:g} ({routed.why})" for name, routed in seen.route.items()],
        "health": [f"{name}: {health.words} {health.reasons}" for name, health in seen.health.items()],
    }


def _boxes(boxes: Boxes, texts: list[str]) -> rerun.Boxes3D:
    return rerun.Boxes3D(
        centers=boxes.centers,
        sizes=boxes.sizes[:, [1, 0, 2]],  # along the heading, across it, up
        quaternions=quaternions(boxes.rotations)[:, [1, 2, 3, 0]],  # x y z w
        labels=[f"{CLASSES[label]} {text}" for label, text in zip(boxes.labels, texts, strict=True)],
        colors=_COLOURS[boxes.labels],
    )


def _transform(parent_from_child: np.ndarray) -> rerun.Transform3D:
    return rerun.Transform3D(translation=parent_from_child[:3, 3], mat3x3=parent_from_child[:3, :3])
