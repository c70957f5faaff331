"""A data set that the package does not know: a class of this module, named where drives are opened."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import command, one_line_error
from exported import checkpoint
from made_up import make_boxes
from vocabulary import NUSCENES, RIG

from perception.config import parse_config
from perception.datasets import keyframes
from perception.datasets.drives import Drives
from perception.datasets.keyframes import NO_SENSORS, Annotation, Keyframes, Picture, Reads, Recording, SweepFile
from perception.datasets.sources import open_source
from perception.errors import InputError
from perception.frame import Conditions, Frame
from perception.rig import Rig
from perception.taxonomy import Taxonomy

FORMAT = f"{__name__}:Folder"
SPEED, PERIOD, START = 4.0, 500_000, 1_500_000_000_000_000  # m/s along x, us, us
POINTS = np.array([[10, 0, 0, 7, 0], [0, -5, 1, 9, 0]], np.float32)
INTRINSICS = np.array([[60, 0, 39.5], [0, 60, 24.5], [0, 0, 1.0]])
CAMERA = np.array([[0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])


class Folder:
    """One drive along x: 0.bin, 1.bin, ... are its sweeps, 0.png, 1.png, ... its pictures to the front."""

    has_attributes = False

    def __init__(self, dataroot: Path, version: str | None, rig: Rig | None, taxonomy: Taxonomy | None) -> None:
        self.dataroot, self.version, self.rig, self.taxonomy = dataroot, "own", rig or RIG, taxonomy or NUSCENES
        tokens = [str(i) for i in range(len([*dataroot.glob("*.bin")]))]
        if not tokens:
            raise InputError(f"{dataroot}: has no sweep")
        drives = Drives(str(dataroot), {"drive": tokens})
        self.scenes, self.samples, self.scene = drives.scenes, drives.samples, drives.scene

    def moments(self, token: str) -> Mapping[str, int]:
        return keyframes.keyframe_moments(self, token)

    def conditions(self, token: str) -> Conditions:
        return Conditions(weather="rain")

    def recording(self, token: str, reads: Reads = NO_SENSORS) -> Recording:
        sweeps = [self._sweep(i) for i in range(int(token), max(int(token) - reads.sweeps, 0) - 1, -1)]
        time, ego = START + PERIOD * int(token), self._ego(int(token))
        picture = Picture(self.dataroot / f"{token}.png", time, INTRINSICS, CAMERA, ego, (80, 50))
        seen, truth = (
            ({0: sweeps}, {"CAM_FRONT": picture}),
            {"boxes": Annotation(lambda: make_boxes([[30.0, 2.0, 1.0]]))},
        )
        return Recording(token, "drive", time, ego, np.eye(4), *seen, truth, self.conditions(token))

    def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
        return keyframes.assemble(self.recording(token, reads), reads)

    def _sweep(self, i: int) -> SweepFile:
        return SweepFile(self.dataroot / f"{i}.bin", START + PERIOD * i, self._ego(i), np.eye(4))

    def _ego(self, i: int) -> np.ndarray:
        pose = np.eye(4)
        pose[0, 3] = SPEED * 1e-6 * PERIOD * i
        return pose


class Nameless:
    """No data set."""

    def __init__(self, *_: object) -> None: ...


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "drives=mine"  # a path may have the sign that ends a format
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.bin").write_bytes(POINTS.tobytes())
        cv2.imwrite(str(folder / f"{i}.png"), np.full((50, 80, 3), 40 * i, np.uint8))
    return folder


def test_a_class_of_another_package_reads_drives(root: Path) -> None:
    opened: list[Keyframes] = [open_source(Path(f"{FORMAT}={root}"), None), open_source(root, None, format=FORMAT)]
    for source in opened:
        assert isinstance(source, Folder)
        frame = source.frame("2", Reads("lidar", sweeps=1))
        both = np.concatenate([POINTS, np.add(POINTS, [-2, 0, 0, 0, 0.5])])
        np.testing.assert_allclose(frame.points, both, atol=1e-6)
        assert frame.sweep_of_point.tolist() == [0, 0, 1, 1]
        assert (frame.cameras["CAM_FRONT"].image == 80).all()
        np.testing.assert_allclose(frame.boxes.centers, [[26, 2, 1]])


def test_commands_take_it_by_name(root: Path, tmp_path: Path) -> None:
    command("evaluate", checkpoint(), "--data", f"{FORMAT}={root}", "--by", "condition", "--out", tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert scores["samples"] == 3
    assert scores["ground_truth"]["car"] == 3
    assert [*scores["slices"]["condition"]] == ["rain"]


def test_what_is_no_data_set_is_one_line(root: Path) -> None:
    with one_line_error("has no sweep"):
        open_source(root.parent, None, format=FORMAT)
    for name, says in {"nowhere:Drives": "nowhere", f"{__name__}:Nothing": "Nothing"}.items():
        with one_line_error(at=name, says=says):
            open_source(root, None, format=name)
    with one_line_error(at=f"{__name__}:Nameless", says="it lacks conditions, dataroot, frame"):
        open_source(root, None, format=f"{__name__}:Nameless")


def test_the_configuration_names_it() -> None:
    content: dict[str, Any] = {"name": "own", "data": {"format": FORMAT}}
    assert parse_config(content, "test").data.format == FORMAT
    with one_line_error("data.format"):
        parse_config({"name": "own", "data": {"format": "no class"}}, "test")
