// What the node says of itself in /diagnostics, from a thread of its own, so that a frame that never ends is seen.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <future>
#include <mutex>
#include <string>
#include <tessera.hpp>
#include <thread>
#include <utility>
#include <vector>

#include "tessera_ros/processing_time.hpp"

namespace tessera_ros {

// Calls `body` in these intervals, from a thread of its own, until it is destroyed.
class Repeating {
   public:
    Repeating(std::chrono::duration<double> interval, std::function<void()> body)
        : thread_([closed = closed_.get_future(), interval, body = std::move(body)] {
              while (closed.wait_for(interval) == std::future_status::timeout) body();
          }) {}

    ~Repeating() { closed_.set_value(), thread_.join(); }

   private:
    std::promise<void> closed_;
    std::thread thread_;
};

// What `body` throws: no transform, a cloud without fields, a status of the runtime. "" if it throws nothing.
template <class Body>
std::string problem_of(const Body &body) {
    try {
        body();
        return "";
    } catch (const std::exception &error) {
        return error.what();
    }
}

struct Seen {                   // of a frame
    std::vector<bool> cameras;  // which ones of the bundle were in it
    bool finite = true;         // all outputs of the network were
};

// One thread perceives and checks the engine; any thread may report.
class Health {
   public:
    Health(std::vector<std::string> cameras, ProcessingTime time, bool publish_untrusted)
        : cameras_(std::move(cameras)), publish_untrusted_(publish_untrusted), time_(time) {
        seen_.cameras.resize(cameras_.size());
    }

    // Runs `body`, which gives what a frame has seen, unless the engine is not trusted. Says why there was no frame.
    template <class Body>
    std::string perceive(const Body &body) {
        if (!untrusted_.empty() && !publish_untrusted_) return untrusted_;
        Seen seen;
        bool lost = false;  // the engine, for all frames to come
        const std::string problem = timed([&] {
            try {
                seen = body();
            } catch (const tessera::Failure &failure) {
                lost = failure.status == TESSERA_LOST;
                throw;
            }
        });
        const std::lock_guard<std::mutex> lock(mutex_);
        time_.end(now_ms(), problem.empty());
        failed_ = problem;
        if (problem.empty()) seen_ = seen;
        if (lost) untrusted_ = problem;
        return problem;
    }

    // Runs `body`, which throws unless the engine gives a golden frame's outputs; one that once failed stays untrusted.
    template <class Body>
    std::string check(const Body &body) {
        if (!untrusted_.empty()) return "";
        const std::string problem = timed(body);
        const std::lock_guard<std::mutex> lock(mutex_);
        time_.end(now_ms(), false);
        return untrusted_ = problem;
    }

    template <class Status>  // diagnostic_updater::DiagnosticStatusWrapper
    void report_time(Status &status) {
        const std::lock_guard<std::mutex> lock(mutex_);
        time_.report(status, now_ms());
    }

    template <class Status>
    void report(Status &status) {
        const std::lock_guard<std::mutex> lock(mutex_);
        bool complete = true;
        for (size_t i = 0; i < cameras_.size(); ++i) {
            complete &= seen_.cameras[i];
            status.add("is_" + cameras_[i] + "_in_frame", static_cast<bool>(seen_.cameras[i]));
        }
        const std::string lost = seen_.finite ? "" : "outputs of the network are not finite";
        const std::string &worst = !untrusted_.empty() ? untrusted_ : !failed_.empty() ? failed_ : lost;
        const std::string partial = complete ? "" : "cameras of the bundle are not in the frame";
        status.summary(static_cast<unsigned char>(!worst.empty() ? 2 : !complete), !worst.empty() ? worst : partial);
    }

   private:
    static double now_ms() {
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

    template <class Body>
    std::string timed(const Body &body) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            time_.begin(now_ms());
        }
        return problem_of(body);
    }

    const std::vector<std::string> cameras_;
    const bool publish_untrusted_;
    std::mutex mutex_;
    ProcessingTime time_;
    std::string failed_, untrusted_;  // of the latest frame; of the engine
    Seen seen_;                       // the latest
};

}  // namespace tessera_ros
