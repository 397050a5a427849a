// One thread's scoring of runs of pairs, in strips.
#pragma once

#include <vector>

#include "../isa/kernels.h"
#include "pack.h"

namespace d2llm {

// Rows a and b as they lie in memory.
struct Operands {
    at::Tensor a, b;
};

class Scorer {
  public:
    Scorer(const Kernels& kernels, const BranchView& branch, const Operands& operands)
        : kernels_(kernels),
          branch_(branch),
          operands_(operands),
          a_(kernels.strip),
          b_(kernels.strip),
          z_(kernels.strip),
          // The hidden layer of a strip.
          scratch_(kernels.strip * branch.features) {}

    int64_t strip() const { return kernels_.strip; }

    // z and, unless null, features (count, F) of the pairs (query(l), passage(l)), l < count <= strip().
    template <class Query, class Passage>
    const float* operator()(int64_t count, Query query, Passage passage, float* features = nullptr) {
        for (int64_t l = 0; l < kernels_.strip; ++l) {
            const int64_t pair = l < count ? l : count - 1;
            a_[l] = row_of(operands_.a, query(pair));
            b_[l] = row_of(operands_.b, passage(pair));
        }
        const Strip strip{a_.data(), b_.data(), scratch_.data(), z_.data(), features};
        (rows_kind(operands_.a) == Rows::f32 ? kernels_.score_f32 : kernels_.score_bf16)(branch_, strip);
        return z_.data();
    }

  private:
    const Kernels& kernels_;
    const BranchView& branch_;
    const Operands& operands_;
    std::vector<const void*> a_, b_;
    std::vector<float> z_, scratch_;
};

}  // namespace d2llm
