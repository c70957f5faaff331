#include "runtime.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include "error.hpp"

namespace tessera {
namespace {

// How long a stage takes, in s.
template <typename Body>
double seconds_of(const Body &stage) {
    const auto start = std::chrono::steady_clock::now();
    stage();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A frame's inputs are those of the bundle's own network, with what steers each.
void require_inputs(const Bundle &bundle, Arrays given) {
    const Manifest &manifest = bundle.manifest();
    steer(manifest, {}, given);
    if (manifest.state) state_inputs(nullptr, {}, manifest, given);
    for (const TensorInfo &input : manifest.inputs) {
        const auto found = given.find(input.name);
        if (found == given.end() || found->second.type() != input.type || found->second.shape() != input.shape)
            throw refused((bundle.path() / "manifest.json").string(), ": inputs: ", input.name,
                          " is none that the bundle's frames give; export the bundle again");
    }
}

Network open_network(const Bundle &bundle, const std::string &route, const EngineOptions &options,
                     const Arrays &inputs) {
    const std::string graph = options.target == "cpu" ? bundle.cpu_graph() : "model.onnx";
    const std::string name = text(bundle.path().string(), " on ", options.target);
    Network network{&bundle, conditions_of(route), name, Decoder(bundle.manifest()), open_engine(bundle, options)};
    network.golden_state = network.engine->new_state();
    network.golden = read_golden(read_safetensors(bundle.read(kGolden), bundle.path() / kGolden), bundle, graph);
    require_inputs(bundle, inputs);  // before an engine reads any: engines take the manifest's shapes for granted
    Arrays results;
    network.decoder.decode(network.golden[0].outputs, results);  // throws if they have other shapes than results need
    for (const GoldenFrame &frame : network.golden)
        require_golden(frame, network.run_golden(padded(frame, bundle)), network.name, bundle.manifest());
    return network;
}

}  // namespace

const Arrays &Network::run_golden(const Arrays &inputs) {
    if (!golden_state) return engine->run(inputs, nullptr);
    if (*inputs.at("state_valid").data<float>() == 0) golden_state->clear();
    const Manifest &manifest = bundle->manifest();
    for (const auto &[name, array] : engine->run(inputs, golden_state.get())) golden_outputs[name] = array;
    for (size_t i = 0; i < manifest.states.size(); ++i) {
        Array whole(TESSERA_FLOAT32, manifest.states[i].shape);
        golden_state->read(i, whole);
        sample(whole, manifest.golden["state_step"].get<int>(), golden_outputs[manifest.states[i].output]);
    }
    return golden_outputs;
}

const Array *Carried::find(std::string_view output) const {
    for (size_t i = 0; i < read_.size(); ++i) {
        if (states()[i].output != output) continue;
        read_[i].resize(states()[i].shape);
        state_->read(i, read_[i]);
        return &read_[i];
    }
    return nullptr;
}

const Arrays &Carried::run(Engine &engine, Arrays &inputs, const Moment &moment) {
    // A state that is not used is set to zeros, because the network multiplies it by zero: an infinite number would
    // stay.
    const bool goes_on = known_ && state_inputs(&before_, moment, manifest_, inputs);
    const bool used = state_inputs(goes_on ? &of_state_ : nullptr, moment, manifest_, inputs);
    if (!used) known_ = false, state_->clear();  // also if the engine fails
    const Arrays &outputs = engine.run(inputs, state_.get());
    for (size_t i = 0; i < seen_.size(); ++i) sees_[i] = sees(inputs, manifest_.steering.sensors[i].second);
    // Whether it lacks a sensor that the frame of the state had.
    const bool lacks = !std::equal(seen_.begin(), seen_.end(), sees_.begin(), [](bool a, bool b) { return a <= b; });
    if (used && lacks) {
        state_->swap();
    } else {
        of_state_ = moment;
        seen_ = sees_;
    }
    before_ = moment;
    known_ = all_finite(outputs);  // what a frame that is not leaves would never be finite again
    return outputs;
}

Runtime::Runtime(const std::filesystem::path &path, const Trust &trust, const EngineOptions &options)
    : bundle_(Bundle::open(path, trust)),
      admitter_(bundle_.manifest()),
      preprocessor_(bundle_.manifest()),
      inputs_(no_sensors(bundle_.manifest())) {
    const Manifest &manifest = bundle_.manifest();
    // All networks stay open, so that switching takes no time.
    networks_.push_back(
        open_network(bundle_, bundle_.routes().empty() ? "base" : manifest.routes.at(0), options, inputs_));
    for (const std::string &route : manifest.apart)
        networks_.push_back(open_network(bundle_.routes().at(route), route, options, inputs_));
    // Networks for other routes may have no memory; those that have one have the same.
    for (Network &network : networks_) {
        const Bundle &own = *network.bundle;
        const auto require = [&own](bool same, const char *what) {
            if (!same)
                throw refused((own.path() / "manifest.json").string(), ": ", what,
                              " than that of the bundle's other networks; export the bundle again");
        };
        if (own.manifest().state) {
            if (!carried_) carried_.emplace(network.engine->new_state(), own.manifest());
            require(own.manifest().states == carried_->states(), "state: has another shape");
        }
        // Cells of another grid may lie outside of the network's.
        require(own.manifest().json.at("preprocessing") == manifest.json.at("preprocessing"),
                "preprocessing: is another");
    }
    if (trust.required()) trust.accept(manifest.release);  // after its networks have passed the golden frames
}

Network &Runtime::select(const Conditions &known) {
    Network *best = nullptr;
    for (Network &network : networks_) {
        const std::set<std::string> &wanted = network.conditions;
        const bool fits = std::all_of(wanted.begin(), wanted.end(), [&](const std::string &each) {
            return std::binary_search(known.begin(), known.end(), each);
        });
        if (fits && (!best || wanted.size() > best->conditions.size())) best = &network;
    }
    return best ? *best : networks_.front();
}

void Runtime::step(Frame &frame, const Conditions &conditions) {
    preprocess = engine = postprocess = 0;
    const Network *before = std::exchange(latest_, nullptr);  // a step that fails leaves no result
    const bool placed = admitter_.admit(frame);
    moment_.scene.assign(frame.scene);
    moment_.timestamp = frame.timestamp;
    moment_.global_from_reference = frame.global_from_reference;
    // The state cannot be moved to where the frame is, nor that of the frame to the next one.
    if (!placed) forget();
    Network &network = select(conditions);
    if (before != &network) results_.clear();  // the other network may have other tasks
    const Manifest &manifest = network.bundle->manifest();
    preprocess = seconds_of([&] {
        preprocessor_.prepare(frame, inputs_);
        steer(manifest, conditions, inputs_);
    });
    engine = seconds_of([&] {
        outputs_ =
            manifest.state ? &carried_->run(*network.engine, inputs_, moment_) : &network.engine->run(inputs_, nullptr);
    });
    postprocess = seconds_of([&] { network.decoder.decode(*outputs_, results_); });
    if (!placed || !manifest.state) forget();
    latest_ = &network;
    if (before != &network) list_names();
}

void Runtime::forget() {
    if (carried_) carried_->forget();
}

void Runtime::restart() {
    admitter_.restart();
    forget();
}

void Runtime::list_names() {
    const Manifest &manifest = latest_->bundle->manifest();
    names_.clear();
    for (const auto &[name, array] : results_) names_.push_back(name);
    for (const TensorInfo &input : manifest.inputs) names_.push_back("inputs/" + input.name);
    for (const StatePair &pair : manifest.states) names_.push_back(pair.output);
    lasting_ = names_.size();
    for (const auto &[name, array] : *outputs_) names_.push_back("outputs/" + name);
}

const Array *Runtime::find(std::string_view name) const {
    if (!latest_) return nullptr;
    const std::string_view in = "inputs/", out = "outputs/";
    if (latest_->bundle->manifest().state)
        if (const Array *state = carried_->find(name)) return state;
    const Arrays *arrays = &results_;
    if (name.substr(0, in.size()) == in) arrays = &inputs_, name.remove_prefix(in.size());
    else if (name.substr(0, out.size()) == out) arrays = outputs_, name.remove_prefix(out.size());
    if (!arrays) return nullptr;
    const auto found = arrays->find(name);
    return found == arrays->end() ? nullptr : &found->second;
}

std::optional<float> Runtime::weight(std::string_view module) const {
    if (!latest_) return std::nullopt;
    std::optional<float> found;  // 0 of a module that only other networks have
    for (const Network &network : networks_) {
        const Manifest &manifest = network.bundle->manifest();
        const bool runs = &network == latest_;
        for (const std::string &name : manifest.folded)
            if (name == module) found = std::max(found.value_or(0), runs ? 1.0F : 0.0F);
        for (size_t i = 0; i < manifest.banked.size(); ++i)
            if (manifest.banked[i].name == module)
                found = std::max(found.value_or(0), runs ? inputs_.at("route").data<float>()[i] : 0.0F);
    }
    return found;
}

void Runtime::check() {
    Network &network = networks_[checked_];
    outputs_ = nullptr;  // the engine's outputs are no longer those of the latest step, also if it fails
    // After a failure the network begins at its first frame: its state may not be that of the frame before.
    const size_t index = std::exchange(next_golden_, 0);
    const GoldenFrame &frame = network.golden[index];
    require_golden(frame, network.run_golden(padded(frame, *network.bundle)), network.name, network.bundle->manifest());
    if (index + 1 < network.golden.size()) next_golden_ = index + 1;
    else checked_ = (checked_ + 1) % networks_.size();
}

}  // namespace tessera
