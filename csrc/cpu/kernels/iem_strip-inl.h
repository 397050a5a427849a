// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Scores of one strip of pairs, one pair a lane, so that a score cannot depend on the lane it falls in.
//
// The hidden layer of the strip is formed and transposed once, (units, strip), and stays in L2. Panels of the
// weights pass over it; bias, relu and the dot with out_weight are applied to the accumulators in registers.

constexpr int64_t kStrip = kColumns * kLanes;

// h (F, strip) = relu(a + b) of float or bfloat16 rows, as float.
template <class T>
D2LLM_INLINE void form(const T* const* a, const T* const* b, int64_t features, float* h) {
    for (int64_t first = 0; first < kStrip; first += kLanes) {
        for (int64_t k = 0; k < features; k += kLanes) {
            Vector rows[kLanes];
            int64_t count = features - k;
#pragma GCC unroll 16
            for (int l = 0; l < kLanes; ++l)
                rows[l] = relu(load(a[first + l] + k, count) + load(b[first + l] + k, count));
            transpose<1>(rows);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i)
                if (i < count) store(h + (k + i) * kStrip + first, rows[i]);
        }
    }
}

// features (strip, F): a tile of panel by strip, transposed back.
D2LLM_INLINE void keep(const Vector (&tile)[kPanel][kColumns], int64_t first, const BranchView& branch,
                       float* features) {
    float rows[kPanel * kStrip];
    store(rows, kStrip, tile);
    for (int64_t lane = 0; lane < kStrip; ++lane)
        for (int64_t r = 0; r < kPanel && first + r < branch.features; ++r)
            features[lane * branch.features + first + r] = rows[r * kStrip + lane];
}

// Bias, relu and the dot with out_weight on the accumulators of panel `p`.
D2LLM_INLINE void finish(Vector (&acc)[kPanel][kColumns], const BranchView& branch, int64_t p, Vector (&z)[kColumns]) {
#pragma GCC unroll 12
    for (int r = 0; r < kPanel; ++r) {
        // Padding has weights of zero, which an infinite hidden unit makes NaN.
        if (p * kPanel + r >= branch.features) break;
#pragma GCC unroll 4
        for (int v = 0; v < kColumns; ++v) {
            acc[r][v] = relu(acc[r][v] + broadcast(branch.bias[p * kPanel + r]));
            z[v] += broadcast(branch.out[p * kPanel + r]) * acc[r][v];
        }
    }
}

// z of a strip from its hidden layer in `units` units of 32 bits.
template <class Unit>
D2LLM_INLINE void project(const BranchView& branch, const float* h, int64_t units, const Strip& strip) {
    Vector z[1][kColumns];
    fill(z, broadcast(branch.out_bias));
    const float* weight = static_cast<const float*>(branch.weight);
    for (int64_t p = 0; p * kPanel < branch.features; ++p) {
        Vector acc[kPanel][kColumns];
        fill(acc, Vector{});
        multiply<Unit>(weight + p * kPanel * units, kPanel, 1, h, kStrip, units, acc);
        finish(acc, branch, p, z[0]);
        if (strip.features) keep(acc, p * kPanel, branch, strip.features);
    }
    store(strip.z, 0, z);
}

template <class T>
static void score(const BranchView& branch, const Strip& strip) {
    form(reinterpret_cast<const T* const*>(strip.a), reinterpret_cast<const T* const*>(strip.b), branch.features,
         strip.scratch);
    project<Float32>(branch, strip.scratch, branch.features, strip);
}
