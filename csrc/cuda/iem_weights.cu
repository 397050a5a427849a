// Third kernel of the interaction's backward: dW = dpreᵀ relu(a + b), the sum over pairs.
//
// Both operands have the pairs as their depth, which lie in the rows of memory: half precision is transposed on the way
// to the registers. A block keeps a tile of dW for its share of the pairs.
#include "branch.cuh"
#include "launch.h"

namespace d2llm {
namespace {

using Tile = WeightsShape;

template <class E>
struct Layout {
    static constexpr int kPairs = kWeightsUnits * kDepth<E>;  // of a step
    static constexpr int kBytes = Tile::kRows * sizeof(E), kPitch = kBytes + kPiece;
    static_assert(Tile::kRows == Tile::kColumns);

    char* dpre;
    char* right;
    char* left;

    __device__ __forceinline__ explicit Layout(char* memory)
        : dpre(memory), right(memory + kPairs * kPitch), left(memory + 2 * kPairs * kPitch) {}

    template <bool GIVEN>
    static constexpr size_t kTotal = (2 * kPairs + (GIVEN ? kPairs : 1)) * size_t{kPitch};
};

struct Weights {
    WeightsArguments arguments;
    bool aligned;
};

// The pairs of a step: neighbours in a row of the grid, so that they share their query.
struct Step {
    int64_t query, passage;
    int count;
};

template <class E, bool GIVEN>
__device__ __forceinline__ void fill(const Weights& k, const Step& step, int row, int column, Layout<E> to) {
    const WeightsArguments& p = k.arguments;
    constexpr int64_t kSize = sizeof(E);
    const int64_t width = p.pairs.width, first = step.query * p.pairs.passages + step.passage;
    const auto rows = [&](char* target, const void* from, int count, int64_t start, int64_t stride, int at, int known) {
        const char* origin = static_cast<const char*>(from) + start * stride * kSize + at * kSize;
        stage<E, Tile::kThreads, Layout<E>::kBytes>(
            target, count, Layout<E>::kPitch, from, (width - at) * kSize, k.aligned,
            [&](int r) { return r < known ? origin + r * stride * kSize : nullptr; });
    };
    rows(to.dpre, p.dpre, Layout<E>::kPairs, first, width, row, step.count);
    rows(to.right, p.pairs.b, Layout<E>::kPairs, step.passage, p.pairs.b_stride, column, step.count);
    if (GIVEN)
        rows(to.left, p.pairs.a, Layout<E>::kPairs, step.passage, p.pairs.a_stride, column, step.count);
    else
        rows(to.left, p.pairs.a, 1, step.query, p.pairs.a_stride, column, 1);
}

// Hidden values of a unit of pairs as right operands, for 16 columns from byte `at` of the rows on.
template <class E, bool GIVEN>
__device__ __forceinline__ void hidden(uint32_t (&words)[4], const Layout<E>& from, int unit, int at) {
    constexpr int kPitch = Layout<E>::kPitch;
    const int offset = unit * kDepth<E> * kPitch + at;
    load_columns_transposed<E>(words, from.right + offset, kPitch);
    uint32_t other[4];
    if constexpr (GIVEN) {
        load_columns_transposed<E>(other, from.left + offset, kPitch);
    } else {
        for (int i = 0; i < 2; ++i) {
            using Word = Bits<sizeof(E)>;
            const char* query = from.left + at + (8 * i + threadIdx.x % 32 / 4) * sizeof(E);
            const uint32_t value = *reinterpret_cast<const Word*>(query);
            other[2 * i] = other[2 * i + 1] = sizeof(E) == 2 ? value | value << 16 : value;
        }
    }
    for (int i = 0; i < 4; ++i) words[i] = add_relu(other[i], words[i], E{});
}

template <class E, bool GIVEN>
__device__ __forceinline__ void multiply_step(const Layout<E>& from, float (&sums)[Tile::kM][Tile::kN][4]) {
    constexpr int kPitch = Layout<E>::kPitch;
#pragma unroll(kUnrolled<E>)
    for (int unit = 0; unit < kWeightsUnits; ++unit) {
        Left<E> slopes[Tile::kM];
#pragma unroll
        for (int m = 0; m < Tile::kM; ++m) {
            uint32_t words[4];
            const int at = (warp_row<Tile>() + 16 * m) * sizeof(E);
            load_rows_transposed<E>(words, from.dpre + unit * kDepth<E> * kPitch + at, kPitch);
            slopes[m] = Left<E>(words);
        }
#pragma unroll
        for (int n = 0; n < Tile::kN; n += 2) {
            uint32_t words[4];
            hidden<E, GIVEN>(words, from, unit, (warp_column<Tile>() + 8 * n) * sizeof(E));
            const Right<E> one(words), two(words + 2);
#pragma unroll
            for (int m = 0; m < Tile::kM; ++m) {
                multiply<E>(sums[m][n], slopes[m], one);
                multiply<E>(sums[m][n + 1], slopes[m], two);
            }
        }
    }
}

template <class E, bool GIVEN>
__global__ void __launch_bounds__(Tile::kThreads, 1) iem_weights_kernel(const Weights k) {
    const WeightsArguments& p = k.arguments;
    constexpr int kPairs = Layout<E>::kPairs;
    const int64_t across = (p.pairs.passages + kPairs - 1) / kPairs, steps = (GIVEN ? 1 : p.pairs.queries) * across;
    const int64_t share = (steps + p.groups - 1) / p.groups, begin = blockIdx.z * share;
    const int64_t left = steps - begin;
    const int row = blockIdx.x * Tile::kRows, column = blockIdx.y * Tile::kColumns, width = p.pairs.width;
    float sums[Tile::kM][Tile::kN][4] = {};
    const auto buffer = [&](int b) { return Layout<E>(shared_memory() + b * Layout<E>::template kTotal<GIVEN>); };
    pipeline<kWeightsStages>(
        static_cast<int>(left < share ? (left > 0 ? left : 0) : share),
        [&](int step, int b) {
            const int64_t index = begin + step, passage = index % across * kPairs, rest = p.pairs.passages - passage;
            const Step pairs{index / across, passage, static_cast<int>(rest < kPairs ? rest : kPairs)};
            fill<E, GIVEN>(k, pairs, row, column, buffer(b));
        },
        [&](int step, int b) { multiply_step<E, GIVEN>(buffer(b), sums); });
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < Tile::kM; ++m)
#pragma unroll
        for (int n = 0; n < Tile::kN; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = row + warp_row<Tile>() + 16 * m + i / 2 * 8 + lane / 4;
                const int to = column + warp_column<Tile>() + 8 * n + lane % 4 * 2 + i % 2;
                if (at < width && to < width)
                    p.dweight[(int64_t{blockIdx.z} * width + at) * width + to] += sums[m][n][i];
            }
}

template <class E, bool GIVEN>
void start(const WeightsArguments& p, cudaStream_t stream) {
    const unsigned tiles = (p.pairs.width + Tile::kRows - 1) / Tile::kRows;
    const bool aligned = rows_aligned<E>(p.pairs) && is_aligned<E>(p.dpre, p.pairs.width);
    launch(iem_weights_kernel<E, GIVEN>, kernels::iem_weights, dim3(tiles, tiles, p.groups), Tile::kThreads,
           kWeightsStages * Layout<E>::template kTotal<GIVEN>, stream, Weights{p, aligned},
           [&] { return shape_of(p.pairs); });
}

}  // namespace

int64_t weights_blocks(int width) {
    const int64_t tiles = (width + Tile::kRows - 1) / Tile::kRows;
    return tiles * tiles;
}

void iem_weights(const WeightsArguments& arguments, Element element, cudaStream_t stream) {
    with_pairs(arguments.pairs, element,
               [&](auto e, auto given) { start<decltype(e), decltype(given)::value>(arguments, stream); });
}

}  // namespace d2llm
