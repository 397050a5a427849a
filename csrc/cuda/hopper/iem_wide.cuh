// Interaction scores for widths whose hidden values registers cannot hold: see iem_tiles.cuh for the rest.
//
// Columns of W go by 256 at a time, with sums in 128 registers, and along the depth hidden values are formed 64 at a
// time, anew for each 256 columns, in two sets of 16 registers: one is formed while the units read the other. For
// F = 1024 a tile is 268 MFLOP, 65536 cycles of the units, in which 2 MB of W arrive, half of it asked for by each
// block of two, and, for one query, 1 MB of b: 48 bytes a cycle, like a matrix product in tiles of 128 by 256.
#pragma once

#include "iem_tiles.cuh"

namespace d2llm::hopper {

constexpr int kWideColumns = 2 * kColumns;

// The slots of a step along the depth: rows, and W for the first and the second half of the columns.
__device__ __forceinline__ void produce_wide(const Scores& k, Ring ring, uint32_t rank) {
    const int width = k.arguments.pairs.width;
    for (const CUtensorMap* map : {&k.a, &k.b, &k.weight}) prefetch(map);
    for (int64_t pass = cluster_index(); kCluster * pass < k.tiles; pass += clusters()) {
        const Tile tile = tile_of(k, pass, rank);
        for (int row = 0; row < width; row += kWideColumns)
            for (int column = 0; column < width; column += kDepth) {
                copy_rows(k, tile, ring, column);
                ring.advance();
                for (int half = 0; half < 2; ++half, ring.advance())
                    copy_weight(k, ring, column, row + half * kColumns, rank);
            }
    }
}

template <class Hidden>
struct WideProducts {
    static_assert(Hidden::kWidth == kDepth && Hidden::kRowSteps == 1 && Hidden::kWeightSteps == 1 && Hidden::kLead < 0);

    Products c[2];
    Hidden hidden[2];
    int done;  // the slot with the first half of W that is multiplied with

    // One step along the depth, with set SET of hidden values. At its end the products of the step before are over, so
    // that the next step may form the other set.
    template <int SET>
    __device__ __forceinline__ void step(Ring& ring, const Tile& tile, int row, bool first) {
        ring.await();
        hidden[SET].form(0, ring.address() + (row & (tile.wide - 1)) * kRowBytes,
                         ring.address() + kBoxBytes + (row >> tile.shift) * kRowBytes);
        ring.release(ring.slot);
        ring.advance();
        const int start = ring.slot;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            ring.await();
            const uint64_t rows = describe_rows(ring.address());
            fence_products();
#pragma unroll
            for (int unit = 0; unit < 4; ++unit)
                multiply(c[half], hidden[SET].words + 4 * unit, rows + 2 * unit, !first || unit > 0,
                         typename Hidden::Weight{});
            commit_products();
            ring.advance();
        }
        wait_products<2>();
        hidden[1 - SET].hold();
        if (!first) release(ring);
        done = start;
    }

    __device__ __forceinline__ void release(const Ring& ring) const {
        ring.release(done);
        ring.release(done + 1 == kSlots ? 0 : done + 1);
    }

    __device__ __forceinline__ void finish(const Ring& ring) {
        wait_products<0>();
        keep(c[0]);
        keep(c[1]);
        hidden[0].hold();
        hidden[1].hold();
        release(ring);
    }
};

template <class Hidden>
__device__ __forceinline__ void consume_wide(const Scores& k, Ring ring, uint32_t rank, const float4* constants) {
    const int width = k.arguments.pairs.width, row = threadIdx.x / 32 * 16;
    const float out_bias = widen(*static_cast<const typename Hidden::Element*>(k.arguments.branch.out_bias));
    for (int64_t pass = cluster_index(); kCluster * pass < k.tiles; pass += clusters()) {
        const Tile tile = tile_of(k, pass, rank);
        float z[2] = {};
#pragma unroll 1
        for (int column = 0; column < width; column += kWideColumns) {
            WideProducts<Hidden> products;  // the first step sets them
                                            // The width is a multiple of twice the depth of a step.
#pragma unroll 1
            for (int depth = 0; depth < width; depth += 2 * kDepth) {
                products.template step<0>(ring, tile, row, depth == 0);
                products.template step<1>(ring, tile, row, false);
            }
            products.finish(ring);
            add_columns(z, products.c[0], products.hidden[0], constants, column);
            add_columns(z, products.c[1], products.hidden[0], constants, column + kColumns);
        }
        for (int r = 0; r < 2; ++r) {
            const float score = sum_of_quad(z[r]) + out_bias;
            if (threadIdx.x % 4 == 0) write_row(k.arguments, tile, row + Hidden::row() + 8 * r, score);
        }
    }
}

template <class Hidden>
__global__ void __launch_bounds__(kThreads, 1) iem_scores_wide_kernel(const __grid_constant__ Scores k) {
#ifdef D2LLM_SM90A
    char* const memory = swizzled_memory();
    const Ring ring(shared_address(memory));
    float4* constants = reinterpret_cast<float4*>(memory + kConstantsAt);
    set_up<typename Hidden::Element>(k, ring, constants);
    if (threadIdx.x >= 32 * kWarps) {
        shrink_registers<40>();
        if (threadIdx.x == 32 * kWarps) produce_wide(k, ring, rank_in_cluster());
        __syncwarp();
    } else {
        grow_registers<232>();
        consume_wide<Hidden>(k, ring, rank_in_cluster(), constants);
    }
    // The other block writes W into this one's slots and arrives at its barriers until it is done.
    sync_cluster();
#else
    __trap();
#endif
}

}  // namespace d2llm::hopper
