"""Replays that broke off end with the same bytes as one in one go, and take nothing of another replay."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from commands import one_line_error
from exported import QUIET, rewritten
from pages import timeless
from replays import VERSION, assert_same, replay_with_faults, small, unreadable
from rich.console import Console
from tiny import write_scenes

from deploy.recordings.choice import Selection
from deploy.replay.fleet import PART
from deploy.replay.folder import OccupiedError, occupy
from deploy.replay.run import replay
from deploy.replay.settings import Source
from perception.errors import InputError

SCENES, KEYFRAMES = 3, 5
FAULTS = ["drop:lidar@0.5-1"]


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drives") / "tiny"
    write_scenes(root, SCENES, KEYFRAMES)
    return root


@pytest.fixture(scope="module")
def whole(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay without interruption."""
    out = tmp_path_factory.mktemp("whole")
    summary = replay_with_faults(drives, out, faults=FAULTS)
    assert (summary["frames"], summary["resumed_at_frame"]) == (SCENES * KEYFRAMES, 0)
    assert not (out / "scenes").exists()
    return out


@pytest.fixture(scope="module")
def stopped(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay that could not read the last frame of the last drive."""
    out = tmp_path_factory.mktemp("stopped")
    with unreadable(drives, -1) as name, pytest.raises(InputError, match=name):
        replay_with_faults(drives, out, faults=FAULTS)
    assert sorted(path.name for path in out.iterdir()) == ["scenes"]
    assert [(out / "scenes" / f"{i}" / PART).exists() for i in range(SCENES)] == [True, True, False]
    return out


def assert_all_same(out: Path, expected: Path) -> None:
    """Files, what replay.json says of the drives, and the report."""
    assert_same(out, expected)
    records = [json.loads((each / "replay.json").read_text()) for each in (out, expected)]
    assert records[0]["drives"] == records[1]["drives"]
    assert len(records[0]["drives"]) == SCENES
    assert timeless(out) == timeless(expected)
    assert not (out / "scenes").exists()


def test_finished_drives_are_not_read_again(drives: Path, whole: Path, stopped: Path, tmp_path: Path) -> None:
    out = Path(copytree(stopped, tmp_path / "out"))
    files = sorted((drives / "samples" / "CAM_FRONT").iterdir())[: (SCENES - 1) * KEYFRAMES]
    contents = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    try:
        assert replay_with_faults(drives, out, faults=FAULTS)["resumed_at_frame"] == (SCENES - 1) * KEYFRAMES
    finally:
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
    assert_all_same(out, whole)


class Stopped(Exception):
    pass


def test_a_drive_under_way_is_replayed_again(
    drives: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second drive the replay ends, as by Ctrl-C."""
    left = iter(range(KEYFRAMES + 2))

    def advance(*_: Any) -> None:
        if next(left, None) is None:
            raise Stopped

    monkeypatch.setattr("deploy.replay.run._Progress.advance", advance)
    with pytest.raises(Stopped):
        replay_with_faults(drives, tmp_path, faults=FAULTS)
    monkeypatch.undo()
    assert replay_with_faults(drives, tmp_path, faults=FAULTS)["resumed_at_frame"] == KEYFRAMES
    assert_all_same(tmp_path, whole)


def test_of_another_replay_they_are_refused_in_one_line(drives: Path, stopped: Path, tmp_path: Path) -> None:
    out, bundle = Path(copytree(stopped, tmp_path / "out")), Path(copytree(small(), tmp_path / "bundle"))
    moved = Path(copytree(drives, tmp_path / "moved"))
    others: dict[str, tuple[Path, dict[str, Any]]] = {
        "bundle": (drives, {"bundle": rewritten(bundle, name="other")}),
        "drive": (moved, {}),
        "scenes": (drives, {"scenes": ["scene-0001"]}),
        "faults": (drives, {"faults": []}),
        "selection": (drives, {"selection": Selection(every=2)}),
    }
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for what, (root, options) in others.items():
        with one_line_error(rf"is of an unfinished replay with {what} .* remove the folder scenes to restart"):
            replay_with_faults(root, out, **({"faults": FAULTS} | options))
        assert {file: file.read_bytes() for file in before} == before


def test_a_scene_that_was_added_before_is_not_taken_for_another(drives: Path, stopped: Path, tmp_path: Path) -> None:
    """All scenes are replayed, and the first one is another now."""
    out, root = Path(copytree(stopped, tmp_path / "out")), drives
    table = root / VERSION / "scene.json"
    content = table.read_text()
    table.write_text(content.replace("scene-0001", "scene-0000"))
    try:
        with one_line_error("is of an unfinished replay with scene scene-0001 .now scene-0000"):
            replay_with_faults(root, out, faults=FAULTS)
    finally:
        table.write_text(content)


def changed(part: Path) -> None:
    found = json.loads(part.read_text())
    assert {"numpy", "source", "compiler", "processor"} <= found["computed"].keys()
    found["computed"]["processor"] = "another"
    part.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (changed, "scene-0001: restarting, because it was replayed with processor another (now "),
        *((lambda part, content=content: part.write_text(content), "") for content in ("", "[]", '{"about": {}}')),
    ],
)
def test_what_another_machine_or_nobody_finished_is_replayed_again(
    drives: Path, whole: Path, stopped: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    out, said = Path(copytree(stopped, tmp_path / "out")), io.StringIO()
    damage(out / "scenes" / "0" / PART)
    summary = replay_with_faults(drives, out, faults=FAULTS, console=Console(file=said, width=1000))
    assert summary["resumed_at_frame"] == (SCENES - 2) * KEYFRAMES
    assert says in said.getvalue()
    assert "resuming the interrupted replay" in said.getvalue()
    assert_all_same(out, whole)


def test_a_viewers_file_is_of_one_run(drives: Path, whole: Path, tmp_path: Path) -> None:
    """So the drives that are finished are replayed again."""
    options = {"faults": FAULTS, "viewer": True}
    with unreadable(drives, -1), pytest.raises(InputError):
        replay_with_faults(drives, tmp_path, **options)
    assert (tmp_path / "scenes" / "0" / PART).exists()
    assert not (tmp_path / "results.mcap").exists()
    assert replay_with_faults(drives, tmp_path, **options)["resumed_at_frame"] == 0
    assert_all_same(tmp_path, whole)
    assert (tmp_path / "results.mcap").exists()


def test_two_replays_do_not_write_one_folder(drives: Path, whole: Path, tmp_path: Path) -> None:
    """And the second one leaves no error there."""
    for _ in range(2):
        with occupy(tmp_path), pytest.raises(OccupiedError, match="another replay or drive writes there; wait for it"):
            replay_with_faults(drives, tmp_path, faults=FAULTS)
    assert list(tmp_path.iterdir()) == []
    replay_with_faults(drives, tmp_path, faults=FAULTS)
    assert_all_same(tmp_path, whole)


def test_parts_of_a_scene_are_one_drive(drives: Path, whole: Path, tmp_path: Path) -> None:
    """Its tracks go on; and no name of a scene is a way out of the folder."""
    parts = ["scene-0001:0-2", "scene-0001:2-5", "scene-0002", "scene-0003"]
    replay_with_faults(drives, tmp_path / "parts", scenes=parts, faults=FAULTS)
    assert_all_same(tmp_path / "parts", whole)
    table = Path(copytree(drives, tmp_path / "drives")) / VERSION / "scene.json"
    table.write_text(table.read_text().replace("scene-0001", "../../../escaped"))
    out = tmp_path / "in" / "a" / "folder"
    replay(Source(tmp_path / "drives", VERSION, ["../../../escaped"]), small(), out, console=QUIET)
    assert (out / "results.json").exists()
    assert not list(tmp_path.rglob("escaped*"))
