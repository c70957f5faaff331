"""How close healthy drives come to the limits of the health monitor, and how far injected faults exceed them.

A load is a feature divided by its limit; above 1 it is a fault. docs/health.md has those of simulated and real drives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from deploy.replay.faults import Fault, inject
from perception.datasets.keyframes import Keyframes, Reads
from perception.frame import Frame
from perception.rig import Sensors
from perception.scene.health.features import Status
from perception.scene.health.monitor import HealthMonitor

FAULTS = (
    *("freeze:lidar", "delay:lidar", "noise:lidar", "points:lidar", "corruption:lidar"),
    "miscalibration:lidar,degrees=3,metres=0.1",
    *("freeze:cameras", "delay:cameras", "blackout:cameras", "noise:cameras", "blur:cameras", "corruption:cameras"),
)
BEGUN = 1.25  # s; before, frames of a drive show no fault yet

Loads = dict[tuple[str, Status], list[tuple[float, float]]]  # (kind of sensor, status) -> load, s since the start


def measure_loads(source: Keyframes, scenes: Sequence[str], faults: bool, console: Console) -> dict[str, Any]:
    """The loads of drives that are healthy, and with `faults` those of the same drives with each of FAULTS.

    Args:
        scenes: selectors; none: all scenes.

    Returns:
        `keyframes`, `drives`; `healthy`: `median` and `largest` load by kind of `sensor` and `sign`; `faults`: by fault
        and sign the load's 5 % quantile `low`, its `median` and the share `beyond` the limit.
    """
    sensors, keyframes = source.rig.sensors, 0
    healthy, by_fault = defaultdict[Any, Any](list), {text: defaultdict[Any, Any](list) for text in FAULTS if faults}
    selectors = scenes or source.scenes("all")
    for scene in track(selectors, "Drives", console=console):
        drive = [source.frame(token, Reads(annotations=False)) for token in source.samples(selectors=[scene])]
        keyframes += len(drive)
        _add_loads(healthy, drive, sensors, sensors.names)
        for text, loads in by_fault.items():
            fault = Fault.parse(text, sensors)
            _add_loads(loads, inject(drive, [fault]), sensors, fault.sensors)
    found = {"keyframes": keyframes, "drives": len(selectors), "healthy": list(_healthy_rows(healthy))}
    rows = [row for text, loads in by_fault.items() for row in _fault_rows(Fault.parse(text, sensors), loads)]
    return found | ({"faults": rows} if faults else {})


def _add_loads(found: Loads, frames: Iterable[Frame], sensors: Sensors, names: Iterable[str]) -> None:
    """Add the loads of the sensors with these names in one drive; all sensors are monitored."""
    monitor, begin = HealthMonitor(sensors), None
    for frame in frames:
        monitor.update(frame)
        begin = frame.timestamp if begin is None else begin
        for name in names:
            for status, load in monitor.loads[name].items():
                if not np.isnan(load):
                    kind = "LiDAR" if name in sensors.lidars else "camera"
                    found[kind, status].append((load, 1e-6 * (frame.timestamp - begin)))


def _healthy_rows(found: Loads) -> Iterator[dict[str, Any]]:
    for (kind, status), pairs in sorted(found.items()):
        loads = np.array(pairs)[:, 0]
        yield {"sensor": kind, "sign": status, "median": float(np.median(loads)), "largest": float(loads.max())}


def _fault_rows(fault: Fault, found: Loads) -> Iterator[dict[str, Any]]:
    """The loads of the statuses that the fault should cause."""
    for (_, status), pairs in found.items():
        loads, times = np.array(pairs).T
        loads = loads[times > BEGUN]
        if status in fault.kind.expected_statuses and len(loads):
            low, median = np.quantile(loads, [0.05, 0.5])
            beyond = float(np.mean(loads > 1))
            yield {"fault": fault.text, "sign": status, "low": float(low), "median": float(median), "beyond": beyond}


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """What `measure_loads` found, to print."""
    yield _table(f"{found['keyframes']} keyframes of {found['drives']} drives: load", found["healthy"])
    if "faults" in found:
        yield _table("with faults: load (low: 5 %), and the share beyond the limit", found["faults"])


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(*(rows[0] if rows else ()), title=title)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else value for value in row.values()))
    return table
