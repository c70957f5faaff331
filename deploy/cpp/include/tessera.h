/* Runs a bundle of `perception export` frame by frame, without Python.
 *
 *     tessera_open -> tessera_step for each frame of a drive, in order of time -> tessera_close
 *
 * Coordinates are metres in the bundle's frame of reference (tessera_describe): x y z, with x ahead and y to the left
 * if it is the vehicle's. Matrices are row-major; a_from_b maps homogeneous points of b to a. Times are microseconds.
 *
 * Every function returns a tessera_status; what went wrong says tessera_message. A runtime belongs to one thread at a
 * time; several may run in several threads. What a call is given, by any pointer in it, is read during the call alone.
 * What it gives belongs to the runtime, and is freed with it at the latest. Structs carry their size, which the caller
 * sets, so that later versions can add fields at their ends: a library takes structs of older versions, and of newer
 * ones if every field that it does not know is 0.
 */
#ifndef TESSERA_H
#define TESSERA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TESSERA_API __attribute__((visibility("default")))

typedef enum tessera_status {
    TESSERA_OK = 0,
    TESSERA_REFUSED = 1,      /* the bundle was changed, is not trusted, or cannot run here */
    TESSERA_WRONG_ENGINE = 2, /* the engine does not compute the exported network: do not use its outputs */
    TESSERA_BAD_INPUT = 3,    /* an argument or a frame cannot be used; the runtime is as before */
    TESSERA_FAILED = 4,       /* anything else, such as no memory; a step that fails leaves no arrays */
    TESSERA_LOST = 5          /* an error in CUDA that stays: close the runtime and, mostly, restart the process, whose
                               * context on the GPU is gone */
} tessera_status;

typedef struct tessera_runtime tessera_runtime;

typedef struct tessera_options {
    size_t size;
    const char *bundle;      /* folder */
    const char *target;      /* NULL, "" or "cpu": ONNX Runtime; else the target of a plan in engines/ for TensorRT */
    const char *plugin;      /* shared object with the engine of the target; NULL: libtessera_tensorrt.so */
    const char *const *keys; /* PEM files of Ed25519 public keys, one of which must have signed it */
    size_t key_count;        /* 0: unsigned bundles of any age are accepted */
    const char *state;       /* with keys: folder that keeps the highest release and the plans that ran */
    int allow_older;         /* with keys: accept an older release than that */
    int threads;             /* of ONNX Runtime; 0: one for each core */
} tessera_options;

typedef struct tessera_camera {
    size_t size;
    const char *name;
    const uint8_t *rgb; /* (height, width, 3), as recorded; NULL: the camera is missing */
    int32_t height, width;
    double intrinsics[9];
    double ego_from_camera[16];
    double global_from_ego[16]; /* when it was exposed */
} tessera_camera;

/* An input of the network for a kind of sensor that the library does not know: its host makes all of its numbers. */
typedef struct tessera_input {
    size_t size;
    const char *name; /* in the manifest's `preprocessing.scanners` */
    const void *data; /* row-major, of the manifest's shape and type */
    size_t bytes;
} tessera_input;

typedef struct tessera_frame {
    size_t size;
    const char *scene; /* name of the drive; another one begins with an empty memory. NULL: "" */
    int64_t timestamp;
    double global_from_reference[16];
    double global_from_ego[16];
    const float *points;           /* (point_count, 5): x y z, intensity 0-255, s from the point to the frame */
    const uint8_t *sweep_of_point; /* (point_count): 0 for points of the keyframe; NULL: all are */
    size_t point_count;            /* 0: the LiDAR is missing */
    const tessera_camera *cameras; /* those that are there, in any order */
    size_t camera_count;
    const char *const *conditions; /* what is known to hold, such as rain and night */
    size_t condition_count;
    const tessera_input *inputs; /* those of further sensors that are there, in any order */
    size_t input_count;
} tessera_frame;

typedef enum tessera_type {
    TESSERA_FLOAT32 = 0,
    TESSERA_FLOAT64 = 1,
    TESSERA_INT32 = 2,
    TESSERA_INT64 = 3,
    TESSERA_UINT8 = 4,
    TESSERA_BOOL = 5
} tessera_type;

/* An array of the runtime, row-major; valid until its next step or check, and a state until it is asked for again. */
typedef struct tessera_array {
    size_t size;
    const void *data;
    tessera_type type;
    int32_t rank;
    int64_t shape[8];
} tessera_array;

/* Where the cells of a result are: columns along x, rows along y, levels along z, from the lowest on. */
typedef struct tessera_area {
    double x[2], y[2], z[2]; /* m, in the frame of reference */
    double cell, height;     /* m, of a cell along x and y, and along z */
} tessera_area;

/* What a bundle tells its host. A NULL ends each list of names; lists and strings last as long as the runtime. */
typedef struct tessera_description {
    size_t size;
    const char *name;                    /* of its configuration */
    int64_t release;                     /* with keys, a vehicle that ran a higher one refuses the bundle */
    const char *reference;               /* the frame of reference: ego, or lidar for that of the first LiDAR */
    int32_t sweeps;                      /* earlier ones of each LiDAR in a frame, at most; 0 without LiDAR */
    double oldest;                       /* s, their largest age */
    double spacing[2];                   /* s from frame to frame that a memory was trained with; 0 without */
    double seconds, speed;               /* s since the frame before, and m/s, beyond which a memory begins anew */
    const char *const *cameras;          /* that the network sees */
    const char *const *condition_values; /* known to tessera_frame.conditions */
    const char *const *condition_kinds;  /* the kind of each, such as weather */
    size_t result_count;                 /* of tessera_describe_result */
} tessera_description;

/* What the numbers of a result are of. */
typedef enum tessera_kind {
    TESSERA_BOXES = 0,  /* a list of detections */
    TESSERA_RASTER = 1, /* cells, voxels or points, by channel; float32, NaN or `instead` where it is not finite */
    TESSERA_LABELS = 2, /* a class, by its index, or a number of a table, of each cell, voxel or point */
    TESSERA_VALUE = 3   /* the whole frame; float64, 0 long if a number is not finite */
} tessera_kind;

/* A result. */
typedef struct tessera_result {
    size_t size;
    const char *name; /* of tessera_get; of boxes, the output's: TASK/boxes, scores, labels or attributes */
    tessera_kind kind;
    const char *unit;         /* and what the numbers mean; "" in bundles of schema 13 */
    double scale;             /* the size of ordinary numbers, in this unit; 1 for probabilities */
    const char *const *names; /* of the channels or, by index, of the classes */
    tessera_area area;        /* of the cells; 0 without */
} tessera_result;

/* Seconds of the latest step, by stage. */
typedef struct tessera_times {
    size_t size;
    double preprocess, engine, postprocess;
} tessera_times;

/* Checks every hash of a bundle, its signature if keys are given, and runs its golden frames. On an error *runtime is
 * NULL, and tessera_message(NULL) says what it is. */
TESSERA_API tessera_status tessera_open(const tessera_options *options, tessera_runtime **runtime);

/* What the bundle tells its host, the same in every frame. */
TESSERA_API tessera_status tessera_describe(const tessera_runtime *runtime, tessera_description *description);

/* The result with this index, below result_count. */
TESSERA_API tessera_status tessera_describe_result(const tessera_runtime *runtime, size_t index,
                                                   tessera_result *result);

/* Perceives the next frame. What cannot be used of it counts as missing: points that are not finite, cameras with
 * impossible matrices. Without a possible pose it is where the frame before was, and the memory begins anew. */
TESSERA_API tessera_status tessera_step(tessera_runtime *runtime, const tessera_frame *frame);

/* An array of the latest step: a result TASK/NAME, such as detection/centers or map/probabilities; an engine's input or
 * output, inputs/NAME or outputs/NAME; next_NAME, a state that the next frame begins with. tessera_name lists them.
 *
 * Results, in the frame of reference; tessera_describe_result has their names and areas. Those of the tasks here:
 *   detection/centers (N, 3) float64, best first: x y z of the middle, m
 *   detection/sizes (N, 3) float64: width, length along the heading, height, m
 *   detection/rotations (N, 3, 3) float64: from the box to the reference
 *   detection/velocities (N, 3) float64, m/s, NaN if unknown; detection/scores (N) float64, 0-1
 *   detection/labels, detection/attributes (N) int64; an attribute of -1: none
 *   map/probabilities (layers, rows, columns) float32, 0-1
 *   points/classes (K) uint8, 255: none; points/probabilities (K) float32: of the first K points of the keyframe
 *   occupancy/classes uint8, occupied, others float32, 0-1 (levels, rows, columns)
 *   occupancy/free (360) float32: free distance, m, by degree from x counter-clockwise
 *   conditions/probabilities (values) float64, 0-1; 0 long if one of them is not finite
 *
 * not_finite (outputs) int64 says how many numbers of each outputs/NAME, in the order of their names, were NaN or
 * infinite, and of detection/boxes how many boxes have such a number or score; they are left out of the results. Where
 * one is not 0, do not trust the frame. */
TESSERA_API tessera_status tessera_get(const tessera_runtime *runtime, const char *name, tessera_array *array);

/* The name of the array with this index; NULL behind the last. */
TESSERA_API const char *tessera_name(const tessera_runtime *runtime, size_t index);

/* Whether module NAME of the bundle ran in the latest step, as its weight. */
TESSERA_API tessera_status tessera_weight(const tessera_runtime *runtime, const char *module, float *weight);

TESSERA_API tessera_status tessera_seconds(const tessera_runtime *runtime, tessera_times *times);

/* Runs the next golden frame of the next network, for idle time. Memory and results stay as they are; the engine's
 * outputs of the latest step are gone. */
TESSERA_API tessera_status tessera_check(tessera_runtime *runtime);

/* Begins with an empty memory at the next frame. */
TESSERA_API tessera_status tessera_restart(tessera_runtime *runtime);

/* What went wrong in the latest call on this runtime, or with NULL in the latest call of this thread that had none;
 * valid until the next call. */
TESSERA_API const char *tessera_message(const tessera_runtime *runtime);

TESSERA_API void tessera_close(tessera_runtime *runtime);

/* Of the library, such as 1.0.0. */
TESSERA_API const char *tessera_version(void);

/* Preprocessing alone, for other programs (docs/bundle_format.md, `preprocessing`). */

typedef struct tessera_grid {
    size_t size;
    int32_t rows, columns;
    double cell, x[2], y[2], z[2];
    int32_t most, points;
    int32_t fullest; /* overflow: 1 fullest, 0 first */
} tessera_grid;

/* Groups points (count, 5) into pillar_points (most, points, 5), counts (most) and cells (most), with padding behind
 * the pillars; cells_of_points (count) may be NULL. */
TESSERA_API tessera_status tessera_group(const tessera_grid *grid, const float *points, size_t count,
                                         float *pillar_points, int32_t *counts, int32_t *cells,
                                         int32_t *cells_of_points, int32_t *pillars);

/* The picture (height, width, 3) of a recorded one (recorded_height, recorded_width, 3). */
TESSERA_API tessera_status tessera_picture(const uint8_t *rgb, int32_t recorded_height, int32_t recorded_width,
                                           uint8_t *picture, int32_t height, int32_t width, int32_t steps);

#ifdef __cplusplus
}
#endif
#endif
