// A GPU without a GPU: what is put on a stream runs when the host waits for it, so a wait that is missing is found.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <vector>

using Work = std::vector<std::function<void()>>;

struct CUgraph_st {
    Work work;
    bool valid = true;
};
struct CUgraphExec_st {
    Work work;
};
struct CUstream_st {
    int device;
    Work pending;
    CUgraph_st *captured = nullptr;  // while its work is captured

    void put(std::function<void()> each) { (captured ? captured->work : pending).push_back(std::move(each)); }
};

// Whether TESSERA_STAND_IN, an environment variable, is this defect.
bool has_defect(const std::string &name);
