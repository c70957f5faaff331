"""What the report keeps of a replay: which frames have pictures, tracks and their trails, the worst, what lasted."""

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from exported import bundle
from hypothesis import given
from hypothesis import strategies as st
from pages import page_data, picture
from vocabulary import CONDITIONS, sensors

from deploy.replay import pictures
from deploy.replay.latency import STAGES, Latency
from deploy.replay.page_frames import MOST_BOXES
from deploy.replay.report import SPREAD, Report, Share
from deploy.replay.timeline import Timeline
from deploy.replay.worst_frames import WorstFrames
from perception.datasets.files import decode_image
from perception.frame import Boxes, Camera, Conditions, Frame, JpegFile, Prediction
from perception.scene.scene import Scene, SceneFrame
from perception.tasks.detection.drawing import mistakes


def seen(scene: Scene, frame: Frame, boxes: Boxes) -> SceneFrame:
    scene.observe(frame)
    return scene.update(frame, Prediction({"detection": boxes}))


def blind(i: int, scene: str = "drive", boxes: Boxes | None = None) -> Frame:
    return Frame(f"s{i}", i * 500_000, "ego", np.eye(4), np.eye(4), None, {}, boxes=boxes, scene=scene)


def test_report_pictures_are_limited_and_spread(tmp_path: Path) -> None:
    report, scene, latency = (
        Report(bundle().manifest, "cpu", 101),
        Scene(sensors(), bundle().manifest.heads, CONDITIONS),
        Latency(),
    )
    slow = {7: 9.0, 40: 8.0, 41: 7.0, 99: 6.0, 12: 5.0}
    for i in range(101):
        frame = blind(i, "</script>")
        seconds = dict.fromkeys(STAGES, 0.01) | {"engine": slow.get(i, 0.01)}
        report.add(frame, replace(seen(scene, frame, Boxes.none()), seconds=seconds))
        latency.add(frame, seconds)
    (tmp_path / "report.html").write_text(report.html(latency.summary()))
    data = page_data(tmp_path / "report.html")
    assert [(each["measure"], each["number"]) for each in data["worst"]] == [
        ("slowest", 7), ("slowest", 40), ("slowest", 41), ("slowest", 99)
    ]  # fmt: skip
    numbers = [frame["number"] for frame in data["frames"]]
    spread = [number for number in numbers if number not in slow]
    assert {7, 40, 41, 99} <= set(numbers)
    assert SPREAD - 4 <= len(spread) <= SPREAD
    assert (spread[0], spread[-1]) == (0, 100)
    assert set(np.diff(spread)) <= {3, 4, 7, 8}  # 7 and 8 where a slow one lies between
    assert len(data["milliseconds"]) == 101
    assert data["frames"][0]["scene"] == "</script>"


def photographed(i: int, rng: np.random.Generator) -> Frame:
    """With points of the keyframe and of an earlier sweep, and two recorded JPEG files: a large and a small one."""
    points = rng.uniform(-30, 30, (4000, 5)).astype(np.float32)
    points[:, 4] = np.repeat([0, 0.05], 2000)
    cameras = {}
    for name, (height, width) in {"CAM_FRONT": (900, 1600), "CAM_BACK": (180, 320)}.items():
        blurred = cv2.resize(rng.integers(0, 255, (9, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        content = cv2.imencode(".jpg", blurred)[1].tobytes()
        image = decode_image(content)
        lens = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
        mounting = np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]])
        cameras[name] = Camera(image, lens, mounting, np.eye(4), 0, JpegFile(content, image))
    return replace(blind(i), points=points, cameras=cameras)


def test_pictures_are_drawn_of_frames_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame is the slowest so far, and so among the worst for a time."""
    drawn: list[str] = []

    def draw(frame: Frame, *_: object) -> None:
        drawn.append(frame.token)

    monkeypatch.setattr(pictures, "points_picture", draw)
    report, rng = Report(bundle().manifest, "cpu", 120), np.random.default_rng(0)
    scene = Scene(sensors("LIDAR_TOP", "CAM_FRONT", "CAM_BACK"), bundle().manifest.heads, CONDITIONS)
    for i in range(120):
        frame = photographed(i, rng)
        report.add(frame, replace(seen(scene, frame, Boxes.none()), seconds=dict.fromkeys(STAGES, 0.01 * i)))
    part = report.part()
    worst = {number for entries in part["worst"].values() for number, *_ in entries}
    assert worst >= {116, 117, 118, 119}
    assert sorted(drawn) == sorted(f"s{number}" for number in worst | set(part["spread"]))


def test_what_is_drawn_at_the_end_is_the_frame() -> None:
    """The same frame in a report that certainly shows it, which draws it at once, and in one that may not."""
    pages = []
    for share in (Share(0, 1), Share(1, 1000)):
        report = Report(bundle().manifest, "cpu", 1, share)
        scene = Scene(sensors("LIDAR_TOP", "CAM_FRONT", "CAM_BACK"), bundle().manifest.heads, CONDITIONS)
        frame = photographed(0, np.random.default_rng(1))
        found = seen(scene, frame, cars([[10, 1, 0], [20, 0, 0]], [0.9, 0.8]))
        shown = report.add(frame, replace(found, seconds=dict.fromkeys(STAGES, 0.01)))
        assert (shown.drawing is None) == ("cameras" in shown.known["page"]) == (share.total == 1)
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
    n = len(places)
    zeros = np.zeros(n)
    return Boxes.from_yaws(
        np.array(places).reshape(n, 3), np.ones((n, 3)), zeros, np.zeros((n, 2)), zeros, zeros, np.array(scores)
    )


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
    assert [each["number"] for each in worst.listed()] == bad[:4]
    assert worst.numbers == set(bad[:4])


def test_report_lists_the_frames_with_most_mistakes() -> None:
    report, scene = (
        Report(bundle().manifest, "cpu", 3),
        Scene(sensors("LIDAR_TOP", "CAM_FRONT"), bundle().manifest.heads, CONDITIONS),
    )
    truth = replace(cars([[10, 0, 0], [20, 0, 0]], [1, 1]), num_points=np.full(2, 5))
    # Two found; one missed and one out of place; of the two that find nothing one is too uncertain to count.
    for i, detections in enumerate(
        (
            cars([[10, 1, 0], [20, 0, 0]], [0.9, 0.8]),
            cars([[10, 3, 0], [20, 0, 0]], [0.9, 0.8]),
            cars([[40, 0, 0], [10, 0, 0], [44, 0, 0]], [0.9, 0.8, 0.2]),
        )
    ):
        frame = blind(i, boxes=truth)
        report.add(frame, replace(seen(scene, frame, detections), seconds=dict.fromkeys(STAGES, 0.01)))
    listed = {(each["measure"], each["number"]): each["text"] for each in report._worst.listed()}
    assert {key: text for key, text in listed.items() if key[0] == "mistakes"} == {
        ("mistakes", 1): "1 missed, 1 extra",
        ("mistakes", 2): "1 missed, 1 extra",
    }
    assert listed["sensors", 0] == "LIDAR_TOP, CAM_FRONT missing"


def test_tracks_keep_their_id_and_leave_a_trail() -> None:
    """A car ahead stands still while the vehicle comes nearer at 10 m/s and turns left."""
    report, scene = Report(bundle().manifest, "cpu", 8), Scene(sensors(), bundle().manifest.heads, CONDITIONS)
    for i in range(8):
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(0.1 * i), -np.sin(0.1 * i)], [np.sin(0.1 * i), np.cos(0.1 * i)]]
        pose[0, 3] = 5.0 * i
        frame = replace(blind(i), global_from_reference=pose, global_from_ego=pose)
        detection = cars([[50, 2, 0]], [0.9]).transformed(np.linalg.inv(pose))
        report.add(frame, replace(seen(scene, frame, detection), seconds=dict.fromkeys(STAGES, 0.01)))
    drawn = [each["layers"]["tracks"] for each in report.part()["frames"]]
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
    drives = ["a"] * 6 + ["b"] * 2
    for i, drive in enumerate(drives):
        there = None if i in (2, 3) else points + np.float32(1e-3 * i)
        frame = replace(blind(i, drive), points=there, conditions=Conditions(weather="rain" if i > 2 else "clear"))
        timeline.add(i, frame, seen(scene, frame, Boxes.none()))
    lanes = {(lane["kind"], lane["name"]): lane["spans"] for lane in timeline.lanes()}
    spans = [(span["from"], span["to"], span["value"]) for span in lanes["health", "LIDAR_TOP"]]
    assert spans == [(0, 1, "ok"), (2, 3, "missing"), (4, 5, "ok"), (6, 7, "ok")]
    weather = [(span["from"], span["to"], span["value"]) for span in lanes["conditions", "weather"]]
    assert weather[0] == (0, 4, "clear")  # three frames of rain, from 3 on, until it is believed
    assert weather[1:] == [(5, 5, "rain"), (6, 7, "rain")]
    assert "rain" in lanes["conditions", "weather"][1]["why"]
    tags = [(span["from"], span["to"], span["value"]) for span in lanes["tags", "weather"]]
    assert tags == [(0, 2, "clear"), (3, 5, "rain"), (6, 7, "rain")]


def test_report_draws_only_boxes_worth_showing() -> None:
    rng = np.random.default_rng(0)
    n = 200
    scores = -np.sort(-rng.uniform(0, 1, n))
    boxes = Boxes.from_yaws(
        rng.uniform(-50, 50, (n, 3)), np.ones((n, 3)), np.zeros(n), np.zeros((n, 2)), np.zeros(n), np.zeros(n), scores
    )
    report, scene = Report(bundle().manifest, "cpu", 2), Scene(sensors(), bundle().manifest.heads, CONDITIONS)
    for i in range(2):
        frame = replace(blind(i), boxes=replace(boxes, num_points=np.zeros(n, int)))
        report.add(frame, replace(seen(scene, frame, boxes), seconds=dict.fromkeys(STAGES, 0.01)))
    drawn = report.part()["frames"][1]["layers"]
    assert [box["score"] for box in drawn["detections"]] == scores[:MOST_BOXES].round(3).tolist()
    assert len(drawn["tracks"]) == MOST_BOXES
    assert drawn["annotations"] == []
