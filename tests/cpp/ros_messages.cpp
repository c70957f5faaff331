// The node's messages as CDR by fastcdr. definitions.hpp, which test_ros2.py generates, includes the structures of
// rosidl, and its `each` visits their fields in turn.
#include <fastcdr/Cdr.h>

#include <atomic>

#include "tessera_ros/health.hpp"
#include "tessera_ros/messages.hpp"
#include "tessera_ros/pictures.hpp"

using eprosima::fastcdr::Cdr, eprosima::fastcdr::FastBuffer;

struct Stream {
    Cdr &cdr;
    bool reads;
    template <class Value>
    void operator()(Value &value) const {
        if constexpr (std::is_class_v<Value>) each(value, *this);
        else if (reads) cdr >> value;
        else cdr << value;
    }
    void operator()(std::string &text) const { reads ? cdr >> text : cdr << text; }
    template <class Value, size_t n>
    void operator()(std::array<Value, n> &values) const {
        for (Value &value : values) (*this)(value);
    }
    template <class Value>
    void operator()(std::vector<Value> &values) const {
        uint32_t size = static_cast<uint32_t>(values.size());
        (*this)(size);
        values.resize(size);
        for (Value &value : values) (*this)(value);
    }
};

#include "definitions.hpp"

struct Status : diagnostic_msgs::msg::DiagnosticStatus {  // what diagnostic_updater's wrapper does
    void add(const std::string &key, bool value) { put(key, value ? "True" : "False"); }
    void add(const std::string &key, double value) { put(key, (std::ostringstream() << value).str()); }
    void summary(unsigned char level_, const std::string &message_) { level = level_, message = message_; }
    void put(const std::string &key, const std::string &value) {
        auto &pair = values.emplace_back();
        pair.key = key, pair.value = value;
    }
};

template <class Message>
size_t written(Message message, char *out, size_t room) {
    FastBuffer buffer(out, room);
    Cdr cdr(buffer, Cdr::LITTLE_ENDIANNESS, eprosima::fastcdr::CdrVersion::XCDRv1);
    cdr.serialize_encapsulation();
    Stream{cdr, false}(message);
    return cdr.get_serialized_data_length();
}

template <class Message>
Message read(const char *data, size_t size) {
    FastBuffer buffer(const_cast<char *>(data), size);
    Cdr cdr(buffer);
    cdr.read_encapsulation();
    Message message;
    Stream{cdr, true}(message);
    return message;
}

extern "C" {
size_t boxes(int autoware, const tessera_ros::Detections *found, const double *to, const double *bounds, size_t ranges,
             const double *thresholds, const char **names, const int64_t *labels, const int64_t *orientations,
             size_t count, const char *header, size_t size, char *out, size_t room) {
    const tessera_ros::Classes classes{
        {names, names + count}, {labels, labels + count}, {orientations, orientations + count}};
    tessera_ros::Matrix matrix;
    std::copy_n(to, 16, matrix.begin());
    const auto about = read<std_msgs::msg::Header>(header, size);
    const auto all =
        tessera_ros::boxes_of(*found, matrix, {{bounds, bounds + ranges}, {thresholds, thresholds + ranges * count}});
    using vision_msgs::msg::Detection3DArray, autoware_perception_msgs::msg::DetectedObjects;
    return autoware ? written(tessera_ros::detected_objects<DetectedObjects>(about, all, classes), out, room)
                    : written(tessera_ros::detections_3d<Detection3DArray>(about, all, classes), out, room);
}

size_t points(const char *cloud, size_t size, const double *to, double age, float *out) {
    tessera_ros::Matrix matrix;
    std::copy_n(to, 16, matrix.begin());
    std::vector<float> rows;
    try {
        tessera_ros::append_points(read<sensor_msgs::msg::PointCloud2>(cloud, size), matrix, age, rows);
    } catch (const std::invalid_argument &) {
        return size_t(-1);
    }
    std::copy(rows.begin(), rows.end(), out);
    return rows.size() / 5;
}

void intrinsics(const double *k, const double *p, double *to) {
    struct {
        std::array<double, 9> k;
        std::array<double, 12> p;
    } info;
    std::copy_n(k, 9, info.k.begin()), std::copy_n(p, 12, info.p.begin());
    tessera_ros::write_intrinsics(info, to);
}

// Writes the topic of a transport; its length, -1 if it is refused.
size_t topic(const char *transport, char *out) {
    try {
        const std::string found = tessera_ros::picture_topic("/front/image", transport);
        return std::copy(found.begin(), found.end(), out) - out;
    } catch (const std::invalid_argument &) {
        return size_t(-1);
    }
}

// Writes the pixels of a picture whose rows are `step` apart; 1 if they are the same memory, -1 if it is refused.
int pixels(const uint8_t *data, int rows, int columns, int type, size_t step, uint8_t *out) {
    try {
        const cv::Mat picture(rows, columns, type, const_cast<uint8_t *>(data), step);
        const cv::Mat found = tessera_ros::packed(picture);
        std::copy_n(found.data, 3 * rows * columns, out);
        return found.data == picture.data;
    } catch (const std::invalid_argument &) {
        return -1;
    }
}

// The status after frames that took `ms`, each reported at a time of its own; no frame if `ms` is negative. Frames
// after the first one do not end if the engine hangs.
size_t status(const double *ms, const double *times, size_t count, int hangs, const char *array, size_t size, char *out,
              size_t room) {
    tessera_ros::ProcessingTime processing(200, 1000);
    auto message = read<diagnostic_msgs::msg::DiagnosticArray>(array, size);
    for (size_t i = 0; i < count; ++i) {
        Status status;
        if (ms[i] >= 0) processing.begin(times[i] - ms[i]);
        if (ms[i] >= 0 && !(hangs && i)) processing.end(times[i], true);
        processing.report(status, times[i]);
        status.name = "tessera: processing_time_status", status.hardware_id = "tessera";
        message.status = {status};
    }
    return written(message, out, room);
}

// What the node says after frames with both cameras (f), with one (c), with outputs that are not finite (n) or that
// fail (e) or lose the GPU (l), and golden frames that pass (g) or fail (w); which of them ran.
size_t health(const char *events, int publish_untrusted, char *ran, const char *array, size_t size, char *out,
              size_t room) {
    tessera_ros::Health health({"front", "back"}, {200, 1000}, publish_untrusted);
    for (const char *event = events; *event; ++event) {
        const auto run = [&] {
            *ran++ = *event;
            if (*event == 'l') throw tessera::Failure(TESSERA_LOST, "lost");
            if (*event == 'e' || *event == 'w') throw std::runtime_error(*event == 'e' ? "failed" : "wrong engine");
            return tessera_ros::Seen{{true, *event != 'c'}, *event != 'n'};
        };
        *event == 'g' || *event == 'w' ? health.check(run) : health.perceive(run);
    }
    Status status;
    health.report(status);
    auto message = read<diagnostic_msgs::msg::DiagnosticArray>(array, size);
    status.name = "tessera: tessera_status", status.hardware_id = "tessera";
    message.status = {status};
    return written(message, out, room);
}

// Whether an ERROR is reported of a frame, or a check, that would last 30 s without one.
int reported_while_it_hangs(int check) {
    tessera_ros::Health health({}, {10, 20}, false);
    std::atomic<int> worst{0};
    const tessera_ros::Repeating reporter(std::chrono::milliseconds(1), [&] {
        Status status;
        health.report_time(status), worst = std::max<int>(worst, status.level);
    });
    const auto hang = [&] {
        for (int i = 0; i < 30000 && worst < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return tessera_ros::Seen{};
    };
    check ? health.check(hang) : health.perceive(hang);
    return worst;
}
}
