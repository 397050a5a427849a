// Products of a warpgroup, four warps that start at a multiple of four: c (64, 128) += a (64, 32 bytes) b (128, 32
// bytes) with a in registers, b in shared memory and sums in float.
//
// The units run behind the threads. Registers of a and c may be touched again only after a wait; before the first
// product that sees a change of theirs comes a fence. The compiler knows neither, so keep() stands after the wait and
// makes what follows depend on it.
#pragma once

#include <cstdint>

#include "layout.cuh"

namespace d2llm::hopper {

__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most PENDING of the newest groups are under way.
template <int PENDING>
__device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void keep(Products& c) {
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// Operands that the units may still read: the compiler shall not put something else in their registers before.
template <int WORDS>
__device__ __forceinline__ void hold(const uint32_t (&a)[WORDS]) {
#pragma unroll
    for (int i = 0; i < WORDS; ++i) asm volatile("" ::"r"(a[i]));
}

// Registers that a warpgroup gives back, or takes of those given back; it waits for them.
template <int REGISTERS>
__device__ __forceinline__ void shrink_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void grow_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#define D2LLM_PRODUCTS(KIND, TAIL)                                                                                    \
    asm volatile(                                                                                                     \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                                                  \
        "wgmma.mma_async.sync.aligned.m64n128" KIND                                                                   \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"                                     \
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"                            \
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"                            \
        " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63},"                           \
        " {%64, %65, %66, %67}, %68, p, 1, 1" TAIL ";\n}"                                                             \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), \
          "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]),      \
          "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),     \
          "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]),     \
          "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]),     \
          "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),     \
          "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]),     \
          "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])                   \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)))

// c += a b, or c = a b.
__device__ __forceinline__ void multiply(Products& c, const uint32_t* a, uint64_t b, bool add, bf16) {
    D2LLM_PRODUCTS("k16.f32.bf16.bf16", ", 0");
}

__device__ __forceinline__ void multiply(Products& c, const uint32_t* a, uint64_t b, bool add, fp16) {
    D2LLM_PRODUCTS("k16.f32.f16.f16", ", 0");
}

__device__ __forceinline__ void multiply(Products& c, const uint32_t* a, uint64_t b, bool add, e4m3) {
    D2LLM_PRODUCTS("k32.f32.e4m3.e4m3", "");
}

#undef D2LLM_PRODUCTS

}  // namespace d2llm::hopper
