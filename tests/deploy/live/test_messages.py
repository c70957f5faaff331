"""Messages out: their values and free space by closed forms and networks."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from commands import one_line_error
from exported import bundle, checkpoint_of, modular
from hypothesis import given
from hypothesis import strategies as st
from made_up import classified
from perceived import OPTIONS, STAMP, boxes_of, frame_at, manifest_of, read, rigid, xyz, xyzw
from shapely import Polygon, STRtree, points
from vocabulary import CONDITIONS, MAP_CLASSES, NUSCENES, PRIOR, RIG, SENSORS

from deploy.golden import synthetic_frame
from deploy.live.messages.free_space import FreeSpace, occupancy_grid
from deploy.live.messages.messages import Diagnostic, Message, Messages
from deploy.live.policy import Policy
from deploy.manifest import Manifest
from deploy.recordings.ros_types import TYPES, encode, header
from perception.frame import Boxes, Frame, Prediction
from perception.grid import BevGrid, VoxelGrid
from perception.predict import TorchPredictor
from perception.scene.scene import Scene
from perception.tasks import TASKS, parse_tasks, tasks_of
from perception.tasks.detection.tracker import Tracker
from perception.tasks.occupancy.result import OccupancyResult
from perception.tasks.occupancy.task import OccupiedSpace
from perception.tasks.points.task import NONE
from perception.tasks.published import FREE, TAKEN, UNKNOWN, Tracks
from perception.taxonomy import ObjectClass, RosClass, load_taxonomy

CAR, BARRIER, CONE = (NUSCENES.label(name) for name in ("car", "barrier", "traffic_cone"))
# From packages that ROS's own generator made: rmw_zenoh's example, an Autoware bridge, an Elixir client.
PUBLISHED = {
    "sensor_msgs/msg/PointCloud2": "9198cabf7da3796ae6fe19c4cb3bdd3525492988c70522628af5daa124bae2b5",
    "geometry_msgs/msg/PoseStamped": "10f3786d7d40fd2b54367835614bff85d4ad3b5dab62bf8bca0cc232d73b4cd8",
    "vision_msgs/msg/Detection3D": "ddd703be132ab0b69d33121f1bb034132bfbb3b0ac5f9fb1516005ba1c8a265b",
    "vision_msgs/msg/Detection3DArray": "793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
}
TYPE_OF = {
    "/perception/objects/vision": "vision_msgs/msg/Detection3DArray",
    "/perception/objects/detected": "autoware_perception_msgs/msg/DetectedObjects",
    "/perception/objects/tracked": "autoware_perception_msgs/msg/TrackedObjects",
    "/perception/free_space": "nav_msgs/msg/OccupancyGrid",
    "/perception/points": "sensor_msgs/msg/PointCloud2",
    "/perception/occupancy": "sensor_msgs/msg/PointCloud2",
}
OF_TASK = {
    "detection": ["objects/vision", "objects/detected", "objects/tracked"],
    "map": ["free_space"],
    "conditions": [],
    "points": ["points"],
    "occupancy": ["free_space", "occupancy"],
}


def test_hashes_are_those_that_others_publish() -> None:
    for name, sha256 in PUBLISHED.items():
        assert TYPES.hash_rihs01(name) == f"RIHS01_{sha256}"


def test_a_box_of_a_turned_lidar_is_where_the_vehicle_has_it() -> None:
    """The LiDAR looks to the left, so what is 10 m ahead of it is to the left of the vehicle."""
    frame = frame_at(rigid(700, -300, 2, 2.0), rigid(1.0, 0.5, 1.8, np.pi / 2))
    rows = [[CAR, 10, 2, -1, 1.9, 4.5, 1.6, 0, 3, 4, 0.8], [CONE, 5, 0, -1, 0.4, 0.4, 0.9, 0, np.nan, 0, 0.5]]
    rows += [[BARRIER, 6, 0, -1, 2.4, 0.5, 1.0, 0, 0, 0, 0.3], [CAR, 20, 0, 0, 1.9, 4.5, 1.6, 0, 0, 0, 0.29]]
    vision, detected = Messages(manifest_of("detection")).detections(frame, Prediction({"detection": boxes_of(*rows)}))
    found = read(detected)
    assert found.header == header(STAMP, "base_link")
    car, cone, barrier = found.objects  # the last one is too unlikely
    pose, twist = car.kinematics.pose_with_covariance.pose, car.kinematics.twist_with_covariance.twist
    assert xyz(pose.position) == pytest.approx([-1.0, 10.5, 0.8], abs=1e-9)
    assert xyzw(pose.orientation) == pytest.approx([0, 0, np.sqrt(0.5), np.sqrt(0.5)], abs=1e-9)  # it looks to the left
    assert xyz(car.shape.dimensions) == [4.5, 1.9, 1.6]
    assert xyz(twist.linear) == pytest.approx([3, 4, 0], abs=1e-9)  # along its own axes
    assert car.kinematics.has_twist
    assert car.existence_probability == pytest.approx(0.8)
    assert (car.classification[0].label, cone.classification[0].label, barrier.classification[0].label) == (1, 9, 9)
    assert [each.kinematics.orientation_availability for each in found.objects] == [2, 0, 1]
    assert not cone.kinematics.has_twist
    assert xyz(cone.kinematics.twist_with_covariance.twist.linear) == [0, 0, 0]
    first, *others = read(vision).detections
    assert first.results[0].hypothesis.class_id == "car"
    assert first.results[0].pose.pose == first.bbox.center == pose
    assert (xyz(first.bbox.size), first.header, len(others)) == ([4.5, 1.9, 1.6], found.header, 2)


def test_detections_are_published_from_the_scores_of_the_policy_on() -> None:
    manifest = manifest_of("detection")
    rows = [[label, x, 0, 0, 2, 4, 1.6, 0, 0, 0, 0.25] for label in (CAR, CONE) for x in (10, 40)]
    scores = {"upper_bounds": [30.0, 60.0], "thresholds": {"car": [0.5, 0.2]}, "default": 0.3}
    policy = Policy.model_validate({"score_thresholds": scores})
    adjusted = policy.adjust(manifest)
    for driven, expected in ((manifest, 0), (adjusted, 1), (manifest, 0)):
        prediction = Prediction({"detection": boxes_of(*rows)})
        _, detected = Messages(driven).detections(frame_at(np.eye(4), np.eye(4)), prediction)
        assert len(read(detected).objects) == expected
    memory, frame = adjusted.heads["detection"].memory(), frame_at(np.eye(4), np.eye(4))
    memory.update(frame, boxes_of(*rows))
    assert memory.update(frame, boxes_of(*rows)).confirmed.sum() == 1
    unknown = Policy.model_validate({"score_thresholds": {"thresholds": {"tram": [0.5]}}})
    with one_line_error(at="--policy: score_thresholds", says="'tram'"):
        unknown.adjust(manifest)
    with one_line_error(at="--policy: score_thresholds", says="no objects"):
        policy.adjust(manifest_of("map"))


@cache
def manifest_of_detection() -> Manifest:
    return manifest_of("detection")


def messages_of_tracks(messages: Messages, frame: Frame, tracks: Tracks, drive: str) -> Message:
    scene = Scene(SENSORS, {}, CONDITIONS)
    scene.observe(frame)
    seen = replace(scene.update(frame, Prediction({})), states={"detection": tracks}, scene=drive)
    (found,) = (each for each in messages.scene(frame, seen) if each.topic == "/perception/objects/tracked")
    return found


def test_a_track_keeps_its_id_and_stands_where_it_does_in_the_map() -> None:
    """Seen from a moving vehicle; ids differ between tracks and between drives."""
    manifest = manifest_of("detection")
    messages, ids = Messages(manifest, global_frame="odom"), []
    for drive in ("a", "b"):
        scene = Scene(SENSORS, manifest.heads, CONDITIONS)
        for i in range(4):
            pose = rigid(5.0 * i, 0, 0, 0.1 * i)
            frame = replace(frame_at(pose, rigid(1, 0, 2, 0.5), STAMP + 500_000 * i), token=f"{i}", scene=drive)
            frame = replace(frame, points=np.ones((1, 5), np.float32), sweep_of_point=np.zeros(1, np.uint8))
            there = boxes_of(
                [CAR, 30 + 2 * i, 5, 0, 2, 4, 1.5, 0, 4, 0, 0.9], [CAR, 30, -5, 0, 2, 4, 1.5, 0, 0, 0, 0.8]
            )
            found = there.transformed(np.linalg.inv(frame.global_from_reference))
            scene.observe(frame)
            seen = scene.update(frame, Prediction({"detection": found}))
            (tracked,) = (read(m) for m in messages.scene(frame, seen) if m.topic.endswith("tracked"))
            assert tracked.header.frame_id == "odom"
        order = sorted(tracked.objects, key=lambda each: -each.kinematics.pose_with_covariance.pose.position.y)
        ids.append([bytes(each.object_id.uuid) for each in order])
        goes, stands = (each.kinematics for each in order)
        assert xyz(goes.pose_with_covariance.pose.position) == pytest.approx([36, 5, 0], abs=0.3)
        assert goes.twist_with_covariance.twist.linear.x == pytest.approx(4, abs=0.3)
        assert [goes.is_stationary, stands.is_stationary] == [False, True]
    assert len({*ids[0], *ids[1]}) == 4
    tracks = seen.states["detection"]
    again = read(messages_of_tracks(messages, frame, tracks, "b")).objects
    assert sorted(bytes(each.object_id.uuid) for each in again) == sorted(ids[1])
    doubtful = replace(tracks, confirmed=np.array([True, False]))
    assert len(read(messages_of_tracks(messages, frame, doubtful, "b")).objects) == 1
    unknown = replace(tracks, boxes=replace(tracks.boxes, velocities=np.full((len(tracks.ids), 3), np.nan)))
    for each in read(messages_of_tracks(messages, frame, unknown, "b")).objects:
        linear = each.kinematics.twist_with_covariance.twist.linear
        assert (xyz(linear), each.kinematics.is_stationary) == ([0, 0, 0], False)


def test_the_covariances_of_a_track_are_its_filters() -> None:
    """After one detection covariances are the noise of a measurement; an unknown velocity has its class's spread."""
    manifest, frame, unknown = manifest_of_detection(), frame_at(np.eye(4), np.eye(4)), 1e6
    for velocity, variance in ((np.nan, 25.0), (3.0, 1 / (1 / 25 + 1 / 2**2))):
        tracker = Tracker(NUSCENES)
        tracks = tracker.update(boxes_of([CAR, 30, 5, 0, 2, 4, 1.5, 0.4, velocity, 0, 0.9]), STAMP)
        found = messages_of_tracks(Messages(manifest), frame, replace(tracks, confirmed=np.ones(1, bool)), "a")
        (kinematics,) = (each.kinematics for each in read(found).objects)
        pose, twist = kinematics.pose_with_covariance.covariance, kinematics.twist_with_covariance.covariance
        np.testing.assert_allclose(pose.reshape(6, 6), np.diag([0.3**2] * 3 + [unknown] * 3))
        np.testing.assert_allclose(twist.reshape(6, 6), np.diag([variance] * 2 + [unknown] * 4))
        acceleration = kinematics.acceleration_with_covariance.covariance
        np.testing.assert_allclose(acceleration.reshape(6, 6), unknown * np.eye(6))


@cache
def seen_by_a_network() -> tuple[Manifest, list[tuple[Frame, Any, list[Message]]]]:
    """Two frames of a random network with every task."""
    tasks = {name: OPTIONS.get(name, {}) for name in TASKS}
    config = modular("all-tasks", [], tasks={**modular("x", []).model_dump(mode="json")["tasks"], **tasks})
    manifest = manifest_of(*TASKS)
    predict = TorchPredictor.load(checkpoint_of(config))
    torch.manual_seed(0)
    for weight in (each for each in predict.model.heads["occupancy"].parameters() if each.ndim > 1):
        torch.nn.init.normal_(weight, 0, 1)  # so that not all is free
    scene, seen, messages = Scene(SENSORS, manifest.heads, CONDITIONS), [], Messages(manifest)
    for i in range(2):
        frame = replace(synthetic_frame("ego", RIG), timestamp=500_000 * i, nanoseconds=789, token=str(i))
        frame = scene.admit(frame, "ego")
        prediction = predict(frame)
        scene.observe(frame)
        after = scene.update(frame, prediction)
        seen.append((frame, after, [*messages.detections(frame, prediction), *messages.scene(frame, after)]))
    return manifest, seen


def test_every_task_has_its_messages_and_another_library_writes_their_bytes() -> None:
    _, seen = seen_by_a_network()
    for frame, after, messages in seen:
        found = {each.topic: each for each in messages}
        assert {name: found[name].type_name for name in TYPE_OF} == TYPE_OF
        content = {name: read(each) for name, each in found.items()}
        for stamp in (each.header.stamp for each in content.values() if hasattr(each, "header")):
            assert 10**9 * stamp.sec + stamp.nanosec == 1000 * frame.timestamp + 789
        durations = {f"/perception/latency/{stage}_ms": 1000 * s for stage, s in after.seconds.items()}
        durations["/perception/latency/total_ms"] = 1000 * sum(after.seconds.values())
        assert {name: content[name].data for name in found.keys() - TYPE_OF.keys()} == durations
        result, cloud = after.prediction.results["points"], rows_of(content["/perception/points"])
        assert len(cloud) == len(frame.keyframe_points) > 500
        np.testing.assert_array_equal(cloud["class_id"], [*result.classes, *[NONE] * (len(cloud) - 500)])
        np.testing.assert_array_equal(cloud["probability"][:500], result.probabilities)
        np.testing.assert_array_equal(np.stack([cloud[axis] for axis in "xyz"], axis=1), frame.keyframe_points[:, :3])
        fused, voxels = after.states["occupancy"].fused, rows_of(content["/perception/occupancy"])
        there = fused.occupied > 0.5
        np.testing.assert_array_equal(voxels["class_id"], fused.classes[there])
        np.testing.assert_array_equal(np.stack([voxels[a] for a in "xyz"], axis=1), fused.grid.centers()[there])
        np.testing.assert_array_equal(voxels["probability"], fused.occupied[there])
        assert len(voxels) > 0
        assert len(content["/perception/objects/vision"].detections) > 0
        assert content["/perception/free_space"].info.width == after.states["map"].shape[2]


def rows_of(cloud: Any) -> np.ndarray:
    """A PointCloud2 by its own fields."""
    kinds = {2: "u1", 7: "<f4"}
    names, formats, offsets = zip(*((f.name, kinds[f.datatype], f.offset) for f in cloud.fields), strict=True)
    kind = np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": cloud.point_step}  # type: ignore[call-overload]
    )
    assert cloud.row_step == cloud.point_step * cloud.width
    return np.frombuffer(bytes(cloud.data), kind)


@pytest.mark.parametrize("task", TASKS)
def test_a_network_with_one_task_has_no_messages_of_others(task: str) -> None:
    _, ((frame, after, _), *_) = seen_by_a_network()
    prediction = Prediction({task: after.prediction.results[task]})
    states = {name: state for name, state in after.states.items() if name == task}
    messages = Messages(manifest_of(task))
    found = [*messages.detections(frame, prediction)]
    found += messages.scene(frame, replace(after, prediction=prediction, states=states))
    named = [each.topic.removeprefix("/perception/") for each in found]
    assert [name for name in named if not name.startswith("latency/")] == OF_TASK[task]


def test_points_of_a_turned_lidar_are_in_the_vehicles_frame() -> None:
    points_ = np.array([[10, 0, -1, 9, 0], [0, 3, 0, 9, 0], [1, 1, 1, 9, 0.1]], np.float32)
    frame = replace(frame_at(rigid(50, 60, 0, 1), rigid(1, 0, 2, np.pi / 2)), points=points_)
    frame = replace(frame, sweep_of_point=np.array([0, 0, 1], np.uint8))
    scene = Scene(SENSORS, {}, CONDITIONS)
    scene.observe(frame)
    for seen_frame, expected in ((frame, [[1, 10, 1], [-2, 0, 2]]), (frame.without_points(), np.zeros((0, 3)))):
        seen = scene.update(frame, Prediction({"points": classified(np.array([3, 4, NONE]))}))
        (cloud,) = (m for m in Messages(manifest_of("points")).scene(seen_frame, seen) if m.topic.endswith("points"))
        found = rows_of(read(cloud))
        np.testing.assert_allclose(np.stack([found[axis] for axis in "xyz"], axis=1), expected, atol=1e-5)
        assert found["class_id"].tolist() == [3, 4][: len(found)]


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
status = st.builds(Diagnostic, texts, st.integers(0, 3), texts, st.dictionaries(texts, texts, max_size=3))


@given(statuses=st.lists(status, max_size=3), stamp=st.integers(0, 2**31 * 10**6 - 1))
def test_diagnostics_are_read_as_they_were_meant(statuses: list[Diagnostic], stamp: int) -> None:
    message = Messages(manifest_of_detection()).diagnostics(stamp, statuses)
    assert message.topic == "/diagnostics"
    found = read(message)
    assert (found.header.stamp.sec, found.header.stamp.nanosec) == (stamp // 10**6, stamp % 10**6 * 1000)
    values = [{each.key: each.value for each in status.values} for status in found.status]
    told = [
        Diagnostic(each.name, each.level, each.message, own) for each, own in zip(found.status, values, strict=True)
    ]
    assert told == statuses
    assert {each.hardware_id for each in found.status} <= {bundle().manifest.name}


def test_a_diagnostic_may_name_any_file() -> None:
    name = b"/data/\xff.mcap".decode(errors="surrogateescape")
    (found,) = read(
        Messages(manifest_of_detection()).diagnostics(0, [Diagnostic("disk", 2, name, {name: name})])
    ).status
    assert (found.message, found.values[0].key, found.values[0].value) == ("/data/?.mcap",) * 3


def test_classes_without_a_name_in_ros_are_unknown() -> None:
    bare = NUSCENES.without_ros_classes()
    assert ObjectClass.model_validate(NUSCENES.classes[0].model_dump()) == NUSCENES.classes[0]
    for name in ("nuscenes", "kitti", "pandaset", "t4", "truckscenes"):
        unnamed = [each.name for each in load_taxonomy(name).classes if each.ros_class is None]
        assert unnamed == (["traffic_sign"] if name == "truckscenes" else [])
    content = manifest_of("detection").model_dump(mode="json") | {"taxonomy": bare.model_dump(mode="json")}
    manifest = Manifest.model_validate(content, strict=False)
    boxes = boxes_of([CAR, 0, 0, 0, 2, 4, 1, 0, 0, 0, 1])
    _, detected = Messages(manifest).detections(frame_at(np.eye(4), np.eye(4)), Prediction({"detection": boxes}))
    assert read(detected).objects[0].classification[0].label == 0
    assert RosClass.__args__.index("hazard") == 9  # as ObjectClassification numbers them


MAP_GRID, FINE = BevGrid((-8, 8), (-4, 4), cell=1.0), VoxelGrid((-4, 4), (-4, 4), (-1, 3), 0.5)


def space(*tasks: str, voxels: VoxelGrid = FINE) -> FreeSpace:
    shape = {"x": voxels.x, "y": voxels.y, "z": voxels.z, "cell": voxels.cell}
    configs = parse_tasks({name: shape if name == "occupancy" else {} for name in tasks})
    return FreeSpace(tasks_of(configs, MAP_GRID, NUSCENES))


def remembered(voxels: VoxelGrid, taken: Sequence[tuple[float, float, float]], name: str = "manmade") -> Any:
    """A state with free voxels everywhere, but at these places."""
    occupied, classes = np.full(voxels.shape, 0.1, np.float32), np.full(voxels.shape, 17, np.uint8)
    index, inside = voxels.indices(np.array(taken))
    assert inside.all()
    occupied.flat[index], classes.flat[index] = 0.9, 1 + NUSCENES.point_names.index(name)
    nothing: Any = None
    return OccupiedSpace(OccupancyResult(classes, occupied, occupied, np.zeros(360), voxels), nothing, nothing, {})


def drivable(road: np.ndarray) -> np.ndarray:
    """A map whose first layer is this (rows, columns)."""
    assert MAP_CLASSES[0] == "drivable_area"
    return np.stack([road.astype(np.float32)] + [np.zeros(MAP_GRID.shape, np.float32)] * (len(MAP_CLASSES) - 1))


def test_a_cell_is_free_where_all_say_so() -> None:
    """Rows along y; the road is y < 0; a wall and a low kerb beside it; nothing is known of one column."""
    road = np.zeros(MAP_GRID.shape)
    road[:4], road[0, 5] = 0.9, np.float32(PRIOR[0])
    states = {"map": drivable(road), "occupancy": remembered(FINE, [(1.2, -1.3, 1.0), (-2.2, -1.3, -0.6)])}
    both = space("map", "occupancy").cells(states, Boxes.none())
    expected = np.full(MAP_GRID.shape, TAKEN)
    expected[:4] = UNKNOWN  # beyond the voxels
    expected[:4, 4:12] = FREE
    expected[0, 5] = UNKNOWN
    expected[2, 9] = TAKEN  # the wall; the kerb is below the vehicle's body
    np.testing.assert_array_equal(both, expected)
    lone = space("map").cells(states, Boxes.none())
    np.testing.assert_array_equal(
        lone, np.where(np.isclose(road, PRIOR[0]), UNKNOWN, np.where(road > 0.5, FREE, TAKEN))
    )
    voxels = space("occupancy")
    assert voxels.grid == BevGrid(FINE.x, FINE.y, FINE.z, FINE.cell)
    assert [*zip(*np.nonzero(voxels.cells(states, Boxes.none()) == TAKEN), strict=True)] == [(5, 10)]
    flat = {"occupancy": remembered(FINE, [(1.2, -1.3, 1.0)], "terrain")}
    assert not (voxels.cells(flat, Boxes.none()) == TAKEN).any()
    assert space("detection").cells({}, Boxes.none()) is None
    unseen = replace(flat["occupancy"].fused, occupied=np.full(FINE.shape, np.float32(126 / 253)))
    assert (voxels.cells({"occupancy": replace(flat["occupancy"], fused=unseen)}, Boxes.none()) == UNKNOWN).all()


def test_coarse_voxels_take_all_their_cells() -> None:
    coarse = VoxelGrid((-8, 8), (-4, 4), (-1, 3), 4.0)
    states = {"map": drivable(np.ones(MAP_GRID.shape)), "occupancy": remembered(coarse, [(1.0, 1.0, 1.0)])}
    expected = np.full(MAP_GRID.shape, FREE)
    expected[4:8, 8:12] = TAKEN
    np.testing.assert_array_equal(space("map", "occupancy", voxels=coarse).cells(states, Boxes.none()), expected)


def test_cells_under_objects_are_taken() -> None:
    """Every cell whose centre an object covers, and none that is further than a cell from one."""
    rng = np.random.default_rng(0)
    x, y, yaw = rng.uniform(-9, 9, 12), rng.uniform(-5, 5, 12), rng.uniform(-4, 4, 12)
    objects = boxes_of(*([0, x[i], y[i], 0, 1.9, 4.5, 1.6, yaw[i], 0, 0, 1] for i in range(12)))
    for some in (objects.select(np.arange(3)), objects):
        cells = space("map").cells({"map": drivable(np.ones(MAP_GRID.shape))}, some)
        centers = points(MAP_GRID.centers().reshape(-1, 2).astype(float))
        tree = STRtree([Polygon(corners) for corners in some.corners()[:, [2, 3, 7, 6], :2]])
        inside = np.zeros(MAP_GRID.shape, bool)
        inside.flat[tree.query(centers, "intersects")[0]] = True
        near = np.zeros(MAP_GRID.shape, bool)
        near.flat[tree.query(centers, "dwithin", distance=MAP_GRID.cell)[0]] = True
        taken = cells == TAKEN
        assert inside.any()
        assert (taken[inside]).all()
        assert not (taken & ~near).any()


def test_free_space_lies_on_the_ground_where_the_lidar_has_it() -> None:
    manifest = manifest_of("map")
    grid = manifest.heads["map"].grid
    frame, scene = frame_at(rigid(70, 80, 1, 0.7), rigid(1.0, 0.5, 1.8, np.pi / 2)), Scene(SENSORS, {}, CONDITIONS)
    scene.observe(frame)
    state = np.zeros((len(MAP_CLASSES), *grid.shape), np.float32)
    state[0, 3, 7] = 1
    seen = replace(scene.update(frame, Prediction({})), states={"map": state})
    (found,) = (read(m) for m in Messages(manifest).scene(frame, seen) if m.topic.endswith("free_space"))
    rows, columns = grid.shape
    assert (found.info.width, found.info.height) == (columns, rows)
    assert [i for i, value in enumerate(found.data) if value == FREE] == [3 * columns + 7]
    origin = found.info.origin
    # ahead of the LiDAR is the vehicle's left: x of the grid is y, and y of the grid is -x
    assert xyz(origin.position) == pytest.approx([1.0 - grid.y[0], 0.5 + grid.x[0], 0], abs=1e-9)
    assert xyzw(origin.orientation) == pytest.approx([0, 0, np.sqrt(0.5), np.sqrt(0.5)], abs=1e-9)
    assert found.info.resolution == pytest.approx(grid.cell)
    oblong = occupancy_grid(header(0, ""), np.eye(4), MAP_GRID, np.zeros(MAP_GRID.shape, np.int8))
    about = read(Message("", "nav_msgs/msg/OccupancyGrid", encode(oblong))).info
    assert (about.width, about.height, xyz(about.origin.position)) == (16, 8, [-8, -4, 0])


def test_a_track_of_the_map_takes_the_cells_under_it_and_free_voxels_are_not_sent() -> None:
    """The LiDAR looks ahead, 1 m before the vehicle's middle."""
    manifest, pose = manifest_of("detection", "map", "occupancy"), rigid(70, 80, 1, 0.7)
    frame, scene = frame_at(pose, rigid(1, 0, 2, 0)), Scene(SENSORS, {}, CONDITIONS)
    scene.observe(frame)
    car = boxes_of([0, 12.0, 6.0, 1, 2, 4.5, 1.6, 0, 0, 0, 1]).transformed(pose)
    voxels = remembered(manifest.heads["occupancy"].voxels, [(3.3, 3.3, 1.0)])
    voxels.fused.occupied[0, 0, 0] = 0.6  # likelier not free, but free is the likeliest of its classes
    grid, one = manifest.heads["map"].grid, np.ones(1)
    states = {
        "detection": Tracks(one.astype(int), car, one, 0 * one, one > 0, np.ones((1, 3))),
        "map": np.ones((len(MAP_CLASSES), *grid.shape), np.float32),
        "occupancy": voxels,
    }
    seen = replace(scene.update(frame, Prediction({})), states=states)
    found = {each.topic: read(each) for each in Messages(manifest).scene(frame, seen)}
    assert found["/perception/occupancy"].width == 1
    cells = np.array(found["/perception/free_space"].data).reshape(grid.shape)
    for place, expected in (([11.0, 6.0], TAKEN), ([3.3, 3.3], TAKEN), ([11.0, -6.0], FREE)):
        column, row = np.floor(grid.continuous(np.array([place]))[0]).astype(int)
        assert cells[row, column] == expected
