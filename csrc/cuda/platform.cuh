// The few operations of the machine that the kernels are written in, as PTX for compute capability 8.0 and later. It is
// looked for on the include path, where another machine's may come first.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "check.h"
#include "devices.h"
#include "elements.h"
#include "kernels.h"

namespace d2llm {

__device__ __forceinline__ char* shared_memory() {
    extern __shared__ __align__(128) char shared[];
    return shared;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ float widen(float value) { return value; }

__device__ __forceinline__ float widen(bf16 value) { return __uint_as_float(uint32_t{value.bits} << 16); }

__device__ __forceinline__ float widen(fp16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

__device__ __forceinline__ void narrow(float value, float& out) { out = value; }

__device__ __forceinline__ void narrow(float value, bf16& out) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
}

__device__ __forceinline__ void narrow(float value, fp16& out) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
}

// max(value, 0), NaN where the value is NaN.
__device__ __forceinline__ float relu(float value) {
    float result;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
    return result;
}

// relu(a + b) of the elements in a word, rounded like a sum.
__device__ __forceinline__ uint32_t add_relu(uint32_t a, uint32_t b, float) {
    return __float_as_uint(relu(__uint_as_float(a) + __uint_as_float(b)));
}

__device__ __forceinline__ uint32_t add_relu(uint32_t a, uint32_t b, bf16) {
    uint32_t result;
    asm("fma.rn.relu.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(0x3f803f80), "r"(b));
    return result;
}

__device__ __forceinline__ uint32_t add_relu(uint32_t a, uint32_t b, fp16) {
    uint32_t result;
    asm("fma.rn.relu.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(0x3c003c00), "r"(b));
    return result;
}

// c += a b for a (16, 32 bytes) and b (8, 32 bytes): 16 half precision elements deep, or 8 of float32.
__device__ __forceinline__ void mma_words(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_words(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, fp16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// float32 words as tf32 numbers: their low 13 bits do not count.
__device__ __forceinline__ void mma_words(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 16-byte matrices of shared memory; lane l gives the address of row l % 8 of matrix l / 8, and of each
// matrix gets word l % 4 of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const char* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of their transposes, in elements of 16 bits: rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
__device__ __forceinline__ void load_transposed(uint32_t (&words)[4], const char* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes to shared memory, asynchronously: `bytes` from `from`, zeros behind.
__device__ __forceinline__ void copy16(char* to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most PENDING of the newest groups of this thread's copies are under way.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffff, value, mask); }

// What another block wrote in this launch: past the first-level cache, which is not kept coherent.
__device__ __forceinline__ float load_fresh(const float* from) { return __ldcg(from); }

__device__ __forceinline__ int add_relaxed(int* counter, int value) { return atomicAdd(counter, value); }

// Everything this thread and, after a barrier, its block has written is seen by those who see the sum.
__device__ __forceinline__ int add_release(int* counter, int value) {
    __threadfence();
    return atomicAdd(counter, value);
}

__device__ __forceinline__ int load_acquire(const int* counter) {
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}

__device__ __forceinline__ void fence() { __threadfence(); }

__device__ __forceinline__ void pause() { __nanosleep(64); }

__device__ __forceinline__ float exponential(float value) { return __expf(value); }

// Launches a kernel with dynamic shared memory; shape() says its shape for the message of an error.
template <class Arguments, class Shape>
void launch(void (*function)(Arguments), Kernel& kernel, dim3 grid, unsigned threads, size_t shared,
            cudaStream_t stream, const Arguments& arguments, Shape shape) {
    cudaError_t status = allow_shared(reinterpret_cast<const void*>(function), shared);
    if (status == cudaSuccess) {
        function<<<grid, threads, shared, stream>>>(arguments);
        status = cudaGetLastError();
    }
    if (status != cudaSuccess) check(status, kernel.name, shape());
    kernel.count();
}

}  // namespace d2llm
