// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// Vectors of D2LLM_LANES floats in the compiler's own vector types: one text for every instruction set. Which one it is
// say D2LLM_AVX2 and D2LLM_AVX512: of a pragma's target g++ before 13 does not define its own macros.

typedef float Vector __attribute__((vector_size(4 * D2LLM_LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * D2LLM_LANES)));
// The bits of floats: unsigned, since sums of them may run over in lanes whose result is then not taken.
typedef uint32_t Bits __attribute__((vector_size(4 * D2LLM_LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * D2LLM_LANES)));

#define D2LLM_INLINE static inline __attribute__((always_inline))

constexpr int64_t kLanes = D2LLM_LANES;

D2LLM_INLINE Vector load(const float* from) {
    Vector v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

// Bfloat16 is the upper half of a float.
D2LLM_INLINE Vector load(const uint16_t* from) {
    Halves half;
    __builtin_memcpy(&half, from, sizeof half);
    return (Vector)(__builtin_convertvector(half, Bits) << 16);
}

// The first `count` values, the rest 0: memory behind them is not touched.
template <class T>
D2LLM_INLINE Vector load(const T* from, int64_t count) {
    if (count >= kLanes) return load(from);
    T padded[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
    return load(padded);
}

D2LLM_INLINE void store(float* to, Vector v) { __builtin_memcpy(to, &v, sizeof v); }

D2LLM_INLINE void store(float* to, Integers v) { __builtin_memcpy(to, &v, sizeof v); }

D2LLM_INLINE void store(float* to, Vector v, int64_t count) {
    if (count >= kLanes) return store(to, v);
    for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}

// The nearest bfloat16, half to even; NaN stays NaN.
D2LLM_INLINE Halves rounded(Vector v) {
    const Bits bits = (Bits)v, even = (bits >> 16) & 1;
    return __builtin_convertvector((v == v ? bits + 0x7fff + even : bits | 0x400000) >> 16, Halves);
}

D2LLM_INLINE void store(uint16_t* to, Vector v) {
    const Halves halves = rounded(v);
    __builtin_memcpy(to, &halves, sizeof halves);
}

D2LLM_INLINE void store(uint16_t* to, Vector v, int64_t count) {
    if (count >= kLanes) return store(to, v);
    const Halves halves = rounded(v);
    for (int64_t i = 0; i < count; ++i) to[i] = halves[i];
}

D2LLM_INLINE Vector broadcast(float value) { return value - Vector{}; }

// Written so that NaN stays NaN.
D2LLM_INLINE Vector relu(Vector v) { return v < 0 ? Vector{} : v; }

template <int kStep>
D2LLM_INLINE void exchange(Vector& low, Vector& high) {
    // Indices of a shuffle of (low, high): lane l of one takes lane l - step of the other where l has the bit.
    Integers first, second;
    for (int l = 0; l < kLanes; ++l) {
        first[l] = l & kStep ? kLanes + l - kStep : l;
        second[l] = l & kStep ? kLanes + l : l + kStep;
    }
    Vector keep = __builtin_shuffle(low, high, first);
    high = __builtin_shuffle(low, high, second);
    low = keep;
}

template <int kStep>
D2LLM_INLINE void transpose(Vector (&rows)[kLanes]) {
    if constexpr (kStep < kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
            if (!(i & kStep)) exchange<kStep>(rows[i], rows[i + kStep]);
        transpose<kStep * 2>(rows);
    }
}

// The sum of the lanes, always in the same order.
D2LLM_INLINE float sum(Vector v) {
    float lanes[kLanes];
    store(lanes, v);
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
        for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

// How one 32-bit unit of the left and one of each lane of the right add to a sum.
struct Float32 {
    static constexpr int64_t kProducts = 1;
    D2LLM_INLINE Vector add(Vector acc, Vector right, const float* left) { return acc + broadcast(*left) * right; }
};

// acc[r][v], floats or integers, += sum over k of left[k * left_k + r * left_r] times right[k * right_k + v * lanes].
template <class Unit, class Sum, int R, int V>
D2LLM_INLINE void multiply(const float* left, int64_t left_k, int64_t left_r, const float* right, int64_t right_k,
                           int64_t depth, Sum (&acc)[R][V]) {
    for (int64_t k = 0; k < depth; ++k) {
        Vector column[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) column[v] = load(right + k * right_k + v * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const float* value = left + k * left_k + r * left_r;
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[r][v] = Unit::add(acc[r][v], column[v], value);
        }
    }
}

// The same vector, which the compiler may not read from memory again: an operand in memory costs a load each time.
D2LLM_INLINE Vector held(Vector v) {
#if defined(D2LLM_AVX512)
    asm("" : "+v"(v));
#elif defined(__SSE__)
    asm("" : "+x"(v));
#endif
    return v;
}

// The same value in every row and vector of a tile.
template <class Sum, int R, int V>
D2LLM_INLINE void fill(Sum (&acc)[R][V], Sum value) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
        for (int v = 0; v < V; ++v) acc[r][v] = value;
    }
}

// Rows of the tile to memory. Tiles are indexed by unrolled loops alone: a variable index would put them in memory for
// good, and every product behind a store.
template <class Sum, int R, int V>
D2LLM_INLINE void store(float* to, int64_t stride, const Sum (&tile)[R][V]) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(to + r * stride + v * kLanes, tile[r][v]);
    }
}
