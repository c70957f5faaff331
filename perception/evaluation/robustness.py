"""Robustness: a model's scores under each corruption at three levels, relative to the clean ones.

Dong et al., "Benchmarking robustness of 3D object detection to common corruptions", 2023; Hendrycks and Dietterich,
"Benchmarking neural network robustness to common corruptions and perturbations", 2019. As there, the resilience to a
corruption is the mean over its levels of the main score relative to the clean one, for the first task with a main score
(NDS of detection); mRA is the mean over corruptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from perception.errors import InputError
from perception.evaluation import corrupt
from perception.evaluation.slices import Scores, numbers
from perception.frame import Frame
from perception.io.files import format_number

Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]  # of an image, at a level
LidarChange = Callable[[Frame, float, np.random.Generator], Frame]  # of a frame with points, at a level
Apply = Callable[[Frame, float, np.random.Generator, Sequence[str]], Frame]  # the last are the rig's cameras


@dataclass(frozen=True)
class Corruption:
    """A corruption of a sensor at a mild, a medium and a severe level."""

    sensor: str  # "lidar" or "camera"
    levels: tuple[float, ...]
    unit: str
    apply: Apply
    lasting: bool = False  # the same draw in all frames, for displaced sensors

    def levels_of(self, cameras: int) -> tuple[float, ...]:
        return tuple(sorted({1, max(1, cameras // 2), cameras})) if self.apply is _fewer_cameras else self.levels


def _lidar(change: LidarChange) -> Apply:
    def apply(frame: Frame, level: float, rng: np.random.Generator, cameras: Sequence[str]) -> Frame:
        return frame if frame.points is None else change(frame, level, rng)

    return apply


def _images(change: Change) -> Apply:
    def apply(frame: Frame, level: float, rng: np.random.Generator, cameras: Sequence[str]) -> Frame:
        changed = {name: replace(c, image=change(c.image, level, rng)) for name, c in frame.cameras.items()}
        return replace(frame, cameras=changed)

    return apply


def _turn_points(frame: Frame, degrees: float, rng: np.random.Generator) -> Frame:
    return corrupt.move_points(frame, corrupt.displacement(degrees, 0.1 * degrees, rng))


def _turn_cameras(frame: Frame, degrees: float, rng: np.random.Generator, cameras: Sequence[str]) -> Frame:
    # Drawn for all cameras, so that a missing one does not change the displacement of others.
    moved = {name: corrupt.displacement(degrees, 0.1 * degrees, rng) for name in cameras}
    turned = {name: replace(c, ego_from_camera=c.ego_from_camera @ moved[name]) for name, c in frame.cameras.items()}
    return replace(frame, cameras=turned)


def _fewer_cameras(frame: Frame, number: float, rng: np.random.Generator, cameras: Sequence[str]) -> Frame:
    missing = set(rng.permutation(cameras)[: int(number)])
    return replace(frame, cameras={name: camera for name, camera in frame.cameras.items() if name not in missing})


def _without_lidar(frame: Frame, number: float, rng: np.random.Generator, cameras: Sequence[str]) -> Frame:
    return frame.without_points()


CORRUPTIONS = {
    "lidar_noise": Corruption("lidar", (0.05, 0.1, 0.2), "m", _lidar(corrupt.noisy_points)),
    "lidar_lost_points": Corruption("lidar", (0.3, 0.6, 0.9), "of the points", _lidar(corrupt.thin_points)),
    "lidar_packets": Corruption("lidar", (0.05, 0.1, 0.2), "of the packets", _lidar(corrupt.garble_points)),
    "lidar_miscalibrated": Corruption("lidar", (0.5, 1.0, 2.0), "degrees, and 0.1 m each", _lidar(_turn_points), True),
    "lidar_missing": Corruption("lidar", (1,), "LiDAR", _without_lidar),
    "camera_blur": Corruption("camera", (2, 5, 10), "pixels", _images(lambda i, level, _: corrupt.blur(i, level))),
    "camera_noise": Corruption("camera", (10, 25, 50), "grey levels", _images(corrupt.noisy_image)),
    "camera_damage": Corruption("camera", (0.1, 0.2, 0.4), "of the rows", _images(corrupt.damage_image)),
    "camera_miscalibrated": Corruption("camera", (0.5, 1.0, 2.0), "degrees, and 0.1 m each", _turn_cameras, True),
    "camera_missing": Corruption("camera", (1, 3, 6), "cameras", _fewer_cameras),  # of six; see `levels_of`
}


def choose_corruptions(names: Sequence[str], sensors: Sequence[str]) -> list[str]:
    """The corruptions with these names, or `all` for those of the model's sensors."""
    possible = [name for name, corruption in CORRUPTIONS.items() if corruption.sensor in sensors]
    for name in names:
        if name not in possible and list(names) != ["all"]:
            why = "the model does not see that sensor" if name in CORRUPTIONS else "no such corruption"
            raise InputError(f"--corruptions {name}: {why}; all, or of {','.join(possible)}")
    return possible if list(names) == ["all"] else list(dict.fromkeys(names))


class Level(NamedTuple):
    """A corruption of CORRUPTIONS at one of its levels."""

    name: str
    level: float

    @property
    def title(self) -> str:
        return f"{self.name} {self.level:g}"


def levels_of(names: Sequence[str], cameras: Sequence[str]) -> list[Level]:
    return [Level(name, level) for name in names for level in CORRUPTIONS[name].levels_of(len(cameras))]


def robustness(main: str | None, clean: Scores, corrupted: Mapping[Level, Scores]) -> Scores:
    """Scores under each corruption, relative to those without.

    Args:
        main: the score that resilience is about; None: there is none.
        clean, corrupted: results of `Evaluated.part` for the frames without a corruption, and at each level.

    Returns:
        `mRA`, and under `corruptions` for each its `unit`, `levels` (each `level` with the numbers of the tasks) and
        `resilience`. A relative score is None where the clean score is 0, or any is undefined.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(each.name for each in corrupted):
        own = {each.level: part for each, part in corrupted.items() if each.name == name}
        scores = [part[main] for part in own.values() if main and clean.get(main) and part[main] is not None]
        left = float(np.mean(scores)) / clean[main] if main and len(scores) == len(own) else None
        levels = [{"level": level, **numbers(part)} for level, part in own.items()]
        found[name] = {"unit": CORRUPTIONS[name].unit, "levels": levels, "resilience": left}
    shares = [each["resilience"] for each in found.values() if each["resilience"] is not None]
    return {"mRA": float(np.mean(shares)) if shares else None, "corruptions": found}


def apply_corruption(frame: Frame, name: str, level: float, cameras: Sequence[str]) -> Frame:
    """The frame with a corruption of CORRUPTIONS at a level, for a rig with these cameras.

    Random draws depend only on the corruption's name, its level and the frame, so that all models get the same frames;
    a displaced sensor has the same pose for the whole evaluation.
    """
    seed = "" if CORRUPTIONS[name].lasting else frame.token
    digest = hashlib.sha256(f"{name}\0{level}\0{seed}".encode()).digest()
    return CORRUPTIONS[name].apply(frame, level, np.random.default_rng(np.frombuffer(digest, np.uint32)), cameras)


def robustness_table(metrics: dict[str, Any]) -> Table:
    """A table with a row for each corruption and level, below the clean scores."""
    table = Table(title=f"corrupted sensors: mRA {format_number(metrics['mRA'])}")
    table.add_column("corruption")
    table.add_column("level")
    levels = [level for corruption in metrics["corruptions"].values() for level in corruption["levels"]]
    columns = [name for name in (levels[0] if levels else ()) if name not in ("level", "samples")]
    for column in (*columns, "resilience"):
        table.add_column(column, justify="right")
    for name, corruption in metrics["corruptions"].items():
        for level in corruption["levels"]:
            table.add_row(
                name if level is corruption["levels"][0] else "",
                f"{level['level']:g} {corruption['unit']}",
                *(format_number(level[column]) for column in columns),
                format_number(corruption["resilience"]) if level is corruption["levels"][-1] else "",
            )
        table.add_section()
    return table
