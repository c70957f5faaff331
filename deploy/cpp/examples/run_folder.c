/* Runs the frames of a folder through a bundle: run_folder BUNDLE FOLDER [TARGET], and prints the detections.
 *
 * FOLDER/frames.txt has a line for each frame in order of time: its name, the time in us, and the 16 numbers each of
 * global_from_reference and global_from_ego. FOLDER/NAME.bin are its points as in nuScenes' files, five float32 each.
 * A camera would be filled likewise, from its pixels, intrinsics and poses. */
#include <stdio.h>
#include <stdlib.h>

#include "tessera.h"

static float points[5 * 400000];

static size_t read_points(const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.bin", folder, name);
    FILE *file = fopen(path, "rb");
    if (!file) return 0; /* the LiDAR is missing */
    const size_t read = fread(points, 5 * sizeof(float), sizeof points / (5 * sizeof(float)), file);
    fclose(file);
    return read;
}

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "run_folder BUNDLE FOLDER [TARGET]\n"), 2;
    tessera_options options = {.size = sizeof options, .bundle = argv[1], .target = argv[3]}; /* NULL: without one */
    tessera_runtime *runtime;
    if (tessera_open(&options, &runtime)) return fprintf(stderr, "%s\n", tessera_message(NULL)), 2;
    char path[4096], name[256];
    snprintf(path, sizeof path, "%s/frames.txt", argv[2]);
    FILE *list = fopen(path, "r");
    if (!list) return fprintf(stderr, "%s: cannot be read\n", path), 2;
    tessera_frame frame = {.size = sizeof frame, .points = points};
    while (fscanf(list, "%255s %ld", name, &frame.timestamp) == 2) {
        int numbers = 0;
        for (int i = 0; i < 16; ++i) numbers += fscanf(list, "%lf", &frame.global_from_reference[i]);
        for (int i = 0; i < 16; ++i) numbers += fscanf(list, "%lf", &frame.global_from_ego[i]);
        if (numbers != 32) return fprintf(stderr, "%s: frame %s: has no two poses\n", path, name), 2;
        frame.point_count = read_points(argv[2], name);
        if (tessera_step(runtime, &frame)) return fprintf(stderr, "%s: %s\n", name, tessera_message(runtime)), 1;
        tessera_array centers = {.size = sizeof centers}, scores = centers, labels = centers;
        if (tessera_get(runtime, "detection/centers", &centers) || tessera_get(runtime, "detection/scores", &scores) ||
            tessera_get(runtime, "detection/labels", &labels))
            return fprintf(stderr, "%s: has no detection\n", argv[1]), 1;
        for (long i = 0; i < centers.shape[0]; ++i) {
            const double *center = (const double *)centers.data + 3 * i;
            printf("%s %ld %.9g %.9g %.9g %.9g\n", name, (long)((const int64_t *)labels.data)[i], center[0], center[1],
                   center[2], ((const double *)scores.data)[i]);
        }
    }
    fclose(list);
    tessera_close(runtime);
    return 0;
}
