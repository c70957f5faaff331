"""Vehicles of other makes by configuration alone: a truck and a shuttle, and one of our own, simulated and recorded."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from commands import one_line_error, refuses, succeeds
from exported import QUIET
from make_log import make_log, messages, topics_of, write_mcap
from networks import config as small_config
from recordings import STORAGES
from vehicles import shuttle_root

from deploy.replay.faults import Fault, inject
from deploy.replay.sources import open_drives
from deploy.replay.sources.cameras import intrinsics_of
from deploy.replay.sources.topics import load_topics
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.model import PerceptionModel
from perception.predict import TorchPredictor
from perception.rig import Rig, load_rig
from perception.sensors.inputs import InputSpec, prepare
from perception.tasks.detection.official import compare
from perception.taxonomy import load_taxonomy

VERSION, SWEEPS = "v1.0-sim", 2
TAXONOMIES = {"truck": load_taxonomy("truckscenes"), "shuttle": load_taxonomy("nuscenes")}


@pytest.fixture(scope="module")
def drives(truck_root: Path) -> dict[str, Path]:
    """A drive of each vehicle: the truck's as MAN TruckScenes lays it out."""
    return {"truck": truck_root, "shuttle": shuttle_root()}


def tables_of(drives: dict[str, Path], name: str) -> NuScenesTables:
    return NuScenesTables(drives[name], VERSION, load_rig(name), TAXONOMIES[name])


@pytest.mark.parametrize("name", TAXONOMIES)
def test_frames_have_the_rigs_sensors(drives: dict[str, Path], name: str) -> None:
    """Each picture in its own size; points of every LiDAR at its own times, none of the vehicle itself."""
    rig, tables = load_rig(name), tables_of(drives, name)
    for token in tables.samples():
        frame = tables.frame(token, sweeps=SWEEPS)
        assert tuple(frame.cameras) == rig.sensors.cameras
        for camera in rig.cameras:
            found = frame.cameras[camera.name]
            assert found.image.shape[1::-1] == camera.size
            assert found.timestamp - frame.timestamp == round(1e6 * camera.delay)
            np.testing.assert_allclose(found.ego_from_camera, camera.ego_from_sensor, atol=1e-9)
            np.testing.assert_array_equal(found.intrinsics, camera.intrinsics)
        assert frame.points is not None
        assert frame.lidar_of_point is not None
        for i, lidar in enumerate(rig.lidars):
            own = frame.of_lidar(i).points
            assert own is not None
            expected = [back * 0.05 - lidar.delay for back in range(SWEEPS + 1)]
            np.testing.assert_allclose(np.unique(own[:, 4]), expected, atol=1e-6)
        assert (np.diff(frame.points[:, 4]) >= 0).all()
        assert rig.own is not None
        assert not rig.own.contains(frame.points[frame.points[:, 4] == 0].astype(np.float64)).any()


@pytest.mark.parametrize("name", TAXONOMIES)
def test_lidars_see_the_same_world(drives: dict[str, Path], name: str) -> None:
    """Flat ground at height 0 and the annotated boxes, wherever a LiDAR is mounted and whenever it sweeps."""
    tables = tables_of(drives, name)
    frame = tables.frame(tables.samples()[1])
    assert frame.boxes is not None
    for i in range(len(load_rig(name).lidars)):
        points = frame.of_lidar(i).points
        assert points is not None
        low = points[(np.abs(points[:, 2]) < 0.3) & (np.hypot(points[:, 0], points[:, 1]) < 25), 2]
        assert len(low) > 200
        assert abs(np.median(low)) < 0.03


def test_a_devkit_refuses_another_vehicle(drives: dict[str, Path], tmp_path: Path) -> None:
    tables = tables_of(drives, "shuttle")
    untrained = PerceptionModel(small_config().model_copy(update={"rig": load_rig("shuttle")})).eval()
    metrics = evaluate(TorchPredictor(untrained), tables, "all", [], tmp_path, InputSpec.of(untrained.config), QUIET)
    says = r"nuscenes-devkit measures distances from the sensor 'LIDAR_TOP', which these drives do not have"
    with pytest.raises(InputError, match=says):
        compare(tmp_path, tables, metrics, QUIET)


@pytest.mark.parametrize("text", ["points:roof_rear,share=0.5", "noise:roof_rear", "freeze:roof_rear", "drop:lidar"])
def test_a_fault_of_one_lidar_leaves_the_others(drives: dict[str, Path], text: str) -> None:
    """Points stay in the order of their times, and drop:lidar drops all."""
    tables, fault = tables_of(drives, "shuttle"), Fault.parse(text, load_rig("shuttle").sensors)
    frames = [tables.frame(token, sweeps=SWEEPS) for token in tables.samples()]
    for before, after in zip(frames[1:], list(inject(frames, [fault]))[1:], strict=True):
        if text == "drop:lidar":
            assert after.points is None
            continue
        np.testing.assert_array_equal(after.of_lidar(0).points, before.of_lidar(0).points)
        assert not np.array_equal(after.of_lidar(1).points, before.of_lidar(1).points)
        assert after.points is not None
        assert (np.diff(after.points[:, 4]) >= 0).all()


def test_a_camera_more_at_the_end_changes_no_other_input(drives: dict[str, Path]) -> None:
    """The number of cameras is a shape: each input is that of the camera alone."""
    rig, tables = load_rig("shuttle"), tables_of(drives, "shuttle")
    frame, spec = tables.frame(tables.samples()[0]), InputSpec.of(small_config().model_copy(update={"rig": rig}))
    whole = prepare(frame, spec)
    for i, camera in enumerate(rig.cameras):
        alone = Rig(name="alone", cameras=(camera,), lidars=rig.lidars)
        only = frame.__class__(**{**frame.__dict__, "cameras": {camera.name: frame.cameras[camera.name]}})
        one = prepare(only, InputSpec(spec.grid, spec.lidar, spec.camera, alone))
        for name in ("images", "image_from_reference"):
            np.testing.assert_array_equal(one[name][0, 0], whole[name][0, i])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", TAXONOMIES)
def test_a_recording_of_the_vehicle_gives_the_frames_of_its_tables(
    drives: dict[str, Path], name: str, storage: str, tmp_path: Path
) -> None:
    path = tmp_path / STORAGES[storage]
    make_log(drives[name], "scene-0001", path, storage, rig=name)
    spec = InputSpec.of(small_config().model_copy(update={"rig": load_rig(name)}))
    (recorded,), (read,) = (open_drives(*given, (), spec, None) for given in ((path, None), (drives[name], VERSION)))
    for a, b in zip(recorded.frames(), read.frames(), strict=True):
        assert (a.token, a.timestamp, [*a.cameras]) == (b.token, b.timestamp, [*b.cameras])
        np.testing.assert_array_equal(a.lidar_of_point, b.lidar_of_point)
        np.testing.assert_allclose(a.points, b.points, atol=1e-4)
    assert recorded.counts.summary()["missing"] == {}


def test_a_recording_without_calibration_takes_the_rigs(drives: dict[str, Path], tmp_path: Path) -> None:
    """Its transforms and CameraInfo do not count, whatever they say; without the rig's no sensor is placed."""
    rig = load_rig("shuttle")
    log = messages(tables_of(drives, "shuttle"), "scene-0001", 10)
    bare = [each for each in log if each.topic != "/tf_static" and not each.topic.endswith("/camera_info")]
    write_mcap(tmp_path / "bare.mcap", iter(bare), topics_of(rig))
    (tmp_path / "topics.yaml").write_text("calibration: rig\n")
    spec = InputSpec.of(small_config().model_copy(update={"rig": rig}))
    (told,) = open_drives(tmp_path / "bare.mcap", None, (), spec, tmp_path / "topics.yaml")
    (read,) = open_drives(drives["shuttle"], VERSION, (), spec, None)
    for a, b in zip(told.frames(), read.frames(), strict=True):
        np.testing.assert_allclose(a.points, b.points, atol=1e-4)
        for name, camera in b.cameras.items():
            np.testing.assert_array_equal(a.cameras[name].image, camera.image)
            np.testing.assert_array_equal(a.cameras[name].intrinsics, camera.intrinsics)
            np.testing.assert_allclose(a.cameras[name].ego_from_camera, camera.ego_from_camera, atol=1e-9)
    (untold,) = open_drives(tmp_path / "bare.mcap", None, (), spec, None)
    assert all(frame.points is None and not frame.cameras for frame in untold.frames())
    with one_line_error(exactly="rig mine: top has no `mount`, its calibration; add it"):
        load_topics(tmp_path / "topics.yaml", Rig.model_validate({"name": "mine", "lidars": ({"name": "top"},)}))


def test_pictures_are_rectified_with_the_rigs_lens() -> None:
    """As OpenCV undistorts them."""
    camera = load_rig("shuttle").cameras[0]
    assert camera.lens is not None
    bent = camera.model_copy(update={"lens": camera.lens.model_copy(update={"distortion": (-0.3, 0.1, 0.001, 0.002)})})
    assert intrinsics_of(camera).lens is None
    lens = intrinsics_of(bent).lens
    assert lens is not None
    assert lens.known
    picture = np.random.default_rng(0).integers(0, 255, (*camera.size[::-1], 3), np.uint8)
    expected = cv2.undistort(picture, camera.intrinsics, np.array(bent.lens and bent.lens.distortion))
    assert np.abs(lens.rectify(picture).astype(int) - expected).max() <= 1


def test_an_own_rig_is_simulated_from_its_file(tmp_path: Path) -> None:
    content = load_rig("shuttle").model_dump(mode="json", exclude_defaults=True) | {"name": "mine"}
    content["cameras"] = [content["cameras"][0] | {"name": "eye", "size": [160, 100], "lens": {"focal": 100.0}}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    given = ("--scenes", "1", "--samples", "1", "--conditions", "clear-day-boston", "--rig", tmp_path / "mine.yaml")
    succeeds("simulate", tmp_path / "drives", *given, "--taxonomy", "truckscenes")
    assert len(list((tmp_path / "drives" / "samples").glob("roof_*/*.pcd"))) == 2
    sensors = json.loads((tmp_path / "drives" / VERSION / "sensor.json").read_text())
    assert [row["channel"] for row in sensors] == ["roof_front", "roof_rear", "eye"]
    del content["lidars"][1]["mount"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    says = refuses("simulate", tmp_path / "again", *given)
    assert "rig mine: roof_rear has no `mount`, its calibration; add it" in says
    assert not (tmp_path / "again").exists()
