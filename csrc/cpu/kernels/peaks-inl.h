// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// What the arithmetic units can do at most: independent sums in registers, nothing else.

template <class Unit, class Sum = Vector>
static double peak(int64_t rounds) {
    Sum acc[kPanel][kColumns];
    fill(acc, Sum{});
    Vector right[kColumns] = {};
    float left[kPanel] = {};
    for (int64_t i = 0; i < rounds; ++i) {
        // The factors may have changed, as far as the compiler knows: no product is taken out of the loop.
        asm volatile("" : "+m"(left), "+m"(right));
#pragma GCC unroll 12
        for (int r = 0; r < kPanel; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < kColumns; ++v) acc[r][v] = Unit::add(acc[r][v], right[v], left + r);
        }
    }
    float results[kPanel * kStrip];
    store(results, kStrip, acc);
    // The result must be used, or the loop is removed.
    asm volatile("" : : "m"(results));
    return 2.0 * rounds * kPanel * kStrip * Unit::kProducts;
}
