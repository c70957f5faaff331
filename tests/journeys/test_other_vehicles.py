"""Vehicles of other makes go the whole way by configuration alone: a truck and a shuttle, and one of our own."""

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from commands import refuses, succeeds
from make_log import make_log, messages, topics_of, write_mcap
from networks import config as small_config
from pages import page_data
from recordings import STORAGES
from refusals import one_line_error

from deploy.bundle import Bundle
from deploy.replay.faults import Fault, inject
from deploy.replay.sources import open_drives
from deploy.replay.sources.cameras import intrinsics_of
from deploy.replay.sources.topics import load_topics
from deploy.runtime import Runtime
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.rig import Rig, load_rig
from perception.sensors.inputs import InputSpec, prepare
from perception.simulate.simulate import simulate
from perception.taxonomy import load_taxonomy
from perception.training.checkpoint import trained_config

VERSION, KEYFRAMES, SWEEPS = "v1.0-sim", 3, 2
VEHICLES = ("truck", "shuttle")
TAXONOMIES = {"truck": load_taxonomy("truckscenes"), "shuttle": load_taxonomy("nuscenes")}


@pytest.fixture(scope="module")
def drives(truck_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A drive of each vehicle: the truck's as MAN TruckScenes lays it out."""
    shuttle = tmp_path_factory.mktemp("vehicles") / "shuttle"
    simulate(shuttle, 1, KEYFRAMES, 1, ["clear-day-boston"], SWEEPS, rig=load_rig("shuttle"))
    return {"truck": truck_root, "shuttle": shuttle}


@pytest.fixture(scope="module")
def runs(drives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network that was trained on each for as long as its scores do not tie."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    for name, data in drives.items():
        content = small_config().model_dump(mode="json") | {
            "name": name,
            "rig": name,
            "taxonomy": TAXONOMIES[name].name,
        }
        if not TAXONOMIES[name].map_layers:
            del content["tasks"]["map"]
        content["train"] |= {"steps": 40, "batch": 1, "learning_rate": 0.02}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        made[name] = folder / name
        succeeds("train", folder / f"{name}.yaml", "--data", data, "--split", "all", "--out", made[name])
    return made


@pytest.fixture(scope="module")
def bundles(runs: dict[str, Path]) -> dict[str, Path]:
    for _name, run in runs.items():
        succeeds("export", run, "--out", run / "bundle")
    return {name: run / "bundle" for name, run in runs.items()}


def tables_of(drives: dict[str, Path], name: str) -> NuScenesTables:
    return NuScenesTables(drives[name], VERSION, load_rig(name), TAXONOMIES[name])


@pytest.mark.parametrize("name", VEHICLES)
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


@pytest.mark.parametrize("name", VEHICLES)
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


@pytest.mark.parametrize("name", VEHICLES)
def test_the_way_from_training_to_a_replay(
    drives: dict[str, Path], runs: dict[str, Path], bundles: dict[str, Path], name: str, tmp_path: Path
) -> None:
    rig, bundle = load_rig(name), bundles[name]
    assert trained_config(runs[name]).rig == Bundle.load(bundle).manifest.rig == rig
    assert Bundle.load(bundle).manifest.taxonomy == TAXONOMIES[name]
    shapes = Bundle.load(bundle).manifest.input_shapes
    assert shapes["images"][1] == shapes["image_from_reference"][1] == len(rig.cameras)
    for model in (runs[name], bundle):
        given = ("--data", drives[name], "--split", "all", "--out", tmp_path / model.name, "--json")
        if name == "truck":
            scores = json.loads(succeeds("evaluate", model, *given, "--official"))
            assert {*scores["official"]["mean_dist_aps"]} == {*TAXONOMIES[name].class_names}
            assert scores["official"]["largest_difference"] <= 1e-9
        else:
            scores = json.loads(succeeds("evaluate", model, *given))
        assert scores["samples"] == KEYFRAMES
    succeeds("verify", bundle)
    first, lidar = rig.sensors.cameras[0], rig.sensors.lidars[-1]
    faults = [each for text in (f"drop:{first}", f"drop:{lidar}") for each in ("--fault", f"{text}@0.4-0.6")]
    succeeds("replay", drives[name], "--bundle", bundle, "--out", tmp_path / "replay", *faults)
    data = page_data(tmp_path / "replay" / "report.html")
    assert sorted(camera for row in data["cameras"] for camera in row) == sorted(rig.sensors.cameras)
    assert data["lidars"] == list(rig.sensors.lidars)
    for camera in rig.cameras:
        picture = data["frames"][0]["cameras"][camera.name].split(",")[1]
        height, width = cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), 1).shape[:2]
        assert (width, height) == (data["cameraWidth"], data["cameraHeights"][camera.name])
        assert height == round(width * camera.size[1] / camera.size[0])
    assert [frame["health"][first][0] for frame in data["frames"]] == ["ok", "missing", "ok"]
    assert [frame["health"][lidar][0] for frame in data["frames"]] == ["ok", "missing", "ok"]
    others = {*rig.sensors.names} - {first, lidar}
    assert {frame["health"][other][0] for frame in data["frames"] for other in others} == {"ok"}


def test_a_devkit_refuses_another_vehicle(drives: dict[str, Path], runs: dict[str, Path], tmp_path: Path) -> None:
    given = ("--data", drives["shuttle"], "--split", "all", "--out", tmp_path / "out", "--official")
    says = refuses("evaluate", runs["shuttle"], *given)
    assert "nuscenes-devkit measures distances from the sensor 'LIDAR_TOP', which these drives do not have" in says


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


@pytest.mark.parametrize("other", ["shuttle", "nuscenes"])
def test_a_bundle_refuses_drives_of_another_vehicle(
    drives: dict[str, Path], bundles: dict[str, Path], other: str, recorded_root: Path, tmp_path: Path
) -> None:
    data = recorded_root if other == "nuscenes" else drives[other]
    says = refuses("replay", data, "--bundle", bundles["truck"], "--out", tmp_path / "out")
    assert "these drives are of another vehicle than the rig truck: they have no LIDAR_LEFT, but" in says
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_network_refuses_frames_of_another_vehicle(drives: dict[str, Path], bundles: dict[str, Path]) -> None:
    frame = (tables := tables_of(drives, "shuttle")).frame(tables.samples()[0])
    runtime = Runtime(bundles["truck"])
    with pytest.raises(Exception, match=r"^frame \w+: front is no camera of the rig truck; it has CAMERA_LEFT_FRONT,"):
        runtime.step(frame)


def test_weights_carry_over_to_another_vehicle(drives: dict[str, Path], runs: dict[str, Path], tmp_path: Path) -> None:
    """Zero-shot, and adapted: the new run is the shuttle's. Its cameras are another number of other sizes."""
    given = ("--data", drives["shuttle"], "--split", "all", "--rig", "shuttle")
    assert json.loads(succeeds("evaluate", runs["truck"], *given, "--out", tmp_path / "e", "--json"))["samples"] == 3
    says = refuses("evaluate", runs["truck"], *given[:-2], "--out", tmp_path / "f")
    assert "these drives are of another vehicle than the rig truck" in says
    succeeds("adapt", runs["truck"], "--add", "low_rank:shuttle", *given, "--steps", "2", "--out", tmp_path / "adapted")
    assert trained_config(tmp_path / "adapted").rig == load_rig("shuttle")


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
@pytest.mark.parametrize("name", VEHICLES)
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
