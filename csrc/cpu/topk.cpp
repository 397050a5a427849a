// Streaming top-k: every thread keeps the best k of the pairs it has seen; the score matrix never exists.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "dispatch.h"
#include "iem.h"
#include "scorer.h"

namespace d2llm {
namespace {

struct Found {
    float value;
    int64_t index;
};

// A strict order of all passages of a query, so that the best k are the same however they are come by.
bool better(const Found& one, const Found& other) {
    return one.value > other.value || (one.value == other.value && one.index < other.index);
}

// The best k so far, the worst of them at the front of a heap.
class Best {
  public:
    explicit Best(int64_t k) : k_(k) { kept_.reserve(k); }

    void add(float value, int64_t index) {
        const Found found{std::isnan(value) ? -std::numeric_limits<float>::infinity() : value, index};
        if (static_cast<int64_t>(kept_.size()) < k_) {
            kept_.push_back(found);
            std::push_heap(kept_.begin(), kept_.end(), better);
        } else if (better(found, kept_.front())) {
            std::pop_heap(kept_.begin(), kept_.end(), better);
            kept_.back() = found;
            std::push_heap(kept_.begin(), kept_.end(), better);
        }
    }

    const std::vector<Found>& kept() const { return kept_; }

  private:
    int64_t k_;
    std::vector<Found> kept_;
};

std::tuple<at::Tensor, at::Tensor> topk(const Kernels& table, const PackedBranch& branch, const Operands& operands,
                                        int64_t k) {
    const int64_t queries = operands.a.size(0), passages = operands.b.size(0);
    at::Tensor values = at::empty({queries, k}, at::kFloat), indices = at::empty({queries, k}, at::kLong);
    // A few queries are shared out by ranges of passages, whole strips each; many are shared out as they are.
    const int64_t strips = (passages + table.strip - 1) / table.strip, wanted = 4 * at::get_num_threads();
    const int64_t parts = queries ? std::clamp<int64_t>((wanted + queries - 1) / queries, 1, strips) : 1;
    std::vector<std::vector<Found>> found(queries * parts);
    at::parallel_for(0, queries * parts, 1, [&](int64_t begin, int64_t end) {
        Scorer score(table, branch.view, operands);
        for (int64_t task = begin; task < end; ++task) {
            const int64_t i = task / parts, part = task % parts;
            Best best(k);
            const int64_t last = std::min((part + 1) * strips / parts * table.strip, passages);
            for (int64_t j = part * strips / parts * table.strip; j < last; j += table.strip) {
                const int64_t count = std::min(table.strip, last - j);
                const float* z = score(count, [&](int64_t) { return i; }, [&](int64_t l) { return j + l; });
                for (int64_t l = 0; l < count; ++l) best.add(z[l], j + l);
            }
            found[task] = best.kept();
        }
    });
    for (int64_t i = 0; i < queries; ++i) {
        std::vector<Found> all;
        for (int64_t part = 0; part < parts; ++part) {
            const std::vector<Found>& some = found[i * parts + part];
            all.insert(all.end(), some.begin(), some.end());
        }
        std::partial_sort(all.begin(), all.begin() + k, all.end(), better);
        for (int64_t n = 0; n < k; ++n) {
            values.mutable_data_ptr<float>()[i * k + n] = all[n].value;
            indices.mutable_data_ptr<int64_t>()[i * k + n] = all[n].index;
        }
    }
    return {values, indices};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> iem_topk(const at::Tensor& a, const at::Tensor& b, const at::Tensor& weight,
                                            const at::Tensor& bias, const at::Tensor& out_weight,
                                            const at::Tensor& out_bias, int64_t k) {
    const Operands operands{rows_of(a), rows_of(b)};
    return topk(kernels(), pack(kernels(), rows_kind(a), weight, bias, out_weight, out_bias), operands, k);
}

}  // namespace d2llm
