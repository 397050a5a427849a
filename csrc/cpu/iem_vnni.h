// Bytes on AVX512-VNNI: four input features to a unit, unsigned hidden values times signed weights, summed in int32.

struct Bytes4 {
    typedef Integers Sum;
    static constexpr int64_t kProducts = 4;

    D2LLM_INLINE Integers add(Integers acc, Vector right, const float* left) {
        int32_t four;
        __builtin_memcpy(&four, left, sizeof four);
        return (Integers)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)right, _mm512_set1_epi32(four));
    }

    // One block of a row is 64 bytes, 16 units.
    D2LLM_INLINE void transposed(const float* rows, int64_t padded, int64_t units, float* h) {
        for (int64_t u = 0; u < units; u += kLanes) {
            Vector block[kLanes];
#pragma GCC unroll 16
            for (int l = 0; l < kLanes; ++l) {
                const float* row = rows + l * padded + 4 * u;
                __m128i part[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i)
                    part[i] = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32((__m512)load(row + i * kLanes)));
                __m512i bytes = _mm512_castsi128_si512(part[0]);
                bytes = _mm512_inserti32x4(bytes, part[1], 1);
                bytes = _mm512_inserti32x4(bytes, part[2], 2);
                block[l] = (Vector)_mm512_inserti32x4(bytes, part[3], 3);
            }
            transpose<1>(block);
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i)
                if (u + i < units) store(h + (u + i) * kStrip, block[i]);
        }
    }

    D2LLM_INLINE Vector value(Integers sum) { return __builtin_convertvector(sum, Vector); }
};
