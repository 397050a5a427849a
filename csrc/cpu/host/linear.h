// Linear layers in float32 on the CPU: shapes and semantics as in d2llm_kernels/operators/linear.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace d2llm {

// x (G, N, K), weight (G, M, K), bias (G, M) or none -> (G, N, M).
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

}  // namespace d2llm
