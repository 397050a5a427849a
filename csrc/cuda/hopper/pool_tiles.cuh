// What the blocks of a cluster share of attention pooling: the plan of their shared memory, and the walk over tokens.
#pragma once

#include <hopper/platform.cuh>

#include "../arguments.h"
#include "tensor_map.h"

namespace d2llm::hopper {

constexpr int kTokens = 16;                      // of a tile
constexpr int kSlab = 64;                        // columns of a tile that one box holds, 128 bytes of each token
constexpr int kSlabBytes = kTokens * kRowBytes;  // of a tile's slab
constexpr int kMostWarps[] = {12, 8};            // with one slab each, and with two
constexpr int kFewestStages = 3, kMostStages = 8;
constexpr int kSharedLimit = 227 << 10;

// How the D columns are dealt out: to `cluster` blocks, each with `warps` warps of `slabs` slabs. It depends on D and
// the heads alone, for it decides in which order partial scores are summed.
struct PoolPlan {
    int cluster, warps, slabs;
    int heads;   // that a block works on, 16 or 32
    int stages;  // tiles of x in shared memory
    // In shared memory, where u comes first.
    int x_at, partials_at, received_at, totals_at, barriers_at, bytes;

    __host__ __device__ int block_slabs() const { return warps * slabs; }
    __host__ __device__ int score_bytes() const { return heads * kTokens * 4; }
    __host__ __device__ int tile_bytes() const { return block_slabs() * kSlabBytes; }
};

// Places the parts, tiles of x where others leave room. Three have to fit: one to be weighted, one to be scored and one
// on its way.
inline bool place(PoolPlan& plan) {
    constexpr int kBarriers = (2 + kMostStages * kMostWarps[0]) * kBarrierBytes;
    const int u_bytes = plan.block_slabs() * plan.heads * kRowBytes;
    const int scores = (plan.warps + 2 * plan.cluster + 1) * plan.score_bytes();
    const int room = kSharedLimit - u_bytes - scores - kBarriers;
    plan.stages = room / plan.tile_bytes();
    if (plan.stages > kMostStages) plan.stages = kMostStages;
    plan.x_at = u_bytes;
    plan.partials_at = plan.x_at + plan.stages * plan.tile_bytes();
    plan.received_at = plan.partials_at + plan.warps * plan.score_bytes();
    plan.totals_at = plan.received_at + 2 * plan.cluster * plan.score_bytes();
    plan.barriers_at = plan.totals_at + plan.score_bytes();
    plan.bytes = plan.barriers_at + kBarriers;
    return room > 0 && plan.stages >= kFewestStages;
}

// The smallest cluster whose blocks can hold their columns: the fewer blocks, the less they have to tell each other.
inline bool make_plan(PoolPlan& plan, int width, int heads) {
    if (width < kSlab || width % kSlab) return false;
    plan.heads = heads <= 16 ? 16 : 32;
    for (plan.cluster = 1; plan.cluster <= 8; ++plan.cluster) {
        if (width % (kSlab * plan.cluster)) continue;
        const int slabs = width / kSlab / plan.cluster;
        plan.slabs = slabs <= kMostWarps[0] ? 1 : 2;
        plan.warps = slabs / plan.slabs;
        if (slabs % plan.slabs == 0 && plan.warps <= kMostWarps[plan.slabs - 1] && place(plan)) return true;
    }
    return false;
}

// Of a single row no stride is asked for, and any may be given.
inline int64_t row_stride(int64_t rows, int64_t stride, int width) { return rows == 1 ? width : stride; }

struct Pool {
    PoolArguments arguments;
    PoolPlan plan;
    int groups;  // of heads
    CUtensorMap x, u;
};

// Tiles of the sequences of a cluster, one after the other; an empty sequence has one, without tokens.
struct Walk {
    int sequence, stride, at = 0;
    int begin, length;

    __device__ __forceinline__ Walk(const Tokens& tokens, int first, int stride_) : sequence(first), stride(stride_) {
        find(tokens, first, begin, length);
    }

    __device__ __forceinline__ static void find(const Tokens& tokens, int sequence, int& begin, int& length) {
        begin = 0;
        length = static_cast<int>(tokens.length);
        if (!tokens.offsets || sequence >= tokens.sequences) return;
        // As everywhere, offsets that fall or leave the batch make sequences shorter, or empty.
        begin = within(tokens.offsets[sequence], tokens.length);
        length = within(tokens.offsets[sequence + 1], tokens.length) - begin;
    }

    __device__ __forceinline__ static int within(int64_t offset, int64_t length) {
        return static_cast<int>(offset < 0 ? 0 : offset < length ? offset : length);
    }

    __device__ __forceinline__ bool done(const Tokens& tokens) const { return sequence >= tokens.sequences; }
    __device__ __forceinline__ bool last() const { return at + kTokens >= length; }

    __device__ __forceinline__ void advance(const Tokens& tokens) {
        at += kTokens;
        if (at < length) return;
        at = 0;
        sequence += stride;
        find(tokens, sequence, begin, length);
    }

    // Whether token `lane` of the tile counts.
    __device__ __forceinline__ bool counts(const Tokens& tokens) const {
        const int lane = threadIdx.x % 32;
        if (lane >= kTokens || at + lane >= length || done(tokens)) return false;
        return !tokens.mask ||
               tokens.mask[sequence * tokens.mask_stride_b + int64_t{at + lane} * tokens.mask_stride_l] != 0;
    }
};

}  // namespace d2llm::hopper
