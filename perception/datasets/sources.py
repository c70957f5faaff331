"""Opens recorded drives: dataroots in nuScenes' schema, one of PandaSet, mmdet3d's infos, or data sets of users."""

from __future__ import annotations

import re
from importlib import import_module
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

    Raises:
        InputError: there are no such drives, or they are damaged; the format is not that of a data set.
    """
    named, data = format_and_path(data)
    if named or format:
        return _of_format(named or format or "", data, version, rig, taxonomy)
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
