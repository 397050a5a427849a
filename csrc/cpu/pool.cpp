#include "pool.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "dispatch.h"
#include "pack.h"
#include "sequences.h"

namespace d2llm {
namespace {

// What all sequences of a call share.
struct Pool {
    const Kernels& table;
    Rows rows;
    int64_t width, heads, stride, step;
    at::Tensor queries;  // packed
};

// Softmax statistics of some tokens, each (stride,): largest score, sum of weights, sum of weights as they are used.
struct Statistics {
    std::vector<float> top, total, used;
    explicit Statistics(int64_t stride) : top(stride), total(stride), used(stride) {}
};

// One chunk by itself: its statistics and its weighted sum, part (H, D). scores has room for (step, stride).
void pool_chunk(const Pool& pool, const void* const* rows, int64_t count, float* scores, Statistics& statistics,
                float* part) {
    const Chunk chunk{rows, count, pool.width, pool.heads, pool.stride};
    pool.table.products(chunk, pool.rows, pool.queries.const_data_ptr<float>(), scores);
    pool.table.softmax(count, pool.stride, pool.rows, scores, statistics.top.data(), statistics.total.data(),
                       statistics.used.data());
    pool.table.weighted_sum(chunk, pool.rows, scores, false, part, pool.width);
}

// Factors (H,) by which what was summed up and a fresh chunk are joined; `sofar` becomes the statistics of both.
void join(const Pool& pool, Statistics& sofar, const Statistics& fresh, float* old_factor, float* fresh_factor) {
    for (int64_t h = 0; h < pool.heads; ++h) {
        const float top = std::max(sofar.top[h], fresh.top[h]);
        old_factor[h] = std::exp(sofar.top[h] - top);
        fresh_factor[h] = std::exp(fresh.top[h] - top);
        sofar.top[h] = top;
        sofar.total[h] = sofar.total[h] * old_factor[h] + fresh.total[h] * fresh_factor[h];
        sofar.used[h] = sofar.used[h] * old_factor[h] + fresh.used[h] * fresh_factor[h];
    }
}

void finish(const Pool& pool, const Statistics& statistics, const float* p, void* pooled, float* lse) {
    std::vector<float> inverse(pool.heads);
    for (int64_t h = 0; h < pool.heads; ++h) {
        inverse[h] = 1 / statistics.used[h];
        lse[h] = statistics.top[h] + std::log(statistics.total[h]);
    }
    pool.table.normalize(pool.heads, pool.width, pool.rows, inverse.data(), p, pooled);
}

// A sequence by one thread, chunk after chunk. workspace has room for two sums and the scores of a chunk.
void pool_alone(const Pool& pool, const std::vector<const void*>& rows, float* workspace, void* pooled, float* lse) {
    const int64_t size = pool.heads * pool.width, length = rows.size();
    float *p = workspace, *part = p + size, *scores = part + size;
    Statistics sofar(pool.stride), fresh(pool.stride);
    std::vector<float> old_factor(pool.heads), fresh_factor(pool.heads);
    for (int64_t t = 0; t < length; t += pool.step) {
        const int64_t count = std::min(pool.step, length - t);
        pool_chunk(pool, rows.data() + t, count, scores, t ? fresh : sofar, t ? part : p);
        if (!t) continue;
        join(pool, sofar, fresh, old_factor.data(), fresh_factor.data());
        pool.table.merge(pool.heads, pool.width, old_factor.data(), fresh_factor.data(), part, p);
    }
    finish(pool, sofar, p, pooled, lse);
}

// A sequence by all threads: a wave of chunks at a time, then joined in order, heads apart. The arithmetic is that of
// `pool_alone`, so the bits are too.
void pool_together(const Pool& pool, const std::vector<const void*>& rows, void* pooled, float* lse) {
    const int64_t size = pool.heads * pool.width, length = rows.size(), wave = 2 * at::get_num_threads();
    const int64_t chunks = (length + pool.step - 1) / pool.step, held = std::min(wave, chunks);
    at::Tensor space = at::empty({held, size + pool.step * pool.stride}, at::kFloat),
               sum = at::empty({size}, at::kFloat);
    float* p = sum.mutable_data_ptr<float>();
    Statistics sofar(pool.stride);
    std::vector<Statistics> fresh(held, Statistics(pool.stride));
    at::Tensor factors = at::empty({held, 2, pool.heads}, at::kFloat);
    for (int64_t start = 0; start < chunks; start += wave) {
        const int64_t here = std::min(wave, chunks - start);
        at::parallel_for(0, here, 1, [&](int64_t begin, int64_t end) {
            for (int64_t c = begin; c < end; ++c) {
                const int64_t t = (start + c) * pool.step;
                float* part = space.mutable_data_ptr<float>() + c * space.size(1);
                pool_chunk(pool, rows.data() + t, std::min(pool.step, length - t), part + size, fresh[c], part);
            }
        });
        if (!start) sofar = fresh[0];
        for (int64_t c = start ? 0 : 1; c < here; ++c) {
            float* factor = factors.mutable_data_ptr<float>() + c * 2 * pool.heads;
            join(pool, sofar, fresh[c], factor, factor + pool.heads);
        }
        at::parallel_for(0, pool.heads, 1, [&](int64_t begin, int64_t end) {
            const int64_t from = begin * pool.width, count = (end - begin) * pool.width;
            const float* parts = space.const_data_ptr<float>() + from;
            if (!start) std::memcpy(p + from, parts, sizeof(float) * count);
            for (int64_t c = start ? 0 : 1; c < here; ++c) {
                const float* factor = factors.const_data_ptr<float>() + c * 2 * pool.heads + begin;
                pool.table.merge(end - begin, pool.width, factor, factor + pool.heads, parts + c * space.size(1),
                                 p + from);
            }
        });
    }
    finish(pool, sofar, p, pooled, lse);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> attn_pool(const at::Tensor& x_, const at::Tensor& u,
                                             const std::optional<at::Tensor>& mask,
                                             const std::optional<at::Tensor>& offsets) {
    const at::Tensor x = x_.stride(-1) == 1 ? x_ : x_.contiguous();
    const Kernels& table = kernels();
    const Rows kind = rows_kind(x);
    const int64_t heads = u.size(0), width = u.size(1), unit = kind == Rows::f32 ? 1 : table.unit_bf16;
    Pool pool{table,
              kind,
              width,
              heads,
              (heads + kHeadStride - 1) / kHeadStride * kHeadStride,
              chunk_tokens(width),
              at::empty({packed_queries_size(heads, width, unit)}, at::kFloat)};
    const at::Tensor wide = u.to(at::kFloat).contiguous();
    pack_queries(wide.const_data_ptr<float>(), heads, width, unit, pool.queries.mutable_data_ptr<float>());
    const Sequences sequences = sequences_of(x, mask, offsets);
    const int64_t batch = sequences.size(), size = heads * width;
    at::Tensor pooled = at::zeros({batch, heads, width}, x.options());
    at::Tensor lse = at::empty({batch, heads}, at::kFloat);
    lse.fill_(-std::numeric_limits<float>::infinity());
    const bool alone = batch >= at::get_num_threads();
    auto run = [&](int64_t begin, int64_t end) {
        at::Tensor space = at::empty({alone ? 2 * size + pool.step * pool.stride : 0}, at::kFloat);
        for (int64_t b = begin; b < end; ++b) {
            const auto rows = sequences.rows<const void*>(b, static_cast<const char*>(x.const_data_ptr()));
            if (rows.empty()) continue;
            char* to = static_cast<char*>(pooled.mutable_data_ptr()) + b * size * pooled.element_size();
            float* to_lse = lse.mutable_data_ptr<float>() + b * heads;
            if (alone)
                pool_alone(pool, rows, space.mutable_data_ptr<float>(), to, to_lse);
            else
                pool_together(pool, rows, to, to_lse);
        }
    };
    if (alone)
        at::parallel_for(0, batch, 1, run);
    else
        run(0, batch);
    return {pooled, lse};
}

}  // namespace d2llm
