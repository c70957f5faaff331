"""Work on a Ray cluster: the same bytes as by one process, also after the death of a worker."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import psutil
import pytest
from commands import one_line_error, refuses, succeeds
from exported import QUIET
from object_store import serve
from ray.cluster_utils import Cluster
from replays import SAME, VERSION, assert_same, small, unreadable
from repository import ROOT
from simulated import NARROW
from tiny import write_scenes

from deploy.replay.fleet import PART
from deploy.replay.run import replay
from deploy.replay.settings import Source
from perception.io.workers import open_pool
from perception.simulate import simulate as simulation
from perception.simulate.simulate import Run, simulate

SCENES, KEYFRAMES = 40, 3


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with two machines of one processor each, both this one."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"}  # for `processes`
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def workers() -> list[psutil.Process]:
    """Ray names a process after the method that it runs."""
    return [each for each in psutil.process_iter(["name", "cmdline"]) if "ray::_Actor.call" in str(each.info)]


def test_a_worker_is_killed_half_way(address: str, tmp_path: Path) -> None:
    drives, killed = tmp_path / "drives", list[int]()
    write_scenes(drives, SCENES, KEYFRAMES)
    source, out = Source(drives, VERSION), tmp_path / "ray"

    def kill() -> None:
        while len(list(out.glob(f"scenes/*/{PART}"))) < SCENES // 2:
            time.sleep(0.01)
        while not (found := workers()):
            time.sleep(0.001)
        os.kill(found[0].pid, signal.SIGKILL)
        killed.append(found[0].pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    summary = replay(source, small(), out, console=QUIET, ray=address)
    thread.join(60)
    assert len(killed) == 1
    assert summary["frames"] == SCENES * KEYFRAMES
    replay(source, small(), tmp_path / "one", console=QUIET)
    assert_same(out, tmp_path / "one")


def on_ray(address: str, folder: Path) -> Path:
    """The settings of a replay on a cluster."""
    (folder / "replay.yaml").write_text(f"ray: {address}\n")
    return folder / "replay.yaml"


def test_machines_without_common_disk_do_not_simulate_to_a_folder(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver prepares a folder that the workers do not see."""
    monkeypatch.setattr(simulation, "TemporaryDirectory", lambda **_: TemporaryDirectory(dir=tmp_path))
    with one_line_error(r"out: is another folder on .* disk that all machines share, or in an object store"):
        simulate(tmp_path / "out", 1, 1, 0, ["clear-day-boston"], rig=NARROW, run=Run(ray=address))


def test_a_worker_that_cannot_start_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers lack a module."""
    module = ModuleType("only_here")
    exec("def opened() -> None: ...", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with (
        open_pool(module.opened, 0, address) as workers,
        one_line_error("1: 3 workers died of it .*only_here"),
    ):
        list(workers.run(print, [1]))


def test_mistakes_are_one_line(address: str, tmp_path: Path) -> None:
    write_scenes(tmp_path / "drives", 1, 2)
    with unreadable(tmp_path / "drives", -1) as name, one_line_error(name):
        replay(Source(tmp_path / "drives", VERSION), small(), tmp_path / "out", console=QUIET, ray=address)
    given = ("replay", tmp_path / "drives", "--bundle", small(), "--out", tmp_path / "out")
    assert "--ray 127.0.0.1:1: cannot connect" in refuses(*given, "--config", on_ray("127.0.0.1:1", tmp_path))


def test_machines_without_common_disk_share_an_object_store(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers' cache is not that of the driver."""
    drives = tmp_path / "drives"
    write_scenes(drives, 3, KEYFRAMES)
    with serve(tmp_path / "theirs") as store:
        store.upload(drives, "drives")
        store.upload(small(), "bundle")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
        given = ("replay", f"{store.url}/drives", "--bundle", f"{store.url}/bundle", "--out", f"{store.url}/out")
        succeeds(*given, "--config", on_ray(cluster.address, tmp_path))
        simulated = ("--scenes", 2, "--samples", 1, "--conditions", "clear-day-boston", "--occupancy")
        for _ in range(2):  # also again, after its removal
            for key in store.keys("simulated/"):
                store.remove(key)
            succeeds("simulate", f"{store.url}/simulated", *simulated, "--ray", cluster.address)
        cluster.shutdown()
        found, recorded = store.objects("out"), store.objects("simulated")
    assert not list((tmp_path / "mine").rglob("*.pcd.bin"))
    succeeds("simulate", tmp_path / "simulated", *simulated, "--jobs", 1)
    files = [each for each in (tmp_path / "simulated").rglob("*") if each.is_file()]
    assert recorded == {each.relative_to(tmp_path / "simulated").as_posix(): each.read_bytes() for each in files}
    replay(Source(drives, VERSION), small(), tmp_path / "one", console=QUIET)
    assert found.keys() == {each.name for each in (tmp_path / "one").iterdir()}
    assert {name: found[name] for name in SAME} == {name: (tmp_path / "one" / name).read_bytes() for name in SAME}
