"""Damaged dataroots: each is told in one line that names the file, what is wrong, and what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import one_line_error

from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError


def _first(folder: str) -> Callable[[Path], Path]:
    return lambda root: min((root / folder).iterdir())


_lidar, _sweep, _picture = map(_first, ("samples/LIDAR_TOP", "sweeps/LIDAR_TOP", "samples/CAM_FRONT"))


def _table(root: Path, name: str) -> Path:
    return root / "v1.0-tiny" / f"{name}.json"


def _spoil_points(file: Path, place: int, value: float) -> None:
    points = np.fromfile(file, np.float32)
    points[place] = value
    file.write_bytes(points.tobytes())


def _rows(table: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """The table after this change of its rows."""

    def spoil(root: Path) -> None:
        rows = json.loads(_table(root, table).read_text())
        change(rows)
        _table(root, table).write_text(json.dumps(rows))

    return spoil


def _change(table: str, **values: Any) -> Callable[[Path], None]:
    return _rows(table, lambda rows: rows[0].update(values))


def _cut(file: Callable[[Path], Path], size: int) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        file(root).write_bytes(file(root).read_bytes()[:size])

    return spoil


def _read(root: Path) -> None:
    tables = NuScenesTables(root, "v1.0-tiny")
    tables.frame(tables.samples()[0], sweeps=1)


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "odd-sized points": (_cut(_lidar, 9999), r"LIDAR_TOP/\d+\.pcd\.bin: 9999 bytes are no whole number"),
    "odd-sized sweep": (_cut(_sweep, 7), r"sweeps/LIDAR_TOP/\d+\.pcd\.bin: 7 bytes are no whole number"),
    "empty keyframe": (_cut(_lidar, 0), r"samples/LIDAR_TOP/\d+\.pcd\.bin: an empty sweep \(0 bytes\)"),
    "empty sweep": (_cut(_sweep, 0), r"sweeps/LIDAR_TOP/\d+\.pcd\.bin: an empty sweep \(0 bytes\)"),
    "NaN point": (lambda root: _spoil_points(_lidar(root), 12, np.nan), "1 of 500 points hold NaN.*first point 2;"),
    "infinite point": (lambda root: _spoil_points(_sweep(root), 3, np.inf), "1 of 500 points hold NaN or infinity"),
    "truncated JPEG": (lambda root: _cut(_picture, _picture(root).stat().st_size - 99)(root), "a truncated JPEG"),
    "empty picture": (_cut(_picture, 0), r"CAM_FRONT/\d+\.jpg: not a picture that can be decoded \(0 bytes\)"),
    "no picture": (lambda root: _picture(root).write_text("404 not found"), "not a picture that can be decoded"),
    "missing table": (lambda root: _table(root, "ego_pose").unlink(), "ego_pose.json: the table is missing"),
    "missing annotations": (
        lambda root: _table(root, "sample_annotation").unlink(),
        "sample_annotation.json: the table is missing",
    ),
    "truncated table": (_cut(lambda root: _table(root, "sample"), 200), "sample.json: not valid JSON"),
    "garbage in a table": (
        lambda root: _table(root, "log").write_text('[{"token": "a", "location": "b"} oops]'),
        r"log.json: not valid JSON \(expecting value at 'oops\]'\)",
    ),
    "object for a table": (lambda root: _table(root, "log").write_text("{}"), "log.json: not a table"),
    "empty file for a table": (lambda root: _table(root, "log").write_text(""), "log.json: not a table"),
    "numbers for rows": (lambda root: _table(root, "log").write_text("[1]"), "log.json: a row is int"),
    "binary for a table": (
        lambda root: _table(root, "log").write_bytes(b"\xff\xfe"),
        "log.json: not a table",
    ),
    "binary in a table": (
        lambda root: _table(root, "log").write_bytes(_table(root, "log").read_bytes().replace(b"}", b"\xff}")),
        r"log.json: cannot read the table \(UnicodeDecodeError\)",
    ),
    "missing field": (
        _rows("scene", lambda rows: rows[0].pop("log_token")),
        "scene.json: the field or token 'log_token' is missing",
    ),
    "unknown log": (_change("scene", log_token="gone"), "scene.json: the field or token 'gone' is missing"),
    "unknown pose": (_change("sample_data", ego_pose_token="gone"), "lacks 1 poses that .* such as gone"),
    "text for numbers": (_change("ego_pose", rotation=["a", "b"]), "ego_pose.json: a row has a wrong value"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_damage_is_told_in_one_line(tiny_root: Path, name: str) -> None:
    _read(tiny_root)
    spoil, message = SPOILED[name]
    spoil(tiny_root)
    with one_line_error(message, at=tiny_root):
        _read(tiny_root)


def test_a_picture_of_another_size_does_not_fit_its_calibration(tiny_root: Path) -> None:
    _rows("sample_data", lambda rows: [row.update(width=2 * row["width"]) for row in rows])(tiny_root)
    with pytest.raises(InputError, match=r"picture is 80x50, but its calibration is for 160x50"):
        _read(tiny_root)


def test_a_dataroot_that_is_none(tiny_root: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder; give the dataroot"):
        NuScenesTables(tiny_root / "nowhere", "v1.0-tiny")
    with pytest.raises(InputError, match=r"samples: not a nuScenes dataroot: it has no folder v1.0-tiny"):
        NuScenesTables(tiny_root / "samples", "v1.0-tiny")
    with pytest.raises(InputError, match=r"has no version v1.0-mini; it has v1.0-tiny$"):
        NuScenesTables(tiny_root, "v1.0-mini")


@pytest.mark.parametrize(
    ("split", "selectors", "message"),
    [
        ("test", (), r"has no split test; known are train, val, all$"),
        ("val", (), r"no scene of split val is here; it has scene-0001$"),
        (None, ("scene-9999",), r"scene-9999: no such scene in .*v1.0-tiny; it has scene-0001$"),
        (None, ("scene-0001:2-4",), r"scene-0001:2-4: scene-0001 has keyframes 0 to 2;"),
        (None, ("scene-0001:2-2",), r"scene-0001:2-2: scene-0001 has keyframes 0 to 2;"),
        (None, ("scene-0001:x",), r"scene-0001:x: not a selector"),
    ],
)
def test_unknown_splits_and_scenes(
    tiny_root: Path, split: str | None, selectors: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        NuScenesTables(tiny_root, "v1.0-tiny").samples(split, selectors)


def test_broken_splits(tiny_root: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    (tiny_root / "v1.0-tiny" / "splits.json").write_text("[1, 2")
    with pytest.raises(InputError, match=r"splits.json: cannot read the splits"):
        tables.samples("train")
    (tiny_root / "v1.0-tiny" / "splits.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"splits.json: not an object"):
        tables.samples("train")
    assert len(tables.samples()) == 3


def test_an_unknown_sample(tiny_root: Path) -> None:
    with pytest.raises(InputError, match=r"no LIDAR_TOP keyframe of sample 1234"):
        NuScenesTables(tiny_root, "v1.0-tiny").frame("1234")
