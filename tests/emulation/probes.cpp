// What tests ask of the emulation: kernels with one fault each, to see that it sees them, and what launches took.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <platform.cuh>
#include <string>

namespace d2llm {
namespace {

struct Fault {
    const float* from;
    float* to;
    std::string kind;
};

void faulty_kernel(const Fault fault) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int thread = threadIdx.x;
    if (fault.kind == "guard") shared[64 + thread] = 0;
    if (fault.kind == "barrier" && thread < 32) __syncwarp();
    if (fault.kind == "barrier" && thread % 2) return;
    if (fault.kind == "alignment") copy16(reinterpret_cast<char*>(shared + 1), fault.from, 16);
    for (int i = 0; fault.kind == "spin" && i < 2000; ++i) pause();
    if (fault.kind == "race") {
        shared[0] = static_cast<float>(thread);
        __syncthreads();
        fault.to[thread] = shared[0];
    }
    if (fault.kind == "copy" || fault.kind == "waited") {
        if (thread < 16) copy16(reinterpret_cast<char*>(shared + 4 * thread), fault.from + 4 * thread, 16);
        commit_copies();
        if (fault.kind == "waited") wait_copies<0>();
        __syncthreads();
        fault.to[thread] = shared[thread];
    }
    if (fault.kind == "barrier") __syncwarp();
    if (fault.kind == "product") {
        // from[8] plus the sum of from[0] to from[7].
        const uint32_t one = __float_as_uint(1), *terms = reinterpret_cast<const uint32_t*>(fault.from);
        float sums[4] = {fault.from[8], 0, 0, 0};
        mma_words(sums, {terms[thread % 4], 0, terms[4 + thread % 4], 0}, one, one, float{});
        fault.to[thread] = sums[0];
    }
}

at::Tensor fault(const at::Tensor& from, const std::string& kind) {
    at::Tensor to = at::empty_like(from);
    Kernel kernel{"fault"};
    launch(faulty_kernel, kernel, dim3(1), 64, 256, nullptr,
           Fault{from.const_data_ptr<float>(), to.mutable_data_ptr<float>(), kind}, [&] { return kind; });
    return to;
}

}  // namespace
}  // namespace d2llm

TORCH_LIBRARY(d2llm_emulation, m) {
    m.def("fault(Tensor source, str kind) -> Tensor", &d2llm::fault);
    m.def("largest_shared() -> int", [] { return static_cast<int64_t>(emulation::Machine::get().largest_shared()); });
}
