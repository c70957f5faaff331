"""A vehicle of another make by configuration alone: a shuttle with its own cameras and LiDARs."""

from pathlib import Path

import numpy as np
import pytest
from commands import one_line_error
from exported import QUIET
from networks import config as small_config
from vehicles import shuttle_root

from deploy.log import messages, topics_of, write_log, write_mcap
from deploy.recordings.drives import open_drives
from deploy.recordings.topics import load_topics
from perception.datasets.keyframes import Reads
from perception.datasets.nuscenes.dataset import NuScenesTables
from perception.errors import InputError
from perception.evaluation.evaluate import evaluate
from perception.frame import Frame
from perception.model import PerceptionModel
from perception.predict import TorchPredictor
from perception.rig import Rig, load_rig
from perception.simulate.simulate import simulate
from perception.tasks.detection.devkit import compare

VERSION, SWEEPS = "v1.0-sim", 2
RIG = load_rig("shuttle")
CONFIG = small_config().model_copy(update={"rig": RIG})
SPEC = CONFIG.spec


@pytest.fixture(scope="module")
def shuttle() -> NuScenesTables:
    return NuScenesTables(shuttle_root(), VERSION, RIG)


@pytest.fixture(scope="module")
def frames(shuttle: NuScenesTables) -> list[Frame]:
    return [shuttle.frame(token, Reads(sweeps=SWEEPS)) for token in shuttle.samples()]


def test_frames_have_the_rigs_sensors(frames: list[Frame]) -> None:
    """Each picture in its own size; points of every LiDAR at its own times, none of the vehicle itself.

    All LiDARs see the same flat ground at height 0, wherever they are mounted and whenever they sweep.
    """
    for frame in frames:
        assert tuple(frame.cameras) == RIG.sensors.cameras
        for camera in RIG.cameras:
            found = frame.cameras[camera.name]
            assert found.image.shape[1::-1] == camera.size
            assert found.timestamp - frame.timestamp == round(1e6 * camera.delay)
            np.testing.assert_allclose(found.ego_from_camera, camera.ego_from_sensor, atol=1e-9)
            np.testing.assert_array_equal(found.intrinsics, camera.intrinsics)
        for i, lidar in enumerate(RIG.lidars):
            own = frame.of_lidar(i).points
            expected = [back * 0.05 - lidar.delay for back in range(SWEEPS + 1)]
            np.testing.assert_allclose(np.unique(own[:, 4]), expected, atol=1e-6)
            low = own[(np.abs(own[:, 2]) < 0.3) & (np.hypot(own[:, 0], own[:, 1]) < 25), 2]
            assert len(low) > 200
            assert abs(np.median(low)) < 0.03
        assert (np.diff(frame.points[:, 4]) >= 0).all()
        assert not RIG.own.contains(frame.points[frame.points[:, 4] == 0].astype(np.float64)).any()


def test_a_devkit_refuses_another_vehicle(shuttle: NuScenesTables, tmp_path: Path) -> None:
    metrics = evaluate(TorchPredictor(PerceptionModel(CONFIG).eval()), shuttle, "all", [], tmp_path, SPEC, QUIET)
    says = r"nuscenes-devkit measures distances from the sensor 'LIDAR_TOP', which these drives do not have"
    with pytest.raises(InputError, match=says):
        compare(tmp_path, shuttle, metrics, QUIET)


def test_a_recording_gives_the_tables_frames_also_without_calibration(shuttle: NuScenesTables, tmp_path: Path) -> None:
    """It takes the rig's, if told so: its transforms and CameraInfo do not count, whatever they say.

    Without the rig's no sensor is placed.
    """
    full, bare, topics = tmp_path / "full.mcap", tmp_path / "bare.mcap", tmp_path / "topics.yaml"
    write_log(shuttle.dataroot, "scene-0001", full, "file", rig=RIG)
    log = messages(shuttle, "scene-0001", 10)
    kept = [each for each in log if each.topic != "/tf_static" and not each.topic.endswith("/camera_info")]
    write_mcap(bare, iter(kept), topics_of(RIG))
    topics.write_text("calibration: rig\n")
    (tables,) = open_drives(shuttle.dataroot, VERSION, (), SPEC, None)
    for path, given in ((full, None), (bare, topics)):
        (recorded,) = open_drives(path, None, (), SPEC, given)
        for a, b in zip(recorded.frames(), tables.frames(), strict=True):
            assert (a.token, a.timestamp, [*a.cameras]) == (b.token, b.timestamp, [*b.cameras])
            np.testing.assert_array_equal(a.lidar_of_point, b.lidar_of_point)
            np.testing.assert_array_equal(a.sweep_of_point, b.sweep_of_point)
            np.testing.assert_allclose(a.points, b.points, atol=1e-4)
            for name, camera in b.cameras.items():
                np.testing.assert_array_equal(a.cameras[name].image, camera.image)
                np.testing.assert_array_equal(a.cameras[name].intrinsics, camera.intrinsics)
                np.testing.assert_allclose(a.cameras[name].ego_from_camera, camera.ego_from_camera, atol=1e-9)
        assert recorded.counts.summary()["missing"] == {}
    (untold,) = open_drives(bare, None, (), SPEC, None)
    assert all(frame.points is None and not frame.cameras for frame in untold.frames())
    unmounted = Rig.model_validate({"name": "mine", "lidars": ({"name": "top"},)})
    says = "rig mine: top has no `mount`, its calibration; add it"
    with one_line_error(exactly=says):
        load_topics(topics, unmounted)
    with one_line_error(exactly=says):
        simulate(tmp_path / "none", 1, 1, 0, ["clear-day-boston"], rig=unmounted)
