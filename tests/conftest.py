"""Drives to test on: real nuScenes keyframes, simulated drives, and the smallest dataroot there is."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import once
import pytest
from hypothesis import settings
from repository import ROOT
from spent import (  # noqa: F401 - hooks of pytest
    pytest_collection_finish,
    pytest_runtest_logreport,
    pytest_runtest_makereport,
    pytest_terminal_summary,
    require_reasons,
)
from tiny import write_tiny

from perception.datasets.nuscenes.dataset import NuScenesTables

# The gate draws the same examples on every machine; `pytest --hypothesis-profile=random` draws others each time.
# What those find becomes an @example.
settings.register_profile("gate", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("random", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("gate")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests come first, so that no worker is left alone with one at the end.

    pytest-xdist keeps to the order with --no-loadscope-reorder.
    """
    require_reasons(items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def _folder_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `once` prepares lies where all workers of pytest-xdist see it; pytest removes it with the run's folder."""
    own = tmp_path_factory.getbasetemp()
    once.run = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def nuscenes_root() -> Path:
    """A dataroot with version v1.0-mini and files for the first keyframes of scene-0103."""
    given = os.environ.get("PERCEPTION_NUSCENES")
    root = Path(given) if given else ROOT.parent / "shared" / "data" / "nuscenes"
    if not (root / "v1.0-mini" / "sample.json").exists():
        pytest.skip(f"real nuScenes keyframes not found at {root} (set PERCEPTION_NUSCENES)")
    return root


@pytest.fixture(scope="session")
def pandaset_root() -> Path:
    """A dataroot of PandaSet with frames 0 to 31 of drive 002."""
    given = os.environ.get("PERCEPTION_PANDASET")
    root = Path(given) if given else ROOT.parent / "shared" / "data" / "pandaset"
    if not (root / "002" / "lidar" / "poses.json").exists():
        pytest.skip(f"recorded drive of PandaSet not found at {root} (set PERCEPTION_PANDASET)")
    return root


@pytest.fixture(scope="session")
def sim_root() -> Path:
    """A dataroot with version v1.0-sim: two drives of three keyframes, two LiDAR sweeps before each."""
    from perception.simulate.simulate import simulate

    conditions = ["clear-day-boston", "rain-night-singapore"]
    return once.once("simulated", lambda root: simulate(root, 2, 3, seed=0, condition_names=conditions, sweeps=2))


@pytest.fixture(scope="session")
def tables(sim_root: Path) -> NuScenesTables:
    """Of the simulated drives."""
    return NuScenesTables(sim_root, "v1.0-sim")


@pytest.fixture(scope="session", params=[("nuscenes_root", "v1.0-mini"), ("sim_root", "v1.0-sim")], ids=["real", "sim"])
def keyframes(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """Real and simulated keyframes: dataroot and version."""
    root, version = request.param
    return request.getfixturevalue(root), version


@pytest.fixture(scope="session")
def truck_root() -> Path:
    """A drive of a truck as MAN TruckScenes lays it out: three keyframes, two LiDAR sweeps before each."""
    from perception.rig import load_rig
    from perception.simulate.conditions import parse
    from perception.simulate.simulate import simulate
    from perception.simulate.world_files import Worlds
    from perception.taxonomy import load_taxonomy

    courses = parse(["clear-day-boston"], load_taxonomy("truckscenes"), Worlds())
    return once.once("truck", lambda root: simulate(root, 1, 3, 1, courses, 2, rig=load_rig("truck")))


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """A dataroot with version v1.0-tiny: one drive of three keyframes, all sensors, a sweep before each keyframe.

    The vehicle drives at 5 m/s along x of the global frame. A car drives 10 m before it, a pedestrian stands still,
    a bicycle rack belongs to no detection class. scene-0001 is the split `train`.
    """
    root = tmp_path / "tiny"
    write_tiny(root)
    return root


@pytest.fixture(scope="session")
def recorded_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataroot, which no test changes."""
    root = tmp_path_factory.mktemp("recorded") / "root"
    write_tiny(root)
    return root


@pytest.fixture(scope="session")
def log(recorded_root: Path) -> list[Any]:
    """Messages of its three keyframes 0.5 s apart, a sweep before each; cameras 1 to 6 ms after the LiDAR."""
    from recordings import TINY, sent

    return sent(recorded_root, "v1.0-tiny", TINY)
