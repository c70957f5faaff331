"""How close healthy drives come to the limits of the health monitor, also with other decoders, and how far faults
exceed them. A load is a feature divided by its limit; above 1 it is a fault. These tables are in docs/health.md.

python tools/health_table.py --data ../shared/data/nuscenes --scenes scene-0103:0-4
python tools/health_table.py --data runs/health_drives --faults
"""

from __future__ import annotations

import argparse
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from deploy.replay.faults import Fault, inject
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.datasets.nuscenes.tables import versions
from perception.frame import Frame
from perception.rig import load_rig
from perception.scene.health.monitor import HealthMonitor

Change = Callable[[np.ndarray, int], np.ndarray]  # picture, seed -> changed picture
Drive = list[Frame]
SENSORS = load_rig("nuscenes").sensors  # the limits are those of its LiDAR
Loads = dict[
    tuple[str, str], list[tuple[float, float]]
]  # (kind of sensor, status) -> loads, and s since the start of the drive


def recoded(image: np.ndarray, quality: int) -> np.ndarray:
    """A picture encoded and decoded by another JPEG library (Pillow) at this quality."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality)
    return np.asarray(Image.open(content))


def rounded(image: np.ndarray, seed: int) -> np.ndarray:
    """A picture with other rounding: each value changes by -1, 0 or 1."""
    off = np.random.default_rng(seed).integers(-1, 2, image.shape, np.int16)
    return np.clip(image + off, 0, 255).astype(np.uint8)


def brighter(image: np.ndarray, seed: int) -> np.ndarray:
    """A picture by a decoder that expands levels 16-235 to 0-255."""
    return np.clip((image.astype(np.float32) - 16) * (255 / 219), 0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "as recorded": lambda image, seed: image,
    "1 level of rounding": rounded,
    "JPEG 95": lambda image, seed: recoded(image, 95),
    "JPEG 75": lambda image, seed: recoded(image, 75),
    "JPEG 50": lambda image, seed: recoded(image, 50),
    "blur of 0.6 pixels": lambda image, seed: cv2.GaussianBlur(image, (0, 0), 0.6),
    "16-235 as 0-255": brighter,
}
FAULTS = (
    "freeze:lidar",
    "delay:lidar",
    "noise:lidar",
    "points:lidar",
    "corruption:lidar",
    "miscalibration:lidar,degrees=3,metres=0.1",
    "freeze:cameras",
    "delay:cameras",
    "blackout:cameras",
    "noise:cameras",
    "blur:cameras",
    "corruption:cameras",
)


def changed(frames: Drive, change: Change) -> Iterator[Frame]:
    for i, frame in enumerate(frames):
        cameras = frame.cameras.items()
        yield replace(frame, cameras={name: replace(c, image=change(c.image, i)) for name, c in cameras})


def add_loads(found: Loads, frames: Iterator[Frame], sensors: Sequence[str] = SENSORS.names) -> None:
    """Add the loads of these sensors in one drive; all sensors are monitored."""
    monitor, begin = HealthMonitor(SENSORS), None
    for frame in frames:
        monitor.update(frame)
        begin = frame.timestamp if begin is None else begin
        for name in sensors:
            for status, load in monitor.loads[name].items():
                if not np.isnan(load):
                    kind = "LiDAR" if name in SENSORS.lidars else "camera"
                    found[kind, status].append((load, 1e-6 * (frame.timestamp - begin)))


def print_healthy(drives: Sequence[Drive]) -> None:
    columns: dict[str, Loads] = {name: defaultdict(list) for name in CHANGES}
    for name, change in CHANGES.items():
        for frames in drives:
            add_loads(columns[name], changed(frames, change))
    print("| sensor | sign | " + " | ".join(CHANGES) + " |\n|---|---|" + "---|" * len(CHANGES))
    for kind, status in sorted(columns["as recorded"]):
        cells = [np.array(found[kind, status])[:, 0] for found in columns.values()]
        texts = (f"{np.median(loads):.2f}, {loads.max():.2f}" for loads in cells)
        print(f"| {kind} | {status} | " + " | ".join(texts) + " |")
    print("\nEach: median, largest.\n")


def print_faults(drives: Sequence[Drive]) -> None:
    print("| fault | sign | load: 5 %, median | beyond the limit |\n|---|---|---|---|")
    for text in FAULTS:
        fault, found = Fault.parse(text, SENSORS), defaultdict[tuple[str, str], list[tuple[float, float]]](list)
        for frames in drives:
            add_loads(found, inject(frames, [fault]), fault.sensors)
        for (_, status), pairs in found.items():
            if status in fault.kind.expected_statuses:
                loads, times = np.array(pairs).T
                loads = loads[times > 1.25]  # the first frames show no fault yet
                if not len(loads):
                    continue
                low, middle = np.quantile(loads, [0.05, 0.5])
                print(f"| `{text}` | {status} | {low:.2f}, {middle:.2f} | {np.mean(loads > 1):.0%} |")


def print_rotated(drives: Sequence[Drive], degrees: float) -> None:
    """Rotate one camera at a time about an axis perpendicular to its own: how many are detected, and when."""
    delays, others = [], 0
    for number, frames in enumerate(drives):
        for i, name in enumerate(SENSORS.cameras):
            angle = np.random.default_rng([number, i]).uniform(0, 2 * np.pi)
            turn = np.eye(4)
            turn[:3, :3] = cv2.Rodrigues(np.radians(degrees) * np.array([np.cos(angle), np.sin(angle), 0]))[0]
            monitor, delay = HealthMonitor(SENSORS), np.inf
            for frame in frames:
                camera = frame.cameras[name]
                camera = replace(camera, ego_from_camera=camera.ego_from_camera @ turn)
                health = monitor.update(replace(frame, cameras={**frame.cameras, name: camera}))
                if "miscalibrated" in health[name].words:
                    delay = min(delay, 1e-6 * (frame.timestamp - frames[0].timestamp))
                others += sum("miscalibrated" in health[other].words for other in health if other != name)
            delays.append(delay)
    found = [delay for delay in delays if np.isfinite(delay)]
    after = "after {:.1f} s (median), {:.1f} s (90 %)".format(*np.quantile(found, [0.5, 0.9])) if found else ""
    print(f"- {degrees:g} degrees: {len(found)} of {len(delays)} found {after}; others blamed in {others} frames")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataroot of healthy drives")
    parser.add_argument("--version", help="default: the only one")
    parser.add_argument("--scenes", nargs="+", help="such as scene-0103:0-4; default: all")
    parser.add_argument("--faults", action="store_true", help="also inject the faults into these drives")
    arguments = parser.parse_args()
    tables = NuScenesTables(arguments.data, arguments.version or versions(arguments.data)[0])
    selectors = arguments.scenes or tables.scenes("all")
    drives = [
        [tables.frame(token, Reads(sweeps=0, annotations=False)) for token in tables.samples(selectors=[each])]
        for each in selectors
    ]
    keyframes = sum(map(len, drives))
    print(f"{keyframes} keyframes of {len(drives)} drives, OpenCV {cv2.__version__}, numpy {np.__version__}\n")
    print_healthy(drives)
    if arguments.faults:
        print_faults(drives)
        print("\nOne camera turned about an axis across its own:\n")
        for degrees in (1, 2, 3):
            print_rotated(drives, degrees)


if __name__ == "__main__":
    main()
