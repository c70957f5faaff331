"""The ROS 2 node compiles; its messages, from structures of Debian's rosidl by fastcdr, have the bytes of Python's."""

import ctypes
import json
import re
import subprocess
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from exported import bundle
from once import once
from perceived import STAMP, boxes_of, frame_at, manifest_of, read, rigid, xyz, xyzw
from repository import ROOT
from ros_structs import write_structs
from scipy.spatial.transform import Rotation
from vocabulary import NUSCENES

from deploy.export import ROS2_PARAMETERS, parameters_content
from deploy.live.messages.messages import Diagnostic, Messages
from deploy.manifest import Manifest
from deploy.recordings.messages import intrinsics
from deploy.recordings.ros_types import encode, header, make
from perception.frame import Boxes, Prediction
from perception.geometry import move
from perception.tasks.published import ScoreThresholds

ROS2 = ROOT / "deploy" / "ros2"
ROOM = 1_000_000
SIZE = ctypes.c_size_t(ROOM)
NAMES = (
    "autoware_perception_msgs/msg/DetectedObjects", "vision_msgs/msg/Detection3DArray",
    "diagnostic_msgs/msg/DiagnosticArray", "sensor_msgs/msg/PointCloud2",
)  # fmt: skip
QUARTER = np.array([[0, -1, 0, 1.0], [1, 0, 0, 0.5], [0, 0, 1, 1.8], [0, 0, 0, 1]])  # its products are exact
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "number": (int, float), "integer": int, "array": list, "object": dict, "boolean": bool,
}  # fmt: skip


class Detections(ctypes.Structure):
    _fields_ = [("count", ctypes.c_size_t)] + [
        (name, ctypes.c_void_p) for name in ("centers", "sizes", "rotations", "velocities", "scores", "labels")
    ]


@cache
def library() -> ctypes.CDLL:
    def make_library(out: Path) -> None:
        include = write_structs(out, NAMES)
        folders = ["rosidl_runtime_cpp", "rosidl_runtime_c", "rosidl_typesupport_interface"]
        includes = ["-isystem", "/usr/include/opencv4"] + [f"-I/usr/include/{each}" for each in folders]
        includes += [f"-I{each}" for each in (include, ROS2 / "include", ROOT / "deploy" / "cpp" / "include")]
        words = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC", *includes]
        words += [
            str(Path(__file__).with_name("ros_messages.cpp")),
            "-lfastcdr",
            "-lopencv_core",
            "-o",
            str(out / "messages.so"),
        ]
        subprocess.run(words, check=True)

    found = ctypes.CDLL(str(once("ros-messages", make_library) / "messages.so"))
    for each in (found.boxes, found.points, found.status, found.health, found.topic):
        each.restype = ctypes.c_size_t
    return found


@pytest.mark.slow("compiles with all headers of ROS")
@pytest.mark.parametrize("release", ["humble", "jazzy"])
def test_the_node_compiles_without_a_warning(release: str, headers: Path) -> None:
    """No library of ROS is here, so the node is neither linked nor run."""
    theirs = ["-isystem", headers / f"ros-{release}", "-isystem", "/usr/include/opencv4"]
    ours = ["-I", ROS2 / "include", "-I", ROOT / "deploy" / "cpp" / "include", ROS2 / "src" / "node.cpp"]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    subprocess.run(["g++", *flags, *theirs, *ours], check=True)


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def model_params(manifest: Manifest) -> dict[str, Any]:
    return dict(yaml.safe_load(parameters_content(manifest))["/**"]["ros__parameters"]["model_params"])


def written(boxes: Boxes, mount: np.ndarray, manifest: Manifest, autoware: bool) -> bytes:
    """The node's message of what tessera_get has, with the parameters that the bundle brings."""
    given, about = model_params(manifest), encode(header(STAMP, "base_link"))
    names = [each.encode() for each in manifest.taxonomy.class_names]
    of_class = [np.array(given[name], np.int64) for name in ("class_labels", "class_orientations")]
    fields = [np.ascontiguousarray(getattr(boxes, name)) for name, _ in Detections._fields_[1:]]
    found, out = Detections(len(boxes), *map(pointer, fields)), ctypes.create_string_buffer(ROOM)
    bounds, scores = (np.array(given[f"score_{name}"], np.float64) for name in ("upper_bounds", "thresholds"))
    size = library().boxes(
        autoware, ctypes.byref(found), pointer(mount), pointer(bounds), ctypes.c_size_t(len(bounds)), pointer(scores),
        (ctypes.c_char_p * len(names))(*names), *map(pointer, of_class), ctypes.c_size_t(len(names)), about,
        ctypes.c_size_t(len(about)), out, SIZE,
    )  # fmt: skip
    return out.raw[:size]


def found_boxes() -> Boxes:
    """One of each class, turned any way, some with a velocity that is not known; then any, some below the threshold."""
    rng = np.random.default_rng(0)
    rows = rng.uniform([0, -50, -50, -2, 0.1, 0.1, 0.1, -4, -9, -9, 0], [0, 50, 50, 2, 9, 9, 9, 4, 9, 9, 1], (200, 11))
    rows[:, 0] = np.arange(200) % len(NUSCENES.classes)
    rows[::7, 8] = np.nan
    rows[:3, 10] = 0.3, np.nextafter(0.3, 0), np.nextafter(0.3, 1)
    boxes = boxes_of(*rows)
    rotations = boxes.rotations.copy()
    rotations[:100] = Rotation.from_quat(rng.normal(size=(100, 4))).as_matrix()
    rotations[100:104] = Rotation.from_euler("z", [[0], [90], [180], [-90]], degrees=True).as_matrix().round()
    return replace(boxes, rotations=rotations)


def manifest_with(thresholds: ScoreThresholds) -> Manifest:
    content = manifest_of("detection").model_dump(mode="json")
    content["tasks"]["detection"]["score_thresholds"] = thresholds.model_dump(mode="json")
    return Manifest.model_validate_json(json.dumps(content))


@pytest.mark.slow("compiles, and exports a network")
@pytest.mark.parametrize("mount", [np.eye(4), QUARTER])
def test_objects_have_the_bytes_of_the_python_messages(mount: np.ndarray) -> None:
    frame = frame_at(np.eye(4), mount)
    ranges = ScoreThresholds(
        upper_bounds=(20.0, 40.0, 50.0), thresholds={"car": (0.2, 0.9, 0.5), "bus": (0.0, 0.1, 0.8)}
    )
    for manifest, boxes in product((manifest_of("detection"), manifest_with(ranges)), (found_boxes(), Boxes.none())):
        vision, detected = Messages(manifest).detections(frame, Prediction({"detection": boxes}))
        assert written(boxes, mount, manifest, autoware=False) == vision.data
        assert written(boxes, mount, manifest, autoware=True) == detected.data


def test_objects_of_a_turned_lidar_are_where_python_has_them() -> None:
    """numpy may fuse the products of its matrices."""
    manifest, boxes, mount = manifest_of("detection"), found_boxes(), rigid(1.0, 0.5, 1.8, 0.3)
    frame = frame_at(np.eye(4), mount)
    _, expected = Messages(manifest).detections(frame, Prediction({"detection": boxes}))
    found = expected._replace(data=written(boxes, mount, manifest, autoware=True))
    pairs = list(zip(read(found).objects, read(expected).objects, strict=True))
    for mine, theirs in ([each.kinematics for each in pair] for pair in pairs):
        poses, twists = (
            [getattr(each, name) for each in (mine, theirs)]
            for name in ("pose_with_covariance", "twist_with_covariance")
        )
        assert xyz(poses[0].pose.position) == pytest.approx(xyz(poses[1].pose.position), abs=1e-12)
        assert xyzw(poses[0].pose.orientation) == pytest.approx(xyzw(poses[1].pose.orientation), abs=1e-12)
        assert xyz(twists[0].twist.linear) == pytest.approx(xyz(twists[1].twist.linear), abs=1e-12)
    assert len(pairs) > 100


@pytest.mark.parametrize("intensity", ["<f4", "u1"])
@pytest.mark.parametrize("mount", [np.eye(4), QUARTER])
def test_a_cloud_becomes_the_points_of_a_frame(mount: np.ndarray, intensity: str) -> None:
    rows = np.zeros(500, [("ring", "<u2"), ("z", "<f4"), ("intensity", intensity), ("y", "<f4"), ("x", "<f4")])
    rng = np.random.default_rng(0)
    for name in rows.dtype.names or ():
        rows[name] = rng.uniform(0, 200, len(rows))
    datatypes = {"<u2": 4, "<f4": 7, "|u1": 2}
    fields = [
        make("sensor_msgs/msg/PointField", name=name, offset=offset, datatype=datatypes[kind.str], count=1)
        for name, (kind, offset) in (rows.dtype.fields or {}).items()
    ]
    whole: dict[str, Any] = {
        "header": header(STAMP, "base_link"), "height": 1, "width": 500, "fields": fields, "is_bigendian": False,
        "point_step": rows.itemsize, "row_step": rows.nbytes, "data": rows.view(np.uint8), "is_dense": True,
    }  # fmt: skip
    expected = np.stack([rows[name].astype(np.float32) for name in ("x", "y", "z", "intensity", "ring")], axis=1)
    move(expected, mount.astype(np.float32))
    expected[:, 4] = 0.05
    found = np.zeros((500, 5), np.float32)

    def points(**changed: Any) -> int:
        data = encode(make("sensor_msgs/msg/PointCloud2", **whole | changed))
        count = library().points(
            data, ctypes.c_size_t(len(data)), pointer(mount), ctypes.c_double(0.05), pointer(found)
        )
        return int(ctypes.c_ssize_t(count).value)

    assert points() == 500
    assert found.tobytes() == expected.tobytes()
    assert points(height=50, width=10, row_step=10 * rows.itemsize) == 500
    assert points(width=0, data=rows.view(np.uint8)[:0]) == 0
    wide = make("sensor_msgs/msg/PointField", name="x", offset=2**32 - 2, datatype=7, count=1)
    for wrong in (
        {"fields": fields[:-1]}, {"fields": [*fields[:-1], wide]}, {"is_bigendian": True}, {"width": 501},
        {"point_step": 0}, {"height": 2**31, "width": 2**31, "row_step": 0},
    ):  # fmt: skip
        assert points(**wrong) == -1, wrong


@pytest.mark.parametrize("p", [[700, 0, 320, 0, 0, 710, 240, 0, 0, 0, 1, 0], [0] * 12])
def test_the_intrinsics_of_a_rectified_picture_are_those_of_python(p: list[float]) -> None:
    k, found = np.array([800.0, 0, 310, 0, 790, 250, 0, 0, 1]), np.zeros((3, 3))
    given, no_rotation = np.array(p, np.float64), np.eye(3).ravel()
    library().intrinsics(*map(pointer, (k, given, found)))
    expected = intrinsics(0, "camera", (640, 480), "plumb_bob", np.full(5, 0.1), k, no_rotation, given)
    assert found.tolist() == expected.matrix.tolist()


def test_pictures_come_by_the_topic_of_their_transport() -> None:
    found = ctypes.create_string_buffer(100)
    for transport, expected in (("raw", "/front/image"), ("compressed", "/front/image/compressed")):
        length = library().topic(transport.encode(), found)
        assert found.raw[:length].decode() == expected
    for unknown in ("", "theora", "Raw"):
        assert ctypes.c_ssize_t(library().topic(unknown.encode(), found)).value == -1


@pytest.mark.parametrize("gap", [0, 1, 7])
def test_pixels_are_shared_unless_there_are_gaps_between_rows(gap: int) -> None:
    eight_bits, sixteen_bits, grey = 16, 18, 0  # OpenCV's types of 3 x 8, 3 x 16 and 8 bits
    rows = np.random.default_rng(0).integers(0, 256, (4, 5 * 3 + gap), np.uint8)
    found = np.zeros((4, 5 * 3), np.uint8)

    def pixels(count: int, kind: int, step: int) -> int:
        data, step_of_row = pointer(rows), ctypes.c_size_t(step)
        return int(library().pixels(data, count, 5, kind, step_of_row, pointer(found)))

    assert pixels(4, eight_bits, rows.shape[1]) == (gap == 0)
    assert (found == rows[:, : 5 * 3]).all()
    assert pixels(0, eight_bits, rows.shape[1]) == -1
    assert pixels(2, sixteen_bits, 2 * rows.shape[1]) == -1
    assert pixels(4, grey, rows.shape[1]) == -1


def test_the_launch_file_names_every_topic_of_the_node() -> None:
    launch = ElementTree.parse(ROS2 / "launch" / "tessera.launch.xml").getroot()
    remaps = {each.attrib["from"]: each.attrib["to"] for each in launch.iter("remap")}
    topics = {f"input/{kind}{number}" for kind in ("image", "camera_info") for number in range(8)}
    topics |= {"input/pointcloud", "output/objects", "output/detections"}
    assert remaps == {f"~/{topic}": f"$(var {topic})" for topic in topics}
    assert topics <= {each.attrib["name"] for each in launch.iter("arg")}
    source = (ROS2 / "src" / "node.cpp").read_text()
    assert {each.strip("~/") for each in re.findall(r'"(~/[^"]+)"', source)} == {re.sub(r"\d$", "", t) for t in topics}


def diagnostics(name: str, level: int, message: str, values: dict[str, str]) -> bytes:
    manifest = manifest_of("detection").model_copy(update={"name": "tessera"})
    return Messages(manifest).diagnostics(STAMP, [Diagnostic(f"tessera: {name}", level, message, values)]).data


EMPTY = encode(make("diagnostic_msgs/msg/DiagnosticArray", header=header(STAMP, ""), status=[]))
NO_STATUS = (EMPTY, ctypes.c_size_t(len(EMPTY)))
PARTIAL, NOT_FINITE = "cameras of the bundle are not in the frame", "outputs of the network are not finite"
LATE = "Processing takes 250 ms, more than 200 ms"


@pytest.mark.parametrize(
    ("taken", "times", "hangs", "level", "message", "in_time", "acceptable", "delay"),
    [
        ([-1], [0], False, 0, "Waiting for the node to perform inference.", True, True, "0"),
        ([200], [0], False, 0, "", True, True, "0"),
        ([100, 250], [0, 500], False, 1, LATE, False, True, "500"),
        ([100, 250, 250], [0, 500, 1001], False, 2, f"{LATE}, for 1001 ms", False, False, "1001"),
        ([250, 250], [100, 1100], False, 1, LATE, False, True, "1000"),
        ([100, 250, 100], [0, 2000, 2100], False, 0, "", True, True, "0"),
        ([100, 150], [0, 150], True, 0, "", True, True, "0"),
        ([100, 250], [0, 500], True, 1, LATE, False, True, "500"),
        ([100, 250, 751], [0, 500, 1001], True, 2, f"{LATE.replace('250', '751')}, for 1001 ms", False, False, "1001"),
    ],
)
def test_the_status_of_the_processing_time(
    taken: list[float],
    times: list[float],
    hangs: bool,
    level: int,
    message: str,
    in_time: bool,
    acceptable: bool,
    delay: str,
) -> None:
    values = {
        "is_processing_time_ms_in_expected_range": str(in_time), "processing_time_ms": f"{max(taken[-1], 0):g}",
        "is_consecutive_processing_delay_in_range": str(acceptable), "consecutive_processing_delay_ms": delay,
    }  # fmt: skip
    given, out = [np.array(each, np.float64) for each in (taken, times)], ctypes.create_string_buffer(ROOM)
    length = library().status(*map(pointer, given), ctypes.c_size_t(len(taken)), hangs, *NO_STATUS, out, SIZE)
    assert out.raw[:length] == diagnostics("processing_time_status", level, message, values)


@pytest.mark.parametrize(
    ("events", "publish", "ran", "level", "message", "cameras"),
    [
        ("", False, "", 1, PARTIAL, (False, False)),
        ("fg", False, "fg", 0, "", (True, True)),
        ("fc", False, "fc", 1, PARTIAL, (True, False)),
        ("fn", False, "fn", 2, NOT_FINITE, (True, True)),
        ("nf", False, "nf", 0, "", (True, True)),
        ("ce", False, "ce", 2, "failed", (True, False)),
        ("ef", False, "ef", 0, "", (True, True)),
        ("fwffgc", False, "fw", 2, "wrong engine", (True, True)),
        ("flffgc", False, "fl", 2, "lost", (True, True)),
        ("fwffgc", True, "fwffc", 2, "wrong engine", (True, False)),
    ],
)
def test_after_a_wrong_or_lost_engine_no_frame_is_perceived_unless_a_parameter_says_so(
    events: str, publish: bool, ran: str, level: int, message: str, cameras: tuple[bool, bool]
) -> None:
    found, out = ctypes.create_string_buffer(len(events) + 1), ctypes.create_string_buffer(ROOM)
    length = library().health(events.encode(), publish, found, *NO_STATUS, out, SIZE)
    values = {f"is_{name}_in_frame": str(seen) for name, seen in zip(("front", "back"), cameras, strict=True)}
    assert found.value.decode() == ran
    assert out.raw[:length] == diagnostics("tessera_status", level, message, values)


@pytest.mark.parametrize("check", [False, True])
def test_a_step_that_hangs_is_reported_while_it_does(check: bool) -> None:
    assert library().reported_while_it_hangs(check) == 2


def require_valid(schema: dict[str, Any], value: Any, where: str) -> None:
    assert isinstance(value, TYPES[schema.get("type", "string")]), where
    assert value in schema.get("enum", [value]), where
    if isinstance(value, dict):
        assert set(schema["required"]) == set(schema["properties"]) == set(value), where
        for name, each in value.items():
            require_valid(schema["properties"][name], each, f"{where}.{name}")
    for each in value if isinstance(value, list) else []:
        require_valid(schema["items"], each, f"{where}[]")


def test_parameters_are_those_of_the_schemas_and_nothing_else_is_declared() -> None:
    exported = bundle()
    files = {"tessera": ROS2 / "config" / "tessera.param.yaml", "ml_package": exported.path / ROS2_PARAMETERS}
    declared = {"bundle"}
    for name, file in files.items():
        content = yaml.safe_load(file.read_text())["/**"]["ros__parameters"]
        schema = json.loads((ROS2 / "schema" / f"{name}.schema.json").read_text())["definitions"][name]
        require_valid(schema, content, name)
        for key, value in content.items():
            declared |= {f"{key}.{each}" for each in value} if isinstance(value, dict) else {key}
    source = (ROS2 / "src" / "node.cpp").read_text()
    assert {name for name in declared if f'"{name}"' not in source} == set()
    assert "ml_package.param.yaml" in exported.files


def test_a_bundle_says_what_the_node_must_know() -> None:
    manifest = bundle().manifest
    given = model_params(manifest)
    labels = dict(zip(NUSCENES.class_names, given["class_labels"], strict=True))
    assert (labels["car"], labels["bus"], labels["pedestrian"], labels["barrier"]) == (1, 3, 7, 9)
    turns = dict(zip(NUSCENES.class_names, given["class_orientations"], strict=True))
    assert (turns["car"], turns["barrier"], turns["traffic_cone"]) == (2, 1, 0)
