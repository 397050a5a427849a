// Errors of the CUDA runtime as exceptions that name the kernel and the shape.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace d2llm {

inline void check(cudaError_t status, const char* kernel, const std::string& shape) {
    if (status == cudaSuccess) return;
    throw std::runtime_error(std::string(kernel) + " (" + shape + "): " + cudaGetErrorName(status) + ", " +
                             cudaGetErrorString(status));
}

}  // namespace d2llm
