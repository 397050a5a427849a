// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Inner products of rows of int8 with a query, exact in int32.

// sums[0] = lane l the sum of all lanes of sums[l]; the others are overwritten.
template <int kStep>
D2LLM_INLINE void fold(Integers (&sums)[kLanes]) {
    if constexpr (kStep < kLanes) {
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; l += 2 * kStep) {
            Vector low = (Vector)sums[l], high = (Vector)sums[l + kStep];
            exchange<kStep>(low, high);
            sums[l] = (Integers)low + (Integers)high;
        }
        fold<2 * kStep>(sums);
    }
}

// Bytes that are fetched ahead: the hardware does not look past a page.
constexpr int64_t kAhead = 4096;

template <class Unit>
static void inner_products(const InnerRows& rows, const void* query, int32_t* out) {
    constexpr int64_t kTaken = kLanes * Unit::kProducts;
    const float* units = static_cast<const float*>(query);
    const typename Unit::Query* numbers = static_cast<const typename Unit::Query*>(query);
    // What was added to each stored number comes off again.
    int32_t shifted = 0;
    for (int64_t k = 0; k < rows.width; ++k) shifted += Unit::kShift * numbers[k];
    for (int64_t first = 0; first < rows.count; first += kLanes) {
        const int8_t* row[kLanes];
        for (int64_t l = 0; l < kLanes; ++l)
            row[l] = rows.rows + (first + l < rows.count ? first + l : rows.count - 1) * rows.stride;
        // Row after row, in the order in which they lie.
        Integers sums[kLanes];
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) {
            Integers sum{};
            int64_t k = 0;
            for (; k + kTaken <= rows.width; k += kTaken) {
                __builtin_prefetch(row[l] + k + kAhead);
                sum = Unit::add(sum, Unit::stored(row[l] + k), (Integers)load(units + k / Unit::kProducts));
            }
            if (k < rows.width) {
                // Behind its width the query has zeros.
                int8_t rest[kTaken] = {};
                __builtin_memcpy(rest, row[l] + k, rows.width - k);
                sum = Unit::add(sum, Unit::stored(rest), (Integers)load(units + k / Unit::kProducts));
            }
            sums[l] = sum;
        }
        fold<1>(sums);
        const Integers exact = sums[0] - shifted;
        const int64_t count = rows.count - first < kLanes ? rows.count - first : kLanes;
        __builtin_memcpy(out + first, &exact, count * sizeof(int32_t));
    }
}
