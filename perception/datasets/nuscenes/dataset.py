"""Keyframes of a dataroot in nuScenes' schema: nuScenes itself, MAN TruckScenes, TIER IV's T4, simulated drives.

Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020. Fent et al., "MAN TruckScenes",
NeurIPS 2024: no logs and no map, clouds as .pcd. T4: tables in annotation/, files in data/
(https://github.com/tier4/tier4_perception_dataset, docs/t4_format_3d_detailed.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from perception.datasets.drives import Drives, read_splits
from perception.datasets.files import stamp
from perception.datasets.keyframes import (
    NO_SENSORS,
    Annotation,
    LidarPaths,
    Picture,
    Reads,
    Recording,
    SweepFile,
    assemble,
)
from perception.datasets.nuscenes.descriptions import phases_of, position_on_map
from perception.datasets.nuscenes.labels import Lidarseg, voxel_truth
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.datasets.nuscenes.recordings import FramesBetween, Recordings, SampleData
from perception.datasets.nuscenes.tables import Annotations, report_links, rows, version_folder
from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame
from perception.geometry import rotation_matrices
from perception.io.stores import readable_files
from perception.rig import Rig, load_rig
from perception.taxonomy import Taxonomy, load_taxonomy

BICYCLE_RACK = "static_object.bicycle_rack"  # category
_OFFICIAL_VERSION = re.compile(r"v\d+\.\d+-(mini|trainval|test)")


class NuScenesTables:
    """The drives in one version of a dataroot; `recordings` are its sensor files with poses and calibrations.

    Args:
        rig: of the vehicle; other sensors of the tables are not read. None: nuScenes' car.
        taxonomy: of the classes, map layers and conditions to read; None: nuScenes' own.
    """

    has_attributes = True

    def __init__(self, dataroot: Path, version: str, rig: Rig | None = None, taxonomy: Taxonomy | None = None) -> None:
        self.dataroot, self.version = Path(dataroot), version
        self.rig, self.taxonomy = rig or load_rig("nuscenes"), taxonomy or load_taxonomy("nuscenes")
        self._folder = version_folder(self.dataroot, version)
        self._opened = [stamp(path) for path in sorted(self._folder.resolve().glob("*.json"))]
        with report_links(self._folder, "scene"):
            scenes = {row["token"]: row for row in rows(self._folder, "scene")}
            self._locations = _locations(self._folder, scenes.values())
            self._phases = {
                row["name"]: phases_of(row["description"], self._locations[row["name"]], self.taxonomy)
                for row in scenes.values()
            }
        with report_links(self._folder, "sample"):
            samples = [
                (row["timestamp"], row["token"], scenes[row["scene_token"]]["name"])
                for row in rows(self._folder, "sample")
            ]
        self._timestamps = {token: timestamp for timestamp, token, _ in samples}
        self._samples: dict[str, list[str]] = {name: [] for name in self._locations}
        for _, token, scene in sorted(samples):
            self._samples[scene].append(token)
        self._drives = Drives(str(self._folder), self._samples, self._splits)
        self.scenes, self.samples = self._drives.scenes, self._drives.samples
        self.recordings, self._lidar_paths = Recordings(self._folder, self.rig), LidarPaths(self)
        self._moments: dict[str, dict[str, int]] = {}  # by scene
        # Token -> the keyframe that it is or that comes next, of keyframes and of the frames in `_moments`.
        self._keyframe_of = {token: token for token in self._timestamps}

    @cached_property
    def _annotations(self) -> Annotations:
        return Annotations.read(self._folder, self._timestamps, self.taxonomy)

    def _splits(self) -> dict[str, list[str]]:
        official = _OFFICIAL_VERSION.fullmatch(self.version)
        return official_splits(self._samples) if official else read_splits(self._folder)

    def scene(self, token: str) -> str:
        return self._drives.scene(self._keyframe(token))

    def _keyframe(self, token: str) -> str:
        """The keyframe that a frame is, or that comes next after it."""
        if token not in self._keyframe_of:  # `moments` named it in another process
            for scene in self._samples:
                self._find_moments(scene)
        if token not in self._keyframe_of:
            raise InputError(f"{self._folder}: no frame {token}")
        return self._keyframe_of[token]

    @cached_property
    def between(self) -> FramesBetween:
        return FramesBetween(self._folder, self.rig)

    def moments(self, token: str) -> Mapping[str, int]:
        """The frames of the drive of a frame, as in `Keyframes`: keyframes, and sweeps with pictures between them.

        Those between whose files are not all there are left out, as where only the keyframes' files were copied.
        """
        return self._find_moments(self.scene(token))

    def _find_moments(self, scene: str) -> dict[str, int]:
        if scene in self._moments:
            return self._moments[scene]
        reference = self.rig.sensors.lidars[0]
        between = {sample: self.between.before(sample) for sample in self._samples[scene]}
        frames = chain.from_iterable(each.values() for each in between.values())
        existing = readable_files(self.dataroot, {row.file for frame in frames for row in frame.values()})
        moments = dict[str, int]()
        for sample, before in between.items():
            for token, frame in before.items():
                if all(row.file in existing for row in frame.values()):
                    moments[token], self._keyframe_of[token] = frame[reference].timestamp, sample
            if reference in (keyframe := self.recordings.get(sample, {})):
                moments[sample] = keyframe[reference].timestamp
        self._moments[scene] = moments
        return moments

    def conditions(self, token: str) -> Conditions:
        scene, timestamps = self.scene(token), self._timestamps
        timestamp = timestamps[token] if token in timestamps else self._moments[scene][token]
        seconds = 1e-6 * (timestamp - timestamps[self._samples[scene][0]])
        phases = self._phases[scene]
        return next((conditions for start, conditions in reversed(phases) if start <= seconds), phases[0][1])

    def _truth(self, token: str, scene: str) -> dict[str, Annotation]:
        """The annotations of a frame; no boxes in a version without annotations, such as v1.0-test.

        Between keyframes only the map is known.
        """
        load_map = partial(MapExpansion.load, self.dataroot, self._locations[scene], self.taxonomy.map_layers)
        if token not in self._timestamps:
            return {"map": Annotation(load_map)}
        return {
            "boxes": Annotation(partial(self._boxes, token)),
            "obstacles": Annotation(partial(self._obstacles, token)),
            "bicycle_racks": Annotation(lambda: self._bicycle_racks.get(token, [])),
            "map": Annotation(load_map),
            "points": Annotation(exists=lambda: bool([*self._class_files(token)])),
            **voxel_truth(self.dataroot, scene, token, self.taxonomy, self._lidar_paths),
        }

    def _boxes(self, token: str) -> Boxes | None:
        return self._select_boxes(token, self._of_classes) if self._of_classes.any() else None

    def _obstacles(self, token: str) -> Boxes | None:
        return self._select_boxes(token, ~self._of_classes) if len(self._of_classes) else None

    @cached_property
    def _of_classes(self) -> np.ndarray:
        """(N,) bool: the annotations of the detection classes."""
        return self._annotations.labels >= 0

    def _select_boxes(self, token: str, chosen: np.ndarray) -> Boxes:
        """The boxes of a keyframe that are among the chosen ones of all annotations, (N,) bool."""
        a = self._annotations
        index = a.rows(token)
        index = index[chosen[index]]
        return Boxes(
            centers=a.centers[index],
            sizes=a.sizes[index],
            rotations=rotation_matrices(a.quaternions[index]),
            velocities=a.velocities[index],
            labels=a.labels[index],
            attributes=a.attributes[index],
            scores=np.ones(len(index)),
            num_points=a.num_points[index],
            instances=a.instance_tokens[a.instances[index]],
        )

    @cached_property
    def _bicycle_racks(self) -> dict[str, list[list[float]]]:
        folder, by_sample = self._folder, dict[str, list[list[float]]]()
        with report_links(folder, "category"):
            categories = {row["token"] for row in rows(folder, "category") if row["name"] == BICYCLE_RACK}
        with report_links(folder, "instance"):
            instances = {row["token"] for row in rows(folder, "instance") if row["category_token"] in categories}
        if instances:  # without any, the largest table is not read
            with report_links(folder, "sample_annotation"):
                for row in rows(folder, "sample_annotation"):
                    if row["instance_token"] in instances:
                        rack = [*row["translation"], *row["size"], *row["rotation"]]
                        by_sample.setdefault(row["sample_token"], []).append(rack)
        return by_sample

    @cached_property
    def _lidarseg(self) -> Lidarseg:
        return Lidarseg.read(self.dataroot, self._folder, self.recordings.sweep_files, self.taxonomy)

    def _class_files(self, token: str) -> Iterator[Path]:
        """Files of the classes of points in the sweeps of a keyframe; none if the taxonomy has no such classes."""
        for sweep in self.recordings.get(token, {}).values() if self.taxonomy.point_classes else ():
            if sweep.file in self._lidarseg.files:
                yield self.dataroot / self._lidarseg.files[sweep.file]

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        sensors, recordings = self.rig.sensors, self.recordings
        if (sample := self._keyframe(token)) == token:
            keyframe: Mapping[str, SampleData] = recordings.get(token, {})
        else:
            recordings, keyframe = self.between.recordings, self.between.before(sample)[token]
        if sensors.lidars[0] not in keyframe:
            raise InputError(f"{self._folder / 'sample_data.json'}: no {sensors.lidars[0]} keyframe of sample {token}")
        reference, scene = self._sweep(recordings, keyframe[sensors.lidars[0]]), self.scene(token)
        lidars = enumerate(sensors.lidars if reads.lidar else ())
        cameras = sensors.cameras if reads.cameras else ()
        return Recording(
            token=token,
            scene=scene,
            timestamp=reference.timestamp,
            global_from_ego=reference.global_from_ego,
            ego_from_lidar=reference.ego_from_lidar,
            lidars={
                i: self._sweeps(recordings, keyframe[name], reads.sweeps) for i, name in lidars if name in keyframe
            },
            pictures={name: self._picture(recordings, keyframe[name]) for name in cameras if name in keyframe},
            truth=self._truth(token, scene),
            conditions=self.conditions(token),
            location=self._locations[scene],
            position=position_on_map(self._locations[scene], reference.global_from_ego),
            own=self.rig.own,
            files=partial(self._class_files, token) if reads.lidar else tuple,
            opened=self._opened,
        )

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return assemble(self.recording(token, reads), reads)

    def _sweeps(self, recordings: Recordings, keyframe: SampleData, count: int) -> list[SweepFile]:
        """The sweep of a frame and earlier ones; only it may have classes of points."""
        first, *earlier = (self._sweep(recordings, each) for each in recordings.chain(keyframe, count))
        if self.taxonomy.point_classes:
            first = first._replace(classes=lambda points: self._lidarseg.classes(keyframe.file, points))
        return [first, *earlier]

    def _sweep(self, recordings: Recordings, row: SampleData) -> SweepFile:
        pose, mount = recordings.global_from_ego(row), recordings.ego_from_sensor[row.calibration]
        return SweepFile(self.dataroot / row.file, row.timestamp, pose, mount)

    def _picture(self, recordings: Recordings, row: SampleData) -> Picture:
        return Picture(
            path=self.dataroot / row.file,
            timestamp=row.timestamp,
            intrinsics=recordings.intrinsics[row.calibration],
            ego_from_camera=recordings.ego_from_sensor[row.calibration],
            global_from_ego=recordings.global_from_ego(row),
            size=(row.width, row.height),
            distortion=recordings.distortions.get(row.calibration),
        )


def _locations(folder: Path, scenes: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Name of a scene -> its location; '' for a scene without a log, as all of TruckScenes' are."""
    logs = {row["name"]: row["log_token"] for row in scenes}
    if not any(logs.values()):
        return dict.fromkeys(logs, "")
    with report_links(folder, "log"):
        locations = {row["token"]: row["location"] for row in rows(folder, "log")}
    return {name: locations[log] if log else "" for name, log in logs.items()}


def official_splits(scenes: Collection[str] = ()) -> dict[str, list[str]]:
    """The splits of the data set that these scenes are of, as in `utils.splits` of its devkit; nuScenes' by default."""
    nuscenes, truckscenes = _official_splits()
    return truckscenes if any({*scenes} & {*names} for names in truckscenes.values()) else nuscenes


@cache
def _official_splits() -> Sequence[dict[str, list[str]]]:
    """The splits of nuScenes and of TruckScenes, whose scenes have the number of their part of a log."""
    folder = files("perception.datasets.nuscenes")
    numbers, logs = (
        json.loads(folder.joinpath(f"splits_{name}.json").read_text(encoding="utf-8"))
        for name in ("nuscenes", "truckscenes")
    )
    return (
        {split: [f"scene-{number:04d}" for number in scenes] for split, scenes in numbers.items()},
        {split: [f"scene-{log}-{n}" for log, parts in own.items() for n in parts] for split, own in logs.items()},
    )
