// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
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

// Lane by lane, `low` in the lower half of the bits and `high` in the upper, rounded.
D2LLM_INLINE Vector pairs_of(Vector low, Vector high) {
    const Bits lower = __builtin_convertvector(rounded(low), Bits);
    return (Vector)(lower | (__builtin_convertvector(rounded(high), Bits) << 16));
}

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

static void score_pairs(const BranchView& branch, const Strip& strip) {
    form_pairs(reinterpret_cast<const uint16_t* const*>(strip.a), reinterpret_cast<const uint16_t* const*>(strip.b),
               branch.features, strip.scratch);
    project<Bfloat16>(branch, strip.scratch, (branch.features + 1) / 2, strip);
}

// Units of two bfloat16 for gradients: of features for the hidden layer and dpre, of pairs for the weight's gradient.
struct Doubles {
    typedef Bfloat16 Unit;

    D2LLM_INLINE void hidden(const StripGradient& s, int64_t features, float* h) {
        form_pairs(reinterpret_cast<const uint16_t* const*>(s.a), reinterpret_cast<const uint16_t* const*>(s.b),
                   features, h);
    }

    D2LLM_INLINE Vector row(const StripGradient& s, int64_t lane, int64_t k, int64_t features) {
        typedef Singles<uint16_t> Half;
        return pairs_of(Half::part(s, lane, k, features), Half::part(s, lane + 1, k, features));
    }

    D2LLM_INLINE float* lines(float* columns, int64_t padded) { return columns + padded / 2 * kStrip; }

    D2LLM_INLINE void keep(const Vector (&tile)[kPanel][kColumns], int64_t first, float* columns, float* lines) {
#pragma GCC unroll 12
        for (int r = 0; r < kPanel; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kColumns; ++v) {
                store(reinterpret_cast<uint16_t*>(lines) + (first + r) * kStrip + v * kLanes, tile[r][v]);
                if (r % 2) continue;
                store(columns + (first + r) / 2 * kStrip + v * kLanes, pairs_of(tile[r][v], tile[r + 1][v]));
            }
        }
    }

    D2LLM_INLINE bool passes(const float* h, int64_t feature, int64_t lane) {
        uint16_t halves[2];
        __builtin_memcpy(halves, h + feature / 2 * kStrip + lane, sizeof halves);
        return (halves[feature % 2] & 0x7fff) != 0;
    }
};
