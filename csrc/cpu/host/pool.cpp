// Attention pooling, forward: shapes and semantics as in d2llm_kernels/operators/pooling.py. x and u are float or
// bfloat16, both of one dtype, on the CPU.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../isa/dispatch.h"
#include "check.h"
#include "memory.h"
#include "pack.h"
#include "sequences.h"

namespace d2llm {
namespace {

// What all sequences of a call share.
struct Pool {
    const Kernels& table;
    Rows rows;
    int64_t width, heads, stride, step, slab;
    at::Tensor queries;  // packed
};

// A base may lag behind the largest score by this much, so that sums are seldom rescaled: exp(8) times the number of
// tokens is far from the largest float.
constexpr float kLag = 8;

// The softmax of a sequence as its chunks come in, one value a head.
class Softmax {
  public:
    explicit Softmax(const Pool& pool)
        : pool_(pool), top_(pool.stride), base_(pool.stride), total_(pool.stride), used_(pool.stride) {}

    // Scores (count, stride) become weights. Whatever was summed before has to be multiplied by `factors` (H,) if the
    // result is true.
    bool add(int64_t count, float* scores, std::vector<float>& factors) {
        pool_.table.maxima(count, pool_.stride, scores, top_.data());
        bool rescaled = false;
        for (int64_t h = 0; h < pool_.heads; ++h) {
            factors[h] = 1;
            if (empty_) {
                base_[h] = top_[h];
            } else if (top_[h] > base_[h] + kLag) {
                factors[h] = std::exp(base_[h] - top_[h]);
                total_[h] *= factors[h];
                used_[h] *= factors[h];
                base_[h] = top_[h];
                rescaled = true;
            }
        }
        empty_ = false;
        pool_.table.weights(count, pool_.stride, pool_.rows, base_.data(), scores, total_.data(), used_.data());
        return rescaled;
    }

    // pooled (H, D) from the sum p of all chunks; lse (H,).
    void finish(const float* p, void* pooled, float* lse) const {
        std::vector<float> inverse(pool_.heads);
        for (int64_t h = 0; h < pool_.heads; ++h) {
            inverse[h] = 1 / used_[h];
            lse[h] = base_[h] + std::log(total_[h]);
        }
        pool_.table.normalize(pool_.heads, pool_.width, pool_.width, pool_.rows, inverse.data(), p, pooled);
    }

  private:
    const Pool& pool_;
    bool empty_ = true;
    std::vector<float> top_, base_, total_, used_;
};

// Columns [begin, end) of p (H, D): rescaled by the factors unless null, then the chunk's weighted rows are added, or
// put in their place where it is the first.
void accumulate(const Pool& pool, const void* const* rows, int64_t count, const float* weights, const float* factors,
                bool first, int64_t begin, int64_t end, float* p) {
    const void* shifted[kMaxTokens];
    const int64_t bytes = begin * (pool.rows == Rows::f32 ? 4 : 2);
    for (int64_t t = 0; t < count; ++t) shifted[t] = static_cast<const char*>(rows[t]) + bytes;
    if (factors) pool.table.normalize(pool.heads, end - begin, pool.width, Rows::f32, factors, p + begin, p + begin);
    const Chunk chunk{shifted, count, end - begin, pool.heads, pool.stride, pool.slab};
    pool.table.weighted_sum(chunk, pool.rows, weights, !first, p + begin, pool.width);
}

void products(const Pool& pool, const void* const* rows, int64_t count, float* scores) {
    const Chunk chunk{rows, count, pool.width, pool.heads, pool.stride, pool.slab};
    pool.table.products(chunk, pool.rows, pool.queries.const_data_ptr<float>(), scores);
}

// A sequence by one thread, chunk after chunk: p (H, D) and scores (step + 1, stride) are its workspace.
void pool_alone(const Pool& pool, const std::vector<const void*>& rows, float* p, float* scores, void* pooled,
                float* lse) {
    const int64_t length = rows.size();
    Softmax softmax(pool);
    std::vector<float> factors(pool.heads);
    for (int64_t t = 0; t < length; t += pool.step) {
        const int64_t count = std::min(pool.step, length - t);
        products(pool, rows.data() + t, count, scores);
        const bool rescaled = softmax.add(count, scores, factors);
        accumulate(pool, rows.data() + t, count, scores, rescaled ? factors.data() : nullptr, !t, 0, pool.width, p);
    }
    softmax.finish(p, pooled, lse);
}

// A sequence by all threads: tokens are shared out for the scores, columns for the sum. Every number is made by the
// same steps as in `pool_alone`, so the bits are the same too.
void pool_together(const Pool& pool, const std::vector<const void*>& rows, float* p, void* pooled, float* lse) {
    constexpr int64_t kTokens = 12, kColumns = 64;
    const int64_t length = rows.size(), wave = 2 * at::get_num_threads() * pool.step;
    at::Tensor space = at::empty({std::min(wave, length) + 1, pool.stride}, at::kFloat);
    float* scores = space.mutable_data_ptr<float>();
    Softmax softmax(pool);
    std::vector<std::vector<float>> factors;
    for (int64_t start = 0; start < length; start += wave) {
        const int64_t here = std::min(wave, length - start);
        at::parallel_for(0, (here + kTokens - 1) / kTokens, 1, [&](int64_t begin, int64_t end) {
            const int64_t first = begin * kTokens, count = std::min(end * kTokens, here) - first;
            products(pool, rows.data() + start + first, count, scores + first * pool.stride);
        });
        factors.clear();
        for (int64_t t = 0; t < here; t += pool.step) {
            std::vector<float> chunk(pool.heads);
            const bool rescaled = softmax.add(std::min(pool.step, here - t), scores + t * pool.stride, chunk);
            factors.push_back(rescaled ? chunk : std::vector<float>());
        }
        at::parallel_for(0, (pool.width + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
            const int64_t last = std::min(end * kColumns, pool.width);
            for (int64_t t = 0; t < here; t += pool.step) {
                const std::vector<float>& factor = factors[t / pool.step];
                accumulate(pool, rows.data() + start + t, std::min(pool.step, here - t), scores + t * pool.stride,
                           factor.empty() ? nullptr : factor.data(), start + t == 0, begin * kColumns, last, p);
            }
        });
    }
    softmax.finish(p, pooled, lse);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> attn_pool(const at::Tensor& x_, const at::Tensor& u,
                                             const std::optional<at::Tensor>& mask,
                                             const std::optional<at::Tensor>& offsets) {
    check_pool(x_, u, mask, offsets);
    const at::Tensor x = x_.stride(-1) == 1 ? x_ : x_.contiguous();
    const Kernels& table = kernels();
    const Rows kind = rows_kind(x);
    const int64_t heads = u.size(0), width = u.size(1), unit = kind == Rows::f32 ? 1 : table.unit_bf16;
    Pool pool{table,
              kind,
              width,
              heads,
              (heads + kHeadStride - 1) / kHeadStride * kHeadStride,
              chunk_tokens(width * x.element_size()),
              slab_of(width, unit),
              pack_queries(table, kind, u.contiguous().const_data_ptr(), heads, width)};
    const Sequences sequences(x, mask, offsets);
    const int64_t batch = sequences.size(), size = heads * width;
    at::Tensor pooled = fresh({batch, heads, width}, x.options());
    at::Tensor lse = at::empty({batch, heads}, at::kFloat);
    lse.fill_(-std::numeric_limits<float>::infinity());
    const bool alone = batch >= at::get_num_threads();
    auto run = [&](int64_t begin, int64_t end) {
        at::Tensor space = at::empty({size + (alone ? (pool.step + 1) * pool.stride : 0)}, at::kFloat);
        float* p = space.mutable_data_ptr<float>();
        for (int64_t b = begin; b < end; ++b) {
            const auto rows = sequences.rows<const void*>(b, static_cast<const char*>(x.const_data_ptr()));
            char* to = static_cast<char*>(pooled.mutable_data_ptr()) + b * size * pooled.element_size();
            if (rows.empty()) {
                std::memset(to, 0, size * pooled.element_size());
                continue;
            }
            float* to_lse = lse.mutable_data_ptr<float>() + b * heads;
            if (alone)
                pool_alone(pool, rows, p, p + size, to, to_lse);
            else
                pool_together(pool, rows, p, to, to_lse);
        }
    };
    if (alone)
        at::parallel_for(0, batch, 1, run);
    else
        run(0, batch);
    return {pooled, lse};
}

}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    m.def("attn_pool(Tensor x, Tensor u, Tensor? mask, Tensor? offsets) -> (Tensor, Tensor)",
          torch::dispatch(c10::DispatchKey::CPU, d2llm::attn_pool));
}
