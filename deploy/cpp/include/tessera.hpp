// C++ over the C interface: a runtime that closes itself, and exceptions instead of statuses.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tessera.h"

namespace tessera {

struct Failure : std::runtime_error {
    Failure(tessera_status status, const char *message) : std::runtime_error(message), status(status) {}
    tessera_status status;
};

class Vehicle {
   public:
    explicit Vehicle(tessera_options options) {
        options.size = sizeof options;
        tessera_runtime *opened = nullptr;
        require(tessera_open(&options, &opened));
        runtime_.reset(opened);
    }

    void step(const tessera_frame &frame) { require(tessera_step(runtime_.get(), &frame)); }
    void check() { require(tessera_check(runtime_.get())); }
    void restart() { require(tessera_restart(runtime_.get())); }

    tessera_description describe() const {
        tessera_description description{};
        description.size = sizeof description;
        require(tessera_describe(runtime_.get(), &description));
        return description;
    }

    // The names of a result's channels or classes; empty without this result.
    std::vector<std::string> names(const std::string &result) const {
        std::vector<std::string> found;
        tessera_result described{};
        described.size = sizeof described;
        for (size_t i = 0, n = describe().result_count; i < n; ++i) {
            require(tessera_describe_result(runtime_.get(), i, &described));
            for (auto *name = described.names; result == described.name && *name; ++name) found.emplace_back(*name);
        }
        return found;
    }

    // An array of the latest step, such as detection/centers.
    tessera_array get(const char *name) const {
        tessera_array array{};
        array.size = sizeof array;
        require(tessera_get(runtime_.get(), name, &array));
        return array;
    }

   private:
    struct Close {
        void operator()(tessera_runtime *runtime) const { tessera_close(runtime); }
    };

    void require(tessera_status status) const {
        if (status) throw Failure(status, tessera_message(runtime_.get()));
    }

    std::unique_ptr<tessera_runtime, Close> runtime_;
};

}  // namespace tessera
