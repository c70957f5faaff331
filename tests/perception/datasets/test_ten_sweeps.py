"""The drive on which tools/bench.py measures the loader: real keyframes with nine sweeps before each."""

from pathlib import Path

import numpy as np
from ten_sweeps import SWEEPS, VERSION, drive

from perception.datasets.files import read_points
from perception.sensors.lidar.sweeps import outside_roof


def test_a_keyframe_has_ten_real_clouds(nuscenes_root: Path, tmp_path: Path) -> None:
    tables, tokens = drive(nuscenes_root, tmp_path)
    assert len(tokens) == 4
    for token in tokens:
        frame = tables.frame(token, "lidar", SWEEPS)
        assert len(frame.cameras) == 6
        ages, counts = np.unique(frame.points[:, 4], return_counts=True)
        np.testing.assert_allclose(ages, 0.05 * np.arange(10), atol=1e-6)
        recordings = tables.recordings
        chain = [each.file for each in recordings.chain(recordings[token]["LIDAR_TOP"], 10)]
        assert len({(tmp_path / file).resolve() for file in chain}) >= 9
        clouds = [read_points(tmp_path / file) for file in chain]
        assert counts.tolist() == [int(outside_roof(cloud).sum()) for cloud in clouds]
        boxes = tables.boxes(token)
        assert boxes is not None
        assert len(boxes) > 20
    assert (tmp_path / VERSION / "sample.json").exists()
