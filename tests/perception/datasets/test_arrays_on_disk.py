"""Arrays that are computed once: the same as computed anew, never those of other tables, and none that are damaged."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perception import arrays_on_disk
from perception.arrays_on_disk import kept
from perception.datasets.nuscenes import annotations, recordings
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.rig import load_rig
from perception.taxonomy import load_taxonomy


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for arrays of any size."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(arrays_on_disk, "LEAST", 0)
    return tmp_path / "cache" / "perception"


class Counted:
    """Computes arrays, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"a": np.arange(6.0).reshape(2, 3), "b": np.array([b"x", b"yz"])}


def test_arrays_are_computed_once_for_what_they_depend_on(cache: Path) -> None:
    compute = Counted()
    for about in ({"x": 1}, {"x": 1}, {"x": 2}, {"x": 1, "y": 0}, {"x": 2}):
        found = kept("numbers", about, compute)
        for name, each in Counted()().items():
            np.testing.assert_array_equal(found[name], each)
            assert found[name].dtype == each.dtype
            assert not found[name].flags.writeable
    assert compute.calls == 3
    assert isinstance(kept("numbers", {"x": 1}, compute)["a"], np.memmap)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "a.npy", 140),
        lambda folder: (folder / "b.npy").unlink(),
        lambda folder: (folder / "b.npy").write_bytes(b"no array"),
        lambda folder: (folder / "arrays.json").write_text("{"),
        lambda folder: (folder / "arrays.json").write_text("3"),
    ],
)
def test_damaged_arrays_are_computed_anew(cache: Path, damage: Callable[[Path], object]) -> None:
    compute = Counted()
    kept("numbers", {}, compute)
    [folder] = cache.iterdir()
    damage(folder)
    for calls in (2, 2):
        np.testing.assert_array_equal(kept("numbers", {}, compute)["a"], np.arange(6.0).reshape(2, 3))
        assert compute.calls == calls


def test_without_a_cache_that_can_be_written(tmp_path: Path, cache: Path) -> None:
    cache.parent.write_text("a file, where a folder should be")
    compute = Counted()
    for calls in (1, 2):
        assert len(kept("numbers", {}, compute)) == 2
        assert compute.calls == calls


def test_small_arrays_are_not_stored(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_on_disk, "LEAST", 6 * 8 + 2 * 2 + 1)
    kept("numbers", {}, Counted())
    assert not cache.exists()


def unread(*_: object) -> None:
    raise AssertionError("the tables are read again")


def test_stored_tables_give_the_same_frames(
    keyframes: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, version = keyframes

    def opened() -> NuScenesTables:
        return NuScenesTables(root, version)

    first = opened()
    samples = first.samples()[:12]
    whole = [first.frame(sample, sweeps=2, cameras=False) for sample in samples]
    assert len(list(cache.iterdir())) == 2
    for module in (annotations, recordings):
        monkeypatch.setattr(module, "_read", unread)
    second = opened()
    assert {**second.recordings} == {**first.recordings}
    assert second.recordings.sweep_files() == first.recordings.sweep_files()
    for sample, before in zip(samples, whole, strict=True):
        frame = second.frame(sample, sweeps=2, cameras=False)
        assert (frame.timestamp, frame.scene) == (before.timestamp, before.scene)
        np.testing.assert_array_equal(frame.global_from_ego, before.global_from_ego)
        if before.points is not None:
            np.testing.assert_array_equal(frame.points, before.points)
        assert frame.boxes is not None
        assert before.boxes is not None
        for name, value in vars(before.boxes).items():
            np.testing.assert_array_equal(getattr(frame.boxes, name), value)


def test_a_changed_table_another_rig_and_other_classes_are_read(tiny_root: Path, cache: Path) -> None:
    tables = NuScenesTables(tiny_root, "v1.0-tiny")
    sample = tables.samples()[0]
    frame = tables.frame(sample, cameras=False)
    path = tiny_root / "v1.0-tiny" / "ego_pose.json"
    text = path.read_text()
    rows = json.loads(text)
    for row in rows:
        row["translation"][2] = float(row["translation"][2]) + 4
    path.write_text(json.dumps(rows))
    raised = NuScenesTables(tiny_root, "v1.0-tiny").frame(sample, cameras=False)
    np.testing.assert_allclose(raised.global_from_ego[:3, 3], frame.global_from_ego[:3, 3] + [0, 0, 4])
    path.write_text(text)
    rig, names = load_rig("nuscenes"), load_taxonomy("nuscenes")
    one = rig.model_copy(update={"cameras": rig.cameras[:1]})
    assert len(NuScenesTables(tiny_root, "v1.0-tiny", one).recordings[sample]) == 2
    fewer = names.model_copy(update={"classes": names.classes[1:]})
    assert len(NuScenesTables(tiny_root, "v1.0-tiny", rig, fewer).frame(sample, cameras=False).boxes) < len(frame.boxes)
