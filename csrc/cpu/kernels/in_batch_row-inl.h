// Text, included once for each instruction set inside its namespace (isa/*.cpp).
//
// The losses over all pairs, one row of the batch: its columns and hard negatives in vectors, and the forward.
//
// A triple needs exp(z_e - z_h). It comes from exponentials that were taken once for the column and once for the hard
// negative, as long as those are floats: logits from -kNear to kNear. Others take one of their own.

constexpr float kNear = 40;

// Factors of up to 2 that are multiplied before one logarithm is taken of all: their product stays far from the largest
// float.
constexpr int64_t kFactors = 64;

constexpr float kInfinity = __builtin_inff();

// Vectors of columns that are taken together: what a block costs besides its triples shows where K is small.
constexpr int kBlock = 4;
static_assert(kBlock * kLanes <= kBatchBlock);

typedef uint8_t Flags __attribute__((vector_size(D2LLM_LANES)));

D2LLM_INLINE bool any(Integers lanes) {
#if defined(D2LLM_AVX512)
    return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes);
#elif defined(D2LLM_AVX2)
    return _mm256_movemask_ps((__m256)lanes);
#else
    int32_t bits = 0;
    for (int l = 0; l < kLanes; ++l) bits |= lanes[l];
    return bits;
#endif
}

D2LLM_INLINE Vector magnitude(Vector v) { return (Vector)((Bits)v & 0x7fffffffu); }

// Which columns from `first` on are another query's passage that counts.
D2LLM_INLINE Integers others_of(const BatchRow& row, int64_t first) {
    Integers lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    const int64_t count = row.size - first;
    Integers others = lane != static_cast<int32_t>(row.own - first);
    if (count < kLanes) others &= lane < static_cast<int32_t>(count);
    if (row.left_out) {
        Flags flags = {};
        if (count >= kLanes)
            __builtin_memcpy(&flags, row.left_out + first, sizeof flags);
        else
            for (int64_t l = 0; l < count; ++l) flags[l] = row.left_out[first + l];
        // In two steps: GCC takes one from 8 to 32 bits apart.
        others &= __builtin_convertvector(__builtin_convertvector(flags, Halves), Integers) == 0;
    }
    return others;
}

// A row's columns in whole blocks, in scratch memory. One that takes no part has z -inf and s 0: it adds 0 to every
// sum.
struct Columns {
    float *z, *s;
    float* weights;  // room for as many
    int64_t size;
    float top;  // the largest z of all, the row's own too
};

static Columns columns_of(const BatchRow& row) {
    constexpr int64_t kWidth = kBlock * kLanes;
    const int64_t size = (row.size + kWidth - 1) / kWidth * kWidth;
    float* at = row.scratch;
    Columns columns = {at, at + size, at + 2 * size, size, 0};
    Vector most = broadcast(row.z[row.own]);
    for (int64_t first = 0; first < size; first += kLanes) {
        const int64_t count = row.size - first;
        const Integers others = others_of(row, first);
        const Vector z = others ? load(row.z + first, count) : broadcast(-kInfinity);
        const Vector s = row.s ? load(row.s + first, count) : Vector{};
        store(columns.z + first, z);
        store(columns.s + first, others & (s == s) ? s : Vector{});
        most = z > most ? z : most;
    }
    columns.top = most[0];
    for (int l = 1; l < kLanes; ++l) columns.top = most[l] > columns.top ? most[l] : columns.top;
    return columns;
}

// Some columns in registers.
struct Easy {
    Vector z, s, e, inverse;  // e is exp(z)
};

D2LLM_INLINE Easy easy_of(const Columns& columns, int64_t at) {
    const Vector z = load(columns.z + at), e = exponential(z);
    return {z, load(columns.s + at), e, 1 / e};
}

// How the triples of some columns are taken; even: no column's s differs from 0, so that all have the same gap.
enum class Triples { even, uneven, far };

D2LLM_INLINE Triples triples_of(const Easy (&easy)[kBlock], bool near) {
    Integers far = {}, uneven = {};
#pragma GCC unroll 4
    for (int v = 0; v < kBlock; ++v) {
        // NaN is far, columns that take no part are not.
        far |= ~(magnitude(easy[v].z) <= kNear) & ~(easy[v].z == -kInfinity);
        uneven |= easy[v].s != 0;
    }
    if (!near || any(far)) return Triples::far;
    return any(uneven) ? Triples::uneven : Triples::even;
}

// The hard negatives that were judged, next to each other; behind them come some that add nothing, s -inf.
struct Hard {
    float *z, *s, *e, *inverse;
    float* sums;  // (count up to whole pairs, lanes), 0
    int64_t count;
    bool near;
};

static Hard hard_of(const BatchRow& row, float* at) {
    const int64_t room = (row.hard / kLanes + 2) * kLanes;
    Hard hard = {at, at + room, at + 2 * room, at + 3 * room, at + 4 * room, 0, true};
    for (int64_t k = 0; k < row.hard; ++k) {
        if (row.s_hard[k] != row.s_hard[k]) continue;
        hard.z[hard.count] = row.z_hard[k];
        hard.s[hard.count++] = row.s_hard[k];
    }
    store(hard.z + hard.count, Vector{});
    store(hard.s + hard.count, broadcast(-kInfinity));
    Integers far = {};
    for (int64_t h = 0; h < hard.count; h += kLanes) {
        const Vector z = load(hard.z + h), e = exponential(z);
        far |= ~(magnitude(z) <= kNear);
        store(hard.e + h, e);
        store(hard.inverse + h, 1 / e);
    }
    hard.near = !any(far);
    // The one that makes up a pair.
    if (hard.count % kLanes == 0) hard.e[hard.count] = hard.inverse[hard.count] = 1;
    for (int64_t h = 0; h < hard.count + hard.count % 2; ++h) store(hard.sums + h * kLanes, Vector{});
    return hard;
}

// log(1 + t) / t for t from 0 to 1, off by 5e-9 of it at most before roundings.
D2LLM_INLINE Vector log1p_over(Vector t) {
    Vector p = broadcast(-0.0032440247f);
    p = p * t + broadcast(0.0198514592f);
    p = p * t + broadcast(-0.0569595285f);
    p = p * t + broadcast(0.106036544f);
    p = p * t + broadcast(-0.153055921f);
    p = p * t + broadcast(0.196759388f);
    p = p * t + broadcast(-0.249541342f);
    p = p * t + broadcast(0.333299637f);
    p = p * t + broadcast(-0.499999017f);
    return p * t + broadcast(1.0f);
}

// log(1 + q) for q >= 0; 1 + q is 2^n (1 + t).
D2LLM_INLINE Vector log1p_of(Vector q) {
    const Vector whole = 1 + q;
    const Bits bits = (Bits)whole, one = (Bits)broadcast(1.0f);
    const Vector n = __builtin_convertvector((Integers)((bits - one) >> 23), Vector);
    // Where n is 0 q itself, whose last digits are not in 1 + q. Just below 1 the sum rounds to 2, and n is 1.
    const Vector t = whole < 2 ? q : (Vector)((bits & 0x7fffffu) | one) - 1;
    return n * broadcast(0.69314718056f) + t * log1p_over(t);
}

// Floats from 0 up are ordered as their bits are, and the units for integers are idle.
D2LLM_INLINE Vector above_zero(Vector v) { return (Vector)((Integers)v > 0 ? (Integers)v : Integers{}); }

D2LLM_INLINE Vector lesser(Vector a, Vector b) {
    return (Vector)((Integers)a < (Integers)b ? (Integers)a : (Integers)b);
}

D2LLM_INLINE Vector gap_of(Vector s_hard, Vector s) { return above_zero(s_hard - s); }

// exp(-|z_e - z_h|): the lesser exponential over the greater.
D2LLM_INLINE Vector decay(const Easy& easy, const Hard& hard, int64_t h) {
    return lesser(easy.e, broadcast(hard.e[h])) * lesser(easy.inverse, broadcast(hard.inverse[h]));
}

// (1 + a) (1 + b) - 1, without the rounding of 1 + a.
D2LLM_INLINE Vector joined(Vector a, Vector b) { return a * b + (a + b); }

// The sum of gap * log(1 + exp(z_e - z_h)) over all hard negatives, as gap * (max(0, z_e - z_h) + log(1 + t)). Where
// the gap is the same in every column the second terms wait: hard.sums + 1 is the product of their 1 + t.
template <Triples kind>
D2LLM_INLINE Vector pairs_of(const Easy (&easy)[kBlock], const Hard& hard) {
    Vector acc[kBlock] = {};
    for (int64_t h = 0; h < hard.count; ++h) {
        const Vector z = broadcast(hard.z[h]), s = broadcast(hard.s[h]);
        Vector factors = {};
#pragma GCC unroll 4
        for (int v = 0; v < kBlock; ++v) {
            const Vector x = easy[v].z - z;
            const Vector t = kind == Triples::far ? exponential(-magnitude(x)) : decay(easy[v], hard, h);
            if constexpr (kind == Triples::even) {
                acc[v] += above_zero(s) * above_zero(x);
                factors = v ? joined(factors, t) : t;
            } else {
                acc[v] += gap_of(s, easy[v].s) * (t * log1p_over(t) + above_zero(x));
            }
        }
        float* sums = hard.sums + h * kLanes;
        if constexpr (kind == Triples::even) store(sums, joined(load(sums), factors));
    }
    Vector total = acc[0];
#pragma GCC unroll 4
    for (int v = 1; v < kBlock; ++v) total += acc[v];
    return total;
}

// The logarithms of the products in hard.sums, weighted; the products begin anew.
static Vector logarithms(const Hard& hard) {
    Vector total = {};
    for (int64_t h = 0; h < hard.count; ++h) {
        total += above_zero(broadcast(hard.s[h])) * log1p_of(load(hard.sums + h * kLanes));
        store(hard.sums + h * kLanes, Vector{});
    }
    return total;
}

static float pairs_of(const Columns& columns, const Hard& hard) {
    Vector total = {};
    int64_t factors = 0;
    for (int64_t at = 0; at < columns.size; at += kBlock * kLanes) {
        Easy easy[kBlock];
#pragma GCC unroll 4
        for (int v = 0; v < kBlock; ++v) easy[v] = easy_of(columns, at + v * kLanes);
        switch (triples_of(easy, hard.near)) {
            case Triples::far:
                total += pairs_of<Triples::far>(easy, hard);
                break;
            case Triples::uneven:
                total += pairs_of<Triples::uneven>(easy, hard);
                break;
            default:
                total += pairs_of<Triples::even>(easy, hard);
                factors += kBlock;
        }
        if (factors && (factors + kBlock > kFactors || at + kBlock * kLanes == columns.size)) {
            total += logarithms(hard);
            factors = 0;
        }
    }
    return sum(total);
}

// The sum of exp((z - top) / temperature) over the columns; the exponentials are kept in columns.weights if kKeep.
template <bool kKeep>
static float softmax_sum(const BatchRow& row, const Columns& columns) {
    Vector rest = {};
    for (int64_t block = 0; block < columns.size; block += kSummed * kLanes) {
        Vector part = {};
        for (int64_t at = block; at < columns.size && at < block + kSummed * kLanes; at += kLanes) {
            // Differences first: logits may be large and close.
            const Vector e = exponential((load(columns.z + at) - broadcast(columns.top)) * broadcast(row.slope));
            if (kKeep) store(columns.weights + at, e);
            part += e;
        }
        rest += part;
    }
    return sum(rest);
}

// Scratch memory behind the columns.
D2LLM_INLINE float* behind(const Columns& columns) { return columns.z + 3 * columns.size; }

static void in_batch(const BatchRow& row, float* cross_entropy, float* pairwise) {
    const Columns columns = columns_of(row);
    const float rest = softmax_sum<false>(row, columns), above = (columns.top - row.z[row.own]) * row.slope;
    // Of a row whose own logit is the largest the digits of a small sum count.
    *cross_entropy = above + (above == 0 ? __builtin_log1pf(rest) : __builtin_logf(rest + __builtin_expf(-above)));
    const Hard hard = hard_of(row, behind(columns));
    *pairwise = hard.count ? pairs_of(columns, hard) : 0;
}
