"""KITTI's object benchmark: labels of the camera's frame are boxes around the LiDAR's points; damage is one line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.datasets.keyframes import Reads
from perception.datasets.kitti import Kitti, read_sweep
from perception.datasets.sources import open_source
from perception.errors import DAMAGE, InputError
from perception.frame import Boxes

# KITTI's calibration of 2011_09_26; camera 2 is 6 cm to the left of camera 0.
RECTIFY = np.array(
    [
        [0.9999239, 0.00983776, -0.007445048],
        [-0.009869795, 0.9999421, -0.004278459],
        [0.007402527, 0.004351614, 0.9999631],
    ]
)
MOUNT = np.array(
    [
        [0.007533745, -0.9999714, -0.000616602, -0.004069766],
        [0.01480249, 0.0007280733, -0.9998902, -0.07631618],
        [0.9998621, 0.00752379, 0.01480755, -0.2717806],
    ]
)
PROJECTION = np.array([[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]])
CAR = (1.6, 1.8, 4.2)  # height, width, length


def write_frame(root: Path, labels: str, points: np.ndarray, name: str = "000007") -> Path:
    for folder in ("velodyne", "calib", "label_2"):
        (root / "training" / folder).mkdir(parents=True, exist_ok=True)
    rows = {"P2": PROJECTION, "R0_rect": RECTIFY, "Tr_velo_to_cam": MOUNT, "Tr_imu_to_velo": np.eye(4)[:3]}
    text = "".join(f"{key}: {' '.join(f'{x:.12e}' for x in np.ravel(value))}\n" for key, value in rows.items())
    (root / "training" / "calib" / f"{name}.txt").write_text(text + "\n")
    (root / "training" / "label_2" / f"{name}.txt").write_text(labels)
    (root / "training" / "velodyne" / f"{name}.bin").write_bytes(points.astype(np.float32).tobytes())
    return root


def label(kind: str, place: tuple[float, float, float], turn: float) -> str:
    numbers = (0, 0, 0, *(100, 100, 200, 200), *CAR, *place, turn)
    return f"{kind} {' '.join(f'{each:.6f}' for each in numbers)}\n"


def corners(place: tuple[float, float, float], turn: float) -> np.ndarray:
    """(8, 3) in the LiDAR's frame, by the development kit's computeBox3D and the inverse of its projection."""
    height, width, length = CAR
    x = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * length / 2
    y = np.array([0, 0, 0, 0, -1, -1, -1, -1]) * height
    z = np.array([1, -1, -1, 1, 1, -1, -1, 1]) * width / 2
    turned = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    rectified = (turned @ np.stack([x, y, z])).T + place
    return np.asarray((rectified @ RECTIFY - MOUNT[:, 3]) @ MOUNT[:, :3])


def box_corners(boxes: Boxes) -> np.ndarray:
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
    return np.asarray((signs * boxes.sizes[0][[1, 0, 2]]) @ boxes.rotations[0].T + boxes.centers[0])


@given(st.tuples(st.floats(-20, 20), st.floats(0, 2), st.floats(5, 60)), st.floats(-np.pi, np.pi))
def test_a_label_is_the_box_of_the_development_kit(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[float, float, float], turn: float
) -> None:
    expected = corners(place, turn)
    inside = expected.mean(axis=0) + 0.5 * (expected - expected.mean(axis=0))
    points = np.column_stack([np.concatenate([inside, [[-30, 0, 0]]]), np.linspace(0, 1, 9)])
    root = write_frame(
        tmp_path_factory.mktemp("kitti"), label("DontCare", place, 0) + label("Car", place, turn), points
    )
    boxes = open_source(root, None).frame("training-000007-000000", Reads("lidar")).boxes
    assert boxes is not None
    assert boxes.num_points.tolist() == [8]
    away = np.linalg.norm(box_corners(boxes)[:, None] - expected, axis=2).min(axis=1)
    assert away.max() < 0.05  # boxes are upright, and the camera looks 0.5 degrees up


def test_each_frame_of_the_benchmark_is_a_drive(tmp_path: Path) -> None:
    points = np.array([[10, 0, 0, 0.5]])
    for name in ("000003", "000009"):
        write_frame(tmp_path, "", points, name)
    source = Kitti(tmp_path, None, None, None)
    assert source.scenes() == ["training-000003", "training-000009"]
    frame = source.frame(source.samples()[1], Reads(sweeps=5))
    np.testing.assert_allclose(frame.points, [[10, 0, 1.73, 127.5, 0]])
    assert frame.boxes is not None
    assert len(frame.boxes) == 0


@pytest.mark.parametrize("file", ["calib", "label_2"])
@pytest.mark.parametrize(
    "text", ["", "Car 1 2\n", "P2: x\n", "\xff", "Car " + 14 * "x " + "\n", "Tr_velo_to_cam: 1 2\n"]
)
def test_damage_is_one_line(tmp_path: Path, file: str, text: str) -> None:
    root = write_frame(tmp_path, label("Car", (0, 1, 9), 0), np.array([[10, 0, 0, 0.5]]))
    (root / "training" / file / "000007.txt").write_text(text, encoding="latin-1")
    source = open_source(root, None)
    if (file, text) in {("label_2", ""), ("label_2", "P2: x\n"), ("label_2", "Tr_velo_to_cam: 1 2\n")}:
        assert len(source.frame("training-000007-000000").boxes) == 0
        return
    with pytest.raises(InputError, match=rf"{file}.000007\.txt") as error:
        source.frame("training-000007-000000")
    assert "\n" not in str(error.value)


def test_a_sweep_of_other_numbers_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "0.bin"
    path.write_bytes(np.array([[10, 0, 0, 7, 0], [0, -5, 1, 9, 0]] * 4, np.float32).tobytes())  # nuScenes', 160 bytes
    with pytest.raises(InputError):
        read_sweep(path)
    damaged: list[str] = []
    reset = DAMAGE.set(damaged.append)
    with pytest.raises(FileNotFoundError):
        read_sweep(path)
    DAMAGE.reset(reset)
    assert len(damaged) == 1
