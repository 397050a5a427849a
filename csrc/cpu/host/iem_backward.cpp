// Gradients of the interaction scores. Threads own ranges of passages (of rows, for given pairs), and sum what the
// ranges share, in the order of the ranges, so that repeated runs are bit-equal.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "../isa/dispatch.h"
#include "check.h"
#include "pack.h"

namespace d2llm {
namespace {

// Strips whose gradients of the weights are summed apart from those of the others: one running sum over all pairs would
// gather an error for each strip.
constexpr int64_t kSummed = 64;

// Everything that all threads share.
struct Problem {
    const Kernels& table;
    at::Tensor a, b, dz, dfeatures;  // rows; dz (pairs,) and dfeatures (pairs, F) float
    PackedBranch branch;
    at::Tensor transposed;
    at::Tensor da, db;  // float; da is (threads, Nq, F) where `grid`, else (pairs, F)
    at::Tensor shared;  // (threads, F * F + 2 * F): gradients of weight, bias and out_weight side by side
    bool grid;          // every row of a with every row of b, or row by row
};

float* part_of(const at::Tensor& tensor, int64_t i) { return tensor.mutable_data_ptr<float>() + i * tensor.stride(0); }

// One thread's strips.
class Differentiator {
  public:
    Differentiator(const Problem& problem, int64_t part)
        : p_(problem),
          part_(part),
          strip_(problem.table.strip),
          a_(strip_),
          b_(strip_),
          dfeatures_(strip_),
          dz_(strip_),
          da_(strip_),
          db_(strip_),
          shared_(problem.shared.size(1)) {
        const int64_t features = problem.a.size(1);
        scratch_.resize(strip_ * (3 * features + strip_ + problem.table.panel));
    }

    // Pairs first .. last of the range of passages from `start` on, `wide` of them; row by row, `wide` is not used.
    void run(int64_t first, int64_t last, int64_t start, int64_t wide) {
        const int64_t features = p_.a.size(1);
        const float* dz = p_.dz.const_data_ptr<float>();
        const bool given = p_.dfeatures.defined();
        for (int64_t l = 0; l < strip_; ++l) {
            const bool real = first + l < last;
            const int64_t n = real ? first + l : last - 1;
            const int64_t i = p_.grid ? n / wide : n, j = p_.grid ? start + n % wide : n;
            const int64_t pair = p_.grid ? i * p_.b.size(0) + j : n;
            a_[l] = row_of(p_.a, i);
            b_[l] = row_of(p_.b, j);
            dz_[l] = real ? dz[pair] : 0;
            dfeatures_[l] = real && given ? p_.dfeatures.const_data_ptr<float>() + pair * features : nullptr;
            float* da = p_.grid ? part_of(p_.da, part_) : p_.da.mutable_data_ptr<float>();
            da_[l] = real ? da + i * features : nullptr;
            db_[l] = real ? p_.db.mutable_data_ptr<float>() + j * features : nullptr;
        }
        const StripGradient strip{a_.data(),
                                  b_.data(),
                                  dz_.data(),
                                  given ? dfeatures_.data() : nullptr,
                                  da_.data(),
                                  db_.data(),
                                  scratch_.data(),
                                  shared_.data(),
                                  shared_.data() + features * features,
                                  shared_.data() + (features + 1) * features};
        p_.table.differentiate(p_.branch.view, p_.transposed.const_data_ptr<float>(), strip, rows_kind(p_.a));
        if (++strips_ % kSummed == 0) flush();
    }

    // The strips since the last time into the sums of the thread.
    void flush() {
        float* to = part_of(p_.shared, part_);
        for (size_t i = 0; i < shared_.size(); ++i) to[i] += shared_[i];
        std::fill(shared_.begin(), shared_.end(), 0.0f);
    }

  private:
    const Problem& p_;
    int64_t part_, strip_;
    std::vector<const void*> a_, b_;
    std::vector<const float*> dfeatures_;
    std::vector<float> dz_;
    std::vector<float*> da_, db_;
    std::vector<float> scratch_, shared_;
    int64_t strips_ = 0;
};

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients differentiate(const at::Tensor& dz, const at::Tensor& dfeatures, const at::Tensor& a, const at::Tensor& b,
                        const Branch& branch, bool grid) {
    check_interaction(a, b, branch);
    if (grid) {
        expect_shape(dz, "dz", {a.size(0), b.size(0)});
    } else {
        check_given(a, b);
        expect_shape(dz, "dz", {a.size(0)});
    }
    if (dfeatures.defined()) expect_shape(dfeatures, "dfeatures", a.sizes());
    const Kernels& table = kernels();
    const int64_t features = a.size(1), columns = b.size(0), lines = grid ? a.size(0) : 1;
    const int64_t parts = std::clamp<int64_t>(columns, 1, at::get_num_threads());
    Problem problem{table,
                    rows_of(a),
                    rows_of(b),
                    dz.to(at::kFloat).contiguous(),
                    dfeatures.defined() ? dfeatures.to(at::kFloat).contiguous() : at::Tensor(),
                    pack(table, rows_kind(a), branch),
                    pack_transposed(table, rows_kind(a), branch.weight),
                    grid ? at::zeros({parts, a.size(0), features}, at::kFloat) : at::zeros(a.sizes(), at::kFloat),
                    at::zeros(b.sizes(), at::kFloat),
                    at::zeros({parts, (features + 2) * features}, at::kFloat),
                    grid};
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
            Differentiator strips(problem, part);
            const int64_t start = part * columns / parts, stop = (part + 1) * columns / parts, wide = stop - start;
            const int64_t first = grid ? 0 : start, last = grid ? lines * wide : stop;
            for (int64_t pair = first; pair < last; pair += table.strip) strips.run(pair, last, start, wide);
            strips.flush();
        }
    });
    const at::Tensor shared = problem.shared.sum(0);
    const int64_t square = features * features;
    // Copies: results of an operator may not share memory.
    auto part = [&](int64_t first, int64_t count) { return shared.narrow(0, first, count).clone(); };
    auto like = [](const at::Tensor& gradient, const at::Tensor& input) {
        return gradient.reshape(input.sizes()).to(input.scalar_type());
    };
    return {like(grid ? problem.da.sum(0) : problem.da, a),
            like(problem.db, b),
            like(part(0, square), branch.weight),
            like(part(square, features), branch.bias),
            like(part(square + features, features), branch.out_weight),
            like(problem.dz.sum(), branch.out_bias)};
}

}  // namespace
}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    using In = const at::Tensor&;
    m.def(
        "iem_scores_backward(Tensor dz, Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight,"
        " Tensor out_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        torch::dispatch(c10::DispatchKey::CPU, [](In dz, In a, In b, In weight, In bias, In out_weight, In out_bias) {
            return d2llm::differentiate(dz, {}, a, b, {weight, bias, out_weight, out_bias}, true);
        }));
    m.def(
        "iem_pairs_backward(Tensor dz, Tensor? dfeatures, Tensor a, Tensor b, Tensor weight, Tensor bias,"
        " Tensor out_weight, Tensor out_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        torch::dispatch(c10::DispatchKey::CPU, [](In dz, const std::optional<at::Tensor>& dfeatures, In a, In b,
                                                  In weight, In bias, In out_weight, In out_bias) {
            return d2llm::differentiate(dz, dfeatures.value_or(at::Tensor()), a, b,
                                        {weight, bias, out_weight, out_bias}, false);
        }));
}
