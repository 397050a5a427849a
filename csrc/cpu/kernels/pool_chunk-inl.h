// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// The two products of attention pooling on a chunk of tokens that stays in cache: scores, then the weighted sum.
//
// Heads are taken kHeads at a time at most, queries in slabs of some units of D, so that a slab of a group of heads
// stays in L1 while the tokens pass. Tokens are read where they lie, through pointers.

constexpr int64_t kHeads = 9;

template <int N>
struct Count {
    static constexpr int value = N;
};

// Lane l of the result is the sum over the lanes of v[l], in an order that is the same for all of them.
template <int kStep = 1>
D2LLM_INLINE Vector sums(Vector (&v)[kLanes]) {
    if constexpr (kStep < kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i += 2 * kStep) {
            exchange<kStep>(v[i], v[i + kStep]);
            v[i] += v[i + kStep];
        }
        return sums<2 * kStep>(v);
    } else {
        return v[0];
    }
}

// out (count, V heads) of the sums of a tile's lanes, kLanes at a time.
template <int R, int V>
D2LLM_INLINE void reduce(const Vector (&tile)[R][V], float* out) {
#pragma GCC unroll 4
    for (int first = 0; first < R * V; first += kLanes) {
        Vector part[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
            part[i] = first + i < R * V ? tile[(first + i) / V % R][(first + i) % V] : Vector{};
        store(out + first, sums(part));
    }
}

// The row of a token, or the last one.
template <class T>
D2LLM_INLINE const T* row_at(const Chunk& chunk, int64_t token) {
    return static_cast<const T*>(chunk.rows[token < chunk.count ? token : chunk.count - 1]);
}

// s (count, stride) [+]= products of the rows' units [begin, end) with `H` queries of one slab.
template <class Unit, class T, int H>
D2LLM_INLINE void slab_products(const Chunk& chunk, int64_t begin, int64_t end, const float* u, float* s) {
    for (int64_t first = 0; first < chunk.count; first += kTokens) {
        Vector acc[kTokens][H];
        fill(acc, Vector{});
        const T *rows[kTokens], *later[kTokens];
        for (int t = 0; t < kTokens; ++t) {
            rows[t] = row_at<T>(chunk, first + t) + begin * Unit::kProducts;
            later[t] = row_at<T>(chunk, first + t + kTokens) + begin * Unit::kProducts;
        }
        for (int64_t d = 0; d < end - begin; d += kLanes) {
            Vector x[kTokens];
#pragma GCC unroll 4
            for (int t = 0; t < kTokens; ++t)
                x[t] = Unit::row(rows[t] + d * Unit::kProducts, chunk.width - (begin + d) * Unit::kProducts);
            // Rows are short, and the processor looks ahead along a row only.
#pragma GCC unroll 4
            for (int t = 0; t < kTokens; ++t) __builtin_prefetch(later[t] + d * Unit::kProducts);
#pragma GCC unroll 12
            for (int h = 0; h < H; ++h) {
                const Vector query = held(load(u + d * H + h * kLanes));
#pragma GCC unroll 4
                for (int t = 0; t < kTokens; ++t) acc[t][h] = Unit::dot(acc[t][h], x[t], query);
            }
        }
        float result[(kTokens * H + kLanes - 1) / kLanes * kLanes];
        reduce(acc, result);
        for (int64_t t = 0; t < kTokens && first + t < chunk.count; ++t) {
            float* to = s + (first + t) * chunk.stride;
            for (int64_t h = 0; h < H; ++h) to[h] = begin ? to[h] + result[t * H + h] : result[t * H + h];
        }
    }
}

// out (H, width) = or += sum over the chunk's rows of a (count, stride) times the row, for `H` heads.
template <class Unit, class T, int H, int V>
D2LLM_INLINE void tile_sum(const Chunk& chunk, const typename Unit::template Weights<H>& a, int64_t d, bool add,
                           float* out, int64_t stride) {
    Vector acc[H][V];
    fill(acc, Vector{});
    a.template accumulate<T>(chunk, d, acc);
    const int64_t count = chunk.width - d;
#pragma GCC unroll 12
    for (int h = 0; h < H; ++h) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            if (count <= v * kLanes) continue;
            float* to = out + h * stride + d + v * kLanes;
            store(to, add ? load(to, count - v * kLanes) + acc[h][v] : acc[h][v], count - v * kLanes);
        }
    }
}

template <class Unit, class T, int H>
D2LLM_INLINE void weighted_heads(const Chunk& chunk, const float* a, bool add, float* out, int64_t stride) {
    const typename Unit::template Weights<H> weights(chunk, a);
    int64_t d = 0;
    for (; d + Unit::kWide * kLanes <= chunk.width; d += Unit::kWide * kLanes)
        tile_sum<Unit, T, H, Unit::kWide>(chunk, weights, d, add, out, stride);
    for (; d < chunk.width; d += Unit::kNarrow * kLanes)
        tile_sum<Unit, T, H, Unit::kNarrow>(chunk, weights, d, add, out, stride);
}

// Call `function` with the number of heads as a constant, for groups of heads as equal as possible.
template <class Function>
D2LLM_INLINE void by_heads(int64_t heads, Function function) {
    const int64_t groups = (heads + kHeads - 1) / kHeads;
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * heads / groups;
        switch ((g + 1) * heads / groups - first) {
            case 1:
                function(first, Count<1>{});
                break;
            case 2:
                function(first, Count<2>{});
                break;
            case 3:
                function(first, Count<3>{});
                break;
            case 4:
                function(first, Count<4>{});
                break;
            case 5:
                function(first, Count<5>{});
                break;
            case 6:
                function(first, Count<6>{});
                break;
            case 7:
                function(first, Count<7>{});
                break;
            case 8:
                function(first, Count<8>{});
                break;
            default:
                function(first, Count<9>{});
                break;
        }
    }
}

// Queries u (H, D) by slabs of D, groups of heads, and steps of a vector of units: in the order in which they are read.
template <class Unit, class T>
static void pack_queries(const void* u, int64_t heads, int64_t width, int64_t slab, float* packed) {
    for (int64_t begin = 0; begin * Unit::kProducts < width; begin += slab) {
        by_heads(heads, [&](int64_t first, auto group) {
            for (int64_t unit = begin; unit < begin + slab; unit += kLanes) {
                const int64_t d = unit * Unit::kProducts;
                for (int64_t h = first; h < first + decltype(group)::value; ++h, packed += kLanes)
                    store(packed,
                          d < width ? Unit::row(static_cast<const T*>(u) + h * width + d, width - d) : Vector{});
            }
        });
    }
}

template <class Unit, class T>
static void products(const Chunk& chunk, const float* u, float* s) {
    const int64_t units = (chunk.width + Unit::kProducts - 1) / Unit::kProducts;
    for (int64_t begin = 0; begin < units; begin += chunk.slab) {
        const int64_t end = begin + chunk.slab < units ? begin + chunk.slab : units;
        by_heads(chunk.heads, [&](int64_t first, auto heads) __attribute__((always_inline)) {
            slab_products<Unit, T, decltype(heads)::value>(chunk, begin, end, u + first * chunk.slab, s + first);
        });
        u += chunk.heads * chunk.slab;
    }
}

template <class Unit, class T>
static void weighted_sum(const Chunk& chunk, const float* a, bool add, float* out, int64_t stride) {
    by_heads(chunk.heads, [&](int64_t first, auto heads) __attribute__((always_inline)) {
        weighted_heads<Unit, T, decltype(heads)::value>(chunk, a + first, add, out + first * stride, stride);
    });
}
