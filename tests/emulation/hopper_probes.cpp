// Kernels with one fault each of those that only Hopper's operations allow.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string>

#include "hopper/tensor_map.h"

namespace d2llm::hopper {
namespace {

struct Fault {
    std::string kind;
    CUtensorMap map;
    float* to;  // (2, 128)
};

constexpr uint32_t kBoxAt = 0, kReceivedAt = 32 << 10, kBarrierAt = kReceivedAt + 1024, kBytes = kBarrierAt + 16;

// The first sum of a product of ones, each 16 deep, with operands changed too early where that is the fault.
float multiplied(const std::string& kind, char* memory, uint32_t shared) {
    auto* b = reinterpret_cast<bf16*>(memory + kBoxAt);
    for (int i = threadIdx.x; i < 128 * 64; i += blockDim.x) narrow(1, b[i]);
    __syncthreads();
    uint32_t a[4];
    Products c = {};
    std::fill(a, a + 4, narrow_two(1, 1, bf16{}));
    if (kind != "fence") fence_products();
    multiply(c, a, describe_rows(shared + kBoxAt), false, bf16{});
    commit_products();
    if (kind == "left") a[0] = 0;
    __syncthreads();
    if (kind == "right") b[threadIdx.x / 8 * 64 + threadIdx.x % 8 * 8].bits = 0;
    if (kind == "sums") return c[0];
    wait_products<0>();
    return c[0];
}

void faulty_kernel(const Fault fault) {
    const std::string& kind = fault.kind;
    char* const memory = swizzled_memory();
    const uint32_t shared = shared_address(memory), barrier = shared + kBarrierAt, rank = rank_in_cluster();
    if (kind == "uninitialized") wait(barrier, 0);
    if (threadIdx.x == 0) init_barrier(barrier, 1);
    sync_cluster();
    float result = 0;
    if (kind == "nobody") wait(barrier, 0);
    if (kind == "many" && threadIdx.x < 2) arrive(barrier), arrive_expecting(barrier, 16), arrive(barrier);
    if (kind == "box" || kind == "boxed" || kind == "misplaced" || kind == "unwaited") {
        if (threadIdx.x == 0) {
            arrive_expecting(barrier, 8192);
            copy_box(shared + kBoxAt + (kind == "misplaced" ? 128 : 0), &fault.map, 0, 0, barrier);
        }
        if (kind == "boxed") wait(barrier, 0);
        __syncthreads();
        result = widen(reinterpret_cast<const bf16*>(memory + kBoxAt)[threadIdx.x % 64]);
        if (kind == "box") wait(barrier, 0);
    }
    if (kind == "ended") {
        if (rank == 1) return;
        for (int i = 0; i < 4; ++i) __syncthreads();
        if (threadIdx.x == 0) send(address_in(shared + kReceivedAt, 1), {}, address_in(barrier, 1));
        if (threadIdx.x == 0) arrive_in_cluster(address_in(barrier, 1));
    }
    if (kind == "named") arrive_threads(1, 256), arrive_threads(1, 256);
    if (kind == "left" || kind == "right" || kind == "sums" || kind == "fence" || kind == "product")
        result = multiplied(kind, memory, shared);
    fault.to[rank * 128 + threadIdx.x] = result;
    sync_cluster();
}

// `source` (64, 64) bfloat16 is what boxes are of.
at::Tensor fault(const at::Tensor& source, const std::string& kind) {
    at::Tensor to = at::empty({2, 128}, source.options().dtype(at::kFloat));
    Kernel kernel{"hopper_fault"};
    const Call call{kernel, [&] { return kind; }};
    const char* origin = static_cast<const char*>(source.const_data_ptr()) + (kind == "origin" ? 2 : 0);
    const CUtensorMap map = tensor_map<bf16, 2>(call, origin, {64, 64}, {64}, {kind == "wide" ? 128 : 64, 64}, true);
    launch_clusters(call, faulty_kernel, 1, 1, 2, 128, kBytes, nullptr, Fault{kind, map, to.mutable_data_ptr<float>()});
    return to;
}

}  // namespace
}  // namespace d2llm::hopper

TORCH_LIBRARY_FRAGMENT(d2llm_emulation, m) {
    m.def("hopper_fault(Tensor source, str kind) -> Tensor", &d2llm::hopper::fault);
}
