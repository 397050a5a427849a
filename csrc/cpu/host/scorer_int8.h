// One thread's scoring of runs of pairs whose passages are int8, in strips.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../isa/kernels.h"
#include "pack.h"

namespace d2llm {

struct ByteOperands {
    at::Tensor a;      // (Nq, F) int16, 32767 for a row's largest value
    at::Tensor top;    // (Nq,) float, that value
    at::Tensor b;      // (Np, F) int8
    at::Tensor scale;  // (Np,) float
};

// A row of the query reaches from -32767 to 32767 steps, one of the passage from -127 to 127: their sum fits int16.
inline Gauge gauge_of(float top, float scale) {
    const float unit = (top + 128 * scale) / 32767;
    // Without a finite unit nothing can be counted in it; it makes the score NaN where it is not 0.
    if (!(unit > 0 && std::isfinite(unit))) return {0, 0, unit};
    const auto factor = [](float value) {
        return static_cast<int16_t>(std::clamp(std::nearbyint(value), 0.0f, 32767.0f));
    };
    return {factor(top / 32767 / unit * 32768), factor(scale / unit * 128), unit};
}

class ByteScorer {
  public:
    ByteScorer(const Kernels& kernels, const BranchView& branch, const ByteOperands& operands)
        : kernels_(kernels),
          branch_(branch),
          operands_(operands),
          a_(kernels.strip),
          b_(kernels.strip),
          gauge_(kernels.strip),
          z_(kernels.strip),
          scratch_(kernels.strip * (2 * branch.features + 64)) {}

    // z (count,) of the pairs (query(l), passage(l)), l < count <= the kernels' strip.
    template <class Query, class Passage>
    const float* operator()(int64_t count, Query query, Passage passage) {
        for (int64_t l = 0; l < kernels_.strip; ++l) {
            const int64_t pair = l < count ? l : count - 1, i = query(pair), j = passage(pair);
            a_[l] = reinterpret_cast<const int16_t*>(row_of(operands_.a, i));
            b_[l] = reinterpret_cast<const int8_t*>(row_of(operands_.b, j));
            gauge_[l] = gauge_of(operands_.top.const_data_ptr<float>()[i], operands_.scale.const_data_ptr<float>()[j]);
        }
        kernels_.score_int8(branch_, {a_.data(), b_.data(), gauge_.data(), scratch_.data(), z_.data()});
        return z_.data();
    }

  private:
    const Kernels& kernels_;
    const BranchView& branch_;
    const ByteOperands& operands_;
    std::vector<const int16_t*> a_;
    std::vector<const int8_t*> b_;
    std::vector<Gauge> gauge_;
    std::vector<float> z_, scratch_;
};

// a (Nq, F) float, b (Np, F) int8, scale (Np,) float.
ByteOperands byte_operands(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale);

}  // namespace d2llm
