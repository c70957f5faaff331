/* An engine whose plan has the outputs of its runs: what a step takes without the network, and all that an engine
 * needs.
 *
 * A plan is the number of the run behind the last one, as int64, and for each run an int64: 1 and the arrays of the
 * outputs, in order, with the states as the last; or 0, and the run fails. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tessera_engine.h"

enum { MOST = 256 }; /* runs, and outputs */

struct tessera_network {
    char *plan;
    const char *runs[MOST]; /* in the plan; NULL: fails */
    size_t run_count, next, repeated;
    size_t bytes[MOST], output_count, state_offsets[MOST + 1], state_count; /* offsets in bytes */
};

struct tessera_state {
    const tessera_network *network;
    char *values, *before;
};

static size_t bytes_of(const tessera_tensor *tensor) {
    static const size_t sizes[] = {4, 8, 4, 8, 1, 1}; /* of each tessera_type */
    size_t bytes = sizes[tensor->type];
    for (int i = 0; i < tensor->rank; ++i) bytes *= (size_t)tensor->shape[i];
    return bytes;
}

static void close_plan(tessera_network *network) {
    free(network->plan);
    free(network);
}

static tessera_status open_plan(const tessera_plan *plan, tessera_network **network, char *error) {
    tessera_network *own = *network = calloc(1, sizeof *own);
    own->plan = memcpy(malloc(plan->size), plan->content, plan->size);
    size_t left = plan->size, run_bytes = 0;
    for (; own->state_count < plan->state_count && own->state_count < MOST; ++own->state_count)
        own->state_offsets[own->state_count + 1] = run_bytes += bytes_of(plan->states + own->state_count);
    for (; own->output_count < plan->output_count && own->output_count < MOST; ++own->output_count)
        run_bytes += own->bytes[own->output_count] = bytes_of(plan->outputs + own->output_count);
    for (int64_t number; left >= sizeof number && own->run_count < MOST - 1;) {
        const char *at = own->plan + plan->size - left;
        memcpy(&number, at, sizeof number);
        left -= sizeof number;
        if (at == own->plan) {
            own->repeated = (size_t)number;
        } else {
            if (number && left < run_bytes) break;
            own->runs[own->run_count++] = number ? at + sizeof number : NULL;
            left -= number ? run_bytes : 0;
        }
    }
    if (!left && own->repeated <= own->run_count && own->output_count == plan->output_count) return TESSERA_OK;
    snprintf(error, TESSERA_ENGINE_ERROR, "%s: its outputs are not as the manifest says", plan->path);
    close_plan(own);
    return TESSERA_REFUSED;
}

static tessera_status run(tessera_network *network, const void *const *inputs, void *const *outputs,
                          tessera_state *state, char *error) {
    (void)inputs;
    if (network->next == network->run_count) network->next = network->repeated;
    const char *at = network->runs[network->next];
    network->next += network->next < network->run_count;
    if (!at) return snprintf(error, TESSERA_ENGINE_ERROR, "this run was recorded as one that fails"), TESSERA_FAILED;
    for (size_t i = 0; i < network->output_count; at += network->bytes[i++]) memcpy(outputs[i], at, network->bytes[i]);
    if (!state) return TESSERA_OK;
    char *values = state->before;
    state->before = state->values;
    state->values = memcpy(values, at, network->state_offsets[network->state_count]);
    return TESSERA_OK;
}

static tessera_status new_state(tessera_network *network, tessera_state **state, char *error) {
    (void)error;
    *state = malloc(sizeof **state);
    (*state)->network = network;
    (*state)->values = calloc(1, network->state_offsets[network->state_count]);
    (*state)->before = calloc(1, network->state_offsets[network->state_count]);
    return TESSERA_OK;
}

static void free_state(tessera_state *state) {
    free(state->values);
    free(state->before);
    free(state);
}

static tessera_status clear(tessera_state *state, char *error) {
    (void)error;
    memset(state->values, 0, state->network->state_offsets[state->network->state_count]);
    return TESSERA_OK;
}

static void swap(tessera_state *state) {
    char *values = state->values;
    state->values = state->before;
    state->before = values;
}

static tessera_status read_state(tessera_state *state, size_t index, float *values, char *error) {
    const size_t *offsets = state->network->state_offsets + index;
    (void)error;
    memcpy(values, state->values + offsets[0], offsets[1] - offsets[0]);
    return TESSERA_OK;
}

const tessera_engine_table *tessera_engine(void) {
    static const tessera_engine_table table = {
        .version = TESSERA_ENGINE_VERSION,
        .compiler = "tensorrt_rtx 1.7.1.116",
        .open = open_plan,
        .close = close_plan,
        .run = run,
        .new_state = new_state,
        .free_state = free_state,
        .clear = clear,
        .swap = swap,
        .read = read_state,
    };
    return &table;
}
