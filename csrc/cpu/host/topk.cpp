// Streaming top-k: every thread keeps the best k of the pairs it has seen; the score matrix never exists.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../isa/dispatch.h"
#include "check.h"
#include "scorer.h"
#include "scorer_int8.h"
#include "search.h"

namespace d2llm {
namespace {

struct Found {
    float value;
    int64_t index;
};

// NaN counts as the lowest.
Found found_of(float value, int64_t index) {
    return {std::isnan(value) ? -std::numeric_limits<float>::infinity() : value, index};
}

// A strict order of all passages of a query, so that the best k are the same however they are come by.
bool better(const Found& one, const Found& other) {
    return one.value > other.value || (one.value == other.value && one.index < other.index);
}

// The best k so far, the worst of them at the front of a heap.
class Best {
  public:
    explicit Best(int64_t k) : k_(k) { kept_.reserve(k); }

    void add(float value, int64_t index) {
        const Found found = found_of(value, index);
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

// The best k passages of each query, best first. A thread scores with what make() gives it.
template <class Make>
std::vector<std::vector<Found>> best_of(int64_t queries, int64_t passages, int64_t strip, int64_t k, Make make) {
    // A few queries are shared out by ranges of passages, whole strips each; many are shared out as they are.
    const int64_t strips = (passages + strip - 1) / strip, wanted = 4 * at::get_num_threads();
    const int64_t parts = queries ? std::clamp<int64_t>((wanted + queries - 1) / queries, 1, strips) : 1;
    std::vector<std::vector<Found>> found(queries * parts), all(queries);
    at::parallel_for(0, queries * parts, 1, [&](int64_t begin, int64_t end) {
        auto score = make();
        for (int64_t task = begin; task < end; ++task) {
            const int64_t i = task / parts, part = task % parts;
            Best best(k);
            const int64_t last = std::min((part + 1) * strips / parts * strip, passages);
            for (int64_t j = part * strips / parts * strip; j < last; j += strip) {
                const int64_t count = std::min(strip, last - j);
                const float* z = score(count, [&](int64_t) { return i; }, [&](int64_t l) { return j + l; });
                for (int64_t l = 0; l < count; ++l) best.add(z[l], j + l);
            }
            found[task] = best.kept();
        }
    });
    for (int64_t i = 0; i < queries; ++i) {
        for (int64_t part = 0; part < parts; ++part) {
            const std::vector<Found>& some = found[i * parts + part];
            all[i].insert(all[i].end(), some.begin(), some.end());
        }
        std::partial_sort(all[i].begin(), all[i].begin() + k, all[i].end(), better);
        all[i].resize(k);
    }
    return all;
}

std::tuple<at::Tensor, at::Tensor> tensors_of(const std::vector<std::vector<Found>>& found, int64_t k) {
    const int64_t queries = found.size();
    at::Tensor values = at::empty({queries, k}, at::kFloat), indices = at::empty({queries, k}, at::kLong);
    for (int64_t i = 0; i < queries; ++i) {
        for (int64_t n = 0; n < k; ++n) {
            values.mutable_data_ptr<float>()[i * k + n] = found[i][n].value;
            indices.mutable_data_ptr<int64_t>()[i * k + n] = found[i][n].index;
        }
    }
    return {values, indices};
}

// F of a branch that fits passages of a dtype.
int64_t width_of(const Branch& branch, at::ScalarType passages) {
    check_branch(branch, passages == at::kChar ? at::kFloat : passages);
    return branch.weight.size(0);
}

PackedBranch packed(const Kernels& table, const Branch& branch, at::ScalarType passages) {
    if (passages == at::kChar) return pack_int8(table, branch);
    return pack(table, passages == at::kFloat ? Rows::f32 : Rows::bf16, branch);
}

}  // namespace

Search::Search(const Branch& branch, at::ScalarType passages)
    : table_(kernels()),
      passages_(passages),
      width_(width_of(branch, passages)),
      packed_(packed(table_, branch, passages)) {}

std::tuple<at::Tensor, at::Tensor> Search::topk(const at::Tensor& a, const at::Tensor& b,
                                                const std::optional<at::Tensor>& scale, int64_t k) const {
    TORCH_CHECK(k > 0 && k <= b.size(0), "k: expected between 1 and the number of passages, ", b.size(0), ", got ", k);
    const auto best = [&](auto make) { return tensors_of(best_of(a.size(0), b.size(0), table_.strip, k, make), k); };
    if (passages_ == at::kChar) {
        TORCH_CHECK(scale, "scale: expected one for passages in int8");
        check_int8(a, b, *scale, width_);
        const ByteOperands operands = byte_operands(a, b, *scale);
        return best([&] { return ByteScorer(table_, packed_.view, operands); });
    }
    expect(a, "a", passages_, {-1, width_});
    expect(b, "b", passages_, {-1, width_});
    const Operands operands{rows_of(a), rows_of(b)};
    return best([&] { return Scorer(table_, packed_.view, operands); });
}

}  // namespace d2llm
