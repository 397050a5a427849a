// Interaction scores, forward: shapes and semantics as in d2llm_kernels/operators/interaction.py. Tensors are float or
// bfloat16, all of one dtype, on the CPU.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "../isa/dispatch.h"
#include "check.h"
#include "scorer.h"
#include "scorer_int8.h"

namespace d2llm {
namespace {

int64_t strips_of(int64_t pairs, int64_t strip) { return (pairs + strip - 1) / strip; }

// z (Nq * Np,) of all pairs, passages innermost; a strip may run over the end of a query's row.
template <class Scorer, class Operands>
at::Tensor all_pairs(const Kernels& kernels, const PackedBranch& branch, const Operands& operands) {
    const int64_t queries = operands.a.size(0), passages = operands.b.size(0), pairs = queries * passages;
    at::Tensor z = at::empty({queries, passages}, at::kFloat);
    float* out = z.mutable_data_ptr<float>();
    at::parallel_for(0, strips_of(pairs, kernels.strip), 1, [&](int64_t begin, int64_t end) {
        Scorer score(kernels, branch.view, operands);
        for (int64_t s = begin; s < end; ++s) {
            const int64_t first = s * kernels.strip, count = std::min(kernels.strip, pairs - first);
            const float* values = score(
                count, [&](int64_t l) { return (first + l) / passages; },
                [&](int64_t l) { return (first + l) % passages; });
            std::copy(values, values + count, out + first);
        }
    });
    return z;
}

at::Tensor iem_scores(const at::Tensor& a, const at::Tensor& b, const Branch& branch) {
    check_interaction(a, b, branch);
    const Operands operands{rows_of(a), rows_of(b)};
    return all_pairs<Scorer>(kernels(), pack(kernels(), rows_kind(a), branch), operands);
}

// Passages b (Np, F) int8 with scale (Np,) float; all other tensors are float.
at::Tensor iem_scores_int8(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale, const Branch& branch) {
    check_branch(branch, at::kFloat);
    check_int8(a, b, scale, branch.weight.size(0));
    return all_pairs<ByteScorer>(kernels(), pack_int8(kernels(), branch), byte_operands(a, b, scale));
}

std::tuple<at::Tensor, at::Tensor> iem_pairs(const at::Tensor& a, const at::Tensor& b, const Branch& branch,
                                             bool return_features) {
    check_interaction(a, b, branch);
    check_given(a, b);
    const Kernels& table = kernels();
    const Operands operands{rows_of(a), rows_of(b)};
    const PackedBranch packed = pack(table, rows_kind(a), branch);
    const int64_t pairs = a.size(0), width = a.size(1);
    at::Tensor z = at::empty({pairs}, at::kFloat), kept = at::empty({return_features ? pairs : 0, width}, a.options());
    float* out = z.mutable_data_ptr<float>();
    at::parallel_for(0, strips_of(pairs, table.strip), 1, [&](int64_t begin, int64_t end) {
        Scorer score(table, packed.view, operands);
        at::Tensor features = at::empty({return_features ? table.strip : 0, width}, at::kFloat);
        for (int64_t s = begin; s < end; ++s) {
            const int64_t first = s * table.strip, count = std::min(table.strip, pairs - first);
            auto pair = [&](int64_t l) { return first + l; };
            const float* values =
                score(count, pair, pair, return_features ? features.mutable_data_ptr<float>() : nullptr);
            std::copy(values, values + count, out + first);
            if (return_features) kept.narrow(0, first, count).copy_(features.narrow(0, 0, count));
        }
    });
    return {z, kept};
}

}  // namespace

ByteOperands byte_operands(const at::Tensor& a, const at::Tensor& b, const at::Tensor& scale) {
    const at::Tensor wide = a.contiguous();
    const int64_t queries = a.size(0), features = a.size(1);
    ByteOperands operands{at::empty({queries, features}, at::kShort), at::empty({queries}, at::kFloat), rows_of(b),
                          scale.contiguous()};
    const float* from = wide.const_data_ptr<float>();
    int16_t* to = operands.a.mutable_data_ptr<int16_t>();
    for (int64_t i = 0; i < queries; ++i, from += features, to += features) {
        float top = 0, poison = 0;
        for (int64_t k = 0; k < features; ++k) {
            top = std::max(top, std::abs(from[k]));
            poison += from[k] * 0;
        }
        operands.top.mutable_data_ptr<float>()[i] = top + poison;
        const float step = top / 32767 + poison;
        for (int64_t k = 0; k < features; ++k)
            to[k] = step > 0 && std::isfinite(step) ? std::nearbyint(from[k] / step) : 0;
    }
    return operands;
}

}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    using In = const at::Tensor&;
    m.def("iem_scores(Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias) -> Tensor",
          torch::dispatch(c10::DispatchKey::CPU, [](In a, In b, In weight, In bias, In out_weight, In out_bias) {
              return d2llm::iem_scores(a, b, {weight, bias, out_weight, out_bias});
          }));
    m.def(
        "iem_scores_int8(Tensor a, Tensor b, Tensor scale, Tensor weight, Tensor bias, Tensor out_weight,"
        " Tensor out_bias) -> Tensor",
        torch::dispatch(c10::DispatchKey::CPU,
                        [](In a, In b, In scale, In weight, In bias, In out_weight, In out_bias) {
                            return d2llm::iem_scores_int8(a, b, scale, {weight, bias, out_weight, out_bias});
                        }));
    m.def(
        "iem_pairs(Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias,"
        " bool return_features) -> (Tensor, Tensor)",
        torch::dispatch(c10::DispatchKey::CPU,
                        [](In a, In b, In weight, In bias, In out_weight, In out_bias, bool return_features) {
                            return d2llm::iem_pairs(a, b, {weight, bias, out_weight, out_bias}, return_features);
                        }));
}
