// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Gradients of the losses over all pairs, one row of the batch.

// The slope exp(z_e) / (exp(z_e) + exp(z_h)) of two hard negatives at a time, so that both need one division:
// 1 / a = b / (a b). Adds to dz, per column, and to hard.sums.
template <Triples kind>
D2LLM_INLINE void near_slopes(const Easy (&easy)[kBlock], const Hard& hard, Vector (&dz)[kBlock]) {
    for (int64_t h = 0; h < hard.count; h += 2) {
        const Vector s = broadcast(hard.s[h]), other_s = broadcast(hard.s[h + 1]);
        Vector slope = {}, other_slope = {};
#pragma GCC unroll 4
        for (int v = 0; v < kBlock; ++v) {
            const Vector e = easy[v].e, whole = e + broadcast(hard.e[h]), other_whole = e + broadcast(hard.e[h + 1]);
            const Vector inverse = 1 / (whole * other_whole);
            const bool even = kind == Triples::even;
            const Vector gap = even ? above_zero(s) : gap_of(s, easy[v].s);
            const Vector other_gap = even ? above_zero(other_s) : gap_of(other_s, easy[v].s);
            const Vector part = gap * other_whole * inverse, other_part = other_gap * whole * inverse;
            dz[v] += part + other_part;
            slope += part * e;
            other_slope += other_part * e;
        }
        float* sums = hard.sums + h * kLanes;
        store(sums, load(sums) + slope);
        store(sums + kLanes, load(sums + kLanes) + other_slope);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kBlock; ++v) dz[v] *= easy[v].e;
}

// The same where exponentials leave the range of floats.
D2LLM_INLINE void far_slopes(const Easy (&easy)[kBlock], const Hard& hard, Vector (&dz)[kBlock]) {
    for (int64_t h = 0; h < hard.count; ++h) {
        Vector slope = {};
#pragma GCC unroll 4
        for (int v = 0; v < kBlock; ++v) {
            const Vector x = easy[v].z - broadcast(hard.z[h]), t = exponential(-magnitude(x));
            const Vector part = gap_of(broadcast(hard.s[h]), easy[v].s) * (x < 0 ? t : broadcast(1.0f)) / (1 + t);
            dz[v] += part;
            slope += part;
        }
        store(hard.sums + h * kLanes, load(hard.sums + h * kLanes) + slope);
    }
}

// dz of the columns of a row, without its own.
static void column_slopes(const BatchRow& row, const Columns& columns, const Hard& hard, float dsoftmax,
                          float dpairwise, float* dz) {
    for (int64_t block = 0; block < columns.size; block += kBlock * kLanes) {
        Easy easy[kBlock];
        Vector slopes[kBlock] = {};
        if (hard.count) {
#pragma GCC unroll 4
            for (int v = 0; v < kBlock; ++v) easy[v] = easy_of(columns, block + v * kLanes);
            switch (triples_of(easy, hard.near)) {
                case Triples::far:
                    far_slopes(easy, hard, slopes);
                    break;
                case Triples::uneven:
                    near_slopes<Triples::uneven>(easy, hard, slopes);
                    break;
                default:
                    near_slopes<Triples::even>(easy, hard, slopes);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < kBlock; ++v) {
            const int64_t at = block + v * kLanes;
            const Vector softmax = dsoftmax ? load(columns.weights + at) * broadcast(dsoftmax) : Vector{};
            store(dz + at, slopes[v] * broadcast(dpairwise) + softmax, row.size - at);
        }
    }
}

static void in_batch_gradient(const BatchRow& row, const BatchRowGradient& g) {
    const Columns columns = columns_of(row);
    float dsoftmax = 0, rest = 0;
    if (g.dcross_entropy) {
        rest = softmax_sum<true>(row, columns);
        const float own = __builtin_expf((row.z[row.own] - columns.top) * row.slope);
        dsoftmax = g.dcross_entropy * row.slope / (rest + own);
    }
    Hard hard = {};
    if (g.dpairwise) hard = hard_of(row, behind(columns));
    column_slopes(row, columns, hard, dsoftmax, g.dpairwise, g.dz);
    // The row's own weight less 1, without the cancellation.
    g.dz[row.own] = -dsoftmax * rest;
    for (int64_t k = 0, h = 0; k < row.hard; ++k) {
        const bool judged = h < hard.count && row.s_hard[k] == row.s_hard[k];
        g.dz_hard[k] = judged ? -g.dpairwise * sum(load(hard.sums + h++ * kLanes)) : 0;
    }
}
