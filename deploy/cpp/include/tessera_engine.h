/* What a shared object with an engine exports: tessera_engine, which gives a table of functions
 * (tessera_options.plugin).
 *
 * Functions that can fail return a status and write why, one line, to `error`, of TESSERA_ENGINE_ERROR bytes. What they
 * are given lasts as long as the call. The library calls them from one thread at a time, which may change.
 */
#ifndef TESSERA_ENGINE_H
#define TESSERA_ENGINE_H

#include "tessera.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TESSERA_ENGINE_VERSION 2 /* raised when anything in this header changes; the library takes no other */
#define TESSERA_ENGINE_ERROR 4096

typedef struct tessera_network tessera_network; /* the engine's own: an open plan */
typedef struct tessera_state tessera_state;     /* the engine's own: all states of a network on a drive */

typedef struct tessera_tensor {
    const char *name;
    tessera_type type;
    int32_t rank;
    const int64_t *shape;
} tessera_tensor;

typedef struct tessera_plan {
    const char *path; /* for messages */
    const void *content;
    size_t size;
    const void *onnx; /* graph whose weights it shall get; NULL: it keeps its own */
    size_t onnx_size;
    int32_t dla_core;             /* for which it was compiled; -1: none */
    const tessera_tensor *inputs; /* which it must have, without the states */
    size_t input_count;
    const tessera_tensor *outputs;
    size_t output_count;
    const tessera_tensor *states; /* float32, each its input NAME and its output next_NAME */
    size_t state_count;
} tessera_plan;

typedef struct tessera_engine_table {
    uint32_t version;     /* TESSERA_ENGINE_VERSION; the first field of every version */
    const char *compiler; /* name and version of what compiled the plans that it runs, such as "tensorrt 10.3.0" */

    tessera_status (*open)(const tessera_plan *plan, tessera_network **network, char *error);
    void (*close)(tessera_network *network);
    /* The pointers are in the plan's order, to arrays of its shapes. With a state, which any network of this table with
     * such states made, the network reads its states from it and leaves the next ones in it. */
    tessera_status (*run)(tessera_network *network, const void *const *inputs, void *const *outputs,
                          tessera_state *state, char *error);

    tessera_status (*new_state)(tessera_network *network, tessera_state **state, char *error); /* zeros */
    void (*free_state)(tessera_state *state);                   /* before its network is closed */
    tessera_status (*clear)(tessera_state *state, char *error); /* zeros */
    void (*swap)(tessera_state *state);                         /* after a run: what they were before */
    /* All values of one of the plan's states. */
    tessera_status (*read)(tessera_state *state, size_t index, float *values, char *error);
} tessera_engine_table;

TESSERA_API const tessera_engine_table *tessera_engine(void);

#ifdef __cplusplus
}
#endif
#endif
