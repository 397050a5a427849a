// Attention pooling, backward, without a float atomic.
//
// Three kernels. The first multiplies each slot of tokens with the heads' queries and, in the same pass over x, with
// the gradient of their sequence's sums. The second turns a sequence's scores into weights a once more and those
// products da into ds = a (da - sum a da + dlse). The weights come from the scores' own sum, not from the forward's
// lse: rounding of large scores would not cancel between two orders of summation. The third reads x once more: a block
// has a slice of the width and a share of the slots, writes dx = a dP + ds u, and keeps its part of du = sum ds x in
// registers.
//
// Workspaces, by slots: products (slots, 2 heads rounded up, kSlot) holds scores, then da; weights, of the same shape
// in elements, a and then ds.
#include "launch.h"
#include "products.cuh"

namespace d2llm {
namespace {

constexpr float kNone = -INFINITY;

struct Pool {
    PoolBackwardArguments arguments;
    int64_t slots;
    bool aligned, u_aligned, dpooled_aligned, dx_aligned;
};

// Rows of u or of a sequence's dP, from byte `at` of the width on.
template <class E, int HEADS, int BYTES>
__device__ __forceinline__ void stage_heads(char* to, int pitch, const Pool& k, const void* rows, int64_t stride,
                                            int64_t at, bool aligned) {
    const PoolBackwardArguments& p = k.arguments;
    const char* from = static_cast<const char*>(rows) + at;
    const int64_t left = p.tokens.width * int64_t{sizeof(E)} - at;
    stage<E, kPoolThreads, BYTES>(to, HEADS, pitch, rows, left, aligned, [&](int head) {
        return head < p.heads ? from + head * stride * int64_t{sizeof(E)} : nullptr;
    });
}

template <class E>
__device__ __forceinline__ const E* dpooled_of(const PoolBackwardArguments& p, int64_t b) {
    return static_cast<const E*>(p.dpooled) + b * p.dpooled_stride_b;
}

template <class E, int HEADS>
__global__ void __launch_bounds__(kPoolThreads, 2) pool_products_kernel(const Pool k) {
    const PoolBackwardArguments& p = k.arguments;
    const Tokens& tokens = p.tokens;
    const int64_t slot = blockIdx.x;
    const Sequence sequence = sequence_of<E>(tokens, owner(tokens, slot));
    const int64_t first = (slot - first_slot(tokens, sequence.index)) * kSlot;
    const int chunks = (tokens.width * int(sizeof(E)) + kChunk - 1) / kChunk;
    const E* dpooled = dpooled_of<E>(p, sequence.index);
    Products<2 * HEADS> products;
    multiply_slot<E, 2 * HEADS>(products, tokens, sequence, first, 0, any_token(tokens, sequence, first) ? chunks : 0,
                                k.aligned, [&](char* to, int64_t at) {
                                    stage_heads<E, HEADS, kChunk>(to, kPitch, k, p.u, p.u_stride, at, k.u_aligned);
                                    stage_heads<E, HEADS, kChunk>(to + HEADS * kPitch, kPitch, k, dpooled,
                                                                  p.dpooled_stride_h, at, k.dpooled_aligned);
                                });
    float* out = p.products + slot * 2 * HEADS * kSlot;
    products.each([&](int token, int row, float& value) {
        const bool masked = row < HEADS && !takes_part(tokens, sequence, first + token);
        out[row * kSlot + token] = masked ? kNone : value;
    });
}

// What one warp needs of a sequence for one head.
template <int HEADS>
struct HeadRows {
    int64_t first, last;  // slots
    int head;

    __device__ __forceinline__ int64_t at(int64_t slot, bool second) const {
        return (slot * 2 * HEADS + (second ? HEADS : 0) + head) * kSlot;
    }

    template <class Visit>
    __device__ __forceinline__ void each(const float* products, Visit visit) const {
        for (int64_t slot = first; slot < last; ++slot)
            for (int token = threadIdx.x % 32; token < kSlot; token += 32)
                visit(slot, token, products[at(slot, false) + token], products[at(slot, true) + token]);
    }
};

template <class E, int HEADS>
__global__ void __launch_bounds__(kPoolThreads) pool_softmax_kernel(const Pool k) {
    const PoolBackwardArguments& p = k.arguments;
    const int64_t b = blockIdx.x;
    const HeadRows<HEADS> rows{first_slot(p.tokens, b), first_slot(p.tokens, b + 1),
                               static_cast<int>(blockIdx.y * 4 + threadIdx.x / 32)};
    float top = kNone, denominator = 0, mean = 0;
    rows.each(p.products, [&](int64_t, int, float s, float) { top = fmaxf(top, s); });
    for (int mask = 16; mask; mask /= 2) top = fmaxf(top, shuffle_xor(top, mask));
    const float base = top == kNone ? 0.0f : top;
    rows.each(p.products, [&](int64_t, int, float s, float da) {
        const float weight = exponential(s - base);
        denominator += weight;
        mean += weight * da;
    });
    for (int mask = 16; mask; mask /= 2) {
        denominator += shuffle_xor(denominator, mask);
        mean += shuffle_xor(mean, mask);
    }
    denominator = denominator != 0 ? denominator : 1.0f;
    mean /= denominator;
    const float slope = p.dlse && rows.head < p.heads ? p.dlse[b * p.dlse_stride_b + rows.head * p.dlse_stride_h] : 0;
    E* weights = static_cast<E*>(p.weights);
    rows.each(p.products, [&](int64_t slot, int token, float s, float da) {
        const float weight = exponential(s - base) / denominator;
        narrow(weight, weights[rows.at(slot, false) + token]);
        // A token that takes no part has no gradient, whatever dlse is.
        narrow(s == kNone ? 0.0f : weight * (da - mean + slope), weights[rows.at(slot, true) + token]);
    });
}

constexpr int kSlicePitch = kPoolSlice + kPiece;

template <class E, int HEADS>
struct Memory {
    static constexpr int kWeightBytes = kPoolTokens * sizeof(E), kWeightPitch = kWeightBytes + kPiece;
    static constexpr int kTokenBytes = kPoolTokens * kSlicePitch, kHeadBytes = HEADS * kSlicePitch;
    static constexpr int kBuffer = kTokenBytes + kHeadBytes + 2 * HEADS * kWeightPitch;
    static constexpr size_t kBytes = kHeadBytes + kGradientStages * kBuffer;

    char* tokens;   // (kPoolTokens, slice)
    char* dpooled;  // (heads, slice)
    char* weights;  // (heads, kPoolTokens): a
    char* slopes;   // and ds
    __device__ __forceinline__ explicit Memory(int b)
        : tokens(shared_memory() + kHeadBytes + b * kBuffer),
          dpooled(tokens + kTokenBytes),
          weights(dpooled + kHeadBytes),
          slopes(weights + HEADS * kWeightPitch) {}
    __device__ __forceinline__ static char* u() { return shared_memory(); }
};

// Where a walk over the slots has come: the sequence of a slot, found from that of the one before.
template <class E>
struct Cursor {
    const Tokens& tokens;
    Sequence sequence;
    int64_t begin, end;

    __device__ __forceinline__ Cursor(const Tokens& tokens, int64_t slot) : tokens(tokens) { set(owner(tokens, slot)); }

    __device__ __forceinline__ void set(int64_t b) {
        sequence = sequence_of<E>(tokens, b);
        begin = first_slot(tokens, b);
        end = first_slot(tokens, b + 1);
    }

    __device__ __forceinline__ void move_to(int64_t slot) {
        while (slot >= end) set(sequence.index + 1);
    }
};

// A warp's columns of dx and du: kChunk bytes of the slice.
template <class E, int HEADS>
struct Gradients {
    using M = Memory<E, HEADS>;
    static constexpr int kN = kChunk / (8 * sizeof(E));
    float du[HEADS / 16][kN][4] = {};

    __device__ __forceinline__ static int column(int n) { return threadIdx.x / 32 * kChunk + 8 * n * int(sizeof(E)); }

    __device__ __forceinline__ void add(const M& memory) {
#pragma unroll(kUnrolled<E>)
        for (int unit = 0; unit < kPoolTokens / kDepth<E>; ++unit) {
            Left<E> slopes[HEADS / 16];
#pragma unroll
            for (int m = 0; m < HEADS / 16; ++m) {
                uint32_t words[4];
                load_rows(words, memory.slopes + 16 * m * M::kWeightPitch + unit * kUnit, M::kWeightPitch);
                slopes[m] = Left<E>(words);
            }
#pragma unroll
            for (int n = 0; n < kN; n += 2) {
                uint32_t words[4];
                load_columns_transposed<E>(words, memory.tokens + unit * kDepth<E> * kSlicePitch + column(n),
                                           kSlicePitch);
                const Right<E> one(words), two(words + 2);
#pragma unroll
                for (int m = 0; m < HEADS / 16; ++m) {
                    multiply<E>(du[m][n], slopes[m], one);
                    multiply<E>(du[m][n + 1], slopes[m], two);
                }
            }
        }
    }

    // a dP + ds u of 16 tokens.
    __device__ __forceinline__ static void tokens(const M& memory, int m, float (&dx)[kN][4]) {
#pragma unroll
        for (int unit = 0; unit < HEADS / kDepth<E>; ++unit)
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                uint32_t words[4];
                const char* left = (side ? memory.slopes : memory.weights) + unit * kDepth<E> * M::kWeightPitch;
                const char* right = (side ? M::u() : memory.dpooled) + unit * kDepth<E> * kSlicePitch;
                load_rows_transposed<E>(words, left + 16 * m * int(sizeof(E)), M::kWeightPitch);
                const Left<E> factor(words);
#pragma unroll
                for (int n = 0; n < kN; n += 2) {
                    load_columns_transposed<E>(words, right + column(n), kSlicePitch);
                    multiply<E>(dx[n], factor, Right<E>(words));
                    multiply<E>(dx[n + 1], factor, Right<E>(words + 2));
                }
            }
    }
};

// Writes a warp's dx of a step. Alone, it goes through the warp's own columns of the tokens, which are no longer
// needed, to be written 16 bytes at a time; one of several groups of heads adds to sums in memory.
template <class E, int HEADS>
__device__ __forceinline__ void write_tokens(const Pool& k, const Sequence& sequence, int64_t first, int64_t slice,
                                             const Memory<E, HEADS>& memory) {
    const PoolBackwardArguments& p = k.arguments;
    using G = Gradients<E, HEADS>;
    const int lane = threadIdx.x % 32;
    const int64_t width = p.tokens.width, column = (slice * kPoolSlice + threadIdx.x / 32 * kChunk) / int(sizeof(E));
    E* out = static_cast<E*>(p.dx) + (sequence.start + first) * width;
#pragma unroll
    for (int m = 0; m < kPoolTokens / 16; ++m) {
        float dx[G::kN][4] = {};
        G::tokens(memory, m, dx);
#pragma unroll
        for (int n = 0; n < G::kN; ++n)
            for (int i = 0; i < 4; ++i) {
                const int token = 16 * m + i / 2 * 8 + lane / 4, d = 8 * n + lane % 4 * 2 + i % 2;
                if (p.sums) {
                    if (first + token >= sequence.count || column + d >= width) continue;
                    float* sum = p.sums + (sequence.start + first + token) * width + column + d;
                    const float value = p.first ? dx[n][i] : *sum + dx[n][i];
                    if (p.last)
                        narrow(value, out[token * width + column + d]);
                    else
                        *sum = value;
                } else {
                    char* row = memory.tokens + token * kSlicePitch + threadIdx.x / 32 * kChunk;
                    narrow(dx[n][i], reinterpret_cast<E*>(row)[d]);
                }
            }
    }
    if (p.sums) return;
    __syncwarp();
    for (int index = lane; index < kPoolTokens * (kChunk / kPiece); index += 32) {
        const int token = index / (kChunk / kPiece), piece = index % (kChunk / kPiece);
        if (first + token >= sequence.count) continue;
        const char* from = memory.tokens + token * kSlicePitch + threadIdx.x / 32 * kChunk + piece * kPiece;
        constexpr int kCount = kPiece / sizeof(E);
        const int64_t d = column + piece * kCount;
        E* to = out + token * width + d;
        if (k.dx_aligned && d + kCount <= width) {
            *reinterpret_cast<Vector*>(to) = *reinterpret_cast<const Vector*>(from);
        } else {
            for (int e = 0; e < kCount; ++e)
                if (d + e < width) to[e] = reinterpret_cast<const E*>(from)[e];
        }
    }
}

template <class E, int HEADS>
__global__ void __launch_bounds__(kPoolThreads, 2) pool_gradients_kernel(const Pool k) {
    using M = Memory<E, HEADS>;
    const PoolBackwardArguments& p = k.arguments;
    const Tokens& tokens = p.tokens;
    const int64_t slots = first_slot(tokens, tokens.sequences), share = (k.slots + p.groups - 1) / p.groups;
    const int64_t begin = blockIdx.y * share, end = min(begin + share, slots), slice = blockIdx.x;
    Gradients<E, HEADS> gradients;
    if (begin < end) {
        Cursor<E> ahead(tokens, begin), here(tokens, begin);
        constexpr int kSteps = kSlot / kPoolTokens;
        stage_heads<E, HEADS, kPoolSlice>(M::u(), kSlicePitch, k, p.u, p.u_stride, slice * kPoolSlice, k.u_aligned);
        pipeline<kGradientStages>(
            static_cast<int>(end - begin) * kSteps,
            [&](int step, int b) {
                const M to(b);
                const int64_t slot = begin + step / kSteps, at = slice * kPoolSlice;
                ahead.move_to(slot);
                const int64_t first = (slot - ahead.begin) * kSlot + step % kSteps * kPoolTokens;
                stage_tokens<E, kPoolThreads, kPoolSlice>(to.tokens, kPoolTokens, kSlicePitch, tokens, ahead.sequence,
                                                          first, at, k.aligned);
                stage_heads<E, HEADS, kPoolSlice>(to.dpooled, kSlicePitch, k, dpooled_of<E>(p, ahead.sequence.index),
                                                  p.dpooled_stride_h, at, k.dpooled_aligned);
                const E* weights = static_cast<const E*>(p.weights) + slot * 2 * HEADS * kSlot + first % kSlot;
                stage<E, kPoolThreads, M::kWeightBytes>(
                    to.weights, 2 * HEADS, M::kWeightPitch, weights, M::kWeightBytes, true,
                    [&](int row) { return reinterpret_cast<const char*>(weights + row * kSlot); });
            },
            [&](int step, int b) {
                const M memory(b);
                const int64_t slot = begin + step / kSteps;
                here.move_to(slot);
                gradients.add(memory);
                // A warp reads tokens of its own columns alone, and is done with them.
                __syncwarp();
                const int64_t first = (slot - here.begin) * kSlot + step % kSteps * kPoolTokens;
                write_tokens<E, HEADS>(k, here.sequence, first, slice, memory);
            });
    }
    const int lane = threadIdx.x % 32;
    float* du = p.du + blockIdx.y * int64_t{p.heads} * tokens.width;
#pragma unroll
    for (int m = 0; m < HEADS / 16; ++m)
#pragma unroll
        for (int n = 0; n < gradients.kN; ++n)
            for (int i = 0; i < 4; ++i) {
                const int head = 16 * m + i / 2 * 8 + lane / 4;
                const int64_t d = (slice * kPoolSlice + gradients.column(n)) / int(sizeof(E)) + lane % 4 * 2 + i % 2;
                if (head < p.heads && d < tokens.width) du[int64_t{head} * tokens.width + d] = gradients.du[m][n][i];
            }
}

template <class E>
int64_t slices_of(int width) {
    return (width * int64_t{sizeof(E)} + kPoolSlice - 1) / kPoolSlice;
}

template <class E, int HEADS>
void start(const PoolBackwardArguments& p, cudaStream_t stream) {
    const int64_t slots = pool_slots(p.tokens);
    const bool dpooled_aligned =
        is_aligned<E>(p.dpooled, p.dpooled_stride_h) && is_aligned<E>(p.dpooled, p.dpooled_stride_b);
    const Pool k{p,
                 slots,
                 tokens_aligned<E>(p.tokens),
                 is_aligned<E>(p.u, p.u_stride),
                 dpooled_aligned,
                 is_aligned<E>(p.dx, p.tokens.width)};
    const auto shape = [&] { return shape_of(p.tokens, p.heads); };
    const unsigned sequences = static_cast<unsigned>(p.tokens.sequences);
    const unsigned slices = slices_of<E>(p.tokens.width);
    launch(pool_products_kernel<E, HEADS>, kernels::pool_products, dim3(slots), kPoolThreads, kProductBytes<2 * HEADS>,
           stream, k, shape);
    launch(pool_softmax_kernel<E, HEADS>, kernels::pool_softmax, dim3(sequences, HEADS / 4), kPoolThreads, 0, stream, k,
           shape);
    launch(pool_gradients_kernel<E, HEADS>, kernels::pool_gradients, dim3(slices, p.groups), kPoolThreads,
           Memory<E, HEADS>::kBytes, stream, k, shape);
}

}  // namespace

int64_t pool_groups(const Tokens& tokens, Element element) {
    int64_t groups = 0;
    with_element(element, [&](auto e) {
        const int64_t slices = slices_of<decltype(e)>(tokens.width);
        groups = std::min(slots_of(tokens), std::max<int64_t>(1, kGradientBlocks / slices));
    });
    return groups;
}

void pool_backward(const PoolBackwardArguments& arguments, Element element, cudaStream_t stream) {
    with_element(element, [&](auto e) {
        with_heads<kBackwardBlocks<decltype(e)>>(
            arguments.heads, [&](auto blocks) { start<decltype(e), 16 * decltype(blocks)::value>(arguments, stream); });
    });
}

}  // namespace d2llm
