"""Many dataroots in nuScenes' schema as one data set: T4 has a folder with tables and files for each drive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from perception.datasets.files import read_json
from perception.datasets.keyframes import Keyframes, Reads, select_samples, select_scenes, shortened
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.errors import InputError
from perception.frame import Boxes, Conditions, Frame
from perception.rig import Rig
from perception.taxonomy import Taxonomy
from perception.voxels import Occupancy


def dataroots_below(folder: Path) -> list[Path]:
    """Dataroots in a folder, or in folders of it, such as T4's DATASET/ID and DATASET/ID/VERSION."""
    found = {path.parents[1] for depth in ("*/*", "*/*/*") for path in folder.glob(f"{depth}/sample_data.json")}
    return sorted(found)


class JoinedTables(Keyframes):
    """The drives of all dataroots below a folder; `splits.json` in it lists the scenes or folders of each split.

    Raises:
        InputError: a dataroot is damaged or holds several versions, or two drives or keyframes have one name.
    """

    def __init__(self, dataroot: Path, version: str, rig: Rig, taxonomy: Taxonomy) -> None:
        self.dataroot, self.version, self.rig, self.taxonomy = dataroot, version, rig, taxonomy
        self._of_scene: dict[str, NuScenesTables] = {}
        self._samples: dict[str, list[str]] = {}
        for root in dataroots_below(dataroot):
            tables = NuScenesTables(root, version, rig, taxonomy)
            for scene in tables.scenes():
                if scene in self._of_scene:
                    raise InputError(
                        f"{dataroot}: {self._of_scene[scene].dataroot} and {root} both have a scene {scene}; remove one"
                    )
                self._of_scene[scene], self._samples[scene] = tables, tables.samples(selectors=[scene])
        self._scene = {sample: scene for scene, samples in self._samples.items() for sample in samples}
        if len(self._scene) < sum(map(len, self._samples.values())):
            raise InputError(f"{dataroot}: two drives have a keyframe of the same token; remove one of them")

    def _tables(self, sample: str) -> NuScenesTables:
        return self._of_scene[self._scene[sample]]

    def scenes(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Names of the drives in a split (None or 'all': all drives), or of the selected ones among them.

        Raises:
            InputError: an unknown split or selector.
        """
        return select_scenes(self._split(split), selectors, str(self.dataroot))

    def _split(self, split: str | None) -> list[str]:
        if split in (None, "all"):
            return list(self._samples)
        if split not in self._splits:
            known = ", ".join([*self._splits, "all"])
            raise InputError(f"{self.dataroot}: has no split {split}; known are {known}")
        listed = set(self._splits[split])
        names = [
            name
            for name, tables in self._of_scene.items()
            if listed & {name, *tables.dataroot.relative_to(self.dataroot).parts}
        ]
        if not names:
            raise InputError(
                f"{self.dataroot}: no scene of split {split} is here; it has {shortened(list(self._samples))}"
            )
        return names

    @cached_property
    def _splits(self) -> Mapping[str, Sequence[str]]:
        path = self.dataroot / "splits.json"
        splits = read_json(path) if path.exists() else {}
        if not isinstance(splits, dict):
            raise InputError(f"{path}: not an object of split names and lists of names")
        return splits

    def samples(self, split: str | None = None, selectors: Sequence[str] = ()) -> list[str]:
        """Tokens of the keyframes, drive by drive, in order of time; selectors as in `select_samples`."""
        return select_samples(self._samples, self.scenes(split, selectors), selectors)

    def scene(self, sample: str) -> str:
        """Name of the drive that a keyframe is from."""
        return self._scene[sample]

    def timestamp(self, sample: str) -> int:
        """When a keyframe was taken, us."""
        return self._tables(sample).timestamp(sample)

    def conditions(self, sample: str) -> Conditions:
        """The known conditions of a keyframe."""
        return self._tables(sample).conditions(sample)

    def boxes(self, sample: str) -> Boxes | None:
        """Annotations of a keyframe in the global frame; None for a drive without annotations."""
        return self._tables(sample).boxes(sample)

    def obstacles(self, sample: str) -> Boxes | None:
        """Annotated objects of none of the classes, as in `Keyframes`; None for a drive without annotations."""
        return self._tables(sample).obstacles(sample)

    def has_point_classes(self, sample: str) -> bool:
        """Whether the classes of the points of a keyframe are annotated."""
        return self._tables(sample).has_point_classes(sample)

    def has_occupancy(self, sample: str) -> bool:
        """Whether the voxels of a keyframe are annotated."""
        return self._tables(sample).has_occupancy(sample)

    def occupancy(self, sample: str) -> Occupancy | None:
        """Annotated voxels of a keyframe, in the ego frame; None if they are not annotated."""
        return self._tables(sample).occupancy(sample)

    def bicycle_racks(self) -> Mapping[str, list[list[float]]]:
        """Annotated bicycle racks, as in `Keyframes`."""
        roots = {tables.dataroot: tables for tables in self._of_scene.values()}
        return dict(chain.from_iterable(tables.bicycle_racks().items() for tables in roots.values()))

    def map(self, location: str) -> MapExpansion | None:
        """The HD map of a location, from the first dataroot that has it; None without one."""
        found = (tables.map(location) for tables in self._of_scene.values())
        return next((each for each in found if each is not None), None)

    def lidar_paths(self, sample: str, sweeps: int = 0) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Where the rays of each LiDAR begin, as in `Keyframes`."""
        return self._tables(sample).lidar_paths(sample, sweeps)

    def stamps(self, sample: str, reads: Reads) -> Sequence[tuple[str, int, int]]:
        """Of all that a frame is read from, as in `Keyframes`."""
        return self._tables(sample).stamps(sample, reads)

    def frame(self, sample: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        """The sensor data of a keyframe, as in `Keyframes`."""
        return self._tables(sample).frame(sample, reads)
