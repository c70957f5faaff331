"""Infos that mmdet3d's own converters write, read by us; boxes and projections that its dataset makes of them."""

from pathlib import Path
from typing import Any, NamedTuple

import mmengine
import numpy as np
import pytest
from infos import new_infos, old_infos
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.datasets.convert_utils import NuScenesNameMapping
from mmdet3d_drives import converter
from nuscenes import NuScenes
from vocabulary import CLASSES

from perception.datasets.infos import Infos
from perception.datasets.keyframes import Reads


class Converted(NamedTuple):
    root: Path
    devkit: NuScenes
    old: Path  # as nuscenes_converter.py writes it
    new: Path  # as update_infos_to_v2.py makes it of that


@pytest.fixture(scope="module")
def converted(keyframes: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Converted:
    source, version = keyframes
    home = tmp_path_factory.mktemp("converted")
    root = home / "data" / "nuscenes"  # the only place where update_infos_to_v2.py looks
    (root / "updated").mkdir(parents=True)
    for folder in ("samples", "sweeps", "maps", "lidarseg", version):
        for place in (root, root / "updated"):
            (place / folder).symlink_to(source / folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(mmengine, "check_file_exist", lambda *_: None)  # most of the real keyframes have none here
        devkit = NuScenes(version, "./data/nuscenes", verbose=False)
        scenes = {scene["token"] for scene in devkit.scene}
        rows, _ = converter("nuscenes_converter")._fill_trainval_infos(devkit, scenes, set(), False, max_sweeps=10)
        name = "nuscenes_infos_old.pkl"
        made = Converted(root, devkit, root / name, root / "updated" / name)
        mmengine.dump({"infos": rows, "metadata": {"version": version}}, made.old)
        converter("update_infos_to_v2").update_nuscenes_infos(str(made.old), str(root / "updated"))
    return made


def _assert_close(ours: Any, theirs: Any, place: str) -> None:
    if isinstance(theirs, dict):
        missing = {"cam_instances", "num_features", "pts_semantic_mask_path"}  # what we do not read
        assert set(ours) == set(theirs) - missing, place
        for key, value in ours.items():
            _assert_close(value, theirs[key], f"{place}.{key}")
    elif isinstance(theirs, list | tuple) and theirs and isinstance(theirs[0], dict):
        assert len(ours) == len(theirs), place
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            _assert_close(*pair, f"{place}[{i}]")
    elif theirs is None or isinstance(theirs, str) or np.asarray(theirs).dtype.kind in "USb":
        np.testing.assert_array_equal(ours, theirs, place)
    else:
        assert type(np.asarray(ours).dtype) is type(np.asarray(theirs).dtype), place
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6, err_msg=place)


def test_our_writer_for_tests_writes_what_the_converters_write(converted: Converted) -> None:
    ours = old_infos(converted.devkit, old_boxes=False)
    _assert_close(ours["infos"], mmengine.load(converted.old)["infos"], "infos")
    _assert_close(new_infos(ours)["data_list"], mmengine.load(converted.new)["data_list"], "data_list")
    assert NuScenesNameMapping["vehicle.bus.rigid"] == "bus"


def test_mmdet3ds_dataset_makes_the_same_boxes_and_projections(converted: Converted) -> None:
    infos = Infos(converted.new)
    dataset = NuScenesDataset(
        data_root=str(converted.root),
        ann_file=str(converted.new),
        data_prefix={"pts": "samples/LIDAR_TOP", "sweeps": "sweeps/LIDAR_TOP", "img": ""},
        modality={"use_lidar": True, "use_camera": True},
        filter_empty_gt=False,
        use_valid_flag=True,
    )
    seen = 0
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        frame = infos.frame(info["token"], Reads("lidar", lidar=False))
        boxes, theirs = frame.boxes.select(frame.boxes.num_points > 0), info["ann_info"]
        known = theirs["gt_labels_3d"] >= 0
        found = theirs["gt_bboxes_3d"][known]
        names = [dataset.metainfo["classes"][label] for label in theirs["gt_labels_3d"][known]]
        assert [CLASSES[label] for label in boxes.labels] == names
        # Theirs are float32, and stand on their bottom until asked for the middle.
        np.testing.assert_allclose(boxes.centers, found.gravity_center.numpy(), atol=1e-5)
        np.testing.assert_allclose(boxes.sizes[:, [1, 0, 2]], found.dims.numpy(), atol=1e-5)
        turn = boxes.yaws - found.yaw.numpy()
        np.testing.assert_allclose(np.angle(np.exp(1j * turn)), 0, atol=1e-6)
        np.testing.assert_allclose(np.nan_to_num(boxes.velocities[:, :2]), found.tensor[:, 7:].numpy(), atol=1e-5)
        corners = {tuple(np.round(corner, 2)) for corner in found.corners.numpy().reshape(-1, 3)}
        assert len(corners) == 8 * len(boxes)
        np.testing.assert_allclose(
            np.sort(boxes.corners().reshape(-1, 24), axis=1), np.sort(found.corners.numpy().reshape(-1, 24), axis=1),
            atol=2e-5,
        )  # fmt: skip
        for name in frame.cameras:
            image = info["images"][name]
            projection = np.array(image["cam2img"]) @ np.array(image["lidar2cam"])[:3]
            np.testing.assert_allclose(frame.image_from_reference(name), projection, rtol=1e-5, atol=2e-3)
            seen += 1
    assert seen >= 24
