"""A task that no line of the product knows has messages, by its own methods."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from perceived import boxes_of, frame_at, manifest_of, read, rigid, xyz
from toy_task import Toy, voxels_of
from vocabulary import CONDITIONS, NUSCENES, SENSORS

from deploy.live.messages.messages import Messages
from deploy.live.policy import Policy
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid
from perception.scene.scene import Scene
from perception.tasks import TASKS
from perception.tasks.published import FREE, TAKEN, Cloud, ScoreThresholds, Tracks
from perception.tasks.task import TaskConfig

CAR, CONE = NUSCENES.label("car"), NUSCENES.label("traffic_cone")


class Spot(TaskConfig):
    score_thresholds: ScoreThresholds = ScoreThresholds(default=0.7)


class Spots(Toy):
    """Two objects stand where it sees the first cell; all occupied cells are points, and taken."""

    name = "spots"
    Config = Spot

    @property
    def thresholds(self) -> ScoreThresholds:
        return self.config.score_thresholds

    def published(self, result: np.ndarray) -> Boxes:
        _, row, column = np.argwhere(result > 0.5)[0]
        x, y = self.grid.centers()[row, column]
        found = boxes_of(*([label, x, y, 0, 1, 1, 1, 0, 0, 0, score] for label, score in ((CAR, 0.8), (CONE, 0.6))))
        return found.select(self.thresholds.reached(found, np.zeros(2), self.taxonomy))

    def tracks(self, state: np.ndarray) -> Tracks:
        boxes = self.published(state)
        one = np.ones(len(boxes))
        return Tracks(one.astype(int), boxes, one, one, one > 0, np.ones((len(boxes), 3)))

    def cloud(self, frame: Frame, result: Any, state: Any) -> Cloud:
        centers, (band, row, column) = voxels_of(result, self.grid)
        return Cloud(centers[band, row, column], band.astype(np.uint8), result[band, row, column])

    @property
    def ground(self) -> BevGrid:
        return self.grid

    def cells(self, state: np.ndarray, grid: BevGrid) -> np.ndarray:
        return np.where((state > 0.5).any(axis=0), TAKEN, FREE)


def messages_of(task: type[Toy], monkeypatch: pytest.MonkeyPatch, policy: Policy | None = None) -> dict[str, Any]:
    """The messages of a frame in which two cells are occupied, without durations."""
    monkeypatch.setitem(TASKS, task.name, task)
    manifest = (policy or Policy()).adjust(manifest_of(task.name))
    frame, scene = frame_at(rigid(70, 80, 1, 0.7), rigid(0, 0, 2, 0)), Scene(SENSORS, manifest.heads, CONDITIONS)
    frame = replace(frame, points=np.ones((1, 5), np.float32), sweep_of_point=np.zeros(1, np.uint8))
    result = np.zeros((3, *manifest.head_grid.build().shape), np.float32)
    result[1, 3, 7], result[2, 5, 9] = 0.9, 0.8
    prediction = Prediction({task.name: result})
    scene.observe(frame)
    messages = Messages(manifest)
    found = [*messages.detections(frame, prediction), *messages.scene(frame, scene.update(frame, prediction))]
    return {each.topic: read(each) for each in found if "latency" not in each.topic}


def test_detections_tracks_points_and_free_space_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    found = messages_of(Spots, monkeypatch)
    names = ("objects/vision", "objects/detected", "objects/tracked", "free_space", "spots")
    assert [*found] == [f"/perception/{name}" for name in names]
    x, y = manifest_of("spots").head_grid.build().centers()[3, 7]
    (car,) = found["/perception/objects/detected"].objects
    assert xyz(car.kinematics.pose_with_covariance.pose.position) == pytest.approx([x, y, 2])
    assert len(found["/perception/objects/tracked"].objects) == 1
    cells = np.array(found["/perception/free_space"].data).reshape(found["/perception/free_space"].info.height, -1)
    assert [cells[3, 7], cells[5, 9], cells[5, 8]] == [TAKEN, TAKEN, FREE]
    assert found["/perception/spots"].width == 2


def test_a_policy_has_scores_for_its_detections_too(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.model_validate({"score_thresholds": {"default": 0.5}})
    assert len(messages_of(Spots, monkeypatch, policy)["/perception/objects/detected"].objects) == 2


def test_a_task_that_publishes_nothing_has_no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert messages_of(Toy, monkeypatch) == {}
