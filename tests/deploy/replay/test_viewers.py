"""results.mcap and results.rrd, read back with the official readers: all lies where submission and scene have it."""

import filecmp
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from exported import QUIET, bundle
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory
from pyquaternion import Quaternion
from vocabulary import CAMERAS, CLASSES, SENSORS

from deploy.replay.faults import Fault, inject
from deploy.replay.foxglove_results import FoxgloveWriter
from deploy.replay.pictures import raster_colours
from deploy.replay.run import replay
from deploy.replay.settings import Settings, Source
from deploy.runtime import Runtime
from perception.datasets.files import decode_image, jpeg_file
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.frame import Frame
from perception.scene.scene import SceneFrame
from perception.tasks.drawing import LOWEST_SCORE

SCENE = "scene-0001"
Steps = list[tuple[Frame, SceneFrame]]
Messages = dict[str, dict[int, list[Any]]]  # topic -> log time, us -> messages


def read(path: Path) -> Messages:
    found: Messages = defaultdict(lambda: defaultdict(list))
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        for _, channel, message, content in reader.iter_decoded_messages():
            found[channel.topic][message.log_time // 1000].append(content)
    return found


@pytest.fixture(scope="module")
def steps(tables: NuScenesTables) -> Steps:
    runtime = Runtime(bundle().path)
    frames = [tables.frame(sample, sweeps=runtime.bundle.spec.sweeps) for sample in tables.samples()]
    return [(frame, runtime.step(frame)) for frame in frames]


def viewed(root: Path, out: Path, *scenes: str, viewers: tuple[str, ...] = ("foxglove",), faults: Any = ()) -> Path:
    """The folder of a replay with files for viewers."""
    settings = Settings(viewers=viewers, faults=faults)
    summary = replay(Source(root, "v1.0-sim", [*scenes]), bundle().path, out, settings, console=QUIET)
    files = {"foxglove": str(out / "results.mcap"), "rerun": str(out / "results.rrd")}
    assert summary["viewers"] == {viewer: files[viewer] for viewer in viewers}
    return out


@pytest.fixture(scope="module")
def replayed(sim_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return viewed(sim_root, tmp_path_factory.mktemp("viewers"))


@pytest.fixture(scope="module")
def messages(replayed: Path) -> Messages:
    return read(replayed / "results.mcap")


def pose(position: Any, orientation: Any) -> np.ndarray:
    matrix = Quaternion(orientation.w, orientation.x, orientation.y, orientation.z).transformation_matrix
    matrix[:3, 3] = position.x, position.y, position.z
    return matrix


def transforms(messages: Messages, time: int) -> dict[str, np.ndarray]:
    """map from each frame of reference."""
    from_parent = {
        each.child_frame_id: (each.parent_frame_id, pose(each.translation, each.rotation))
        for each in messages["/tf"][time][0].transforms
    }
    found = {"map": np.eye(4)}
    for child, (parent, matrix) in from_parent.items():
        found[child] = found[parent] @ matrix
    return found


def cubes(messages: Messages, topic: str, time: int) -> list[tuple[str, str, np.ndarray, list[float]]]:
    """Entity, text, map from box, length, width and height."""
    map_from = transforms(messages, time)
    found = []
    for entity in messages[topic][time][0].entities:
        (cube,), (text,) = entity.cubes, entity.texts
        size = [cube.size.x, cube.size.y, cube.size.z]
        map_from_box = map_from[entity.frame_id] @ pose(cube.pose.position, cube.pose.orientation)
        found.append((entity.id, text.text, map_from_box, size))
    return found


def test_detections_are_those_of_the_submission(messages: Messages, replayed: Path, steps: Steps) -> None:
    submission = json.loads((replayed / "results.json").read_text())["results"]
    compared = 0
    for frame, _ in steps:
        submitted = [box for box in submission[frame.token] if box["detection_score"] >= LOWEST_SCORE]
        shown = cubes(messages, "/detections", frame.timestamp)
        assert len(shown) == len(submitted)
        for (_, text, map_from_box, (length, width, height)), box in zip(shown, submitted, strict=True):
            np.testing.assert_allclose(map_from_box[:3, 3], box["translation"], atol=1e-4)
            np.testing.assert_allclose([width, length, height], box["size"], atol=1e-4)
            # The submission's boxes stand upright, these lean with the vehicle.
            heading = Quaternion(box["rotation"]).rotation_matrix[:2, 0]
            np.testing.assert_allclose(map_from_box[:2, 0] @ heading, 1, atol=1e-3)
            assert text == f"{box['detection_name'].replace('_', ' ')} {box['detection_score']:.2f}"
            compared += 1
    assert compared > 20


def test_tracks_carry_their_ids(messages: Messages, steps: Steps) -> None:
    for frame, seen in steps:
        shown = cubes(messages, "/tracks", frame.timestamp)
        tracks = seen.states["detection"]
        kept = np.flatnonzero(tracks.confirmed & (tracks.boxes.scores >= LOWEST_SCORE))
        assert [int(name) for name, *_ in shown] == tracks.ids[kept].tolist()
        for i, (name, text, map_from_box, _) in zip(kept, shown, strict=True):
            np.testing.assert_allclose(map_from_box[:3, 3], tracks.boxes.centers[i], atol=1e-6)
            np.testing.assert_allclose(map_from_box[:3, :3], tracks.boxes.rotations[i], atol=1e-6)
            assert text == f"{CLASSES[tracks.boxes.labels[i]].replace('_', ' ')} {name}"


def test_annotations_move_with_the_global_frame(messages: Messages, steps: Steps) -> None:
    for frame, _ in steps:
        truth = frame.boxes.transformed(frame.global_from_reference).select(frame.boxes.num_points != 0)
        shown = cubes(messages, "/annotations", frame.timestamp)
        assert [name for name, *_ in shown] == truth.instances.tolist()
        np.testing.assert_allclose([each[2][:3, 3] for each in shown], truth.centers, atol=1e-6)


def test_edges_in_a_picture_are_the_cubes_seen_by_the_camera(messages: Messages, steps: Steps) -> None:
    """From the file alone: cubes, transforms and calibrations give the corners that are drawn on the pictures."""
    corners = np.array([[x, y, z, 2] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
    compared = 0
    for frame, _ in steps:
        map_from, boxes = transforms(messages, frame.timestamp), cubes(messages, "/detections", frame.timestamp)
        for name in CAMERAS:
            topic = f"/{name.lower()}"
            (info,), (drawn,) = (
                messages[f"{topic}/{kind}"][frame.timestamp] for kind in ("camera_info", "annotations")
            )
            expected = []
            for _, _, map_from_box, size in boxes:
                points = np.linalg.inv(map_from[name]) @ map_from_box @ (corners * [*size, 1]).T
                if points[2].min() < 0.3:
                    continue
                pixels = (np.array(info.K).reshape(3, 3) @ points[:3] / points[2])[:2].T
                if (pixels.max(axis=0) > 1).all() and (pixels.min(axis=0) < [info.width - 1, info.height - 1]).all():
                    expected.append(pixels)
            ends = [np.array([(point.x, point.y) for point in each.points]) for each in drawn.points]
            for pixels in expected:
                nearest = [np.linalg.norm(each[:, None] - pixels[None], axis=2).min(axis=1).max() for each in ends]
                assert min(nearest) < 0.1
                compared += 1
    assert compared > 20


def test_map_points_and_pictures_are_the_frames(messages: Messages, steps: Steps) -> None:
    grid = bundle().manifest.head_grid
    centers, task = grid.build().centers(), bundle().manifest.heads["map"]
    for frame, seen in steps:
        (shown,) = messages["/map"][frame.timestamp]
        assert [(field.name, field.offset) for field in shown.fields] == [
            ("red", 0), ("green", 1), ("blue", 2), ("alpha", 3)
        ]  # fmt: skip
        cells = np.frombuffer(shown.data, np.uint8).reshape(-1, shown.row_stride)
        (layer,) = task.draw(frame, seen.prediction.results["map"], seen.states["map"])
        cells = cells.reshape(len(cells), shown.column_count, shown.cell_stride)
        np.testing.assert_array_equal(cells, raster_colours(layer))
        x = shown.pose.position.x + (np.arange(shown.column_count) + 0.5) * shown.cell_size.x
        y = shown.pose.position.y + (np.arange(len(cells)) + 0.5) * shown.cell_size.y
        np.testing.assert_allclose(np.stack(np.meshgrid(x, y), axis=-1), centers, atol=1e-4)

        (cloud,) = messages["/lidar_top"][frame.timestamp]
        points = np.frombuffer(cloud.data, "<f4").reshape(-1, cloud.point_stride // 4)
        np.testing.assert_array_equal(points, frame.points[frame.points[:, 4] == 0, :4])

        for name, camera in frame.cameras.items():
            (picture,) = messages[f"/{name.lower()}/image"][frame.timestamp]
            assert picture.data == camera.jpeg  # the recorded file
            assert picture.timestamp.ToMicroseconds() == camera.timestamp


def test_pictures_that_were_changed_are_encoded_again(sim_root: Path, steps: Steps, tmp_path: Path) -> None:
    """By a fault or rectified; and those that a viewer would turn."""
    viewed(sim_root, tmp_path, f"{SCENE}:0-1", faults=["noise:CAM_FRONT"])
    (frame,) = inject([steps[0][0]], [Fault.parse("noise:CAM_FRONT", SENSORS)])
    (picture,) = (each for at in read(tmp_path / "results.mcap")["/cam_front/image"].values() for each in at)
    pixels = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    shown = frame.cameras["CAM_FRONT"].image
    assert pixels.shape == shown.shape
    small = [cv2.resize(each, (50, 28), interpolation=cv2.INTER_AREA) for each in (pixels, shown)]
    np.testing.assert_allclose(*np.asarray(small, float), atol=6)  # without the noise, which JPEG changes


def test_the_file_of_a_picture_is_that_of_its_very_image(steps: Steps) -> None:
    """Not of a changed one, nor one that programs turn by the orientation in its file."""
    camera = steps[0][0].cameras["CAM_FRONT"]
    content = camera.jpeg
    np.testing.assert_array_equal(decode_image(content), camera.image)
    assert replace(camera, intrinsics=2 * camera.intrinsics).jpeg == content
    assert replace(camera, image=camera.image.copy()).jpeg is None
    turned = content[:2] + b"\xff\xe1\0\x08Exif\0\0" + content[2:]
    np.testing.assert_array_equal(decode_image(turned), camera.image)
    assert jpeg_file(turned, camera.image) is None


def test_changes_of_health_are_logged(sim_root: Path, tmp_path: Path) -> None:
    found = read(viewed(sim_root, tmp_path, SCENE, faults=["drop:CAM_FRONT@0.3-0.8"]) / "results.mcap")
    times = sorted(found["/tf"])
    said = {time: {log.name: (log.message, log.level) for log in found["/log"].get(time, [])} for time in times}
    first, second, third = (said[time] for time in times)
    assert first["drive"][0] == "drive: scene-0001"
    assert first["weather"][0].startswith("weather: clear (clear since 0.0 s")
    assert second["CAM_FRONT"][0].startswith("CAM_FRONT: missing")
    assert second["CAM_FRONT"][1] > first["CAM_FRONT"][1]
    assert third["CAM_FRONT"][0] == "CAM_FRONT: ok"
    assert {name for name in second if name.startswith("CAM")} == {"CAM_FRONT"}
    assert [len(found["/cam_front/image"].get(time, [])) for time in times] == [1, 0, 1]


def test_same_frames_give_the_same_bytes_and_a_failure_leaves_nothing(steps: Steps, tmp_path: Path) -> None:
    tasks = bundle().manifest.heads
    for name in ("a", "b"):
        with FoxgloveWriter.open(tmp_path / name, tasks, "LIDAR_TOP") as writer:
            for frame, seen in steps[:2]:
                writer.add(frame, replace(seen, seconds={"engine": float(len(name))}))
    assert filecmp.cmp(tmp_path / "a", tmp_path / "b", shallow=False)
    with pytest.raises(AttributeError), FoxgloveWriter.open(tmp_path / "c", tasks, "LIDAR_TOP") as writer:
        writer.add(steps[0][0], None)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(InputError, match=r"cannot write the recording .*; choose another folder"):
        FoxgloveWriter.open(tmp_path / "a" / "results.mcap", tasks, "LIDAR_TOP").__enter__()


@pytest.mark.slow("replays with a viewer")
def test_boxes_points_and_words_are_those_of_the_replay(sim_root: Path, steps: Steps, tmp_path: Path) -> None:
    """As Rerun itself reads them."""
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    from pages import column

    recording = viewed(sim_root, tmp_path, SCENE, viewers=("rerun",)) / "results.rrd"
    for i, (frame, seen) in enumerate(steps[:3]):
        detections, tracks = seen.prediction.results["detection"], seen.states["detection"]
        confirmed = tracks.boxes.select(tracks.confirmed)
        for entity, boxes in (("world/vehicle/detections", detections), ("world/tracks", confirmed)):
            shown = boxes.select(boxes.scores >= 0.1)
            centers = column(recording, entity, "centers")[i]
            np.testing.assert_allclose(np.reshape(centers, (-1, 3)), shown.centers, rtol=1e-6, atol=1e-3)
            half = np.reshape(column(recording, entity, "half sizes")[i], (-1, 3))
            np.testing.assert_allclose(2 * half, shown.sizes[:, [1, 0, 2]], rtol=1e-5)
        points = column(recording, "world/vehicle/points", "positions")[i]
        np.testing.assert_array_equal(np.reshape(points, (-1, 3)).astype(np.float32), frame.points[:, :3])
    said = json.dumps(column(recording, "conditions", "text")[0])
    assert "weather: clear (clear since 0.0 s by tags: 1 of 1 frames)" in said


def test_an_unknown_viewer_is_refused_before_the_replay(sim_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rviz: no file is written for this viewer; choose from foxglove, rerun"):
        viewed(sim_root, tmp_path / "out", viewers=("rviz",))
    assert not (tmp_path / "out").exists()
