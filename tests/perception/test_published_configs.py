"""configs/nuscenes/centerpoint and lidar have the networks of mmdet3d's and PillarNeSt's published configurations."""

import re
from pathlib import Path

import centerpoint_reference
import pillarnest_reference

from perception.config import find_config, load_config
from perception.mmdet3d import centerpoint, pillarnest
from perception.mmdet3d.flat_config import read_config
from perception.model import PerceptionModel

_EXTENT = "[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]"
_PUBLISHED = {  # of the small networks of the references -> published
    "[-12.0, -13.0, -10.0, 13.0, 13.0, 10.0]": _EXTENT,
    "max_num_points=6": "max_num_points=20",
    "(500, 700)": "(30000, 40000)",
    "max_num=40": "max_num=500",
    "head_conv=8": "head_conv=64",
    "share_conv_channel=8": "share_conv_channel=64",
    "sweeps_num=2": "sweeps_num=9",
}
_CENTERPOINT = {  # centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d
    "[0.4, 0.4, 8]": "[0.2, 0.2, 8]",
    "[-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]": "[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]",
    "feat_channels=[8]": "feat_channels=[64]",
    "[8, 12, 16]": "[64, 128, 256]",
    "[1, 1, 2]": "[3, 5, 5]",
    "out_channels=[8, 8, 8]": "out_channels=[128, 128, 128]",
}
_PILLARNEST = {  # pillarnest_tiny
    "[0.4, 0.4, 8]": "[0.15, 0.15, 8]",
    "[-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]": "[-54, -54, -5.0, 54, 54, 3.0]",
    "feat_channels=[8]": "feat_channels=[48]",
    "arch=dict(depths=[2, 1, 1, 2, 1], channels=[48, 12, 16, 16, 20]), in_channels=8": "arch='tiny', in_channels=48",
    "[16, 16, 20]": "[96, 96, 96]",
    "out_channels=[8, 8, 8]": "out_channels=[96, 96, 96]",
    "iou_score_beta=0.4": "iou_score_beta=0.5",
}


def published(folder: Path, text: str, changes: dict[str, str]) -> Path:
    """A file with a configuration at its published size."""
    for old, new in (_PUBLISHED | changes).items():
        assert old in text
        text = text.replace(old, new)
    (folder / "published.py").write_text(text)
    return folder / "published.py"


def test_centerpoint_is_mmdet3ds(tmp_path: Path) -> None:
    path = published(tmp_path, centerpoint_reference.CONFIG, _CENTERPOINT)
    imported, ours = centerpoint.configuration(read_config(path)), load_config(find_config("nuscenes/centerpoint"))
    assert (ours.grid, ours.model) == (imported.grid, imported.model)
    theirs = imported.tasks["detection"].model_dump()
    found = ours.tasks["detection"].model_dump()
    radii, wanted = found["suppression"].pop("radii"), theirs["suppression"].pop("radii")
    assert [round(radius, 3) for radius in wanted] == list(radii)
    assert found == theirs


def test_lidar_is_pillarnests(tmp_path: Path) -> None:
    """But for the vehicle's frame and the heatmaps of classes with subcells."""
    path = published(tmp_path, pillarnest_reference.CONFIG, _PILLARNEST)
    imported, ours = pillarnest.configuration(read_config(path)), load_config(find_config("nuscenes/lidar"))
    assert (ours.grid.x, ours.grid.y, ours.grid.cell) == (imported.grid.x, imported.grid.y, imported.grid.cell)
    trunk = ours.model.trunk.model_copy(update={"drop_path": 0.0})
    assert trunk == imported.model.trunk
    assert ours.model.lidar.model_copy(update={"overflow": "first"}) == imported.model.lidar
    theirs = {k: v.shape for k, v in PerceptionModel(imported).state_dict().items()}
    found = {k: v.shape for k, v in PerceptionModel(ours).state_dict().items()}
    further = {name for name in found if name.startswith("heads.map.") or "_attribute." in name}
    finer = {name for name in found if re.search(r"group[45]_heatmap\.1\.", name)}
    assert found.keys() - further == theirs.keys()
    assert {name for name, shape in theirs.items() if found[name] != shape} == finer
