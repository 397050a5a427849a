// Interaction scores in half precision; iem_tiles.cuh and iem_wide.cuh have the kernels.
#include "iem_tiles.cuh"
#include "iem_wide.cuh"
#include "launch.h"

namespace d2llm {
namespace hopper {
namespace {

// relu(a + b) of the thread's rows as operands of half precision.
template <class E, int WIDTH>
struct HalfHidden {
    using Element = E;
    using Weight = E;
    static constexpr int kWidth = WIDTH, kRowSteps = WIDTH / kDepth, kWeightSteps = WIDTH / kDepth;
    static constexpr bool kScaled = false;
    static constexpr int kLead = lead<WIDTH>(kRowSteps, kWeightSteps);

    uint32_t words[WIDTH / 4];

    __device__ __forceinline__ static int row() { return threadIdx.x % 32 / 4; }

    __device__ __forceinline__ void form(int step, uint32_t rows, uint32_t query) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int unit = 0; unit < 4; ++unit) {
            uint32_t sum[4];
            load_matrices(sum, rows + swizzled(lane % 16, 2 * unit + lane / 16));
            const uint32_t left = load_word(query + unit * kUnit + lane % 4 * 4);
            const uint32_t right = load_word(query + unit * kUnit + lane % 4 * 4 + 16);
#pragma unroll
            for (int i = 0; i < 4; ++i) words[16 * step + 4 * unit + i] = add_relu(i < 2 ? left : right, sum[i], E{});
        }
    }

    __device__ __forceinline__ void finish() {}

    __device__ __forceinline__ void hold() const { hopper::hold(words); }
};

}  // namespace
}  // namespace hopper

namespace hopper {
namespace {

constexpr int kWidest = 2048;  // whose bias and slope still find room in shared memory

bool is_wide(int width) { return width > 512 && width <= kWidest && width % kWideColumns == 0; }

template <class E>
void start_half(const Call& call, const ScoresArguments& p, cudaStream_t stream) {
    if (is_wide(p.pairs.width))
        return start<E, E>(call, iem_scores_wide_kernel<HalfHidden<E, kDepth>>, p, nullptr, stream);
    with_width(p.pairs.width,
               [&](auto width) { start<E, E>(call, iem_scores_kernel<HalfHidden<E, width()>>, p, nullptr, stream); });
}

}  // namespace
}  // namespace hopper

bool hopper_iem_scores_takes(const ScoresArguments& p, Element element) {
    const int width = p.pairs.width;
    return element != Element::kFloat32 && hopper::takes_pairs<bf16>(p) &&
           is_aligned<bf16>(p.branch.weight, p.branch.weight_stride) &&
           (hopper::is_wide(width) || hopper::with_width(width, [](auto) {}));
}

void hopper_iem_scores(const ScoresArguments& p, Element element, cudaStream_t stream) {
    const hopper::Call call{kernels::hopper_iem_scores, [&] { return shape_of(p.pairs); }};
    if (!hopper_iem_scores_takes(p, element)) call.check(cudaErrorInvalidValue);
    with_half(element, [&](auto e) { hopper::start_half<decltype(e)>(call, p, stream); });
}

}  // namespace d2llm
