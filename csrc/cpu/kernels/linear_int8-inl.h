// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Linear layers in whole numbers: rows rounded to int8, each in steps of its own, times weights in int8. Products and
// sums are exact and floats are rounded after every operation, so that each instruction set gives the same.

// to (count) = the row in steps of 1/127 of its largest value; returns the step, NaN for a row that is not finite.
template <class Unit>
D2LLM_INLINE float round_row(const float* row, int64_t count, typename Unit::Query* to, int32_t* shift) {
    Vector most{}, finite{};
    for (int64_t k = 0; k < count; k += kLanes) {
        const Vector value = load(row + k, count - k), size = value < 0 ? -value : value;
        most = most < size ? size : most;
        finite += value * 0;
    }
    float top = 0;
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) top = top < most[l] ? most[l] : top;
    const float step = top / 127, inverse = 127 / top;
    // A row whose steps cannot be counted in float is one of zeros.
    const bool counts = inverse < __builtin_inff();
    // Added to a small number, it leaves the nearest whole one, half to even, in the lowest bits.
    const Vector whole = broadcast(12582912), factor = broadcast(counts ? inverse : 0);
    Integers sum{};
    for (int64_t k = 0; k < count; k += kLanes) {
        const Integers steps = (Integers)(product(load(row + k, count - k), factor) + whole) - (Integers)whole;
        sum += steps;
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l)
            if (k + l < count) to[k + l] = steps[l];
    }
    // What was added to each weight comes off again.
    *shift = 0;
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) *shift += Unit::kShift * sum[l];
    float apart = 0;
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) apart += finite[l];
    return apart + (counts ? step : 0);
}

template <class Unit>
static void linear_steps(const IntegerLinear& s) {
    const int64_t units = (s.depth + Unit::kProducts - 1) / Unit::kProducts;
    const int64_t padded = (s.rows + kPanel - 1) / kPanel * kPanel;
    float *rounded_rows = s.scratch, *steps = rounded_rows + padded * units;
    int32_t* shifts = reinterpret_cast<int32_t*>(steps + padded);
    for (int64_t i = 0; i < padded * units; ++i) rounded_rows[i] = 0;
    for (int64_t row = 0; row < s.rows; ++row)
        steps[row] = round_row<Unit>(s.x + row * s.x_stride, s.depth,
                                     reinterpret_cast<typename Unit::Query*>(rounded_rows + row * units), shifts + row);
    for (int64_t n = 0; n < s.outputs; n += kStrip) {
        for (int64_t row = 0; row < s.rows; row += kPanel) {
            Integers acc[kPanel][kColumns];
            fill(acc, Integers{});
            multiply<Unit>(rounded_rows + row * units, 1, units, s.weight + n * units, kStrip, units, acc);
#pragma GCC unroll 12
            for (int r = 0; r < kPanel; ++r) {
                if (row + r >= s.rows) break;
                const Vector step = broadcast(steps[row + r]);
#pragma GCC unroll 4
                for (int v = 0; v < kColumns; ++v) {
                    const int64_t first = n + v * kLanes, count = s.outputs - first;
                    if (count <= 0) break;
                    const Vector sums = __builtin_convertvector(acc[r][v] - shifts[row + r], Vector);
                    const Vector y = product(product(sums, step), load(s.scale + first, count));
                    store(s.out + (row + r) * s.out_stride + first, s.bias ? y + load(s.bias + first, count) : y,
                          count);
                }
            }
        }
    }
}
