// Interaction scores: z = w2 relu(W relu(a + b) + c) + c2 for a grid of pairs, or for given pairs with their features.
//
// A block takes a tile of pairs through all output columns and keeps a sum a row in registers; only z is written.
#include "branch.cuh"
#include "columns.cuh"
#include "launch.h"

namespace d2llm {
namespace {

struct Scores {
    ScoresArguments arguments;
    int tall;
    bool aligned;  // a, b and weight
    bool vectors;  // bias, out_weight and features
};

// A row's sums over every run of columns that a thread has in a block of them. However many warps lie side by side,
// each sum is of the same columns: a pair scores the same in a grid and given.
template <class S>
using RowSums = float[Sums<S>::kRuns][S::kM][2];

// The rows' sums over all columns, from those of the runs; a row is written by one thread.
template <class E, class S>
__device__ __forceinline__ void write_scores(const ScoresArguments& p, const PairTile& tile, const RowSums<S>& z) {
    constexpr int kRuns = Sums<S>::kRuns;
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int lane = threadIdx.x % 32, row = warp_row<S>() + lane / 4, side = warp_column<S>() / (8 * S::kN);
    for (int run = 0; run < kRuns; ++run)
        for (int m = 0; m < S::kM; ++m)
            for (int r = 0; r < 2; ++r) {
                const float sum = sum_of_quad(z[run][m][r]);
                if (lane % 4 == 0) shared[(side * kRuns + run) * S::kRows + row + 16 * m + 8 * r] = sum;
            }
    __syncthreads();
    for (int local = threadIdx.x; local < S::kRows; local += S::kThreads) {
        float sum = shared[local];
        for (int run = 1; run < S::kWarpsN * kRuns; ++run) sum += shared[run * S::kRows + local];
        sum += widen(*static_cast<const E*>(p.branch.out_bias));
        const int i = local >> tile.shift, j = local & (tile.wide - 1);
        if (i >= tile.queries || j >= tile.passages) continue;
        write_score(p, tile.first_query + i, tile.first_passage + j, sum);
    }
}

template <class E, bool GIVEN>
__global__ void __launch_bounds__(PairShape<E, GIVEN>::kThreads, 2) iem_scores_kernel(const Scores k) {
    using S = PairShape<E, GIVEN>;
    const ScoresArguments& p = k.arguments;
    const PairTile tile = pair_tile(p.pairs, blockIdx.x, k.tall, S::kRows);
    const int width = p.pairs.width;
    RowSums<S> z = {};
    branch_tile<E, GIVEN>(p.pairs, p.branch, tile, k.aligned, [&](int first, const Sums<S>& sums) {
#pragma unroll
        for (int run = 0; run < sums.kRuns; ++run) {
            const int column = first + sums.column(run);
            float bias[8], slope[8], values[8];
            load_run(bias, static_cast<const E*>(p.branch.bias), column, width, k.vectors);
            load_run(slope, static_cast<const E*>(p.branch.out_weight), column, width, k.vectors);
#pragma unroll
            for (int row = 0; row < 2 * S::kM; ++row) {
                const int m = row / 2, r = row % 2;
                sums.get(m, r, run, values);
                for (int i = 0; i < 8; ++i) {
                    values[i] = relu(values[i] + bias[i]);
                    if (column + i < width) z[run][m][r] += values[i] * slope[i];
                }
                if (GIVEN && p.features && sums.row(m, r) < tile.passages) {
                    E* features = static_cast<E*>(p.features) + (tile.first_passage + sums.row(m, r)) * width;
                    store_run(values, features, column, width, k.vectors);
                }
            }
        }
    });
    write_scores<E, S>(p, tile, z);
}

template <class E, bool GIVEN>
void start(const ScoresArguments& p, cudaStream_t stream) {
    using S = PairShape<E, GIVEN>;
    const int tall = tile_queries(p.pairs, S::kRows);
    const bool aligned = rows_aligned<E>(p.pairs) && is_aligned<E>(p.branch.weight, p.branch.weight_stride);
    const bool vectors =
        is_aligned(p.branch.bias) && is_aligned(p.branch.out_weight) && is_aligned<E>(p.features, p.pairs.width);
    launch(iem_scores_kernel<E, GIVEN>, kernels::iem_scores, dim3(tiles_of(p.pairs, S::kRows)), S::kThreads,
           branch_bytes<E, GIVEN>(tall), stream, Scores{p, tall, aligned, vectors}, [&] { return shape_of(p.pairs); });
}

}  // namespace

void iem_scores(const ScoresArguments& arguments, Element element, cudaStream_t stream) {
    with_pairs(arguments.pairs, element,
               [&](auto e, auto given) { start<decltype(e), decltype(given)::value>(arguments, stream); });
}

}  // namespace d2llm
