"""Replays of a bundle with a memory: it sees all frames of a drive, and the results of the keyframes are written."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import refuses
from exported import QUIET, remembering
from pages import timeless
from replays import VERSION, assert_same, replay_with_faults
from tiny import token, write_scenes, write_tiny

from deploy.log import write_log
from deploy.recordings.choice import FrameChoice, Selection
from deploy.recordings.drives import DatasetDrive, Drive, open_drives
from deploy.replay.player import Player
from deploy.replay.report import DriveRange
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.evaluation.evaluate import evaluate
from perception.frame import Frame
from perception.scene.health.monitor import VEHICLE

SCENES, KEYFRAMES, PERIOD = 2, 5, 0.25  # frames at 4 Hz, of which every second is a keyframe
FAULTS = ["freeze:lidar@0.5-1", "drop:all@1.2-1.3"]  # the second one has a frame between keyframes alone


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drives") / "tiny"
    write_scenes(root, SCENES, KEYFRAMES, between=True)
    return root


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(remembering().path)


def replayed(drives: Path, out: Path, **options: Any) -> dict[str, Any]:
    return replay_with_faults(drives, out, **({"bundle": remembering().path, "faults": FAULTS} | options))


@pytest.fixture(scope="module")
def whole(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a replay in one go."""
    out = tmp_path_factory.mktemp("whole")
    assert replayed(drives, out)["frames"] == SCENES * KEYFRAMES
    return out


def results(out: Path, name: str = "results.json") -> dict[str, Any]:
    return dict(json.loads((out / name).read_text())["results"])


def open_scene(drives: Path, runtime: Runtime) -> Drive:
    [drive] = open_drives(drives, VERSION, ["scene-0001"], runtime.bundle.spec, None, between=runtime.spacing)
    return drive


def step_through(runtime: Runtime, frames: list[Frame], out: Path) -> None:
    """Write what the runtime says of the keyframes among these frames."""
    runtime.restart()
    manifest = runtime.bundle.manifest
    out.mkdir()
    with ExitStack() as files:
        opened = manifest.heads["detection"].writer(out, manifest.sensors)
        assert opened is not None
        writer = files.enter_context(opened)
        for frame in frames:
            seen = runtime.step(frame)
            if "@" not in frame.token:
                writer.add(frame, seen.prediction.results["detection"], seen.states.get("detection"))


@pytest.mark.slow("the first test that needs the bundle exports it")
def test_the_network_sees_the_frames_between_and_results_are_those_of_keyframes(
    drives: Path, runtime: Runtime, tmp_path: Path
) -> None:
    """Against the frames of the data set, one after the other; seeing keyframes alone it would say something else."""
    tables, spec = NuScenesTables(drives, VERSION), runtime.bundle.spec
    every = [*tables.moments(tables.samples(selectors=["scene-0001"])[0])]
    assert sum("@" in each for each in every[1:]) == KEYFRAMES - 1
    every = every[every.index(token("sample", 0)) :]  # sweeps before the first keyframe are no drive's frames
    reads = Reads(spec.grid.reference, spec.sweeps)
    step_through(runtime, [tables.frame(each, reads) for each in every], tmp_path / "every")
    step_through(runtime, [tables.frame(each, reads) for each in every[::2]], tmp_path / "keyframes")
    summary = replayed(drives, tmp_path / "out", scenes=["scene-0001"], faults=[])
    assert summary["frames"] == KEYFRAMES == len(results(tmp_path / "out"))
    for name in ("results.json", "tracks.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "every" / name).read_bytes()
    expected, without = results(tmp_path / "every"), results(tmp_path / "keyframes")
    assert expected[every[0]] == without[every[0]]
    assert all(expected[each] != without[each] for each in every[2::2])
    assert json.loads((tmp_path / "out" / "latency.json").read_text())["period"] == 1000 * PERIOD


def test_annotations_are_of_keyframes_and_frames_between_as_far_apart_as_is_asked(drives: Path) -> None:
    tables, spec = NuScenesTables(drives, VERSION), remembering().spec
    samples = tables.samples(selectors=["scene-0001"])
    for nothing in (None, 1.2 * PERIOD):
        drive = DatasetDrive(tables, ["scene-0001"], spec, nothing)
        assert [frame.token for frame in drive.frames()] == samples
    frames = [*DatasetDrive(tables, ["scene-0001"], spec, PERIOD).frames()]
    assert [frame.token for frame in frames][::2] == samples
    assert [frame.token.partition("@")[0] for frame in frames][1::2] == samples[1:]
    assert all(("boxes" in frame.truth, bool(frame.truth)) == (i % 2 == 0,) * 2 for i, frame in enumerate(frames))


def test_a_recording_has_the_pictures_between_keyframes(drives: Path, tmp_path: Path) -> None:
    """By its period it has all frames of the drive, with all cameras."""
    tables, spec, path = NuScenesTables(drives, VERSION), remembering().spec, tmp_path / "drive.mcap"
    write_log(drives, "scene-0001", path)
    (tmp_path / "topics.yaml").write_text(f"keyframes: null\nperiod: {PERIOD}\n")
    [drive] = open_drives(path, None, [], spec, tmp_path / "topics.yaml")
    recorded = {frame.timestamp: frame for frame in drive.frames()}
    moments = tables.moments(tables.samples(selectors=["scene-0001"])[0])
    assert len(moments) == 2 * KEYFRAMES
    assert [*recorded] == [*moments.values()]
    for each_token, time in moments.items():
        cameras = tables.frame(each_token, Reads(spec.grid.reference)).cameras
        assert cameras.keys() == recorded[time].cameras.keys()
        assert all(np.array_equal(recorded[time].cameras[name].image, each.image) for name, each in cameras.items())


def test_frames_are_no_nearer_to_each_other_than_in_the_memorys_training(tmp_path: Path, runtime: Runtime) -> None:
    """Sweeps at 20 Hz, of which those 0.1 s apart are seen, and no other at the end."""

    class Sweeps(NuScenesTables):
        def moments(self, token: str) -> dict[str, int]:
            start, end = (self.recording(sample).timestamp for sample in self.samples())
            return {f"@{start + each}": start + each for each in range(50_100, end - start, 50_100)}

        def frame(self, token: str, reads: Reads = Reads()) -> Frame:  # noqa: B008 - it is immutable
            frame = super().frame(self.samples()[0], reads)
            return changed(frame, token=token)

    write_tiny(tmp_path / "tiny", 2)
    assert runtime.spacing == 0.1
    drive = DatasetDrive(Sweeps(tmp_path / "tiny", VERSION), ["scene-0001"], runtime.bundle.spec, runtime.spacing)
    first, *between, last = (frame.token for frame in drive.frames())
    assert [first, last] == [token("sample", i) for i in range(2)]
    start = drive.tables.recording(first).timestamp
    assert [int(each[1:]) - start for each in between] == [100_200, 200_400, 300_600, 400_800]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [(["0-2", "2-5"], [0, 1, 2, 3, 4, 5, 6, 7, 8]), (["1-3", "4-5"], [2, 3, 4, 8]), (["3-4"], [6])],
)
def test_of_a_part_of_a_drive_the_frames_between_two_of_its_keyframes_are_seen(
    drives: Path, runtime: Runtime, parts: list[str], expected: list[int]
) -> None:
    whole = [frame.token for frame in open_scene(drives, runtime).frames()]
    selectors = [f"scene-0001:{part}" for part in parts]
    drive = DatasetDrive(NuScenesTables(drives, VERSION), selectors, runtime.bundle.spec, runtime.spacing)
    assert [frame.token for frame in drive.frames()] == [whole[i] for i in expected]
    assert len(drive) == sum(i % 2 == 0 for i in expected)


def test_frames_that_are_selected_decide_what_is_written(
    drives: Path, runtime: Runtime, whole: Path, tmp_path: Path
) -> None:
    """Of every second keyframe the results are those of all, as the frames between them are still seen."""
    replayed(drives, tmp_path / "two", selection=Selection(every=2))
    every, two = results(whole), results(tmp_path / "two")
    chosen = [*range(0, KEYFRAMES, 2), *range(KEYFRAMES, 2 * KEYFRAMES, 2)]
    assert two == {token("sample", i): every[token("sample", i)] for i in chosen}
    choice = FrameChoice(Selection(0.2, 1.3), all_frames=True)
    asked = [(250_000 * i, i % 2 == 1) for i in range(9)]
    chosen = [i for i, (time, between) in enumerate(asked) if choice("", time, between)]
    assert chosen == [1, 2, 3, 4, 5]  # the first is a frame between, from which on there is a state


@pytest.mark.slow("two processes open the bundle")
def test_processes_give_the_bytes_of_one(drives: Path, whole: Path, tmp_path: Path) -> None:
    replay(Source(drives, VERSION), remembering().path, tmp_path, Settings(faults=FAULTS), console=QUIET, jobs=2)
    assert_same(tmp_path, whole)
    assert timeless(tmp_path) == timeless(whole)


class Changed:
    """A drive with other frames."""

    def __init__(self, drive: Drive, change: Callable[[int, Frame], Frame]) -> None:
        self.name, self.tables, self.seconds, self._drive, self._change = "", None, drive.seconds, drive, change

    @property
    def counts(self) -> Any:
        return self._drive.counts

    def __len__(self) -> int:
        return len(self._drive)

    def frames(self, choice: FrameChoice | None = None) -> Iterator[Frame]:
        for i, frame in enumerate(self._drive.frames(choice)):
            yield self._change(i, frame)


def moved(frame: Frame, metres: float) -> Frame:
    move = np.eye(4)
    move[0, 3] = metres
    poses = {name: move @ getattr(frame, name) for name in ("global_from_ego", "global_from_reference")}
    cameras = {name: changed(c, global_from_ego=move @ c.global_from_ego) for name, c in frame.cameras.items()}
    return changed(frame, **poses, cameras=cameras)


def play(
    drive: Any,
    runtime: Runtime,
    out: Path,
    selection: Selection = Selection(),  # noqa: B008 - it is immutable
) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """The scores of each keyframe, and the spans of faults in the vehicle's health."""
    out.mkdir()
    totals = Player(runtime, Settings(selection=selection)).play(drive, out, DriveRange(0, len(drive), len(drive)))
    lanes = [each for each in totals.report.part()["lanes"] if (each["kind"], each["name"]) == ("health", VEHICLE)]
    scores = {each: [box["detection_score"] for box in boxes] for each, boxes in results(out).items()}
    return scores, [span for each in lanes for span in each["spans"] if span["value"] != "ok"]


@pytest.mark.parametrize(
    ("metres", "number", "begins", "why"),
    [
        (1000.0, 5, 3, "impossible motion"),
        (np.nan, 4, 2, "global_from_ego cannot be used"),
    ],
)
def test_a_frame_whose_pose_cannot_be_is_seen_without_memory_and_so_is_the_next(
    drives: Path, runtime: Runtime, tmp_path: Path, metres: float, number: int, begins: int, why: str
) -> None:
    """A keyframe, or a frame between, whose health the next keyframe shows."""
    drive = open_scene(drives, runtime)
    wrong = Changed(drive, lambda i, frame: moved(frame, metres) if i == number else frame)
    found, [span] = play(wrong, runtime, tmp_path / "wrong")
    expected, healthy = play(drive, runtime, tmp_path / "right")
    assert (span["from"], healthy) == (begins, [])
    assert why in span["why"]
    samples, anew = [*expected], dict[str, list[float]]()
    for first in (number, number + 1):  # drives that begin there, without memory
        rest = Changed(drive, lambda i, frame, first=first: moved(frame, metres) if first + i == number else frame)
        anew |= play(rest, runtime, tmp_path / str(first), Selection(start=first * PERIOD - 0.01))[0]
    without = [number // 2] if number % 2 == 0 else [(number + 1) // 2]
    assert all(anew[samples[i]] != expected[samples[i]] for i in without)
    assert found == {each: anew.get(each, expected[each]) for each in samples}


def test_a_frame_without_any_sensor_carries_the_state_on(drives: Path, runtime: Runtime, tmp_path: Path) -> None:
    """The next frame differs from what it would be without memory, and is what the runtime steps through."""
    scene = open_scene(drives, runtime)
    replayed(drives, tmp_path / "out", faults=["drop:all@1.2-1.3"], scenes=["scene-0001"])
    frames = [*scene.frames()]
    frames[5] = changed(frames[5].without_points(), cameras={})
    step_through(runtime, frames, tmp_path / "steps")
    found = results(tmp_path / "out")
    assert found == results(tmp_path / "steps")
    step_through(runtime, frames[6:], tmp_path / "anew")
    assert found[token("sample", 3)] != results(tmp_path / "anew")[token("sample", 3)]


def test_an_evaluation_carries_the_state_from_keyframe_to_keyframe_of_a_drive(
    drives: Path, runtime: Runtime, tmp_path: Path
) -> None:
    """And processes that predict frames in any order are refused."""
    tables, spec = NuScenesTables(drives, VERSION), runtime.bundle.spec
    evaluate(runtime, tables, "all", (), tmp_path / "scores", spec, QUIET)
    found = results(tmp_path / "scores", "results_nusc.json")
    for i in range(SCENES):
        samples = tables.samples(selectors=[f"scene-{1 + i:04}"])
        step_through(runtime, [tables.frame(each, spec.reads) for each in samples], tmp_path / str(i))
        assert {each: found.pop(each) for each in samples} == results(tmp_path / str(i))
    assert not found
    command = ("evaluate", remembering().path, "--data", drives, "--split", "all", "--out", tmp_path / "refused")
    for option in (("--jobs", 2), ("--ray", "auto")):
        assert "has a memory, so that its frames depend on those before" in refuses(*command, *option)


def test_outputs_between_keyframes_that_are_not_finite_are_said_at_the_next(
    drives: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a verdict fails by them."""
    remember, lost = runtime.remember, iter([{}, {"map/probabilities": 3}, {}, {}, {"map/probabilities": 1}])

    def damaged(frame: Frame, prediction: Any, weights: Any) -> Any:
        return remember(frame, changed(prediction, not_finite=next(lost, {})), weights)

    monkeypatch.setattr(runtime, "remember", damaged)
    play(open_scene(drives, runtime), runtime, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "statistics.jsonl").read_text().splitlines()]
    assert [line["not_finite"].get("map/probabilities") for line in lines] == [None, 3, 1, None, None]
