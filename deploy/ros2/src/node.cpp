// A bundle as a ROS 2 component, built as Autoware's perception nodes are: a cloud triggers a frame, with the latest
// picture of each camera. docs/native.md has topics and parameters.
//
// THIS FILE WAS NEVER RUN: the tests compile it with ROS's headers, and run the other headers of include/tessera_ros.
#if __has_include(<cv_bridge/cv_bridge.hpp>)
#include <cv_bridge/cv_bridge.hpp>
#else  // Humble
#include <cv_bridge/cv_bridge.h>
#endif
#include <tf2_ros/buffer.h>
#include <tf2_ros/transform_listener.h>

#include <algorithm>
#include <autoware_perception_msgs/msg/detected_objects.hpp>
#include <chrono>
#include <deque>
#include <diagnostic_updater/diagnostic_updater.hpp>
#include <functional>
#include <memory>
#include <rclcpp/rclcpp.hpp>
#include <rclcpp_components/register_node_macro.hpp>
#include <sensor_msgs/msg/camera_info.hpp>
#include <sensor_msgs/msg/compressed_image.hpp>
#include <sensor_msgs/msg/image.hpp>
#include <sensor_msgs/msg/point_cloud2.hpp>
#include <string_view>
#include <tessera.hpp>
#include <tf2_geometry_msgs/tf2_geometry_msgs.hpp>
#include <vision_msgs/msg/detection3_d_array.hpp>

#include "tessera_ros/health.hpp"
#include "tessera_ros/messages.hpp"
#include "tessera_ros/pictures.hpp"

namespace tessera_ros {

using autoware_perception_msgs::msg::DetectedObjects, vision_msgs::msg::Detection3DArray;
using sensor_msgs::msg::CameraInfo, sensor_msgs::msg::CompressedImage, sensor_msgs::msg::Image;
using sensor_msgs::msg::PointCloud2;
using Status = diagnostic_updater::DiagnosticStatusWrapper;
using Names = std::vector<std::string>;

void write(const tf2::Transform &from, double *to) {  // 16 numbers, row-major
    for (int i = 0; i < 3; ++i, to += 4) std::copy_n(&from.getBasis()[i][0], 3, to), to[3] = from.getOrigin()[i];
    to[0] = to[1] = to[2] = 0, to[3] = 1;
}

struct Sweep {
    rclcpp::Time time;
    tf2::Transform global_from_cloud;
    PointCloud2::ConstSharedPtr cloud;
};

// With the pixels of the message, if they are RGB.
cv_bridge::CvImageConstPtr rgb_of(const Image::ConstSharedPtr &image) {
    return cv_bridge::toCvShare(image, "rgb8");
}

cv_bridge::CvImageConstPtr rgb_of(const CompressedImage::ConstSharedPtr &image) {
    return cv_bridge::toCvCopy(image, "rgb8");
}

struct Camera {
    std::string name;
    CameraInfo::ConstSharedPtr info;
    std_msgs::msg::Header header;                         // of the latest picture
    std::function<cv_bridge::CvImageConstPtr()> picture;  // it, with its message
    bool seen = false;                                    // in the latest frame
};

class TesseraNode : public rclcpp::Node {
   public:
    explicit TesseraNode(const rclcpp::NodeOptions &options)
        : Node("tessera", options),
          runtime_(open()),
          bundle_(runtime_.describe()),
          classes_{runtime_.names("detection/labels"), given<std::vector<int64_t>>("model_params.class_labels"),
                   given<std::vector<int64_t>>("model_params.class_orientations")},
          health_(names(bundle_.cameras),
                  {given<double>("diagnostics.max_allowed_processing_time_ms"),
                   given<double>("diagnostics.max_acceptable_consecutive_delay_ms")},
                  given<bool>("publish_untrusted")) {
        if (declare_parameter<bool>("build_only", false)) {
            rclcpp::shutdown();  // ends the process with 0, as Autoware's nodes do
            return;
        }
        const auto image_transport = given<std::string>("image_transport");
        for (const std::string &name : names(bundle_.cameras)) {
            const std::string number = std::to_string(cameras_.size());
            Camera &camera = cameras_.emplace_back();
            camera.name = name;
            const std::string topic = get_node_topics_interface()->resolve_topic_name("~/input/image" + number);
            if (image_transport == "raw") subscribe_pictures<Image>(picture_topic(topic, image_transport), camera);
            else subscribe_pictures<CompressedImage>(picture_topic(topic, image_transport), camera);
            subscribe<CameraInfo>("~/input/camera_info" + number,
                                  [&camera](CameraInfo::ConstSharedPtr info) { camera.info = info; });
        }
        subscribe<PointCloud2>("~/input/pointcloud", [this](PointCloud2::ConstSharedPtr cloud) {
            log(health_.perceive([&] { return perceive(cloud); }));
        });
        const std::chrono::duration<double> golden(given<double>("golden_interval_s"));
        golden_ = create_wall_timer(golden, [this] { log(health_.check([&] { runtime_.check(); })); });
        updater_.setHardwareID(get_name());
        updater_.add("processing_time_status", [this](Status &status) { health_.report_time(status); });
        updater_.add("tessera_status", [this](Status &status) { health_.report(status); });
        const std::chrono::duration<double, std::milli> reports(
            given<double>("diagnostics.validation_callback_interval_ms"));
        reporter_ = std::make_unique<Repeating>(reports, [this] { updater_.force_update(); });
    }

   private:
    // A parameter that cannot be changed; the constructor throws if it is not given.
    template <class Value>
    Value given(const std::string &name) {
        rcl_interfaces::msg::ParameterDescriptor descriptor;
        descriptor.read_only = true;
        return declare_parameter<Value>(name, descriptor);
    }

    template <class Message, class Callback>
    void subscribe(const std::string &topic, Callback callback) {
        const auto qos = rclcpp::SensorDataQoS().keep_last(1);
        subscriptions_.push_back(create_subscription<Message>(topic, qos, std::move(callback)));
    }

    template <class Message>
    void subscribe_pictures(const std::string &topic, Camera &camera) {
        subscribe<Message>(topic, [&camera](typename Message::ConstSharedPtr image) {
            camera.header = image->header;
            camera.picture = [image] { return rgb_of(image); };
        });
    }

    static Names names(const char *const *list) {  // which ends with a null
        Names found;
        while (*list) found.emplace_back(*list++);
        return found;
    }

    void log(const std::string &problem) {
        if (!problem.empty()) RCLCPP_ERROR_THROTTLE(get_logger(), *get_clock(), 1000, "%s", problem.c_str());
    }

    // Opens the bundle: hashes, signature, plan and golden frames. A tessera::Failure ends the process, or is what a
    // container answers.
    tessera::Vehicle open() {
        const auto bundle = given<std::string>("bundle"), target = given<std::string>("target");
        const auto state = given<std::string>("state");
        const auto keys = given<Names>("keys");
        std::vector<const char *> files;
        for (const std::string &key : keys)
            if (!key.empty()) files.push_back(key.c_str());  // ROS has no empty lists, so it may be [""]
        tessera_options options{};
        options.bundle = bundle.c_str(), options.target = target.c_str(), options.state = state.c_str();
        options.keys = files.data(), options.key_count = files.size();
        return tessera::Vehicle(options);
    }

    tf2::Transform transform(const std::string &to, const std::string &from, const rclcpp::Time &time) {
        tf2::Transform found;
        const auto wait = rclcpp::Duration::from_seconds(0.05);
        tf2::fromMsg(transforms_.lookupTransform(to, from, time, wait).transform, found);
        return found;
    }

    Seen perceive(const PointCloud2::ConstSharedPtr &cloud) {
        const rclcpp::Time time(cloud->header.stamp);
        const tf2::Transform global_from_ego = transform(map_frame_, base_frame_, time);
        const tf2::Transform ego_from_reference = transform(base_frame_, reference_frame_, time);
        const tf2::Transform global_from_reference = global_from_ego * ego_from_reference;
        if (!sweeps_.empty() && time <= sweeps_.front().time) sweeps_.clear();  // a recording begins anew
        sweeps_.push_front({time, global_from_ego * transform(base_frame_, cloud->header.frame_id, time), cloud});
        const auto most = 1 + static_cast<size_t>(bundle_.sweeps);
        while (sweeps_.size() > most || (time - sweeps_.back().time).seconds() > bundle_.oldest) sweeps_.pop_back();
        points_.clear(), sweep_of_point_.clear();
        for (size_t i = 0; i < sweeps_.size(); ++i) {
            Matrix to;
            write(global_from_reference.inverse() * sweeps_[i].global_from_cloud, to.data());
            try {
                append_points(*sweeps_[i].cloud, to, (time - sweeps_[i].time).seconds(), points_);
            } catch (const std::invalid_argument &) {  // the new cloud: it shall not spoil the next frames
                sweeps_.pop_front();
                throw;
            }
            sweep_of_point_.resize(points_.size() / 5, static_cast<uint8_t>(i));
        }
        const std::vector<tessera_camera> cameras = pictures(time);
        tessera_frame frame{};
        frame.size = sizeof frame, frame.timestamp = time.nanoseconds() / 1000;
        write(global_from_reference, frame.global_from_reference), write(global_from_ego, frame.global_from_ego);
        frame.points = points_.data(), frame.point_count = sweep_of_point_.size();
        frame.sweep_of_point = sweep_of_point_.data();
        frame.cameras = cameras.data(), frame.camera_count = cameras.size();
        runtime_.step(frame);
        const tessera_array counts = runtime_.get("not_finite");
        const auto *lost = static_cast<const int64_t *>(counts.data);
        publish(time, ego_from_reference);
        Seen seen;
        for (const Camera &camera : cameras_) seen.cameras.push_back(camera.seen);
        seen.finite = std::all_of(lost, lost + counts.shape[0], [](int64_t count) { return count == 0; });
        return seen;
    }

    // The latest picture of each camera, if it is near enough in time and where the camera was is known.
    std::vector<tessera_camera> pictures(const rclcpp::Time &time) {
        std::vector<tessera_camera> found;
        pictures_.clear(), rgb_.clear();
        for (Camera &camera : cameras_) {
            camera.seen = false;
            if (!camera.info || !camera.picture) continue;
            const rclcpp::Time exposed(camera.header.stamp);
            const std::string &frame = camera.header.frame_id;
            camera.seen = std::abs((exposed - time).seconds()) <= max_delay_ &&
                          transforms_.canTransform(map_frame_, frame, exposed);
            if (!camera.seen) continue;
            tessera_camera picture{};
            const std::string problem = problem_of([&] {  // a damaged picture is missing alone
                const auto &shared = pictures_.emplace_back(camera.picture());
                const cv::Mat &rgb = rgb_.emplace_back(packed(shared ? shared->image : cv::Mat()));
                picture.size = sizeof picture, picture.name = camera.name.c_str();
                picture.rgb = rgb.data, picture.height = rgb.rows, picture.width = rgb.cols;
                write_intrinsics(*camera.info, picture.intrinsics);
                write(transform(base_frame_, frame, exposed), picture.ego_from_camera);
                write(transform(map_frame_, base_frame_, exposed), picture.global_from_ego);
            });
            log(problem);
            camera.seen = problem.empty();
            if (camera.seen) found.push_back(picture);
        }
        return found;
    }

    void publish(const rclcpp::Time &time, const tf2::Transform &ego_from_reference) {
        const auto doubles = [&](const char *name) { return static_cast<const double *>(runtime_.get(name).data); };
        const tessera_array labels = runtime_.get("detection/labels");
        const Detections found{
            static_cast<size_t>(labels.shape[0]),     doubles("detection/centers"),    doubles("detection/sizes"),
            doubles("detection/rotations"),           doubles("detection/velocities"), doubles("detection/scores"),
            static_cast<const int64_t *>(labels.data)};
        Matrix to;
        write(ego_from_reference, to.data());
        const std::vector<Box> boxes = boxes_of(found, to, score_thresholds_);
        std_msgs::msg::Header header;
        header.stamp = time, header.frame_id = base_frame_;
        objects_->publish(detected_objects<DetectedObjects>(header, boxes, classes_));
        detections_->publish(detections_3d<Detection3DArray>(header, boxes, classes_));
    }

    tf2_ros::Buffer transforms_{get_clock()};
    tf2_ros::TransformListener listener_{transforms_};
    tessera::Vehicle runtime_;
    const tessera_description bundle_;
    const Classes classes_;
    Health health_;
    const std::string map_frame_ = given<std::string>("map_frame"), base_frame_ = given<std::string>("base_frame");
    const std::string reference_frame_ =
        std::string_view(bundle_.reference) == "ego" ? base_frame_ : given<std::string>("lidar_frame");
    const ScoreThresholds score_thresholds_{given<std::vector<double>>("model_params.score_upper_bounds"),
                                            given<std::vector<double>>("model_params.score_thresholds")};
    const double max_delay_ = given<double>("max_camera_lidar_delay");
    std::deque<Camera> cameras_;  // in the bundle's order; never moved, since callbacks refer to them
    std::deque<Sweep> sweeps_;    // latest first
    std::vector<float> points_;
    std::vector<uint8_t> sweep_of_point_;
    std::deque<cv_bridge::CvImageConstPtr> pictures_;  // of a frame, as long as it needs their pixels
    std::deque<cv::Mat> rgb_;
    rclcpp::Publisher<DetectedObjects>::SharedPtr objects_ = create_publisher<DetectedObjects>("~/output/objects", 1);
    rclcpp::Publisher<Detection3DArray>::SharedPtr detections_ =
        create_publisher<Detection3DArray>("~/output/detections", 1);
    std::vector<rclcpp::SubscriptionBase::SharedPtr> subscriptions_;
    rclcpp::TimerBase::SharedPtr golden_;
    diagnostic_updater::Updater updater_{this, 1e9};  // s; its own timer would wait for the end of a frame
    std::unique_ptr<Repeating> reporter_;             // the last member, since what it uses must outlive it
};

}  // namespace tessera_ros

RCLCPP_COMPONENTS_REGISTER_NODE(tessera_ros::TesseraNode)
