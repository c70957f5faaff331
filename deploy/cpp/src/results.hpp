// The network's outputs become results.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "array.hpp"
#include "manifest.hpp"
#include "nms.hpp"

namespace tessera {

// A list of detections, after NMS.
class Detector {
   public:
    explicit Detector(const Output &rules);
    // Returns how many were left out, because a number of the box or its score is not finite.
    int64_t decode(const Arrays &outputs, Arrays &results);

   private:
    void write(const Candidates &all, const Array &attributes, Arrays &results) const;

    std::string task_;
    std::vector<std::string>
        names_;  // of the outputs boxes, scores, labels, attributes; of results, the last three too
    bool velocity_;
    std::optional<Suppressor> nms_;
    std::vector<float> scores_;
    std::vector<size_t> kept_, order_;  // candidates that stay, and their places, best first
};

// Makes the results of the first frame of a batch, as `decode` of perception/tasks/outputs.py: by the kinds of outputs.
// tessera.h lists them. `not_finite` has, by the outputs' names, the numbers that are NaN or infinite, or the
// detections with one.
class Decoder {
   public:
    explicit Decoder(const Manifest &manifest);
    void decode(const Arrays &outputs, Arrays &results);

   private:
    // The result of these rules, with the shape of the output without the batch.
    template <typename T>
    T *fill(const Output &rules, const Array &from, Arrays &results);
    void decode_labels(const Output &rules, const Arrays &outputs, const Array &from, Arrays &results);
    static void decode_value(const Output &rules, const Arrays &outputs, const Array &from, Arrays &results);

    std::vector<Output> rules_;
    std::map<std::string, Detector, std::less<>> detectors_;  // by their boxes
    std::map<std::string, int64_t, std::less<>> not_finite_;  // by output
    Shape shape_;                                             // a buffer
};

// Whether all numbers of the outputs are finite.
bool all_finite(const Arrays &outputs);

}  // namespace tessera
