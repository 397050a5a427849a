// Attention pooling: shapes and semantics as in d2llm_kernels/operators/pooling.py. x and u are float or bfloat16, both
// of one dtype, on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace d2llm {

// mask (B, L) bool for padded x (B, L, D), or offsets (B + 1,) int64, checked, for packed x (T, D).
std::tuple<at::Tensor, at::Tensor> attn_pool(const at::Tensor& x, const at::Tensor& u,
                                             const std::optional<at::Tensor>& mask,
                                             const std::optional<at::Tensor>& offsets);

std::tuple<at::Tensor, at::Tensor> attn_pool_backward(const at::Tensor& dpooled, const std::optional<at::Tensor>& dlse,
                                                      const at::Tensor& x, const at::Tensor& u,
                                                      const std::optional<at::Tensor>& mask,
                                                      const std::optional<at::Tensor>& offsets);

}  // namespace d2llm
