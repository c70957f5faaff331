"""Infos of mmdet3d give the frames that the tables give, in every layout and convention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from infos import new_infos, old_infos, write_infos
from nuscenes import NuScenes
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import BoxVisibility

from perception.data.nuscenes import NuScenesTables
from perception.frame import CLASSES, Frame
from perception.mmdet3d.infos import Infos

LAYOUTS = ("since 1.1", "1.0", "before 1.0")


@dataclass(frozen=True)
class Sources:
    tables: NuScenesTables
    devkit: NuScenes
    infos: Infos
    layout: str
    folder: Path


def infos_in(folder: Path, root: Path, devkit: NuScenes, layout: str) -> Infos:
    """Infos beside links to the files of a dataroot."""
    for name in ("samples", "sweeps"):
        (folder / name).symlink_to(root / name)
    old = old_infos(devkit, old_boxes=layout == "before 1.0")
    return Infos(write_infos(folder / "nuscenes_infos_val.pkl", new_infos(old) if layout == "since 1.1" else old))


@pytest.fixture(scope="module", params=["nuscenes_root", "sim_root"])
def opened(request: pytest.FixtureRequest) -> tuple[Path, NuScenesTables, NuScenes]:
    root = request.getfixturevalue(request.param)
    version = {"nuscenes_root": "v1.0-mini", "sim_root": "v1.0-sim"}[request.param]
    return root, NuScenesTables(root, version), NuScenes(version, str(root), verbose=False)


@pytest.fixture(scope="module", params=LAYOUTS)
def sources(opened: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    root, tables, devkit = opened
    folder = tmp_path_factory.mktemp("infos")
    return Sources(tables, devkit, infos_in(folder, root, devkit, request.param), request.param, folder)


def lidar_boxes(devkit: NuScenes, sample: str) -> list[Box]:
    """The devkit's boxes of the ten classes in the LiDAR's frame."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    boxes = devkit.get_sample_data(devkit.get("sample", sample)["data"]["LIDAR_TOP"], BoxVisibility.NONE)[1]
    return [box for box in boxes if category_to_detection_name(box.name)]


def test_the_same_keyframes_in_the_same_order(sources: Sources) -> None:
    assert set(sources.infos.samples()) == set(sources.tables.samples())
    for scene in sources.tables.scenes():
        tokens = sources.tables.samples(selectors=[scene])
        (drive,) = {sources.infos.scene(token) for token in tokens}
        assert sources.infos.samples(selectors=[drive]) == tokens
        assert sources.infos.samples(None, [f"{drive}:1-3"]) == tokens[1:3]
    assert [sources.infos.timestamp(t) for t in sources.tables.samples()] == [
        sources.tables.timestamp(t) for t in sources.tables.samples()
    ]


@pytest.mark.parametrize("reference", ["ego", "lidar"])
def test_frames_equal_the_tables(sources: Sources, reference: Any) -> None:
    """Poses since 1.1 are float32, of kilometres: what goes through them differs by 0.1 mm, all else by 1e-6."""
    places = 1e-4 if sources.layout == "since 1.1" else 1e-9
    seen = 0
    for token in sources.tables.samples():
        ours, theirs = (each.frame(token, reference, sweeps=3) for each in (sources.infos, sources.tables))
        assert (ours.token, ours.timestamp, ours.reference) == (theirs.token, theirs.timestamp, theirs.reference)
        np.testing.assert_allclose(ours.global_from_ego, theirs.global_from_ego, atol=places)
        np.testing.assert_allclose(ours.global_from_reference, theirs.global_from_reference, atol=places)
        assert (ours.points is None) == (theirs.points is None)
        if ours.points is not None and theirs.points is not None:
            # Points are float32, of up to 100 m: the spacing of those is 8e-6.
            np.testing.assert_allclose(ours.points[:, :3], theirs.points[:, :3], atol=2e-5)
            np.testing.assert_array_equal(ours.points[:, 3:], theirs.points[:, 3:])
            seen += 1
        assert ours.cameras.keys() == theirs.cameras.keys()
        for name in ours.cameras:
            _assert_same_camera(ours, theirs, name, places)
    assert seen >= 6


def _assert_same_camera(ours: Frame, theirs: Frame, name: str, places: float) -> None:
    a, b = ours.cameras[name], theirs.cameras[name]
    assert a.timestamp == b.timestamp
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.intrinsics, b.intrinsics)
    np.testing.assert_allclose(a.ego_from_camera, b.ego_from_camera, atol=1e-6)
    np.testing.assert_allclose(a.global_from_ego, b.global_from_ego, atol=places)
    projections = [each.image_from_reference(name) for each in (ours, theirs)]
    np.testing.assert_allclose(projections[0], projections[1], rtol=1e-5, atol=2e-3)  # focal length 1266, m: 2e-6


def test_boxes_equal_the_devkits(sources: Sources) -> None:
    """In the LiDAR's frame, where infos have them upright."""
    seen = 0
    for token in sources.tables.samples():
        truth = sources.tables.boxes(token)
        ours = sources.infos.frame(token, "lidar", lidar=False, cameras=False).boxes
        assert truth is not None
        assert ours is not None
        theirs = lidar_boxes(sources.devkit, token)
        assert len(ours) == len(theirs)
        for i, box in enumerate(theirs):
            np.testing.assert_allclose(ours.centers[i], box.center, atol=1e-6)
            np.testing.assert_allclose(ours.sizes[i], box.wlh, atol=1e-12)
            turn = ours.yaws[i] - box.orientation.yaw_pitch_roll[0]
            assert abs(np.angle(np.exp(1j * turn))) < 1e-6
            seen += 1
        global_from_lidar = sources.tables.frame(token, "lidar", lidar=False, cameras=False).global_from_reference
        flat = truth.velocities * [1, 1, 0]
        np.testing.assert_allclose(ours.velocities[:, :2], (flat @ global_from_lidar[:3, :3])[:, :2], atol=1e-6)
        np.testing.assert_array_equal(ours.labels, truth.labels)
        np.testing.assert_array_equal(ours.num_points, truth.num_points)
        moved = sources.infos.boxes(token)
        assert moved is not None
        np.testing.assert_allclose(moved.centers, truth.centers, atol=2e-4)
    assert seen > 20
    assert {CLASSES[label] for label in truth.labels}
