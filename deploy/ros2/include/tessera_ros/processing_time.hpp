// The status `processing_time_status`, with the keys and levels of Autoware's perception nodes.
#pragma once

#include <algorithm>
#include <optional>
#include <sstream>
#include <string>

namespace tessera_ros {

class ProcessingTime {
   public:
    ProcessingTime(double allowed_ms, double consecutive_ms) : allowed_ms_(allowed_ms), most_ms_(consecutive_ms) {}

    void begin(double now_ms) { since_ms_ = now_ms; }

    void end(double now_ms, bool is_frame) {
        if (is_frame) latest_ms_ = now_ms - *since_ms_;
        since_ms_.reset();
    }

    // WARN if the latest frame took longer than allowed, or the work that goes on has; ERROR if that lasts too long.
    template <class Status>  // diagnostic_updater::DiagnosticStatusWrapper
    void report(Status &status, double now_ms) {
        const double latest_ms = std::max(latest_ms_.value_or(0), now_ms - since_ms_.value_or(now_ms));
        const bool in_time = latest_ms <= allowed_ms_;
        if (in_time || !in_time_ms_) in_time_ms_ = now_ms;
        const double delay_ms = now_ms - *in_time_ms_;
        const bool acceptable = delay_ms <= most_ms_;
        std::ostringstream message;
        if (!latest_ms_ && in_time) message << "Waiting for the node to perform inference.";
        if (!in_time) message << "Processing takes " << latest_ms << " ms, more than " << allowed_ms_ << " ms";
        if (!acceptable) message << ", for " << delay_ms << " ms";
        status.add("is_processing_time_ms_in_expected_range", in_time);
        status.add("processing_time_ms", latest_ms);
        status.add("is_consecutive_processing_delay_in_range", acceptable);
        status.add("consecutive_processing_delay_ms", delay_ms);
        status.summary(static_cast<unsigned char>(in_time ? 0 : acceptable ? 1 : 2), message.str());
    }

   private:
    double allowed_ms_, most_ms_;
    std::optional<double> since_ms_, latest_ms_, in_time_ms_;  // since_ms_: what goes on
};

}  // namespace tessera_ros
