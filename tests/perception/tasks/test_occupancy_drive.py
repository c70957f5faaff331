"""Occupancy over a drive: fused, journalled, judged, and added to a finished model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from occupied import CLASSES, FREE, Occupied, random_occupancy
from training_runs import small
from unchanged import assert_kept
from vocabulary import NUSCENES

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame
from perception.grid import BevGrid
from perception.model import PerceptionModel
from perception.tasks.judging import ReplayedFrames, Subject, Unmeasured
from perception.tasks.occupancy.config import OccupancyHead
from perception.tasks.occupancy.judge import OccupancyJudge
from perception.tasks.occupancy.memory import HALF_LIFE, PROBABILITIES
from perception.tasks.occupancy.result import OccupancyResult, levels_of
from perception.tasks.occupancy.task import OccupancyTask
from perception.training.adapt import add_task
from perception.training.checkpoint import load_model, save_model
from perception.voxels import OTHERS

SHAPE = {"x": (-12.8, 12.8), "y": (-12.8, 12.8), "z": (-1.0, 2.2), "cell": 0.8}
TASK = OccupancyTask(OccupancyHead(**SHAPE), BevGrid((-12.8, 12.8), (-12.8, 12.8), cell=0.8), NUSCENES)
GRID = TASK.voxels
FAR = np.full(360, 12.8, np.float32)
CAR, WALL, ROAD = (CLASSES.index(name) for name in ("car", "manmade", "driveable_surface"))


def posed(x: float, y: float, yaw: float, seconds: float) -> Frame:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    pose[:2, 3] = x, y
    return Frame("a", round(seconds * 1e6), "ego", pose, pose, None, {})


def seen_of(world: Any, frame: Frame, occupied: float = 0.95) -> OccupancyResult:
    """What a network would say of a world: (N, 3) global points -> classes."""
    centers = GRID.centers().reshape(-1, 3).astype(np.float64)
    pose = frame.global_from_reference
    classes = world(centers @ pose[:3, :3].T + pose[:3, 3]).reshape(GRID.shape).astype(np.uint8)
    probability = np.where(classes == FREE, 1 - occupied, occupied).astype(np.float32)
    others = np.where(classes == OTHERS, probability, 0).astype(np.float32)
    return TASK.result({"classes": classes, "occupied": probability, "others": others, "free": FAR})


def blocks(points: np.ndarray) -> np.ndarray:
    """A wall 4 m to the left and posts of 4 m, above a road."""
    x, y, z = points.T
    classes = np.where(z < -0.2, ROAD, FREE)
    classes = np.where((np.abs(y - 6) < 2) & (z > -0.2), WALL, classes)
    return np.where((np.abs((x + 2) % 16 - 8) < 2) & (np.abs(y + 6) < 2) & (z > -0.2), WALL, classes)


def test_the_world_stays_where_it_is_while_the_vehicle_goes_on() -> None:
    memory = TASK.memory()
    size = memory.bytes
    for i in range(40):
        frame = posed(0.37 * i, 0.1 * i, 0.02 * i, 0.1 * i)
        seen = seen_of(blocks, frame)
        state = memory.update(frame, seen)
    assert memory.bytes == size
    # Edges of voxels that are not aligned with those of the memory are off by one; what is within them is the same.
    inner = [np.roll(seen.classes, shift, axis) for axis in (1, 2) for shift in (-1, 0, 1)]
    steady = np.logical_and.reduce([each == seen.classes for each in inner])
    steady[:, [0, -1]] = steady[:, :, [0, -1]] = False
    assert steady.mean() > 0.5
    assert (state.classes[steady] == seen.classes[steady]).mean() > 0.99
    occupied = seen.classes != FREE
    assert (state.occupied[steady & occupied] > seen.occupied[occupied].max()).mean() > 0.9  # surer than one frame
    assert state.free.min() < 12
    nothing = memory.update(posed(5000.0, 0.0, 0.0, 5.0), seen_of(lambda p: np.full(len(p), FREE), posed(0, 0, 0, 0)))
    assert (nothing.classes == FREE).all()
    assert nothing.free.min() >= 12.8 - 1e-4


@pytest.mark.parametrize(("label", "stays"), [(CAR, False), (WALL, True)])
def test_what_moves_fades_when_it_is_seen_no_more(label: int, stays: bool) -> None:
    memory, there = TASK.memory(), np.zeros(GRID.shape, bool)
    there[2:, 20:24, 20:24] = True
    classes = np.where(there, label, FREE).astype(np.uint8)
    said = there.astype(np.float32)
    outputs = {"classes": classes, "occupied": said, "others": said, "free": FAR}
    first = memory.update(posed(0, 0, 0, 0), TASK.result(outputs))
    assert (first.classes[there] == label).all()
    hidden = TASK.result(
        outputs | dict.fromkeys(PROBABILITIES, np.full(GRID.shape, np.nan, np.float32))
    )  # the network says nothing
    later = memory.update(posed(0, 0, 0, HALF_LIFE), hidden)
    for name in PROBABILITIES:
        p = [float(getattr(state, name)[there].mean()) for state in (first, later)]
        odds = [np.log(each / (1 - each)) for each in p]
        assert odds[1] == pytest.approx(odds[0] if stays else odds[0] / 2, abs=0.05)
    last = memory.update(posed(0, 0, 0, 20 * HALF_LIFE), hidden)
    assert (last.classes[there] == (label if stays else FREE)).all()
    assert (last.classes[~there] == FREE).all()


def test_a_result_comes_back_from_the_journal_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    outputs = {
        "classes": rng.integers(0, FREE + 1, GRID.shape).astype(np.uint8),
        "occupied": rng.random(GRID.shape).astype(np.float32),
        "others": rng.random(GRID.shape).astype(np.float32),
        "free": rng.random(360).astype(np.float32),
    }
    outputs["occupied"][0, 0] = [0.5 - 1e-4, 0.5 + 1e-4] * 16
    near = TASK.result(outputs).occupied
    np.testing.assert_array_equal(near > 0.5, outputs["occupied"] > 0.5)
    np.testing.assert_allclose(near, outputs["occupied"], atol=0.5 / 253 + 1e-6)
    broken = {name: values.copy() for name, values in outputs.items()}
    broken["occupied"][1, :3], broken["others"][0, 1, 2], broken["free"][:2] = np.inf, np.nan, np.nan
    kept, counts = TASK.finite(broken)
    assert counts == {"occupied": 96, "others": 1, "free": 2}
    assert kept["free"][:2].tolist() == [0, 0]
    seen = TASK.result(kept)
    assert np.isnan(seen.occupied[1, :3]).all()
    assert np.isnan(seen.others[0, 1, 2])
    back = TASK.unpack(TASK.pack(seen))
    for name in ("classes", "occupied", "others", "free"):
        np.testing.assert_array_equal(getattr(back, name), getattr(seen, name))
    assert back.grid == GRID
    np.testing.assert_array_equal(levels_of(back.occupied), levels_of(kept["occupied"]))
    states = [TASK.memory().update(posed(0, 0, 0, 0), each) for each in (seen, back)]
    np.testing.assert_array_equal(states[0].occupied, states[1].occupied)
    (layer,) = TASK.draw(posed(0, 0, 0, 0), seen, None)
    there = (np.nan_to_num(seen.occupied) > 0.5) & (seen.classes != FREE)
    np.testing.assert_array_equal(layer.centers, GRID.centers()[there])
    np.testing.assert_array_equal(layer.labels, seen.classes[there])
    assert [*layer.colours] == [*CLASSES[:-1]]
    assert layer.edges.tolist() == GRID.edges.tolist()


def judge_of(tables: Any, frames: Sequence[Frame], results: Sequence[OccupancyResult]) -> OccupancyJudge:
    statistics = [TASK.statistics(frame, seen, tables) for frame, seen in zip(frames, results, strict=True)]
    names = [frame.scene for frame in frames]
    scenes = np.array([names.index(name) for name in names])
    scenes = np.unique(scenes, return_inverse=True)[1]
    conditions = [frozenset({"rain"}) if name == "b" else frozenset() for name in names]
    return OccupancyJudge(
        ReplayedFrames(
            Path(), NUSCENES, [f.token for f in frames], scenes, np.zeros((len(frames), 2)), conditions, statistics
        )
    )


def test_a_judge_scores_scenes_conditions_classes_and_ranges() -> None:
    from occupancy_boxes import boxes

    frames = [replace(posed(0, 0, 0, i), token=f"{scene}{i}", scene=scene) for i, scene in enumerate("aab")]
    truths = {frame.token: random_occupancy(frame.token, GRID) for frame in frames}
    tables = Occupied(None, truths.__getitem__, lambda token: boxes((6.0, 0.4, 1, 1, 0, 3), (11.0, 0.4, 1, 1, 0, 3)))
    results = []
    for frame in frames:
        classes = truths[frame.token].classes.copy()
        classes[:, :, 16:][:, :, :10][classes[:, :, 16:26] == 0] = FREE
        classes[1, 16, 23] = 0  # the near one of the obstacles
        if frame.scene == "b":
            classes[:, :16] = FREE
        sure = {"occupied": (classes != FREE).astype(np.float32), "others": (classes == OTHERS).astype(np.float32)}
        results.append(TASK.result({"classes": classes, "free": FAR, **sure}))
    judge = judge_of(tables, frames, results)
    for condition, own in ((None, range(3)), ("rain", [2])):
        for c in (4, 16):
            hits = union = 0
            for i in own:
                truth = truths[frames[i].token]
                seen = truth.seen_by_cameras | truth.seen_by_lidar
                mine, true = ((each == c) & seen for each in (results[i].classes, truth.classes))
                hits, union = hits + (mine & true).sum(), union + (mine | true).sum()
            (score,) = judge.score(Subject("occupancy_IoU", CLASSES[c], condition))
            assert score == pytest.approx(hits / union)
    distance = np.linalg.norm(GRID.centers()[..., :2], axis=-1)
    hits = union = 0
    for seen, truth in zip(results, truths.values(), strict=True):
        near = (truth.seen_by_cameras | truth.seen_by_lidar) & (distance < 10)
        mine, true = ((each == 16) & near for each in (seen.classes, truth.classes))
        hits, union = hits + (mine & true).sum(), union + (mine | true).sum()
    assert judge.score(Subject("occupancy_IoU", CLASSES[16], None, (0.0, 10.0)))[0] == pytest.approx(hits / union)
    classes = [judge.score(Subject("occupancy_IoU", name))[0] for name in CLASSES[:-1]]
    assert judge.score(Subject("occupancy_IoU"))[0] == pytest.approx(np.mean(classes))
    assert judge.score(Subject("occupancy_IoU", "car"), np.array([[2.0, 0.0]]))[0] == 1
    assert judge.score(Subject("obstacle_recall", range=(0.0, 8.0)))[0] == 1
    assert judge.score(Subject("obstacle_recall", range=(8.0, 20.0)))[0] < 1
    assert judge.sizes(Subject("obstacle_recall")).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert judge.sizes(Subject("occupancy_IoU")).sum() == pytest.approx(1)
    assert judge.same_results(judge, Subject("occupancy_IoU"))
    other = judge_of(tables, frames, [results[0], results[1], results[1]])
    assert not judge.same_results(other, Subject("occupancy_IoU"))
    assert judge.same_results(other, Subject("occupancy_IoU", range=(0.0, 10.0))) is False
    with pytest.raises(Unmeasured, match="no annotated"):
        judge_of(None, frames, results).score(Subject("obstacle_recall"))


def test_it_is_added_to_a_finished_model_that_keeps_every_bit(tables: NuScenesTables, tmp_path: Path) -> None:
    whole = small()
    config = whole.model_copy(update={"tasks": {"detection": whole.tasks["detection"]}})
    torch.manual_seed(0)
    save_model(tmp_path / "base", config, PerceptionModel(config))
    grid = config.head_grid
    shape = {"x": grid.x, "y": grid.y, "z": (-1.0, 5.4), "cell": 1.6, "channels": 8}
    content = {
        "tasks": {"occupancy": shape},
        "modules": [{"name": "own", "kind": "low_rank", "slots": ["trunk.*", "heads.occupancy.*"], "rank": 1}],
    }
    voxels = OccupancyHead(**shape).voxels(grid.reference)  # type: ignore[arg-type]
    annotated: Any = Occupied(tables, lambda token: random_occupancy(token, voxels))
    add_task(tmp_path / "base", "occupancy", content, annotated, "all", (), tmp_path / "run", steps=2)
    before, after = load_model(tmp_path / "base")[0], load_model(tmp_path / "run")[0]
    assert_kept(before, after)
    assert [*after.tasks] == ["detection", "occupancy"]
    assert after.bank.modules["own"].when == ("occupancy",)
    slots = after.bank.at("own")
    assert {name.partition(".")[0] for name in slots} == {"trunk", "heads"}
    assert all(computation.b.weight.any() for computation in slots.values())
