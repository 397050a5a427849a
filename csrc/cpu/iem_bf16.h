// Strips in bfloat16 on AVX512-BF16: two input features to a unit, products summed in float32.

struct Bfloat16 {
    static constexpr int64_t kProducts = 2;
    D2LLM_INLINE Vector add(Vector acc, Vector right, const float* left) {
        // Read as an integer, so that no float instruction sees, and quietens, the pair of halves.
        int32_t pair;
        __builtin_memcpy(&pair, left, sizeof pair);
        return (Vector)_mm512_dpbf16_ps((__m512)acc, (__m512bh)right, (__m512bh)_mm512_set1_epi32(pair));
    }
};

// h (ceil(F / 2), strip) of pairs: relu(a + b), rounded.
D2LLM_INLINE void form_pairs(const uint16_t* const* a, const uint16_t* const* b, int64_t features, float* h) {
    const int64_t units = (features + 1) / 2;
    for (int64_t first = 0; first < kStrip; first += kLanes) {
        for (int64_t u = 0; u < units; u += kLanes) {
            Vector rows[kLanes];
            const int64_t k = 2 * u, low = features - k, high = low - kLanes;
#pragma GCC unroll 16
            for (int l = 0; l < kLanes; ++l) {
                const uint16_t *left = a[first + l] + k, *right = b[first + l] + k;
                Vector even = relu(load(left, low) + load(right, low)), odd = {};
                if (high > 0) odd = relu(load(left + kLanes, high) + load(right + kLanes, high));
                rows[l] = (Vector)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
            }
            transpose<1>(rows);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i)
                if (u + i < units) store(h + (u + i) * kStrip + first, rows[i]);
        }
    }
}

static void score_pairs(const Branch& branch, const Strip& strip) {
    form_pairs(reinterpret_cast<const uint16_t* const*>(strip.a), reinterpret_cast<const uint16_t* const*>(strip.b),
               branch.features, strip.scratch);
    project<Bfloat16>(branch, strip.scratch, (branch.features + 1) / 2, strip);
}
