// Gradients of a chunk's tokens: dx = ds u + a dP, from the coefficients g (count, 2 * half) of both.

template <class T, int V>
D2LLM_INLINE void token_tile(const TokenGradient& s, int64_t first, int64_t d) {
    Vector acc[kPanel][V];
    fill(acc, Vector{});
    // Tokens past the last repeat it and are not stored.
    const int64_t rest = s.count - first;
    for (int64_t side = 0; side < 2; ++side) {
        const float *g = s.g + first * 2 * s.half + side * s.half, *rows = s.sides + side * s.heads * s.stride + d;
        for (int64_t h = 0; h < s.heads; ++h) {
            Vector row[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) row[v] = load(rows + h * s.stride + v * kLanes);
#pragma GCC unroll 12
            for (int r = 0; r < kPanel; ++r) {
                const float coefficient = g[(r < rest ? r : rest - 1) * 2 * s.half + h];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) acc[r][v] += broadcast(coefficient) * row[v];
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kPanel; ++r) {
        if (r >= rest) continue;
        T* to = static_cast<T*>(s.dx[first + r]) + d;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            if (s.width > d + v * kLanes) store(to + v * kLanes, acc[r][v], s.width - d - v * kLanes);
    }
}

template <class T>
static void token_gradients(const TokenGradient& s) {
    for (int64_t d = 0; d < s.width; d += kStrip)
        for (int64_t first = 0; first < s.count; first += kPanel) token_tile<T, kColumns>(s, first, d);
}
