// Streaming top-k: every thread keeps the best k of the pairs it has seen; the score matrix never exists.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../isa/dispatch.h"
#include "check.h"
#include "scorer.h"
#include "scorer_int8.h"

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

constexpr Found kLowest{-std::numeric_limits<float>::infinity(), std::numeric_limits<int64_t>::max()};

// A strict order of all passages of a query, so that the best k are the same however they are come by.
bool better(const Found& one, const Found& other) {
    return one.value > other.value || (one.value == other.value && one.index < other.index);
}

// What was found before, with lower indices: values and indices (Nq, at most k), best first.
struct Kept {
    at::Tensor values, indices;

    std::vector<Found> of(int64_t query) const {
        const int64_t count = values.size(1);
        std::vector<Found> found(count);
        for (int64_t n = 0; n < count; ++n)
            found[n] = {values.const_data_ptr<float>()[query * count + n],
                        indices.const_data_ptr<int64_t>()[query * count + n]};
        return found;
    }
};

// The best k so far, the worst of them at the front of a heap; nothing that is not better than `least`.
class Best {
  public:
    Best(int64_t k, const Found& least) : k_(k), least_(least) { kept_.reserve(k); }

    void add(float value, int64_t index) {
        const Found found = found_of(value, index);
        if (!better(found, least_)) return;
        if (static_cast<int64_t>(kept_.size()) < k_) {
            kept_.push_back(found);
        } else {
            std::pop_heap(kept_.begin(), kept_.end(), better);
            kept_.back() = found;
        }
        std::push_heap(kept_.begin(), kept_.end(), better);
        if (static_cast<int64_t>(kept_.size()) == k_) least_ = kept_.front();
    }

    const std::vector<Found>& kept() const { return kept_; }

  private:
    int64_t k_;
    // What the next one must be better than: all may, the worst of those from before, or of a full heap.
    Found least_;
    std::vector<Found> kept_;
};

// The best k of each query among what was kept and the passages, whose indices begin at `first`. A thread scores with
// what make() gives it.
template <class Make>
std::vector<std::vector<Found>> best_of(const Kept& before, int64_t passages, int64_t first, int64_t strip, int64_t k,
                                        Make make) {
    // A few queries are shared out by ranges of passages, whole strips each; many are shared out as they are.
    const int64_t queries = before.values.size(0);
    const int64_t strips = (passages + strip - 1) / strip, wanted = 4 * at::get_num_threads();
    const int64_t parts = queries && strips ? std::clamp<int64_t>((wanted + queries - 1) / queries, 1, strips) : 1;
    std::vector<std::vector<Found>> found(queries * parts), all(queries);
    for (int64_t i = 0; i < queries; ++i) all[i] = before.of(i);
    at::parallel_for(0, queries * parts, 1, [&](int64_t begin, int64_t end) {
        auto score = make();
        for (int64_t task = begin; task < end; ++task) {
            const int64_t i = task / parts, part = task % parts;
            const bool full = static_cast<int64_t>(all[i].size()) == k;
            Best best(k, full ? all[i].back() : kLowest);
            const int64_t last = std::min((part + 1) * strips / parts * strip, passages);
            for (int64_t j = part * strips / parts * strip; j < last; j += strip) {
                const int64_t count = std::min(strip, last - j);
                const float* z = score(count, [&](int64_t) { return i; }, [&](int64_t l) { return j + l; });
                for (int64_t l = 0; l < count; ++l) best.add(z[l], first + j + l);
            }
            found[task] = best.kept();
        }
    });
    for (int64_t i = 0; i < queries; ++i) {
        for (int64_t part = 0; part < parts; ++part) {
            const std::vector<Found>& some = found[i * parts + part];
            all[i].insert(all[i].end(), some.begin(), some.end());
        }
        const int64_t count = std::min<int64_t>(k, all[i].size());
        std::partial_sort(all[i].begin(), all[i].begin() + count, all[i].end(), better);
        all[i].resize(count);
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

// A branch packed once, to search chunk after chunk of passages with.
class Search : public torch::CustomClassHolder {
  public:
    // For passages in float, bfloat16 or int8; the branch is of their dtype, or float for int8.
    Search(const Branch& branch, at::ScalarType passages)
        : table_(kernels()),
          passages_(passages),
          width_(width_of(branch, passages)),
          packed_(passages == at::kChar ? pack_int8(table_, branch)
                                        : pack(table_, passages == at::kFloat ? Rows::f32 : Rows::bf16, branch)) {}

    // The best k of what was kept, (Nq, at most k) from the chunks before, and the passages b (Np, F), which count from
    // `first`: values and indices, best first, the lower index first among equals; fewer than k columns if there are no
    // more. a (Nq, F) is of the branch's dtype; scale (Np,) float goes with int8, whose scores are rough ones.
    std::tuple<at::Tensor, at::Tensor> topk(const at::Tensor& a, const at::Tensor& b,
                                            const std::optional<at::Tensor>& scale, int64_t k, const at::Tensor& values,
                                            const at::Tensor& indices, int64_t first) const {
        TORCH_CHECK(k > 0, "k: expected at least 1, got ", k);
        expect(values, "values", at::kFloat, {a.size(0), -1});
        expect(indices, "indices", at::kLong, values.sizes());
        TORCH_CHECK(values.size(1) <= k, "values: expected at most k of each query, ", k, ", got ", values.size(1));
        const Kept before{values.contiguous(), indices.contiguous()};
        const int64_t count = std::min(k, values.size(1) + b.size(0));
        std::tuple<at::Tensor, at::Tensor> best;
        with_scorer(a, b, scale, [&](auto make) {
            best =
                tensors_of(best_of(before, b.size(0), first, table_.strip, std::max<int64_t>(count, 1), make), count);
        });
        return best;
    }

    // Scores (C,) of each row of b (C, F) with the row of a (S, F) that `query` (C,) int64 names; types, scale (C,) and
    // what is rough as in topk.
    at::Tensor pairs(const at::Tensor& a, const at::Tensor& query, const at::Tensor& b,
                     const std::optional<at::Tensor>& scale) const {
        expect_shape(a, "a", {-1, -1});
        expect_shape(b, "b", {-1, -1});
        expect(query, "query", at::kLong, {b.size(0)});
        const at::Tensor numbers = query.contiguous();
        const int64_t count = b.size(0), *number = numbers.const_data_ptr<int64_t>();
        for (int64_t n = 0; n < count; ++n)
            TORCH_CHECK(number[n] >= 0 && number[n] < a.size(0), "query: expected numbers below ", a.size(0), ", got ",
                        number[n]);
        at::Tensor z = at::empty({count}, at::kFloat);
        float* out = z.mutable_data_ptr<float>();
        with_scorer(a, b, scale, [&](auto make) {
            at::parallel_for(0, (count + table_.strip - 1) / table_.strip, 1, [&](int64_t begin, int64_t end) {
                auto score = make();
                for (int64_t first = begin * table_.strip; first < std::min(end * table_.strip, count);
                     first += table_.strip) {
                    const int64_t some = std::min(table_.strip, count - first);
                    const float* scores =
                        score(some, [&](int64_t l) { return number[first + l]; }, [&](int64_t l) { return first + l; });
                    std::copy(scores, scores + some, out + first);
                }
            });
        });
        return z;
    }

  private:
    // Calls run with what makes a thread's scorer of these rows.
    template <class Run>
    void with_scorer(const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& scale, Run run) const {
        if (passages_ == at::kChar) {
            TORCH_CHECK(scale, "scale: expected one for passages in int8");
            check_int8(a, b, *scale, width_);
            const ByteOperands operands = byte_operands(a, b, *scale);
            return run([&] { return ByteScorer(table_, packed_.view, operands); });
        }
        expect(a, "a", passages_, {-1, width_});
        expect(b, "b", passages_, {-1, width_});
        const Operands operands{rows_of(a), rows_of(b)};
        run([&] { return Scorer(table_, packed_.view, operands); });
    }

    const Kernels& table_;
    at::ScalarType passages_;
    int64_t width_;
    PackedBranch packed_;
};

std::tuple<at::Tensor, at::Tensor> iem_topk(const at::Tensor& a, const at::Tensor& b, const Branch& branch, int64_t k) {
    expect_shape(a, "a", {-1, -1});
    expect_shape(b, "b", {-1, -1});
    TORCH_CHECK(k > 0 && k <= b.size(0), "k: expected between 1 and the number of passages, ", b.size(0), ", got ", k);
    const at::Tensor values = at::empty({a.size(0), 0}, at::kFloat), indices = at::empty({a.size(0), 0}, at::kLong);
    return Search(branch, a.scalar_type()).topk(a, b, std::nullopt, k, values, indices, 0);
}

}  // namespace
}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    using In = const at::Tensor&;
    using d2llm::Search;
    m.class_<Search>("Search")
        .def(torch::init([](In weight, In bias, In out_weight, In out_bias, at::ScalarType passages) {
            return c10::make_intrusive<Search>(d2llm::Branch{weight, bias, out_weight, out_bias}, passages);
        }))
        .def("topk", &Search::topk)
        .def("pairs", &Search::pairs);
    m.def(
        "iem_topk(Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias, int k)"
        " -> (Tensor, Tensor)",
        torch::dispatch(c10::DispatchKey::CPU,
                        [](In a, In b, In weight, In bias, In out_weight, In out_bias, int64_t k) {
                            return d2llm::iem_topk(a, b, {weight, bias, out_weight, out_bias}, k);
                        }));
}
