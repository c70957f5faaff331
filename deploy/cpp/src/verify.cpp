// tessera_verify BUNDLE: proves that this build of the library, on this machine, does what the export did.
//
// It opens the bundle, which checks its files and the engine's outputs of the golden frames, and compares what is
// before and behind the engine: the inputs that the library makes of a golden frame's sensor data, the results that it
// makes of its outputs, and the inputs of a memory (deploy/golden_file.py). It prints a line for each check. The status
// is 0 if all is as at the export, 1 if something differs, 2 if the bundle is refused.
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "error.hpp"
#include "golden.hpp"
#include "inputs.hpp"
#include "results.hpp"
#include "runtime.hpp"
#include "state.hpp"

namespace tessera {
namespace {

// The arrays whose names start so, without that.
Arrays below(const Arrays &tensors, const std::string &start) {
    Arrays found;
    for (auto each = tensors.lower_bound(start); each != tensors.end(); ++each) {
        if (each->first.compare(0, start.size(), start) != 0) break;
        found.emplace(each->first.substr(start.size()), each->second);
    }
    return found;
}

template <typename T>
const T *read(const Arrays &arrays, const std::string &name, size_t size) {
    const auto found = arrays.find(name);
    if (found == arrays.end() || found->second.type() != type_of<T>() || found->second.size() != size)
        throw refused(kGolden, ": ", name, " is missing or has another type or shape; export the bundle again");
    return found->second.data<T>();
}

template <size_t n>
std::array<double, n> matrix(const Arrays &arrays, const std::string &name) {
    std::array<double, n> values;
    std::copy_n(read<double>(arrays, name, n), n, values.begin());
    return values;
}

std::string inflate(const Array &packed, size_t size) {
    std::string content(size, '\0');
    uLongf length = size;
    const int code =
        uncompress(reinterpret_cast<Bytef *>(content.data()), &length, packed.data<Bytef>(), packed.size());
    if (code != Z_OK || length != size) throw refused(kGolden, ": a picture cannot be decompressed");
    return content;
}

// A frame of stored sensor data, which it points into, and its pictures.
Frame read_frame(const Arrays &sensors, std::vector<std::string> &pictures) {
    Frame frame;
    frame.global_from_reference = matrix<16>(sensors, "global_from_reference");
    frame.global_from_ego = matrix<16>(sensors, "global_from_ego");
    if (const auto points = sensors.find("points"); points != sensors.end()) {
        frame.point_count = points->second.size() / 5;
        frame.points = read<float>(sensors, "points", 5 * frame.point_count);
        frame.sweep_of_point = read<uint8_t>(sensors, "sweep_of_point", frame.point_count);
    }
    pictures.reserve(sensors.size());
    for (const auto &[key, packed] : sensors) {
        const std::vector<std::string> parts = split(key, '/');
        if (parts.size() != 3 || parts[2] != "rgb") continue;
        const std::string start = "cameras/" + parts[1] + "/";
        const auto *size = read<int64_t>(sensors, start + "size", 2);
        if (std::min(size[0], size[1]) < 1 || std::max(size[0], size[1]) > INT16_MAX)
            throw refused(kGolden, ": ", start, "size is none of a picture");
        pictures.push_back(inflate(packed, static_cast<size_t>(size[0] * size[1] * 3)));
        const std::string_view name = std::string_view(key).substr(8, parts[1].size());
        frame.cameras.push_back(
            {name, reinterpret_cast<const uint8_t *>(pictures.back().data()), static_cast<int>(size[0]),
             static_cast<int>(size[1]), matrix<9>(sensors, start + "intrinsics"),
             matrix<16>(sensors, start + "ego_from_camera"), matrix<16>(sensors, start + "global_from_ego")});
    }
    return frame;
}

// Whether pictures (1, cameras, height, width, 3) are equal but for rounding.
bool is_same_picture(const Array &expected, const Array &actual, const Json &rules) {
    const std::vector<double> a = numbers(expected), b = numbers(actual);
    const double levels = rules.at("grey_levels"), rounded = rules.at("rounded");
    for (size_t size = a.size() / static_cast<size_t>(expected.shape().at(1)), start = 0; start < a.size();) {
        double off = 0;
        for (const size_t end = start + size; start < end; ++start) off += std::abs(b[start] - a[start]) > levels;
        if (off / static_cast<double>(size) > rounded) return false;
    }
    return true;
}

bool is_same(const Array &expected, const Array &actual, const Json &rules) {
    const bool exact = expected.type() != TESSERA_FLOAT32 && expected.type() != TESSERA_FLOAT64;
    const double close = exact ? 0 : rules.at("close").get<double>();
    const std::vector<double> a = numbers(expected), b = numbers(actual);
    for (size_t i = 0; i < a.size(); ++i) {
        const bool same = a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i]));
        if (!same && !(std::abs(b[i] - a[i]) <= close + close * std::abs(a[i]))) return false;
    }
    return true;
}

// Names of the expected arrays that were not found as they are.
std::vector<std::string> differing(const Arrays &expected, const Arrays &found, const Json &rules) {
    std::vector<std::string> off;
    for (const auto &[name, array] : expected) {
        const auto actual = found.find(name);
        const bool there = actual != found.end() && actual->second.shape() == array.shape();
        const auto &same = name == "images" ? is_same_picture : is_same;
        if (!there || !same(array, actual->second, rules)) off.push_back(name);
    }
    return off;
}

// Prints the line of a check. Returns whether it found nothing.
bool report(const std::string &what, const std::vector<std::string> &off) {
    std::printf("%s: %s%s\n", what.c_str(),
                off.empty() ? "as at the export" : "NOT as at the export: ", join(off, ", ").c_str());
    return off.empty();
}

// One of the bundle's networks, from sensor data to results.
class Proof {
   public:
    explicit Proof(const Bundle &bundle)
        : bundle_(bundle),
          manifest_(bundle.manifest()),
          tensors_(read_safetensors(bundle.read(kGolden), bundle.path() / kGolden)) {}

    bool holds() const {
        const std::string where = bundle_.path().string() + ": ";
        bool whole = false, right = true;
        for (const char *graph : {"model.onnx", "model.cpu.onnx"}) {
            if (!bundle_.has(graph)) continue;
            for (const GoldenFrame &frame : read_golden(tensors_, bundle_, graph)) {
                const Arrays sensors = below(tensors_, frame.name + ".sensors.");
                if (sensors.empty()) continue;
                whole = true;
                right &= report(where + "inputs of the sensor data of " + frame.name, differing_inputs(frame, sensors));
                right &= report(text(where, "results of the outputs of ", graph, " for ", frame.name),
                                differing_results(frame, std::string(graph) == "model.onnx" ? ".model" : ".cpu"));
            }
        }
        if (!whole) throw refused(where, "no golden frame has sensor data; export the bundle again");
        if (manifest_.state) right &= report(where + "inputs of the memory", differing_motions());
        return right;
    }

   private:
    std::vector<std::string> differing_inputs(const GoldenFrame &frame, const Arrays &sensors) const {
        std::vector<std::string> pictures;
        Arrays expected = padded(frame, bundle_), found = no_sensors(manifest_);
        for (const char *name : {"route", "conditions", "current_from_previous", "state_valid", "elapsed"})
            expected.erase(name);
        for (const auto &scanner : manifest_.preprocessing.scanners) expected.erase(scanner.first);
        Preprocessor(manifest_).prepare(read_frame(sensors, pictures), found);
        return differing(expected, found, manifest_.golden);
    }

    std::vector<std::string> differing_results(const GoldenFrame &frame, const std::string &part) const {
        Arrays results;
        Decoder(manifest_).decode(frame.outputs, results);
        return differing(below(tensors_, frame.name + part + ".results."), results, manifest_.golden);
    }

    // Golden frames are a sequence of drives, in the order of their names without the numbers at the ends.
    std::vector<std::string> differing_motions() const {
        std::vector<std::string> off;
        std::optional<Moment> before;
        for (const GoldenFrame &frame : read_golden(tensors_, bundle_, "model.onnx")) {
            const std::string start = frame.name + ".moment.";
            const Moment moment{frame.name.substr(0, frame.name.find_last_not_of("-0123456789") + 1),
                                *read<int64_t>(tensors_, start + "timestamp", 1),
                                matrix<16>(tensors_, start + "global_from_reference")};
            Arrays expected, found;
            state_inputs(before ? &*before : nullptr, moment, manifest_, found);
            for (const auto &each : found) expected.emplace(each.first, frame.inputs.at(each.first));
            for (const std::string &name : differing(expected, found, manifest_.golden))
                off.push_back(text(name, " of ", frame.name));
            before = moment;
        }
        return off;
    }

    const Bundle &bundle_;
    const Manifest &manifest_;
    const Arrays tensors_;
};

bool is_as_exported(const std::string &path) {
    const Bundle bundle = Bundle::open(path, {});
    std::vector<std::string> wrong;
    try {
        const Runtime runtime(path, {}, {"cpu", "", 0});
    } catch (const Error &error) {
        if (error.status != TESSERA_WRONG_ENGINE) throw;
        wrong.emplace_back(error.what());
    }
    bool right = report(path + ": outputs of ONNX Runtime for the golden frames", wrong);
    right &= Proof(bundle).holds();
    for (const auto &each : bundle.routes()) right &= Proof(each.second).holds();
    return right;
}

}  // namespace
}  // namespace tessera

int main(int argc, char **argv) {
    if (argc != 2) return std::fprintf(stderr, "tessera_verify BUNDLE\n"), 2;
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // before there are threads
    try {
        return tessera::is_as_exported(argv[1]) ? 0 : 1;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
