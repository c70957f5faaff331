"""Many dataroots in nuScenes' schema as one data set: T4 has a folder with tables and files for each drive."""

from __future__ import annotations

from pathlib import Path

from perception.datasets.drives import Drives
from perception.datasets.files import read_json
from perception.datasets.keyframes import Reads, Recording, Truth, assemble
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.rig import Rig
from perception.taxonomy import Taxonomy


def dataroots_below(folder: Path) -> list[Path]:
    """Dataroots in a folder, or in folders of it, such as T4's DATASET/ID and DATASET/ID/VERSION."""
    found = {path.parents[1] for depth in ("*/*", "*/*/*") for path in folder.glob(f"{depth}/sample_data.json")}
    return sorted(found)


class JoinedTables:
    """The drives of all dataroots below a folder; `splits.json` in it lists the scenes or folders of each split.

    Raises:
        InputError: a dataroot is damaged or holds several versions, or two drives or keyframes have one name.
    """

    has_attributes = True

    def __init__(self, dataroot: Path, version: str, rig: Rig, taxonomy: Taxonomy) -> None:
        self.dataroot, self.version, self.rig, self.taxonomy = dataroot, version, rig, taxonomy
        self._of_scene: dict[str, NuScenesTables] = {}
        samples: dict[str, list[str]] = {}
        for root in dataroots_below(dataroot):
            tables = NuScenesTables(root, version, rig, taxonomy)
            for scene in tables.scenes():
                if scene in self._of_scene:
                    raise InputError(
                        f"{dataroot}: {self._of_scene[scene].dataroot} and {root} both have a scene {scene}; remove one"
                    )
                self._of_scene[scene], samples[scene] = tables, tables.samples(selectors=[scene])
        self._of_token = {token: self._of_scene[scene] for scene, tokens in samples.items() for token in tokens}
        if len(self._of_token) < sum(map(len, samples.values())):
            raise InputError(f"{dataroot}: two drives have a keyframe of the same token; remove one of them")
        drives = Drives(str(dataroot), samples, self._splits)
        self.scenes, self.samples, self.scene = drives.scenes, drives.samples, drives.scene

    def _splits(self) -> dict[str, list[str]]:
        """The scenes of each split, which are listed by their names or by those of their folders."""
        path = self.dataroot / "splits.json"
        splits = read_json(path) if path.exists() else {}
        if not isinstance(splits, dict):
            raise InputError(f"{path}: not an object of split names and lists of names")
        names = {
            scene: {scene, *tables.dataroot.relative_to(self.dataroot).parts}
            for scene, tables in self._of_scene.items()
        }
        return {split: [scene for scene in names if names[scene] & {*listed}] for split, listed in splits.items()}

    def timestamp(self, token: str) -> int:
        """When a keyframe was taken, us."""
        return self._of_token[token].timestamp(token)

    def conditions(self, token: str) -> Conditions:
        """The known conditions of a keyframe."""
        return self._of_token[token].conditions(token)

    def truth(self, token: str) -> Truth:
        """The annotations of a keyframe."""
        return self._of_token[token].truth(token)

    def map(self, location: str) -> MapExpansion | None:
        """The HD map of a location, from the first dataroot that has it; None without one."""
        found = (tables.map(location) for tables in self._of_scene.values())
        return next((each for each in found if each is not None), None)

    def recording(self, token: str, reads: Reads) -> Recording:
        """The sensor files of a keyframe with their poses, and its annotations."""
        return self._of_token[token].recording(token, reads)

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        """The keyframe, as in `Keyframes`."""
        return assemble(self.recording(token, reads), reads)
