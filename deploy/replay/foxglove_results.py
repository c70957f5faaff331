"""The results of a replay as an MCAP file that opens in Foxglove."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.Log_pb2 import Log
from mcap_protobuf.writer import Writer

from deploy.replay import foxglove_messages as messages
from deploy.replay.pictures import LOWEST_SCORE
from perception.atomic import atomic_file
from perception.frame import LIDAR, Frame
from perception.grid import BevGrid
from perception.scene.scene import SceneFrame

MAP, EGO = "map", "base_link"
CHUNK = 4 << 20  # bytes


class FoxgloveWriter:
    """Writes results.mcap.

    /tf                       map, base_link, the LiDAR's frame and the cameras', at the time of the keyframe
    /detections, /tracks      boxes as cubes with class and score, or class and id
    /annotations              the annotated boxes, where there are
    /map                      fused over the drive
    /lidar_top                the keyframe's points
    /cam_*/image, .../camera_info, .../annotations   pictures, calibration, the edges of detections
    /log                      what changed: conditions believed in, modules in force, health of the sensors
    """

    def __init__(self, writer: Writer, map_grid: BevGrid | None) -> None:
        self._writer, self._map_grid = writer, map_grid
        self._said: dict[str, str] = {}  # what /log said last of each subject

    @classmethod
    @contextmanager
    def open(cls, path: Path, map_grid: BevGrid | None) -> Iterator[FoxgloveWriter]:
        """A writer of the file `path`, which appears whole when the block ends.

        Args:
            map_grid: of the network's map; None if it has none.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_file(path, "the recording") as file:
            writer = Writer(file, chunk_size=CHUNK)
            yield cls(writer, map_grid)
            writer.finish()

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        """The next frame, with what was perceived in it."""
        nanoseconds = frame.timestamp * 1000
        for topic, message in (*self._pictures(frame, seen), *self._around(frame, seen), *self._changes(seen)):
            self._writer.write_message(topic, message, nanoseconds, nanoseconds)

    def _around(self, frame: Frame, seen: SceneFrame) -> Iterator[tuple[str, Any]]:
        reference, time = EGO if frame.reference == "ego" else LIDAR, frame.timestamp
        boxes = seen.prediction.results["detection"]
        boxes = boxes.select(boxes.scores >= LOWEST_SCORE)
        texts = [f"{name} {score:.2f}" for name, score in zip(messages.class_names(boxes), boxes.scores, strict=True)]
        ranks = [str(i) for i in range(len(boxes))]
        yield "/detections", messages.scene_update(boxes, ranks, texts, reference, time, 0.35)

        shown = seen.states["detection"]
        shown = shown.select(shown.confirmed & (shown.boxes.scores >= LOWEST_SCORE))
        tracks, ids = shown.boxes, shown.ids.tolist()
        texts = [f"{name} {track}" for name, track in zip(messages.class_names(tracks), ids, strict=True)]
        yield "/tracks", messages.scene_update(tracks, [str(track) for track in ids], texts, MAP, time, 0.35)

        if frame.boxes is not None:
            truth = frame.boxes.select(frame.boxes.num_points != 0)
            names, texts = truth.instances.tolist(), messages.class_names(truth)
            yield "/annotations", messages.scene_update(truth, names, texts, reference, time, 0.15)
        if "map" in seen.states and self._map_grid is not None:
            yield "/map", messages.map_grid(seen.states["map"], self._map_grid, reference, time)
        if frame.points is not None:
            yield f"/{LIDAR.lower()}", messages.point_cloud(frame.points, reference, time)

    def _pictures(self, frame: Frame, seen: SceneFrame) -> Iterator[tuple[str, Any]]:
        """Where everything is at the time of the keyframe, and what the cameras see."""
        ego_from_global = np.linalg.inv(frame.global_from_ego)
        frames = [
            messages.transform(MAP, EGO, frame.global_from_ego, frame.timestamp),
            messages.transform(EGO, LIDAR, ego_from_global @ frame.global_from_reference, frame.timestamp),
        ]
        if frame.reference == "ego":
            frames.pop()
        # A camera stands where it was when it took its picture, so that boxes of the keyframe's time lie on it.
        frames += [
            messages.transform(
                EGO, name, ego_from_global @ camera.global_from_ego @ camera.ego_from_camera, frame.timestamp
            )
            for name, camera in frame.cameras.items()
        ]
        yield "/tf", FrameTransforms(transforms=frames)
        boxes = seen.prediction.results["detection"]
        boxes = boxes.select(boxes.scores >= LOWEST_SCORE)
        for name, camera in frame.cameras.items():
            topic = f"/{name.lower()}"
            yield f"{topic}/image", messages.image(camera, name)
            yield f"{topic}/camera_info", messages.calibration(camera, name)
            projection = frame.image_from_reference(name)
            yield f"{topic}/annotations", messages.image_annotations(boxes, projection, camera)

    def _changes(self, seen: SceneFrame) -> Iterator[tuple[str, Log]]:
        said = {"drive": (seen.scene, "", Log.INFO)}
        for kind, belief in seen.beliefs.items():
            said[kind] = (belief.value or "unknown", belief.why, Log.INFO)
        for module, routed in seen.route.items():
            said[module] = ("in force" if routed.weight > 0 else "off", routed.why, Log.INFO)
        for sensor, health in seen.health.items():
            said[sensor] = (health.words, health.reasons, Log.INFO if health.status == "ok" else Log.WARNING)
        for name, (value, why, level) in said.items():
            if self._said.get(name) != value:
                self._said[name] = value
                text = f"{name}: {value}" + (f" ({why})" if why else "")
                message = Log(level=level, name=name, message=text)
                message.timestamp.FromMicroseconds(seen.timestamp)
                yield "/log", message
