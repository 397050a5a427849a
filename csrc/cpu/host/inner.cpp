// The best rows by inner product in whole numbers, in one pass over all chunks: no score is kept that cannot be among
// the best.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "../isa/dispatch.h"
#include "check.h"
#include "chunks.h"

namespace d2llm {
namespace {

// Rows that are scored at a time, for one query after another, and queries that a pass over the rows serves.
constexpr int64_t kRows = 256, kQueries = 32;
// Wider rows would overflow int32.
constexpr int64_t kWidest = 1 << 16;

// A product and its row in one number: the larger product first, the lower row first among equals.
int64_t key_of(int32_t value, int64_t row) { return value * (int64_t{1} << 32) + (0xffffffff - row); }

// The k largest keys of a query, of rows that come in ascending order.
class Largest {
  public:
    explicit Largest(int64_t k) : k_(k) { keys_.reserve(2 * k); }

    void add(const int32_t* values, int64_t count, int64_t first, const bool* kept) {
        for (int64_t n = 0; n < count; ++n) {
            // A later row that equals the last of k comes after it.
            if (values[n] <= least_ || (kept && !kept[first + n])) continue;
            keys_.push_back(key_of(values[n], first + n));
            if (static_cast<int64_t>(keys_.size()) == 2 * k_) {
                cut();
                least_ = static_cast<int32_t>(keys_.back() >> 32);
            }
        }
    }

    void add(const Largest& other) { keys_.insert(keys_.end(), other.keys_.begin(), other.keys_.end()); }

    // Leaves the k largest, the least of them last.
    void cut() {
        if (static_cast<int64_t>(keys_.size()) <= k_) return;
        std::nth_element(keys_.begin(), keys_.begin() + k_ - 1, keys_.end(), std::greater<>());
        keys_.resize(k_);
    }

    const std::vector<int64_t>& sorted() {
        cut();
        std::sort(keys_.begin(), keys_.end(), std::greater<>());
        return keys_;
    }

  private:
    int64_t k_;
    int32_t least_ = std::numeric_limits<int32_t>::min();
    std::vector<int64_t> keys_;
};

// (Nq, width rounded up) in units of the kernels, zeros behind.
at::Tensor units_of(const at::Tensor& queries, int64_t unit) {
    const int64_t width = queries.size(1), padded = (width + kInnerPadding - 1) / kInnerPadding * kInnerPadding;
    at::Tensor units = at::zeros({queries.size(0), padded}, unit == 4 ? at::kChar : at::kShort);
    units.narrow(1, 0, width).copy_(queries);
    return units;
}

// Adds the rows [begin, end) of all chunks to what each of the queries (n, padded) found.
void scan(const Kernels& table, const at::Tensor& units, const Chunks& chunks, int64_t begin, int64_t end,
          const bool* kept, Largest* found) {
    int32_t products[kRows];
    for (int64_t c = chunks.of(begin); begin < end; ++c) {
        const at::Tensor& chunk = chunks.tensors[c];
        const int64_t last = std::min(end, chunks.starts[c + 1]);
        for (; begin < last; begin += kRows) {
            const int64_t count = std::min(kRows, last - begin);
            const auto* from = reinterpret_cast<const int8_t*>(row_of(chunk, begin - chunks.starts[c]));
            const InnerRows rows{from, count, chunk.size(1), chunk.stride(0)};
            for (int64_t i = 0; i < units.size(0); ++i) {
                table.inner_products(rows, row_of(units, i), products);
                found[i].add(products, count, begin, kept);
            }
        }
        begin = last;
    }
}

// The k best of each query, of those kept; fewer columns where there are fewer.
std::tuple<at::Tensor, at::Tensor> inner_topk(const at::Tensor& queries, at::TensorList rows,
                                              const std::optional<at::Tensor>& kept, int64_t k) {
    expect(queries, "queries", at::kChar, {-1, -1});
    TORCH_CHECK(queries.size(1) <= kWidest, "queries: expected a width of at most ", kWidest, ", got ",
                queries.size(1));
    const Chunks chunks(rows, at::kChar, queries.size(1));
    const int64_t total = chunks.starts.back(), count = queries.size(0);
    TORCH_CHECK(total < int64_t{1} << 32, "rows: expected fewer than 2^32, got ", total);
    TORCH_CHECK(k > 0 && k <= total, "k: expected between 1 and the number of rows, ", total, ", got ", k);
    at::Tensor flags;
    if (kept) {
        expect(*kept, "kept", at::kBool, {total});
        flags = kept->contiguous();
        k = std::min(k, flags.sum().item().toLong());
    }
    const bool* flag = kept ? flags.const_data_ptr<bool>() : nullptr;
    const Kernels& table = kernels();
    const at::Tensor units = units_of(queries, table.unit_int8);
    at::Tensor values = at::empty({count, k}, at::kInt), indices = at::empty({count, k}, at::kLong);
    const int64_t blocks = (total + kRows - 1) / kRows, parts = std::min<int64_t>(at::get_num_threads(), blocks);
    for (int64_t q = 0; q < count && k; q += kQueries) {
        const at::Tensor some = units.narrow(0, q, std::min(kQueries, count - q));
        std::vector<std::vector<Largest>> found(parts, std::vector<Largest>(some.size(0), Largest(k)));
        at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
            for (int64_t part = begin; part < end; ++part)
                scan(table, some, chunks, part * blocks / parts * kRows,
                     std::min((part + 1) * blocks / parts * kRows, total), flag, found[part].data());
        });
        at::parallel_for(0, some.size(0), 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                for (int64_t part = 1; part < parts; ++part) found[0][i].add(found[part][i]);
                const std::vector<int64_t>& keys = found[0][i].sorted();
                for (int64_t n = 0; n < k; ++n) {
                    values.mutable_data_ptr<int32_t>()[(q + i) * k + n] = static_cast<int32_t>(keys[n] >> 32);
                    indices.mutable_data_ptr<int64_t>()[(q + i) * k + n] = 0xffffffff - (keys[n] & 0xffffffff);
                }
            }
        });
    }
    return {values, indices};
}

}  // namespace
}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    m.def("inner_topk(Tensor queries, Tensor[] rows, Tensor? kept, int k) -> (Tensor, Tensor)",
          torch::dispatch(c10::DispatchKey::CPU, d2llm::inner_topk));
}
