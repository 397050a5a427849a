// Barriers in shared memory that count arrivals and bytes. They are named by their address in shared memory.
//
// A barrier is in phases 0, 1, 2, ...; a wait for the parity of phase n returns once phase n is over, and at once where
// the barrier is new and the parity is 1. Whoever waits must not be able to fall two phases behind.
#pragma once

#include <cstdint>

namespace d2llm::hopper {

__device__ __forceinline__ void init_barrier(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes the barriers that this thread initialized known to the cluster and to the copy engine; a barrier of the cluster
// has to follow.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and asks the phase to wait for `bytes` more. They may have come before they are asked for: this arrival is
// what the phase waits for then.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// At a barrier of any block of the cluster, by its address in the cluster. It says that something was read, and gives
// nothing written to other blocks: a release in the cluster would write back and wait for all of the thread's stores.
__device__ __forceinline__ void arrive_in_cluster(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// What the block's threads released and what copies have counted is seen behind it. Acquiring in the cluster would
// empty the first-level cache each time.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!done);
}

}  // namespace d2llm::hopper
