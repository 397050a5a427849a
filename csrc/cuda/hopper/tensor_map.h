// Tensor maps for the copy engine.
#pragma once

#include <array>
#include <hopper/platform.cuh>

namespace d2llm::hopper {

inline CUtensorMapDataType map_type(bf16) { return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16; }
inline CUtensorMapDataType map_type(fp16) { return CU_TENSOR_MAP_DATA_TYPE_FLOAT16; }
inline CUtensorMapDataType map_type(e4m3) { return CU_TENSOR_MAP_DATA_TYPE_UINT8; }

// A tensor of E from its innermost dimension on, whose elements are next to each other; strides count elements.
// Elements past `sizes` read as zeros.
template <class E, size_t RANK>
CUtensorMap tensor_map(const Call& call, const void* origin, const std::array<int64_t, RANK>& sizes,
                       const std::array<int64_t, RANK - 1>& strides, const std::array<int, RANK>& box, bool swizzle) {
    cuuint64_t size[RANK], stride[RANK];
    cuuint32_t extent[RANK], step[RANK];
    for (size_t i = 0; i < RANK; ++i) {
        size[i] = static_cast<cuuint64_t>(sizes[i]);
        extent[i] = static_cast<cuuint32_t>(box[i]);
        step[i] = 1;
        if (i + 1 < RANK) stride[i] = static_cast<cuuint64_t>(strides[i]) * sizeof(E);
    }
    CUtensorMap map;
    const CUresult status = map_encoder(call)(&map, map_type(E{}), RANK, const_cast<void*>(origin), size, stride,
                                              extent, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                              swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) call.check(cudaErrorInvalidValue);
    return map;
}

}  // namespace d2llm::hopper
