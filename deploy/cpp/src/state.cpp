#include "state.hpp"

#include <algorithm>
#include <cmath>

namespace tessera {

namespace {

// current_from_previous, of points at rest, if a state of that frame can be used. A number that is not finite is beyond
// every limit.
std::optional<Matrix4> usable_motion(const Moment &before, const Moment &moment, double elapsed,
                                     const Manifest &manifest) {
    if (before.scene != moment.scene || elapsed <= 0 || elapsed > manifest.state->seconds) return {};
    const Matrix4 motion = multiply(inverse(moment.global_from_reference), before.global_from_reference);
    for (size_t row = 0; row < 3; ++row) {
        for (size_t column = 0; column < 3; ++column) {
            double sum = 0;
            for (size_t k = 0; k < 12; k += 4) sum += motion[k + row] * motion[k + column];
            if (!(std::abs(sum - (row == column)) <= manifest.preprocessing.admission.state_rigid)) return {};
        }
    }
    const double x = motion[3], y = motion[7], z = motion[11];
    return std::sqrt(x * x + y * y + z * z) <= manifest.state->speed * elapsed ? std::optional(motion) : std::nullopt;
}

// Whether a number is not zero; -0 is.
bool any(const Array &array) {
    return visit(array, [n = array.size()](const auto *values) {
        return std::any_of(values, values + n, [](auto value) { return value != 0; });
    });
}

}  // namespace

bool sees(const Arrays &inputs, const std::string &input) {
    const auto found = inputs.find(input);
    return found != inputs.end() && any(found->second);
}

bool state_inputs(const Moment *before, const Moment &moment, const Manifest &manifest, Arrays &inputs) {
    const double elapsed = before ? static_cast<double>(moment.timestamp - before->timestamp) / 1e6 : 0;
    const auto motion = before ? usable_motion(*before, moment, elapsed, manifest) : std::nullopt;
    const Matrix4 matrix = motion.value_or(kIdentity);
    std::copy(matrix.begin(), matrix.end(), fill_in<float>(inputs, "current_from_previous", {1, 4, 4}));
    *fill_in<float>(inputs, "state_valid", {1}) = motion ? 1 : 0;
    *fill_in<float>(inputs, "elapsed", {1}) = motion ? static_cast<float>(elapsed) : 0;
    return motion.has_value();
}

void steer(const Manifest &manifest, const Conditions &conditions, Arrays &inputs) {
    const auto holds = [&](std::string_view asked) {
        if (std::binary_search(conditions.begin(), conditions.end(), asked)) return true;
        constexpr std::string_view no = "no-";
        const bool missing = asked.substr(0, no.size()) == no;
        for (const auto &[fact, input] : manifest.steering.sensors) {
            if (fact != asked && (!missing || fact != asked.substr(no.size()))) continue;
            const auto found = inputs.find(input);
            if (found != inputs.end() && any(found->second) == (fact == asked)) return true;
        }
        return false;
    };
    if (!manifest.banked.empty()) {
        float *route = fill_in<float>(inputs, "route", {1, static_cast<int64_t>(manifest.banked.size())});
        for (const Module &module : manifest.banked) {
            *route++ = std::all_of(module.asks.begin(), module.asks.end(), holds) ? 1 : 0;
        }
    }
    if (!manifest.steering.values.empty()) {
        const std::vector<std::string> &asked = manifest.steering.values;
        float *values = fill_in<float>(inputs, "conditions", {1, static_cast<int64_t>(asked.size())});
        for (const std::string &value : asked) *values++ = holds(value) ? 1 : 0;
    }
}

}  // namespace tessera
