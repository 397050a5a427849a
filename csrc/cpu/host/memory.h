// Memory for results.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace d2llm {

// An uninitialized tensor. A large one asks for huge pages: the first touch of each small page costs more than what
// the kernels have to do for it.
inline at::Tensor fresh(at::IntArrayRef sizes, const at::TensorOptions& options) {
    at::Tensor tensor = at::empty(sizes, options);
#if defined(__linux__)
    constexpr uintptr_t kLarge = 4 << 20, kPage = 4096;
    const uintptr_t bytes = tensor.nbytes(), begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
    // It is a wish: where it is not granted nothing changes.
    if (bytes >= kLarge) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
    return tensor;
}

}  // namespace d2llm
