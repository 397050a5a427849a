// Attention pooling, forward: every hidden state is read from memory once.
//
// A block does one of two jobs. A score job multiplies a slot of tokens with every head's query over a part of the
// width; a pool job takes a sequence and a slice of the width and sums its tokens, weighted by the softmax of their
// scores. A sequence's pool jobs come shortly after its score jobs, while its tokens are still in the L2 cache. Jobs
// are handed out by a ticket, so that a job waits only for jobs that have already started: the kernel comes to an end
// on any number of multiprocessors. Who computes what never decides how it is summed.
//
// Workspaces: scores (slots, heads rounded up, kSlot); parts (slots, splits, heads, kSlot) where a slot's scores are
// the sum of several jobs'; counters (1 + B + slots) zeros: the ticket, scored slots of a sequence, parts of a slot.
#include <algorithm>

#include "launch.h"
#include "products.cuh"

namespace d2llm {
namespace {

constexpr int kSlicePitch = kPoolSlice + kPiece;

struct Pool {
    PoolArguments arguments;
    int splits;
    int64_t slots;
    bool aligned, u_aligned;
};

template <class E, int HEADS>
struct Job {
    const Pool& k;
    const PoolArguments& p = k.arguments;
    const Tokens& tokens = p.tokens;
    int* scored = p.counters + 1;
    int* arrived = scored + tokens.sequences;

    __device__ __forceinline__ explicit Job(const Pool& k) : k(k) {}

    // Thread 0's value, for all.
    __device__ __forceinline__ int64_t broadcast(int64_t value) {
        auto* shared = reinterpret_cast<int64_t*>(shared_memory());
        if (threadIdx.x == 0) *shared = value;
        __syncthreads();
        value = *shared;
        __syncthreads();
        return value;
    }

    __device__ __forceinline__ void score(int64_t job) {
        const int64_t slot = job / k.splits;
        const int split = static_cast<int>(job % k.splits);
        const Sequence sequence = sequence_of<E>(tokens, owner(tokens, slot));
        const int64_t begin = first_slot(tokens, sequence.index), end = first_slot(tokens, sequence.index + 1);
        const int64_t first = (slot - begin) * kSlot;
        const int chunks = (tokens.width * int(sizeof(E)) + kChunk - 1) / kChunk;
        const int share = any_token(tokens, sequence, first) ? (chunks + k.splits - 1) / k.splits : 0;
        const int from = min(split * share, chunks), to = min(from + share, chunks);
        Products<HEADS> products;
        multiply_slot<E, HEADS>(products, tokens, sequence, first, from, to, k.aligned, [&](char* target, int64_t at) {
            const char* u = static_cast<const char*>(p.u) + at;
            const int64_t left = tokens.width * int64_t{sizeof(E)} - at;
            stage<E, kPoolThreads, kChunk>(target, HEADS, kPitch, p.u, left, k.u_aligned, [&](int head) {
                return head < p.heads ? u + head * p.u_stride * int64_t{sizeof(E)} : nullptr;
            });
        });
        if (k.splits > 1 && !add_parts(products, slot, split)) return;
        // A token that takes no part has the score -inf: the pool jobs need no other sign of it.
        const float lowest = __uint_as_float(0xff800000);
        float* scores = p.scores + slot * HEADS * kSlot;
        products.each([&](int token, int head, float& value) {
            scores[head * kSlot + token] = takes_part(tokens, sequence, first + token) ? value : lowest;
        });
        __syncthreads();
        if (threadIdx.x == 0 && slot < end) add_release(scored + sequence.index, 1);
    }

    // Stores a part of a slot's scores; whoever comes last gets the sum, always in the same order.
    __device__ __forceinline__ bool add_parts(Products<HEADS>& products, int64_t slot, int split) {
        float* parts = p.parts + slot * k.splits * HEADS * kSlot;
        products.each(
            [&](int token, int head, float& value) { parts[(split * HEADS + head) * kSlot + token] = value; });
        __syncthreads();
        int before = 0;
        if (threadIdx.x == 0) {
            before = add_release(arrived + slot, 1);
            fence();
        }
        if (broadcast(before) < k.splits - 1) return false;
        products.each([&](int token, int head, float& value) {
            value = 0;
            for (int part = 0; part < k.splits; ++part)
                value += load_fresh(parts + (part * HEADS + head) * kSlot + token);
        });
        return true;
    }

    __device__ __forceinline__ void pool(int64_t b, int slice);
};

// Shared memory of a pool job: buffers of tokens and scores, then what the warps tell each other.
template <class E, int HEADS>
struct PoolMemory {
    static constexpr int kBuffer = kPoolTokens * kSlicePitch + HEADS * kPitch;
    static constexpr int kWeightPitch = kPoolTokens * sizeof(E) + kPiece;
    static constexpr size_t kBytes = kPoolStages * kBuffer + HEADS * (kWeightPitch + 4);

    __device__ __forceinline__ static char* tokens(int b) { return shared_memory() + b * kBuffer; }
    __device__ __forceinline__ static char* scores(int b) { return tokens(b) + kPoolTokens * kSlicePitch; }
    __device__ __forceinline__ static char* weights() { return shared_memory() + kPoolStages * kBuffer; }
    __device__ __forceinline__ static float* factors() {
        return reinterpret_cast<float*>(weights() + HEADS * kWeightPitch);
    }
};

// The softmax of a warp's heads, every fourth one, rescaled as its maximum rises; a lane has a token.
template <class E, int HEADS>
struct Softmax {
    using Memory = PoolMemory<E, HEADS>;
    float top[HEADS / 4], denominator[HEADS / 4];

    __device__ __forceinline__ Softmax() {
        for (int i = 0; i < HEADS / 4; ++i) {
            top[i] = __uint_as_float(0xff800000);
            denominator[i] = 0;
        }
    }

    __device__ __forceinline__ static int head(int i) { return threadIdx.x / 32 + 4 * i; }

    __device__ __forceinline__ void step(const char* scores) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < HEADS / 4; ++i) {
            const float s = *reinterpret_cast<const float*>(scores + head(i) * kPitch + lane * 4);
            float higher = s > top[i] ? s : top[i];
            for (int mask = 16; mask; mask /= 2) higher = fmaxf(higher, shuffle_xor(higher, mask));
            // Before the first token that takes part the maximum is -inf, and -inf minus -inf is NaN.
            const float base = higher == __uint_as_float(0xff800000) ? 0.0f : higher;
            const float shrink = exponential(top[i] - base), weight = exponential(s - base);
            float sum = weight;
            for (int mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
            denominator[i] = denominator[i] * shrink + sum;
            top[i] = higher;
            narrow(weight, reinterpret_cast<E*>(Memory::weights() + head(i) * Memory::kWeightPitch)[lane]);
            if (lane == 0) Memory::factors()[head(i)] = shrink;
        }
    }

    // Leaves the heads' factors to divide by the denominator, and writes lse where it is wanted.
    __device__ __forceinline__ void finish(float* lse, int heads) {
        if (threadIdx.x % 32) return;
#pragma unroll
        for (int i = 0; i < HEADS / 4; ++i) {
            const bool present = denominator[i] != 0;
            Memory::factors()[head(i)] = present ? 1 / denominator[i] : 1.0f;
            if (lse && head(i) < heads)
                lse[head(i)] = present ? top[i] + logf(denominator[i]) : __uint_as_float(0xff800000);
        }
    }
};

// A warp's sums: heads 16 m + 8 r + lane / 4, columns of its kChunk bytes of the slice.
template <class E, int HEADS>
struct PoolSums {
    using Memory = PoolMemory<E, HEADS>;
    static constexpr int kN = kChunk / (8 * sizeof(E));
    float values[HEADS / 16][kN][4] = {};

    __device__ __forceinline__ void scale() {
#pragma unroll
        for (int m = 0; m < HEADS / 16; ++m)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float factor = Memory::factors()[16 * m + 8 * r + threadIdx.x % 32 / 4];
#pragma unroll
                for (int n = 0; n < kN; ++n)
                    for (int e = 0; e < 2; ++e) values[m][n][2 * r + e] *= factor;
            }
    }

    __device__ __forceinline__ void add(const char* tokens) {
#pragma unroll(kUnrolled<E>)
        for (int unit = 0; unit < kPoolTokens / kDepth<E>; ++unit) {
            Left<E> weights[HEADS / 16];
#pragma unroll
            for (int m = 0; m < HEADS / 16; ++m) {
                uint32_t words[4];
                load_rows(words, Memory::weights() + 16 * m * Memory::kWeightPitch + unit * kUnit,
                          Memory::kWeightPitch);
                weights[m] = Left<E>(words);
            }
#pragma unroll
            for (int n = 0; n < kN; n += 2) {
                uint32_t words[4];
                const int at = threadIdx.x / 32 * kChunk + 8 * n * int(sizeof(E));
                load_columns_transposed<E>(words, tokens + unit * kDepth<E> * kSlicePitch + at, kSlicePitch);
                const Right<E> one(words), two(words + 2);
#pragma unroll
                for (int m = 0; m < HEADS / 16; ++m) {
                    multiply<E>(values[m][n], weights[m], one);
                    multiply<E>(values[m][n + 1], weights[m], two);
                }
            }
        }
    }

    __device__ __forceinline__ void write(E* pooled, int slice, int heads, int width) {
        const int lane = threadIdx.x % 32, first = (slice * kPoolSlice + threadIdx.x / 32 * kChunk) / int(sizeof(E));
#pragma unroll
        for (int m = 0; m < HEADS / 16; ++m)
#pragma unroll
            for (int n = 0; n < kN; ++n)
                for (int i = 0; i < 4; ++i) {
                    const int head = 16 * m + i / 2 * 8 + lane / 4, d = first + 8 * n + lane % 4 * 2 + i % 2;
                    if (head < heads && d < width) narrow(values[m][n][i], pooled[int64_t{head} * width + d]);
                }
    }
};

template <class E, int HEADS>
__device__ __forceinline__ void Job<E, HEADS>::pool(int64_t b, int slice) {
    using Memory = PoolMemory<E, HEADS>;
    const int64_t begin = first_slot(tokens, b), needed = first_slot(tokens, b + 1) - begin;
    if (threadIdx.x == 0) {
        while (load_acquire(scored + b) < needed) pause();
        fence();
    }
    __syncthreads();
    const Sequence sequence = sequence_of<E>(tokens, b);
    Softmax<E, HEADS> softmax;
    PoolSums<E, HEADS> sums;
    pipeline<kPoolStages>(
        static_cast<int>((sequence.count + kPoolTokens - 1) / kPoolTokens),
        [&](int step, int buffer) {
            const int64_t first = int64_t{step} * kPoolTokens;
            stage_tokens<E, kPoolThreads, kPoolSlice>(Memory::tokens(buffer), kPoolTokens, kSlicePitch, tokens,
                                                      sequence, first, int64_t{slice} * kPoolSlice, k.aligned);
            const float* scores = p.scores + (begin + first / kSlot) * HEADS * kSlot + first % kSlot;
            stage<float, kPoolThreads, kChunk>(
                Memory::scores(buffer), HEADS, kPitch, scores, kChunk, true,
                [&](int head) { return reinterpret_cast<const char*>(scores + head * kSlot); });
        },
        [&](int, int buffer) {
            softmax.step(Memory::scores(buffer));
            __syncthreads();
            sums.scale();
            sums.add(Memory::tokens(buffer));
        });
    softmax.finish(slice ? nullptr : p.lse + b * p.lse_stride_b, p.heads);
    __syncthreads();
    sums.scale();
    sums.write(static_cast<E*>(p.pooled) + b * p.pooled_stride_b, slice, p.heads, tokens.width);
}

template <class E, int HEADS>
__global__ void __launch_bounds__(kPoolThreads, 2) pool_forward_kernel(const Pool k) {
    Job<E, HEADS> job(k);
    const Tokens& tokens = k.arguments.tokens;
    const int64_t slices = (tokens.width * int64_t{sizeof(E)} + kPoolSlice - 1) / kPoolSlice,
                  scores = k.slots * k.splits;
    const int64_t ticket = job.broadcast(threadIdx.x ? 0 : add_relaxed(k.arguments.counters, 1));
    // Sequence b's pool jobs follow kPoolLag score jobs after its own last one. Of how many have they begun by now?
    const auto after = [&](int64_t b) { return min(first_slot(tokens, b + 1) * k.splits + kPoolLag, scores); };
    const int64_t started = how_many(tokens.sequences, [&](int64_t b) { return after(b) + b * slices <= ticket; });
    const int64_t b = started ? started - 1 : 0, slice = ticket - after(b) - b * slices;
    if (started && slice < slices)
        job.pool(b, static_cast<int>(slice));
    else
        job.score(ticket - started * slices);
}

template <class E, int HEADS>
void start(const PoolArguments& p, cudaStream_t stream) {
    const int splits = pool_splits(p.tokens.width, sizeof(E));
    const int64_t slots = slots_of(p.tokens);
    const int64_t slices = (p.tokens.width * int64_t{sizeof(E)} + kPoolSlice - 1) / kPoolSlice;
    const size_t shared = std::max<size_t>(kProductBytes<HEADS>, PoolMemory<E, HEADS>::kBytes);
    launch(pool_forward_kernel<E, HEADS>, kernels::pool_forward, dim3(slots * splits + p.tokens.sequences * slices),
           kPoolThreads, shared, stream,
           Pool{p, splits, slots, tokens_aligned<E>(p.tokens), is_aligned<E>(p.u, p.u_stride)},
           [&] { return shape_of(p.tokens, p.heads); });
}

}  // namespace

int64_t pool_slots(const Tokens& tokens) { return slots_of(tokens); }

int pool_splits(int width, int size) { return std::clamp(width * size / kSplitBytes, 1, kMostSplits); }

PoolLimits pool_limits(Element element) {
    int backward = 0;
    with_element(element, [&](auto e) { backward = 16 * kBackwardBlocks<decltype(e)>; });
    return {16 * kForwardBlocks, backward, kSlot};
}

int pool_heads(int heads) {
    int rounded = 0;
    with_heads<kForwardBlocks>(heads, [&](auto blocks) { rounded = 16 * blocks; });
    return rounded;
}

void pool_forward(const PoolArguments& arguments, Element element, cudaStream_t stream) {
    with_element(element, [&](auto e) {
        with_heads<kForwardBlocks>(
            arguments.heads, [&](auto blocks) { start<decltype(e), 16 * decltype(blocks)::value>(arguments, stream); });
    });
}

}  // namespace d2llm
