// A tile of pairs through the square layer of a branch: for each block of output columns pre = W relu(a + b), handed to
// an epilogue while it is in registers.
//
// Staged rows of W are placed so that a thread's columns of a product are eight neighbours: what the epilogue reads and
// writes for them is one 16-byte access.
#pragma once

#include "pairs.cuh"
#include "table.cuh"

namespace d2llm {

// Where a warp's products begin in a tile.
template <class S>
__device__ __forceinline__ int warp_row() {
    return threadIdx.x / 32 % S::kWarpsM * (16 * S::kM);
}

template <class S>
__device__ __forceinline__ int warp_column() {
    return threadIdx.x / 32 / S::kWarpsM * (8 * S::kN);
}

// Where column n of a block lies in shared memory, so that of every 32 columns thread t of a quad holds 8 t to 8 t + 7;
// and the column that lies at place n, for the order is its own inverse.
__device__ __forceinline__ int placed(int n) { return (n & ~31) | (n >> 1 & 3) << 3 | (n >> 3 & 3) << 1 | (n & 1); }

// Sums of a warp's products. products[m][n][2 r + e] belongs to row 16 m + 8 r + lane / 4 of the warp's rows, and to
// column 32 (n / 4) + 8 (lane % 4) + 2 (n % 4) + e of its columns.
template <class S>
struct Sums {
    float products[S::kM][S::kN][4];

    __device__ __forceinline__ void clear() {
        for (int m = 0; m < S::kM; ++m)
            for (int n = 0; n < S::kN; ++n)
                for (int i = 0; i < 4; ++i) products[m][n][i] = 0;
    }

    // Adds left operands times a unit of the staged right rows.
    template <class E>
    __device__ __forceinline__ void add(const Left<E> (&left)[S::kM], const char* rows, int at) {
#pragma unroll
        for (int n = 0; n < S::kN; n += 2) {
            uint32_t words[4];
            load_columns(words, rows + (warp_column<S>() + 8 * n) * kPitch + at, kPitch);
            const Right<E> one(words), two(words + 2);
#pragma unroll
            for (int m = 0; m < S::kM; ++m) {
                multiply<E>(products[m][n], left[m], one);
                multiply<E>(products[m][n + 1], left[m], two);
            }
        }
    }

    // Sums of a row's run of eight neighbouring columns, of kRuns.
    static constexpr int kRuns = S::kN / 4;

    __device__ __forceinline__ static int row(int m, int r) {
        return warp_row<S>() + 16 * m + 8 * r + threadIdx.x % 32 / 4;
    }

    __device__ __forceinline__ static int column(int run) { return warp_column<S>() + 32 * run + threadIdx.x % 4 * 8; }

    __device__ __forceinline__ void get(int m, int r, int run, float (&values)[8]) const {
        for (int i = 0; i < 8; ++i) values[i] = products[m][4 * run + i / 2][2 * r + i % 2];
    }
};

// Stages kChunk bytes of `count` rows of a matrix of `rows` rows, placed.
template <class E, int THREADS, int COUNT>
__device__ __forceinline__ void stage_placed(char* to, const void* matrix, int64_t stride, int first, int rows,
                                             int64_t at, int width, bool aligned) {
    const char* from = static_cast<const char*>(matrix) + at;
    const int64_t left = width * int64_t{sizeof(E)} - at;
    stage<E, THREADS, kChunk>(to, COUNT, kPitch, matrix, left, aligned, [&](int place) {
        const int row = first + placed(place);
        return row < rows ? from + row * stride * int64_t{sizeof(E)} : nullptr;
    });
}

// Calls epilogue(first column, sums) for every block of output columns.
template <class E, bool GIVEN, class Epilogue>
__device__ __forceinline__ void branch_tile(const Pairs& pairs, const Branch& branch, const PairTile& tile,
                                            bool aligned, Epilogue epilogue) {
    using S = PairShape<E, GIVEN>;
    const int width = pairs.width;
    const int chunks = (width * int(sizeof(E)) + kChunk - 1) / kChunk;
    const int blocks = (width + S::kColumns - 1) / S::kColumns;
    const int buffer = (S::kColumns + (GIVEN ? 2 * S::kRows : tile.tall + tile.wide)) * kPitch;
    const auto weights = [&](int b) { return shared_memory() + b * buffer; };
    const auto rows = [&](int b) {
        char* right = weights(b) + S::kColumns * kPitch;
        return PairChunk<E>{right, right + tile.wide * kPitch};
    };
    Sums<S> sums;
    pipeline<kBranchStages>(
        blocks * chunks,
        [&](int step, int b) {
            const int64_t at = int64_t{step % chunks} * kChunk;
            stage_placed<E, S::kThreads, S::kColumns>(weights(b), branch.weight, branch.weight_stride,
                                                      step / chunks * S::kColumns, width, at, width, aligned);
            rows(b).template fill<S::kThreads>(pairs, tile, at, aligned);
        },
        [&](int step, int b) {
            if (step % chunks == 0) sums.clear();
#pragma unroll(kUnrolled<E>)
            for (int at = 0; at < kChunk; at += kUnit) {
                Left<E> left[S::kM];
#pragma unroll
                for (int m = 0; m < S::kM; ++m)
                    left[m] = rows(b).template hidden<GIVEN>(tile, warp_row<S>() + 16 * m, at);
                sums.add(left, weights(b), at);
            }
            if (step % chunks == chunks - 1) epilogue(step / chunks * S::kColumns, sums);
        });
}

// Shared memory of branch_tile, in bytes.
template <class E, bool GIVEN>
size_t branch_bytes(int tall) {
    using S = PairShape<E, GIVEN>;
    return size_t{kBranchStages} * (S::kColumns + chunk_rows(GIVEN, tall, S::kRows)) * kPitch;
}

}  // namespace d2llm
