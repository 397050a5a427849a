// Tensor maps and the copy engine, with what the driver demands of a map.
#pragma once

#include "shared_addresses.h"

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;

enum CUresult { CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE };
enum CUtensorMapDataType {
    CU_TENSOR_MAP_DATA_TYPE_UINT8,
    CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
};
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

struct alignas(64) CUtensorMap {
    const char* origin;
    int64_t size[3], stride[3];  // in elements; in bytes
    int box[3];
    int element;  // bytes
    bool swizzle;
};

// As the driver's documentation of the function has it, in ranks of up to three.
inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* origin,
                                       const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* box,
                                       const cuuint32_t* step, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    const int element = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
    bool valid = reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(origin) % 16 == 0;
    valid = valid && rank > 0 && rank <= 3 && box[0] * element % 16 == 0;
    valid = valid && (swizzle == CU_TENSOR_MAP_SWIZZLE_NONE || box[0] * element <= 128);
    *map = {static_cast<const char*>(origin),     {1, 1, 1}, {element, 0, 0}, {1, 1, 1}, element,
            swizzle == CU_TENSOR_MAP_SWIZZLE_128B};
    for (cuuint32_t i = 0; valid && i < rank; ++i) {
        valid = size[i] > 0 && size[i] <= uint64_t{1} << 32 && box[i] > 0 && box[i] <= 256 && step[i] == 1;
        if (i > 0) valid = valid && stride[i - 1] % 16 == 0 && stride[i - 1] < uint64_t{1} << 40;
        if (i > 0) valid = valid && stride[i - 1] >= (i == 1 ? size[0] * element : size[i - 1]);
        map->size[i] = size[i];
        map->box[i] = box[i];
        if (i > 0) map->stride[i] = stride[i - 1];
    }
    return valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

namespace emulation {

// Brings the box at (x, y, z) to shared memory, 16 bytes at a time.
inline void bring(const CUtensorMap& map, const std::array<int64_t, 3>& from, uint32_t to) {
    const int row_bytes = map.box[0] * map.element, rows = map.box[1] * map.box[2];
    if (to % (map.swizzle ? 1024 : 128)) Machine::get().fail("a box is not aligned in shared memory");
    at(to, size_t(rows) * row_bytes, 16);
    for (int row = 0; row < rows; ++row)
        for (int piece = 0; piece < row_bytes; piece += 16) {
            uint32_t place = to + row * row_bytes + piece;
            if (map.swizzle) place ^= (place >> 7 & 7) << 4;
            char* target = at(place, 16, 16);
            const int64_t y = from[1] + row % map.box[1], z = from[2] + row / map.box[1];
            const bool inside = y >= 0 && y < map.size[1] && z >= 0 && z < map.size[2];
            for (int i = 0; i < 16; i += map.element) {
                const int64_t x = from[0] + (piece + i) / map.element;
                if (inside && x >= 0 && x < map.size[0])
                    std::memcpy(target + i, map.origin + x * map.element + y * map.stride[1] + z * map.stride[2],
                                map.element);
                else
                    std::memset(target + i, 0, map.element);
            }
        }
}

inline void copy_box(const CUtensorMap& map, const std::array<int64_t, 3>& from, uint32_t to, uint32_t barrier) {
    const int bytes = map.box[0] * map.element * map.box[1] * map.box[2];
    under_way(to, bytes);
    Machine::get().later([=] {
        bring(map, from, to);
        return barrier_at(barrier).count(-bytes);
    });
}

}  // namespace emulation
