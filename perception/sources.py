"""Opens recorded drives: a nuScenes dataroot, or mmdet3d's infos in one."""

from __future__ import annotations

from pathlib import Path

from perception.datasets.keyframes import Keyframes
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import only_version
from perception.errors import InputError
from perception.mmdet3d.infos import Infos
from perception.rig import Rig


def open_source(data: Path, version: str | None, rig: Rig | None = None) -> Keyframes:
    """The drives of a dataroot, or of an infos file in one.

    Args:
        data: a dataroot, or a .pkl file beside samples/.
        version: of the tables; None: the only one in the dataroot.
        rig: of the vehicle in a dataroot; None: nuScenes' car, which infos are of.

    Raises:
        InputError: there are no such drives, or they are damaged.
    """
    if data.suffix != ".pkl":
        return NuScenesTables(data, version or only_version(data), rig)
    if version is not None:
        raise InputError(f"{data}: infos have no --version; it chooses among the tables of a dataroot")
    return Infos(data)
