"""`perception health`: loads of drives, as they are and with faults, against the monitor's own of each frame."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from commands import succeeds
from tiny import write_tiny

from deploy.health_loads import BEGUN, FAULTS
from deploy.replay.faults import Fault, inject
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.frame import Frame
from perception.scene.health.features import Status
from perception.scene.health.monitor import HealthMonitor

KEYFRAMES = 6


def loads(tables: NuScenesTables, frames: Iterable[Frame], sensor: str, status: Status) -> list[float]:
    monitor, found = HealthMonitor(tables.rig.sensors), []
    for frame in frames:
        monitor.update(frame)
        found.append(monitor.loads[sensor][status])
    return found


def test_loads_are_those_of_the_monitor(tmp_path: Path) -> None:
    write_tiny(tmp_path, KEYFRAMES)
    tables = NuScenesTables(tmp_path, "v1.0-tiny")
    frames = [tables.frame(token, Reads(annotations=False)) for token in tables.samples()]
    late = [each for camera in tables.rig.sensors.cameras for each in loads(tables, frames, camera, "late")]
    fault = Fault.parse("freeze:lidar", tables.rig.sensors)
    frozen = loads(tables, inject(frames, [fault]), "LIDAR_TOP", "frozen")
    later = np.array(frozen)[[1e-6 * (frame.timestamp - frames[0].timestamp) > BEGUN for frame in frames]]
    found = json.loads(succeeds("health", "--data", tmp_path, "--faults", "--json"))
    assert (found["keyframes"], found["drives"]) == (KEYFRAMES, 1)
    assert {"sensor": "camera", "sign": "late", "median": np.median(late), "largest": max(late)} in found["healthy"]
    row = {"fault": fault.text, "sign": "frozen", "low": np.quantile(later, 0.05), "median": np.median(later)}
    assert row | {"beyond": np.mean(later > 1)} in found["faults"]
    assert {each["fault"] for each in found["faults"]} <= {*FAULTS}
    assert "frozen" in succeeds("health", "--data", tmp_path)
