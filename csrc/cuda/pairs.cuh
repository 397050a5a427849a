// Tiles of pairs and their hidden values relu(a + b), which exist only as left operands in registers.
//
// A tile of a grid joins `tall` queries with kRows / tall passages, a power of two of at least 16, so that the 16 rows
// of an operand share their query: it reads tall + kRows / tall rows, where the pairs are kRows. Of given pairs it
// reads two rows for each.
#pragma once

#include "tiles.cuh"

namespace d2llm {

constexpr int kMaxTall = 8;

// Which pairs a tile of `rows` holds.
struct PairTile {
    int64_t first_query, first_passage, queries, passages;  // those there are, not more than the tile has room for
    int tall, wide, shift;                                  // wide = 1 << shift
};

// Queries of a tile of `rows` pairs: as many as leave the fewest places empty.
inline int tile_queries(const Pairs& pairs, int rows) {
    if (pairs.given) return 1;
    const int64_t queries = pairs.queries;
    int best = 1;
    for (int tall = 2; tall <= kMaxTall && rows / tall >= 16; tall *= 2) {
        const auto padded = [&](int t) { return (queries + t - 1) / t * t; };
        if (padded(tall) <= padded(best)) best = tall;
    }
    return best;
}

inline int64_t tiles_of(const Pairs& pairs, int rows) {
    const int tall = tile_queries(pairs, rows), wide = rows / tall;
    const int64_t queries = pairs.given ? 1 : pairs.queries;
    return (queries + tall - 1) / tall * ((pairs.passages + wide - 1) / wide);
}

// Calls launch(E{}, given) with the type of the elements, and whether the pairs are given as a constant.
template <class Launch>
void with_pairs(const Pairs& pairs, Element element, Launch launch) {
    with_element(element, [&](auto e) { pairs.given ? launch(e, std::true_type{}) : launch(e, std::false_type{}); });
}

// Whether the rows of a and b can be read 16 bytes at a time.
template <class E>
bool rows_aligned(const Pairs& pairs) {
    return is_aligned<E>(pairs.a, pairs.a_stride) && is_aligned<E>(pairs.b, pairs.b_stride);
}

__device__ __forceinline__ PairTile pair_tile(const Pairs& pairs, int64_t tile, int tall, int rows) {
    const int wide = rows / tall, shift = 31 - __clz(wide);
    const int64_t across = (pairs.passages + wide - 1) / wide;
    const int64_t query = tile / across * tall, passage = tile % across * wide;
    const int64_t queries = pairs.queries - query, passages = pairs.passages - passage;
    return {query, passage, queries < tall ? queries : tall, passages < wide ? passages : wide, tall, wide, shift};
}

// Shared memory for a chunk of a tile's rows: passages, then queries.
template <class E>
struct PairChunk {
    char* right;
    char* left;

    // Stages kChunk bytes of every row from byte `at` on.
    template <int THREADS>
    __device__ __forceinline__ void fill(const Pairs& pairs, const PairTile& tile, int64_t at, bool aligned) const {
        const int64_t rest = pairs.width * int64_t{sizeof(E)} - at;
        const char* a = static_cast<const char*>(pairs.a) + at;
        const char* b = static_cast<const char*>(pairs.b) + at;
        stage<E, THREADS, kChunk>(right, tile.wide, kPitch, pairs.b, rest, aligned, [&](int row) {
            const int64_t passage = tile.first_passage + row;
            return row < tile.passages ? b + passage * pairs.b_stride * int64_t{sizeof(E)} : nullptr;
        });
        const int64_t first = pairs.given ? tile.first_passage : tile.first_query;
        const int64_t known = pairs.given ? tile.passages : tile.queries;
        stage<E, THREADS, kChunk>(
            left, pairs.given ? tile.wide : tile.tall, kPitch, pairs.a, rest, aligned,
            [&](int row) { return row < known ? a + (first + row) * pairs.a_stride * int64_t{sizeof(E)} : nullptr; });
    }

    // relu(a + b) of 16 pairs from `row` on, a unit deep from byte `at` of the chunk on.
    template <bool GIVEN>
    __device__ __forceinline__ Left<E> hidden(const PairTile& tile, int row, int at) const {
        uint32_t sum[4], other[4];
        load_rows(sum, right + (row & (tile.wide - 1)) * kPitch + at, kPitch);
        if constexpr (GIVEN) {
            load_rows(other, left + row * kPitch + at, kPitch);
        } else {
            const char* query = left + (row >> tile.shift) * kPitch + at + threadIdx.x % 4 * 4;
            other[0] = other[1] = *reinterpret_cast<const uint32_t*>(query);
            other[2] = other[3] = *reinterpret_cast<const uint32_t*>(query + 16);
        }
        for (int i = 0; i < 4; ++i) sum[i] = add_relu(other[i], sum[i], E{});
        return Left<E>(sum);
    }
};

// Rows that PairChunk needs of shared memory.
inline int chunk_rows(bool given, int tall, int rows) { return given ? 2 * rows : tall + rows / tall; }

// Integers that sort as (score, lower passage first) do. NaN counts as -inf, and both zeros are one score.
__device__ __forceinline__ int64_t key_of(float score, int64_t passage) {
    const float lowest = __uint_as_float(0xff800000);
    score = score == score ? score : lowest;
    const int32_t bits = static_cast<int32_t>(__float_as_uint(score == 0 ? 0.0f : score));
    const int32_t ordered = bits ^ ((bits >> 31) & 0x7fffffff);
    return static_cast<int64_t>(static_cast<uint64_t>(int64_t{ordered}) << 32) + (0xffffffff - passage);
}

// As a score or as a key, whichever is wanted.
__device__ __forceinline__ void write_score(const ScoresArguments& p, int64_t query, int64_t passage, float score) {
    const int64_t place = query * p.stride + passage;
    if (p.keys)
        p.keys[place] = key_of(score, p.first_passage + passage);
    else
        p.z[place] = score;
}

}  // namespace d2llm
