// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Linear layers: a strip of rows, one a lane, times rows of weights where they lie. The weights are
// not packed: a few rows would not pay for it.

// to (depth, V * lanes) = columns [from, from + depth) of the strip's rows; lanes past the last repeat it.
template <int V>
D2LLM_INLINE void turn(const Linear& s, int64_t from, int64_t depth, float* to) {
    for (int64_t first = 0; first < V * kLanes; first += kLanes) {
        for (int64_t k = 0; k < depth; k += kLanes) {
            Vector rows[kLanes];
#pragma GCC unroll 16
            for (int l = 0; l < kLanes; ++l) {
                const int64_t row = first + l < s.rows ? first + l : s.rows - 1;
                rows[l] = load(s.x + row * s.x_stride + from + k, depth - k);
            }
            transpose<1>(rows);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i)
                if (k + i < depth) store(to + (k + i) * V * kLanes + first, rows[i]);
        }
    }
}

// sums (R, V * lanes) = or += products of R rows of weights from `first` on.
template <int R, int V>
D2LLM_INLINE void add_products(const Linear& s, int64_t first, int64_t from, int64_t depth, const float* turned,
                               float* sums) {
    Vector acc[R][V];
    fill(acc, Vector{});
    multiply<Float32>(s.weight + first * s.weight_stride + from, 1, s.weight_stride, turned, V * kLanes, depth, acc);
    // Parts are summed apart: one running sum would gather an error for each term.
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            float* to = sums + (r * V + v) * kLanes;
            store(to, from ? load(to) + acc[r][v] : acc[r][v]);
        }
    }
}

template <int V>
D2LLM_INLINE void linear_lanes(const Linear& s) {
    constexpr int64_t kWidth = V * kLanes;
    float *turned = s.scratch, *sums = turned + kLinearDepth * kWidth;
    for (int64_t from = 0; from < s.depth; from += kLinearDepth) {
        const int64_t depth = s.depth - from < kLinearDepth ? s.depth - from : kLinearDepth;
        turn<V>(s, from, depth, turned);
        int64_t n = 0;
        for (; n + kPanel <= s.outputs; n += kPanel)
            add_products<kPanel, V>(s, n, from, depth, turned, sums + n * kWidth);
        for (; n < s.outputs; ++n) add_products<1, V>(s, n, from, depth, turned, sums + n * kWidth);
    }
    for (int64_t row = 0; row < s.rows; ++row)
        for (int64_t n = 0; n < s.outputs; ++n)
            s.out[row * s.out_stride + n] = sums[n * kWidth + row] + (s.bias ? s.bias[n] : 0);
}

static void linear(const Linear& s) {
    if (s.rows <= kLanes)
        linear_lanes<1>(s);
    else if (s.rows <= 2 * kLanes)
        linear_lanes<2>(s);
    else
        linear_lanes<kColumns>(s);
}
