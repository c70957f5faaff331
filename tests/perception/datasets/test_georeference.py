"""Positions on the maps of nuScenes, against the devkit's."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.georeference import position_on_map

export_poses = pytest.importorskip("nuscenes.scripts.export_poses")
LOCATIONS = sorted(export_poses.REFERENCE_COORDINATES)


def pose_at(x: float, y: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, 3] = x, y
    return pose


@given(st.sampled_from(LOCATIONS), st.floats(0, 5000), st.floats(1, 5000))
def test_positions_are_the_devkits(location: str, x: float, y: float) -> None:
    (theirs,) = export_poses.derive_latlon(location, [{"timestamp": 0, "translation": [x, y, 0.0]}])
    ours = position_on_map(location, pose_at(x, y))
    assert ours == pytest.approx((theirs["latitude"], theirs["longitude"]), abs=1e-11)


@given(st.sampled_from(LOCATIONS), st.floats(-5000, 5000), st.floats(-5000, 5000))
def test_in_any_direction_it_is_metres_from_the_origin(location: str, x: float, y: float) -> None:
    """Also south and west of the origin, where the devkit's formula does not hold."""
    latitude, longitude = export_poses.REFERENCE_COORDINATES[location]
    found = position_on_map(location, pose_at(x, y))
    assert found is not None
    metres = np.radians(1) * export_poses.EARTH_RADIUS_METERS
    east = (found[1] - longitude) * metres * np.cos(np.radians((found[0] + latitude) / 2))
    assert (east, (found[0] - latitude) * metres) == pytest.approx((x, y), abs=5)  # of 7 km, on a sphere


def test_a_map_without_an_origin_has_no_position() -> None:
    assert position_on_map("", np.eye(4)) is position_on_map("munich-north", np.eye(4)) is None


def test_positions_of_real_keyframes(nuscenes_root: Path) -> None:
    tables = NuScenesTables(nuscenes_root, "v1.0-mini")
    for scene, latitude, longitude in (("scene-0103", 42.35, -71.05), ("scene-0916", 1.29, 103.78)):
        for token in tables.samples(selectors=[scene])[::20]:
            frame = tables.frame(token, lidar=False, cameras=False)
            assert frame.position == pytest.approx((latitude, longitude), abs=0.02)
            assert frame.position == position_on_map(frame.location, frame.global_from_ego)
