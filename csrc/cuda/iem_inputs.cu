// Second kernel of the interaction's backward: dh = dpre W [h > 0], summed over queries for db and over passages for da
// while it is in registers.
//
// A block takes a tile of passages and a block of columns against `share` queries, one after the other. Sums over a
// row of warps go to da, sums over the queries to db; the caller adds up the parts in order.
#include "branch.cuh"
#include "columns.cuh"
#include "launch.h"

namespace d2llm {
namespace {

template <class E>
constexpr int kBuffer = (InputsShape<E>::kRows + InputsShape<E>::kColumns) * kPitch;

struct Inputs {
    InputsArguments arguments;
    bool aligned;  // dpre and the transposed weight
    bool vectors;  // a, b, da and db
};

// Drops the part of dh that relu(a + b) stops, adds the rest to the sums of db, and writes the sums of da.
template <class E, bool GIVEN, class Tile>
__device__ __forceinline__ void finish_query(const Inputs& k, int64_t first_passage, int64_t query, int first,
                                             Sums<Tile>& dh, Sums<Tile>& total) {
    const InputsArguments& p = k.arguments;
    const int width = p.pairs.width;
#pragma unroll
    for (int run = 0; run < dh.kRuns; ++run) {
        const int column = first + dh.column(run);
        float left[8], right[8], sum[8] = {};
        if (!GIVEN)
            load_run(left, static_cast<const E*>(p.pairs.a) + query * p.pairs.a_stride, column, width, k.vectors);
#pragma unroll
        for (int row = 0; row < 2 * Tile::kM; ++row) {
            const int64_t passage = first_passage + dh.row(row / 2, row % 2);
            if (passage >= p.pairs.passages) continue;
            load_run(right, static_cast<const E*>(p.pairs.b) + passage * p.pairs.b_stride, column, width, k.vectors);
            if (GIVEN)
                load_run(left, static_cast<const E*>(p.pairs.a) + passage * p.pairs.a_stride, column, width, k.vectors);
            for (int i = 0; i < 8; ++i) {
                const int n = 4 * run + i / 2, at = row % 2 * 2 + i % 2;
                const float kept = left[i] + right[i] > 0 ? dh.products[row / 2][n][at] : 0.0f;
                sum[i] += kept;
                total.products[row / 2][n][at] += kept;
            }
        }
        if (GIVEN) continue;
        const int64_t parts = gridDim.x * int64_t{Tile::kWarpsM};
        const int64_t part = blockIdx.x * int64_t{Tile::kWarpsM} + threadIdx.x / 32 % Tile::kWarpsM;
        for (float& value : sum) value = sum_of_rows(value);
        if (threadIdx.x % 32 < 4) store_run(sum, p.da + (query * parts + part) * width, column, width, k.vectors);
    }
}

template <class E, bool GIVEN>
__global__ void __launch_bounds__(InputsShape<E>::kThreads, 1) iem_inputs_kernel(const Inputs k) {
    using Tile = InputsShape<E>;
    const InputsArguments& p = k.arguments;
    const int width = p.pairs.width, first = blockIdx.y * Tile::kColumns;
    const int64_t first_passage = int64_t{blockIdx.x} * Tile::kRows, first_query = blockIdx.z * p.share;
    const int64_t left = p.pairs.queries - first_query;
    const int64_t queries = GIVEN ? 1 : left < p.share ? left : p.share;
    const int chunks = (width * int(sizeof(E)) + kChunk - 1) / kChunk;
    Sums<Tile> dh, total;
    total.clear();
    pipeline<kInputsStages>(
        static_cast<int>(queries) * chunks,
        [&](int step, int b) {
            char* rows = shared_memory() + b * kBuffer<E>;
            const int64_t at = int64_t{step % chunks} * kChunk;
            const int64_t start = (first_query + step / chunks) * p.pairs.passages + first_passage;
            stage<E, Tile::kThreads, kChunk>(
                rows, Tile::kRows, kPitch, p.dpre, width * int64_t{sizeof(E)} - at, k.aligned, [&](int row) {
                    const char* from = static_cast<const char*>(p.dpre) + at;
                    const bool known = first_passage + row < p.pairs.passages;
                    return known ? from + (start + row) * width * int64_t{sizeof(E)} : nullptr;
                });
            stage_placed<E, Tile::kThreads, Tile::kColumns>(rows + Tile::kRows * kPitch, p.transposed, width, first,
                                                            width, at, width, k.aligned);
        },
        [&](int step, int b) {
            const char* rows = shared_memory() + b * kBuffer<E>;
            if (step % chunks == 0) dh.clear();
#pragma unroll(kUnrolled<E>)
            for (int at = 0; at < kChunk; at += kUnit) {
                Left<E> slopes[Tile::kM];
#pragma unroll
                for (int m = 0; m < Tile::kM; ++m) {
                    uint32_t words[4];
                    load_rows(words, rows + (warp_row<Tile>() + 16 * m) * kPitch + at, kPitch);
                    slopes[m] = Left<E>(words);
                }
                dh.add(slopes, rows + Tile::kRows * kPitch, at);
            }
            if (step % chunks == chunks - 1)
                finish_query<E, GIVEN>(k, first_passage, first_query + step / chunks, first, dh, total);
        });
#pragma unroll
    for (int row = 0; row < 2 * Tile::kM; ++row)
        for (int run = 0; run < total.kRuns; ++run) {
            const int64_t passage = first_passage + total.row(row / 2, row % 2);
            if (passage >= p.pairs.passages) continue;
            float values[8];
            total.get(row / 2, row % 2, run, values);
            float* db = p.db + (blockIdx.z * p.pairs.passages + passage) * width;
            store_run(values, db, first + total.column(run), width, k.vectors);
        }
}

template <class E, bool GIVEN>
void start(const InputsArguments& p, cudaStream_t stream) {
    using Tile = InputsShape<E>;
    const int64_t width = p.pairs.width, queries = GIVEN ? 1 : p.pairs.queries;
    const dim3 grid((p.pairs.passages + Tile::kRows - 1) / Tile::kRows, (width + Tile::kColumns - 1) / Tile::kColumns,
                    (queries + p.share - 1) / p.share);
    const bool aligned = is_aligned<E>(p.dpre, width) && is_aligned<E>(p.transposed, width);
    const bool vectors = rows_aligned<E>(p.pairs) && is_aligned<float>(p.da, width) && is_aligned<float>(p.db, width);
    launch(iem_inputs_kernel<E, GIVEN>, kernels::iem_inputs, grid, Tile::kThreads, size_t{kInputsStages} * kBuffer<E>,
           stream, Inputs{p, aligned, vectors}, [&] { return shape_of(p.pairs); });
}

}  // namespace

InputsPlan inputs_plan(const Pairs& pairs, Element element) {
    InputsPlan plan{};
    with_element(element, [&](auto e) {
        using Tile = InputsShape<decltype(e)>;
        const int64_t tiles = (pairs.passages + Tile::kRows - 1) / Tile::kRows;
        plan = {tiles * Tile::kWarpsM, tiles * ((pairs.width + Tile::kColumns - 1) / Tile::kColumns)};
    });
    return plan;
}

void iem_inputs(const InputsArguments& arguments, Element element, cudaStream_t stream) {
    with_pairs(arguments.pairs, element,
               [&](auto e, auto given) { start<decltype(e), decltype(given)::value>(arguments, stream); });
}

}  // namespace d2llm
