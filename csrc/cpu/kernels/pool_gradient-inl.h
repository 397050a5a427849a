// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Gradients of a chunk's tokens: dx = ds u + a dP, from the coefficients g (count, 2 * half) of both.

template <class Unit, class T>
static void token_gradients(const TokenGradient& s) {
    Unit::join(s);
    for (int64_t d = 0; d < s.width; d += kStrip) {
        for (int64_t first = 0; first < s.count; first += kPanel) {
            // The lines are fetched for writing while the sums are made.
#pragma GCC unroll 12
            for (int r = 0; r < kPanel; ++r) {
                if (first + r >= s.count) continue;
#pragma GCC unroll 4
                for (int v = 0; v < kColumns; ++v)
                    __builtin_prefetch(static_cast<T*>(s.dx[first + r]) + d + v * kLanes, 1);
            }
            Vector acc[kPanel][kColumns];
            fill(acc, Vector{});
            Unit::spread(s, first, d, acc);
            const int64_t rest = s.width - d;
#pragma GCC unroll 12
            for (int r = 0; r < kPanel; ++r) {
                if (first + r >= s.count) continue;
                T* to = static_cast<T*>(s.dx[first + r]) + d;
#pragma GCC unroll 4
                for (int v = 0; v < kColumns; ++v) {
                    if (rest >= kStrip)
                        store(to + v * kLanes, acc[r][v]);
                    else if (rest > v * kLanes)
                        store(to + v * kLanes, acc[r][v], rest - v * kLanes);
                }
            }
        }
    }
}
