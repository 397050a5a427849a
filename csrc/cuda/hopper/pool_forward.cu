// Attention pooling forward: softmax(x u^T)^T x over each sequence, with x read from memory once.
//
// A cluster of blocks takes a sequence, each block D / cluster columns of it, each warp 64 or 128 of those; u stays in
// shared memory. Of 16 tokens at a time a warp computes what its columns contribute to the scores, and later, from the
// same copy in shared memory, their weighted sum, which stays in registers. In between the contributions are summed: in
// the block over its warps, then over the blocks, each of which gets those of all others (st.async to its shared
// memory, counted by a barrier there) and sums them in the order of ranks. So all blocks have the same scores bit for
// bit, and each takes the softmax for itself. For D = 4096 and 32 heads a block of four sends and gets 8 KB a tile of
// 32 KB.
//
// A warp has its columns of the next tiles copied by itself and waits for nothing but them; it asks for a tile when it
// is done with the one in its place. The exchange of a tile's scores runs while the tile before it is weighted and the
// one behind it is scored: see pool_tiles().
//
// Tokens that do not count are overwritten with zeros in shared memory before any use, for zero times NaN is NaN; past
// the end of a packed sequence they are those of its neighbour. For D = 4096, 32 heads, a tile of 32 KB passes through
// shared memory as 32 KB written, 64 KB of x and 64 KB of u read, and some 66 KB of scores: 1770 cycles of its
// bandwidth in the 2200 that the tile takes from memory.
#include "launch.h"
#include "pool_tiles.cuh"

namespace d2llm {
namespace hopper {
namespace {

__device__ __forceinline__ float largest_of_quad(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffff, value, 2));
}

// One consumer warp's part of the work. A tile's scores are products of 16 heads and 8 tokens: products[2 h + n] is of
// heads 16 h + lane / 4 (x and y) and 8 further down (z and w), tokens 8 n + 2 (lane % 4) and one further. As two such
// products side by side have the places of a left operand, weights need no shuffling; every warp computes them all.
template <class E, int SLABS, int HEADS>
struct Warp {
    static constexpr int kH = HEADS / 16, kProducts = 2 * kH;
    static constexpr int kScoreBytes = HEADS * kTokens * 4;

    const Pool& k;
    const uint32_t shared;
    const uint32_t rank;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sums[SLABS][kH][8][4];  // of 8 columns: as products, with columns for tokens
    float top[kH][2], total[kH][2];

    __device__ __forceinline__ Warp(const Pool& pool, uint32_t shared_, uint32_t rank_)
        : k(pool), shared(shared_), rank(rank_) {
        reset();
    }

    __device__ __forceinline__ void reset() {
#pragma unroll
        for (int h = 0; h < kH; ++h) {
            for (int r = 0; r < 2; ++r) top[h][r] = __uint_as_float(0xff800000), total[h][r] = 0;
#pragma unroll
            for (int i = 0; i < SLABS * 32; ++i) sums[i / 32][h][i / 4 % 8][i % 4] = 0;
        }
    }

    __device__ __forceinline__ uint32_t exchange_barrier(int buffer) const {
        return shared + k.plan.barriers_at + buffer * kBarrierBytes;
    }
    __device__ __forceinline__ uint32_t stage_barrier(int stage) const {
        return shared + k.plan.barriers_at + (2 + warp * k.plan.stages + stage) * kBarrierBytes;
    }
    __device__ __forceinline__ uint32_t u_slab(int s) const { return shared + (warp * SLABS + s) * HEADS * kRowBytes; }
    __device__ __forceinline__ uint32_t slab(int stage, int s) const {
        return shared + k.plan.x_at + stage * k.plan.tile_bytes() + (warp * SLABS + s) * kSlabBytes;
    }

    // Has the copy engine bring the warp's columns of a tile, and of u where `heads` are wanted.
    __device__ __forceinline__ void load(const Walk& walk, int stage, bool heads, int first_head) const {
        // All lanes are done with what was there.
        __syncwarp();
        if (lane > 0) return;
        arrive_expecting(stage_barrier(stage), SLABS * (kSlabBytes + (heads ? HEADS * kRowBytes : 0)));
#pragma unroll
        for (int s = 0; s < SLABS; ++s) {
            const int column = ((rank * k.plan.warps + warp) * SLABS + s) * kSlab;
            if (heads) copy_box(u_slab(s), &k.u, column, first_head, stage_barrier(stage));
            copy_box(slab(stage, s), &k.x, column, walk.begin + walk.at, k.arguments.tokens.offsets ? 0 : walk.sequence,
                     stage_barrier(stage));
        }
    }

    __device__ __forceinline__ void clear_absent(int stage, uint32_t present) {
#pragma unroll 1
        for (int i = lane; i < SLABS * kTokens * 8; i += 32)
            if (!(present >> i / 8 % kTokens & 1)) store_floats(slab(stage, 0) + i * 16, {0, 0, 0, 0});
        // The copy engine writes there next.
        fence_async();
        __syncwarp();
    }

    // What the warp's columns contribute to the scores of a tile, to shared memory.
    __device__ __forceinline__ void score(int stage, uint32_t present) {
        if (present != (1u << kTokens) - 1) clear_absent(stage, present);
        float products[kProducts][4] = {};
#pragma unroll
        for (int s = 0; s < SLABS; ++s) {
            const uint32_t x = slab(stage, s), u = u_slab(s);
#pragma unroll
            for (int unit = 0; unit < 4; ++unit) {
                const uint32_t at = swizzled(lane % 16, 2 * unit + lane / 16);
                uint32_t tokens[4], heads[4];
                load_matrices(tokens, x + at);
#pragma unroll
                for (int h = 0; h < kH; ++h) {
                    load_matrices(heads, u + 16 * h * kRowBytes + at);
                    mma_words(products[2 * h], heads, tokens[0], tokens[2], E{});
                    mma_words(products[2 * h + 1], heads, tokens[1], tokens[3], E{});
                }
            }
        }
        const uint32_t to = shared + k.plan.partials_at + warp * kScoreBytes + lane * 16;
#pragma unroll
        for (int i = 0; i < kProducts; ++i)
            store_floats(to + i * 512, {products[i][0], products[i][1], products[i][2], products[i][3]});
    }

    // Sums what the block's warps contribute, and tells all blocks.
    __device__ __forceinline__ void send_scores(int buffer) const {
#pragma unroll 1
        for (int i = threadIdx.x; i < kScoreBytes / 16; i += blockDim.x) {
            const float4 sum = sum_of(shared + k.plan.partials_at + i * 16, k.plan.warps);
            const uint32_t to = shared + k.plan.received_at + (buffer * k.plan.cluster + rank) * kScoreBytes + i * 16;
#pragma unroll 1
            for (int other = 0; other < k.plan.cluster; ++other)
                send(address_in(to, other), sum, address_in(exchange_barrier(buffer), other));
        }
    }

    // Sums what the blocks have sent, once it is all there, and has the barrier wait for the tile after the next.
    __device__ __forceinline__ void receive_scores(int buffer, uint32_t parity) const {
#pragma unroll 1
        for (int i = threadIdx.x; i < kScoreBytes / 16; i += blockDim.x) {
            wait(exchange_barrier(buffer), parity);
            const uint32_t from = shared + k.plan.received_at + buffer * k.plan.cluster * kScoreBytes + i * 16;
            store_floats(shared + k.plan.totals_at + i * 16, sum_of(from, k.plan.cluster));
        }
        if (threadIdx.x == 0) arrive_expecting(exchange_barrier(buffer), k.plan.cluster * kScoreBytes);
    }

    __device__ __forceinline__ static float4 sum_of(uint32_t from, int number) {
        float4 sum = load_floats(from);
#pragma unroll 4
        for (int i = 1; i < number; ++i) {
            const float4 other = load_floats(from + i * kScoreBytes);
            sum.x += other.x, sum.y += other.y, sum.z += other.z, sum.w += other.w;
        }
        return sum;
    }

    // Weights of 16 heads and a tile's tokens as a left operand. Earlier sums become relative to what scores are now
    // taken relative to.
    __device__ __forceinline__ void take_softmax(int h, uint32_t present, uint32_t (&weights)[4]) {
        const uint32_t from = shared + k.plan.totals_at + h * 1024 + lane * 16;
        const float4 left = load_floats(from), right = load_floats(from + 512);
        const float scores[2][4] = {{left.x, left.y, right.x, right.y}, {left.z, left.w, right.z, right.w}};
        float decay[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float lowest = __uint_as_float(0xff800000);
            float weight[4], largest = lowest;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int token = i / 2 * 8 + lane % 4 * 2 + i % 2;
                weight[i] = present >> token & 1 ? scores[r][i] : lowest;
                largest = fmaxf(largest, weight[i]);
            }
            // Without tokens so far nothing is known of how large scores are, and all weights are zero.
            const float high = fmaxf(top[h][r], largest_of_quad(largest)), origin = high == lowest ? 0 : high;
            decay[r] = exponential(top[h][r] - origin);
            top[h][r] = high;
            for (int i = 0; i < 4; ++i) weight[i] = exponential(weight[i] - origin);
            total[h][r] = total[h][r] * decay[r] + ((weight[0] + weight[1]) + (weight[2] + weight[3]));
            weights[r] = narrow_two(weight[0], weight[1], E{});
            weights[2 + r] = narrow_two(weight[2], weight[3], E{});
        }
        // Always, though mostly by one: a branch around them costs registers that are not there.
#pragma unroll
        for (int i = 0; i < SLABS * 32; ++i) sums[i / 32][h][i / 4 % 8][i % 4] *= decay[i / 2 % 2];
    }

    // Adds the weighted tokens of a tile.
    __device__ __forceinline__ void weigh(int stage, const uint32_t (&weights)[kH][4]) {
#pragma unroll
        for (int s = 0; s < SLABS; ++s)
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                uint32_t columns[4];
                load_transposed(columns, slab(stage, s) + swizzled(lane % 16, 2 * pair + lane / 16));
#pragma unroll
                for (int h = 0; h < kH; ++h) {
                    mma_words(sums[s][h][2 * pair], weights[h], columns[0], columns[1], E{});
                    mma_words(sums[s][h][2 * pair + 1], weights[h], columns[2], columns[3], E{});
                }
            }
    }

    __device__ __forceinline__ void write(int sequence, int first_head) {
        const PoolArguments& p = k.arguments;
        const int first_column = (rank * k.plan.warps + warp) * SLABS * kSlab + lane % 4 * 2;
#pragma unroll
        for (int h = 0; h < kH; ++h)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const int head = first_head + 16 * h + lane / 4 + 8 * r;
                float sum = total[h][r];
                sum += __shfl_xor_sync(0xffffffff, sum, 1);
                sum += __shfl_xor_sync(0xffffffff, sum, 2);
                if (head >= p.heads) continue;
                // A sum is zero or at least one, for the largest score weighs one: no case the fast division leaves
                // out.
                const float inverse = sum == 0 ? 0 : __fdividef(1, sum);
                E* out = static_cast<E*>(p.pooled) + sequence * p.pooled_stride_b + int64_t{head} * p.tokens.width +
                         first_column;
#pragma unroll
                for (int i = 0; i < SLABS * 8; ++i) {
                    const float* pair = sums[i / 8][h][i % 8] + 2 * r;
                    *reinterpret_cast<uint32_t*>(out + 8 * i) = narrow_two(pair[0] * inverse, pair[1] * inverse, E{});
                }
                if (rank == 0 && warp == 0 && lane % 4 == 0)
                    p.lse[sequence * p.lse_stride_b + head] = top[h][r] + logf(sum);
            }
    }
};

// A tile that is scored, and not yet weighted.
struct Scored {
    int sequence, stage;
    bool last;
    uint32_t present;
};

// Tile i is weighted between the scoring of tile i + 1 and that of tile i + 2. Two barriers a tile divide what is
// written to partials and totals from what is read there, and that from what is written next. They also keep the blocks
// in step: what a block sends of tile i + 1 takes the place of tile i - 1, and it sends that only when it has received
// tile i from all, who sent it only when they were done receiving tile i - 1.
template <class E, int SLABS, int HEADS>
__device__ __forceinline__ void pool_tiles(const Pool& k, uint32_t shared, uint32_t rank, Walk walk, int first_head) {
    const Tokens& tokens = k.arguments.tokens;
    if (walk.done(tokens)) return;
    Warp<E, SLABS, HEADS> w(k, shared, rank);
    if (threadIdx.x == 0)
        for (int buffer = 0; buffer < 2; ++buffer)
            arrive_expecting(w.exchange_barrier(buffer), k.plan.cluster * w.kScoreBytes);
    Walk loads = walk;
    for (int stage = 0; stage < k.plan.stages && !loads.done(tokens); ++stage, loads.advance(tokens))
        w.load(loads, stage, stage == 0, first_head);
    Scored old{walk.sequence, 0, walk.last(), __ballot_sync(0xffffffff, walk.counts(tokens))};
    walk.advance(tokens);
    bool counts = walk.counts(tokens);
    wait(w.stage_barrier(0), 0);
    w.score(0, old.present);
    __syncthreads();
    w.send_scores(0);
    __syncthreads();
    uint32_t parity = 0;
    for (uint32_t tile = 0;; ++tile) {
        const bool more = !walk.done(tokens);
        Scored next{walk.sequence, old.stage + 1, walk.last(), __ballot_sync(0xffffffff, counts)};
        if (next.stage == k.plan.stages) next.stage = 0, parity ^= 1;
        if (more) {
            walk.advance(tokens);
            counts = walk.counts(tokens);
            wait(w.stage_barrier(next.stage), parity);
            w.score(next.stage, next.present);
        }
        w.receive_scores(tile % 2, tile / 2 % 2);
        __syncthreads();
        if (more) w.send_scores((tile + 1) % 2);
        uint32_t weights[w.kH][4];
#pragma unroll
        for (int h = 0; h < w.kH; ++h) w.take_softmax(h, old.present, weights[h]);
        __syncthreads();
        w.weigh(old.stage, weights);
        if (!loads.done(tokens)) {
            w.load(loads, old.stage, false, 0);
            loads.advance(tokens);
        }
        if (old.last) {
            w.write(old.sequence, first_head);
            w.reset();
        }
        if (!more) break;
        old = next;
    }
}

template <class E, int SLABS, int HEADS>
__global__ void __launch_bounds__(32 * kMostWarps[SLABS - 1], 1) pool_forward_kernel(const __grid_constant__ Pool k) {
#ifdef D2LLM_SM90A
    const uint32_t shared = shared_address(swizzled_memory());
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 + k.plan.stages * k.plan.warps; ++i)
            init_barrier(shared + k.plan.barriers_at + i * kBarrierBytes, 1);
        publish_barriers();
    }
    __syncthreads();
    sync_cluster();
    const int workers = clusters() / k.groups, index = cluster_index();
    if (index < workers * k.groups)
        pool_tiles<E, SLABS, HEADS>(k, shared, rank_in_cluster(), Walk(k.arguments.tokens, index / k.groups, workers),
                                    index % k.groups * HEADS);
    // No block may end while another one may send to it.
    sync_cluster();
#else
    __trap();
#endif
}

template <class E>
void start(const Call& call, const PoolArguments& p, const PoolPlan& plan, cudaStream_t stream) {
    const Tokens& t = p.tokens;
    const bool flat = t.offsets || t.sequences == 1;
    const int groups = (p.heads + plan.heads - 1) / plan.heads;
    const int64_t row = row_stride(t.length, t.x_stride_l, t.width);
    const Pool k{p, plan, groups,
                 tensor_map<E, 3>(call, t.x, {t.width, t.length, t.offsets ? 1 : t.sequences},
                                  {row, flat ? row * t.length : t.x_stride_b}, {kSlab, kTokens, 1}, true),
                 tensor_map<E, 2>(call, p.u, {t.width, p.heads}, {row_stride(p.heads, p.u_stride, t.width)},
                                  {kSlab, plan.heads}, true)};
    const auto launch = [&](auto kernel) {
        launch_clusters(call, kernel, t.sequences * groups, groups, plan.cluster, 32 * plan.warps, plan.bytes, stream,
                        k);
    };
    if (plan.slabs == 1)
        launch(plan.heads == 16 ? pool_forward_kernel<E, 1, 16> : pool_forward_kernel<E, 1, 32>);
    else
        launch(plan.heads == 16 ? pool_forward_kernel<E, 2, 16> : pool_forward_kernel<E, 2, 32>);
}

}  // namespace
}  // namespace hopper

bool hopper_pool_forward_takes(const PoolArguments& p, Element element) {
    constexpr int64_t kMost = (int64_t{1} << 31) - 1024;  // coordinates of the copy engine, with room for a tile
    const Tokens& t = p.tokens;
    const auto aligned = [](const void* pointer, int64_t stride, int bytes) {
        return reinterpret_cast<uintptr_t>(pointer) % bytes == 0 && stride > 0 && stride * 2 % bytes == 0;
    };
    // The copy engine's rows do not overlap.
    const int64_t x_stride = hopper::row_stride(t.length, t.x_stride_l, t.width);
    const int64_t u_stride = hopper::row_stride(p.heads, p.u_stride, t.width);
    hopper::PoolPlan plan;
    return element != Element::kFloat32 && t.sequences > 0 && t.length > 0 && t.sequences < kMost && t.length < kMost &&
           p.heads > 0 && p.heads <= 64 && !(t.mask && t.offsets) && x_stride >= t.width &&
           aligned(t.x, x_stride, 16) && (t.offsets || t.sequences == 1 || aligned(t.x, t.x_stride_b, 16)) &&
           u_stride >= t.width && aligned(p.u, u_stride, 16) && aligned(p.pooled, p.pooled_stride_b, 4) &&
           hopper::make_plan(plan, t.width, p.heads);
}

void hopper_pool_forward(const PoolArguments& p, Element element, cudaStream_t stream) {
    const hopper::Call call{kernels::hopper_pool_forward, [&] { return shape_of(p.tokens, p.heads); }};
    hopper::PoolPlan plan;
    if (!hopper_pool_forward_takes(p, element) || !hopper::make_plan(plan, p.tokens.width, p.heads))
        call.check(cudaErrorInvalidValue);
    with_half(element, [&](auto e) { hopper::start<decltype(e)>(call, p, plan, stream); });
}

}  // namespace d2llm
