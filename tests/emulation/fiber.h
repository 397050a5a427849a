// Threads as fibers, the blocks that they belong to, and what is known of each.
#pragma once

#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emulation {

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

constexpr int kWarp = 32;
constexpr size_t kStack = 256 << 10, kGuard = 4096;

struct Copy {
    char* to;
    const char* from;
    int bytes;
};

// What a thread waits for: its warp, its warpgroup, its block or its cluster to come, or a condition.
enum class Wait { kNone, kWarp, kWarpgroup, kBlock, kCluster, kCondition };

// Asynchronous products of a thread: products.h.
struct Product {
    float* c;
    const uint32_t* a;
    uint64_t b;
    bool add;
    int kind;
};

// What the sums at `c` are to become; until then NaN stands there.
struct Pending {
    float* c;
    int products;
    float values[64];
};

struct Products {
    std::vector<std::vector<Product>> groups;  // committed, oldest first
    std::vector<Product> open;
    std::vector<Pending> pending;
    bool fenced = false;
};

struct Fiber {
    ucontext_t start;
    jmp_buf resume;
    std::unique_ptr<char[]> stack{new char[kStack]};
    bool started, done;
    Wait wait;
    std::vector<std::vector<Copy>> groups;  // committed copies, oldest first
    std::vector<Copy> open;
    int turn;  // of the warp's slots
    Products products;
    std::function<bool()> condition;
};

// A barrier of some threads of a block: who has come since all last went on, and how often they did.
struct NamedBarrier {
    std::vector<unsigned> come;
    int times = 0;
};

constexpr size_t kFirstAddress = 1024;  // what precedes it belongs to the system

struct Block {
    std::vector<char> memory;
    char* shared;  // where an address that is a multiple of 1024 is one of the host's, too
    size_t bytes;
    unsigned left;  // threads that have not ended
    std::map<int, NamedBarrier> barriers;
};

// What the lanes of a warp show each other. Two sets, so that a fast lane cannot overwrite what a slow one still reads.
struct Slots {
    alignas(16) char lane[2][kWarp][64];
};

}  // namespace emulation
