// Layouts of shared memory and of operands that the copy engine and the matrix units of Hopper know.
#pragma once

#include <cstdint>

#include "../elements.h"

namespace d2llm::hopper {

struct e4m3 {
    uint8_t bits;
};

constexpr int kBarrierBytes = 8;

// Bytes of a box's row. The engine swaps the 16-byte pieces of a row, so that eight rows' pieces of a column lie in
// different banks: piece c of row r is at c ^ r % 8. Boxes start at multiples of 1024 bytes.
constexpr int kRowBytes = 128;

__device__ __forceinline__ uint32_t swizzled(int row, int piece) {
    return row * kRowBytes + ((piece ^ (row & 7)) << 4);
}

// Sums of a warpgroup's product. Warp w holds rows 16 w + lane / 4 (words 0 and 2 of a) and 8 further down (words 1 and
// 3); of each 32-byte row word 0 or 1 is at 4 (lane % 4) bytes, word 2 or 3 is 16 bytes on. c[4 n + 2 r + e] is of row
// lane / 4 + 8 r, column 8 n + 2 (lane % 4) + e.
using Products = float[64];

// How the units find rows of 128 bytes in shared memory whose 16-byte pieces the copy engine swapped: groups of eight
// rows are 1024 bytes apart, where the address is a multiple of that. A step of 32 bytes along the rows adds 2.
__device__ __forceinline__ uint64_t describe_rows(uint32_t address) {
    constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroup = uint64_t{1024 >> 4} << 32, kUnused = 1 << 16;
    return kSwizzle128 | kGroup | kUnused | (address & 0x3ffff) >> 4;
}

}  // namespace d2llm::hopper
