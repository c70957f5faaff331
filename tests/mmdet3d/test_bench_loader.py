"""tools/bench.py loader: before augmentation both sides have the same points, pictures and boxes."""

from pathlib import Path

import numpy as np
from bench_loader import _pipeline
from mmdet3d.datasets import NuScenesDataset
from ten_sweeps import SWEEPS, drive

from perception.mmdet3d.annotation_file import LABELS, write
from perception.sensors.lidar.sweeps import outside_roof


def test_both_sides_read_the_same(nuscenes_root: Path, tmp_path: Path) -> None:
    tables, tokens = drive(nuscenes_root, tmp_path)
    write(tmp_path / "infos.json", tables, tokens)
    loads = [step for step in _pipeline(False, LABELS) if step["type"].startswith("Load")]
    cameras = tables.rig.sensors.cameras
    theirs = NuScenesDataset(
        data_root=str(tmp_path),
        ann_file="infos.json",
        data_prefix={
            "pts": "samples/LIDAR_TOP",
            "sweeps": "sweeps/LIDAR_TOP",
            **{name: f"samples/{name}" for name in cameras},
        },
        modality={"use_lidar": True, "use_camera": True},
        pipeline=loads,
        filter_empty_gt=False,
    )
    for i, token in enumerate(tokens):
        sample, frame = theirs[i], tables.frame(token, "lidar", SWEEPS)
        points = sample["points"].numpy()
        points = points[outside_roof(points) | (points[:, 4] > 0)]  # mmdet3d leaves those of the keyframe's roof
        assert frame.points is not None
        assert points.shape == frame.points.shape
        # Theirs may have the sweeps in another order.
        np.testing.assert_allclose(np.sort(points, axis=0), np.sort(frame.points, axis=0), atol=1e-3)
        assert frame.boxes is not None
        assert len(sample["gt_bboxes_3d"]) == (frame.boxes.num_points > 0).sum()
        for name, picture in zip(cameras, sample["img"], strict=True):
            np.testing.assert_array_equal(picture[..., ::-1], frame.cameras[name].image)
