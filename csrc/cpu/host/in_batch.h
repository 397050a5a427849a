// The losses over all pairs of a batch: shapes and semantics as in d2llm_kernels/operators/in_batch.py. Tensors are
// float on the CPU, duplicates bool.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "arguments.h"

namespace d2llm {

// cross_entropy and pairwise, (B,) each.
std::tuple<at::Tensor, at::Tensor> in_batch_terms(const InBatch& inputs);

// Gradients of z and z_hard.
std::tuple<at::Tensor, at::Tensor> in_batch_terms_backward(const std::optional<at::Tensor>& dcross_entropy,
                                                           const std::optional<at::Tensor>& dpairwise,
                                                           const InBatch& inputs);

}  // namespace d2llm
