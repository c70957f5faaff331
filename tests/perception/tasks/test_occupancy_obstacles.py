"""The scene's unknown obstacles and doubts, from the results of occupancy and detection to obstacles.json."""

import json
from pathlib import Path

import numpy as np
from vocabulary import CONDITIONS, NUSCENES, sensors

from perception.config import find_config, load_config
from perception.frame import Boxes, Frame, Prediction
from perception.scene.scene import Scene
from perception.tasks import tasks_of
from perception.tasks.drawing import BoxLayer, VoxelLayer
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.obstacle_file import OBSTACLES
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.task import Task
from perception.voxels import occupancy_classes

NAMES = occupancy_classes(NUSCENES)


def test_a_pallet_and_a_car_as_the_scene_has_them(tmp_path: Path) -> None:
    """The vehicle drives 2 m a frame towards a pallet; a car stands beside it, and is lost by the detector or not."""
    config = load_config(find_config("tiny"))
    heads = {"occupancy": OccupancyHead(cell=0.8, z=(-0.8, 4.0)), "detection": config.tasks["detection"]}
    for detected in (True, False):
        tasks = tasks_of(heads, config.head_grid, NUSCENES)
        task: Task[OccupancyResult] = tasks["occupancy"]
        grid, scene = task.voxels, Scene(sensors(), tasks, CONDITIONS)  # type: ignore[attr-defined]
        writer = task.writer(tmp_path, ("lidar",))
        assert writer is not None
        with writer as file:
            for i in range(8):
                pose = np.eye(4)
                pose[0, 3] = 2.0 * i
                frame = Frame(f"s{i}", i * 500_000, "ego", pose, pose, None, {}, scene="a")
                centers = grid.centers() + pose[:3, 3]
                pallet = (np.abs(centers - [30, 1, 0.4]) < [0.8, 0.8, 0.8]).all(axis=3)
                car = (np.abs(centers - [24, -8, 0.8]) < [2.2, 0.9, 0.9]).all(axis=3)
                classes = np.where(pallet, 0, np.where(car, NAMES.index("car"), len(NAMES) - 1)).astype(np.uint8)
                occupied = np.where(pallet | car, 1.0, 0.0).astype(np.float32)
                found = [[24 - 2.0 * i, -8, 0.8]] if detected else []
                boxes = Boxes.from_yaws(
                    np.array(found).reshape(-1, 3), np.tile([1.9, 4.6, 1.7], (len(found), 1)), np.zeros(len(found)),
                    np.zeros((len(found), 2)), np.zeros(len(found)), np.zeros(len(found)), np.ones(len(found)),
                )  # fmt: skip
                others = np.where(pallet, 1.0, 0.0).astype(np.float32)
                result = OccupancyResult(classes, occupied, others, np.zeros(360, np.float32), grid)
                scene.observe(frame)
                seen = scene.update(frame, Prediction({"occupancy": result, "detection": boxes}))
                file.add(frame, result, seen.states["occupancy"])
                voxels, obstacles = task.draw(frame, result, seen.states["occupancy"])
                assert isinstance(voxels, VoxelLayer)
                assert isinstance(obstacles, BoxLayer)
                assert list(seen.doubts) == (["car"] if i >= 2 and not detected else [])
        written = json.loads((tmp_path / OBSTACLES).read_text())["frames"]
        for i in range(8):
            entry = written[f"s{i}"]
            assert [each["id"] for each in entry["obstacles"]] == ([] if i < 1 else [1])
            for each in entry["obstacles"]:
                np.testing.assert_allclose(each["translation"], [30, 1, 0.4], atol=0.8)
            occupied, lost = (row[NUSCENES.label("car")] for row in entry["voxels"])
            assert occupied >= 20
            assert (lost == 0) == (detected and i > 0)
        (tmp_path / OBSTACLES).unlink()
