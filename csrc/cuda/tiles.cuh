// Tiles of operands in shared memory and fragments of them in registers.
//
// A matrix unit multiplies 32 bytes of a row at a time, 16 elements of half precision or 8 of float32: in 4-byte words
// its operands lie alike for all dtypes. Rows in shared memory are an odd number of 16-byte pieces apart, so that the
// eight rows of a matrix that are read together lie in different banks.
#pragma once

#include <platform.cuh>
#include <type_traits>

namespace d2llm {

constexpr int kUnit = 32;    // bytes of a row that one product takes
constexpr int kChunk = 128;  // bytes of a row that are staged at a time
constexpr int kPiece = 16;   // bytes of an access
constexpr int kPitch = kChunk + kPiece;

template <class E>
constexpr int kDepth = kUnit / sizeof(E);  // elements of a unit

// What one access moves.
struct alignas(kPiece) Vector {
    uint32_t words[4];
};

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kPiece == 0; }

// Whether rows that start at `pointer`, `stride` elements apart, can be read 16 bytes at a time.
template <class E>
bool is_aligned(const void* pointer, int64_t stride) {
    return is_aligned(pointer) && stride * int64_t{sizeof(E)} % kPiece == 0;
}

template <int SIZE>
using Bits = std::conditional_t<SIZE == 4, uint32_t, uint16_t>;

// Stages `rows` rows of BYTES each, pitch apart: threads copy 16 bytes in turn. row_of(r) gives the address of the part
// to stage, of which a row still has `left` bytes, or null where a row is absent. What is absent becomes zeros, without
// being read; `origin` is any address of the matrix. Rows that are not aligned to 16 bytes are copied element-wise.
template <class E, int THREADS, int BYTES, class RowOf>
__device__ __forceinline__ void stage(char* to, int rows, int pitch, const void* origin, int64_t left, bool aligned,
                                      RowOf row_of) {
    constexpr int pieces = BYTES / kPiece;
    using Word = Bits<sizeof(E)>;
    for (int index = threadIdx.x; index < rows * pieces; index += THREADS) {
        const int row = index / pieces, at = index % pieces * kPiece;
        const char* from = row_of(row);
        const int64_t known = left - at;
        const int count = from && known > 0 ? (known < kPiece ? static_cast<int>(known) : kPiece) : 0;
        char* target = to + row * pitch + at;
        if (aligned) {
            copy16(target, from ? from + at : origin, count);
        } else {
            for (int e = 0; e < kPiece; e += sizeof(E))
                *reinterpret_cast<Word*>(target + e) = e < count ? *reinterpret_cast<const Word*>(from + at + e) : 0;
        }
    }
}

// Runs use(step, buffer) for every step, while fill(step, buffer) has the copies of the next steps under way.
template <int STAGES, class Fill, class Use>
__device__ __forceinline__ void pipeline(int steps, Fill fill, Use use) {
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < steps) fill(step, step);
        commit_copies();
    }
    for (int step = 0; step < steps; ++step) {
        wait_copies<STAGES - 2>();
        // All have their copies, and all are done with the buffer that is filled next.
        __syncthreads();
        const int next = step + STAGES - 1;
        if (next < steps) fill(next, next % STAGES);
        commit_copies();
        use(step, step % STAGES);
    }
    wait_copies<0>();
    __syncthreads();
}

// A fragment of 16 rows, 32 bytes deep, that starts at `tile`.
__device__ __forceinline__ void load_rows(uint32_t (&words)[4], const char* tile, int pitch) {
    const int lane = threadIdx.x % 32;
    load_matrices(words, tile + lane % 16 * pitch + lane / 16 * kPiece);
}

// Right operands of two products, for columns that lie in 16 rows of shared memory: words 0 and 1, and 2 and 3.
__device__ __forceinline__ void load_columns(uint32_t (&words)[4], const char* tile, int pitch) {
    const int lane = threadIdx.x % 32;
    load_matrices(words, tile + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * kPiece);
}

// A left operand whose 16 rows are columns of shared memory; the depth of a unit lies in its rows.
template <class E>
__device__ __forceinline__ void load_rows_transposed(uint32_t (&words)[4], const char* tile, int pitch) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(E) == 2) {
        load_transposed(words, tile + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * kPiece);
    } else {
        const char* at = tile + lane % 4 * pitch + lane / 4 * 4;
        for (int i = 0; i < 4; ++i) words[i] = *reinterpret_cast<const uint32_t*>(at + i / 2 * 4 * pitch + i % 2 * 32);
    }
}

// Right operands of two products, for 16 columns of shared memory; the depth of a unit lies in its rows.
template <class E>
__device__ __forceinline__ void load_columns_transposed(uint32_t (&words)[4], const char* tile, int pitch) {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(E) == 2) {
        load_transposed(words, tile + lane % 16 * pitch + lane / 16 * kPiece);
    } else {
        const char* at = tile + lane % 4 * pitch + lane / 4 * 4;
        for (int i = 0; i < 4; ++i) words[i] = *reinterpret_cast<const uint32_t*>(at + i % 2 * 4 * pitch + i / 2 * 32);
    }
}

// Words of an operand, ready for products. float32 is cut into two tf32 numbers, whose three largest products have its
// precision; what is not finite has no rest.
template <class E, int N>
struct Operand {
    uint32_t words[N];
    Operand() = default;
    __device__ __forceinline__ explicit Operand(const uint32_t* from) {
        for (int i = 0; i < N; ++i) words[i] = from[i];
    }
};

__device__ __forceinline__ bool is_finite(uint32_t word) { return (word & 0x7f800000) != 0x7f800000; }

__device__ __forceinline__ uint32_t tf32_of(uint32_t word) {
    return is_finite(word) ? (word + 0x1000) & 0xffffe000 : word;
}

template <int N>
struct Operand<float, N> {
    uint32_t words[N], rest[N];
    Operand() = default;
    __device__ __forceinline__ explicit Operand(const uint32_t* from) {
        for (int i = 0; i < N; ++i) {
            words[i] = tf32_of(from[i]);
            const float left = __uint_as_float(from[i]) - __uint_as_float(words[i]);
            rest[i] = is_finite(from[i]) ? tf32_of(__float_as_uint(left)) : 0;
        }
    }
};

template <class E>
using Left = Operand<E, 4>;
template <class E>
using Right = Operand<E, 2>;

// c += a b. Matrix units cut sums off where float32 arithmetic rounds them to nearest: added to c in hundreds of steps,
// products would draw it towards zero. Those of float32 therefore add up a unit alone, the small ones first, and what
// they come to is added to c by ordinary arithmetic.
template <class E>
__device__ __forceinline__ void multiply(float (&c)[4], const Left<E>& a, const Right<E>& b) {
    if constexpr (sizeof(E) == 4) {
        float unit[4] = {};
        mma_words(unit, a.rest, b.words[0], b.words[1], E{});
        mma_words(unit, a.words, b.rest[0], b.rest[1], E{});
        mma_words(unit, a.words, b.words[0], b.words[1], E{});
        for (int i = 0; i < 4; ++i) c[i] += unit[i];
    } else {
        mma_words(c, a.words, b.words[0], b.words[1], E{});
    }
}

// Sum over a quad of lanes, which holds the columns of a product's row, in all four.
__device__ __forceinline__ float sum_of_quad(float value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

// Sum over the lanes that hold the same columns of a product, in all eight.
__device__ __forceinline__ float sum_of_rows(float value) {
    value += shuffle_xor(value, 4);
    value += shuffle_xor(value, 8);
    return value + shuffle_xor(value, 16);
}

}  // namespace d2llm
