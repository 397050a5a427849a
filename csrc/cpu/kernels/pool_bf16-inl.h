// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Tokens of bfloat16 on AVX512-BF16: pairs of values of one token for the scores, pairs of tokens for the sum.

struct Pairs {
    static constexpr int64_t kProducts = 2;
    // Two rows of 32 values give two vectors of pairs.
    static constexpr int kWide = 2, kNarrow = 2;

    D2LLM_INLINE Vector row(const uint16_t* from, int64_t count) {
        uint16_t padded[2 * kLanes] = {};
        if (count < 2 * kLanes) {
            for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
            from = padded;
        }
        Vector v;
        __builtin_memcpy(&v, from, sizeof v);
        return v;
    }

    D2LLM_INLINE Vector dot(Vector acc, Vector x, Vector query) {
        return (Vector)_mm512_dpbf16_ps((__m512)acc, (__m512bh)x, (__m512bh)query);
    }

    D2LLM_INLINE Vector round(Vector weight) { return (Vector)(__builtin_convertvector(rounded(weight), Bits) << 16); }

    // ds and weights of each token side by side in bfloat16, as the sides are.
    D2LLM_INLINE void join(const TokenGradient& s) {
        for (int64_t t = 0; t < s.count; ++t)
            for (int64_t h = 0; h < s.half; h += kLanes) {
                float* at = s.g + t * 2 * s.half + h;
                store(at, pairs_of(load(at), load(at + s.half)));
            }
    }

    D2LLM_INLINE void spread(const TokenGradient& s, int64_t first, int64_t d, Vector (&acc)[kPanel][kColumns]) {
        multiply<Bfloat16>(s.g + first * 2 * s.half, 1, 2 * s.half, s.sides + d, s.stride, s.heads, acc);
    }

    // The weights of H heads for pairs of tokens; a last token without a partner goes with a weight and a row of 0.
    // Rows of weights are read as whole vectors, beyond H and beyond the last row (kHeadStride floats at most).
    template <int H>
    struct Weights {
        float pairs[kMaxTokens / 2 * kLanes];

        __attribute__((always_inline)) Weights(const Chunk& chunk, const float* a) {
            for (int64_t t = 0; t < chunk.count; t += 2) {
                const Vector even = load(a + t * chunk.stride);
                const Vector odd = t + 1 < chunk.count ? load(a + (t + 1) * chunk.stride) : Vector{};
                store(pairs + t / 2 * kLanes, pairs_of(even, odd));
            }
        }

        template <class T, int V>
        inline __attribute__((always_inline)) void accumulate(const Chunk& chunk, int64_t d,
                                                              Vector (&acc)[H][V]) const {
            const int64_t count = chunk.width - d;
            const T zeros[2 * kLanes] = {};
            // Interleaving works within quarters of a register; the quarters are put right once, at the end.
            for (int64_t t = 0; t < chunk.count; t += 2) {
                const T* first = static_cast<const T*>(chunk.rows[t]) + d;
                const T* second = t + 1 < chunk.count ? static_cast<const T*>(chunk.rows[t + 1]) + d : zeros;
                const __m512i even = (__m512i)row(first, count), odd = (__m512i)row(second, count);
                const Vector low = (Vector)_mm512_unpacklo_epi16(even, odd);
                const Vector high = (Vector)_mm512_unpackhi_epi16(even, odd);
#pragma GCC unroll 12
                for (int h = 0; h < H; ++h) {
                    acc[h][0] = Bfloat16::add(acc[h][0], low, pairs + t / 2 * kLanes + h);
                    acc[h][1] = Bfloat16::add(acc[h][1], high, pairs + t / 2 * kLanes + h);
                }
            }
            const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
            const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
#pragma GCC unroll 12
            for (int h = 0; h < H; ++h) {
                const __m512 low = (__m512)acc[h][0], high = (__m512)acc[h][1];
                acc[h][0] = (Vector)_mm512_permutex2var_ps(low, first, high);
                acc[h][1] = (Vector)_mm512_permutex2var_ps(low, second, high);
            }
        }
    };
};
