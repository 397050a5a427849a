// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Four input features to a unit on AVX512-VNNI: unsigned hidden values times signed weights, summed in int32.

struct Bytes4 {
    typedef uint8_t Hidden;
    typedef int8_t Query;
    static constexpr int64_t kProducts = 4;
    static constexpr int32_t kShift = 128;

    D2LLM_INLINE Integers add(Integers acc, Vector right, const float* left) {
        int32_t four;
        __builtin_memcpy(&four, left, sizeof four);
        return (Integers)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)right, _mm512_set1_epi32(four));
    }

    D2LLM_INLINE Integers add(Integers acc, Integers one, Integers other) {
        return (Integers)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)one, (__m512i)other);
    }

    // Signed bytes become the unsigned ones that the instruction takes on its left.
    D2LLM_INLINE Integers stored(const int8_t* from) {
        return (Integers)_mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(-128));
    }
};
