// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Gradients of one strip of pairs: the strip is scored again, then taken apart by three products.
//
// A Form says in which units the products are taken, and has the strip's values in the three arrangements that they
// read: the hidden layer h and dpre with a pair to a lane, `columns`; dpre with a feature to a row, `lines`; and the
// hidden layer with a pair, or units of pairs, to a row, `rows`.

// Units of one float, from rows of float or bfloat16.
template <class T>
struct Singles {
    typedef Float32 Unit;

    D2LLM_INLINE void hidden(const StripGradient& s, int64_t features, float* h) {
        form(reinterpret_cast<const T* const*>(s.a), reinterpret_cast<const T* const*>(s.b), features, h);
    }

    // A vector of columns from `k` on of the hidden layer of a pair, 0 past F.
    D2LLM_INLINE Vector part(const StripGradient& s, int64_t lane, int64_t k, int64_t features) {
        if (k >= features) return Vector{};
        const T *a = static_cast<const T*>(s.a[lane]), *b = static_cast<const T*>(s.b[lane]);
        return relu(load(a + k, features - k) + load(b + k, features - k));
    }

    D2LLM_INLINE Vector row(const StripGradient& s, int64_t lane, int64_t k, int64_t features) {
        return part(s, lane, k, features);
    }

    // Both arrangements of dpre are one.
    D2LLM_INLINE float* lines(float* columns, int64_t) { return columns; }

    D2LLM_INLINE void keep(const Vector (&tile)[kPanel][kColumns], int64_t first, float* columns, float*) {
        store(columns + first * kStrip, kStrip, tile);
    }

    // NaN counts as above 0, as it does in relu.
    D2LLM_INLINE bool passes(const float* h, int64_t feature, int64_t lane) {
        return !(h[feature * kStrip + lane] <= 0);
    }
};

// Gradients of the features of panel `p`, (panel, strip), where they are given; else 0.
D2LLM_INLINE void feature_gradients(const StripGradient& s, const BranchView& branch, int64_t p, float* tile) {
    for (int64_t r = 0; r < kPanel; ++r)
        for (int64_t lane = 0; lane < kStrip; ++lane) {
            const bool given = s.dfeatures && s.dfeatures[lane] && p * kPanel + r < branch.features;
            tile[r * kStrip + lane] = given ? s.dfeatures[lane][p * kPanel + r] : 0;
        }
}

// dpre, the gradient before the second relu; adds to dbias and dout.
template <class Form>
D2LLM_INLINE void before_relu(const BranchView& branch, const StripGradient& s, int64_t units, const float* h,
                              float* columns, float* lines) {
    const float* weight = static_cast<const float*>(branch.weight);
    float given[kPanel * kStrip] = {};
    for (int64_t p = 0; p * kPanel < branch.features; ++p) {
        Vector acc[kPanel][kColumns];
        fill(acc, Vector{});
        multiply<typename Form::Unit>(weight + p * kPanel * units, kPanel, 1, h, kStrip, units, acc);
        if (s.dfeatures) feature_gradients(s, branch, p, given);
#pragma GCC unroll 12
        for (int r = 0; r < kPanel; ++r) {
            const int64_t n = p * kPanel + r;
            Vector dbias = {}, dout = {};
#pragma GCC unroll 4
            for (int v = 0; v < kColumns; ++v) {
                const Vector pre = acc[r][v] + broadcast(branch.bias[n]), dz = load(s.dz + v * kLanes);
                const Vector d = broadcast(branch.out[n]) * dz + load(given + r * kStrip + v * kLanes);
                acc[r][v] = pre <= 0 ? Vector{} : d;
                dbias += acc[r][v];
                dout += dz * relu(pre);
            }
            if (n < branch.features) {
                s.dbias[n] += sum(dbias);
                s.dout[n] += sum(dout);
            }
        }
        Form::keep(acc, p * kPanel, columns, lines);
    }
}

// dweight (F, F) += dpre h^T.
template <class Form>
D2LLM_INLINE void weight_gradient(int64_t features, const float* lines, const float* rows, int64_t stride,
                                  float* dweight) {
    constexpr int64_t kDepth = kStrip / Form::Unit::kProducts;
    for (int64_t n = 0; n < features; n += kPanel) {
        for (int64_t k = 0; k < features; k += kStrip) {
            Vector acc[kPanel][kColumns];
            fill(acc, Vector{});
            multiply<typename Form::Unit>(lines + n * kDepth, 1, kDepth, rows + k, stride, kDepth, acc);
            float tile[kPanel * kStrip];
            store(tile, kStrip, acc);
            const int64_t width = features - k < kStrip ? features - k : kStrip;
            for (int64_t r = 0; r < kPanel && n + r < features; ++r)
                for (int64_t i = 0; i < width; ++i) dweight[(n + r) * features + k + i] += tile[r * kStrip + i];
        }
    }
}

// da and db += W^T dpre where h > 0.
template <class Form>
D2LLM_INLINE void row_gradients(const StripGradient& s, int64_t features, int64_t units, const float* transposed,
                                const float* h, const float* columns) {
    for (int64_t k = 0; k < features; k += kPanel) {
        Vector acc[kPanel][kColumns];
        fill(acc, Vector{});
        multiply<typename Form::Unit>(transposed + k * units, kPanel, 1, columns, kStrip, units, acc);
        float tile[kPanel * kStrip];
        store(tile, kStrip, acc);
        const int64_t height = features - k < kPanel ? features - k : kPanel;
        for (int64_t lane = 0; lane < kStrip && s.da[lane]; ++lane) {
            for (int64_t r = 0; r < height; ++r) {
                const float d = Form::passes(h, k + r, lane) ? tile[r * kStrip + lane] : 0;
                s.da[lane][k + r] += d;
                s.db[lane][k + r] += d;
            }
        }
    }
}

template <class Form>
static void differentiate(const BranchView& branch, const float* transposed, const StripGradient& s) {
    constexpr int64_t kUnit = Form::Unit::kProducts;
    const int64_t features = branch.features, units = (features + kUnit - 1) / kUnit;
    const int64_t padded = (features + kPanel - 1) / kPanel * kPanel;
    const int64_t stride = (features + kStrip - 1) / kStrip * kStrip;
    float *h = s.scratch, *columns = h + units * kStrip, *lines = Form::lines(columns, padded);
    float* rows = lines + padded * kStrip / kUnit;
    Form::hidden(s, features, h);
    for (int64_t i = 0; i < kStrip / kUnit; ++i)
        for (int64_t k = 0; k < stride; k += kLanes) store(rows + i * stride + k, Form::row(s, i * kUnit, k, features));
    before_relu<Form>(branch, s, units, h, columns, lines);
    weight_gradient<Form>(features, lines, rows, stride, s.dweight);
    row_gradients<Form>(s, features, units, transposed, h, columns);
}
