"""The database of objects holds what each keyframe shows of them, in the same bytes, and only while that is so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pasting import config, inside
from vocabulary import CAMERAS

from perception.config import Config, parse_config
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes
from perception.training.objects import Objects, key_of, objects_of
from perception.training.pictures import places


@pytest.fixture(scope="module")
def folder(tables: NuScenesTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a database of the simulated drives."""
    folder = tmp_path_factory.mktemp("objects")
    objects_of(tables, tables.samples(), config(), folder)
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _opened(tables: NuScenesTables, folder: Path) -> Objects:
    return objects_of(tables, tables.samples(), config(), folder)


def test_it_holds_all_points_and_pictures_of_every_object(tables: NuScenesTables, folder: Path) -> None:
    objects, number = _opened(tables, folder), 0
    for token in tables.samples()[:2]:
        frame = tables.frame(token, "ego", 2)
        for i in np.flatnonzero(frame.boxes.num_points > 0):
            points = frame.points[inside(frame.points, frame.boxes, i)]
            if not len(points):
                continue
            np.testing.assert_array_equal(objects.points(number), points)
            for name in ("centers", "sizes", "rotations", "velocities", "labels", "attributes", "num_points"):
                np.testing.assert_array_equal(getattr(objects.boxes, name)[number], getattr(frame.boxes, name)[i])
            seen = 0
            for camera, name in enumerate(CAMERAS):
                picture, projection = frame.cameras[name].image, frame.image_from_reference(name)
                (place,) = places(frame.boxes.select([i]), projection, picture.shape)
                crop = objects.crop(number, camera)
                assert (place is None) == (crop is None)
                if place is not None:
                    seen += 1
                    np.testing.assert_array_equal(crop, picture[place.top : place.bottom, place.left : place.right])
            assert len(objects.cameras(number)) == seen
            number += 1
    # Points of earlier sweeps as well, and other keyframes follow.
    ages = np.concatenate([*map(objects.points, range(number))])[:, 4]
    assert {0, 50, 100} == set(np.round(1000 * ages).tolist())
    assert number < len(objects.boxes)


def test_without_lidar_it_holds_what_cameras_saw(tables: NuScenesTables, tmp_path: Path) -> None:
    content, tokens = config({"lidar": None}).model_dump(mode="json"), tables.samples()[:1]
    content["rig"]["cameras"] = content["rig"]["cameras"][:1]
    objects, frame = objects_of(tables, tokens, parse_config(content, "test"), tmp_path), tables.frame(tokens[0])
    name = CAMERAS[0]
    found = places(frame.boxes, frame.image_from_reference(name), frame.cameras[name].image.shape)
    seen = [i for i, place in enumerate(found) if place is not None and frame.boxes.num_points[i] > 0]
    assert 0 < len(seen) < (frame.boxes.num_points > 0).sum()
    np.testing.assert_array_equal(objects.boxes.centers, frame.boxes.centers[seen])
    assert not len(objects.points(0))


def test_it_is_built_once_and_workers_do_not_change_its_bytes(
    tables: NuScenesTables, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = config().model_dump(mode="json")
    content["data"]["workers"] = 2
    objects_of(tables, tables.samples(), parse_config(content, "test"), tmp_path)
    assert _bytes(tmp_path) == _bytes(folder)
    monkeypatch.setattr(NuScenesTables, "frame", None)  # nothing is read again
    again = objects_of(tables, tables.samples(), config(classes={"bus": 1}, points=9, until=0.5), folder)
    assert len(again.boxes) == len(_opened(tables, folder).boxes)


def _changed(**keys: Any) -> Config:
    content = config().model_dump(mode="json")
    for path, value in keys.items():
        *sections, last = path.split("__")
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
    return parse_config(content, "test")


def test_its_key_depends_on_what_it_is_built_of(tables: NuScenesTables, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tables.samples()
    others = [
        _changed(model__lidar__sweeps=1),
        _changed(grid__reference="lidar"),
        _changed(data__paste__pictures="mask"),
        _changed(model__camera=None),
        _changed(model__lidar=None),
        _changed(rig="pandaset"),
    ]
    keys = [
        key_of(tables, tokens, config()),
        key_of(tables, tokens[1:], config()),
        key_of(tables, tokens[::-1], config()),
    ]
    keys += [key_of(tables, tokens, other) for other in others[:3] + others[4:]]
    assert key_of(tables, tokens, others[3]) == key_of(tables, tokens, others[2])  # both without pictures
    boxes = NuScenesTables.boxes

    def moved(source: NuScenesTables, token: str) -> Boxes:
        found = boxes(source, token)
        found.centers[-1, 0] += 1e-3
        return found

    monkeypatch.setattr(NuScenesTables, "boxes", moved)
    keys.append(key_of(tables, tokens, config()))
    assert len(set(keys)) == len(keys) == 9


def test_what_is_cut_off_leaves_nothing_and_what_is_damaged_is_said(
    tables: NuScenesTables, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, killed = NuScenesTables.frame, tables.samples()[3]

    def dying(source: NuScenesTables, token: str, *options: Any, **named: Any) -> Any:
        if token == killed:
            raise KeyboardInterrupt
        return read(source, token, *options, **named)

    with monkeypatch.context() as patch:
        patch.setattr(NuScenesTables, "frame", dying)
        with pytest.raises(KeyboardInterrupt):
            _opened(tables, tmp_path)
    assert not list(tmp_path.iterdir())
    for name, content in _bytes(folder).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content[:-1] if name.endswith("points.bin") else content)
    with pytest.raises(InputError, match="a damaged database of objects"):
        _opened(tables, tmp_path)
    next(tmp_path.rglob("objects.json")).write_text(json.dumps([]))
    with pytest.raises(InputError, match="a damaged database of objects"):
        _opened(tables, tmp_path)


def test_other_processes_wait_for_the_one_that_builds(
    tables: NuScenesTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, settings = tables.samples()[:1], config(pictures="mask")
    built: list[Objects] = []

    def built_meanwhile(_: float) -> None:
        built.append(objects_of(tables, tokens, settings, tmp_path))

    monkeypatch.setattr("time.sleep", built_meanwhile)
    waited = objects_of(tables, tokens, settings, tmp_path, builds=False)
    assert len(built) == 1
    np.testing.assert_array_equal(waited.boxes.centers, built[0].boxes.centers)
