// Preloaded: counts the allocations of all threads while tessera_count_allocations is not 0.
#include <dlfcn.h>

#include <atomic>
#include <cstddef>

extern "C" {
__attribute__((visibility("default"))) std::atomic<int> tessera_count_allocations{0};
__attribute__((visibility("default"))) std::atomic<long> tessera_allocations{0};

static void *(*next_malloc)(size_t);
static void *(*next_realloc)(void *, size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_memalign(size_t, size_t);

static void count() {
    if (tessera_count_allocations.load(std::memory_order_relaxed)) ++tessera_allocations;
}

__attribute__((visibility("default"))) void *malloc(size_t size) {
    if (!next_malloc) next_malloc = reinterpret_cast<void *(*)(size_t)>(dlsym(RTLD_NEXT, "malloc"));
    count();
    return next_malloc(size);
}

__attribute__((visibility("default"))) void *realloc(void *memory, size_t size) {
    if (!next_realloc) next_realloc = reinterpret_cast<void *(*)(void *, size_t)>(dlsym(RTLD_NEXT, "realloc"));
    count();
    return next_realloc(memory, size);
}

__attribute__((visibility("default"))) void *calloc(size_t number, size_t size) {
    count();
    return __libc_calloc(number, size);
}

__attribute__((visibility("default"))) int posix_memalign(void **memory, size_t alignment, size_t size) {
    count();
    *memory = __libc_memalign(alignment, size);
    return *memory ? 0 : 12;
}
}
