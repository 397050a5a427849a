// The operations of csrc/cuda/hopper/platform.cuh on a CPU.
#pragma once

#include <array>
#include <platform.cuh>

#include "check.h"
#include "hopper/layout.cuh"
#include "products.h"
#include "tensor_copies.h"

#define D2LLM_SM90A 1

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(8) float2 {
    float x, y;
};

struct alignas(8) uint2 {
    uint32_t x, y;
};

template <class T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
    const char* lanes = emulation::Machine::get().exchange(value);
    std::memcpy(&value, lanes + 64 * (threadIdx.x % 32 ^ mask), sizeof(T));
    return value;
}

inline uint32_t __ballot_sync(uint32_t, bool value) {
    const char* lanes = emulation::Machine::get().exchange(value);
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= uint32_t{lanes[64 * lane] != 0} << lane;
    return votes;
}

inline float __fdividef(float a, float b) { return a / b; }

namespace d2llm {

inline uint32_t shared_address(const void* pointer) { return emulation::address_of(pointer); }

namespace hopper {

using emulation::Machine;

// shared.cuh

inline char* swizzled_memory() { return shared_memory(); }

template <class T>
T load(uint32_t address) {
    T value;
    std::memcpy(&value, emulation::own(address, sizeof(T), sizeof(T)), sizeof(T));
    return value;
}

inline uint32_t load_word(uint32_t address) { return load<uint32_t>(address); }
inline uint2 load_pair(uint32_t address) { return load<uint2>(address); }
inline float4 load_floats(uint32_t address) { return load<float4>(address); }

inline void store_floats(uint32_t address, float4 value) {
    std::memcpy(emulation::own(address, sizeof(value), sizeof(value)), &value, sizeof(value));
}

inline void load_matrices(uint32_t (&words)[4], uint32_t row) {
    d2llm::load_matrices(words, emulation::own(row, 16, 16));
    // The rows are read as they are now; none may be overwritten before all lanes have read.
    __syncwarp();
}

inline void load_transposed(uint32_t (&words)[4], uint32_t row) {
    d2llm::load_transposed(words, emulation::own(row, 16, 16));
}

// cluster.cuh

inline uint32_t rank_in_cluster() { return Machine::get().rank(); }
inline uint32_t cluster_index() { return blockIdx.x / Machine::get().cluster(); }
inline uint32_t clusters() { return gridDim.x / Machine::get().cluster(); }
inline void sync_cluster() { Machine::get().wait(emulation::Wait::kCluster); }

inline uint32_t address_in(uint32_t address, uint32_t rank) {
    emulation::own(address, 0, 1);
    return (address & ((1u << emulation::kRankShift) - 1)) | rank << emulation::kRankShift;
}

inline void send(uint32_t to, float4 value, uint32_t barrier) {
    if (to >> emulation::kRankShift != barrier >> emulation::kRankShift)
        Machine::get().fail("a value and its barrier in different blocks");
    emulation::under_way(to, 16);
    Machine::get().later([=] {
        std::memcpy(emulation::at(to, 16, 16), &value, 16);
        return emulation::barrier_at(barrier).count(-16);
    });
}

// Returns how often the threads of the barrier had all come before, in `times`.
inline int arrive_threads(int barrier, int threads) {
    Machine& machine = Machine::get();
    auto& [come, times] = machine.block().barriers[barrier];
    const int before = times;
    if (std::find(come.begin(), come.end(), machine.thread()) != come.end())
        machine.fail("a thread arrives at a barrier that still waits for others of the last time");
    come.push_back(machine.thread());
    if (int(come.size()) == threads) {
        come.clear();
        ++times;
    }
    return before;
}

inline void sync_threads(int barrier, int threads) {
    const int before = arrive_threads(barrier, threads);
    const int* times = &Machine::get().block().barriers[barrier].times;
    Machine::get().wait_until([=] { return *times > before; });
}

// mbarrier.cuh

inline void init_barrier(uint32_t barrier, uint32_t arrivals) {
    const emulation::Barrier fresh{0, uint8_t(arrivals), uint8_t(arrivals), 0, emulation::Barrier::kMark};
    std::memcpy(emulation::own(barrier, 8, 8), &fresh, 8);
}

inline void publish_barriers() {}
inline void arrive(uint32_t barrier) { emulation::own_barrier(barrier).arrive(); }

inline void arrive_expecting(uint32_t barrier, uint32_t bytes) {
    emulation::Barrier& own = emulation::own_barrier(barrier);
    own.bytes += bytes;
    own.arrive();
}

inline void arrive_in_cluster(uint32_t barrier) { emulation::barrier_at(barrier).arrive(); }

inline void wait(uint32_t barrier, uint32_t parity) {
    const emulation::Barrier* own = &emulation::own_barrier(barrier);
    Machine::get().wait_until([=] { return own->phase != parity; });
}

// bulk_copy.cuh

inline void prefetch(const CUtensorMap*) {}

inline void copy_box(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t barrier) {
    emulation::copy_box(*map, {x, y, 0}, to, barrier);
}

inline void copy_box(uint32_t to, const CUtensorMap* map, int x, int y, int z, uint32_t barrier) {
    emulation::copy_box(*map, {x, y, z}, to, barrier);
}

inline void copy_box_to(uint16_t blocks, uint32_t to, const CUtensorMap* map, int x, int y, uint32_t barrier) {
    for (uint32_t rank = 0; rank < 16; ++rank)
        if (blocks >> rank & 1) emulation::copy_box(*map, {x, y, 0}, address_in(to, rank), address_in(barrier, rank));
}

inline void fence_async() {}

// wgmma.cuh

using emulation::commit_products;
using emulation::fence_products;

template <int PENDING>
void wait_products() {
    emulation::wait_products(PENDING);
}

inline void keep(Products&) {}

template <int WORDS>
void hold(const uint32_t (&)[WORDS]) {}

template <int REGISTERS>
void shrink_registers() {}

template <int REGISTERS>
void grow_registers() {}

inline void multiply(Products& c, const uint32_t* a, uint64_t b, bool add, bf16) {
    emulation::issue(c, a, b, add, emulation::kBFloat16);
}

inline void multiply(Products& c, const uint32_t* a, uint64_t b, bool add, fp16) {
    emulation::issue(c, a, b, add, emulation::kFloat16);
}

inline void multiply(Products& c, const uint32_t* a, uint64_t b, bool add, e4m3) {
    emulation::issue(c, a, b, add, emulation::kE4M3);
}

// convert.cuh

template <class E>
uint32_t narrow_two(float low, float high, E) {
    E pair[2];
    narrow(low, pair[0]);
    narrow(high, pair[1]);
    return uint32_t{pair[1].bits} << 16 | pair[0].bits;
}

inline uint8_t to_e4m3(float value) {
    if (std::isnan(value)) return 0x7f;
    const uint8_t sign = std::signbit(value) ? 0x80 : 0;
    const float size = std::min(std::fabs(value), 448.0f);
    const int exponent = size < 0x1p-6f ? -6 : std::ilogb(size);
    // In eighths of the power of two; one that rounds up to 16 carries into the exponent.
    const int eighths = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));
    return sign | (eighths + 8 * (exponent + 6));
}

inline uint16_t narrow_two(float low, float high, e4m3) { return to_e4m3(high) << 8 | to_e4m3(low); }

inline uint32_t larger(uint32_t a, uint32_t b) {
    uint32_t result = 0;
    for (int shift : {0, 16}) {
        const bf16 one{uint16_t(a >> shift)}, two{uint16_t(b >> shift)};
        const bool missing = std::isnan(widen(one)) || std::isnan(widen(two));
        result |= uint32_t{missing ? uint16_t{0x7fff} : widen(one) > widen(two) ? one.bits : two.bits} << shift;
    }
    return result;
}

// driver.h

struct Call {
    Kernel& kernel;
    std::function<std::string()> shape;

    std::string label() const { return std::string(kernel.name) + " (" + shape() + ")"; }

    void check(cudaError_t status) const {
        if (status != cudaSuccess) d2llm::check(status, kernel.name, shape());
    }
};

inline decltype(&cuTensorMapEncodeTiled) map_encoder(const Call&) { return &cuTensorMapEncodeTiled; }

// Few clusters, so that each has several turns.
template <class Arguments>
void launch_clusters(const Call& call, void (*kernel)(Arguments), int64_t wanted, int least, int cluster, int threads,
                     size_t shared, cudaStream_t, const Arguments& arguments) {
    constexpr int kMost = 3;
    constexpr size_t kMostShared = 227 << 10;
    if (least > kMost || cluster > 8 || shared > kMostShared) call.check(cudaErrorInvalidConfiguration);
    const unsigned number = static_cast<unsigned>(wanted < kMost ? wanted : kMost);
    Machine::get().launch(call.label(), dim3(number * cluster), threads, shared, [=] { kernel(arguments); }, cluster);
    call.kernel.count();
}

}  // namespace hopper
}  // namespace d2llm
