"""Opens recorded drives: dataroots of nuScenes (its schema), PandaSet or KITTI, infos of mmdet3d, files, users' own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

from perception.datasets.drives import Drives, read_splits
from perception.datasets.infos import Infos
from perception.datasets.keyframes import NO_SENSORS, Annotation, Keyframes, Reads, Recording, assemble
from perception.datasets.kitti import Kitti, is_kitti
from perception.datasets.loose import LooseFiles, is_loose
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.map_expansion import MapExpansion
from perception.datasets.nuscenes.tables import only_version, versions
from perception.datasets.pandaset import PandaSet, is_pandaset
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.rig import Rig, load_rig
from perception.taxonomy import Taxonomy, load_taxonomy


def dataroots_below(folder: Path) -> list[Path]:
    """Dataroots in a folder, or in folders of it, such as T4's DATASET/ID and DATASET/ID/VERSION."""
    found = {path.parents[1] for depth in ("*/*", "*/*/*") for path in folder.glob(f"{depth}/sample_data.json")}
    return sorted(found)


class JoinedTables:
    """The drives of all dataroots below a folder, as T4 has; `splits.json` lists scenes or folders of each split."""

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
        self.scenes, self.samples = drives.scenes, drives.samples

    def _splits(self) -> dict[str, list[str]]:
        """The scenes of each split, which are listed by their names or by those of their folders."""
        names = {
            scene: {scene, *tables.dataroot.relative_to(self.dataroot).parts}
            for scene, tables in self._of_scene.items()
        }
        splits = read_splits(self.dataroot).items()
        return {split: [scene for scene in names if names[scene] & {*listed}] for split, listed in splits}

    def _tables(self, token: str) -> NuScenesTables:
        if token not in self._of_token:  # between keyframes
            for scene, tables in self._of_scene.items():
                self._of_token |= dict.fromkeys(tables.moments(self.samples(selectors=[scene])[0]), tables)
        if token not in self._of_token:
            raise InputError(f"{self.dataroot}: no frame {token}")
        return self._of_token[token]

    def scene(self, token: str) -> str:
        return self._tables(token).scene(token)

    def moments(self, token: str) -> Mapping[str, int]:
        return self._tables(token).moments(token)

    def conditions(self, token: str) -> Conditions:
        return self._tables(token).conditions(token)

    def _map(self, location: str) -> MapExpansion | None:
        """The HD map of a location, from the first dataroot that has it; None without one."""
        roots, layers = {tables.dataroot: None for tables in self._of_scene.values()}, self.taxonomy.map_layers
        found = (MapExpansion.load(root, location, layers) for root in roots)
        return next((each for each in found if each is not None), None)

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        found = self._tables(token).recording(token, reads)
        return replace(found, truth={**found.truth, "map": Annotation(partial(self._map, found.location))})

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return assemble(self.recording(token, reads), reads)


_MEMBERS = {*Keyframes.__annotations__, *(name for name in vars(Keyframes) if not name.startswith("_"))}


def open_source(
    data: Path,
    version: str | None,
    rig: Rig | None = None,
    taxonomy: Taxonomy | None = None,
    format: str | None = None,
) -> Keyframes:
    """The drives of a dataroot, of an infos file in one, or of a data set of the user's.

    Args:
        data: a dataroot, a folder of dataroots such as T4's, a .pkl file beside samples/, or FORMAT=PATH.
        version: of nuScenes' tables; None: the only one in the dataroot.
        rig: of the vehicle in a dataroot; None: the data set's own.
        taxonomy: of the classes, map layers and conditions to read; None: the data set's own.
        format: package.module:Class that opens the path, given it, the version, the rig and the taxonomy; None: what
            `data` names, or else what the files show.
    """
    named, data = format_and_path(data)
    if named or format:
        return _of_format(named or format or "", data, version, rig, taxonomy)
    if (pandaset := is_pandaset(data)) or is_kitti(data):
        if version is not None:
            raise InputError(f"{data}: {'PandaSet' if pandaset else 'KITTI'} has no --version")
        return PandaSet(data, rig, taxonomy) if pandaset else Kitti(data, None, rig, taxonomy)
    if data.suffix != ".pkl":
        if not versions(data) and (roots := dataroots_below(data)):
            given = version or only_version(roots[0])
            return JoinedTables(data, given, rig or load_rig("nuscenes"), taxonomy or load_taxonomy("nuscenes"))
        if not versions(data) and is_loose(data):
            return LooseFiles(data, version, rig, taxonomy)
        return NuScenesTables(data, version or only_version(data), rig, taxonomy)
    if version is not None:
        raise InputError(f"{data}: infos have no --version; it chooses among the tables of a dataroot")
    source = Infos(data)
    if taxonomy not in (None, source.taxonomy):
        raise InputError(f"{data}: infos have the names of nuScenes, not those of the taxonomy {taxonomy.name}")
    return source


def format_and_path(data: Path) -> tuple[str, Path]:
    """The two of FORMAT=PATH; of another path "" and itself."""
    named = re.fullmatch(r"(?:.*/)?([\w.]+:\w+)=(.+)", str(data))  # an absolute path has a folder before the format
    return ("", data) if named is None else (named[1], Path(named[2]))


def _of_format(format: str, data: Path, version: str | None, rig: Rig | None, taxonomy: Taxonomy | None) -> Keyframes:
    module, _, name = format.partition(":")
    try:
        opened = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{format}: cannot be imported as package.module:Class ({error}); set PYTHONPATH") from None
    source: Keyframes = opened(data, version, rig, taxonomy)
    if missing := sorted(each for each in _MEMBERS if not hasattr(source, each)):
        raise InputError(f"{format}: is no data set, it lacks {', '.join(missing)}; see `Keyframes`")
    return source
