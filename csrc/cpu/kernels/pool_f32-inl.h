// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Tokens of float or bfloat16, multiplied in float32.

struct Wide {
    static constexpr int64_t kProducts = 1;
    static constexpr int kWide = kColumns, kNarrow = 1;

    template <class T>
    D2LLM_INLINE Vector row(const T* from, int64_t count) {
        return load(from, count);
    }

    D2LLM_INLINE Vector dot(Vector acc, Vector x, Vector query) { return acc + x * query; }

    D2LLM_INLINE Vector round(Vector weight) { return weight; }

    D2LLM_INLINE void join(const TokenGradient&) {}

    // acc[r] += columns from `d` of the gradient of token first + r; rows past the last are not looked at.
    D2LLM_INLINE void spread(const TokenGradient& s, int64_t first, int64_t d, Vector (&acc)[kPanel][kColumns]) {
        for (int64_t side = 0; side < 2; ++side)
            multiply<Float32>(s.g + first * 2 * s.half + side * s.half, 1, 2 * s.half,
                              s.sides + side * s.heads * s.stride + d, s.stride, s.heads, acc);
    }

    // The weights of H heads for the tokens of a chunk.
    template <int H>
    struct Weights {
        const float* a;

        __attribute__((always_inline)) Weights(const Chunk&, const float* from) : a(from) {}

        template <class T, int V>
        inline __attribute__((always_inline)) void accumulate(const Chunk& chunk, int64_t d,
                                                              Vector (&acc)[H][V]) const {
            const int64_t count = chunk.width - d;
            for (int64_t t = 0; t < chunk.count; ++t) {
                const T* row = static_cast<const T*>(chunk.rows[t]) + d;
                Vector x[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) x[v] = V == 1 ? load(row, count) : load(row + v * kLanes);
#pragma GCC unroll 12
                for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) acc[h][v] += broadcast(a[t * chunk.stride + h]) * x[v];
                }
            }
        }
    };
};
