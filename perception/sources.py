"""Opens recorded drives: dataroots in nuScenes' schema, one of PandaSet, or mmdet3d's infos in one."""

from __future__ import annotations

from pathlib import Path

from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.joined import JoinedTables, dataroots_below
from perception.datasets.nuscenes.tables import only_version, versions
from perception.datasets.pandaset import PandaSet, is_pandaset
from perception.errors import InputError
from perception.mmdet3d.infos import Infos
from perception.rig import Rig, load_rig
from perception.taxonomy import Taxonomy, load_taxonomy


def open_source(data: Path, version: str | None, rig: Rig | None = None, taxonomy: Taxonomy | None = None) -> Keyframes:
    """The drives of a dataroot, or of an infos file in one.

    Args:
        data: a dataroot, a folder of dataroots such as T4's, or a .pkl file beside samples/.
        version: of nuScenes' tables; None: the only one in the dataroot.
        rig: of the vehicle in a dataroot; None: the data set's own.
        taxonomy: of the classes, map layers and conditions to read; None: the data set's own.

    Raises:
        InputError: there are no such drives, or they are damaged.
    """
    if is_pandaset(data):
        if version is not None:
            raise InputError(f"{data}: PandaSet has no --version")
        return PandaSet(data, rig, taxonomy)
    if data.suffix != ".pkl":
        if not versions(data) and (roots := dataroots_below(data)):
            given = version or only_version(roots[0])
            return JoinedTables(data, given, rig or load_rig("nuscenes"), taxonomy or load_taxonomy("nuscenes"))
        return NuScenesTables(data, version or only_version(data), rig, taxonomy)
    if version is not None:
        raise InputError(f"{data}: infos have no --version; it chooses among the tables of a dataroot")
    source = Infos(data)
    if taxonomy not in (None, source.taxonomy):
        raise InputError(f"{data}: infos have the names of nuScenes, not those of the taxonomy {taxonomy.name}")
    return source
