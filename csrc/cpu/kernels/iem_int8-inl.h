// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Strips of passages in int8 against weights in int8.
//
// The hidden layer of a pair is formed in whole numbers, with a step of its own: 255 of them are its largest value.
// Products and sums are exact, so that every instruction set gives the same scores; the few operations on floats
// at the end are kept apart for the same reason.

// Two input features to a unit, widened to int16, where bytes have no product of their own.
struct Shorts2 {
    typedef int16_t Hidden, Query;
    typedef int8_t Bytes __attribute__((vector_size(2 * D2LLM_LANES)));
    typedef int16_t Shorts __attribute__((vector_size(4 * D2LLM_LANES)));
    static constexpr int64_t kProducts = 2;
    static constexpr int32_t kShift = 0;

    D2LLM_INLINE Integers add(Integers acc, Vector right, const float* left) {
        int32_t pair;
        __builtin_memcpy(&pair, left, sizeof pair);
        return add(acc, (Integers)right, pair - Integers{});
    }

    D2LLM_INLINE Integers add(Integers acc, Integers one, Integers other) {
#if defined(D2LLM_AVX512)
        return acc + (Integers)_mm512_madd_epi16((__m512i)one, (__m512i)other);
#elif defined(D2LLM_AVX2)
        return acc + (Integers)_mm256_madd_epi16((__m256i)one, (__m256i)other);
#else
        return acc + (one << 16 >> 16) * (other << 16 >> 16) + (one >> 16) * (other >> 16);
#endif
    }

    // A vector of units of stored numbers, each with kShift added.
    D2LLM_INLINE Integers stored(const int8_t* from) {
        Bytes bytes;
        __builtin_memcpy(&bytes, from, sizeof bytes);
        return (Integers) __builtin_convertvector(bytes, Shorts);
    }
};

// Rounded value * factor / 2^15, in the form that the compiler knows as one instruction on vectors of int16.
D2LLM_INLINE int16_t scaled(int16_t value, int16_t factor) { return ((value * factor >> 14) + 1) >> 1; }

// row (F) = relu(a + b) of one pair in steps; returns the step. `wide` (F) is overwritten.
template <class Hidden>
D2LLM_INLINE float form_steps(const int16_t* __restrict a, const int8_t* __restrict b, const Gauge& gauge,
                              int64_t features, int16_t* __restrict wide, Hidden* __restrict row) {
    const int16_t row_a = gauge.row_a, row_b = gauge.row_b;
    // A largest value of fewer units is not resolved: the factor below would leave int16.
    int16_t top = 256;
    for (int64_t k = 0; k < features; ++k) {
        const int16_t sum = scaled(a[k], row_a) + scaled(b[k] * 256, row_b);
        wide[k] = sum < 0 ? 0 : sum;
        top = top < wide[k] ? wide[k] : top;
    }
    const int16_t factor = 255 * 32768 / top;
    for (int64_t k = 0; k < features; ++k) row[k] = scaled(wide[k], factor);
    return gauge.unit * (32768.0f / factor);
}

// h (units, strip) of kLanes lanes from their rows, `stride` units each.
D2LLM_INLINE void turn(const float* rows, int64_t stride, int64_t units, float* h) {
    for (int64_t u = 0; u < units; u += kLanes) {
        Vector block[kLanes];
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) block[l] = load(rows + l * stride + u);
        transpose<1>(block);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
            if (u + i < units) store(h + (u + i) * kStrip, block[i]);
    }
}

// A product that is rounded before it is added to, on every instruction set: the compiler may not fuse the two.
D2LLM_INLINE Vector product(Vector one, Vector other) {
    Vector result = one * other;
#if defined(__SSE__)
    asm("" : "+x"(result));
#else
    asm("" : "+m"(result));
#endif
    return result;
}

// Scales, bias, relu and the dot with out_weight on the sums of panel `p`.
D2LLM_INLINE void finish_steps(Integers (&acc)[kPanel][kColumns], const BranchView& branch, int64_t p,
                               const Vector (&step)[kColumns], Vector (&z)[kColumns]) {
#pragma GCC unroll 12
    for (int r = 0; r < kPanel; ++r) {
        const Vector scale = broadcast(branch.scale[p * kPanel + r]), bias = broadcast(branch.bias[p * kPanel + r]);
        const Vector out = broadcast(branch.out[p * kPanel + r]);
#pragma GCC unroll 4
        for (int v = 0; v < kColumns; ++v)
            z[v] += product(out, relu(product(__builtin_convertvector(acc[r][v], Vector) * scale, step[v]) + bias));
    }
}

template <class Unit>
D2LLM_INLINE void project_steps(const BranchView& branch, const float* h, int64_t units, const float* steps,
                                float* out) {
    Vector z[1][kColumns], step[kColumns];
    fill(z, broadcast(branch.out_bias));
#pragma GCC unroll 4
    for (int v = 0; v < kColumns; ++v) step[v] = load(steps + v * kLanes);
    const float* weight = static_cast<const float*>(branch.weight);
    for (int64_t p = 0; p * kPanel < branch.features; ++p) {
        Integers acc[kPanel][kColumns];
        fill(acc, Integers{});
        multiply<Unit>(weight + p * kPanel * units, kPanel, 1, h, kStrip, units, acc);
        finish_steps(acc, branch, p, step, z[0]);
    }
    store(out, 0, z);
}

template <class Unit>
static void score_bytes(const BranchView& branch, const ByteStrip& strip) {
    const int64_t features = branch.features, units = (features + Unit::kProducts - 1) / Unit::kProducts;
    const int64_t stride = (units + kLanes - 1) / kLanes * kLanes;
    float *h = strip.scratch, *rows = h + units * kStrip, *wide = rows + kLanes * stride, steps[kStrip];
    for (int64_t first = 0; first < kStrip; first += kLanes) {
        for (int64_t l = 0; l < kLanes; ++l)
            steps[first + l] = form_steps(strip.a[first + l], strip.b[first + l], strip.gauge[first + l], features,
                                          reinterpret_cast<int16_t*>(wide),
                                          reinterpret_cast<typename Unit::Hidden*>(rows + l * stride));
        turn(rows, stride, units, h + first);
    }
    project_steps<Unit>(branch, h, units, steps, strip.z);
}
