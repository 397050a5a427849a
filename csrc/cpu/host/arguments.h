// Arguments of operators that travel together, by reference: they are made where a call comes in, in ops.cpp, and live
// as long as it. Shapes as in d2llm_kernels/operators/.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace d2llm {

// Weights of one branch of the IEM.
struct Branch {
    const at::Tensor& weight;      // (F, F)
    const at::Tensor& bias;        // (F,)
    const at::Tensor& out_weight;  // (1, F)
    const at::Tensor& out_bias;    // (1,)
};

// A batch that the losses over all pairs look at.
struct InBatch {
    const at::Tensor& z;                          // (B, B)
    const at::Tensor& z_hard;                     // (B, K)
    const at::Tensor& s_hard;                     // (B, K)
    const std::optional<at::Tensor>& s;           // (B, B)
    const std::optional<at::Tensor>& duplicates;  // (B, B)
    double temperature;
};

}  // namespace d2llm
