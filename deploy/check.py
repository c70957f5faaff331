"""The pre-flight check: would a bundle's network understand the sensors of this recording? No torch here.

Frames spread over the drives are measured, and compared with the statistics of the training drives. The load of a
measure is its distance from the range in training, divided by a margin; a load above 1 is a finding. docs/check.md says
how the margins were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deploy.recordings.choice import FrameChoice
from deploy.recordings.counts import PROBLEMS
from deploy.recordings.drives import Drive, open_drives
from perception.frame import Frame
from perception.rig import LidarLimits
from perception.scene.health.statistics import RANGES, SECTORS, Collector, SensorStatistics, Spread, Statistics
from perception.scene.health.turned import TurnedCloud
from perception.sensors.inputs import InputSpec
from perception.taxonomy import Taxonomy

RUNS, LENGTH = 12, 4  # runs of frames over all drives, and frames of a run


class Runs(FrameChoice):
    """Chooses so many runs of LENGTH frames one after the other, evenly spread over a drive of about so many frames."""

    def __init__(self, frames: int, runs: int) -> None:
        super().__init__()
        self.index = -1  # of the latest frame
        self._stride = max(LENGTH, frames // runs)

    def __call__(self, scene: str, timestamp: int, between: bool = False) -> bool:
        self.index += 1
        return super().__call__(scene, timestamp, between) and self.index % self._stride < LENGTH


def open_to_measure(
    path: Path, version: str | None, scenes: Sequence[str], spec: InputSpec, topics: Path | None, taxonomy: Taxonomy
) -> Sequence[Drive]:
    """The drives at a path as `open_drives`, with frames for `Collector`."""
    reference = "lidar" if spec.lidar is not None else spec.grid.reference
    own = replace(spec, grid=replace(spec.grid, reference=reference), truth=())
    return open_drives(path, version, scenes, own, topics, taxonomy)


def spread_frames(drives: Sequence[Drive]) -> Iterator[tuple[Frame, Frame | None]]:
    """Frames of RUNS runs over the drives, each with the frame before it; None for the first of a run."""
    chosen = np.unique(np.linspace(0, len(drives) - 1, min(RUNS, len(drives))).astype(int))
    for drive in (drives[i] for i in chosen):
        choice = Runs(len(drive), -(-RUNS // len(chosen)))
        before, last = None, -1
        for frame in islice(drive.frames(choice), RUNS * LENGTH):
            yield frame, before if choice.index == last + 1 else None
            before, last = frame, choice.index


def measure(drives: Sequence[Drive], spec: InputSpec) -> Statistics:
    """The statistics of drives of `open_to_measure`."""
    collector = Collector(spec.named_sensors, spec.grid)
    for frame, before in spread_frames(drives):
        collector.add(frame, before)
    return collector.statistics()


FEW = 0.05  # share of messages, or frames, of which nothing is said
MISSING = 0.25  # share of the frames that lack a sensor, beyond the share of the training drives
FARTHER = 0.25  # share of the returns that are in other bins of the distance
DEAD = 0.25  # of the share of returns that a sector had on training drives
CERTAIN = 100.0  # the largest load


class Rule(NamedTuple):
    """How a value is compared: an added margin or, for a ratio, a factor; and the likely cause of less and of more."""

    what: str  # with the unit
    margin: float
    ratio: bool
    less: str  # empty: less is no finding
    more: str  # empty: more is no finding


_FRAME = "the cloud is in another frame, or the LiDAR is mounted {} than its transform says"
_TILT = ("the LiDAR is tilted against its transform, or the fields of the cloud have another order",) * 2
_SCALE = "intensities have another scale, such as 0 to {} instead of 0 to 255"
_TRIGGER = ("another trigger, or a wrong `offset` in the map of topics",) * 2
_SIZE = ("another camera, or a driver that crops or scales",) * 2
_MOVED = ("its transform is another, or the camera was moved",) * 2
_BEAMS = "the LiDAR has fewer beams, or rings are dropped", "the LiDAR has more beams"
_LOST = "returns are lost, or the LiDAR is another model", "a sweep is more than one turn, or another model"
_TURNS = "it turns more slowly, or sweeps are lost", "it turns faster, or sends parts of a turn"
_UNIT = "the cloud is in another frame, or in another unit than m"
_LIGHT = "night, a covered lens, or another exposure"
_RULES = {
    "ground": Rule("the height of the ground (m)", 0.25, False, _FRAME.format("higher"), _FRAME.format("lower")),
    **{f"slope_{axis}": Rule(f"the slope of the ground along {axis} (degrees)", 2.0, False, *_TILT) for axis in "xy"},
    "rings": Rule("the number of rings that return", 1.4, True, *_BEAMS),
    "points": Rule("the number of returns", 2.0, True, *_LOST),
    "continuity": Rule("the share of returns from the ground without gaps beside them", 0.25, False, _LOST[0], ""),
    "bright": Rule("the intensity that 5 % of the returns exceed", 4.0, True, _SCALE.format(1), _SCALE.format(65535)),
    "cropped": Rule("the share of returns outside of the network's grid", 0.25, False, "", _UNIT),
    "sweep_rate": Rule("the rate of the LiDAR (Hz)", 1.4, True, *_TURNS),
    "frame_rate": Rule("the rate of frames with it (Hz)", 1.4, True, "data are lost, or the `period` is longer", ""),
    **{edge: Rule(f"the {edge} of its pictures (pixels)", 0.5, False, *_SIZE) for edge in ("width", "height")},
    "brightness": Rule("the mean grey level of its pictures", 3.0, True, _LIGHT, "another exposure"),
    "offset": Rule("the time from the frame to its data (s)", 0.05, False, *_TRIGGER),
    **{axis: Rule(f"its place along {axis} (m)", 0.3, False, *_MOVED) for axis in "xyz"},
    **{axis: Rule(f"its view's component {axis}", 0.1, False, *_MOVED) for axis in ("ahead", "left", "up")},
}


class Comparison(NamedTuple):
    """A sign of a sensor: a finding if its load is above 1; the line says what differs, with the likely cause."""

    sensor: str
    sign: str
    load: float
    line: str


def compare_drives(drives: Sequence[Drive], spec: InputSpec, expected: Statistics) -> dict[str, Any]:
    """Compare drives of `open_to_measure` with the statistics of a bundle.

    Returns `frames`: their number; `findings`: lines, worst first; `compared`: every `Comparison`; `statistics`.
    """
    sensors = spec.named_sensors
    lidar = sensors.lidars[0] if sensors.lidars else ""
    collector, turned = Collector(sensors, spec.grid), TurnedCloud(sensors.lidar_limits.get(lidar, LidarLimits()))
    for frame, before in spread_frames(drives):
        collector.add(frame, before)
        own = frame.of_lidar(0)
        if lidar and own.points is not None and len(own.points):
            turned.add(own)
    found = collector.statistics()
    how = f"{lidar}: the cloud is {turned.how}: so turned back, it fits the edges in the pictures, and not as it is"
    compared = [*([Comparison(lidar, "turned", turned.load, how)] if lidar else []), *compare(found, expected)]
    lines = [each.line for each in sorted(compared, key=lambda each: -each.load) if each.load > 1]
    problems = [line for drive in drives for line in _problems(drive.counts.summary())]
    return {
        "frames": found.keyframes,
        "findings": [*lines, *dict.fromkeys(problems)],
        "compared": [each._asdict() for each in compared],
        "statistics": found.model_dump(mode="json"),
    }


def _problems(summary: Mapping[str, Any]) -> Iterator[str]:
    """What is damaged, and what is wrong with more than a few messages of a topic."""
    yield from summary["damage"]
    for kind in [each for each in PROBLEMS if each in summary]:
        for topic, count in summary[kind].items():
            if count > FEW * summary["messages"].get(topic, 0):
                why = ", ".join(summary["reasons"].get(topic, ())) if kind == "corrupt" else PROBLEMS[kind]
                yield f"{topic}: {count} of {summary['messages'].get(topic, 0)} messages: {why}"
    if summary["unposed_frames"] > FEW * summary["frames"]:
        yield f"{summary['unposed_frames']} frames: the transform to the vehicle's place is missing at their times"


def compare(found: Statistics, expected: Statistics) -> Iterator[Comparison]:
    """Compare statistics sensor by sensor."""
    for name, usual in expected.sensors.items():
        own = found.sensors.get(name, SensorStatistics(keyframes=0, values={}))
        lacking = usual.keyframes / expected.keyframes - own.keyframes / max(1, found.keyframes)
        came = f"{name}: comes in {own.keyframes} of {found.keyframes} frames"
        yield Comparison(
            name, "missing", lacking / MISSING, f"{came}: its topic or files are missing, or data are lost"
        )
        for sign, rule in _RULES.items():
            if sign in own.values and sign in usual.values:
                yield _compare_value(name, sign, rule, own.values[sign].median, usual.values[sign])
        if "points" in own.values and "ground" in usual.values and "ground" not in own.values:
            cause = "the cloud is in another frame or unit, or its fields have another order"
            yield Comparison(name, "ground", CERTAIN, f"{name}: there is no ground under the vehicle: {cause}")
        if SECTORS[0] in own.values and SECTORS[0] in usual.values:
            yield _compare_ranges(name, own.values, usual.values)
            yield _compare_sectors(name, own.values, usual.values)


def _compare_value(name: str, sign: str, rule: Rule, value: float, usual: Spread) -> Comparison:
    if rule.ratio:
        low, own, high, margin = (math.log(max(each, 1e-6)) for each in (usual.low, value, usual.high, rule.margin))
    else:
        low, own, high, margin = usual.low, value, usual.high, rule.margin
    less, more = (low - own) / margin if rule.less else 0.0, (own - high) / margin if rule.more else 0.0
    line = f"{name}: {rule.what} is {value:.4g}, expected {usual.low:.4g} to {usual.high:.4g}"
    load, cause = max((less, rule.less), (more, rule.more))
    return Comparison(name, sign, min(max(load, 0.0), CERTAIN), f"{line}: {cause}")


def _compare_ranges(name: str, own: Mapping[str, Spread], usual: Mapping[str, Spread]) -> Comparison:
    away = {key: max(0.0, own[key].median - usual[key].high) for key in RANGES}
    most = max(away, key=lambda key: away[key])
    line = f"{name}: {own[most].median:.0%} of the returns are at {most}, expected at most {usual[most].high:.0%}"
    cause = "the LiDAR reaches less or more far, or the cloud is in another unit or thinned"
    return Comparison(name, "ranges", sum(away.values()) / FARTHER, f"{line}: {cause}")


def _compare_sectors(name: str, own: Mapping[str, Spread], usual: Mapping[str, Spread]) -> Comparison:
    loads = [min(CERTAIN, DEAD * usual[key].low / max(own[key].high, 1e-9)) for key in SECTORS]
    dead = [key for key, load in zip(SECTORS, loads, strict=True) if load > 1]
    line = f"{name}: there is hardly a return in {len(dead)} sectors of azimuth, such as {', '.join(dead[:2])}"
    cause = "a sector is dead: something covers the LiDAR, or its driver cuts or loses it"
    return Comparison(name, "sectors", max(loads), f"{line}: {cause}")
