// Boxes as messages, and clouds as points of a tessera_frame.
//
// Everything is a template of the messages' types: ROS's own in the node, those of rosidl alone where there is no ROS.
// The fields have the values that `perception drive --publish` sends (docs/ros_messages.md), in every byte where the
// vehicle's frame is the bundle's; numpy may fuse the products that turn boxes from another one.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace tessera_ros {

using Matrix = std::array<double, 16>;  // homogeneous, row-major

// By label; the numbers are of `model_params` in the bundle's ml_package.param.yaml.
struct Classes {
    std::vector<std::string> names;
    std::vector<int64_t> labels;        // of autoware_perception_msgs/ObjectClassification
    std::vector<int64_t> orientations;  // orientation_availability
};

// The arrays detection/NAME of tessera_get.
struct Detections {
    size_t count;
    const double *centers, *sizes, *rotations, *velocities, *scores;
    const int64_t *labels;
};

// A detection in the frame of a message.
struct Box {
    std::array<double, 3> center, size;  // m; length, width, height
    std::array<double, 4> turn;          // w x y z
    std::array<double, 3> twist;         // m/s over ground, along the box's axes; 0 where unknown
    bool moves;                          // the velocity is known
    double score;
    size_t label;
};

// w x y z with w >= 0, by the row of 4 q q^T with the largest diagonal (Shepperd, 1978).
inline std::array<double, 4> quaternion(const std::array<double, 9> &m) {
    const double wx = m[7] - m[5], wy = m[2] - m[6], wz = m[3] - m[1];
    const double xy = m[1] + m[3], xz = m[2] + m[6], yz = m[5] + m[7];
    const std::array<double, 4> outer[] = {{1 + m[0] + m[4] + m[8], wx, wy, wz},
                                           {wx, 1 + m[0] - m[4] - m[8], xy, xz},
                                           {wy, xy, 1 - m[0] + m[4] - m[8], yz},
                                           {wz, xz, yz, 1 - m[0] - m[4] + m[8]}};
    size_t largest = 0;
    for (size_t i = 1; i < 4; ++i) largest = outer[i][i] > outer[largest][largest] ? i : largest;
    std::array<double, 4> q = outer[largest];
    double length = std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
    if (q[0] < 0) length = -length;
    for (double &each : q) each /= length;
    return q;
}

// Lowest scores of published detections: a row by label for each range, of which the last one goes on.
struct ScoreThresholds {
    std::vector<double> upper_bounds, thresholds;

    double at(size_t label, double distance) const {
        const auto first = upper_bounds.begin();
        const size_t range = std::upper_bound(first, std::prev(upper_bounds.end()), distance) - first;
        return thresholds.at(range * (thresholds.size() / upper_bounds.size()) + label);
    }
};

// The detections with at least these scores, in the frame of a message.
inline std::vector<Box> boxes_of(const Detections &found, const Matrix &to, const ScoreThresholds &thresholds) {
    std::vector<Box> boxes;
    for (size_t n = 0; n < found.count; ++n) {
        const double *c = found.centers + 3 * n;
        if (!(found.scores[n] >= thresholds.at(static_cast<size_t>(found.labels[n]), std::hypot(c[0], c[1])))) continue;
        const double *s = found.sizes + 3 * n, *v = found.velocities + 3 * n;
        Box &box = boxes.emplace_back();
        box.score = found.scores[n], box.label = static_cast<size_t>(found.labels[n]);
        box.size = {s[1], s[0], s[2]};
        box.moves = std::isfinite(v[0]) && std::isfinite(v[1]) && std::isfinite(v[2]);
        std::array<double, 9> turn;
        std::array<double, 3> velocity;
        for (int i = 0; i < 3; ++i) {
            const double *row = to.data() + 4 * i, *own = found.rotations + 9 * n;
            box.center[i] = row[0] * c[0] + row[1] * c[1] + row[2] * c[2] + row[3];
            velocity[i] = row[0] * v[0] + row[1] * v[1] + row[2] * v[2];
            for (int j = 0; j < 3; ++j) turn[3 * i + j] = row[0] * own[j] + row[1] * own[3 + j] + row[2] * own[6 + j];
        }
        box.turn = quaternion(turn);
        for (int j = 0; j < 3; ++j) {
            const double along = turn[j] * velocity[0] + turn[3 + j] * velocity[1] + turn[6 + j] * velocity[2];
            box.twist[j] = box.moves ? along : 0.0;
        }
    }
    return boxes;
}

// Intrinsics of the rectified picture of a sensor_msgs/CameraInfo: of P or, if it is not set, K.
template <class Info>
void write_intrinsics(const Info &info, double *to) {
    bool rectified = false;
    for (const double each : info.p) rectified |= each != 0;
    for (size_t i = 0; i < 9; ++i) to[i] = rectified ? info.p[i / 3 * 4 + i % 3] : info.k[i];
}

template <class Vector>  // geometry_msgs/Vector3 or Point
void set(Vector &to, const std::array<double, 3> &xyz) {
    to.x = xyz[0], to.y = xyz[1], to.z = xyz[2];
}

template <class Pose>
void set_pose(Pose &to, const Box &box) {
    set(to.position, box.center);
    to.orientation.w = box.turn[0];
    to.orientation.x = box.turn[1], to.orientation.y = box.turn[2], to.orientation.z = box.turn[3];
}

template <class Message, class Header>  // vision_msgs/Detection3DArray, version 4
Message detections_3d(const Header &header, const std::vector<Box> &boxes, const Classes &classes) {
    Message message;
    message.header = header;
    for (const Box &box : boxes) {
        auto &detection = message.detections.emplace_back();
        detection.header = header;
        auto &result = detection.results.emplace_back();
        result.hypothesis.class_id = classes.names.at(box.label);
        result.hypothesis.score = box.score;
        set_pose(result.pose.pose, box);
        set_pose(detection.bbox.center, box);
        set(detection.bbox.size, box.size);
    }
    return message;
}

template <class Message, class Header>  // autoware_perception_msgs/DetectedObjects
Message detected_objects(const Header &header, const std::vector<Box> &boxes, const Classes &classes) {
    Message message;
    message.header = header;
    for (const Box &box : boxes) {
        auto &object = message.objects.emplace_back();
        object.existence_probability = static_cast<float>(box.score);
        auto &kind = object.classification.emplace_back();
        kind.label = static_cast<uint8_t>(classes.labels.at(box.label));
        kind.probability = 1;
        auto &kinematics = object.kinematics;
        set_pose(kinematics.pose_with_covariance.pose, box);
        kinematics.orientation_availability = static_cast<uint8_t>(classes.orientations.at(box.label));
        set(kinematics.twist_with_covariance.twist.linear, box.twist);
        kinematics.has_twist = box.moves;
        set(object.shape.dimensions, box.size);  // its type 0 is a box
    }
    return message;
}

// Appends x y z (m, moved), intensity and `age` (s) of a sensor_msgs/PointCloud2 to rows of five. Intensities are
// float32, or uint8 as in Autoware's PointXYZIRC. Throws std::invalid_argument without these fields.
template <class Cloud>
void append_points(const Cloud &cloud, const Matrix &to, double age, std::vector<float> &points) {
    constexpr uint8_t kUint8 = 2, kFloat32 = 7;
    const char *const names[] = {"x", "y", "z", "intensity"};
    size_t offsets[4], found = 0;
    bool bytes = false;
    for (const auto &field : cloud.fields) {
        for (size_t i = 0; i < 4; ++i) {
            const bool small = i == 3 && field.datatype == kUint8;
            if (field.name != names[i] || !(small || field.datatype == kFloat32)) continue;
            if (size_t{field.offset} + (small ? 1 : 4) > cloud.point_step) continue;
            offsets[i] = field.offset, found |= size_t{1} << i, bytes |= small;
        }
    }
    const size_t count = size_t{cloud.height} * cloud.width, step = cloud.point_step;
    const bool packed = cloud.height <= 1 || cloud.row_step == cloud.width * step;
    if (found != 15 || cloud.is_bigendian || !packed || cloud.data.size() / step < count)
        throw std::invalid_argument("the cloud has no x y z (float32) and intensity (float32 or uint8) of each point");
    float m[12];
    for (size_t i = 0; i < 12; ++i) m[i] = static_cast<float>(to[i]);
    for (size_t n = 0; n < count; ++n) {
        const uint8_t *point = cloud.data.data() + n * step;
        float p[4];
        for (size_t i = 0; i < (bytes ? 3 : 4); ++i) std::memcpy(p + i, point + offsets[i], sizeof(float));
        if (bytes) p[3] = point[offsets[3]];
        for (size_t i = 0; i < 12; i += 4) points.push_back(m[i] * p[0] + m[i + 1] * p[1] + m[i + 2] * p[2] + m[i + 3]);
        points.insert(points.end(), {p[3], static_cast<float>(age)});
    }
}

}  // namespace tessera_ros
