#include "inputs.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "error.hpp"

namespace tessera {

namespace {

constexpr size_t kValues = 5;  // of a point
constexpr int64_t kLatest = int64_t{1} << 62;

template <typename T>
T *part(Arrays &inputs, std::string_view name) {
    return inputs.find(name)->second.data<T>();
}

int outside(const Preprocessing &settings) {
    return settings.pillars ? settings.pillars->rows * settings.pillars->columns : 0;
}

void fill(Array &array, int64_t value) {
    visit(array, [&](const auto *numbers) {
        using Number = std::remove_const_t<std::remove_pointer_t<decltype(numbers)>>;
        std::fill_n(array.data<Number>(), array.size(), static_cast<Number>(value));
    });
}

}  // namespace

Arrays no_sensors(const Manifest &manifest) {
    const Preprocessing &settings = manifest.preprocessing;
    Arrays inputs;
    if (settings.pillars) {
        const int64_t pillars = settings.pillars->most;
        fill_in<float>(inputs, "pillar_points", {1, pillars, settings.pillars->points, int64_t{kValues}});
        fill_in<int32_t>(inputs, "pillar_counts", {1, pillars});
        std::fill_n(fill_in<int32_t>(inputs, "pillar_cells", {1, pillars}), pillars, outside(settings));
    }
    if (settings.points > 0) {
        fill_in<float>(inputs, "points", {1, settings.points, int64_t{kValues}});
        std::fill_n(fill_in<int32_t>(inputs, "point_cells", {1, settings.points}), settings.points, outside(settings));
    }
    if (settings.pictures) {
        const int64_t cameras = static_cast<int64_t>(settings.pictures->cameras.size());
        fill_in<uint8_t>(inputs, "images", {1, cameras, settings.pictures->height, settings.pictures->width, 3});
        fill_in<float>(inputs, "image_from_reference", {1, cameras, 3, 4});
    }
    for (const TensorInfo &input : manifest.inputs) {
        const auto scanner = settings.scanners.find(input.name);
        if (scanner == settings.scanners.end()) continue;
        Array &array = inputs.insert_or_assign(input.name, Array(input.type, input.shape)).first->second;
        array.resize(input.shape);
        fill(array, scanner->second);
    }
    return inputs;
}

Preprocessor::Preprocessor(const Manifest &manifest) : settings_(manifest.preprocessing) {
    if (settings_.pillars) grouper_.emplace(*settings_.pillars);
    if (settings_.pictures) warper_.emplace(*settings_.pictures);
}

void Preprocessor::prepare(const Frame &frame, Arrays &inputs) {
    if (grouper_) {
        grouper_->group(frame.points, frame.point_count, part<float>(inputs, "pillar_points"),
                        part<int32_t>(inputs, "pillar_counts"), part<int32_t>(inputs, "pillar_cells"));
        if (settings_.points > 0) fill_points(frame, inputs);
    }
    if (warper_) fill_cameras(frame, inputs);
    for (const auto &[name, absent] : settings_.scanners) fill(inputs.find(name)->second, absent);
    for (const Input &given : frame.inputs) {
        if (settings_.scanners.find(given.name) == settings_.scanners.end())
            throw bad_input("tessera_input.name: ", given.name, " is no input that a host makes");
        Array &array = inputs.find(given.name)->second;
        if (!given.data || given.bytes != array.byte_count())
            throw bad_input("tessera_input.bytes: ", given.name, " has ", array.byte_count(), ", not ", given.bytes);
        std::memcpy(array.data<uint8_t>(), given.data, given.bytes);
    }
}

// The keyframe's first points in their order.
void Preprocessor::fill_points(const Frame &frame, Arrays &inputs) const {
    float *places = part<float>(inputs, "points");
    int32_t *cells = part<int32_t>(inputs, "point_cells");
    const size_t most = settings_.points;
    size_t count = 0;
    for (size_t i = 0; i < frame.point_count && count < most; ++i) {
        if (frame.sweep_of_point != nullptr && frame.sweep_of_point[i] != 0) continue;
        std::copy_n(frame.points + kValues * i, kValues, places + kValues * count);
        cells[count++] = grouper_->cells_of_points()[i];
    }
    std::fill(places + kValues * count, places + kValues * most, 0.0F);
    std::fill(cells + count, cells + most, outside(settings_));
}

void Preprocessor::fill_cameras(const Frame &frame, Arrays &inputs) {
    const Pictures &settings = *settings_.pictures;
    const size_t bytes = static_cast<size_t>(settings.height) * settings.width * 3;
    uint8_t *image = part<uint8_t>(inputs, "images");
    float *projection = part<float>(inputs, "image_from_reference");
    for (const std::string &name : settings.cameras) {
        const auto camera = std::find_if(frame.cameras.begin(), frame.cameras.end(),
                                         [&name](const Camera &each) { return each.name == name; });
        if (camera == frame.cameras.end()) {
            std::fill_n(image, bytes, uint8_t{0});
            std::fill_n(projection, 12, 0.0F);
        } else {
            const Matrix3 affine = warper_->warp(camera->rgb, camera->height, camera->width, image);
            const Matrix34 matrix = multiply(affine, image_from_reference(*camera, frame.global_from_reference));
            std::copy(matrix.begin(), matrix.end(), projection);
        }
        image += bytes, projection += 12;
    }
}

Admitter::Admitter(const Manifest &manifest) : settings_(manifest.preprocessing.admission) {
    if (manifest.preprocessing.pictures) cameras_ = manifest.preprocessing.pictures->cameras;
}

bool Admitter::admit(Frame &frame) {
    if (frame.scene != scene_) {
        restart();
        scene_ = frame.scene;
    }
    if (frame.timestamp < 0 || frame.timestamp >= kLatest) frame.timestamp = timestamp_;
    bool placed = true;
    for (const Matrix4 *pose : {&frame.global_from_ego, &frame.global_from_reference}) {
        placed = placed && is_rigid(*pose, settings_.rigid, settings_.far, settings_.upright);
    }
    if (!placed) {
        frame.global_from_reference = reference_;
        frame.global_from_ego = ego_;
        for (Camera &camera : frame.cameras) camera.global_from_ego = ego_;
    }
    reference_ = frame.global_from_reference, ego_ = frame.global_from_ego, timestamp_ = frame.timestamp;
    leave_out_points(frame);
    const auto unusable = [this](const Camera &camera) { return !is_usable(camera); };
    frame.cameras.erase(std::remove_if(frame.cameras.begin(), frame.cameras.end(), unusable), frame.cameras.end());
    return placed;
}

void Admitter::leave_out_points(Frame &frame) {
    if (all_finite(frame.points, kValues * frame.point_count)) return;
    points_.clear(), sweeps_.clear();
    for (size_t i = 0; i < frame.point_count; ++i) {
        const float *point = frame.points + kValues * i;
        if (!all_finite(point, kValues)) continue;
        points_.insert(points_.end(), point, point + kValues);
        if (frame.sweep_of_point != nullptr) sweeps_.push_back(frame.sweep_of_point[i]);
    }
    frame.points = points_.data();
    frame.sweep_of_point = frame.sweep_of_point == nullptr ? nullptr : sweeps_.data();
    frame.point_count = points_.size() / kValues;
}

bool Admitter::is_usable(const Camera &camera) const {
    if (std::find(cameras_.begin(), cameras_.end(), camera.name) == cameras_.end()) return false;
    const int smaller = std::min(camera.height, camera.width), larger = std::max(camera.height, camera.width);
    if (camera.rgb == nullptr || smaller <= 0 || larger > settings_.largest) return false;
    const Matrix3 &k = camera.intrinsics;
    const auto near = [this](double value) { return std::abs(value) < settings_.far; };
    const auto shows = [this](double focal, double center, int side) {
        return focal > 0 && focal <= settings_.narrowest * side && center >= 0 && center <= side;
    };
    return std::all_of(k.begin(), k.end(), near) && k[6] == 0 && k[7] == 0 && k[8] == 1 &&
           shows(k[0], k[2], camera.width) && shows(k[4], k[5], camera.height) &&
           is_rigid(camera.ego_from_camera, settings_.rigid, settings_.far) &&
           is_rigid(camera.global_from_ego, settings_.rigid, settings_.far);
}

}  // namespace tessera
