// Strips with int8 weights and int8 rows b. The hidden layer of each pair gets a scale of its own, 255 steps up to
// its largest value, so the products are those of bytes; sums of F <= 518 of them are exact in int32 and in float32
// alike, and every instruction set gives the same scores.

constexpr int64_t kByteBlock = 64;

// row (F, padded with 0 to whole blocks) = relu(a + scale * b) in whole steps of `step`, which is returned. A step
// is NaN where the row holds NaN or infinity, so that no such pair can look like a good one.
D2LLM_INLINE float quantize(const float* a, const int8_t* b, float scale, int64_t features, int64_t padded,
                            float* row) {
    Vector top = {}, poison = {};
    for (int64_t k = 0; k < padded; k += kLanes) {
        Vector hidden = {};
        if (k < features) hidden = relu(load(a + k, features - k) + broadcast(scale) * load(b + k, features - k));
        top = top < hidden ? hidden : top;
        poison += hidden * Vector{};
        store(row + k, hidden);
    }
    float largest = 0;
    for (int l = 0; l < kLanes; ++l) largest = largest < top[l] ? top[l] : largest;
    const float step = largest / 255 + sum(poison);
    const Vector inverse = broadcast(largest > 0 ? 255 / largest : 0);
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, half to even.
    const Vector magic = broadcast(12582912.0f);
    for (int64_t k = 0; k < padded; k += kLanes) store(row + k, (load(row + k) * inverse + magic) - magic);
    return step;
}

// Where bytes have no instruction of their own they are whole numbers in floats, one to a unit.
struct Float32Bytes : Float32 {
    D2LLM_INLINE void transposed(const float* rows, int64_t padded, int64_t units, float* h) {
        for (int64_t u = 0; u < units; u += kLanes) {
            Vector block[kLanes];
#pragma GCC unroll 16
            for (int l = 0; l < kLanes; ++l) block[l] = load(rows + l * padded + u);
            transpose<1>(block);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i)
                if (u + i < units) store(h + (u + i) * kStrip, block[i]);
        }
    }
    D2LLM_INLINE Vector value(Vector sum) { return sum; }
};

template <class Unit>
D2LLM_INLINE void project_bytes(const Branch& branch, const float* h, int64_t units, const float* steps,
                                const Strip& strip) {
    Vector z[1][kColumns], step[kColumns];
    fill(z, broadcast(branch.out_bias));
#pragma GCC unroll 4
    for (int v = 0; v < kColumns; ++v) step[v] = load(steps + v * kLanes);
    const float* weight = static_cast<const float*>(branch.weight);
    for (int64_t p = 0; p * kPanel < branch.features; ++p) {
        typename Unit::Sum acc[kPanel][kColumns];
        fill(acc, typename Unit::Sum{});
        multiply<Unit>(weight + p * kPanel * units, kPanel, 1, h, kStrip, units, acc);
#pragma GCC unroll 12
        for (int r = 0; r < kPanel; ++r) {
            const int64_t n = p * kPanel + r;
#pragma GCC unroll 4
            for (int v = 0; v < kColumns; ++v) {
                Vector pre = Unit::value(acc[r][v]) * broadcast(branch.scale[n]) * step[v] + broadcast(branch.bias[n]);
                z[0][v] += broadcast(branch.out[n]) * relu(pre);
            }
        }
    }
    store(strip.z, 0, z);
}

template <class Unit>
static void score_bytes(const Branch& branch, const Strip& strip) {
    const int64_t features = branch.features, units = (features + Unit::kProducts - 1) / Unit::kProducts;
    const int64_t padded = (features + kByteBlock - 1) / kByteBlock * kByteBlock;
    float *h = strip.scratch, *rows = h + units * kStrip, steps[kStrip];
    for (int64_t first = 0; first < kStrip; first += kLanes) {
        for (int64_t l = 0; l < kLanes; ++l) {
            const int64_t lane = first + l;
            steps[lane] = quantize(static_cast<const float*>(strip.a[lane]), static_cast<const int8_t*>(strip.b[lane]),
                                   strip.scale[lane], features, padded, rows + l * padded);
        }
        Unit::transposed(rows, padded, units, h + first);
    }
    project_bytes<Unit>(branch, h, units, steps, strip);
}
