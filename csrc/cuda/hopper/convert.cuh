// Pairs of small numbers in a word.
#pragma once

#include <cstdint>

#include "layout.cuh"

namespace d2llm::hopper {

__device__ __forceinline__ uint32_t narrow_two(float low, float high, bf16) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ __forceinline__ uint32_t narrow_two(float low, float high, fp16) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// The largest number of e4m3 stands for all that are larger.
__device__ __forceinline__ uint16_t narrow_two(float low, float high, e4m3) {
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

// The larger elements of two words of bfloat16, NaN where one is.
__device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b) {
    uint32_t result;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

}  // namespace d2llm::hopper
