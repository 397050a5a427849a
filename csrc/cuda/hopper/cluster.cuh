// Blocks of a cluster and their shared memory.
#pragma once

#include <cstdint>

namespace d2llm::hopper {

__device__ __forceinline__ uint32_t rank_in_cluster() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ uint32_t cluster_index() {
    uint32_t index;
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
    return index;
}

__device__ __forceinline__ uint32_t clusters() {
    uint32_t number;
    asm("mov.u32 %0, %%nclusterid.x;" : "=r"(number));
    return number;
}

// All threads of the cluster meet; what they wrote to shared memory is seen by all.
__device__ __forceinline__ void sync_cluster() {
    asm volatile(
        "barrier.cluster.arrive.release;\n"
        "barrier.cluster.wait.acquire;" ::
            : "memory");
}

// Where in the cluster the shared memory of `rank` has what this block has at `address`.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
    uint32_t mapped;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
    return mapped;
}

// 16 bytes to shared memory of the cluster, that count at a barrier of the same block when they are there.
__device__ __forceinline__ void send(uint32_t to, float4 value, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
        "r"(__float_as_uint(value.x)), "r"(__float_as_uint(value.y)), "r"(__float_as_uint(value.z)),
        "r"(__float_as_uint(value.w)), "r"(barrier)
        : "memory");
}

// Barriers of a part of the block: `threads` arrive, those that wait included.
__device__ __forceinline__ void sync_threads(int barrier, int threads) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void arrive_threads(int barrier, int threads) {
    asm volatile("barrier.cta.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace d2llm::hopper
