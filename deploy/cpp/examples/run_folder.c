/* Runs the frames of a folder through a bundle: run_folder BUNDLE FOLDER [TARGET], and prints the detections.
 *
 * FOLDER/frames.txt has a line for each frame in order of time: its name, the time in us, and the 16 numbers each of
 * global_from_reference and global_from_ego. FOLDER/NAME.bin are its points as in nuScenes' files, five float32 each.
 * A camera would be filled likewise, from its pixels, intrinsics and poses. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tessera.h"

static float points[5 * 400000];

static int read_points(const char *folder, const char *name, size_t *count) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.bin", folder, name);
    FILE *file = fopen(path, "rb");
    const size_t bytes = file ? fread(points, 1, sizeof points, file) : 0; /* no file: the LiDAR is missing */
    const int whole = bytes % (5 * sizeof(float)) == 0 && (!file || fgetc(file) == EOF);
    if (file) fclose(file);
    *count = bytes / (5 * sizeof(float));
    return whole;
}

/* The names of a result's classes, by index; NULL: there is no such result. */
static const char *const *names_of(const tessera_runtime *runtime, const char *name) {
    tessera_result result = {.size = sizeof result};
    for (size_t i = 0; !tessera_describe_result(runtime, i, &result); ++i)
        if (!strcmp(result.name, name)) return result.names;
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "run_folder BUNDLE FOLDER [TARGET]\n"), 2;
    setenv("ORT_DISABLE_TELEMETRY", "1", 0); /* before there are threads; docs/native.md */
    tessera_options options = {.size = sizeof options, .bundle = argv[1], .target = argv[3]}; /* NULL: without one */
    tessera_runtime *runtime;
    if (tessera_open(&options, &runtime)) return fprintf(stderr, "%s\n", tessera_message(NULL)), 2;
    const char *const *classes = names_of(runtime, "detection/labels");
    char path[4096], line[4096], name[256] = "", *next, *end;
    snprintf(path, sizeof path, "%s/frames.txt", argv[2]);
    FILE *list = fopen(path, "r");
    if (!list) return fprintf(stderr, "%s: cannot be read\n", path), 2;
    tessera_frame frame = {.size = sizeof frame, .points = points};
    while (fgets(line, sizeof line, list)) {
        int start = 0, n = 0;
        sscanf(line, "%255s %ld%n", name, &frame.timestamp, &start);
        for (next = line + start; start && n < 32 && (n || strchr(" \t", *next)); next = end, ++n) {
            (n < 16 ? frame.global_from_reference : frame.global_from_ego)[n % 16] = strtod(next, &end);
            if (end == next) break;
        }
        if (n < 32 || next[strspn(next, " \t\r\n")])
            return fprintf(stderr, "%s: frame %s: has no time (us) and two poses\n", path, name), 2;
        if (!read_points(argv[2], name, &frame.point_count))
            return fprintf(stderr, "%s.bin: has a part of a point, or more than 400,000\n", name), 2;
        if (tessera_step(runtime, &frame)) return fprintf(stderr, "%s: %s\n", name, tessera_message(runtime)), 1;
        tessera_array centers = {.size = sizeof centers}, scores = centers, labels = centers;
        if (tessera_get(runtime, "detection/centers", &centers) || tessera_get(runtime, "detection/scores", &scores) ||
            tessera_get(runtime, "detection/labels", &labels))
            return fprintf(stderr, "%s: has no detection\n", argv[1]), 1;
        for (long i = 0; i < centers.shape[0]; ++i) {
            const double *center = (const double *)centers.data + 3 * i;
            printf("%s %.9g %.9g %.9g %.9g %s\n", name, center[0], center[1], center[2],
                   ((const double *)scores.data)[i], classes[((const int64_t *)labels.data)[i]]);
        }
    }
    fclose(list);
    tessera_close(runtime);
    return 0;
}
