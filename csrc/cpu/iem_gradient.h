// Gradients of one strip of pairs: the strip is scored again, then taken apart by three products in float32.

// rows (strip, stride) = relu(a + b), each row padded with 0 to whole tiles.
template <class T>
D2LLM_INLINE void form_rows(const StripGradient& s, int64_t features, int64_t stride, float* rows) {
    for (int64_t lane = 0; lane < kStrip; ++lane) {
        const T *a = static_cast<const T*>(s.a[lane]), *b = static_cast<const T*>(s.b[lane]);
        for (int64_t k = 0; k < stride; k += kLanes) {
            const int64_t count = features - k;
            store(rows + lane * stride + k, count > 0 ? relu(load(a + k, count) + load(b + k, count)) : Vector{});
        }
    }
}

// Gradients of the features of panel `p`, (panel, strip), where they are given; else 0.
D2LLM_INLINE void feature_gradients(const StripGradient& s, const Branch& branch, int64_t p, float* tile) {
    for (int64_t r = 0; r < kPanel; ++r)
        for (int64_t lane = 0; lane < kStrip; ++lane) {
            const bool given = s.dfeatures && s.dfeatures[lane] && p * kPanel + r < branch.features;
            tile[r * kStrip + lane] = given ? s.dfeatures[lane][p * kPanel + r] : 0;
        }
}

// dpre (F, strip), the gradient before the second relu; adds to dbias and dout.
D2LLM_INLINE void before_relu(const Branch& branch, const StripGradient& s, const float* h, float* dpre) {
    const float* weight = static_cast<const float*>(branch.weight);
    float given[kPanel * kStrip] = {};
    for (int64_t p = 0; p * kPanel < branch.features; ++p) {
        Vector acc[kPanel][kColumns];
        fill(acc, Vector{});
        multiply<Float32>(weight + p * kPanel * branch.features, kPanel, 1, h, kStrip, branch.features, acc);
        if (s.dfeatures) feature_gradients(s, branch, p, given);
#pragma GCC unroll 12
        for (int r = 0; r < kPanel; ++r) {
            const int64_t n = p * kPanel + r;
            Vector dbias = {}, dout = {};
#pragma GCC unroll 4
            for (int v = 0; v < kColumns; ++v) {
                const Vector pre = acc[r][v] + broadcast(branch.bias[n]), dz = load(s.dz + v * kLanes);
                Vector d = broadcast(branch.out[n]) * dz + load(given + r * kStrip + v * kLanes);
                d = pre <= 0 ? Vector{} : d;
                dbias += d;
                dout += dz * relu(pre);
                store(dpre + n * kStrip + v * kLanes, d);
            }
            if (n < branch.features) {
                s.dbias[n] += sum(dbias);
                s.dout[n] += sum(dout);
            }
        }
    }
}

// dweight (F, F) += dpre h^T.
D2LLM_INLINE void weight_gradient(int64_t features, const float* dpre, const float* rows, int64_t stride,
                                  float* dweight) {
    for (int64_t n = 0; n < features; n += kPanel) {
        for (int64_t k = 0; k < features; k += kStrip) {
            Vector acc[kPanel][kColumns];
            fill(acc, Vector{});
            multiply<Float32>(dpre + n * kStrip, 1, kStrip, rows + k, stride, kStrip, acc);
            float tile[kPanel * kStrip];
            store(tile, kStrip, acc);
            const int64_t width = features - k < kStrip ? features - k : kStrip;
            for (int64_t r = 0; r < kPanel && n + r < features; ++r)
                for (int64_t i = 0; i < width; ++i) dweight[(n + r) * features + k + i] += tile[r * kStrip + i];
        }
    }
}

// da and db += W^T dpre where h > 0. NaN counts as above 0, as it does in relu.
D2LLM_INLINE void row_gradients(const StripGradient& s, int64_t features, const float* transposed, const float* h,
                                const float* dpre) {
    for (int64_t k = 0; k < features; k += kPanel) {
        Vector acc[kPanel][kColumns];
        fill(acc, Vector{});
        multiply<Float32>(transposed + k * features, kPanel, 1, dpre, kStrip, features, acc);
        float tile[kPanel * kStrip];
        store(tile, kStrip, acc);
        const int64_t height = features - k < kPanel ? features - k : kPanel;
        for (int64_t lane = 0; lane < kStrip && s.da[lane]; ++lane) {
            for (int64_t r = 0; r < height; ++r) {
                const float d = h[(k + r) * kStrip + lane] <= 0 ? 0 : tile[r * kStrip + lane];
                s.da[lane][k + r] += d;
                s.db[lane][k + r] += d;
            }
        }
    }
}

template <class T>
static void differentiate(const Branch& branch, const float* transposed, const StripGradient& s) {
    const int64_t features = branch.features, padded = (features + kPanel - 1) / kPanel * kPanel;
    const int64_t stride = (features + kStrip - 1) / kStrip * kStrip;
    float *h = s.scratch, *dpre = h + features * kStrip, *rows = dpre + padded * kStrip;
    form(reinterpret_cast<const T* const*>(s.a), reinterpret_cast<const T* const*>(s.b), features, h);
    form_rows<T>(s, features, stride, rows);
    before_relu(branch, s, h, dpre);
    weight_gradient(features, dpre, rows, stride, s.dweight);
    row_gradients(s, features, transposed, h, dpre);
}
