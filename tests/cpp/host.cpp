// A host of libtessera.so in a German locale, or without memory: `host MODE BUNDLE [KEY STATE]` prints a status and its
// message.
#include <tessera.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <locale>

namespace {
bool no_memory = false;
}

extern "C" void *__libc_malloc(size_t);
extern "C" void *malloc(size_t size) {
    if (!no_memory) return __libc_malloc(size);
    errno = ENOMEM;
    return nullptr;
}

int main(int count, char **words) {
    const bool german = std::strcmp(words[1], "german") == 0;
    if (german) std::locale::global(std::locale("de_DE.UTF-8"));
    tessera_options options{};
    options.size = sizeof options, options.bundle = words[2], options.threads = 1;
    if (count > 3) options.keys = words + 3, options.key_count = 1, options.state = words[4];
    tessera_runtime *runtime = nullptr;
    tessera_status status = tessera_open(&options, &runtime);
    if (german) return std::printf("%d %s\n", status, tessera_message(nullptr)), 0;
    static float points[5 * 1000];
    for (int i = 0; i < 5000; ++i) points[i] = static_cast<float>(i % 37 - 18);
    tessera_frame frame{};
    frame.size = sizeof frame, frame.points = points, frame.point_count = 1000;
    for (int i = 0; i < 4; ++i) frame.global_from_reference[5 * i] = frame.global_from_ego[5 * i] = 1;
    tessera_runtime *second = nullptr;
    no_memory = true;
    status = std::strcmp(words[1], "step") == 0 ? tessera_step(runtime, &frame) : tessera_open(&options, &second);
    no_memory = false;
    std::printf("%d %s\n", status, tessera_message(std::strcmp(words[1], "step") == 0 ? runtime : nullptr));
    std::printf("%d\n", tessera_step(runtime, &frame));
    return 0;
}
