// The losses over all pairs of a batch: shapes and semantics as in d2llm_kernels/functional.py. Tensors are float on
// the CPU, duplicates bool.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace d2llm {

// z_in_batch (B, B), z_hard and s_hard (B, K), s_in_batch and duplicates (B, B) -> cross_entropy, pairwise, (B,) each.
std::tuple<at::Tensor, at::Tensor> in_batch_terms(const at::Tensor& z_in_batch, const at::Tensor& z_hard,
                                                  const at::Tensor& s_hard, const std::optional<at::Tensor>& s_in_batch,
                                                  const std::optional<at::Tensor>& duplicates, double temperature);

// Gradients of z_in_batch and z_hard.
std::tuple<at::Tensor, at::Tensor> in_batch_terms_backward(
    const std::optional<at::Tensor>& dcross_entropy, const std::optional<at::Tensor>& dpairwise,
    const at::Tensor& z_in_batch, const at::Tensor& z_hard, const at::Tensor& s_hard,
    const std::optional<at::Tensor>& s_in_batch, const std::optional<at::Tensor>& duplicates, double temperature);

}  // namespace d2llm
