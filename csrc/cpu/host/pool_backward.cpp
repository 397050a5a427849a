// Gradients of attention pooling. A sequence is read twice: once for scores and da of all its tokens, and, when the
// sums of its softmax are known, once more for du while dx is written.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../isa/dispatch.h"
#include "check.h"
#include "memory.h"
#include "pack.h"
#include "sequences.h"

namespace d2llm {
namespace {

struct Problem {
    const Kernels& table;
    Rows rows;
    int64_t width, heads, half, step, unit, stride;
    at::Tensor u;        // (H, D), of the kind of the rows
    at::Tensor queries;  // packed
    at::Tensor du;       // (threads, H, D) float, added to
};

// One sequence at a time: by the thread that owns it, or by all of them.
class Sequence {
  public:
    static constexpr int64_t kTogether = -1;

    // `thread` is the owner's number, or kTogether.
    Sequence(const Problem& problem, int64_t thread)
        : p_(problem),
          thread_(thread),
          sides_(at::zeros({2 * problem.heads, problem.stride}, at::kFloat)),
          top_(problem.half),
          inverse_(problem.half),
          mean_(problem.half),
          dlse_(problem.half) {}

    // dpooled (H, D), of the kind of the rows, and dlse (H,) or null; dx rows are written.
    void run(const std::vector<const void*>& rows, const std::vector<void*>& dx, const void* dpooled,
             const float* dlse) {
        const int64_t length = rows.size();
        const at::Tensor targets = pack_queries(p_.table, p_.rows, dpooled, p_.heads, p_.width);
        pack_sides(p_.u.const_data_ptr(), dpooled, p_.rows, p_.heads, p_.width, p_.unit, p_.stride,
                   sides_.mutable_data_ptr<float>());
        // Rows of coefficients are read in whole panels and whole vectors, a little beyond the last.
        const size_t size = (length + p_.table.panel) * 2 * p_.half + kHeadStride;
        if (g_.size() < size) g_.resize(size);
        chunks(length, [&](int64_t t, int64_t count) {
            const Chunk chunk = chunk_of(rows, t, count);
            p_.table.products(chunk, p_.rows, p_.queries.const_data_ptr<float>(), g(t));
            p_.table.products(chunk, p_.rows, targets.const_data_ptr<float>(), g(t) + p_.half);
        });
        statistics(length, dlse);
        chunks(length, [&](int64_t t, int64_t count) {
            p_.table.softmax_gradient(count, p_.half, top_.data(), inverse_.data(), mean_.data(), dlse_.data(), g(t));
            const int64_t thread = thread_ == kTogether ? at::get_thread_num() : thread_;
            float* du = p_.du.mutable_data_ptr<float>() + thread * p_.du.stride(0);
            p_.table.weighted_sum(chunk_of(rows, t, count), p_.rows, g(t), true, du, p_.width);
            const TokenGradient tokens{
                dx.data() + t, count, p_.width, p_.heads, p_.half, g(t), sides_.const_data_ptr<float>(), p_.stride};
            p_.table.token_gradients(tokens, p_.rows);
        });
    }

  private:
    float* g(int64_t token) { return g_.data() + token * 2 * p_.half; }

    Chunk chunk_of(const std::vector<const void*>& rows, int64_t t, int64_t count) const {
        return {rows.data() + t, count, p_.width, p_.heads, 2 * p_.half, slab_of(p_.width, p_.unit)};
    }

    template <class Function>
    void chunks(int64_t length, Function function) const {
        const int64_t count = (length + p_.step - 1) / p_.step;
        auto range = [&](int64_t begin, int64_t end) {
            for (int64_t c = begin; c < end; ++c) function(c * p_.step, std::min(p_.step, length - c * p_.step));
        };
        if (thread_ == kTogether)
            at::parallel_for(0, count, 1, range);
        else
            range(0, count);
    }

    // Softmax statistics and slopes of the whole sequence, in the order of its tokens.
    void statistics(int64_t length, const float* dlse) {
        for (int64_t h = 0; h < p_.heads; ++h) {
            float top = g(0)[h];
            for (int64_t t = 1; t < length; ++t) top = std::max(top, g(t)[h]);
            top_[h] = top;
        }
        std::vector<float> total(p_.half), weighted(p_.half);
        p_.table.weighted_slopes(length, p_.half, top_.data(), g(0), total.data(), weighted.data());
        for (int64_t h = 0; h < p_.heads; ++h) {
            inverse_[h] = 1 / total[h];
            mean_[h] = weighted[h] * inverse_[h];
            dlse_[h] = dlse ? dlse[h] : 0;
        }
    }

    const Problem& p_;
    int64_t thread_;
    at::Tensor sides_;
    std::vector<float> g_, top_, inverse_, mean_, dlse_;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> attn_pool_backward(const at::Tensor& dpooled_,
                                                      const std::optional<at::Tensor>& dlse_, const at::Tensor& x_,
                                                      const at::Tensor& u, const std::optional<at::Tensor>& mask,
                                                      const std::optional<at::Tensor>& offsets) {
    check_pool(x_, u, mask, offsets);
    const int64_t batch = offsets ? offsets->size(0) - 1 : x_.size(0);
    expect_shape(dpooled_, "dpooled", {batch, u.size(0), u.size(1)});
    if (dlse_) expect_shape(*dlse_, "dlse", {batch, u.size(0)});
    const at::Tensor x = x_.stride(-1) == 1 ? x_ : x_.contiguous();
    const at::Tensor dpooled = dpooled_.to(x.scalar_type()).contiguous();
    const at::Tensor dlse = dlse_ ? dlse_->to(at::kFloat).contiguous() : at::Tensor();
    const Kernels& table = kernels();
    const Rows kind = rows_kind(x);
    const int64_t heads = u.size(0), width = u.size(1), unit = kind == Rows::f32 ? 1 : table.unit_bf16;
    const int64_t stride = (width + table.strip - 1) / table.strip * table.strip + kHeadStride;
    Problem problem{table,
                    kind,
                    width,
                    heads,
                    (heads + kHeadStride - 1) / kHeadStride * kHeadStride,
                    chunk_tokens(width * x.element_size()),
                    unit,
                    stride,
                    u.contiguous(),
                    pack_queries(table, kind, u.contiguous().const_data_ptr(), heads, width),
                    at::zeros({at::get_num_threads(), heads, width}, at::kFloat)};
    at::Tensor dx = fresh(x.sizes(), x.options());
    const Sequences sequences(x, mask, offsets), targets(dx, mask, offsets);
    const bool alone = sequences.size() >= at::get_num_threads();
    auto run = [&](int64_t begin, int64_t end) {
        Sequence sequence(problem, alone ? at::get_thread_num() : Sequence::kTogether);
        for (int64_t b = begin; b < end; ++b) {
            const auto rows = sequences.rows<const void*>(b, static_cast<const char*>(x.const_data_ptr()));
            targets.clear_others(b, static_cast<char*>(dx.mutable_data_ptr()), width * dx.element_size());
            if (rows.empty()) continue;
            sequence.run(rows, targets.rows<void*>(b, static_cast<char*>(dx.mutable_data_ptr())), row_of(dpooled, b),
                         dlse.defined() ? dlse.const_data_ptr<float>() + b * heads : nullptr);
        }
    };
    if (alone)
        at::parallel_for(0, sequences.size(), 1, run);
    else
        run(0, sequences.size());
    return {dx, problem.du.sum(0).to(u.scalar_type())};
}

}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    m.def(
        "attn_pool_backward(Tensor dpooled, Tensor? dlse, Tensor x, Tensor u, Tensor? mask, Tensor? offsets)"
        " -> (Tensor, Tensor)",
        torch::dispatch(c10::DispatchKey::CPU, d2llm::attn_pool_backward));
}
