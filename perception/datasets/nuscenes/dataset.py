"""Keyframes of a dataroot in nuScenes' schema: nuScenes itself, MAN TruckScenes, TIER IV's T4, simulated drives.

Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020. Fent et al., "MAN TruckScenes",
NeurIPS 2024: no logs and no map, clouds as .pcd. T4: tables in annotation/, files in data/
(https://github.com/tier4/tier4_perception_dataset, docs/t4_format_3d_detailed.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from perception.datasets.files import read_image, stamp
from perception.datasets.keyframes import select_samples, select_scenes, shortened
from perception.datasets.nuscenes.annotations import Annotations
from perception.datasets.nuscenes.descriptions import phases_of
from perception.datasets.nuscenes.georeference import position_on_map
from perception.datasets.nuscenes.lidarseg import Lidarseg
from perception.datasets.nuscenes.occ3d import occ3d_file, read_occ3d
from perception.datasets.nuscenes.recordings import Recording, Recordings
from perception.datasets.nuscenes.splits import is_official, official_splits
from perception.datasets.nuscenes.tables import linked, rows, version_folder
from perception.datasets.recorded import RecordedKeyframes, SweepFile
from perception.errors import InputError
from perception.frame import Boxes, Camera, Conditions, reduced_intrinsics
from perception.rig import Rig, load_rig
from perception.rotations import rotation_matrices
from perception.taxonomy import Taxonomy, load_taxonomy
from perception.voxels import Occupancy

BICYCLE_RACK = "static_object.bicycle_rack"  # category


class NuScenesTables(RecordedKeyframes):
    """The drives in one version of a dataroot; `recordings` are its sensor files with poses and calibrations.

    Args:
        rig: of the vehicle; other sensors of the tables are not read. None: nuScenes' car.
        taxonomy: of the classes, map layers and conditions to read; None: nuScenes' own.

    Raises:
        InputError: the dataroot, the version or a table is missing or damaged, or the drives are of another rig.
    """

    def __init__(self, dataroot: Path, version: str, rig: Rig | None = None, taxonomy: Taxonomy | None = None) -> None:
        super().__init__(Path(dataroot), rig or load_rig("nuscenes"), taxonomy or load_taxonomy("nuscenes"))
        self.version = version
        self._folder = version_folder(self.dataroot, version)
        self._opened = [stamp(path) for path in sorted(self._folder.resolve().glob("*.json"))]
        with linked(self._folder, "scene"):
            scenes = {row["token"]: row for row in rows(self._folder, "scene")}
            self._locations = _locations(self._folder, scenes.values())
            phases = {
                row["name"]: phases_of(row["description"], self._locations[row["name"]], self.taxonomy)
                for row in scenes.values()
            }
        with linked(self._folder, "sample"):
            samples = [
                (row["timestamp"], row["token"], scenes[row["scene_token"]]["name"])
                for row in rows(self._folder, "sample")
            ]
        self._timestamps = {token: timestamp for timestamp, token, _ in samples}
        self._scene = {token: scene for _, token, scene in samples}
        self._samples: dict[str, list[str]] = {name: [] for name in self._locations}
        self._conditions: dict[str, Conditions] = {}
        for timestamp, token, scene in sorted(samples):
            self._samples[scene].append(token)
            seconds = 1e-6 * (timestamp - self._timestamps[self._samples[scene][0]])
            self._conditions[token] = next(each for start, each in reversed(phases[scene]) if start <= seconds)
        self.recordings = Recordings(self._folder, self.rig)

    @cached_property
    def _annotations(self) -> Annotations:
        return Annotations.read(self._folder, self._timestamps, self.taxonomy)

    def scenes(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Names of the drives in a split (None or 'all': all drives), or of the selected ones among them.

        Raises:
            InputError: an unknown split or selector.
        """
        return select_scenes(
            self._split(split), selectors, str(self._folder) if split is None else f"split {split} of {self._folder}"
        )

    def samples(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Tokens of the keyframes, drive by drive, in order of time.

        Args:
            selectors: names of scenes, or `scene-0103:0-4` for its keyframes 0, 1, 2 and 3.

        Raises:
            InputError: an unknown split or selector, or a range that the scene does not have.
        """
        return select_samples(self._samples, self.scenes(split, selectors), selectors)

    def _split(self, split: str | None) -> list[str]:
        if split in (None, "all"):
            return list(self._samples)
        splits = self._splits()
        if split not in splits:
            known = ", ".join([*splits, "all"])
            raise InputError(f"{self._folder}: has no split {split}; known are {known}")
        names = [name for name in self._samples if name in set(splits[split])]
        if not names:
            raise InputError(
                f"{self._folder}: no scene of split {split} is here; it has {shortened(list(self._samples))}"
            )
        return names

    def _splits(self) -> dict[str, list[str]]:
        if is_official(self.version):
            return official_splits(self._samples)
        path = self._folder / "splits.json"
        try:
            splits = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot read the splits ({error})") from None
        if not isinstance(splits, dict):
            raise InputError(f"{path}: not an object of split names and lists of scene names")
        return splits

    def scene(self, sample: str) -> str:
        """Name of the drive that a keyframe is from."""
        return self._scene[sample]

    def timestamp(self, sample: str) -> int:
        """When a keyframe was taken, us."""
        return self._timestamps[sample]

    def conditions(self, sample: str) -> Conditions:
        """The known conditions of a keyframe."""
        return self._conditions[sample]

    def boxes(self, sample: str) -> Boxes | None:
        """Annotations of a keyframe in the global frame; None for a version without annotations, such as v1.0-test."""
        return self._boxes(sample, self._of_classes) if self._of_classes.any() else None

    def obstacles(self, sample: str) -> Boxes | None:
        """Annotated objects of none of the classes, as in `Keyframes`; None for a version without annotations."""
        return self._boxes(sample, ~self._of_classes) if len(self._of_classes) else None

    @cached_property
    def _of_classes(self) -> np.ndarray:
        """(N,) bool: the annotations of the detection classes."""
        return self._annotations.labels >= 0

    def _boxes(self, sample: str, chosen: np.ndarray) -> Boxes:
        """The boxes of a keyframe that are among the chosen ones of all annotations, (N,) bool."""
        a = self._annotations
        index = a.rows(sample)
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

    def has_point_classes(self, sample: str) -> bool:
        """Whether the table of point classes names a sweep of the keyframe."""
        keyframe = self.recordings.get(sample, {})
        return bool(self.taxonomy.point_classes) and any(
            each.file in self._lidarseg.files for each in keyframe.values()
        )

    def _classes(self, file: str, count: int) -> np.ndarray | None:
        return self._lidarseg.classes(file, count)

    @cached_property
    def _lidarseg(self) -> Lidarseg:
        return Lidarseg.read(self.dataroot, self._folder, self.recordings.sweep_files, self.taxonomy)

    def has_occupancy(self, sample: str) -> bool:
        """Whether the voxels of a keyframe have a file."""
        return bool(self.taxonomy.point_classes) and self._occ3d_file(sample).exists()

    def occupancy(self, sample: str) -> Occupancy | None:
        """Annotated voxels of a keyframe, in the ego frame; None if they are not annotated.

        Raises:
            InputError: the file is damaged, or of another grid or other classes.
        """
        return read_occ3d(self._occ3d_file(sample), self.taxonomy) if self.taxonomy.point_classes else None

    def _occ3d_file(self, sample: str) -> Path:
        return occ3d_file(self.dataroot, self._scene[sample], sample)

    def bicycle_racks(self) -> dict[str, list[list[float]]]:
        """Annotated bicycle racks, as in `Keyframes`."""
        return self._bicycle_racks

    @cached_property
    def _bicycle_racks(self) -> dict[str, list[list[float]]]:
        folder, by_sample = self._folder, dict[str, list[list[float]]]()
        with linked(folder, "category"):
            categories = {row["token"] for row in rows(folder, "category") if row["name"] == BICYCLE_RACK}
        with linked(folder, "instance"):
            instances = {row["token"] for row in rows(folder, "instance") if row["category_token"] in categories}
        if instances:  # without any, the largest table is not read
            with linked(folder, "sample_annotation"):
                for row in rows(folder, "sample_annotation"):
                    if row["instance_token"] in instances:
                        rack = [*row["translation"], *row["size"], *row["rotation"]]
                        by_sample.setdefault(row["sample_token"], []).append(rack)
        return by_sample

    def _location(self, scene: str) -> str:
        return self._locations[scene]

    def _position(self, sample: str, global_from_ego: np.ndarray) -> tuple[float, float] | None:
        return position_on_map(self._locations[self._scene[sample]], global_from_ego)

    def _keyframe(self, sample: str) -> SweepFile:
        keyframe = self.recordings.get(sample, {})
        reference = self.rig.sensors.lidars[0]
        if reference not in keyframe:
            raise InputError(f"{self._folder / 'sample_data.json'}: no {reference} keyframe of sample {sample}")
        return self._sweep(keyframe[reference])

    def _sweeps(self, sample: str, count: int) -> dict[int, Iterable[SweepFile]]:
        keyframe, chain = self.recordings[sample], self.recordings.chain
        lidars = enumerate(self.rig.sensors.lidars)
        return {i: map(self._sweep, chain(keyframe[name], count)) for i, name in lidars if name in keyframe}

    def _sweep(self, recording: Recording) -> SweepFile:
        pose = self.recordings.global_from_ego(recording)
        return recording.file, recording.timestamp, pose, self.recordings.ego_from_sensor[recording.calibration]

    def _pictures(self, sample: str) -> list[str]:
        return [recording.file for recording in self._recorded_pictures(sample).values()]

    def _recorded_pictures(self, sample: str) -> dict[str, Recording]:
        keyframe = self.recordings[sample]
        return {name: keyframe[name] for name in self.rig.sensors.cameras if name in keyframe}

    def _files(self, sample: str, sweeps: int, lidar: bool, cameras: bool) -> Iterator[Path]:
        """As in the base, with those of the points' classes."""
        yield from super()._files(sample, sweeps, lidar, cameras)
        if lidar and self.taxonomy.point_classes:
            for recording in self.recordings[sample].values():
                if recording.file in self._lidarseg.files:
                    yield self.dataroot / self._lidarseg.files[recording.file]

    def _cameras(self, sample: str, least_width: int) -> dict[str, Camera]:
        found = {name: self._camera(each, least_width) for name, each in self._recorded_pictures(sample).items()}
        return {name: camera for name, camera in found.items() if camera is not None}

    def _camera(self, recording: Recording, least_width: int) -> Camera | None:
        path = self.dataroot / recording.file
        try:
            image, reduction, file = read_image(path, least_width)
        except FileNotFoundError:
            return None
        expected = -(-recording.height // reduction), -(-recording.width // reduction)
        if image.shape[:2] != expected:
            raise InputError(
                f"{path}: the picture is {image.shape[1]}x{image.shape[0]}, but its calibration is for "
                f"{expected[1]}x{expected[0]}; use the picture as recorded"
            )
        intrinsics = reduced_intrinsics(self.recordings.intrinsics[recording.calibration], reduction)
        distortion = self.recordings.distortions.get(recording.calibration)
        return Camera(
            image=image if distortion is None else cv2.undistort(image, intrinsics, distortion),
            intrinsics=intrinsics,
            ego_from_camera=self.recordings.ego_from_sensor[recording.calibration],
            global_from_ego=self.recordings.global_from_ego(recording),
            timestamp=recording.timestamp,
            file=file if distortion is None else None,
        )


def _locations(folder: Path, scenes: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Name of a scene -> its location; '' for a scene without a log, as all of TruckScenes' are."""
    logs = {row["name"]: row["log_token"] for row in scenes}
    if not any(logs.values()):
        return dict.fromkeys(logs, "")
    with linked(folder, "log"):
        locations = {row["token"]: row["location"] for row in rows(folder, "log")}
    return {name: locations[log] if log else "" for name, log in logs.items()}
