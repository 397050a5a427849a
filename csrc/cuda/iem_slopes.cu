// First kernel of the interaction's backward: pre = W relu(a + b) + c made again, and from it
// dpre = (dz w2 + dfeatures) [pre > 0], with the column sums that are the gradients of c and w2. Every row of warps
// writes sums of its own, which the caller adds up in order.
#include "branch.cuh"
#include "columns.cuh"
#include "launch.h"

namespace d2llm {
namespace {

struct Slopes {
    SlopesArguments arguments;
    int tall;
    bool aligned;  // a, b and weight
    bool vectors;  // bias, out_weight, dfeatures and dpre
};

// A run of eight columns: their slopes, and the sums over the rows of this thread.
template <class E, class S>
struct Run {
    float bias[8], out_weight[8], dbias[8] = {}, dout_weight[8] = {};

    // `pre` becomes the slope of a row inside the tile.
    __device__ __forceinline__ void add(float (&pre)[8], float dz, const float (&dfeatures)[8]) {
        for (int i = 0; i < 8; ++i) {
            pre[i] += bias[i];
            dout_weight[i] += dz * relu(pre[i]);
            pre[i] = pre[i] > 0 ? dz * out_weight[i] + dfeatures[i] : 0.0f;
            dbias[i] += pre[i];
        }
    }
};

template <class E, bool GIVEN>
__global__ void __launch_bounds__(PairShape<E, GIVEN>::kThreads, 2) iem_slopes_kernel(const Slopes k) {
    using S = PairShape<E, GIVEN>;
    const SlopesArguments& p = k.arguments;
    const PairTile tile = pair_tile(p.pairs, blockIdx.x, k.tall, S::kRows);
    const int width = p.pairs.width;
    float dz[2 * S::kM];
    int64_t pair[2 * S::kM];
    for (int row = 0; row < 2 * S::kM; ++row) {
        const int local = Sums<S>::row(row / 2, row % 2), i = local >> tile.shift, j = local & (tile.wide - 1);
        const int64_t query = tile.first_query + i, passage = tile.first_passage + j;
        const bool inside = i < tile.queries && j < tile.passages;
        pair[row] = inside ? query * p.pairs.passages + passage : -1;
        dz[row] = inside ? static_cast<const float*>(p.dz)[query * p.dz_stride + passage] : 0.0f;
    }
    branch_tile<E, GIVEN>(p.pairs, p.branch, tile, k.aligned, [&](int first, const Sums<S>& sums) {
#pragma unroll
        for (int run = 0; run < sums.kRuns; ++run) {
            const int column = first + sums.column(run);
            Run<E, S> sides;
            load_run(sides.bias, static_cast<const E*>(p.branch.bias), column, width, k.vectors);
            load_run(sides.out_weight, static_cast<const E*>(p.branch.out_weight), column, width, k.vectors);
#pragma unroll
            for (int row = 0; row < 2 * S::kM; ++row) {
                if (pair[row] < 0) continue;
                float values[8], dfeatures[8] = {};
                sums.get(row / 2, row % 2, run, values);
                if (GIVEN && p.dfeatures)
                    load_run(dfeatures, static_cast<const E*>(p.dfeatures) + pair[row] * width, column, width,
                             k.vectors);
                sides.add(values, dz[row], dfeatures);
                store_run(values, static_cast<E*>(p.dpre) + pair[row] * width, column, width, k.vectors);
            }
            const int64_t target = (blockIdx.x * int64_t{S::kWarpsM} + threadIdx.x / 32 % S::kWarpsM) * width;
            for (int i = 0; i < 8; ++i) {
                const float dbias = sum_of_rows(sides.dbias[i]), dout_weight = sum_of_rows(sides.dout_weight[i]);
                if (threadIdx.x % 32 >= 4 || column + i >= width) continue;
                p.dbias[target + column + i] = dbias;
                p.dout_weight[target + column + i] = dout_weight;
            }
        }
    });
}

template <class E, bool GIVEN>
void start(const SlopesArguments& p, cudaStream_t stream) {
    using S = PairShape<E, GIVEN>;
    const int tall = tile_queries(p.pairs, S::kRows);
    const bool aligned = rows_aligned<E>(p.pairs) && is_aligned<E>(p.branch.weight, p.branch.weight_stride);
    const bool vectors = is_aligned(p.branch.bias) && is_aligned(p.branch.out_weight) &&
                         is_aligned<E>(p.dfeatures, p.pairs.width) && is_aligned<E>(p.dpre, p.pairs.width);
    launch(iem_slopes_kernel<E, GIVEN>, kernels::iem_slopes, dim3(tiles_of(p.pairs, S::kRows)), S::kThreads,
           branch_bytes<E, GIVEN>(tall), stream, Slopes{p, tall, aligned, vectors}, [&] { return shape_of(p.pairs); });
}

}  // namespace

int64_t slopes_tiles(const Pairs& pairs, Element element) {
    int64_t rows = 0;
    with_pairs(pairs, element, [&](auto e, auto given) {
        using S = PairShape<decltype(e), decltype(given)::value>;
        rows = S::kWarpsM * tiles_of(pairs, S::kRows);
    });
    return rows;
}

void iem_slopes(const SlopesArguments& arguments, Element element, cudaStream_t stream) {
    with_pairs(arguments.pairs, element,
               [&](auto e, auto given) { start<decltype(e), decltype(given)::value>(arguments, stream); });
}

}  // namespace d2llm
