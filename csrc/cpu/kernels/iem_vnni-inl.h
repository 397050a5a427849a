// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Four input features to a unit on AVX512-VNNI: unsigned hidden values times signed weights, summed in int32.

struct Bytes4 {
    typedef uint8_t Hidden;
    static constexpr int64_t kProducts = 4;

    D2LLM_INLINE Integers add(Integers acc, Vector right, const float* left) {
        int32_t four;
        __builtin_memcpy(&four, left, sizeof four);
        return (Integers)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)right, _mm512_set1_epi32(four));
    }
};
