// Interaction scores with the square layer in e4m3; iem_tiles.cuh has the kernel, arguments.h the scaling.
//
// With e4m3 a tile of F = 512 takes 8192 cycles of the units, in which 256 KB of W and, for one query, 128 KB of b
// arrive: up to 48 bytes a cycle.
#include "arguments.h"
#include "iem_tiles.cuh"
#include "launch.h"

namespace d2llm {
namespace hopper {
namespace {

__device__ __forceinline__ float power_of_two(int exponent) { return __uint_as_float((exponent + 127) << 23); }

// Four elements of half precision, times scale, in e4m3.
__device__ __forceinline__ uint32_t narrow_four(uint32_t first, uint32_t second, float scale) {
    const auto low = [&](uint32_t word) { return __uint_as_float(word << 16) * scale; };
    const auto high = [&](uint32_t word) { return __uint_as_float(word & 0xffff0000) * scale; };
    const uint16_t lower = narrow_two(low(first), high(first), e4m3{});
    const uint16_t upper = narrow_two(low(second), high(second), e4m3{});
    return uint32_t{upper} << 16 | lower;
}

// relu(a + b) of the thread's rows, first in bfloat16, then scaled in e4m3.
template <int WIDTH>
struct Fp8Hidden {
    using Element = bf16;
    using Weight = e4m3;
    static constexpr int kWidth = WIDTH;
    static constexpr int kRowSteps = WIDTH / kDepth, kWeightSteps = WIDTH / kRowBytes;
    static constexpr bool kScaled = true;
    static constexpr int kLead = lead<WIDTH>(kRowSteps, kWeightSteps);

    uint32_t wide[WIDTH / 4];  // of 16 columns: row, row, row + 8, row + 8
    uint32_t words[WIDTH / 8];
    uint32_t peak[2];  // the largest elements of even and odd columns so far, by row
    float scale[2];    // what the products of e4m3 are to be multiplied with

    // An operand's row of a quad takes 32 bytes of one row of shared memory. Which row of the tile that is may be
    // chosen: with every second one, the four quads that are read together find them in different banks.
    __device__ __forceinline__ static int row() { return threadIdx.x % 16 / 4 * 2 + threadIdx.x % 32 / 16; }

    __device__ __forceinline__ void form(int step, uint32_t rows, uint32_t query) {
        const int t = threadIdx.x % 4;
#pragma unroll
        for (int unit = 0; unit < 4; ++unit) {
            const uint2 left = load_pair(query + unit * kUnit + t * 8);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const uint2 right = load_pair(rows + swizzled(row() + 8 * r, 2 * unit + t / 2) + t % 2 * 8);
                const uint32_t first = add_relu(left.x, right.x, bf16{}), second = add_relu(left.y, right.y, bf16{});
                wide[16 * step + 4 * unit + 2 * r] = first;
                wide[16 * step + 4 * unit + 2 * r + 1] = second;
                peak[r] = step + unit > 0 ? larger(peak[r], larger(first, second)) : larger(first, second);
            }
        }
    }

    // The largest element of a row, whose columns a quad holds; NaN where one is.
    __device__ __forceinline__ float largest(int r) const {
        uint32_t word = peak[r];
        word = larger(word, __shfl_xor_sync(0xffffffff, word, 1));
        word = larger(word, __shfl_xor_sync(0xffffffff, word, 2));
        return __uint_as_float(larger(word, word << 16 | word >> 16) & 0xffff0000);
    }

    __device__ __forceinline__ void finish() {
        float inverse[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            // 1.75 times 2^8 is the largest e4m3 number. Below 2^-110 the elements may as well lose digits.
            const uint32_t bits = __float_as_uint(largest(r));
            const int exponent = max(static_cast<int>(bits >> 23 & 0xff) - 127, -110);
            const int shift = (bits & 0x7fffff) > 0x600000 ? 7 : 8;
            scale[r] = exponent == 128 ? __uint_as_float(0x7fc00000) : power_of_two(exponent - shift);
            inverse[r] = power_of_two(shift - exponent);
        }
#pragma unroll
        for (int i = 0; i < WIDTH / 8; ++i) words[i] = narrow_four(wide[2 * i], wide[2 * i + 1], inverse[i % 2]);
    }

    __device__ __forceinline__ void hold() const { hopper::hold(words); }
};

}  // namespace
}  // namespace hopper

bool hopper_iem_scores_fp8_takes(const Fp8ScoresArguments& p) {
    return hopper::takes_pairs<bf16>(p.scores) && hopper::with_width(p.scores.pairs.width, [](auto) {}) &&
           p.weight_scale && is_aligned<uint8_t>(p.scores.branch.weight, p.scores.branch.weight_stride);
}

void hopper_iem_scores_fp8(const Fp8ScoresArguments& p, cudaStream_t stream) {
    const hopper::Call call{kernels::hopper_iem_scores_fp8, [&] { return shape_of(p.scores.pairs); }};
    if (!hopper_iem_scores_fp8_takes(p)) call.check(cudaErrorInvalidValue);
    hopper::with_width(p.scores.pairs.width, [&](auto width) {
        using Hidden = hopper::Fp8Hidden<width()>;
        hopper::start<bf16, hopper::e4m3>(call, hopper::iem_scores_kernel<Hidden>, p.scores, p.weight_scale, stream);
    });
}

}  // namespace d2llm
