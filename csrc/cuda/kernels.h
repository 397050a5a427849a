// The kernels by name, and how often each was launched since the library was loaded: a call may go to one or another,
// and tests and reports say which it was.
#pragma once

#include <atomic>
#include <cstdint>

namespace d2llm {

struct Kernel {
    const char* name;
    std::atomic<int64_t> launches{0};

    void count() { launches.fetch_add(1, std::memory_order_relaxed); }
};

namespace kernels {

inline Kernel iem_scores{"iem_scores"}, iem_slopes{"iem_slopes"}, iem_inputs{"iem_inputs"}, iem_weights{"iem_weights"},
    pool_forward{"pool_forward"}, pool_products{"pool_products"}, pool_softmax{"pool_softmax"},
    pool_gradients{"pool_gradients"}, hopper_iem_scores{"hopper_iem_scores"},
    hopper_iem_scores_fp8{"hopper_iem_scores_fp8"}, hopper_pool_forward{"hopper_pool_forward"};

inline const Kernel* const all[] = {
    &iem_scores,   &iem_slopes,     &iem_inputs,        &iem_weights,           &pool_forward,       &pool_products,
    &pool_softmax, &pool_gradients, &hopper_iem_scores, &hopper_iem_scores_fp8, &hopper_pool_forward};

}  // namespace kernels
}  // namespace d2llm
