// A branch packed once, to search chunk after chunk of passages with.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <optional>
#include <tuple>

#include "pack.h"

namespace d2llm {

class Search : public torch::CustomClassHolder {
  public:
    // For passages in float, bfloat16 or int8; the branch is of their dtype, or float for int8.
    Search(const Branch& branch, at::ScalarType passages);

    // The best k passages b (Np, F) of each query a (Nq, F), values and indices (Nq, k), best first, the lower index
    // first among equals. a is of the branch's dtype; scale (Np,) float goes with int8, whose scores are rough ones.
    std::tuple<at::Tensor, at::Tensor> topk(const at::Tensor& a, const at::Tensor& b,
                                            const std::optional<at::Tensor>& scale, int64_t k) const;

  private:
    const Kernels& table_;
    at::ScalarType passages_;
    int64_t width_;
    PackedBranch packed_;
};

}  // namespace d2llm
