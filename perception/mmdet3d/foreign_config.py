"""Configuration of an mmdet3d detector as the shared backbone of modules, a YAML file such as:

name: centerpoint
backbone:
  kind: mmdet3d
  config: centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d   # of the package, or a file
  checkpoint: centerpoint.pth
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from perception.errors import InputError
from perception.io.files import write_atomically
from perception.io.section import Positive, Section, load_section

FILE = "foreign.yaml"  # in the folder of a run


class ForeignBackbone(Section):
    kind: Literal["mmdet3d"]  # the only one
    config: str  # a Python file, which is executed, or the name of one that comes with mmdet3d
    checkpoint: str | None = None  # of mmdet3d's model zoo; None: random initialisation
    slots: tuple[str, ...] = Field(default=("*",), strict=False)  # globs of layer names, such as pts_backbone.*


class ForeignConfig(Section):
    name: str  # of the network
    seed: int = 0  # of what the training draws
    backbone: ForeignBackbone  # the detector of mmdet3d
    modules: tuple[str, ...] = Field(default=(), strict=False)  # files of trained modules
    batch: Positive = 2  # frames


def foreign_config(path: Path) -> ForeignConfig | None:
    """The configuration in a YAML file or in a folder that `perception adapt` wrote; None if the path is neither."""
    file = path / FILE if (path / FILE).exists() else path
    return load_section(ForeignConfig, file, "the configuration") if file.suffix in (".yaml", ".yml") else None


def write_foreign_config(run: Path, config: ForeignConfig) -> None:
    write_atomically(run / FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())


def refuse_export(path: Path) -> None:
    if foreign_config(path) is not None:
        raise InputError(
            f"{path}: a foreign backbone runs in mmdet3d alone and does not export (sparse convolutions would need a "
            "plugin); `perception import` makes pillar CenterPoint and PointPillars into models that do"
        )
