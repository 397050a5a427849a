// Interaction scores: shapes and semantics as in d2llm_kernels/operators/interaction.py. Tensors are float or bfloat16,
// all of one dtype, on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "arguments.h"

namespace d2llm {

at::Tensor iem_scores(const at::Tensor& a, const at::Tensor& b, const Branch& branch);

std::tuple<at::Tensor, at::Tensor> iem_pairs(const at::Tensor& a, const at::Tensor& b, const Branch& branch,
                                             bool return_features);

// The same in int8 for passages b (Np, F) int8 with scale (Np,) float; all other tensors are float.
at::Tensor iem_scores_int8(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale, const Branch& branch);

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients iem_scores_backward(const at::Tensor& dz, const at::Tensor& a, const at::Tensor& b, const Branch& branch);

Gradients iem_pairs_backward(const at::Tensor& dz, const std::optional<at::Tensor>& dfeatures, const at::Tensor& a,
                             const at::Tensor& b, const Branch& branch);

}  // namespace d2llm
