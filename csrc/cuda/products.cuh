// Products of a slot of tokens with rows of queries, over a part of the width: each warp has 16 tokens, all rows.
#pragma once

#include "sequences.cuh"

namespace d2llm {

// products[n][2 r + e]: token 16 warp + 8 r + lane / 4, row 8 n + 2 (lane % 4) + e.
template <int ROWS>
struct Products {
    float values[ROWS / 8][4];

    // Calls visit(token of the slot, row, value) for each.
    template <class Visit>
    __device__ __forceinline__ void each(Visit visit) {
        const int lane = threadIdx.x % 32, token = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
        for (int n = 0; n < ROWS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) visit(token + i / 2 * 8, 8 * n + lane % 4 * 2 + i % 2, values[n][i]);
    }
};

// Adds up chunks [first, last) of the width. stage_rows(to, at) stages kChunk bytes of the ROWS rows.
template <class E, int ROWS, class StageRows>
__device__ __forceinline__ void multiply_slot(Products<ROWS>& products, const Tokens& tokens, const Sequence& sequence,
                                              int64_t first_token, int first, int last, bool aligned,
                                              StageRows stage_rows) {
    for (auto& row : products.values)
        for (float& value : row) value = 0;
    constexpr int kBuffer = (kSlot + ROWS) * kPitch;
    pipeline<kProductStages>(
        last - first,
        [&](int step, int b) {
            char* to = shared_memory() + b * kBuffer;
            const int64_t at = int64_t{first + step} * kChunk;
            stage_tokens<E, kPoolThreads, kChunk>(to, kSlot, kPitch, tokens, sequence, first_token, at, aligned);
            stage_rows(to + kSlot * kPitch, at);
        },
        [&](int, int b) {
            const char* from = shared_memory() + b * kBuffer;
#pragma unroll(kUnrolled<E>)
            for (int at = 0; at < kChunk; at += kUnit) {
                uint32_t words[4];
                load_rows(words, from + threadIdx.x / 32 * 16 * kPitch + at, kPitch);
                const Left<E> left(words);
#pragma unroll
                for (int n = 0; n < ROWS / 8; n += 2) {
                    load_columns(words, from + (kSlot + 8 * n) * kPitch + at, kPitch);
                    multiply<E>(products.values[n], left, Right<E>(words));
                    multiply<E>(products.values[n + 1], left, Right<E>(words + 2));
                }
            }
        });
}

template <int ROWS>
constexpr size_t kProductBytes = size_t{kProductStages} * (kSlot + ROWS) * kPitch;

// Whether any token of the slot takes part; for the whole block to ask.
__device__ __forceinline__ bool any_token(const Tokens& tokens, const Sequence& sequence, int64_t first) {
    bool any = false;
    for (int token = 0; token < kSlot && !any; ++token) any = takes_part(tokens, sequence, first + token);
    return any;
}

}  // namespace d2llm
