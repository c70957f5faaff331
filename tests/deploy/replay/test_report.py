"""What the report keeps of a replay and shows: frames with pictures, tracks, the worst, what lasted; in a browser."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from exported import QUIET, bundle
from hypothesis import given
from hypothesis import strategies as st
from made_up import keyframe
from pages import needs_chromium, page_data, picture, visit
from vocabulary import CONDITIONS, NUSCENES, sensors

from deploy.replay import pictures
from deploy.replay.frames import MOST_BOXES
from deploy.replay.latency import STAGES, Latency
from deploy.replay.report import EVENLY, DriveRange, Report, with_verdict
from deploy.replay.run import replay
from deploy.replay.settings import Source
from deploy.replay.timeline import Timeline, WorstFrames
from deploy.replay.verdict import Case, Verdict
from deploy.runtime import Runtime
from perception.datasets.files import decode_image
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Boxes, Camera, Conditions, Frame, JpegFile, Prediction
from perception.scene.scene import Routed, Scene, SceneFrame
from perception.tasks.detection.submission import sample_results
from perception.tasks.detection.task import mistakes

POINT = np.zeros((1, 5), np.float32)  # a frame without data says nothing
SCENE = "scene-0103:2-8"  # all sensors twice, three times LiDAR only, then none
USUAL = dict.fromkeys(STAGES, 0.01)  # s


def test_results_are_the_predictors_and_the_report_shows_missing_sensors(nuscenes_root: Path, tmp_path: Path) -> None:
    tables, runtime = NuScenesTables(nuscenes_root, "v1.0-mini"), Runtime(bundle().path)
    replay(Source(nuscenes_root, "v1.0-mini", [SCENE]), bundle().path, tmp_path, console=QUIET)
    submission = json.loads((tmp_path / "results.json").read_text())
    samples = tables.samples(selectors=[SCENE])
    frames = [tables.frame(sample, Reads(sweeps=runtime.bundle.spec.sweeps)) for sample in samples]
    assert submission["results"] == {
        frame.token: sample_results(frame, runtime(frame).results["detection"], NUSCENES) for frame in frames
    }
    assert (submission["meta"]["use_lidar"], submission["meta"]["use_camera"]) == (True, True)
    shown = page_data(tmp_path / "report.html")["frames"]
    assert [len(each["cameras"]) for each in shown] == [6, 6, 0, 0, 0, 0]
    assert [each["points"] is not None for each in shown] == [True] * 5 + [False]
    assert all(each["layers"]["map"] for each in shown)
    assert shown[0]["conditions"] == ["clear", "day", "boston"]
    assert shown[5]["seconds"] == pytest.approx(2.5, abs=0.1)  # keyframes come at 2 Hz
    for each, frame in zip(shown, frames, strict=True):
        near = (np.abs(frame.boxes.centers[:, :2]) < 51.2).all(axis=1)
        assert len(each["layers"]["annotations"]) == ((frame.boxes.num_points > 0) & near).sum()
    *stages, total = (each["mean"] for each in json.loads((tmp_path / "latency.json").read_text())["stages"].values())
    assert total == pytest.approx(sum(stages), abs=0.01)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        replay(Source(nuscenes_root, "v1.0-mini", [SCENE]), bundle().path, tmp_path / "file" / "out", console=QUIET)


def seen(scene: Scene, frame: Frame, boxes: Boxes) -> SceneFrame:
    scene.observe(frame)
    return scene.update(frame, Prediction({"detection": boxes}))


def blind(i: int, scene: str = "drive", boxes: Boxes | None = None) -> Frame:
    truth = {} if boxes is None else {"boxes": boxes}
    return Frame(f"s{i}", i * 500_000, "ego", np.eye(4), np.eye(4), None, {}, truth=truth, scene=scene)


def reported(given: Iterable[tuple[Frame, Boxes, dict[str, float]]], names: tuple[str, ...] = ()) -> Report:
    """The report of frames, detections in them and latencies."""
    given, manifest = list(given), bundle().manifest
    report, scene = (
        Report(manifest, "cpu", DriveRange(0, len(given), len(given))),
        Scene(sensors(*names), manifest.heads, CONDITIONS),
    )
    for frame, boxes, seconds in given:
        report.add(frame, replace(seen(scene, frame, boxes), seconds=USUAL | seconds))
    return report


def test_report_pictures_are_limited_and_spread(tmp_path: Path) -> None:
    latency, slow = Latency(), {7: 9.0, 40: 8.0, 41: 7.0, 99: 6.0, 12: 5.0}
    given = [(blind(i, "</script>"), Boxes.none(), {"engine": slow.get(i, 0.01)}) for i in range(101)]
    for frame, _, seconds in given:
        latency.add(frame, USUAL | seconds)
    (tmp_path / "report.html").write_text(reported(given).html(latency.summary()))
    data = page_data(tmp_path / "report.html")
    assert [(each["measure"], each["number"]) for each in data["worst"]] == [("slowest", i) for i in (7, 40, 41, 99)]
    numbers = [frame["number"] for frame in data["frames"]]
    spread = [number for number in numbers if number not in slow]
    assert {7, 40, 41, 99} <= set(numbers)
    assert EVENLY - 4 <= len(spread) <= EVENLY
    assert (spread[0], spread[-1]) == (0, 100)
    assert set(np.diff(spread)) <= {3, 4, 7, 8}  # 7 and 8 where a slow one lies between
    assert len(data["milliseconds"]) == 101
    assert data["frames"][0]["scene"] == "</script>"


PHOTOGRAPHED = ("LIDAR_TOP", "CAM_FRONT", "CAM_BACK")


def photographed(i: int, rng: np.random.Generator, large: tuple[int, int] = (900, 1600)) -> Frame:
    """With points of the keyframe among those of an earlier sweep, and recorded JPEG files: a large and a small one."""
    points = rng.uniform(-30, 30, (4000, 5)).astype(np.float32)
    cameras = {}
    for name, (height, width) in {"CAM_FRONT": large, "CAM_BACK": (180, 320)}.items():
        blurred = cv2.resize(rng.integers(0, 255, (9, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        content = cv2.imencode(".jpg", blurred)[1].tobytes()
        image = decode_image(content)
        lens = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
        mounting = np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]])
        cameras[name] = Camera(image, lens, mounting, np.eye(4), 0, JpegFile(content, image))
    sweeps = rng.integers(0, 2, 4000).astype(np.uint8)
    return replace(blind(i), points=points, cameras=cameras, sweep_of_point=sweeps)


def test_pictures_are_drawn_of_frames_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame is the slowest so far, and so among the worst for a time."""
    drawn: list[str] = []
    monkeypatch.setattr(pictures, "points_picture", lambda frame, *_: drawn.append(frame.token))
    rng = np.random.default_rng(0)
    frames = [photographed(i, rng, (180, 320)) for i in range(120)]
    given = [(frame, Boxes.none(), dict.fromkeys(STAGES, 0.01 * i)) for i, frame in enumerate(frames)]
    part = reported(given, PHOTOGRAPHED).part()
    worst = {number for entries in part["worst"].values() for number, *_ in entries}
    assert worst >= {116, 117, 118, 119}
    assert sorted(drawn) == sorted(f"s{number}" for number in worst | set(part["spread"]))


def test_what_is_drawn_at_the_end_is_the_frame() -> None:
    """The same frame in a report that certainly shows it, which draws it at once, and in one that may not."""
    pages = []
    for place in (DriveRange(0, 1, 1), DriveRange(1, 1, 1000)):
        report = Report(bundle().manifest, "cpu", place)
        scene = Scene(sensors(*PHOTOGRAPHED), bundle().manifest.heads, CONDITIONS)
        frame = photographed(0, np.random.default_rng(1))
        found = seen(scene, frame, cars([[10, 1, 0], [20, 0, 0]], [0.9, 0.8]))
        report.add(frame, replace(found, seconds=USUAL))
        assert bool(report._frames._undrawn) == (place.total > 1)
        pages += report.part()["frames"]
    now, later = ({**each, "cameras": {}} for each in pages)
    assert now == later
    assert now["points"].startswith("data:image/png")
    files = [{name: picture(uri) for name, uri in each["cameras"].items()} for each in pages]
    np.testing.assert_array_equal(files[0]["CAM_BACK"], files[1]["CAM_BACK"])
    assert files[0]["CAM_FRONT"].shape == (225, 400, 3)
    at_once, at_end = (each["CAM_FRONT"].astype(int) for each in files)
    moved = np.abs(at_once[:, 1:] - at_once[:, :-1]).mean()  # how far pictures are apart that are moved by a pixel
    assert np.abs(at_once - at_end).mean() < moved / 4  # one is reduced while it is decoded


def cars(places: list[list[float]], scores: list[float]) -> Boxes:
    n, zeros = len(places), np.zeros(len(places))
    centers = np.array(places).reshape(n, 3)
    return Boxes.from_yaws(centers, np.ones((n, 3)), zeros, np.zeros((n, 2)), zeros, zeros, np.array(scores))


@given(seed=st.integers(0, 2**32 - 1))
def test_mistakes_are_the_official_matchings(seed: int) -> None:
    """As nuscenes.eval.detection.algo.accumulate pairs them at 2 m, here with plain loops."""
    rng = np.random.default_rng(seed)
    n, m = rng.integers(0, 12, 2)
    predicted = cars(rng.uniform(0, 8, (n, 3)).tolist(), (-np.sort(-rng.uniform(0, 1, n))).tolist())
    annotated = cars(rng.uniform(0, 8, (m, 3)).tolist(), [1.0] * int(m))
    predicted = replace(predicted, labels=rng.integers(0, 2, n))
    annotated = replace(annotated, labels=rng.integers(0, 2, m))
    taken: set[int] = set()
    for i in range(n):
        free = [j for j in range(m) if j not in taken and annotated.labels[j] == predicted.labels[i]]
        apart = {j: math.dist(predicted.centers[i, :2], annotated.centers[j, :2]) for j in free}
        nearest = min(apart, key=apart.__getitem__, default=None)
        if nearest is not None and apart[nearest] < 2:
            taken.add(nearest)
    assert mistakes(predicted, annotated) == (m - len(taken), n - len(taken))


@given(values=st.lists(st.integers(0, 5), max_size=60))
def test_worst_frames_are_those_that_sorting_finds(values: list[int]) -> None:
    worst = WorstFrames()
    for i, value in enumerate(values):
        worst.add(i, {"mistakes": (value, "")})
    bad = sorted((i for i, value in enumerate(values) if value), key=lambda i: (-values[i], i))
    assert [each["number"] for each in worst.to_rows()] == bad[:4]
    assert worst.numbers == set(bad[:4])


def test_report_lists_the_frames_with_most_mistakes() -> None:
    """Two found; one missed and one out of place; of the two that find nothing one is too uncertain to count."""
    truth = replace(cars([[10, 0, 0], [20, 0, 0]], [1, 1]), num_points=np.full(2, 5))
    found = (
        cars([[10, 1, 0], [20, 0, 0]], [0.9, 0.8]),
        cars([[10, 3, 0], [20, 0, 0]], [0.9, 0.8]),
        cars([[40, 0, 0], [10, 0, 0], [44, 0, 0]], [0.9, 0.8, 0.2]),
    )
    given = [(blind(i, boxes=truth), boxes, {}) for i, boxes in enumerate(found)]
    worst = reported(given, ("LIDAR_TOP", "CAM_FRONT"))._worst.to_rows()
    listed = {(each["measure"], each["number"]): each["text"] for each in worst}
    wrong = "1 missed, 1 extra"
    assert {key[1]: text for key, text in listed.items() if key[0] == "mistakes"} == {1: wrong, 2: wrong}
    assert listed["sensors", 0] == "LIDAR_TOP, CAM_FRONT missing"


def test_tracks_keep_their_id_and_leave_a_trail() -> None:
    """A car ahead stands still while the vehicle comes nearer at 10 m/s and turns left."""
    given = []
    for i in range(8):
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(0.1 * i), -np.sin(0.1 * i)], [np.sin(0.1 * i), np.cos(0.1 * i)]]
        pose[0, 3] = 5.0 * i
        frame = replace(blind(i), **keyframe(POINT), global_from_reference=pose, global_from_ego=pose)
        given.append((frame, cars([[50, 2, 0]], [0.9]).transformed(np.linalg.inv(pose)), {}))
    drawn = [each["layers"]["tracks"] for each in reported(given, ("LIDAR_TOP",)).part()["frames"]]
    assert [len(tracks) for tracks in drawn] == [0] + [1] * 7  # not before a second detection confirms it
    assert len({tracks[0]["id"] for tracks in drawn[1:]}) == 1
    for i, (track,) in enumerate(drawn[1:], 1):
        x, y = 50 - 5.0 * i, 2.0  # as the vehicle sees it before it turns
        ahead, leftward = x * np.cos(0.1 * i) + y * np.sin(0.1 * i), y * np.cos(0.1 * i) - x * np.sin(0.1 * i)
        np.testing.assert_allclose(track["above"][4], [-leftward, -ahead], atol=0.05)
        np.testing.assert_allclose(track["trail"], [[-leftward, -ahead]] * min(i + 1, 9), atol=0.1)


def test_timeline_has_spans_for_what_lasts() -> None:
    timeline, scene = Timeline(), Scene(sensors("LIDAR_TOP"), {}, CONDITIONS)
    points = np.zeros((4000, 5), np.float32)
    points[:, :3] = np.random.default_rng(0).uniform(-20, 20, (4000, 3))
    for i, drive in enumerate("aaaaaabb"):
        there = None if i in (2, 3) else points + np.float32(1e-3 * i)
        frame = replace(blind(i, drive), **keyframe(there), conditions=Conditions(weather="rain" if i > 2 else "clear"))
        timeline.add(i, frame, seen(scene, frame, Boxes.none()))
    lanes = {(lane["kind"], lane["name"]): lane["spans"] for lane in timeline.lanes()}
    health, weather, tags = (
        [(span["from"], span["to"], span["value"]) for span in lanes[lane]]
        for lane in (("health", "LIDAR_TOP"), ("conditions", "weather"), ("tags", "weather"))
    )
    assert health == [(0, 1, "ok"), (2, 3, "missing"), (4, 5, "ok"), (6, 7, "ok")]
    assert weather == [(0, 4, "clear"), (5, 5, "rain"), (6, 7, "rain")]  # from 3 on, until it is believed
    assert "rain" in lanes["conditions", "weather"][1]["why"]
    assert tags == [(0, 2, "clear"), (3, 5, "rain"), (6, 7, "rain")]


def test_report_draws_only_boxes_worth_showing() -> None:
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.uniform(0, 1, 200))
    boxes = cars(rng.uniform(-50, 50, (200, 3)).tolist(), scores.tolist())
    truth = replace(boxes, num_points=np.zeros(200, int))
    given = [(replace(blind(i, boxes=truth), **keyframe(POINT)), boxes, {}) for i in range(2)]
    drawn = reported(given, ("LIDAR_TOP",)).part()["frames"][1]["layers"]
    assert [box["score"] for box in drawn["detections"]] == scores[:MOST_BOXES].round(3).tolist()
    assert len(drawn["tracks"]) == MOST_BOXES
    assert drawn["annotations"] == []


FRAMES, SLOWEST = 120, 37
VERDICT = Verdict(
    (
        Case("mAP", "mAP", True, 0.4, 0.3, "0.4000; at least 0.3"),
        Case("NDS at night", "NDS", False, 0.2, 0.3, "0.2000; at least 0.3"),
        Case("AMOTA", "AMOTA", False, None, 0.3, "not measured: <b>no</b> tracks"),
    ),
    FRAMES, 2, None,
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tables: NuScenesTables) -> str:
    """Of a longer drive: simulated frames again and again, one of them very slow."""
    runtime = Runtime(bundle().path)
    frames = [tables.frame(sample, Reads(sweeps=runtime.bundle.spec.sweeps)) for sample in tables.samples()]
    seen = [runtime.step(frame) for frame in frames]
    report, latency = Report(bundle().manifest, "cpu", DriveRange(0, FRAMES, FRAMES)), Latency()
    for i in range(FRAMES):
        seconds = USUAL | {"engine": 3.0 if i == SLOWEST else 0.05 + 1e-4 * i}
        which = i * len(frames) // FRAMES
        routed = Routed(1.0, "rain since 0.0 s: 1 of 1 frames") if which >= 4 else Routed(0.0, "clear")
        report.add(frames[which], replace(seen[which], route={"wet_road": routed}, seconds=seconds))
        latency.add(frames[which], seconds)
    return with_verdict(report.html(latency.summary()), VERDICT.as_dict())


@pytest.mark.slow("a report of a long drive")
def test_page_of_a_long_drive_is_small(page: str) -> None:
    assert len(page) < 8e6
    assert len(re.findall(r'"token":"', page)) > 28


LOOK = """
  const look = () => ({
    counter: document.getElementById("counter").textContent,
    times: document.getElementById("status").innerText,
    marked: [...document.querySelectorAll(".worst a.now")].map(link => link.hash),
    pictures: [...document.querySelectorAll(".camera img")].filter(image => image.naturalWidth > 0).length,
    hash: location.hash,
    facts: document.getElementById("reasoned").innerText,
  });
  const before = look();
"""


@needs_chromium
def test_link_of_a_worst_frame_shows_it(page: str, tmp_path: Path) -> None:
    """The page opens with the verdict first, and with nothing from elsewhere."""
    click = f"""document.querySelector('.worst a[href="#frame-{SLOWEST + 1}"]').click();"""
    opened = visit(
        page,
        tmp_path,
        f"""{LOOK} const page = {{
          first: document.querySelector("main").innerText.split(String.fromCharCode(10)).filter(Boolean).slice(0, 5),
          top: document.getElementById("verdict").getBoundingClientRect().top,
          loaded: performance.getEntriesByType("resource").filter(each => !each.name.startsWith("data:")).length,
          bars: document.querySelectorAll("#histogram rect").length,
          names: [...document.querySelectorAll("#lanes text.name")].map(name => name.textContent),
          why: [...document.querySelectorAll("#lanes title")].map(title => title.textContent),
          lanes: document.querySelectorAll("#lanes rect").length,
        }};
        {click} setTimeout(() => report({{...page, before, after: look()}}), 500);""",
        "--virtual-time-budget=2000",
    )
    found, before, after = opened.found, opened.found["before"], opened.found["after"]
    assert opened.console == []
    assert found["first"][:2] == ["Fail", f"2 of 3 gates failed, {FRAMES} frames of 2 scenes"]
    reasons = ["NDS at night: 0.2000; at least 0.3", "AMOTA: not measured: <b>no</b> tracks"]
    assert found["first"][3:5] == reasons
    assert found["top"] < 50
    assert (found["loaded"], found["bars"] >= 8, found["lanes"] > 10) == (0, True, True)
    assert {"weather by tags", "weather", "wet road, 1 switch"} <= {*found["names"]}
    assert {"weather by tags: clear", "weather by tags: rain", "light by tags: night"} <= {*found["why"]}
    route = {why for why in found["why"] if why.startswith("wet road")}
    assert route == {"wet road: 0\nclear", "wet road: 1\nrain since 0.0 s: 1 of 1 frames"}
    assert (before["counter"], after["counter"]) == (f"frame 1 of {FRAMES}", f"frame {SLOWEST + 1} of {FRAMES}")
    assert "engine 3000" in after["times"]
    assert set(after["marked"]) == {f"#frame-{SLOWEST + 1}"}
    assert after["pictures"] == 6


@needs_chromium
def test_address_of_a_frame_shows_it_and_the_arrow_goes_on(page: str, tmp_path: Path) -> None:
    opened = visit(
        page,
        tmp_path,
        f"""{LOOK} const milliseconds = performance.now();
        document.dispatchEvent(new KeyboardEvent("keydown", {{key: "ArrowRight"}}));
        report({{milliseconds, before, after: look()}});""",
        fragment=f"#frame-{SLOWEST + 1}",
    )
    assert opened.console == []
    assert opened.found["milliseconds"] < 2000
    assert opened.found["before"]["counter"] == f"frame {SLOWEST + 1} of {FRAMES}"
    assert "off: clear" in opened.found["before"]["facts"]
    number = int(opened.found["after"]["counter"].split()[1])
    assert SLOWEST + 1 < number <= SLOWEST + 6
    assert opened.found["after"]["hash"] == f"#frame-{number}"
