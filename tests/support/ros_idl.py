"""The messages out as IDL, for `pycdr2`: an implementation of CDR that knows nothing of the product's."""

from dataclasses import make_dataclass
from typing import Any

from pycdr2 import IdlStruct
from pycdr2.types import array, float32, float64, int8, int32, sequence, uint8, uint32

from deploy.live.messages.messages import Message
from deploy.recordings import ros_types

TYPES: dict[str, Any] = {}


def struct(name: str, /, **fields: Any) -> Any:
    """The structure of a message PACKAGE/NAME, which is in TYPES from then on."""
    package, _, own = name.partition("/")
    kind = make_dataclass(own, fields.items(), bases=(IdlStruct,))
    TYPES[f"{package}/msg/{own}"] = kind
    return kind


COVARIANCE = array[float64, 36]
Time = struct("builtin_interfaces/Time", sec=int32, nanosec=uint32)
Header = struct("std_msgs/Header", stamp=Time, frame_id=str)

Vector = struct("geometry_msgs/Vector3", x=float64, y=float64, z=float64)
Corner = struct("geometry_msgs/Point32", x=float32, y=float32, z=float32)
Polygon = struct("geometry_msgs/Polygon", points=sequence[Corner])
Quaternion = struct("geometry_msgs/Quaternion", x=float64, y=float64, z=float64, w=float64)
Pose = struct("geometry_msgs/Pose", position=Vector, orientation=Quaternion)
Twist = struct("geometry_msgs/Twist", linear=Vector, angular=Vector)
Placed = struct("geometry_msgs/PoseWithCovariance", pose=Pose, covariance=COVARIANCE)
Moving = struct("geometry_msgs/TwistWithCovariance", twist=Twist, covariance=COVARIANCE)
Faster = struct("geometry_msgs/AccelWithCovariance", accel=Twist, covariance=COVARIANCE)

Hypothesis = struct("vision_msgs/ObjectHypothesis", class_id=str, score=float64)
Result = struct("vision_msgs/ObjectHypothesisWithPose", hypothesis=Hypothesis, pose=Placed)
Box = struct("vision_msgs/BoundingBox3D", center=Pose, size=Vector)
Detection = struct("vision_msgs/Detection3D", header=Header, results=sequence[Result], bbox=Box, id=str)
struct("vision_msgs/Detection3DArray", header=Header, detections=sequence[Detection])

AUTOWARE = "autoware_perception_msgs"
Class = struct(f"{AUTOWARE}/ObjectClassification", label=uint8, probability=float32)
Shape = struct(f"{AUTOWARE}/Shape", type=uint8, footprint=Polygon, dimensions=Vector)
Detected = struct(
    f"{AUTOWARE}/DetectedObjectKinematics",
    pose_with_covariance=Placed,
    has_position_covariance=bool,
    orientation_availability=uint8,
    twist_with_covariance=Moving,
    has_twist=bool,
    has_twist_covariance=bool,
)
Tracked = struct(
    f"{AUTOWARE}/TrackedObjectKinematics",
    pose_with_covariance=Placed,
    twist_with_covariance=Moving,
    acceleration_with_covariance=Faster,
    orientation_availability=uint8,
    is_stationary=bool,
)
KNOWN: dict[str, Any] = {"existence_probability": float32, "classification": sequence[Class]}
Found = struct(f"{AUTOWARE}/DetectedObject", **KNOWN, kinematics=Detected, shape=Shape)
Track = struct(f"{AUTOWARE}/TrackedObject", object_id=array[uint8, 16], **KNOWN, kinematics=Tracked, shape=Shape)
struct(f"{AUTOWARE}/DetectedObjects", header=Header, objects=sequence[Found])
struct(f"{AUTOWARE}/TrackedObjects", header=Header, objects=sequence[Track])

struct("autoware_internal_debug_msgs/Float64Stamped", stamp=Time, data=float64)
About = struct("nav_msgs/MapMetaData", map_load_time=Time, resolution=float32, width=uint32, height=uint32, origin=Pose)
struct("nav_msgs/OccupancyGrid", header=Header, info=About, data=sequence[int8])
Field = struct("sensor_msgs/PointField", name=str, offset=uint32, datatype=uint8, count=uint32)
struct(
    "sensor_msgs/PointCloud2",
    header=Header,
    height=uint32,
    width=uint32,
    fields=sequence[Field],
    is_bigendian=bool,
    point_step=uint32,
    row_step=uint32,
    data=sequence[uint8],
    is_dense=bool,
)
Pair = struct("diagnostic_msgs/KeyValue", key=str, value=str)
Status = struct(
    "diagnostic_msgs/DiagnosticStatus", level=uint8, name=str, message=str, hardware_id=str, values=sequence[Pair]
)
struct("diagnostic_msgs/DiagnosticArray", header=Header, status=sequence[Status])

SourceInfo = struct(
    "autoware_sensing_msgs/SourcePointCloudInfo",
    header=Header,
    topic=str,
    status=uint8,
    idx_begin=uint32,
    length=uint32,
)
CloudInfo = struct(
    "autoware_sensing_msgs/ConcatenatedPointCloudInfo",
    header=Header,
    concatenation_success=bool,
    matching_strategy=uint8,
    matching_strategy_config=sequence[uint8],
    source_info=sequence[SourceInfo],
)


def read(message: Message) -> Any:
    """The message by `pycdr2`, which writes the same bytes; the product reads them as well."""
    content = TYPES[message.type_name].deserialize(message.data)
    assert content.serialize() == message.data
    ros_types.TYPES.deserialize_cdr(message.data, message.type_name)
    return content


def xyz(v: Any) -> list[float]:
    return [v.x, v.y, v.z]


def xyzw(q: Any) -> list[float]:
    return [*xyz(q), q.w]
