// Interaction scores with the square layer on the tensor cores' asynchronous units (wgmma).
//
// A block takes tiles of 128 pairs, two warpgroups of 64. Hidden values relu(a + b) are formed once a tile and stay in
// registers as left operands (F = 512 in half precision: 128 words a thread) while W streams by: for each 128 columns
// the sums fill 64 more, and their relu and the product with w2 are taken where they are, so that a pair leaves one
// float. No sum crosses a warp: a score depends on its pair alone, in an order that is always the same.
//
// What moves, for F = 512 in half precision: a tile is 67 MFLOP, 16384 cycles of the units. W is 512 KB of it, 32 bytes
// a cycle into shared memory; two blocks take different tiles against the same W and each fetches half for both, so
// that the second-level cache gives 16 bytes a cycle and multiprocessor. Rows of b are 128 KB more for one query, and
// 18 KB where eight queries meet sixteen passages. Keeping slices of W in shared memory instead (128 columns a block of
// four) moves as many bytes for one query, since then every block reads every row of b, but each block forms the hidden
// values anew and reads b's rows through shared memory for it: 25 to 40 % of its bandwidth, of which the units take
// half.
//
// A ring of slots holds both: first the chunks of the tile's rows, then those of W. It runs on over tiles, so that
// rows of the next tile arrive during the last columns of this one.
#pragma once

#include <hopper/platform.cuh>

#include "../pairs.cuh"
#include "tensor_map.h"

namespace d2llm::hopper {

constexpr int kCluster = 2;
constexpr int kRows = 128;     // pairs of a tile
constexpr int kColumns = 128;  // output columns of a product
constexpr int kDepth = 64;     // elements of a and b in a slot
constexpr int kSlots = 12;
constexpr int kWarps = 8;  // that multiply; of a third warpgroup one thread asks for copies
constexpr int kThreads = 32 * (kWarps + 4);
constexpr int kBoxBytes = 128 * kRowBytes;
constexpr int kSlotBytes = kBoxBytes + kMaxTall * kRowBytes;  // passages or W, then queries

struct Scores {
    ScoresArguments arguments;
    const float* weight_scale;  // of rows of an e4m3 weight
    int tall;
    int64_t tiles;
    CUtensorMap a, b, weight;
};

// Slots of shared memory in turn, each with two barriers: one counts its bytes, the other the warps of the whole
// cluster that are done with it: a slot of W is filled from both blocks, so it has to be free in both.
struct Ring {
    static constexpr int kFullAt = kSlots * kSlotBytes, kEmptyAt = kFullAt + kSlots * kBarrierBytes;

    uint32_t slots;
    uint32_t cluster_slots;  // where block 0 has its slots to lane 0, and block 1 to lane 1
    int slot = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ explicit Ring(uint32_t shared)
        : slots(shared), cluster_slots(address_in(shared, threadIdx.x % kCluster)) {}

    __device__ __forceinline__ uint32_t address() const { return slots + slot * kSlotBytes; }
    __device__ __forceinline__ uint32_t arrival() const { return slots + kFullAt + slot * kBarrierBytes; }
    __device__ __forceinline__ void await() const { wait(arrival(), parity); }
    __device__ __forceinline__ void await_room() const { wait(slots + kEmptyAt + slot * kBarrierBytes, parity ^ 1); }

    __device__ __forceinline__ void advance() {
        if (++slot < kSlots) return;
        slot = 0;
        parity ^= 1;
    }

    // Called by a warp that has read slot `done` to the end.
    __device__ __forceinline__ void release(int done) const {
        __syncwarp();
        if (threadIdx.x % 32 < kCluster) arrive_in_cluster(cluster_slots + kEmptyAt + done * kBarrierBytes);
    }
};

// Steps of the first columns after which the warpgroup that leads lets the other one start, less one; -1 where a tile
// has so few steps that it could come by twice before the other one has seen it.
template <int WIDTH>
constexpr int lead(int row_steps, int weight_steps) {
    const int step = weight_steps / 2 - 1;
    return row_steps + WIDTH / kColumns * weight_steps + step >= kSlots ? step : -1;
}

// Of two columns: bias, bias, slope, slope; then, of an e4m3 weight, the scales of two columns.
constexpr size_t kConstantsAt = size_t{kSlots} * (kSlotBytes + 2 * kBarrierBytes);

// The pairs of a tile, in the numbers that coordinates of the copy engine have.
struct Tile {
    int first_query, first_passage, queries, passages, wide, shift;
};

// The last one of a block may lie behind all queries: then it reads zeros and writes nothing.
__device__ __forceinline__ Tile tile_of(const Scores& k, int64_t pass, uint32_t rank) {
    const PairTile tile = pair_tile(k.arguments.pairs, kCluster * pass + rank, k.tall, kRows);
    return {static_cast<int>(tile.first_query),
            static_cast<int>(tile.first_passage),
            static_cast<int>(tile.queries),
            static_cast<int>(tile.passages),
            tile.wide,
            tile.shift};
}

__device__ __forceinline__ void copy_rows(const Scores& k, const Tile& tile, const Ring& ring, int column) {
    ring.await_room();
    arrive_expecting(ring.arrival(), (tile.wide + k.tall) * kRowBytes);
    copy_box(ring.address(), &k.b, column, tile.first_passage, ring.arrival());
    copy_box(ring.address() + kBoxBytes, &k.a, column, tile.first_query, ring.arrival());
}

// This block's share of kColumns rows of W from `row` on, to both blocks.
__device__ __forceinline__ void copy_weight(const Scores& k, const Ring& ring, int column, int row, uint32_t rank) {
    constexpr int kShare = kColumns / kCluster;
    ring.await_room();
    arrive_expecting(ring.arrival(), kBoxBytes);
    copy_box_to((1 << kCluster) - 1, ring.address() + rank * kShare * kRowBytes, &k.weight, column, row + rank * kShare,
                ring.arrival());
}

template <class Hidden>
__device__ __forceinline__ void produce(const Scores& k, Ring ring, uint32_t rank) {
    for (const CUtensorMap* map : {&k.a, &k.b, &k.weight}) prefetch(map);
    for (int64_t pass = cluster_index(); kCluster * pass < k.tiles; pass += clusters()) {
        const Tile tile = tile_of(k, pass, rank);
        for (int step = 0; step < Hidden::kRowSteps; ++step, ring.advance()) copy_rows(k, tile, ring, step * kDepth);
        for (int column = 0; column < Hidden::kWidth; column += kColumns)
            for (int step = 0; step < Hidden::kWeightSteps; ++step, ring.advance())
                copy_weight(k, ring, step * (kRowBytes / int(sizeof(typename Hidden::Weight))), column, rank);
    }
}

// c = hidden values times W for the next 128 columns. The warpgroups share the units: one that is half a block of
// columns ahead leaves them to the other while it is busy with its sums. `ahead` says to let the other one start.
template <class Hidden>
__device__ __forceinline__ void multiply_columns(Products& c, const Hidden& hidden, Ring& ring, bool ahead) {
    int last = 0;
#pragma unroll
    for (int step = 0; step < Hidden::kWeightSteps; ++step) {
        ring.await();
        const uint64_t rows = describe_rows(ring.address());
        fence_products();
#pragma unroll
        for (int unit = 0; unit < 4; ++unit)
            multiply(c, hidden.words + 16 * step + 4 * unit, rows + 2 * unit, step + unit > 0,
                     typename Hidden::Weight{});
        commit_products();
        if (step > 0) {
            wait_products<1>();
            ring.release(last);
        }
        if (step == Hidden::kLead && ahead) arrive_threads(1, 32 * kWarps);
        last = ring.slot;
        ring.advance();
    }
    wait_products<0>();
    keep(c);
    hidden.hold();
    ring.release(last);
}

// Adds relu of the sums, with bias, times slope to the scores of the thread's two rows.
template <class Hidden>
__device__ __forceinline__ void add_columns(float (&z)[2], const Products& c, const Hidden& hidden,
                                            const float4* constants, int column) {
    const float4* pairs = constants + column / 2 + threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
        const float4 pair = pairs[4 * n];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float first = c[4 * n + 2 * r], second = c[4 * n + 2 * r + 1];
            if constexpr (Hidden::kScaled) {
                const float2* scales = reinterpret_cast<const float2*>(constants + Hidden::kWidth / 2);
                const float2 scale = scales[column / 2 + threadIdx.x % 4 + 4 * n];
                first = first * hidden.scale[r] * scale.x;
                second = second * hidden.scale[r] * scale.y;
            }
            z[r] += relu(first + pair.x) * pair.z;
            z[r] += relu(second + pair.y) * pair.w;
        }
    }
}

__device__ __forceinline__ void write_row(const ScoresArguments& p, const Tile& tile, int row, float score) {
    const int i = row >> tile.shift, j = row & (tile.wide - 1);
    if (i < tile.queries && j < tile.passages) write_score(p, tile.first_query + i, tile.first_passage + j, score);
}

template <class Hidden>
__device__ __forceinline__ void consume(const Scores& k, Ring ring, uint32_t rank, const float4* constants) {
    const float out_bias = widen(*static_cast<const typename Hidden::Element*>(k.arguments.branch.out_bias));
    const int first = threadIdx.x / 32 * 16;
    const bool leads = threadIdx.x < 16 * kWarps;
    for (int64_t pass = cluster_index(); kCluster * pass < k.tiles; pass += clusters()) {
        const Tile tile = tile_of(k, pass, rank);
        Hidden hidden;
#pragma unroll
        for (int step = 0; step < Hidden::kRowSteps; ++step) {
            ring.await();
            hidden.form(step, ring.address() + (first & (tile.wide - 1)) * kRowBytes,
                        ring.address() + kBoxBytes + (first >> tile.shift) * kRowBytes);
            ring.release(ring.slot);
            ring.advance();
        }
        hidden.finish();
        if (Hidden::kLead >= 0 && !leads) sync_threads(1, 32 * kWarps);
        float z[2] = {};
#pragma unroll 1
        for (int column = 0; column < Hidden::kWidth; column += kColumns) {
            Products c;  // the first product sets it
            multiply_columns(c, hidden, ring, leads && column == 0);
            add_columns(z, c, hidden, constants, column);
        }
        for (int r = 0; r < 2; ++r) {
            const float score = sum_of_quad(z[r]) + out_bias;
            if (threadIdx.x % 4 == 0) write_row(k.arguments, tile, first + Hidden::row() + 8 * r, score);
        }
    }
}

template <class E>
__device__ __forceinline__ void load_constants(const Scores& k, float4* constants) {
    const int width = k.arguments.pairs.width;
    const E* bias = static_cast<const E*>(k.arguments.branch.bias);
    const E* slope = static_cast<const E*>(k.arguments.branch.out_weight);
    float2* scales = reinterpret_cast<float2*>(constants + width / 2);
    for (int i = threadIdx.x; i < width / 2; i += kThreads) {
        constants[i] = {widen(bias[2 * i]), widen(bias[2 * i + 1]), widen(slope[2 * i]), widen(slope[2 * i + 1])};
        if (k.weight_scale) scales[i] = {k.weight_scale[2 * i], k.weight_scale[2 * i + 1]};
    }
}

// What has to stand in shared memory before copies and waits begin.
template <class E>
__device__ __forceinline__ void set_up(const Scores& k, const Ring& ring, float4* constants) {
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < kSlots; ++slot) {
            init_barrier(ring.slots + Ring::kFullAt + slot * kBarrierBytes, 1);
            init_barrier(ring.slots + Ring::kEmptyAt + slot * kBarrierBytes, kWarps * kCluster);
        }
        publish_barriers();
    }
    load_constants<E>(k, constants);
    __syncthreads();
    sync_cluster();
}

template <class Hidden>
__global__ void __launch_bounds__(kThreads, 1) iem_scores_kernel(const __grid_constant__ Scores k) {
#ifdef D2LLM_SM90A
    char* const memory = swizzled_memory();
    const Ring ring(shared_address(memory));
    const uint32_t rank = rank_in_cluster();
    float4* constants = reinterpret_cast<float4*>(memory + kConstantsAt);
    set_up<typename Hidden::Element>(k, ring, constants);
    if (threadIdx.x >= 32 * kWarps) {
        shrink_registers<40>();
        if (threadIdx.x == 32 * kWarps) produce<Hidden>(k, ring, rank);
        __syncwarp();
    } else {
        grow_registers<232>();
        consume<Hidden>(k, ring, rank, constants);
    }
    // The other block writes W into this one's slots and arrives at its barriers until it is done.
    sync_cluster();
#else
    __trap();
#endif
}

// Calls function(std::integral_constant<int, F>) where the width is one that the kernels are built for.
template <class Function>
bool with_width(int width, Function function) {
    switch (width) {
        case 128:
            return function(std::integral_constant<int, 128>{}), true;
        case 256:
            return function(std::integral_constant<int, 256>{}), true;
        case 384:
            return function(std::integral_constant<int, 384>{}), true;
        case 512:
            return function(std::integral_constant<int, 512>{}), true;
        default:
            return false;
    }
}

inline bool rows_apart(int64_t rows, int64_t stride, int width) { return rows == 1 || stride >= width; }

template <class E>
bool takes_pairs(const ScoresArguments& p) {
    constexpr int64_t kMost = int64_t{1} << 31;  // coordinates of the copy engine, with room for a tile
    const Pairs& pairs = p.pairs;
    return !pairs.given && !p.features && pairs.queries > 0 && pairs.passages > 0 && pairs.queries < kMost - kRows &&
           pairs.passages < kMost - kRows && rows_aligned<E>(pairs) &&
           rows_apart(pairs.queries, pairs.a_stride, pairs.width) &&
           rows_apart(pairs.passages, pairs.b_stride, pairs.width) && p.branch.weight_stride >= pairs.width;
}

template <class E, class W>
void start(const Call& call, void (*kernel)(Scores), const ScoresArguments& p, const float* weight_scale,
           cudaStream_t stream) {
    const Pairs& pairs = p.pairs;
    const int tall = tile_queries(pairs, kRows);
    const auto map = [&](const void* rows, int64_t number, int64_t stride, int box, bool swizzle) {
        return tensor_map<E, 2>(call, rows, {pairs.width, number}, {number == 1 ? pairs.width : stride}, {kDepth, box},
                                swizzle);
    };
    const Scores k{p,
                   weight_scale,
                   tall,
                   tiles_of(pairs, kRows),
                   map(pairs.a, pairs.queries, pairs.a_stride, tall, false),
                   map(pairs.b, pairs.passages, pairs.b_stride, kRows / tall, true),
                   tensor_map<W, 2>(call, p.branch.weight, {pairs.width, pairs.width}, {p.branch.weight_stride},
                                    {kRowBytes / int(sizeof(W)), kColumns / kCluster}, true)};
    const size_t shared = kConstantsAt + pairs.width / 2 * (sizeof(float4) + (weight_scale ? sizeof(float2) : 0));
    launch_clusters(call, kernel, (k.tiles + kCluster - 1) / kCluster, 1, kCluster, kThreads, shared, stream, k);
}

}  // namespace d2llm::hopper
