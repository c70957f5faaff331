// The C interface: no exception leaves it.
#include "tessera.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>

#include "error.hpp"
#include "runtime.hpp"

struct tessera_runtime {
    tessera_runtime(const std::filesystem::path &path, const tessera::Trust &trust,
                    const tessera::EngineOptions &options)
        : runtime(path, trust, options), description(describe(runtime.manifest())) {}
    tessera_description describe(const tessera::Manifest &manifest);
    const char *const *list(const std::vector<std::string> &names);
    tessera::Runtime runtime;
    std::vector<std::vector<const char *>> lists;
    std::vector<tessera_result> results;
    tessera_description description;  // its names, like those of the results, are the manifest's
    tessera::Frame frame;
    tessera::Conditions conditions;
    mutable std::string message;
};

const char *const *tessera_runtime::list(const std::vector<std::string> &names) {
    std::vector<const char *> &list = lists.emplace_back();
    for (const std::string &name : names) list.push_back(name.c_str());
    list.push_back(nullptr);
    return list.data();
}

tessera_description tessera_runtime::describe(const tessera::Manifest &manifest) {
    const tessera::Preprocessing &settings = manifest.preprocessing;
    for (const tessera::Output &each : manifest.results)
        if (each.result)
            results.push_back({sizeof(tessera_result),
                               each.kind == TESSERA_BOXES ? each.tensor.c_str() : each.result->c_str(), each.kind,
                               each.unit.c_str(), each.scale, list(each.names), each.area});
    tessera_description to{};
    to.name = manifest.name.c_str(), to.release = manifest.release, to.reference = settings.reference.c_str();
    to.sweeps = settings.sweeps, to.oldest = settings.oldest;
    if (const auto &state = manifest.state) {
        std::copy_n(state->spacing.begin(), 2, to.spacing);
        to.seconds = state->seconds, to.speed = state->speed;
    }
    const std::vector<std::string> none;
    to.cameras = list(settings.pictures ? settings.pictures->cameras : none);
    to.result_count = results.size();
    to.condition_values = list(manifest.condition_values), to.condition_kinds = list(manifest.condition_kinds);
    return to;
}

namespace {

thread_local std::string open_message;

// Runs `body`, and turns what it throws into a status and a message.
template <typename Body>
tessera_status guarded(std::string &message, const Body &body) {
    tessera_status status = TESSERA_FAILED;
    try {
        try {
            message.clear();
            body();
            return TESSERA_OK;
        } catch (const std::bad_alloc &) {
            throw;
        } catch (const tessera::Error &error) {
            status = error.status;
            message = error.what();
        } catch (const std::exception &error) {
            message = error.what();
        }
    } catch (const std::bad_alloc &) {
        message = "no memory left";  // short enough that a string allocates nothing
    }
    std::replace(message.begin(), message.end(), '\n', ' ');  // libraries write several lines
    return status;
}

// Runs `body` on a runtime, whose bundle was accepted: nothing is refused any more.
template <typename Body>
tessera_status on(const tessera_runtime *runtime, const Body &body) {
    const tessera_status status = guarded(runtime ? runtime->message : open_message, [&] {
        if (!runtime) throw tessera::bad_input("runtime: is NULL");
        body();
    });
    return status == TESSERA_REFUSED ? TESSERA_FAILED : status;
}

// Of version 1.0 up to its last field, which programs that were compiled with it have. Never changed by later fields.
#define TESSERA_FIRST(type, last) (offsetof(type, last) + sizeof(type::last))

size_t require_size(const void *given, size_t first, const char *name) {
    if (!given) throw tessera::bad_input(name, ": is NULL");
    size_t size = 0;
    std::memcpy(&size, given, sizeof size);  // of the caller's cameras, which may lie anywhere
    if (size < first) throw tessera::bad_input(name, ".size: is ", size, ", not sizeof(", name, ")");
    return size;
}

// A struct of the caller as this version knows it: what an older one lacks is 0, and a field of a newer one must be.
template <typename Struct>
Struct take(const Struct *given, size_t first, const char *name) {
    const size_t size = require_size(given, first, name), known = std::min(size, sizeof(Struct));
    const auto *bytes = reinterpret_cast<const char *>(given);
    if (std::any_of(bytes + known, bytes + size, [](char byte) { return byte != 0; }))
        throw tessera::bad_input(name, ".size: is ", size, ", and a field is set that this version does not have");
    Struct taken{};
    std::memcpy(&taken, given, known);
    return taken;
}

// Fills a struct of the caller, as far as both versions know it.
template <typename Struct>
void give(const Struct &known, size_t first, const char *name, Struct *into) {
    const size_t size = require_size(into, first, name);
    std::memcpy(into, &known, std::min(size, sizeof known));
    into->size = size;
}

const char *or_empty(const char *text) {
    return text ? text : "";
}

void take_frame(tessera_runtime &own, const tessera_frame &given) {
    tessera::Frame &frame = own.frame;
    if (given.point_count && !given.points) throw tessera::bad_input("tessera_frame.points: is NULL");
    if (given.camera_count && !given.cameras) throw tessera::bad_input("tessera_frame.cameras: is NULL");
    if (given.condition_count && !given.conditions) throw tessera::bad_input("tessera_frame.conditions: is NULL");
    if (given.input_count && !given.inputs) throw tessera::bad_input("tessera_frame.inputs: is NULL");
    if (given.point_count > INT32_MAX) throw tessera::bad_input("tessera_frame.point_count: is ", given.point_count);
    frame.scene = or_empty(given.scene);
    frame.timestamp = given.timestamp;
    std::copy_n(given.global_from_reference, 16, frame.global_from_reference.begin());
    std::copy_n(given.global_from_ego, 16, frame.global_from_ego.begin());
    frame.points = given.points;
    frame.sweep_of_point = given.sweep_of_point;
    frame.point_count = given.point_count;
    frame.cameras.resize(given.camera_count);
    const auto *next = reinterpret_cast<const std::byte *>(given.cameras);
    for (tessera::Camera &to : frame.cameras) {
        const tessera_camera from = take(reinterpret_cast<const tessera_camera *>(next),
                                         TESSERA_FIRST(tessera_camera, global_from_ego), "tessera_camera");
        if (!from.name) throw tessera::bad_input("tessera_camera.name: is NULL");
        next += from.size;  // the caller's, who may have a later version with more fields
        to.name = from.name, to.rgb = from.rgb, to.height = from.height, to.width = from.width;
        std::copy_n(from.intrinsics, 9, to.intrinsics.begin());
        std::copy_n(from.ego_from_camera, 16, to.ego_from_camera.begin());
        std::copy_n(from.global_from_ego, 16, to.global_from_ego.begin());
    }
    frame.inputs.resize(given.input_count);
    next = reinterpret_cast<const std::byte *>(given.inputs);
    for (tessera::Input &to : frame.inputs) {
        const tessera_input from =
            take(reinterpret_cast<const tessera_input *>(next), TESSERA_FIRST(tessera_input, bytes), "tessera_input");
        next += from.size;
        to = {or_empty(from.name), from.data, from.bytes};
    }
    const char *const *names = given.conditions;
    own.conditions.clear();
    for (size_t i = 0; i < given.condition_count; ++i) own.conditions.push_back(or_empty(names[i]));
    std::sort(own.conditions.begin(), own.conditions.end());
}

tessera_runtime *open_runtime(const tessera_options &options, const tessera::Trust &trust,
                              const tessera::EngineOptions &engine) {
    try {
        return new tessera_runtime(options.bundle, trust, engine);
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception &error) {
        const auto *known = dynamic_cast<const tessera::Error *>(&error);
        if (known && known->status != TESSERA_FAILED) throw;
        // As a library says it, without a file.
        throw tessera::Error(TESSERA_FAILED, tessera::text(options.bundle, "/manifest.json: cannot be used here (",
                                                           error.what(), "); export the bundle again"));
    }
}

}  // namespace

tessera_status tessera_open(const tessera_options *given, tessera_runtime **runtime) {
    return guarded(open_message, [&] {
        if (!runtime) throw tessera::bad_input("runtime: is NULL");
        *runtime = nullptr;
        const tessera_options options = take(given, TESSERA_FIRST(tessera_options, threads), "tessera_options");
        if (!options.bundle) throw tessera::bad_input("tessera_options.bundle: is NULL");
        if (options.key_count && !options.keys) throw tessera::bad_input("tessera_options.keys: is NULL");
        tessera::Trust trust;
        for (size_t i = 0; i < options.key_count; ++i) trust.keys.emplace_back(or_empty(options.keys[i]));
        if (trust.required() && !*or_empty(options.state))
            throw tessera::bad_input("tessera_options.state: give the folder that keeps what ran");
        trust.state = or_empty(options.state);
        trust.allow_older = options.allow_older != 0;
        if (options.threads < 0) throw tessera::bad_input("tessera_options.threads: is ", options.threads);
        const tessera::EngineOptions engine{*or_empty(options.target) ? options.target : "cpu",
                                            or_empty(options.plugin), options.threads};
        *runtime = open_runtime(options, trust, engine);
    });
}

tessera_status tessera_describe(const tessera_runtime *runtime, tessera_description *description) {
    return on(runtime, [&] {
        give(runtime->description, TESSERA_FIRST(tessera_description, result_count), "tessera_description",
             description);
    });
}

tessera_status tessera_describe_result(const tessera_runtime *runtime, size_t index, tessera_result *result) {
    return on(runtime, [&] {
        if (index >= runtime->results.size())
            throw tessera::bad_input("index: is ", index, ", of ", runtime->results.size());
        give(runtime->results[index], TESSERA_FIRST(tessera_result, area), "tessera_result", result);
    });
}

tessera_status tessera_step(tessera_runtime *runtime, const tessera_frame *frame) {
    return on(runtime, [&] {
        take_frame(*runtime, take(frame, TESSERA_FIRST(tessera_frame, condition_count), "tessera_frame"));
        runtime->runtime.step(runtime->frame, runtime->conditions);
    });
}

tessera_status tessera_get(const tessera_runtime *runtime, const char *name, tessera_array *array) {
    return on(runtime, [&] {
        require_size(array, TESSERA_FIRST(tessera_array, shape), "tessera_array");
        const tessera::Array *found = name ? runtime->runtime.find(name) : nullptr;  // may read it from the engine
        if (!found) throw tessera::bad_input(or_empty(name), ": is no array of the latest step");
        array->data = found->data<std::byte>();
        array->type = found->type();
        array->rank = static_cast<int32_t>(found->shape().size());
        std::copy(found->shape().begin(), found->shape().end(), array->shape);
    });
}

const char *tessera_name(const tessera_runtime *runtime, size_t index) {
    return runtime ? runtime->runtime.name(index) : nullptr;
}

tessera_status tessera_weight(const tessera_runtime *runtime, const char *module, float *weight) {
    return on(runtime, [&] {
        if (!weight) throw tessera::bad_input("weight: is NULL");
        const auto found = runtime->runtime.weight(or_empty(module));
        if (!found) throw tessera::bad_input(or_empty(module), ": is no module, or there was no step yet");
        *weight = *found;
    });
}

tessera_status tessera_seconds(const tessera_runtime *runtime, tessera_times *times) {
    return on(runtime, [&] {
        require_size(times, TESSERA_FIRST(tessera_times, postprocess), "tessera_times");
        const tessera::Runtime &own = runtime->runtime;
        times->preprocess = own.preprocess, times->engine = own.engine, times->postprocess = own.postprocess;
    });
}

tessera_status tessera_check(tessera_runtime *runtime) {
    return on(runtime, [&] { runtime->runtime.check(); });
}

tessera_status tessera_restart(tessera_runtime *runtime) {
    return on(runtime, [&] { runtime->runtime.restart(); });
}

const char *tessera_message(const tessera_runtime *runtime) {
    return runtime ? runtime->message.c_str() : open_message.c_str();
}

void tessera_close(tessera_runtime *runtime) {
    delete runtime;
}

const char *tessera_version(void) {
    return TESSERA_VERSION;
}

tessera_status tessera_group(const tessera_grid *given, const float *points, size_t count, float *pillar_points,
                             int32_t *counts, int32_t *cells, int32_t *cells_of_points, int32_t *pillars) {
    return guarded(open_message, [&] {
        const tessera_grid grid = take(given, TESSERA_FIRST(tessera_grid, fullest), "tessera_grid");
        if (!points || !pillar_points || !counts || !cells || !pillars) throw tessera::bad_input("an array is NULL");
        const tessera::Pillars rules{grid.rows,
                                     grid.columns,
                                     grid.cell,
                                     {grid.x[0], grid.x[1]},
                                     {grid.y[0], grid.y[1]},
                                     {grid.z[0], grid.z[1]},
                                     grid.most,
                                     grid.points,
                                     grid.fullest != 0};
        if (rules.rows < 1 || rules.columns < 1 || rules.most < 1 || rules.points < 1 || !(rules.cell > 0) ||
            count > INT32_MAX || int64_t{rules.rows} * rules.columns >= INT32_MAX)
            throw tessera::bad_input(
                "tessera_grid: its lengths must be positive, and its cells and points fewer than 2^31");
        std::fill_n(counts, rules.most, rules.points);  // whatever the arrays hold is overwritten
        tessera::Grouper grouper(rules);
        *pillars = grouper.group(points, count, pillar_points, counts, cells);
        if (cells_of_points) std::copy_n(grouper.cells_of_points(), count, cells_of_points);
    });
}

tessera_status tessera_picture(const uint8_t *rgb, int32_t recorded_height, int32_t recorded_width, uint8_t *picture,
                               int32_t height, int32_t width, int32_t steps) {
    return guarded(open_message, [&] {
        if (!rgb || !picture) throw tessera::bad_input("a picture is NULL");
        for (const int32_t side : {recorded_height, recorded_width, height, width})
            if (side < 1 || side > INT16_MAX) throw tessera::bad_input("a side of a picture is ", side, " pixels");
        tessera::Warper({{}, height, width, steps}).warp(rgb, recorded_height, recorded_width, picture);
    });
}
