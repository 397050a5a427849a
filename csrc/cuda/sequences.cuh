// Where the tokens of a batch are: one description of padded and packed batches for every pooling kernel.
//
// A batch is cut into slots of kSlot tokens that never cross a sequence. Padded, each sequence has the same number of
// slots. Packed, sequence b starts at slot offsets[b] / kSlot + b: that leaves room for all its tokens wherever its
// offset falls, needs no table and no look at the offsets from the host, and wastes at most one empty slot a sequence.
#pragma once

#include <algorithm>

#include "table.cuh"
#include "tiles.cuh"

namespace d2llm {

struct Sequence {
    int64_t index, start;  // number of its first row, as if rows were one after the other
    int64_t count;         // tokens
    const char* x;         // its first token
    const uint8_t* mask;   // its first entry, or null
};

inline int64_t slots_of(const Tokens& tokens) {
    if (tokens.offsets) return tokens.length / kSlot + tokens.sequences;
    return tokens.sequences * ((tokens.length + kSlot - 1) / kSlot);
}

__device__ __forceinline__ int64_t offset_of(const Tokens& tokens, int64_t b) {
    const int64_t offset = tokens.offsets[b];
    return offset < 0 ? 0 : offset < tokens.length ? offset : tokens.length;
}

// First slot of sequence b; for b = B, the number of slots.
__device__ __forceinline__ int64_t first_slot(const Tokens& tokens, int64_t b) {
    return tokens.offsets ? offset_of(tokens, b) / kSlot + b : b * ((tokens.length + kSlot - 1) / kSlot);
}

// How many of the first numbers 0 <= b < count satisfy a condition that, once false, stays so.
template <class Condition>
__device__ __forceinline__ int64_t how_many(int64_t count, Condition condition) {
    int64_t low = 0;
    while (low < count) {
        const int64_t middle = (low + count) / 2;
        if (condition(middle))
            low = middle + 1;
        else
            count = middle;
    }
    return low;
}

// The sequence that a slot belongs to.
__device__ __forceinline__ int64_t owner(const Tokens& tokens, int64_t slot) {
    if (!tokens.offsets) return slot / ((tokens.length + kSlot - 1) / kSlot);
    return how_many(tokens.sequences, [&](int64_t b) { return first_slot(tokens, b) <= slot; }) - 1;
}

template <class E>
__device__ __forceinline__ Sequence sequence_of(const Tokens& tokens, int64_t b) {
    const char* x = static_cast<const char*>(tokens.x);
    if (tokens.offsets) {
        const int64_t start = offset_of(tokens, b), end = offset_of(tokens, b + 1);
        return {b, start, end - start, x + start * tokens.x_stride_l * int64_t{sizeof(E)}, nullptr};
    }
    const uint8_t* mask = tokens.mask ? tokens.mask + b * tokens.mask_stride_b : nullptr;
    return {b, b * tokens.length, tokens.length, x + b * tokens.x_stride_b * int64_t{sizeof(E)}, mask};
}

__device__ __forceinline__ bool takes_part(const Tokens& tokens, const Sequence& sequence, int64_t token) {
    if (token >= sequence.count) return false;
    return !sequence.mask || sequence.mask[token * tokens.mask_stride_l];
}

// Stages BYTES of each of `count` tokens from `first` on, from byte `at` of the rows on; zeros for those left out.
template <class E, int THREADS, int BYTES>
__device__ __forceinline__ void stage_tokens(char* to, int count, int pitch, const Tokens& tokens,
                                             const Sequence& sequence, int64_t first, int64_t at, bool aligned) {
    const int64_t left = tokens.width * int64_t{sizeof(E)} - at;
    stage<E, THREADS, BYTES>(to, count, pitch, tokens.x, left, aligned, [&](int row) {
        const char* from = sequence.x + (first + row) * tokens.x_stride_l * int64_t{sizeof(E)} + at;
        return takes_part(tokens, sequence, first + row) ? from : nullptr;
    });
}

template <class E>
bool tokens_aligned(const Tokens& tokens) {
    return is_aligned<E>(tokens.x, tokens.x_stride_l) && is_aligned<E>(tokens.x, tokens.x_stride_b);
}

// The template argument for a number of heads: blocks of 16, of which a power of two is taken.
template <int MOST, class Function>
void with_heads(int heads, Function function) {
    if (heads <= 16)
        function(std::integral_constant<int, 1>{});
    else if (heads <= 32)
        function(std::integral_constant<int, std::min(MOST, 2)>{});
    else
        function(std::integral_constant<int, MOST>{});
}

}  // namespace d2llm
