"""Drives to test on: real nuScenes keyframes, simulated drives, and the smallest dataroot there is.

Each run prints processor time: the sum of the suite, the slowest tests, and those that need the marker `slow`. A
machine under load takes longer, so nothing fails by these numbers; they are printed so that growth is seen.
"""

import gc
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import once
import pytest
from hypothesis import settings
from repository import recorded
from tiny import write_tiny

from perception.datasets.nuscenes.dataset import NuScenesTables

LIMIT, SHOWN = 3.0, 20  # s of processor time, above which a test carries `slow` with its reason; slowest tests

# The gate draws the same examples on every machine; `pytest --hypothesis-profile=random` draws others each time.
# What those find becomes an @example.
settings.register_profile("gate", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("few", derandomize=True, deadline=None, print_blob=True, max_examples=10)
settings.register_profile("random", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("gate")

_seconds: dict[str, float] = defaultdict(float)
_reasons: dict[str, str] = {}
_start = 0.0


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files with many slow tests first, so that no worker is left alone with one at the end, and mark journeys.

    pytest-xdist keeps to the order with --no-loadscope-reorder. A `slow` that does not say why is an error.
    """
    for item in items:
        if item.path.parent.name == "journeys":
            item.add_marker("journey")
        marker = item.get_closest_marker("slow")
        if marker is not None and not (len(marker.args) == 1 and isinstance(marker.args[0], str)):
            raise pytest.UsageError(f"{item.nodeid}: the marker slow needs its reason, as slow('...')")
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors, since workers also wait: for files, locks and drives at their own pace."""
    return (os.cpu_count() or 1) + 1


def processor_seconds() -> float:
    """Of this process, the children that ended, and the commands that the command server ran for it."""
    commands: Any = sys.modules.get("commands")
    return sum(os.times()[:4]) + (commands.spent.seconds if commands else 0.0)


def pytest_collection_finish() -> None:
    """What came before is of no test."""
    global _start  # noqa: PLW0603 - processor time has one clock for the process
    gc.freeze()  # an export, which makes many objects, then takes an eighth less
    _start = processor_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    """Runs after each phase of a test; what passed since the last phase, of any test, is this phase's."""
    global _start
    report: Any = yield
    now = processor_seconds()
    report.processor_seconds, _start = now - _start, now
    marker = item.get_closest_marker("slow")
    report.slow = "" if marker is None else marker.args[0]
    return report


def pytest_runtest_logreport(report: Any) -> None:
    if not hasattr(report, "processor_seconds"):  # of a worker that crashed
        return
    _seconds[report.nodeid] += report.processor_seconds
    if report.slow:
        _reasons[report.nodeid] = report.slow


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _seconds:
        return
    slowest = sorted(_seconds, key=lambda test: -_seconds[test])
    terminalreporter.section(f"{sum(_seconds.values()):.0f} processor-seconds, the slowest {SHOWN} tests")
    for test in slowest[:SHOWN]:
        terminalreporter.write_line(f"{_seconds[test]:6.1f} s {test}  {_reasons.get(test, '')}")
    for test in slowest:
        if _seconds[test] > LIMIT and test not in _reasons:
            terminalreporter.write_line(f'{test}: {_seconds[test]:.1f} s; make it faster, or say why: slow("reason")')


@pytest.fixture(scope="session", autouse=True)
def _folder_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `once` prepares lies where all workers of pytest-xdist see it; pytest removes it with the run's folder."""
    own = tmp_path_factory.getbasetemp()
    once.run = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def nuscenes_root() -> Path:
    """A dataroot with version v1.0-mini and files for the first keyframes of scene-0103."""
    return recorded("nuscenes", "v1.0-mini/sample.json")


@pytest.fixture(scope="session")
def pandaset_root() -> Path:
    """A dataroot of PandaSet with frames 0 to 31 of drive 002."""
    return recorded("pandaset", "002/lidar/poses.json")


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
    from perception.simulate.worlds import Worlds
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
    from recordings import TINY, messages_of

    return messages_of(recorded_root, "v1.0-tiny", TINY)
