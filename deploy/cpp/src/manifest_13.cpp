// Manifests of schema 13 say by the settings of each task how its outputs become results; the names are the taxonomy's.
#include "manifest.hpp"

namespace tessera {

namespace {

Json output(const char *name, const char *kind, const Json &names, const Json &more = Json::object()) {
    Json found = {{"name", name},     {"kind", kind},           {"unit", ""},
                  {"names", names},   {"scale", 1.0},           {"area", nullptr},
                  {"result", ""},     {"squeeze", false},       {"instead", nullptr},
                  {"steps", 0},       {"nowhere", nullptr},     {"groups", Json::array()},
                  {"doubt", nullptr}, {"suppression", nullptr}, {"velocity", true}};
    found.update(more);
    return found;
}

Json names_of(const Json &items) {
    Json names = Json::array();
    for (const Json &each : items) names.push_back(each.at("name"));
    return names;
}

Json voxel_names(const Json &taxonomy) {
    Json names = {"others"};  // perception/grid.py
    for (const Json &each : taxonomy.at("point_classes"))
        if (each.at("solid") == true) names.push_back(each.at("name"));
    names.push_back("free");
    return names;
}

Json area_of(const Json &grid, const Json &height) {
    return {
        {"x", grid.at("x")}, {"y", grid.at("y")}, {"z", grid.at("z")}, {"cell", grid.at("cell")}, {"height", height}};
}

Json outputs_of(const Json &settings, const Json &head, const Json &head_grid, const Json &taxonomy) {
    const Json none = Json::array();
    if (settings.contains("suppression"))
        return {output("boxes", "boxes", none, settings), output("scores", "boxes", none),
                output("labels", "boxes", names_of(taxonomy.at("classes"))),
                output("attributes", "boxes", taxonomy.at("attributes"))};
    if (settings.contains("limit")) {
        Json sizes = Json::array(), values = Json::array();
        for (const auto &[kind, names] : settings.at("kinds").items()) {
            sizes.push_back(names.size());
            values.insert(values.end(), names.begin(), names.end());
        }
        return {output("probabilities", "value", values,
                       {{"groups", sizes}, {"doubt", {"distance", settings.at("limit")}}}),
                output("distance", "value", none, {{"result", nullptr}})};
    }
    if (settings.contains("none"))
        return {output("classes", "labels", names_of(taxonomy.at("point_classes")),
                       {{"nowhere", {"confidence", settings.at("none")}}}),
                output("confidence", "raster", none, {{"result", "probabilities"}, {"squeeze", true}})};
    if (settings.contains("levels")) {
        const Json height = head.value("height", Json());
        const Json area = area_of(head, height.is_null() ? head.at("cell") : height);
        const Json raster = {{"area", area}, {"steps", settings.at("levels")}};
        return {output("classes", "labels", voxel_names(taxonomy), {{"area", area}}),
                output("occupied", "raster", none, raster), output("others", "raster", none, raster),
                output("free", "labels", none, {{"instead", 0.0}})};
    }
    return {
        output("probabilities", "raster", names_of(taxonomy.at("map_layers")), {{"area", area_of(head_grid, 0.0)}})};
}

}  // namespace

Json results_of_schema_13(const Json &manifest) {
    Json results = Json::object();
    for (const auto &[task, settings] : manifest.at("postprocessing").items())
        results[task] =
            outputs_of(settings, manifest.at("tasks").at(task), manifest.at("head_grid"), manifest.at("taxonomy"));
    return results;
}

}  // namespace tessera
